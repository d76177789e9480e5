"""The folder of a run: one process writes into it, and it knows its newest whole checkpoint."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from manystream.choices import first_few
from manystream.files import partial_of
from manystream.models import StreamNetwork
from manystream.training.checkpoints import SUFFIX, DamagedStateError, read_state
from manystream.training.history import History, HistoryRecorder

if sys.platform != "win32":
    import fcntl

_KEPT = 2
_OF_NETWORK = "network."
_SHOWN = 3


class RunFolder:
    """The folder of a run.

    ``checkpoints`` in it holds the newest two states of the run, the ``best`` one so far, and in
    the end the ``final`` one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / f"best{SUFFIX}"
        self.final = self.checkpoints / f"final{SUFFIX}"

    @property
    def has_run(self) -> bool:
        """Tell whether something was trained into it."""
        return (self.path / "history.json").exists() or any(self.checkpoints.glob("[!.]*"))

    @property
    def log_name(self) -> str:
        """Name a folder for logs that is not there yet: a resumed run has its own."""
        names = ["logs", *(f"logs-{n}" for n in range(2, 1000))]
        return next(name for name in names if not (self.path / name).exists())

    @contextmanager
    def held(self, *, resume: bool, first: bool = True) -> Iterator[None]:
        """Keep every other run out for a while.

        Args:
            resume: whether what is in the folder is to be continued.
            first: whether this is the first of the run's processes; the others hold nothing.

        Raises:
            ValueError: if another process trains into the folder, a run is in it that is not to be
                continued, or it cannot be written into.
        """
        if not first:
            yield
            return
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            lock = (self.checkpoints / ".lock").open("a")
        except OSError as error:
            raise ValueError(
                f"cannot write into {self.path}: {error.strerror}; name a folder that can be "
                "written into"
            ) from error
        with lock:
            _lock(lock.fileno(), self.path)
            if self.has_run and not resume:
                raise ValueError(
                    f"{self.path} holds a run already; resume it, or name another folder: nothing "
                    "is overwritten"
                )
            for partial in self.checkpoints.glob(partial_of(Path("*")).name):
                partial.unlink()  # of a process that was killed while it wrote
            yield

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Read the newest state that is whole: its path and content; None where there is none.

        Raises:
            ValueError: if there are states, but none is whole.
        """
        states = self._all_states()
        for path in reversed(states):
            try:
                return path, read_state(path)
            except DamagedStateError as error:
                warnings.warn(f"{error}; falling back to the one before", stacklevel=2)
        if states:
            raise ValueError(
                f"no checkpoint in {self.checkpoints} is whole; start again in another folder"
            )
        if any(self.checkpoints.glob("*.safetensors")):
            raise ValueError(
                f"the run in {self.path} was begun by an older version of manystream, whose states "
                "this one does not read; end it with that version, or start again in another folder"
            )
        return None

    @property
    def latest(self) -> Path | None:
        """Find the newest state, whole or not; None where there is none."""
        return next(reversed(self._all_states()), None)

    def state_path(self, epoch: int, batch: int) -> Path:
        """Say where the state before a batch of an epoch belongs."""
        return self.checkpoints / f"epoch-{epoch:05d}-batch-{batch:08d}{SUFFIX}"

    def keep(self, state: Path) -> None:
        """Remove every state but the two that end with this one."""
        states = self._states()
        end = states.index(state) + 1
        for other in {*states} - {*states[max(end - _KEPT, 0) : end]}:
            other.unlink()

    def keep_as_best(self, state: Path) -> None:
        """Give a state the name of the best one as well."""
        if self.best.exists() and self.best.samefile(state):
            return  # two names of one file are not replaced by each other: a partial would stay
        partial = partial_of(self.best)
        partial.unlink(missing_ok=True)
        try:
            os.link(state, partial)
        except OSError:  # a file system without links
            shutil.copyfile(state, partial)
        partial.replace(self.best)

    def _states(self) -> list[Path]:
        return sorted(self.checkpoints.glob(f"epoch-*{SUFFIX}"))

    def _all_states(self) -> list[Path]:
        return [*self._states(), *self.checkpoints.glob(self.final.name)]


def check_same_network(network: StreamNetwork, path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a checkpoint, read from a path, of another network.

    Raises:
        ValueError: naming what differs.
    """
    saved, own = _weights(content), network.state_dict()
    differences = [f"{name} is not in this network" for name in saved.keys() - own.keys()]
    differences += [f"{name} is not in the checkpoint" for name in own.keys() - saved.keys()]
    differences += [
        f"{name} is {tuple(saved[name].shape)}, here {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    if differences:
        raise ValueError(
            f"{path} is a checkpoint of another network: "
            f"{first_few(sorted(differences), _SHOWN, '; ')}; resume with the options that the run "
            "was started with"
        )


def finish(network: StreamNetwork, content: Mapping[str, Any]) -> History:
    """Give a network the weights of a run that had ended, and return its history."""
    network.load_state_dict(_weights(content))
    recorder = HistoryRecorder()
    recorder.load_state_dict(content["callbacks"][recorder.state_key])
    return recorder.history


def _weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name.removeprefix(_OF_NETWORK): tensor
        for name, tensor in content["state_dict"].items()
        if name.startswith(_OF_NETWORK)
    }


def _lock(descriptor: int, folder: Path) -> None:
    """Lock a file for as long as this process lives and keeps it open."""
    if sys.platform == "win32":
        return
    try:
        # Unlike flock, not inherited by loader processes, which may outlive a killed run.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(
            f"another process is training into {folder}; wait for it, or name another folder"
        ) from error
