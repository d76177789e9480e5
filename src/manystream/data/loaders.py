"""From options to data loaders: open the splits, survey them once, and feed batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch.utils.data import DataLoader

from manystream.data.dataset import Collate, StreamDataset
from manystream.data.discovery import discover_streams
from manystream.data.folder import FolderSource
from manystream.data.preprocessing import Preprocessing
from manystream.data.sampler import StreamBatchSampler
from manystream.data.scenes import SceneSource
from manystream.data.selection import SelectedStreams
from manystream.data.source import Source, StreamSpec
from manystream.data.statistics import StreamStatistics
from manystream.data.survey import UnreadableFile, presence_summary, survey, survey_folder
from manystream.data.transforms import EvalTransform, TrainTransform
from manystream.data.unlabelled import UnlabelledFolder
from manystream.streams import StreamBatch

Report = Callable[[str], None]
"""Takes a line that the user should see."""

OnError = Literal["raise", "skip"]

_SCENES_SURVEYED = 256
_FILES_SHOWN = 5

Folder = TypeVar("Folder", FolderSource, UnlabelledFolder)


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
    """Streams to use, in order, for example [rgb,depth]; all that the training split has by
    default."""
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
    on_error: OnError = "raise"
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
        names = self.streams
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ValueError(f"--data.streams is {names}; expected one or more, each once")


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
    readable = _readable(folder, found.unreadable, options.on_error, report, "--data.on-error")
    _report_absences(readable, split, report)
    return readable, found.statistics


def open_unlabelled(
    folder: Path, streams: Sequence[StreamSpec], on_error: OnError, report: Report = print
) -> UnlabelledFolder:
    """Open images without classes, and look at every one of them once.

    Args:
        folder: laid out as ``<stream>/<id>.<ext>``.
        streams: the model's streams.
        on_error: what an unreadable image does, as in :class:`DataOptions`.
        report: takes lines about unreadable images.

    Raises:
        ValueError: if there is no image, or one is unreadable and ``on_error`` is ``"raise"``.
    """
    source = UnlabelledFolder(folder, streams)
    return _readable(source, survey(source).unreadable, on_error, report, "--on-error")


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
) -> tuple[Source, tuple[StreamStatistics, ...]]:
    fits = set(streams or ()) <= set(SceneSource.streams)
    if not fits or (classes is not None and tuple(classes) != SceneSource.classes):
        raise ValueError(
            "the model was not trained on rendered scenes; name its images with --data.root"
        )
    number = options.num_scenes if split == "train" else max(options.num_scenes // 4, 12)
    scenes: Source = SceneSource(number, options.image_size, split=split)
    names = options.streams if streams is None else [spec.name for spec in streams]
    if names is not None:
        scenes = SelectedStreams(scenes, names)
    return scenes, survey(scenes, limit=min(_SCENES_SURVEYED, number)).statistics


def _readable(
    folder: Folder, unreadable: Sequence[UnreadableFile], on_error: str, report: Report, option: str
) -> Folder:
    if not unreadable:
        return folder
    shown: list[str] = [f"{file.path}: {file.reason}" for file in unreadable[:_FILES_SHOWN]]
    if len(unreadable) > _FILES_SHOWN:
        shown.append(f"… and {len(unreadable) - _FILES_SHOWN} more")
    message = "\n  ".join([f"unreadable images: {len(unreadable)}", *shown])
    if on_error == "raise":
        raise ValueError(
            f"{message}\nmend or remove them, or count them as absent with {option} skip"
        )
    readable = folder.without({file.path for file in unreadable})
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
