"""Samples ready for a network: the images a sampler asks for, read, transformed and collated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from manystream.batch import StreamBatch
from manystream.data.table import SampleTable as Source
from manystream.data.transforms import Transform, sample_rng
from manystream.presence import Presence


@dataclass(frozen=True)
class SampleKey:
    """What a sampler asks of a data set.

    Attributes:
        index: number of the sample.
        kept: for each stream, whether to read it.
        epoch: epoch, which with the sample's number decides its augmentation.
    """

    index: int
    kept: tuple[bool, ...]
    epoch: int = 0


@dataclass(frozen=True)
class Sample:
    """One sample's images.

    Attributes:
        streams: one per stream, shape (C_m, H, W), float32; None where absent or blanked.
        target: number of its class.
        id: its name, for messages.
    """

    streams: tuple[Tensor | None, ...]
    target: int
    id: str = ""


class StreamDataset(Dataset[Sample]):
    """A source seen through a transform; a blanked or absent image is never read.

    Args:
        source: where images come from.
        transform: from raw images to tensors.
        seed: with epoch and sample number, the seed of a sample's augmentation.
    """

    def __init__(self, source: Source, transform: Transform, seed: int = 0) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source.targets)

    def __getitem__(self, key: SampleKey | int) -> Sample:
        """Read one sample; a bare number asks for every stream it has."""
        if not isinstance(key, SampleKey):
            key = SampleKey(key, (True,) * len(self.source.streams))
        has = self.source.present[key.index].tolist()
        images = [
            self.source.read(key.index, m) if kept and present else None
            for m, (kept, present) in enumerate(zip(key.kept, has, strict=True))
        ]
        streams = self.transform(images, sample_rng(self.seed, key.epoch, key.index))
        target = int(self.source.targets[key.index])
        return Sample(tuple(streams), target, self.source.ids[key.index])


class Collate:
    """Stack samples into compact streams, sorted so that each stream's rows form a run.

    Args:
        channels: channels of each stream, for one that no sample of a batch has.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        self.channels = tuple(channels)

    def __call__(self, samples: Sequence[Sample]) -> StreamBatch:
        """Build the batch; targets stay in the order of the samples."""
        mask = torch.tensor([[x is not None for x in sample.streams] for sample in samples])
        presence = Presence.from_mask(mask)
        height, width = next(x.shape[1:] for x in samples[0].streams if x is not None)
        streams = []
        for m, channels in enumerate(self.channels):
            rows = [samples[b].streams[m] for b in presence.samples(m).tolist()]
            images = [x for x in rows if x is not None]
            streams.append(
                torch.stack(images) if images else torch.empty(0, channels, height, width)
            )
        target = torch.tensor([sample.target for sample in samples])
        ids = tuple(sample.id for sample in samples)
        return StreamBatch(tuple(streams), presence, target=target, ids=ids)
