"""The commands: each takes its options, calls the library, and prints."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor

from manystream.classifier import StreamClassifier, create_model, load_model
from manystream.cli.options import EvaluateOptions, PredictOptions, TrainOptions
from manystream.data.dataset import StreamDataset
from manystream.data.loaders import (
    DataOptions,
    make_loader,
    open_split,
    open_unlabelled,
    training_data,
)
from manystream.data.preprocessing import Preprocessing
from manystream.data.transforms import EvalTransform
from manystream.data.unlabelled import UnlabelledFolder
from manystream.training import evaluate_subsets
from manystream.training.fit import check_fit
from manystream.training.report import Run, write_report

console = Console()

MODEL_FILE = "model.safetensors"


def train(options: TrainOptions) -> None:
    """Train, measure every subset of streams, and write everything into one folder."""
    out = _fresh_folder(options.out)
    data = training_data(options.data, seed=options.fit.seed, report=_say)
    torch.manual_seed(options.fit.seed)
    model = create_model(
        **asdict(options.model), streams=data.in_channels, num_classes=len(data.classes)
    )
    model.classes, model.preprocessing = data.classes, data.preprocessing.to_dict()
    check_fit(options.fit, model.num_streams)
    config = _config(options)
    out.mkdir(parents=True)
    (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    try:
        history = model.fit(data.train, data.val, options.fit, out_dir=out)
    finally:
        model.save(out / MODEL_FILE)
        _say(f"weights so far, the history and the checkpoint are in {out}")
    subsets = evaluate_subsets(model, data.val, accelerator=options.fit.accelerator)
    print_subsets({options.model.family: subsets})
    run = Run(options.model.family, history, subsets, config)
    _say(f"report: {write_report([run], out, f'manystream: {out.name}')}")


def evaluate(options: EvaluateOptions) -> None:
    """Measure a trained model on a split."""
    model = load_model(options.model)
    preprocessing, classes = _trained_with(model, options.model)
    data = replace(options.data, image_size=max(preprocessing.size))
    source, _ = open_split(data, data.val_split, preprocessing.streams, classes, _say)
    loader = make_loader(StreamDataset(source, EvalTransform(preprocessing)), data)
    if options.blanked_streams is None:
        measured = evaluate_subsets(model, loader, progress=True)
    else:
        blanked = options.blanked_streams
        left = " + ".join(n for n in model.stream_names if n not in blanked)
        measured = {left: model.evaluate(loader, blanked_streams=blanked, progress=True)}
    print_subsets({options.model.parent.name or str(options.model): measured})


def predict(options: PredictOptions) -> None:
    """Write class probabilities of a folder's images as CSV."""
    model = load_model(options.model)
    preprocessing, classes = _trained_with(model, options.model)
    if options.out.is_dir():
        raise ValueError(f"--out {options.out} is a folder; expected the CSV file to write")
    source = open_unlabelled(options.folder, preprocessing.streams, options.on_error, _say)
    loader = make_loader(
        StreamDataset(source, EvalTransform(preprocessing)),
        DataOptions(batch_size=options.batch_size, num_workers=options.num_workers),
    )
    probabilities = model.predict(loader, progress=True)
    _write_predictions(options.out, source, probabilities, classes)
    _say(f"{len(source.ids)} predictions in {options.out}")


def print_subsets(runs: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Print accuracies for every subset of streams, side by side for several runs."""
    table = Table("streams present")
    for name in runs:
        prefix = f"{name}\n" if len(runs) > 1 else ""
        table.add_column(f"{prefix}mean class accuracy", justify="right")
        table.add_column(f"{prefix}accuracy", justify="right")
    for subset in next(iter(runs.values())):
        cells = []
        for measured in runs.values():
            for quantity in ("mean_class_accuracy", "accuracy"):
                cells.append(f"{measured[subset][quantity]:.1%}")
        table.add_row(subset, *cells)
    console.print(table)


def _write_predictions(
    path: Path, source: UnlabelledFolder, probabilities: Tensor, classes: Sequence[str]
) -> None:
    best, winner = probabilities.max(dim=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "streams", "class", "probability", *classes])
        for i, sample_id in enumerate(source.ids):
            has = [s.name for s, p in zip(source.streams, source.present[i], strict=True) if p]
            every = [f"{p:.4f}" for p in probabilities[i].tolist()]
            row = [sample_id, " + ".join(has), classes[int(winner[i])], f"{best[i]:.4f}", *every]
            writer.writerow(row)


def _trained_with(model: StreamClassifier, path: Path) -> tuple[Preprocessing, tuple[str, ...]]:
    if model.preprocessing is None or model.classes is None:
        raise ValueError(
            f"{path} does not say how its images were prepared; expected a model that "
            "`manystream train` wrote"
        )
    return Preprocessing.from_dict(model.preprocessing), model.classes


def _fresh_folder(out: Path | None) -> Path:
    out = out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    if out.exists():
        raise ValueError(f"--out {out} exists; name a folder that does not, nothing is overwritten")
    return out


def _config(options: TrainOptions) -> dict[str, Any]:
    """What was asked for, but for the folder, so that it can be asked for again."""
    config: dict[str, Any] = _plain(asdict(options))
    del config["out"]
    return config


def _plain(values: Any) -> Any:
    """Values that YAML and JSON can hold."""
    if isinstance(values, dict):
        return {key: _plain(value) for key, value in values.items()}
    return str(values) if isinstance(values, Path) else values


def complain(line: str) -> None:
    """Print a message of failure to the standard error."""
    _print(Console(stderr=True), line, style="red")


def _say(line: str) -> None:
    _print(console, line)


def _print(to: Console, line: str, style: str | None = None) -> None:
    # Soft wrapping breaks no path in two.
    to.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
