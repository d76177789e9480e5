"""Entry point: parse the command line, call, and turn errors into messages.

The options of a command are loaded when it is named, and what it calls when it is called: the list
of commands and a word that is none of them are answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pkgutil import resolve_name
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from manystream import __version__
from manystream.cli.output import complain
from manystream.cli.parser import (
    CommandParser,
    check_keys,
    command_parser,
    normalised,
    with_dashes,
)
from manystream.extras import MissingExtraError, train_extra

COMMANDS = {
    "train": "Train a network, and measure it with every subset of its streams.",
    "evaluate": "Measure a trained network when sensors fail.",
    "predict": "Write a trained network's predictions for a folder of images.",
    "compare": "Train networks that deal with a missing sensor in several ways, and compare them.",
    "inspect": "Show how much each stream contributes at every layer.",
    "convert": "Turn a checkpoint of the original implementation into a model file.",
    "prepare": "Write a data set once as arrays that need no decoding.",
    "data show": "Draw a contact sheet: some samples of every class.",
    "data check": "Read every image of a data set and list what is wrong with it.",
}

GROUPS = {"data": "Look at a data set before training on it."}

CALLS = {
    "train": ("options:TrainOptions", "train:train"),
    "evaluate": ("options:EvaluateOptions", "evaluate:evaluate"),
    "predict": ("options:PredictOptions", "predict:predict"),
    "compare": ("options:CompareOptions", "compare:compare"),
    "inspect": ("options:InspectOptions", "inspect:inspect"),
    "convert": ("options:ConvertOptions", "convert:convert"),
    "prepare": ("data_options:PrepareOptions", "prepare:prepare"),
    "data show": ("data_options:ShowDataOptions", "data:show_data"),
    "data check": ("data_options:CheckDataOptions", "data:check_data"),
}
"""Where in this package the options of each command are, and what takes them."""

OUT_OF_MEMORY = 3

INTERRUPTED = 130  # the shell's convention: 128 + SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words of the command line; those of the process by default.

    Returns:
        Exit status: 0; 1 if a check found something; 2 on bad input, if a file cannot be read
        or written, or a package is missing; 3 if training does not fit into memory; 130 after
        Ctrl-C; 143 after SIGTERM.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    name = named_command(words)
    known: Iterable[str] = ()
    try:
        with train_extra():
            parser = build_parser(name)
            known = parser.known
            values = _parse(parser, words)
            assert name is not None  # else the parser has ended the process
            return _call(name, values[name.replace(" ", ".")].as_dict(), words)
    except (ValueError, OSError, MissingExtraError) as error:
        complain(f"error: {with_dashes(str(error), known)}")
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


def named_command(words: Sequence[str]) -> str | None:
    """Find the command that the words of a command line name, if they do.

    Example:
        >>> named_command(["data", "check", "--data.root", "rooms"])
        'data check'
        >>> named_command(["trian"])
    """
    first = [word for word in words if not word.startswith("-")][:2]
    return next((name for name in (" ".join(first[:1]), " ".join(first)) if name in COMMANDS), None)


def build_parser(named: str | None = None) -> CommandParser:
    """Build a parser that knows all commands, and the options of the one that is named."""
    parser = CommandParser(
        prog="manystream",
        description="Networks on several image streams that survive a missing sensor.",
        version=__version__,
        allow_abbrev=False,
    )
    groups = {"": parser.add_subcommands(title="commands", metavar="COMMAND")}
    for name, description in COMMANDS.items():
        group, _, word = name.rpartition(" ")
        if group not in groups:
            inner = CommandParser(description=GROUPS[group])
            groups[""].add_subcommand(group, inner, help=GROUPS[group])
            groups[group] = inner.add_subcommands(title="commands", metavar="COMMAND")
        of_command = CommandParser()
        if name == named:
            of_command = command_parser(name, _load(CALLS[name][0]))
            parser.known = of_command.known
        groups[group].add_subcommand(word, of_command, help=description)
    return parser


def _parse(parser: ArgumentParser, words: Sequence[str]) -> Any:
    """Read the words; the process ends where they ask for help or cannot be read."""
    try:
        check_keys(word.partition("=")[0].lstrip("-") for word in words if word.startswith("--"))
    except ValueError as error:
        parser.error(str(error))
    return parser.instantiate(parser.parse_args(normalised(words)))


def _call(name: str, values: dict[str, Any], words: Sequence[str]) -> int:
    """Call a command with the values of its options; returns the exit status, see :func:`main`."""
    from manystream.training.out_of_memory import StepOutOfMemory
    from manystream.training.sigterm import TERMINATED, sigterm_handled

    def end(*_: Any) -> NoReturn:
        """End at SIGTERM as Ctrl-C does, so that a command cleans up."""
        raise SystemExit(TERMINATED)

    values.pop("config", None)
    options, run = CALLS[name]
    try:
        with sigterm_handled(end):
            return _load(run)(_load(options)(**values)) or 0
    except StepOutOfMemory as error:
        from manystream.cli.memory import command_to_try

        complain(f"error: {error.reason}")
        if error.changes:
            complain(f"try: {command_to_try(words, error.changes)}")
        return OUT_OF_MEMORY
    except SystemExit as ended:
        if ended.code != TERMINATED:
            raise
        complain("ended by SIGTERM")
        return TERMINATED


def _load(name: str) -> Any:
    """Import what the table names, for example ``options:TrainOptions``."""
    return resolve_name(f"manystream.cli.{name}")
