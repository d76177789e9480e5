"""Feed a data set in compact batches, from where it is fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from manystream.batch import StreamBatch
from manystream.data.dataset import Collate, StreamDataset
from manystream.data.device import DeviceLoader
from manystream.data.options import AugmentOn, DataOptions
from manystream.data.raw import BatchReader, RawDataset
from manystream.data.sampler import StreamBatchSampler

# More would only wait for each other: a third of their time is spent on draws, in Python.
_MOST_THREADS = 4


def make_loader(
    dataset: StreamDataset,
    options: DataOptions,
    *,
    shuffle: bool = False,
    accelerator: str = "auto",
) -> DataLoader[StreamBatch]:
    """Feed a data set in compact batches; shuffled ones leave a smaller last batch out.

    Args:
        dataset: the samples, and how each is prepared.
        options: size of the batches, workers, and where images are prepared.
        shuffle: whether the order is drawn anew each epoch.
        accelerator: where the network runs, by Lightning's names.
    """
    source = dataset.source
    sampler = StreamBatchSampler(
        source.present,
        options.samples_per_batch,
        shuffle=shuffle,
        drop_last=shuffle,
        seed=dataset.seed,
    )
    device = preparing_device(options.augment_on, accelerator)
    if device is not None and isinstance(source, BatchReader):
        pinned = device.type == "cuda"
        rows = RawDataset(source, dataset.transform, dataset.seed, pinned=pinned)
        threads = min(options.num_workers, _MOST_THREADS)
        return DeviceLoader(rows, device, num_threads=threads, batch_sampler=sampler)
    feeding: dict[str, Any] = {
        "batch_sampler": sampler,
        "num_workers": options.num_workers,
        "persistent_workers": options.num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
    }
    if device is not None:
        return DeviceLoader(RawDataset(source, dataset.transform, dataset.seed), device, **feeding)
    collate = Collate([spec.channels for spec in source.streams])
    return DataLoader(dataset, collate_fn=collate, **feeding)  # type: ignore[arg-type]


def preparing_device(augment_on: AugmentOn, accelerator: str) -> torch.device | None:
    """Where whole batches are prepared after they are read; None while they are read.

    Args:
        augment_on: as the user chose.
        accelerator: where the network runs, by Lightning's names.
    """
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if augment_on == "cpu" or (augment_on == "auto" and not on_gpu):
        return None
    return torch.device("cuda" if on_gpu else "cpu")
