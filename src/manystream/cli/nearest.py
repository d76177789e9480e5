"""A parser that says which option was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import NoReturn, get_type_hints

from jsonargparse import ArgumentParser

from manystream.choices import did_you_mean

_UNKNOWN = re.compile(r"(?:unrecognized arguments: --|does not accept option ')([\w.]+)")


class NearestParser(ArgumentParser):
    """Adds to the message about an unknown option, or key of a file, the nearest that there is.

    Attributes:
        known: names of the options.
    """

    known: Sequence[str] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the process with the message."""
        super().error(with_nearest(message, self.known), ex)


def with_nearest(message: str, known: Iterable[str]) -> str:
    """Add the nearest option to a message about an unknown one.

    Example:
        >>> with_nearest("unrecognized arguments: --fit.epoch 3", ["fit.epochs", "out"])
        'unrecognized arguments: --fit.epoch 3; did you mean fit.epochs?'
    """
    found = _UNKNOWN.search(message)
    return message + did_you_mean(found[1], known) if found else message


def option_names(options: type, prefix: str = "") -> Iterator[str]:
    """Names of all options of a dataclass, those of dataclasses within it after a dot."""
    types = get_type_hints(options)
    for field in fields(options):
        name = f"{prefix}{field.name}"
        if is_dataclass(types[field.name]):
            yield from option_names(types[field.name], f"{name}.")
        else:
            yield name
