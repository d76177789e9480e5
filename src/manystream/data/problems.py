"""Bad input: where it is, what is wrong, and whether it stops the run or is skipped and told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Printer = Callable[[str], None]
"""Takes a line that the user should see."""

OnError = Literal["raise", "skip"]


class Problem(NamedTuple):
    """Something in the data that cannot be used: the file, with its line, and what is wrong."""

    where: str
    reason: str


@dataclass(frozen=True)
class Problems:
    """What is done about bad input.

    Attributes:
        on_error: ``"raise"`` stops; ``"skip"`` reports and goes on.
        report: takes the lines.
    """

    on_error: OnError = "raise"
    report: Printer = print

    def settle(self, what: str, problems: Sequence[Problem], skipped: str) -> None:
        """Stop with a ValueError, or tell and go on, if there are problems of a kind.

        The first few are named, and all counted.

        Args:
            what: the kind, in the plural, for example ``"unreadable images"``.
            problems: all of them.
            skipped: what becomes of them if they are skipped, for example ``"count as absent"``.
        """
        if not problems:
            return
        lines = [f"{printable(where)}: {printable(reason)}" for where, reason in problems]
        message = "\n  ".join([f"{what}: {len(problems)}", *first_lines(lines)])
        if self.on_error == "raise":
            raise ValueError(
                f"{message}\nmend or remove them; or with on_error: skip they {skipped}"
            )
        self.report(f"{message}\nskipped: they {skipped}")


def first_lines(items: Sequence[str], most: int = 5) -> list[str]:
    """Return the first items, and a line on how many more there are."""
    more = [f"… and {len(items) - most} more"] if len(items) > most else []
    return [*items[:most], *more]


def is_utf8(name: str) -> bool:
    """Tell whether a name from the file system or a file is text that can be written again."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # Python keeps bytes that are no UTF-8 as lone surrogates.
        return False
    return True


def printable(name: str) -> str:
    r"""Write the bytes of a name that are no UTF-8 as ``\xNN``.

    Example:
        >>> print(printable("caf\udce9.png"))
        caf\xe9.png
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
