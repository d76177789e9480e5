"""Parsers of the command line: values that run nothing, and messages that name the option."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from inspect import cleandoc
from itertools import pairwise
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader, set_parsing_settings

from manystream.choices import did_you_mean

_MODE = "manystream"
"""Name of our reading of values among jsonargparse's."""

# By these keys jsonargparse builds whatever a value names, also where an option asks for no class.
_BUILDS = {"class_path", "init_args", "dict_kwargs"}

_SWITCHES = ("--resume",)

_OPTION = re.compile(r"(?<=^--)[^=]+")

_UNKNOWN = re.compile(r"(?:unrecognized arguments: --|does not accept option ')([\w.]+)")

# A field as a library's message names it: what has an underscore is no word of prose, and the
# first word is a field if the message says what it is.
_FIELD = re.compile(r"(?<![\w.'\"/-])(?:[a-z]+_[a-z_]+|^[a-z]+(?= is ))(?![\w./=])")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class CommandParser(ArgumentParser):
    """Reads values without running what they name, and names the nearest of unknown options.

    Attributes:
        known: names of the options.
    """

    known: Sequence[str] = ()

    def __init__(self, **settings: Any) -> None:
        super().__init__(parser_mode=_MODE, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the process with the message."""
        super().error(with_nearest(message, self.known), ex)


def command_parser(name: str, options: type) -> CommandParser:
    """Derive a command's parser from its options, a dataclass whose comments become the help."""
    description = cleandoc(options.__doc__ or "").partition("\n\nRaises:")[0]
    parser = CommandParser(description=description, usage=f"manystream {name} [options]")
    parser.add_argument("--config", action="config", help="YAML file with any of these options.")
    parser.add_class_arguments(options)
    parser.known = list(parser.get_defaults(skip_validation=True).keys())
    return parser


def with_nearest(message: str, known: Iterable[str]) -> str:
    """Add the nearest option to a message about an unknown one.

    Example:
        >>> with_nearest("unrecognized arguments: --fit.epoch 3", ["fit.epochs", "out"])
        'unrecognized arguments: --fit.epoch 3; did you mean fit.epochs?'
    """
    found = _UNKNOWN.search(message)
    return message + did_you_mean(found[1], known) if found else message


def with_dashes(message: str, known: Iterable[str]) -> str:
    """Write fields that a message names as the options that set them, where only one can be meant.

    Example:
        >>> known = ["seed", "fit.epochs", "fit.warmup_epochs", "model.depth", "data.depth"]
        >>> with_dashes("epochs is 0; expected at least 1", known)
        '--fit.epochs is 0; expected at least 1'
        >>> with_dashes("depth is 19; leave warmup_epochs out of 'warmup_epochs'", known)
        "depth is 19; leave --fit.warmup_epochs out of 'warmup_epochs'"
    """
    options: dict[str, list[str]] = {}
    for name in known:
        options.setdefault(name.rpartition(".")[2], []).append(name)

    def dashed(found: re.Match[str]) -> str:
        meant = options.get(found[0], [])
        return f"--{meant[0]}" if len(meant) == 1 else found[0]

    return _FIELD.sub(dashed, message)


def normalised(words: Sequence[str]) -> list[str]:
    """Let options be written with dashes, and a switch without its value.

    Example:
        >>> normalised(["train", "--resume", "--data.on-error", "skip"])
        ['train', '--resume=true', '--data.on_error', 'skip']
    """
    named = [_OPTION.sub(lambda found: found[0].replace("-", "_"), word) for word in words]
    return [
        f"{word}=true" if word in _SWITCHES and following not in ("true", "false") else word
        for word, following in pairwise([*named, ""])
    ]


def load_values(text: str) -> Any:
    """Read YAML, of a configuration file or of a single value.

    Raises:
        ValueError: if something in it would have code run.
    """
    values = get_loader("yaml")(text)
    check_keys(_keys(values))
    return values


set_loader(_MODE, load_values, exceptions=(yaml.YAMLError, ValueError))


def check_keys(keys: Iterable[str]) -> None:
    """Refuse options by which a parser would build classes.

    Args:
        keys: names of options, or of what is inside of them, also with dots.

    Raises:
        ValueError: naming the first.
    """
    for key in keys:
        if found := _BUILDS.intersection(key.split(".")):
            raise ValueError(
                f"{min(found)} is refused: options build no classes that a value names; an "
                "optimizer is given by its path, for example optimizer: torch.optim.RAdam, a "
                "logger by its name, and the arguments of either as plain values"
            )


def _keys(values: Any) -> Iterator[str]:
    if isinstance(values, Mapping):
        yield from map(str, values)
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from _keys(value)
