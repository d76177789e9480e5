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
from manystream.data.dataset import StreamDataset
from manystream.data.loaders import make_loader
from manystream.data.opening import open_unlabelled
from manystream.data.options import DataOptions
from manystream.data.sources.hints import StreamHints
from manystream.data.sources.unlabelled import UnlabelledFolder
from manystream.data.transforms import EvalTransform
from manystream.model import load_model


def predict(options: PredictOptions) -> None:
    """Read, predict and write."""
    out = fresh_path(options.out)
    model = load_model(options.model)
    preprocessing, _ = trained_with(model, options.model)
    hints = StreamHints(units=options.units or {}, max_pixels=options.max_pixels, options="--")
    with progress_bar("looking at images") as progress:
        source = open_unlabelled(
            options.folder, preprocessing.streams, options.on_error, say, hints, progress
        )
    loader = make_loader(
        StreamDataset(source, EvalTransform(preprocessing)),
        DataOptions(batch_size=options.batch_size, num_workers=options.num_workers),
    )
    predictions = model.predict(loader, progress=True)
    _write_predictions(out, source, model.task.describe(predictions))
    say(f"{len(source.ids)} predictions in {out}")


def _write_predictions(
    path: Path, source: UnlabelledFolder, columns: Sequence[tuple[str, Sequence[Any]]]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "streams", *(title for title, _ in columns)])
        for i, sample_id in enumerate(source.ids):
            has = [s.name for s, p in zip(source.streams, source.present[i], strict=True) if p]
            entries = [entries[i] for _, entries in columns]
            shown = [f"{v:.4f}" if isinstance(v, float) else v for v in entries]
            writer.writerow([sample_id, " + ".join(has), *shown])
