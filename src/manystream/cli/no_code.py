"""Values of options, read so that nothing they name is imported, called or run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from manystream.cli.options import BenchOptions

MODE = "manystream"
"""Name of this reading among the parser's."""

# By these keys jsonargparse builds whatever a value names, also where an option asks for no class.
_BUILDS = {"class_path", "init_args", "dict_kwargs"}

_BASELINES = next(field.default for field in fields(BenchOptions) if field.name == "baselines")


def load_values(text: str) -> Any:
    """Read YAML, of a configuration file or of a single value.

    Raises:
        ValueError: if something in it would have code run.
    """
    values = get_loader("yaml")(text)
    check_keys(_keys(values))
    if isinstance(values, Mapping) and values.get("baselines") not in (None, str(_BASELINES)):
        raise ValueError(
            "baselines is a Python file, which would be run; a configuration may not name one, "
            "name it on the command line"
        )
    return values


set_loader(MODE, load_values, exceptions=(yaml.YAMLError, ValueError))


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
