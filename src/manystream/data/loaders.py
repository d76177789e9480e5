"""From options to data loaders: open the splits, survey them once, and feed batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from manystream.batch import StreamBatch
from manystream.data.dataset import Collate, StreamDataset
from manystream.data.device import DeviceLoader
from manystream.data.formats import FORMATS
from manystream.data.opening import identified, open_split
from manystream.data.options import AugmentOn, DataOptions, Report
from manystream.data.preprocessing import Preprocessing
from manystream.data.raw import BatchReader, RawDataset
from manystream.data.sampler import StreamBatchSampler
from manystream.data.sources.wanted import TRAIN, TRAINVAL, VAL
from manystream.data.survey import Progress
from manystream.data.transforms import EvalTransform, TrainTransform

_TRAINED = {TRAIN, VAL, TRAINVAL}
# More would only wait for each other: a third of their time is spent on draws, in Python.
_MOST_THREADS = 4


@dataclass(frozen=True)
class TrainingData:
    """What a training run feeds on.

    Attributes:
        train: shuffled, augmented batches of the training split.
        val: batches of the validation split.
        preprocessing: how images are prepared; the trained model keeps it.
        classes: class names.
        held_out: the options by which val was held out of training, if it may have been; the
            trained model keeps them.
    """

    train: DataLoader[StreamBatch]
    val: DataLoader[StreamBatch]
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    held_out: dict[str, Any] | None = None

    @property
    def in_channels(self) -> dict[str, int]:
        """Channels of each stream by name, in order."""
        return {spec.name: spec.channels for spec in self.preprocessing.streams}


def training_data(
    options: DataOptions,
    *,
    seed: int = 0,
    report: Report = print,
    progress: Progress | None = None,
    accelerator: str = "auto",
) -> TrainingData:
    """Open, survey and feed the training and validation splits.

    Args:
        options: where the images come from.
        seed: seed of order and augmentation.
        report: takes lines about missing and unreadable images.
        progress: called as each split is looked at, see :func:`open_split`.
        accelerator: where the network is trained, by Lightning's names.

    Raises:
        ValueError: if the splits are missing or empty, or an image is unreadable and ``on_error``
            is ``"raise"``.
    """
    options = identified(options, report)
    _check_apart(options)
    train, statistics = open_split(options, options.train_split, report=report, progress=progress)
    val, _ = open_split(options, options.val_split, train.streams, train.classes, report, progress)
    preprocessing = Preprocessing(options.image_size, train.streams, statistics)
    plain = EvalTransform(preprocessing)
    varied = TrainTransform(preprocessing, options.augmentation) if options.augment else plain
    train_set, val_set = StreamDataset(train, varied, seed), StreamDataset(val, plain)
    return TrainingData(
        make_loader(train_set, options, shuffle=True, accelerator=accelerator),
        make_loader(val_set, options, accelerator=accelerator),
        preprocessing,
        train.classes,
        _held_out(options),
    )


def _check_apart(options: DataOptions) -> None:
    """Refuse to validate on what is trained on."""
    train, val = options.train_split, options.val_split
    held_out = options.format is not None and FORMATS[options.format].holds_out
    if train == val or (held_out and TRAINVAL in (train, val) and {train, val} <= _TRAINED):
        raise ValueError(
            f"--data.val_split is {val}, and --data.train_split is {train}: validation would be on "
            "what was trained on; name a split of other samples"
        )


def _held_out(options: DataOptions) -> dict[str, Any] | None:
    may_be = options.format is not None and FORMATS[options.format].holds_out
    if not may_be or options.train_split == TRAINVAL:
        return None
    return {"val_share": options.val_share, "split_seed": options.split_seed}


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
