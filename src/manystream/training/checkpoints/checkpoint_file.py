"""Checkpoint files: one safetensors file, whole or not there, verified when it is read."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from manystream.models.weights.model_file import content_digest
from manystream.training.checkpoints.nest import put_together, take_apart

_FORMAT = "manystream checkpoint 1"


class DamagedCheckpointError(ValueError):
    """A checkpoint file is torn, or not what was written."""


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a nest of plain values and tensors; the old file stays until the new one is on disk.

    Args:
        content: what :func:`manystream.training.checkpoints.nest.take_apart` takes.
        path: the file.

    Raises:
        TypeError: if something in the content is neither plain nor a tensor.
        OSError: if the disk does not take it; what was there before is untouched.
    """
    tree, tensors = take_apart(dict(content))
    text = json.dumps(tree, allow_nan=False)
    metadata = {"format": _FORMAT, "tree": text, "digest": content_digest(text, tensors)}
    partial = partial_of(path)
    try:
        save_file(tensors, partial, metadata)
        _reach_disk(partial)
        partial.replace(path)
        _reach_disk(path.parent)
    except (OSError, SafetensorError) as error:
        _try_to_remove(partial)
        raise _not_written(path, error) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`write_checkpoint` wrote; nothing is unpickled.

    Raises:
        DamagedCheckpointError: if the file is torn or changed.
        ValueError: if there is none, or it is another kind of file.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}; expected a file that training wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{path} is damaged: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is no checkpoint of a training run; expected one of those in its folder "
            "checkpoints"
        )
    if metadata["digest"] != content_digest(metadata["tree"], tensors):
        raise DamagedCheckpointError(f"{path} is damaged: its checksum does not match")
    content: dict[str, Any] = put_together(json.loads(metadata["tree"]), tensors)
    return content


def partial_of(path: Path) -> Path:
    """Where a file is written before it takes its name."""
    return path.with_name(f".{path.name}.partial")


class VerifiedCheckpointIO(CheckpointIO):
    """Has Lightning keep its checkpoints in such files."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def _reach_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _try_to_remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the error that led here says more
        return


def _not_written(path: Path, error: Exception) -> OSError:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    reason = "the disk is full" if full else str(error)
    return OSError(
        f"cannot write the checkpoint {path}: {reason}; those before it are untouched, make room "
        "and resume from them"
    )
