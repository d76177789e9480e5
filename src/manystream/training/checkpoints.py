"""States of a run on disk: whole or not there, compared with their checksums when they are read."""

from __future__ import annotations

import errno
import os
import pickle
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from torch.utils._pytree import tree_map_only
from torch.utils.serialization import config

from manystream.files import replacing
from manystream.models.weights.state_dicts import zip_damage

SUFFIX = ".ckpt"

_FORMAT_KEY, _FORMAT = "manystream_state", 2
"""1 was a safetensors file."""


class DamagedStateError(ValueError):
    """A state's file is torn, or not what was written."""


def write_state(content: Mapping[str, Any], path: Path) -> None:
    """Write a state by ``torch.save``; the old file stays until the new one is on disk.

    Args:
        content: tensors, numbers and strings, in dicts, lists and tuples.
        path: the file.

    Raises:
        TypeError: if the content has anything else, which :func:`read_state` would not read.
        OSError: if the disk does not take it; what was there before is untouched.
    """
    content = tree_map_only(np.generic, np.generic.item, {_FORMAT_KEY: _FORMAT, **content})
    try:
        with replacing(path) as partial:
            _save(content, partial)
    except (OSError, RuntimeError) as error:
        # torch says that it could not write; what it was handling then says why.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        reason = "the disk is full" if cause.errno == errno.ENOSPC else str(cause)
        raise OSError(
            f"cannot write the checkpoint {path}: {reason}; those before it are untouched, make "
            "room and resume from them"
        ) from error


def read_state(path: Path) -> dict[str, Any]:
    """Read what :func:`write_state` wrote; no code in it is run.

    Returns:
        The content, with tensors on the CPU.

    Raises:
        DamagedStateError: if the file is torn or changed.
        ValueError: if there is none, or it is another kind of file.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}; expected a file that training wrote")
    try:
        damage = zip_damage(path)
        content = None if damage else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise DamagedStateError(f"{path} is damaged: {error}") from error
    if damage:
        raise DamagedStateError(f"{path} is damaged: {damage}")
    if not isinstance(content, dict) or content.pop(_FORMAT_KEY, None) != _FORMAT:
        raise ValueError(
            f"{path} is no checkpoint of a training run; expected one of those in its folder "
            "checkpoints"
        )
    return content


class StateIO(CheckpointIO):
    """Has Lightning keep its checkpoints in such files."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        write_state(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_state(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def random_state() -> dict[str, Any]:
    """Get the states of Python's, NumPy's and torch's generators, and of this process's GPU."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # what users draw from
    return {
        "python": (version, torch.tensor(numbers), gauss),
        "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on where :func:`random_state` was taken."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore the caller's random generators, and Lightning's seed variables in the environment."""
    before, seed = random_state(), torch.initial_seed()
    device = None if before["cuda"] is None else torch.cuda.current_device()
    variables = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    try:
        yield
    finally:
        set_random_state({**before, "cuda": None})
        if device is not None:
            torch.cuda.set_rng_state(before["cuda"], device)
        elif torch.cuda.is_initialized():  # it would have begun with this seed
            torch.cuda.manual_seed_all(seed)
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _save(content: Any, path: Path) -> None:
    """Write a content that can be read without running code; refuse any other."""
    try:
        # Checksums, also where the caller has switched them off.
        checksums = config.patch("save.compute_crc32", True)  # type: ignore[attr-defined]
        with path.open("wb") as file, checksums:
            torch.save(content, file)
        foreign = ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (pickle.PicklingError, AttributeError) as error:
        foreign = str(error)
    if foreign:
        raise TypeError(
            "a checkpoint holds tensors, numbers, strings, lists, tuples and dicts only; the state "
            f"has something else: {foreign}"
        )
