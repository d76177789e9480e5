"""Names in figures, drawn as they are."""

from __future__ import annotations


def literal(text: str) -> str:
    r"""Have matplotlib draw a text as it is, although what is between two dollars is a formula.

    Example:
        >>> print(literal("$5 or $6"))
        \$5 or \$6
    """
    return text.replace("$", r"\$")
