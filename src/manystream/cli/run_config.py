"""The configuration of a run, kept in its folder so that it can be repeated and resumed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from manystream.cli.options import TrainOptions
from manystream.cli.output import fresh_path, plain
from manystream.files import replacing

_FILE = "config.yaml"
_FREE = ("data.num_workers", "data.root", "fit.progress")
"""What may change when a run is resumed: the result does not depend on it."""


def folder_of(options: TrainOptions, *, first: bool) -> Path:
    """Choose the folder of a run; for a new one it must not exist.

    Args:
        options: of the command.
        first: whether this is the first of the run's processes; the others find the folder made.

    Raises:
        ValueError: if there is none to resume, or one that would be overwritten.
    """
    together = options.fit.distribution()
    if options.out is None and (options.resume or together["devices"] * together["num_nodes"] > 1):
        asks = "--resume" if options.resume else "training in several processes"
        raise ValueError(f"{asks} needs the folder of the run; name it with --out")
    if options.out is not None and (options.resume or not first):
        return options.out
    return fresh_path(options.out)


def read_config(folder: Path) -> dict[str, Any] | None:
    """Read the configuration that a run was started with; None where none was written.

    Raises:
        ValueError: if it cannot be read, or is no longer what was written.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _damaged(path, str(error)) from error
    for group in ("data", "model", "fit"):
        if not isinstance(config, dict) or not isinstance(config.get(group), dict):
            raise _damaged(path, f"it has no options of {group}")
    return config  # type: ignore[no-any-return]


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is damaged: {reason}; remove it, and resume with the options that the run was "
        "started with"
    )


def command_to_resume(folder: Path) -> str:
    """Write the command line that goes on with a run."""
    words = ["manystream", "train", "--config", str(folder / _FILE), "--out", str(folder)]
    return shlex.join([*words, "--resume"])


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Keep a run's configuration.

    Raises:
        ValueError: if the folder cannot be written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / _FILE) as partial:
            partial.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    except OSError as error:
        raise ValueError(
            f"cannot write into --out {folder}: {error.strerror}; name a folder that can be "
            "written into"
        ) from error


def config_of(options: TrainOptions) -> dict[str, Any]:
    """Give what was asked for, but for the folder, so that it can be asked for again."""
    config = plain(asdict(options))
    del config["out"], config["resume"]
    # As it will be read: YAML has lists only.
    read: dict[str, Any] = yaml.safe_load(yaml.safe_dump(config, sort_keys=False))
    return read


def check_same_config(config: Mapping[str, Any], started_with: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other options than it was started with.

    Raises:
        ValueError: naming those that differ.
    """
    now, then = dict(_flat(config)), dict(_flat(started_with))
    differ = [
        f"--{name} is {now.get(name)}, was {then.get(name)}"
        for name in sorted(now.keys() | then.keys())
        if now.get(name) != then.get(name) and name not in _FREE
    ]
    if differ:
        raise ValueError(
            f"the run was started with other options: {'; '.join(differ)}. Resume it with the same "
            "command, or with --config config.yaml of its folder"
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
