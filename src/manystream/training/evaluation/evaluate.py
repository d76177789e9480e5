"""Measure a network, with any of its streams taken away."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import combinations
from typing import Any

import torch

from manystream.data.sampler import select_before_reading
from manystream.models import StreamNetwork
from manystream.training.evaluation.answers import Answers, Condition, Subset, collect_answers

Measured = dict[str, float]
"""What is measured under one condition: ``mean_class_accuracy``, ``accuracy``, and others."""


def evaluate(
    network: StreamNetwork,
    loader: Iterable[Any],
    *,
    blanked_streams: Collection[str] = (),
    accelerator: str = "auto",
    progress: bool = False,
) -> Measured:
    """Measure a network on a loader with some streams absent from every sample.

    Args:
        network: the network.
        loader: batches as :func:`read_batch` takes them.
        blanked_streams: names of the streams to take away. A sample that has no other is left out.
        accelerator: device, by Lightning's names.
        progress: whether to show a progress bar.

    Returns:
        ``loss``, ``accuracy``, ``mean_class_accuracy`` (shares of 1), and ``num_samples`` that were
        measured.

    Raises:
        ValueError: if a name is not the network's, all streams are blanked, a batch does not fit,
            or no sample has a stream left.
    """
    blanked = (blanked_streams,) if isinstance(blanked_streams, str) else tuple(blanked_streams)
    _check_names(network, blanked)
    kept = tuple(name not in blanked for name in network.stream_names)
    select = None if all(kept) else lambda present: present & torch.tensor(kept)
    with select_before_reading(loader, select):
        done = collect_answers(
            network, loader, [Condition(kept)], accelerator=accelerator, progress=progress
        )
    measured = done.answers[0].measure()
    if not measured:
        raise ValueError(
            "no sample of the loader has a stream that is not blanked; "
            f"blanked are: {', '.join(blanked) or 'none'}"
        )
    return measured


def evaluate_subsets(
    network: StreamNetwork,
    loader: Iterable[Any],
    *,
    accelerator: str = "auto",
    progress: bool = False,
) -> dict[str, Measured]:
    """Measure every subset of the streams; one that no sample has any of is left out.

    Each batch is read once.

    Args:
        network: the network.
        loader: batches as :func:`read_batch` takes them.
        accelerator: device, by Lightning's names.
        progress: whether to show a progress bar.

    Returns:
        What :func:`evaluate` gives, by the streams that are left, joined by " + "; all of them
        first.

    Raises:
        ValueError: if a batch does not fit.
    """
    subsets = subsets_of(network)
    conditions = [Condition(kept) for kept in subsets.values()]
    done = collect_answers(network, loader, conditions, accelerator=accelerator, progress=progress)
    return measure_subsets(subsets, dict(zip(subsets.values(), done.answers, strict=True)))


def subsets_of(network: StreamNetwork) -> dict[str, Subset]:
    """Every subset of the streams that is not empty, by its name, the largest first."""
    names = network.stream_names
    subsets = [s for size in range(len(names), 0, -1) for s in combinations(names, size)]
    return {" + ".join(kept): tuple(name in kept for name in names) for kept in subsets}


def measure_subsets(
    subsets: Mapping[str, Subset], answers: Mapping[Subset, Answers]
) -> dict[str, Measured]:
    """Measurements by name, of those subsets of which some sample has a stream."""
    measured = {name: answers[kept].measure() for name, kept in subsets.items()}
    return {name: values for name, values in measured.items() if values}


def _check_names(network: StreamNetwork, blanked: Collection[str]) -> None:
    names = network.stream_names
    unknown = [n for n in blanked if n not in names]
    if unknown:
        raise ValueError(
            f"unknown stream {unknown[0]!r}; the model's streams are {', '.join(names)}"
        )
    if set(blanked) == set(names):
        raise ValueError("blanked_streams names every stream; at least one must stay")
