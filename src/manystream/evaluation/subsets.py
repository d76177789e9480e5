"""Measure a network with some of its streams taken away, or with every subset of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch

from manystream.data.sampler import select_before_reading
from manystream.evaluation.inference import answer, answers_by_subset, in_parts, inferring, read
from manystream.evaluation.measurement import (
    Measured,
    Measurement,
    SubsetMeasurement,
    Subsets,
)
from manystream.models import StreamNetwork
from manystream.tasks import Task


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
        loader: batches as :func:`manystream.batch.read_batch` takes them, with targets. A loader
            of ours does not read the images that are blanked.
        blanked_streams: names of the streams to take away. A sample that has no other is left out.
        accelerator: device, see :func:`manystream.evaluation.inference.device_of`.
        progress: whether to show a progress bar.

    Returns:
        ``loss``, the task's metrics, for classification ``accuracy``, ``mean_class_accuracy``
        (shares of 1) and ``calibration_error``, their chance levels (``accuracy_chance``), and
        ``num_samples`` that were measured.

    Raises:
        ValueError: if a name is not the network's, all streams are blanked, a batch does not fit,
            or no sample has a stream left.
    """
    kept = torch.tensor(without(network, blanked_streams))
    select = None if kept.all() else lambda present: present & kept
    with select_before_reading(loader, select), inferring(network, accelerator) as device:
        measurement = Measurement(task, device)
        for batch in read(network, loader, device, task=task, progress=progress):
            left = batch if kept.all() else batch.keep(batch.presence.mask & kept)
            if len(left):
                measurement.update(answer(network, left), left.target)
        measured = measurement.compute()
    if not measured:
        names = zip(network.stream_names, kept.tolist(), strict=True)
        blanked = [name for name, stays in names if not stays]
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
) -> Subsets:
    """Measure every subset of the streams, from one pass of each stream.

    Subsets are compared on the same samples, those that have every stream, so that a difference is
    the streams' and not the samples'.

    Args:
        network: the network.
        task: what it was trained on.
        loader: batches as :func:`manystream.batch.read_batch` takes them, with targets; each is
            read once.
        accelerator: device, see :func:`manystream.evaluation.inference.device_of`.
        progress: whether to show a progress bar.

    Returns:
        What :func:`evaluate` gives, by the streams that are left, joined by " + "; all of them
        first. Beside it, each subset on all samples that have its streams, and all samples as they
        come.

    Raises:
        ValueError: if a batch does not fit.
    """
    with inferring(network, accelerator) as device:
        measurement = SubsetMeasurement(task, network.stream_names, device)
        for batch in read(network, loader, device, task=task, progress=progress):
            for part in in_parts(batch):
                measurement.update(answers_by_subset(network, part), part)
        return measurement.compute()


def without(network: StreamNetwork, blanked_streams: Collection[str]) -> tuple[bool, ...]:
    """Tell which of the M streams stay when some are taken away.

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
