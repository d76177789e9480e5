"""From tables to loaders: usable samples, prepared as the network takes them, in batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from manystream.choices import check_names
from manystream.data.loader import StreamDataset, StreamLoader, make_loader
from manystream.data.opening import identified, open_data
from manystream.data.options import DataOptions
from manystream.data.preprocessing import Preprocessing
from manystream.data.problems import Printer
from manystream.data.survey import Progress
from manystream.data.table import SampleTable
from manystream.data.usable import usable_samples

_OF_OPENING = {
    *("root", "format", "kinds", "units", "max_pixels", "verify", "val_share", "split_seed"),
    *("depth", "nyu_classes", "num_scenes"),
}
"""Options that a table was made with."""


@dataclass(frozen=True)
class TrainingData:
    """What a training run feeds on.

    Attributes:
        train: shuffled, augmented batches of the training split.
        val: batches of the validation split.
        preprocessing: how images are prepared; the trained model keeps it.
        classes: class names.
        held_out: the options by which val was held out of training, if it was; the trained model
            keeps them.
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
    report: Printer = print,
    progress: Progress | None = None,
    accelerator: str = "auto",
) -> TrainingData:
    """Open the training and validation splits of a data set, and feed both as :func:`loaders` does.

    Args:
        options: where the images come from, and how they are fed.
        seed: seed of order and augmentation.
        report: takes lines about what was found, and about missing and unusable images.
        progress: called with how many images have been looked at and how many there are.
        accelerator: where the network is trained, by Lightning's names.

    Raises:
        ValueError: if the splits are missing or empty, or there is bad input and ``on_error`` is
            ``"raise"``.
    """
    options = identified(options, report)
    table = open_data(options, report=report)
    return loaders(
        table, options, seed=seed, report=report, progress=progress, accelerator=accelerator
    )


def loaders(
    table: SampleTable,
    options: DataOptions | None = None,
    *,
    seed: int = 0,
    report: Printer = print,
    progress: Progress | None = None,
    accelerator: str = "auto",
    **changes: Any,
) -> TrainingData:
    """Feed a table's training and validation splits, after a look at every image of both.

    ``table`` is what :func:`manystream.data.folder`, :func:`manystream.data.manifest`, … give,
    ``changes`` are fields of the options by name; all else is as for :func:`training_data`.

    Example:
        >>> table = ms.data.folder("root")  # doctest: +SKIP
        >>> data = ms.data.loaders(table, image_size=96, batch_size=32)  # doctest: +SKIP
        >>> model.fit(data.train, data.val, epochs=10)  # doctest: +SKIP
    """
    options = _changed(options, changes, "loaders")
    if options.streams is not None:
        table = table.with_streams(options.streams)
    splits = (options.train_split, options.val_split)
    if set(table.rows(splits[0])) & set(table.rows(splits[1])):
        raise ValueError(
            f"val_split is {splits[1]}, and train_split is {splits[0]}: validation would be on "
            "what was trained on; name a split of other samples"
        )
    usable = usable_samples(table, splits, options, report=report, progress=progress)
    train, val = (usable.table.part(split) for split in splits)
    statistics, held_out = usable.statistics[options.train_split], table.held_out
    preprocessing = Preprocessing(options.image_size, table.streams, statistics)
    return TrainingData(
        loader(train, preprocessing, options, train=True, seed=seed, accelerator=accelerator),
        loader(val, preprocessing, options, accelerator=accelerator),
        preprocessing,
        tuple(table.classes),
        None if held_out is None else {"val_share": held_out.share, "split_seed": held_out.seed},
    )


def loader(
    table: SampleTable,
    preprocessing: Preprocessing | Mapping[str, Any],
    options: DataOptions | None = None,
    *,
    train: bool = False,
    seed: int = 0,
    accelerator: str = "auto",
    **changes: Any,
) -> StreamLoader:
    """Feed samples in compact batches, prepared as a model's images are.

    Args:
        table: the samples.
        preprocessing: size, streams and statistics: of :class:`TrainingData`, or what a trained
            model keeps.
        options: size of the batches, augmentation, workers.
        train: whether the order is shuffled anew each epoch, samples are varied as the options say,
            and a smaller last batch is left out.
        seed: seed of order and augmentation.
        accelerator: where the network runs, by Lightning's names.
        **changes: fields of the options, by name.

    Raises:
        ValueError: if the table has other streams than the model.

    Example:
        >>> test = ms.data.folder("root", splits=["test"])  # doctest: +SKIP
        >>> model.evaluate(ms.data.loader(test, model.preprocessing))  # doctest: +SKIP
    """
    options = _changed(options, changes, "loader")
    if not isinstance(preprocessing, Preprocessing):
        preprocessing = Preprocessing.from_dict(preprocessing)
    if table.streams != preprocessing.streams:
        theirs, ours = (
            ", ".join(map(str, streams)) for streams in (preprocessing.streams, table.streams)
        )
        raise ValueError(f"the images are prepared as {theirs}, and the table has {ours}")
    augmentation = options.augmentation if train and options.augment else None
    dataset = StreamDataset(table, preprocessing, augmentation, seed)
    return make_loader(dataset, options, shuffle=train, accelerator=accelerator)


def _changed(options: DataOptions | None, changes: Mapping[str, Any], function: str) -> DataOptions:
    known = (field.name for field in fields(DataOptions))
    check_names(changes, [name for name in known if name not in _OF_OPENING], function)
    return replace(options or DataOptions(), **changes)
