"""Who writes a run's values down: CSV, TensorBoard, or another logger of Lightning's."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

_OWN: dict[str, type[Logger]] = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}

Loggers = Sequence[str] | dict[str, dict[str, Any]]
"""Names, or arguments by name."""


def make_loggers(loggers: Loggers, out_dir: Path, version: str = "logs") -> list[Logger]:
    """Loggers that write below a folder, unless their arguments say otherwise.

    Args:
        loggers: ``csv``, ``tensorboard`` or names of classes in ``lightning.pytorch.loggers``; with
            arguments of each, or without.
        out_dir: folder of the run.
        version: folder in it for those that write files.

    Raises:
        ValueError: if there is no such logger, its package is not installed, or it does not take
            its arguments.
    """
    named = loggers if isinstance(loggers, dict) else {name: {} for name in loggers}
    return [_make(name, arguments or {}, out_dir, version) for name, arguments in named.items()]


def check_loggers(loggers: Loggers) -> None:
    """Refuse names of no logger.

    Raises:
        ValueError: naming the loggers that there are.
    """
    for name in loggers:
        _class_of(name)


def _make(name: str, arguments: dict[str, Any], out_dir: Path, version: str) -> Logger:
    kind = _class_of(name)
    placed = {"name": "", "version": version} if name in _OWN else {}
    if "save_dir" in signature(kind).parameters:
        placed["save_dir"] = str(out_dir)
    try:
        return kind(**{**placed, **arguments})
    except (TypeError, ValueError, ModuleNotFoundError) as error:
        raise ValueError(f"logger {name!r} with arguments {arguments}: {error}") from error


def _class_of(name: str) -> type[Logger]:
    if name in _OWN:
        return _OWN[name]
    there = [n for n in lightning_loggers.__all__ if n != "Logger"]  # which is abstract
    if name not in there:
        raise ValueError(
            f"unknown logger {name!r}; expected one of {', '.join(_OWN)}, {', '.join(there)}"
        )
    kind: type[Logger] = getattr(lightning_loggers, name)
    return kind
