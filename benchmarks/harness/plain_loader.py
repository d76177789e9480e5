"""What people write without this package: a data set of dense samples, to compare feeding with.

Every stream of every sample is read and augmented in float32, absent ones are zeros, torch's own
collate stacks them, and modality dropout multiplies what it blanks by zero afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from manystream.data.options import DataOptions
from manystream.data.preprocessing import Preprocessing, normalise
from manystream.data.streams import StreamSpec
from manystream.data.table import SampleTable as Source

_COLOR = 0.4


class PlainDataset(Dataset[dict[str, Any]]):
    """Samples as dense tensors.

    Args:
        source: where images come from.
        preprocessing: size, streams and statistics.
        augment: whether to crop, flip and jitter.
    """

    def __init__(self, source: Source, preprocessing: Preprocessing, augment: bool) -> None:
        self.source = source
        self.preprocessing = preprocessing
        self.augment = augment

    def __len__(self) -> int:
        return len(self.source.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Every stream by its number, ``present`` and ``target``."""
        box, flipped, factors = torch.rand(3), bool(torch.rand(()) < 0.5), torch.rand(3)
        streams = [
            self._read(index, m, spec, box, flipped, factors)
            for m, spec in enumerate(self.preprocessing.streams)
        ]
        return {
            "streams": streams,
            "present": self.source.present[index],
            "target": self.source.targets[index],
        }

    def _read(
        self, index: int, m: int, spec: StreamSpec, box: Tensor, flipped: bool, factors: Tensor
    ) -> Tensor:
        if not self.source.present[index, m]:
            return torch.zeros(spec.channels, *self.preprocessing.size)
        image = torch.tensor(self.source.read(index, m)).permute(2, 0, 1).float()
        if self.augment:
            image = _cropped(image, box)
        mode = {"mode": "nearest-exact"} if spec.kind == "depth" else _SMOOTH
        image = F.interpolate(image[None], self.preprocessing.size, **mode)[0]
        if self.augment and flipped:
            image = image.flip(-1)
        if self.augment and spec.kind == "color":
            image = _jittered(image, 1 + _COLOR * (2 * factors - 1))
        return normalise(image, spec, self.preprocessing.statistics[m])


def plain_batches(
    dataset: PlainDataset, options: DataOptions, blanked: float, device: torch.device
) -> Iterator[Tensor]:
    """Feed for ever with an ordinary DataLoader.

    Args:
        dataset: the samples.
        options: size of the batches, and workers.
        blanked: probability that a sample loses a stream.
        device: where batches go.

    Yields:
        Which streams the samples of a batch keep, shape (B, M), when the batch is on its device.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=options.samples_per_batch,
        sampler=RandomSampler(dataset),
        drop_last=len(dataset) >= options.samples_per_batch,
        num_workers=options.num_workers,
        persistent_workers=options.num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
    while True:
        for batch in loader:
            kept = batch["present"] & ~_lost(batch["present"], blanked)
            streams = [x.to(device, non_blocking=True) for x in batch["streams"]]
            for m, x in enumerate(streams):
                x *= kept[:, m].to(device)[:, None, None, None]
            batch["target"].to(device, non_blocking=True)
            yield kept


_SMOOTH: dict[str, Any] = {"mode": "bilinear", "antialias": True}


def _cropped(image: Tensor, box: Tensor) -> Tensor:
    side = 0.7 + 0.3 * box[0].item()
    height, width = int(image.shape[1] * side), int(image.shape[2] * side)
    top = int(box[1] * (image.shape[1] - height))
    left = int(box[2] * (image.shape[2] - width))
    return image[:, top : top + height, left : left + width]


def _jittered(image: Tensor, factors: Tensor) -> Tensor:
    image = (image * factors[0]).clamp(0, 255)
    image = (image * factors[1] + image.mean() * (1 - factors[1])).clamp(0, 255)
    grey = image.mean(dim=0, keepdim=True)
    return (image * factors[2] + grey * (1 - factors[2])).clamp(0, 255)


def _lost(present: Tensor, blanked: float) -> Tensor:
    """Choose one stream of some of the samples that have several."""
    touched = (torch.rand(len(present)) < blanked) & (present.sum(dim=1) > 1)
    stream = torch.multinomial(present.float(), 1).flatten()
    return F.one_hot(stream, present.shape[1]).bool() & touched[:, None]
