"""Batches of the commands: to train on, and prepared as a trained model says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manystream.cli.output import say
from manystream.cli.progress import progress_bar
from manystream.data import Preprocessing, SampleTable, TrainingData, loader, training_data
from manystream.data.loader import StreamLoader
from manystream.data.opening import open_data
from manystream.data.options import DataOptions
from manystream.data.usable import usable_samples
from manystream.model import StreamModel
from manystream.training import FitOptions


def load_training_data(options: DataOptions, fit: FitOptions) -> TrainingData:
    """Open the splits to train and to validate on, with a bar while they are looked at."""
    with progress_bar("looking at images") as progress:
        return training_data(
            options, seed=fit.seed, report=say, progress=progress, accelerator=fit.accelerator
        )


def trained_with(model: StreamModel, path: Path) -> tuple[Preprocessing, tuple[str, ...]]:
    """Return how a model's images were prepared in training, and its classes.

    Raises:
        ValueError: if the file does not say.
    """
    if model.preprocessing is None or model.classes is None:
        raise ValueError(
            f"{path} does not say how its images were prepared; expected a model that "
            "`manystream train` wrote"
        )
    return Preprocessing.from_dict(model.preprocessing), model.classes


def evaluation_loader(model: StreamModel, path: Path, options: DataOptions) -> StreamLoader:
    """Batches of ``val_split``, held out and prepared as the model's images were in training."""
    preprocessing, classes = trained_with(model, path)
    options.image_size = max(preprocessing.size)
    if model.held_out is not None:
        _hold_out(options, model.held_out)
    split = options.val_split
    table = open_data(options, [split], streams=preprocessing.streams, classes=classes, report=say)
    with progress_bar("looking at images") as progress:
        usable = usable_samples(
            table, [split], options, trained=True, report=say, progress=progress
        )
    return loader(usable.table, preprocessing, options)


def samples_to_show(table: SampleTable, count: int = 12) -> list[int]:
    """Choose the first samples of every class in turn, before others those with every stream."""
    complete, seen, keys = table.present.all(dim=1).tolist(), Counter[tuple[int, bool]](), []
    for sample, kind in enumerate(zip(table.targets.tolist(), complete, strict=True)):
        keys.append((not kind[1], seen[kind], sample))
        seen[kind] += 1
    return sorted(sample for _, _, sample in sorted(keys)[:count])


def _hold_out(options: DataOptions, held_out: Mapping[str, Any]) -> None:
    """Hold out what training did; the options are checked again, since files can hold anything."""
    for name in ("val_share", "split_seed"):
        value = held_out[name]
        if getattr(options, name) != value:
            say(f"{name} is {value}, as in training")
            setattr(options, name, value)
    options.__post_init__()
