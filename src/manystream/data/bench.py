"""How many images per second reach a device, by the way that they are fed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manystream.data.dataset import StreamDataset
from manystream.data.loaders import make_loader
from manystream.data.options import AugmentOn, DataOptions
from manystream.data.plain_loader import plain_batches
from manystream.data.preprocessing import Preprocessing
from manystream.data.sampler import StreamBatchSampler, own_sampler
from manystream.data.source import Source
from manystream.data.transforms import EvalTransform, TrainTransform
from manystream.dropout import ModalityDropout

PLAIN = "plain DataLoader, files"

Feeding = Callable[[], Iterator[Tensor]]
"""Begins to feed for ever, and gives the streams that each batch keeps, (B, M), as it arrives."""


@dataclass(frozen=True)
class FeedingCase:
    """What is to be fed.

    Attributes:
        files: images that have to be decoded.
        prepared: the same images as memory-mapped arrays.
        preprocessing: size, streams and statistics.
        options: size of the batches, workers, augmentation.
        samples: how many samples are read, again and again.
        blanked: probability that a sample loses a stream to modality dropout.
        device: where batches go.
    """

    files: Source
    prepared: Source
    preprocessing: Preprocessing
    options: DataOptions
    samples: int
    blanked: float
    device: torch.device

    def ways(self) -> dict[str, Feeding]:
        """The ways to feed, by name; the first is the baseline."""
        return {
            PLAIN: self._plain,
            "ours, files, on the cpu": lambda: self._ours(self.files, "cpu"),
            "ours, files, on the device": lambda: self._ours(self.files, "device"),
            "ours, prepared, on the cpu": lambda: self._ours(self.prepared, "cpu"),
            "ours, prepared, on the device": lambda: self._ours(self.prepared, "device"),
        }

    def _plain(self) -> Iterator[Tensor]:
        return plain_batches(
            self.files,
            self.preprocessing,
            self.options,
            samples=self.samples,
            blanked=self.blanked,
            device=self.device,
        )

    def _ours(self, source: Source, augment_on: AugmentOn) -> Iterator[Tensor]:
        plain = EvalTransform(self.preprocessing)
        varied = TrainTransform(self.preprocessing, self.options.augmentation)
        transform = varied if self.options.augment else plain
        options = replace(self.options, augment_on=augment_on)
        accelerator = "gpu" if self.device.type == "cuda" else "cpu"
        dataset = StreamDataset(source, transform)
        loader = make_loader(dataset, options, shuffle=True, accelerator=accelerator)
        sampler = own_sampler(loader)
        assert isinstance(sampler, StreamBatchSampler)
        sampler.present = source.present[: self.samples]
        if self.blanked > 0:
            sampler.select = ModalityDropout(source.present.shape[1], self.blanked).draw
        while True:
            for batch in loader:
                yield batch.to(self.device).presence.mask
            sampler.epoch += 1


def measure_feeding(
    ways: Mapping[str, Feeding],
    *,
    batches: int,
    rounds: int,
    ahead: int,
    device: torch.device,
    watch: Callable[[str, int], None] = lambda name, number: None,
) -> list[dict[str, Any]]:
    """Let each way feed in turn, and compare them with the first.

    Args:
        ways: by name.
        batches: batches that are timed in each turn.
        rounds: turns of each way.
        ahead: batches that workers may have ready when a turn begins; they are not timed.
        device: where batches go.
        watch: told of each turn that begins.

    Returns:
        A row for each way: medians of samples and images per second, and of the ratio to the first
        way in the same round, each with its least and greatest.
    """
    running = {name: begin() for name, begin in ways.items()}
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, feeding in running.items():
            watch(name, number)
            turns[name].append(_turn(feeding, batches, ahead, device))
    baseline = np.array(next(iter(turns.values())))[:, 0]
    return [_row(name, np.array(of_way), baseline) for name, of_way in turns.items()]


def _turn(
    feeding: Iterator[Tensor], batches: int, ahead: int, device: torch.device
) -> tuple[float, float]:
    """Samples and images per second."""
    for _ in range(ahead):
        next(feeding)
    _wait(device)
    start = time.perf_counter()
    masks = [next(feeding) for _ in range(batches)]
    _wait(device)
    seconds = time.perf_counter() - start
    images = sum(int(mask.sum()) for mask in masks)
    return sum(map(len, masks)) / seconds, images / seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _row(name: str, turns: np.ndarray, baseline: np.ndarray) -> dict[str, Any]:
    samples, images = turns.T
    return {
        "name": name,
        **_spread("samples_per_second", samples.tolist()),
        **_spread("images_per_second", images.tolist()),
        **_spread("ratio", (samples / baseline).tolist()),
    }


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {name: median(values), f"{name}_least": min(values), f"{name}_greatest": max(values)}
