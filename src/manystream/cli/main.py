"""Entry point: parse the command line, call, and turn errors into messages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from inspect import cleandoc
from itertools import pairwise
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from manystream import __version__
from manystream.cli.compare import compare
from manystream.cli.convert import convert
from manystream.cli.data import check_data, show_data
from manystream.cli.data_options import (
    CheckDataOptions,
    PrepareOptions,
    ShowDataOptions,
)
from manystream.cli.evaluate import evaluate
from manystream.cli.inspect import inspect
from manystream.cli.memory import command_to_try
from manystream.cli.nearest import NearestParser, option_names
from manystream.cli.no_code import MODE, check_keys
from manystream.cli.options import (
    CompareOptions,
    ConvertOptions,
    EvaluateOptions,
    InspectOptions,
    PredictOptions,
    TrainOptions,
)
from manystream.cli.output import complain
from manystream.cli.predict import predict
from manystream.cli.prepare import prepare
from manystream.cli.train import train
from manystream.extras import MissingExtraError, train_extra
from manystream.training.out_of_memory import StepOutOfMemory
from manystream.training.termination import TERMINATED, sigterm_handled

COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {
    "train": (TrainOptions, train),
    "evaluate": (EvaluateOptions, evaluate),
    "predict": (PredictOptions, predict),
    "compare": (CompareOptions, compare),
    "inspect": (InspectOptions, inspect),
    "convert": (ConvertOptions, convert),
    "prepare": (PrepareOptions, prepare),
    "data show": (ShowDataOptions, show_data),
    "data check": (CheckDataOptions, check_data),
}

GROUPS = {"data": "Look at a data set before training on it."}

OUT_OF_MEMORY = 3

INTERRUPTED = 130  # the shell's convention: 128 + SIGINT


_SWITCHES = ("--resume",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words of the command line; those of the process by default.

    Returns:
        Exit status: 0; 1 if a check found something; 2 on bad input, if a file cannot be read
        or written, or a package is missing; 3 if training does not fit into memory; 130 after
        Ctrl-C; 143 after SIGTERM.
    """
    words = sys.argv[1:] if arguments is None else arguments
    parser = build_parser()
    try:
        check_keys(word.partition("=")[0].lstrip("-") for word in words if word.startswith("--"))
    except ValueError as error:
        parser.error(str(error))
    parsed = parser.parse_args(_normalised(words))
    name = _command(parsed)
    options_class, run = COMMANDS[name]
    try:
        values = parser.instantiate(parsed)[name.replace(" ", ".")].as_dict()
        values.pop("config", None)
        with train_extra(), sigterm_handled(_end):
            return run(options_class(**values)) or 0
    except (ValueError, OSError, MissingExtraError) as error:
        complain(f"error: {error}")
        return 2
    except StepOutOfMemory as error:
        complain(f"error: {error.advice}")
        if changes := error.advice.changes():
            complain(f"try: {command_to_try(words, changes)}")
        return OUT_OF_MEMORY
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as ended:
        if ended.code != TERMINATED:
            raise
        complain("ended by SIGTERM")
        return TERMINATED


def _end(*_: Any) -> None:
    """End a command at SIGTERM as Ctrl-C does, so that it cleans up."""
    raise SystemExit(TERMINATED)


def build_parser() -> ArgumentParser:
    """Parser of all commands, derived from their options."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = NearestParser(
        prog="manystream",
        description="Networks on several image streams that survive a missing sensor.",
        version=__version__,
        allow_abbrev=False,
        parser_mode=MODE,
    )
    parser.known = [known for options, _ in COMMANDS.values() for known in option_names(options)]
    groups = {"": parser.add_subcommands(title="commands", metavar="COMMAND")}
    for group, description in GROUPS.items():
        inner = ArgumentParser(description=description, parser_mode=MODE)
        groups[""].add_subcommand(group, inner, help=description)
        groups[group] = inner.add_subcommands(title="commands", metavar="COMMAND")
    for name, (options, _) in COMMANDS.items():
        group, _, word = name.rpartition(" ")
        description = cleandoc(options.__doc__ or "").partition("\n\nRaises:")[0]
        command = NearestParser(
            description=description, usage=f"manystream {name} [options]", parser_mode=MODE
        )
        command.known = list(option_names(options))
        command.add_argument(
            "--config", action="config", help="YAML file with any of these options."
        )
        command.add_class_arguments(options)
        groups[group].add_subcommand(word, command, help=description)
    return parser


def _command(parsed: Namespace) -> str:
    """Name of the chosen command in the table."""
    name: str = parsed.subcommand
    return f"{name} {parsed[name].subcommand}" if name in GROUPS else name


def _normalised(words: Sequence[str]) -> list[str]:
    """Let options be written with dashes, and a switch without its value."""
    named = [_underscored(word) for word in words]
    return [
        f"{word}=true" if word in _SWITCHES and following not in ("true", "false") else word
        for word, following in pairwise([*named, ""])
    ]


def _underscored(word: str) -> str:
    """Let options be written with dashes: ``--data.on-error`` is ``--data.on_error``."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
