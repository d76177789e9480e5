"""`manystream predict`: class probabilities of a folder's images, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manystream.cli.batches import trained_with
from manystream.cli.options import PredictOptions
from manystream.cli.output import fresh_path, say
from manystream.cli.progress import progress_bar
from manystream.data import DataOptions, SampleTable, loader, unlabelled
from manystream.data.problems import Problems
from manystream.data.usable import look_over
from manystream.model import load_model


def predict(options: PredictOptions) -> None:
    """Read, predict and write."""
    out = fresh_path(options.out)
    model = load_model(options.model)
    preprocessing, _ = trained_with(model, options.model)
    table = unlabelled(
        options.folder, preprocessing.streams, units=options.units, max_pixels=options.max_pixels
    )
    problems = Problems(options.on_error, say)
    with progress_bar("looking at images") as progress:
        table = look_over(table, (), problems, progress=progress).table
    feeding = DataOptions(batch_size=options.batch_size, num_workers=options.num_workers)
    predictions = model.predict(loader(table, preprocessing, feeding), progress=True)
    _write_predictions(out, table, model.task.describe(predictions))
    say(f"{len(table)} predictions in {out}")


def _write_predictions(
    path: Path, table: SampleTable, columns: Sequence[tuple[str, Sequence[Any]]]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "streams", *(title for title, _ in columns)])
        for i, sample_id in enumerate(table.ids):
            has = [s.name for s, p in zip(table.streams, table.present[i], strict=True) if p]
            entries = [entries[i] for _, entries in columns]
            shown = [f"{v:.4f}" if isinstance(v, float) else v for v in entries]
            writer.writerow([sample_id, " + ".join(has), *shown])
