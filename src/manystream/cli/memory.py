"""Batches as large as memory allows, and the command to try where they are too large."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from manystream.cli.output import say
from manystream.data import TrainingData
from manystream.data.sampler import own_sampler
from manystream.model import StreamModel
from manystream.training import FitOptions

_OPTIONS = {
    "memory": "--model.memory",
    "batch_size": "--data.batch_size",
    "cuda_graphs": "--fit.cuda_graphs",
}


def check_can_size(options: FitOptions) -> None:
    """Refuse to look for a batch size where nothing says that memory is full.

    Raises:
        ValueError: if training would not run on a GPU, or on several.
    """
    if options.devices > 1:
        raise ValueError(
            f"--data.batch_size is auto, which is for one process, and --fit.devices is "
            f"{options.devices}; name a number"
        )
    if not _has_gpu(options.accelerator):
        raise ValueError(
            "--data.batch_size is auto, which fills the memory of a GPU, and training would not "
            "run on one; name a number"
        )


def fill_memory(model: StreamModel, data: TrainingData, options: FitOptions) -> int:
    """Have the loaders of a run give the largest batches whose steps fit; returns their size."""
    size = model.find_batch_size(data.train, options)
    for loader in (data.train, data.val):
        sampler = own_sampler(loader)
        assert sampler is not None
        sampler.batch_size = size
    say(f"batches of {size} samples, the most whose training steps fit, with a margin")
    return size


def command_to_try(words: Sequence[str], changes: Mapping[str, Any]) -> str:
    """Change some options of a command line, and have it write into a folder of its own.

    Args:
        words: of the command line that failed.
        changes: of ``memory``, ``batch_size`` and ``cuda_graphs``.

    Example:
        >>> command_to_try(["train", "--out", "runs/a"], {"memory": "lean"})
        'manystream train --out runs/a --model.memory lean --out runs/a-lean'
    """
    changed = [word for name, value in changes.items() for word in (_OPTIONS[name], str(value))]
    out = _value_of("--out", words)
    if out is not None:
        settings = [str(v) for name, v in changes.items() if name != "cuda_graphs"]
        changed += ["--out", "-".join([out, *(settings or ["again"])])]
    return shlex.join(["manystream", *words, *changed])


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """Find the last value given to an option, as ``--option value`` or ``--option=value``."""
    given = [b for a, b in pairwise(words) if a == option]
    given += [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
    return given[-1] if given else None


def _has_gpu(accelerator: str) -> bool:
    return accelerator != "cpu" and torch.cuda.is_available()
