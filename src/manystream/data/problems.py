"""Bad input: where it is, what is wrong, and whether it stops the run or is skipped and told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from manystream.data.options import OnError, Report

_SHOWN = 5


class Problem(NamedTuple):
    """Something in the data that cannot be used as it is.

    Attributes:
        where: the file, and the line in it where there are lines.
        reason: what is wrong, what was expected.
    """

    where: str
    reason: str


Settle = Callable[[Sequence[Problem]], None]
"""Told of all problems of a kind at once; returns if they are to be skipped."""


def refuse(problems: Sequence[Problem]) -> None:
    """Stop at any problem.

    Raises:
        ValueError: naming the first few, and how many there are.
    """
    if problems:
        raise ValueError(listing("problems in the data", problems))


def settling(
    what: str, on_error: OnError, report: Report, *, skipped: str, option: str = "--data.on-error"
) -> Settle:
    """What to do about a kind of problem, as the user chose.

    Args:
        what: the kind, in the plural, for example ``"unreadable images"``.
        on_error: ``"raise"`` stops; ``"skip"`` reports and goes on.
        report: takes the lines.
        skipped: what becomes of them then, for example ``"count as absent"``.
        option: the option by which the user chooses.
    """

    def settle(problems: Sequence[Problem]) -> None:
        if not problems:
            return
        message = listing(what, problems)
        if on_error == "raise":
            raise ValueError(
                f"{message}\nmend or remove them; or with {option} skip they {skipped}"
            )
        report(f"{message}\nskipped: they {skipped}")

    return settle


def listing(what: str, problems: Sequence[Problem]) -> str:
    """The first few problems, a line each, under their number."""
    shown = [f"{printable(p.where)}: {printable(p.reason)}" for p in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        shown.append(f"… and {len(problems) - _SHOWN} more")
    return "\n  ".join([f"{what}: {len(problems)}", *shown])


def is_utf8(name: str) -> bool:
    """Whether a name from the file system or a file is text that can be written again."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # Python keeps bytes that are no UTF-8 as lone surrogates.
        return False
    return True


def printable(name: str) -> str:
    r"""A name with the bytes that are no UTF-8 as ``\xNN``.

    Example:
        >>> print(printable("caf\udce9.png"))
        caf\xe9.png
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
