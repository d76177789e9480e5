"""`manystream predict`: class probabilities of a folder's images, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from manystream.classifier import load_model
from manystream.cli.batches import trained_with
from manystream.cli.options import PredictOptions
from manystream.cli.output import fresh_path, say
from manystream.cli.progress import progress_bar
from manystream.data import DataOptions, SampleTable, loader, unlabelled
from manystream.data.problems import Problems
from manystream.data.usable import look_over


def predict(options: PredictOptions) -> None:
    """Read, predict and write."""
    out = fresh_path(options.out)
    model = load_model(options.model)
    preprocessing, classes = trained_with(model, options.model)
    table = unlabelled(
        options.folder, preprocessing.streams, units=options.units, max_pixels=options.max_pixels
    )
    problems = Problems(options.on_error, say)
    with progress_bar("looking at images") as progress:
        table = look_over(table, (), problems, progress=progress).table
    feeding = DataOptions(batch_size=options.batch_size, num_workers=options.num_workers)
    probabilities = model.predict(loader(table, preprocessing, feeding), progress=True)
    _write_predictions(out, table, probabilities, classes)
    say(f"{len(table)} predictions in {out}")


def _write_predictions(
    path: Path, table: SampleTable, probabilities: Tensor, classes: Sequence[str]
) -> None:
    best, winner = probabilities.max(dim=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "streams", "class", "probability", *classes])
        for i, sample_id in enumerate(table.ids):
            has = [s.name for s, p in zip(table.streams, table.present[i], strict=True) if p]
            every = [f"{p:.4f}" for p in probabilities[i].tolist()]
            row = [sample_id, " + ".join(has), classes[int(winner[i])], f"{best[i]:.4f}", *every]
            writer.writerow(row)
