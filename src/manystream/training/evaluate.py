"""Measure a network, with any of its streams taken away."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import combinations
from typing import Any

import torch

from manystream.data.sampler import select_before_reading
from manystream.models import StreamNetwork
from manystream.training.module import ClassifierModule
from manystream.training.trainer import as_loader, trainer_session


def evaluate(
    network: StreamNetwork,
    loader: Iterable[Any],
    *,
    blanked_streams: Collection[str] = (),
    accelerator: str = "auto",
    progress: bool = False,
) -> dict[str, float]:
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
    measured = _measure(network, loader, blanked, accelerator, progress)
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
) -> dict[str, dict[str, float]]:
    """Measure every subset of the streams; one that no sample has any of is left out.

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
    names = network.stream_names
    subsets = [s for size in range(len(names), 0, -1) for s in combinations(names, size)]
    measured = {
        " + ".join(kept): _measure(
            network, loader, [n for n in names if n not in kept], accelerator, progress
        )
        for kept in subsets
    }
    return {kept: values for kept, values in measured.items() if values}


def _measure(
    network: StreamNetwork,
    loader: Iterable[Any],
    blanked: Collection[str],
    accelerator: str,
    progress: bool,
) -> dict[str, float]:
    """Measure without the blanked streams; nothing if no sample has another."""
    kept = torch.tensor([n not in blanked for n in network.stream_names])
    select = None if kept.all() else lambda present: present & kept
    module = ClassifierModule(network, select=select)
    session = trainer_session(progress=progress, accelerator=accelerator)
    with session as trainer, select_before_reading(loader, select):
        trainer.validate(module, as_loader(loader), verbose=False)
    metrics = trainer.callback_metrics
    if not metrics.get("val_num_samples"):
        return {}
    return {name.removeprefix("val_"): value.item() for name, value in metrics.items()}


def _check_names(network: StreamNetwork, blanked: Collection[str]) -> None:
    names = network.stream_names
    unknown = [n for n in blanked if n not in names]
    if unknown:
        raise ValueError(
            f"unknown stream {unknown[0]!r}; the model's streams are {', '.join(names)}"
        )
    if set(blanked) == set(names):
        raise ValueError("blanked_streams names every stream; at least one must stay")
