"""Streams, raw images and sources that the data tests share."""

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from manystream.data.preprocessing import Preprocessing
from manystream.data.statistics import StreamStatistics
from manystream.data.streams import StreamSpec
from manystream.data.table import Column, SampleTable

RGB = StreamSpec("rgb", 3, "color")
DEPTH = StreamSpec("depth", 1, "depth")
OTHER = StreamSpec("sonar", 2, "other")


class ArraySource:
    """Images in memory, one list of M per sample; None is absent, an error is raised on read."""

    def __init__(self, streams, samples):
        self.streams = streams
        self.classes = ("bed", "desk")
        self.ids = [str(index) for index in range(len(samples))]
        self.targets = torch.zeros(len(samples), dtype=torch.int64)
        self.present = torch.tensor([[image is not None for image in row] for row in samples])
        self._samples = samples

    def read(self, index, stream):
        image = self._samples[index][stream]
        assert image is not None, "an absent image was read"
        if isinstance(image, Exception):
            raise image
        return image


class InMemory:
    """Cells that are images themselves; an error is raised when it is read."""

    root = None

    def __init__(self, stream):
        self.stream = stream

    def read(self, cell):
        if isinstance(cell.image, Exception):
            raise cell.image
        return cell.image

    def path(self, cell):
        return Path(self.stream, cell.name)


@dataclass(frozen=True, eq=False)
class Kept:
    """An image, and the name of its sample."""

    image: np.ndarray | Exception
    name: str


def table_of(streams, samples, targets=None, groups=None, splits=None) -> SampleTable:
    """Images in memory, one list of M per sample; None is absent, an error is raised on read."""
    columns = [
        Column(
            spec,
            InMemory(spec.name),
            [None if row[m] is None else Kept(row[m], str(i)) for i, row in enumerate(samples)],
        )
        for m, spec in enumerate(streams)
    ]
    return SampleTable(
        tuple(columns),
        ("bed", "desk"),
        [str(index) for index in range(len(samples))],
        torch.tensor([0] * len(samples) if targets is None else targets),
        splits or ["train"] * len(samples),
        groups,
    )


def identity(*streams: StreamSpec, size=8) -> Preprocessing:
    """Preprocessing whose normalisation changes nothing."""
    plain = tuple(StreamStatistics((0.0,) * s.channels, (1.0,) * s.channels) for s in streams)
    return Preprocessing(size, streams, plain)


def ramps(height: int, width: int) -> np.ndarray:
    """Each pixel's centre in fractions of the height and the width, shape (H, W, 2)."""
    rows, columns = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).astype(np.float32)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, channels), dtype=np.uint8)


def reading_threads() -> list[threading.Thread]:
    """Threads of ours that read ahead."""
    return [thread for thread in threading.enumerate() if "manystream-read" in thread.name]


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write an image file, and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, pixels) if path.suffix == ".npy" else Image.fromarray(pixels).save(path)
