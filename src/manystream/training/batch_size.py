"""Find the largest batch whose training steps fit into memory, by running them."""

from __future__ import annotations

import copy
import gc
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from manystream.batch import StreamBatch, map_target, read_batch
from manystream.models import StreamNetwork
from manystream.tasks import Task
from manystream.training.callbacks.step_watch import StepWatch
from manystream.training.module import TrainingModule, make_loss
from manystream.training.options import FitOptions
from manystream.training.out_of_memory import StepForm, explain_out_of_memory
from manystream.training.trainer import (
    Batches,
    kept_arithmetic,
    lightning_precision,
    precision_plugins,
    trainer_session,
)

_SAFE_SHARE = 0.9
"""Of the largest batch that fits, since fragments and data loaders take more as a run goes on."""

_PRECISION_SHARE = 16
"""The search ends once it knows the largest batch to one part in so many; safety takes more."""

_NO_ROOM_TO_CAPTURE = "no CUDA graph.*out of memory"
"""What a :class:`GraphedStep` warns of before it goes on eagerly."""


def find_batch_size(
    network: StreamNetwork,
    task: Task,
    loader: Iterable[Any],
    options: FitOptions | None = None,
    *,
    largest: int | None = None,
) -> int:
    """Find the largest batch size whose training steps fit, with a margin.

    Powers of two are tried until one does not fit, then halves of what is left between. Each try
    runs training steps of a copy of the network as :func:`fit` would run them: memory mode,
    precision, optimizer, loss, and CUDA graphs, which need more memory than eager steps: with
    ``cuda_graphs="off"`` a larger size may fit. Every sample has every stream, the most that a step
    can meet under modality dropout. The random state is put back.

    Args:
        network: the network; it stays as it is.
        task: what it is to be trained on.
        loader: training batches, of which one is read, for its height and width, and its targets.
        options: how it is to be trained.
        largest: no more than this; by default the number of samples of the loader's data set.

    Returns:
        ``largest`` if that fits; else nine tenths of a size that fits, where one that is larger by
        a sixteenth, or by 1, does not.

    Raises:
        ValueError: if the run would have several devices, the loader is empty, or nothing says
            what is the largest to try.
        StepOutOfMemory: if not even one sample fits.
    """
    options = options or FitOptions()
    distribution = options.distribution()
    if distribution["devices"] * distribution["num_nodes"] > 1:
        raise ValueError("a batch size is found for one device; set devices to 1, or name a size")
    if largest is None:
        largest = _num_samples(loader)
    form = _form_of(network, task, loader)
    loss = make_loss(task, options, loader)
    latest = StepForm()

    def steps(batch_size: int) -> None:
        module = TrainingModule(copy.deepcopy(network), task, options, loss=copy.deepcopy(loss))
        _run_steps(module, form.noise(network, batch_size), StepWatch(latest))

    with torch.random.fork_rng():
        found = largest_that_fits(lambda batch_size: _fits(steps, batch_size), largest)
        if found == 0:
            explain_out_of_memory(lambda: steps(1), network, loss, latest, options.precision)
    return found if found == largest else max(int(found * _SAFE_SHARE), 1)


def largest_that_fits(fits: Callable[[int], bool], largest: int) -> int:
    """Search by powers of two, then by halves, to one part in sixteen.

    Args:
        fits: whether a size fits; if one does not, no larger one does.
        largest: largest size to try.

    Returns:
        A size that fits; 0 if 1 does not.

    Example:
        >>> largest_that_fits(lambda size: size <= 10, 64)
        10
    """
    good, bad = 0, largest + 1
    while good < largest and bad > largest:
        size = min(max(2 * good, 1), largest)
        good, bad = (size, bad) if fits(size) else (good, size)
    while bad - good > max(good // _PRECISION_SHARE, 1):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _fits(steps: Callable[[int], None], batch_size: int) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=_NO_ROOM_TO_CAPTURE)
            steps(batch_size)
    except torch.OutOfMemoryError:
        fits = False
    except UserWarning as warning:
        if not re.match(_NO_ROOM_TO_CAPTURE, str(warning)):
            raise
        fits = False
    else:
        fits = True
    # Cycles among trainer and module hold memory of a try.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return fits


def _run_steps(module: TrainingModule, batch: StreamBatch, watch: StepWatch) -> None:
    """Run the steps of a run that need most.

    The first makes the optimizer's state; the second has it, and is captured as a CUDA graph where
    there are such; the third has another shape, as the last batch of an epoch or one that lacks a
    row, and runs eagerly beside the memory of that graph.
    """
    batches = [batch, batch]
    if len(batch) > 1:
        fewer = module.network.to_batch([x[:-1] for x in batch.streams])
        batches.append(replace(fewer, target=map_target(lambda t: t[:-1], batch.target)))
    options = module.options
    session = trainer_session(
        progress=False,
        max_steps=len(batches),
        accelerator=options.accelerator,
        precision=lightning_precision(options.precision),
        gradient_clip_val=options.gradient_clip,
        deterministic=options.deterministic or None,
        callbacks=[watch],
        plugins=precision_plugins(options.precision),
    )
    with kept_arithmetic(options.precision), session as trainer:
        trainer.fit(module, Batches(batches))


def _num_samples(loader: Iterable[Any]) -> int:
    dataset = getattr(loader, "dataset", None)
    if dataset is None or not hasattr(dataset, "__len__"):
        raise ValueError(
            "the loader does not say how many samples it has; name the largest batch size to try, "
            "for example largest=1024"
        )
    return len(dataset)


def _form_of(network: StreamNetwork, task: Task, loader: Iterable[Any]) -> StepForm:
    """Read a batch for its height and width, and its targets."""
    batch = next(iter(loader), None)
    if batch is None:
        raise ValueError("the loader has no batch; expected at least one")
    compact = read_batch(batch, network.in_channels)
    task.check_target(compact.target, len(compact), compact.ids)
    height, width = compact.streams[0].shape[2:]
    target = map_target(lambda t: t.cpu(), compact.target)
    return StepForm(len(compact), (height, width), target)
