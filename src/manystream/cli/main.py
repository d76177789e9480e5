"""Entry point: parse the command line, call, and turn errors into messages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from inspect import cleandoc
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from manystream import __version__
from manystream.cli.bench import bench_memory
from manystream.cli.compare import compare
from manystream.cli.convert import convert
from manystream.cli.evaluate import evaluate
from manystream.cli.inspect import inspect
from manystream.cli.options import (
    BenchMemoryOptions,
    CompareOptions,
    ConvertOptions,
    EvaluateOptions,
    InspectOptions,
    PredictOptions,
    TrainOptions,
)
from manystream.cli.output import complain
from manystream.cli.predict import predict
from manystream.cli.train import train

COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "train": (TrainOptions, train),
    "evaluate": (EvaluateOptions, evaluate),
    "predict": (PredictOptions, predict),
    "compare": (CompareOptions, compare),
    "inspect": (InspectOptions, inspect),
    "convert": (ConvertOptions, convert),
    "bench memory": (BenchMemoryOptions, bench_memory),
}

GROUPS = {"bench": "Measure what training takes on this machine."}

INTERRUPTED = 130  # the shell's convention: 128 + SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words of the command line; those of the process by default.

    Returns:
        Exit status: 0, or 2 on bad input, or 130 after Ctrl-C.
    """
    words = sys.argv[1:] if arguments is None else arguments
    parser = build_parser()
    parsed = parser.parse_args([_underscored(word) for word in words])
    name = _command(parsed)
    options_class, run = COMMANDS[name]
    try:
        values = parser.instantiate(parsed)[name.replace(" ", ".")].as_dict()
        values.pop("config", None)
        run(options_class(**values))
    except ValueError as error:
        complain(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def build_parser() -> ArgumentParser:
    """Parser of all commands, derived from their options."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="manystream",
        description="Networks on several image streams that survive a missing sensor.",
        version=__version__,
        allow_abbrev=False,
    )
    groups = {"": parser.add_subcommands(title="commands", metavar="COMMAND")}
    for group, description in GROUPS.items():
        inner = ArgumentParser(description=description)
        groups[""].add_subcommand(group, inner, help=description)
        groups[group] = inner.add_subcommands(title="commands", metavar="COMMAND")
    for name, (options, _) in COMMANDS.items():
        group, _, word = name.rpartition(" ")
        description = cleandoc(options.__doc__ or "")
        command = ArgumentParser(description=description, usage=f"manystream {name} [options]")
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


def _underscored(word: str) -> str:
    """Let options be written with dashes: ``--data.on-error`` is ``--data.on_error``."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
