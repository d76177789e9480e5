"""From options to data loaders: open the splits, survey them once, and feed batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.utils.data import DataLoader

from manystream.data.dataset import Collate, StreamDataset
from manystream.data.folder import FolderSource, discover_streams
from manystream.data.preprocessing import Preprocessing
from manystream.data.sampler import StreamBatchSampler
from manystream.data.scenes import SceneSource
from manystream.data.source import Source, StreamSpec
from manystream.data.statistics import StreamStatistics
from manystream.data.survey import Survey, presence_summary, survey, survey_folder
from manystream.data.transforms import EvalTransform, TrainTransform
from manystream.streams import StreamBatch

Report = Callable[[str], None]
"""Takes a line that the user should see."""

_SCENES_SURVEYED = 256


@dataclass
class DataOptions:
    """Where images come from and how they are fed.

    Raises:
        ValueError: if a number is out of its range.
    """

    root: Path | None = None
    """Folder laid out as root/<split>/<stream>/<class>/<id>.<ext>; without one, rendered RGB-D
    scenes are used."""
    streams: list[str] | None = None
    """Streams to use, in order, for example [rgb,depth]; all of the training split by default."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str = "val"
    """Split to validate and evaluate on."""
    image_size: int = 224
    """Height and width of the images in pixels."""
    batch_size: int = 64
    """Samples per batch."""
    num_workers: int = 2
    """Processes that read images; 0 reads in the main process."""
    on_error: Literal["raise", "skip"] = "raise"
    """What an unreadable image does: stop before training, or count as absent and be reported."""
    num_scenes: int = 2400
    """Rendered training scenes, if there is no root; validation has a quarter as many."""
    augment: bool = True
    """Random crop and flip of all streams together, and colour jitter, in training."""

    def __post_init__(self) -> None:
        for name in ("image_size", "batch_size", "num_scenes"):
            if getattr(self, name) < 1:
                raise ValueError(f"--data.{name} is {getattr(self, name)}; expected at least 1")
        if self.num_workers < 0:
            raise ValueError(f"--data.num_workers is {self.num_workers}; expected 0 or more")
        if self.streams is not None:
            self._check_streams(self.streams)

    def _check_streams(self, streams: list[str]) -> None:
        if self.root is None:
            raise ValueError(
                f"--data.streams is {streams}, but rendered scenes always have rgb and depth; "
                "leave it out, or name a folder with --data.root"
            )
        if not streams or len(set(streams)) < len(streams):
            raise ValueError(f"--data.streams is {streams}; expected one or more, each once")


@dataclass(frozen=True)
class TrainingData:
    """What a training run feeds on.

    Attributes:
        train: shuffled, augmented batches of the training split.
        val: batches of the validation split.
        preprocessing: how images are prepared; the trained model keeps it.
        classes: class names.
    """

    train: DataLoader[StreamBatch]
    val: DataLoader[StreamBatch]
    preprocessing: Preprocessing
    classes: tuple[str, ...]

    @property
    def in_channels(self) -> dict[str, int]:
        """Channels of each stream by name, in order."""
        return {spec.name: spec.channels for spec in self.preprocessing.streams}


def training_data(options: DataOptions, *, seed: int = 0, report: Report = print) -> TrainingData:
    """Open, survey and feed the training and validation splits.

    Args:
        options: where the images come from.
        seed: seed of order and augmentation.
        report: takes lines about missing and unreadable images.

    Raises:
        ValueError: if the splits are missing or empty, or an image is unreadable and ``on_error``
            is ``"raise"``.
    """
    train, statistics = open_split(options, options.train_split, report=report)
    val, _ = open_split(options, options.val_split, train.streams, train.classes, report)
    preprocessing = Preprocessing(options.image_size, train.streams, statistics)
    augmented = TrainTransform(preprocessing) if options.augment else EvalTransform(preprocessing)
    return TrainingData(
        make_loader(StreamDataset(train, augmented, seed), options, shuffle=True),
        make_loader(StreamDataset(val, EvalTransform(preprocessing)), options),
        preprocessing,
        train.classes,
    )


def open_split(
    options: DataOptions,
    split: str,
    streams: Sequence[StreamSpec] | None = None,
    classes: Sequence[str] | None = None,
    report: Report = print,
) -> tuple[Source, tuple[StreamStatistics, ...]]:
    """Open one split, and look at every image of it once.

    Args:
        options: where the images come from.
        split: name of the split.
        streams: the model's streams; found in the folder if left out.
        classes: the model's classes; found in the folder if left out.
        report: takes lines about missing and unreadable images.

    Returns:
        The readable samples, and each stream's statistics.

    Raises:
        ValueError: as :func:`training_data`.
    """
    if options.root is None:
        return _open_scenes(options, split, streams, classes)
    if streams is None:
        streams = discover_streams(options.root, split, options.streams)
    folder = FolderSource(options.root, split, streams, classes)
    found = survey_folder(folder)
    readable = _without_unreadable(folder, found, options.on_error, report)
    _report_absences(readable, split, report)
    return readable, found.statistics


def make_loader(
    dataset: StreamDataset, options: DataOptions, *, shuffle: bool = False
) -> DataLoader[StreamBatch]:
    """Feed a data set in compact batches; shuffled ones leave a smaller last batch out."""
    source = dataset.source
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # yields batches, by way of collate
        batch_sampler=StreamBatchSampler(
            source.present,
            options.batch_size,
            shuffle=shuffle,
            drop_last=shuffle,
            seed=dataset.seed,
        ),
        collate_fn=Collate([spec.channels for spec in source.streams]),
        num_workers=options.num_workers,
        persistent_workers=options.num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _open_scenes(
    options: DataOptions,
    split: str,
    streams: Sequence[StreamSpec] | None,
    classes: Sequence[str] | None,
) -> tuple[SceneSource, tuple[StreamStatistics, ...]]:
    if streams not in (None, SceneSource.streams) or classes not in (None, SceneSource.classes):
        raise ValueError(
            "the model was not trained on rendered scenes; name its images with --data.root"
        )
    number = options.num_scenes if split == "train" else max(options.num_scenes // 4, 12)
    scenes = SceneSource(number, options.image_size, split=split)
    return scenes, survey(scenes, limit=min(_SCENES_SURVEYED, number)).statistics


def _without_unreadable(
    folder: FolderSource, found: Survey, on_error: str, report: Report
) -> FolderSource:
    if not found.unreadable:
        return folder
    message = f"split {folder.split!r}: {describe_unreadable(found)}"
    if on_error == "raise":
        raise ValueError(
            f"{message}\nmend or remove them, or count them as absent with --data.on-error skip"
        )
    readable = folder.without(found.unreadable_paths)
    dropped = len(folder.ids) - len(readable.ids)
    report(f"{message}\ncounted as absent; {dropped} samples had nothing else and are left out")
    return readable


def _report_absences(source: Source, split: str, report: Report) -> None:
    total = len(source.ids)
    lacks = [
        f"{name} is missing in {count} ({count / total:.1%})"
        for name, count in presence_summary(source).items()
        if count
    ]
    report(f"{split}: {total} samples; " + ("; ".join(lacks) or "every stream present in all"))
