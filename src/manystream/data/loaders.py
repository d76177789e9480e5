"""From options to data loaders: open the splits, and survey them once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from manystream.data.formats import FORMATS
from manystream.data.loader import StreamDataset, StreamLoader, make_loader
from manystream.data.opening import identified, open_split
from manystream.data.options import DataOptions, Report
from manystream.data.preprocessing import Preprocessing
from manystream.data.sources.wanted import TRAIN, TRAINVAL, VAL
from manystream.data.survey import Progress

_TRAINED = {TRAIN, VAL, TRAINVAL}


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

    train: StreamLoader
    val: StreamLoader
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
    augmentation = options.augmentation if options.augment else None
    train_set = StreamDataset(train, preprocessing, augmentation, seed)
    val_set = StreamDataset(val, preprocessing)
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
