"""Bad input: where it is, what is wrong, and whether it stops the run or is skipped and told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Report = Callable[[str], None]
"""Takes a line that the user should see."""

OnError = Literal["raise", "skip"]

_SHOWN = 5


class Problem(NamedTuple):
    """Something in the data that cannot be used as it is.

    Attributes:
        where: the file, and the line in it where there are lines.
        reason: what is wrong, what was expected.
    """

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
    report: Report = print

    def settle(self, what: str, problems: Sequence[Problem], skipped: str) -> None:
        """Stop, or tell and go on, if there are problems of a kind.

        Args:
            what: the kind, in the plural, for example ``"unreadable images"``.
            problems: all of them.
            skipped: what becomes of them if they are skipped, for example ``"count as absent"``.

        Raises:
            ValueError: if they are to stop the run; it names the first few, and their number.
        """
        if not problems:
            return
        message = listing(what, problems)
        if self.on_error == "raise":
            raise ValueError(
                f"{message}\nmend or remove them; or with on_error: skip they {skipped}"
            )
        self.report(f"{message}\nskipped: they {skipped}")


def listing(what: str, problems: Sequence[Problem]) -> str:
    """Write the first few problems, a line each, under their number."""
    shown = [f"{printable(p.where)}: {printable(p.reason)}" for p in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        shown.append(f"… and {len(problems) - _SHOWN} more")
    return "\n  ".join([f"{what}: {len(problems)}", *shown])


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
