"""A run that kills its own process at a chosen moment; the signal is a real one."""

import os
import signal
from io import BufferedWriter
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from manystream import files
from manystream.data.loader import StreamDataset, make_loader
from manystream.data.options import Augmentation, DataOptions
from manystream.training import FitOptions
from manystream.training.history import History
from manystream.training.run_folder import RunFolder
from manystream.training.sigterm import Terminated
from tests.data.builders import DEPTH, RGB, identity
from tests.training.builders import CPU, array_source, easy_samples, tiny_model, tuple_batches

COMMON = {
    "epochs": 3,
    "modality_dropout": True,
    "modality_dropout_rate": 0.5,
    "modality_dropout_ramp": 3,
    "checkpoint_every_steps": 1,
    "accumulate_batches": 2,
    **CPU,
}
OPTIONS = {
    "ours": {**COMMON, "ema_decay": 0.9, "subset_accuracy_every": 1, "restore_best": True},
    "any": {**COMMON, "schedule": "plateau", "balance_penalty": 0.1, "log_gradient_norms": True},
}
"""Two runs that between them have everything with a state: one reads by our own loader, with
processes that read ahead; the other by a loader that draws from the global generators."""


class Noisy(Dataset):
    """Samples with noise from the global generator."""

    def __init__(self):
        self.samples = easy_samples(25)

    def __len__(self):
        return len(self.samples[0])

    def __getitem__(self, index):
        rgb, depth, target = (part[index] for part in self.samples)
        return rgb + torch.randn(rgb.shape), depth + torch.randn(depth.shape), target


def loaders_of(kind: str):
    """Training and validation batches."""
    if kind == "any":
        return DataLoader(Noisy(), batch_size=4, shuffle=True), tuple_batches(16, seed=1)
    preprocessing = identity(RGB, DEPTH, size=32)
    options = DataOptions(batch_size=4, num_workers=1)
    train = StreamDataset(array_source(25), preprocessing, Augmentation())
    val = StreamDataset(array_source(9), preprocessing)
    return make_loader(train, options, shuffle=True), make_loader(val, options)


class Moments:
    """Counts moments of a run, and kills the process at one of them.

    ``kill_at`` is its number; ``terminate_at`` is a kind and a number of that kind, for SIGTERM.
    """

    def __init__(self, kill_at=None, terminate_at=None):
        self.seen: list[str] = []
        self.kill_at = kill_at
        self.terminate_at = terminate_at

    def pass_by(self, kind: str, before_dying=None):
        if len(self.seen) == self.kill_at:
            if before_dying is not None:
                before_dying()
            os.kill(os.getpid(), signal.SIGKILL)
        if (kind, self.seen.count(kind)) == self.terminate_at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.seen.append(kind)

    def watch(self, model):
        """Take in every forward pass, and what writes to the disk."""
        model.network.bn1.register_forward_hook(
            lambda *_: self.pass_by("step" if model.network.training else "validation")
        )
        self._before(files, "_reach_disk", "write")
        self._before(RunFolder, "keep", "between epochs")
        self._before(History, "save", "between epochs")
        self._tear_writes()

    def _before(self, owner, name, kind):
        original = getattr(owner, name)

        def watched(*arguments):
            self.pass_by(kind)
            return original(*arguments)

        setattr(owner, name, watched)

    def _tear_writes(self):
        original = torch.save

        def watched(content, file, **arguments):
            def half():
                original(content, file, **arguments)
                file.truncate(file.tell() // 2)

            if isinstance(file, BufferedWriter):  # not what processes send each other
                self.pass_by("write", half)
            original(content, file, **arguments)

        torch.save = watched


def run(kind, folder, resume, kill_at):
    """Train; returns the moments that passed."""
    model, moments = tiny_model(dropout=0.5), Moments(kill_at)
    moments.watch(model)
    options = FitOptions(**OPTIONS[kind])
    model.fit(*loaders_of(kind), options, out_dir=Path(folder), resume=resume)
    return moments.seen


def run_until_sigterm(kind, folder, at):
    """Train, saving no state within an epoch but at SIGTERM; returns how the run ended."""
    model, moments = tiny_model(dropout=0.5), Moments(terminate_at=at)
    moments.watch(model)
    options = FitOptions(**{**OPTIONS[kind], "checkpoint_every_steps": None})
    with pytest.raises(Terminated) as ended:
        model.fit(*loaders_of(kind), options, out_dir=Path(folder))
    return ended.value.code, ended.value.message
