"""Measure a network, with any of its streams taken away."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import torch

from manystream.data.sampler import Selection, StreamBatchSampler
from manystream.models import StreamNetwork
from manystream.training.module import ClassifierModule
from manystream.training.trainer import trainer_session


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
    select = _blank(network, blanked_streams)
    module = ClassifierModule(network, select=select)
    session = trainer_session(progress=progress, accelerator=accelerator)
    with session as trainer, _before_reading(loader, select):
        trainer.validate(module, loader, verbose=False)
    measured = {k.removeprefix("val_"): v.item() for k, v in trainer.callback_metrics.items()}
    if not measured.get("num_samples"):
        raise ValueError(f"no sample has a stream left without {', '.join(blanked_streams)}")
    return measured


def evaluate_subsets(
    network: StreamNetwork, loader: Iterable[Any], **arguments: Any
) -> dict[str, dict[str, float]]:
    """Measure every non-empty subset of the streams.

    Args:
        network: the network.
        loader: batches as :func:`read_batch` takes them.
        arguments: of :func:`evaluate`.

    Returns:
        What :func:`evaluate` gives, by the streams that are left, joined by " + "; all of them
        first.
    """
    names = network.stream_names
    subsets = [s for size in range(len(names), 0, -1) for s in combinations(names, size)]
    return {
        " + ".join(kept): evaluate(
            network, loader, blanked_streams=[n for n in names if n not in kept], **arguments
        )
        for kept in subsets
    }


def _blank(network: StreamNetwork, blanked_streams: Collection[str]) -> Selection | None:
    names = network.stream_names
    if isinstance(blanked_streams, str):
        blanked_streams = (blanked_streams,)
    unknown = [n for n in blanked_streams if n not in names]
    if unknown:
        raise ValueError(
            f"unknown stream {unknown[0]!r}; the model's streams are {', '.join(names)}"
        )
    kept = torch.tensor([n not in blanked_streams for n in names])
    if not kept.any():
        raise ValueError("blanked_streams names every stream; at least one must stay")
    return None if kept.all() else lambda present: present & kept


@contextmanager
def _before_reading(loader: Iterable[Any], select: Selection | None) -> Iterator[None]:
    """Where the loader is ours, have its sampler leave blanked images unread."""
    sampler = getattr(loader, "batch_sampler", None)
    if not isinstance(sampler, StreamBatchSampler):
        yield
        return
    before, sampler.select = sampler.select, select
    try:
        yield
    finally:
        sampler.select = before
