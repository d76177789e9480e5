"""Measure a network with any of its streams taken away."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from manystream.batch import StreamBatch
from manystream.data.sampler import select_before_reading
from manystream.evaluation.inference import Measured, Measurement, answer, inferring, read
from manystream.models import StreamNetwork
from manystream.tasks import Task

Subset = tuple[bool, ...]
"""Whether each of the M streams stays where a sample has it."""

Answers = tuple[Tensor, Tensor | slice]
"""Outputs of those samples of a batch that have a stream of a subset, and which these are."""


def evaluate(
    network: StreamNetwork,
    task: Task,
    loader: Iterable[Any],
    *,
    blanked_streams: Collection[str] = (),
    accelerator: str = "auto",
    progress: bool = False,
) -> Measured:
    """Measure a network on a loader with some streams absent from every sample.

    Args:
        network: the network.
        task: what it was trained on.
        loader: batches as :func:`manystream.streams.read_batch` takes them, with targets. A loader
            of ours does not read the images that are blanked.
        blanked_streams: names of the streams to take away. A sample that has no other is left out.
        accelerator: device, see :func:`manystream.evaluation.inference.device_of`.
        progress: whether to show a progress bar.

    Returns:
        ``loss``, the task's metrics, for classification ``accuracy`` and ``mean_class_accuracy``
        (shares of 1), and ``num_samples`` that were measured.

    Raises:
        ValueError: if a name is not the network's, all streams are blanked, a batch does not fit,
            or no sample has a stream left.
    """
    kept = without(network, blanked_streams)
    select = None if all(kept) else lambda present: present & torch.tensor(kept)
    with select_before_reading(loader, select), inferring(network, accelerator) as device:
        measurement = Measurement(task, device)
        for batch in read(network, loader, device, task=task, progress=progress):
            measure_subset(measurement, network, batch, kept)
        measured = measurement.compute()
    if not measured:
        blanked = [n for n, stays in zip(network.stream_names, kept, strict=True) if not stays]
        raise ValueError(
            "no sample of the loader has a stream that is not blanked; "
            f"blanked are: {', '.join(blanked) or 'none'}"
        )
    return measured


def evaluate_subsets(
    network: StreamNetwork,
    task: Task,
    loader: Iterable[Any],
    *,
    accelerator: str = "auto",
    progress: bool = False,
) -> dict[str, Measured]:
    """Measure every subset of the streams; one that no sample has any of is left out.

    Each batch is read once.

    Args:
        network: the network.
        task: what it was trained on.
        loader: batches as :func:`manystream.streams.read_batch` takes them, with targets.
        accelerator: device, see :func:`manystream.evaluation.inference.device_of`.
        progress: whether to show a progress bar.

    Returns:
        What :func:`evaluate` gives, by the streams that are left, joined by " + "; all of them
        first.

    Raises:
        ValueError: if a batch does not fit.
    """
    subsets = subsets_of(network)
    with inferring(network, accelerator) as device:
        measurements = {name: Measurement(task, device) for name in subsets}
        for batch in read(network, loader, device, task=task, progress=progress):
            for name, kept in subsets.items():
                measure_subset(measurements[name], network, batch, kept)
        measured = {name: measurement.compute() for name, measurement in measurements.items()}
    return {name: values for name, values in measured.items() if values}


def subsets_of(network: StreamNetwork) -> dict[str, Subset]:
    """Every subset of the streams that is not empty, by its name, the largest first."""
    names = network.stream_names
    subsets = [s for size in range(len(names), 0, -1) for s in combinations(names, size)]
    return {" + ".join(kept): tuple(name in kept for name in names) for kept in subsets}


def without(network: StreamNetwork, blanked_streams: Collection[str]) -> Subset:
    """The streams that stay when some are taken away.

    Args:
        network: whose streams they are.
        blanked_streams: names, or one name.

    Raises:
        ValueError: if a name is not the network's, or none stays.
    """
    blanked = {blanked_streams} if isinstance(blanked_streams, str) else set(blanked_streams)
    names = network.stream_names
    unknown = sorted(blanked - set(names))
    if unknown:
        raise ValueError(
            f"unknown stream {unknown[0]!r}; the model's streams are {', '.join(names)}"
        )
    if blanked == set(names):
        raise ValueError("blanked_streams names every stream; at least one must stay")
    return tuple(name not in blanked for name in names)


def measure_subset(
    measurement: Measurement, network: StreamNetwork, batch: StreamBatch, kept: Subset
) -> Answers | None:
    """Measure a batch with a subset of its streams; None if no sample has any of it."""
    samples: Tensor | slice = slice(None)
    if not all(kept):
        mask = batch.presence.mask & torch.tensor(kept)
        samples = mask.any(dim=1).nonzero().flatten().to(batch.streams[0].device)
        batch = batch.keep(mask)
    if len(batch) == 0:
        return None
    output = answer(network, batch)
    measurement.update(output, batch.target)
    return output, samples
