"""What progressive modality dropout buys: five seeds with it and without, sensors taken away.

Ten small networks on rendered RGB-D scenes, about half an hour on one core; what a network of one
sensor reaches is in embedded_data.py. Run: python benchmarks/robustness.py
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from statistics import fmean, stdev
from typing import Any

import torch
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset

import manystream as ms
from harness.results import Row, load, parser_of, save
from harness.tables import console
from manystream.data import DataOptions, training_data
from manystream.data.transforms import prepare
from manystream.training import FitOptions

DATA = DataOptions(image_size=48, num_scenes=3000, augment=False, num_workers=0)
WIDTH = 0.125
WITHOUT = FitOptions(epochs=30, learning_rate=3e-3, accelerator="cpu", progress=False)
WITH = replace(
    WITHOUT,
    modality_dropout=True,
    modality_dropout_rate=[0.45, 0.1],
    modality_dropout_start=3,
    modality_dropout_ramp=10,
)
TRAININGS = {"without modality dropout": WITHOUT, "with progressive modality dropout": WITH}


def main(words: Sequence[str] | None = None) -> None:
    """Train, print the table, keep the numbers."""
    parser = parser_of(__doc__, "robustness.json")
    parser.add_argument("--seeds", type=int, default=5, help="networks of each kind (5)")
    options = parser.parse_args(words)
    torch.set_num_threads(1)  # so small a network gains nothing from more
    console.print(table_of(load(options.show) if options.show else measure_all(options)))


def measure_all(options: Namespace) -> list[Row]:
    """Train all networks, and save after each."""
    rows: list[Row] = []
    for row in train_all(range(options.seeds)):
        rows.append(row)
        print(row["training"], f"seed {row['seed']}", row["mean_class_accuracy"], flush=True)
        save(options.out, rows, options.commit)
    return rows


def train_all(seeds: Iterable[int]) -> Iterator[Row]:
    """Train a network of each kind for every seed; the scenes are the same for all.

    Yields:
        Of each its training, its seed, and mean class accuracy by the streams that are left.
    """
    data = training_data(DATA)
    train, val = in_memory(data.train, shuffle=True), in_memory(data.val)
    for seed in seeds:
        for name, options in TRAININGS.items():
            torch.manual_seed(seed)
            model = ms.create_model(
                streams=data.in_channels, num_classes=len(data.classes), width=WIDTH
            )
            options = replace(options, seed=seed)
            model.fit(train, None, options)
            subsets = model.evaluate_subsets(val, accelerator="cpu")
            yield {
                "training": name,
                "seed": seed,
                "mean_class_accuracy": {s: v["mean_class_accuracy"] for s, v in subsets.items()},
                "fit": asdict(options),
                "width": WIDTH,
                "image_size": DATA.image_size,
                "num_scenes": DATA.num_scenes,
            }


def in_memory(loader: DataLoader[Any], *, shuffle: bool = False) -> DataLoader[Any]:
    """Hold the samples of a loader of ours, rendered once instead of in every epoch."""
    data: Any = loader.dataset
    samples = [prepare(data[i], data.preprocessing) for i in range(len(data))]
    streams = [torch.cat(images) for images in zip(*(s.streams for s in samples), strict=True)]
    target = torch.cat([sample.target for sample in samples])
    return DataLoader(
        TensorDataset(*streams, target), batch_size=64, shuffle=shuffle, drop_last=shuffle
    )


def table_of(rows: Sequence[Row]) -> Table:
    """Show mean and standard deviation over the seeds, by training and streams that are left."""
    subsets = list(rows[0]["mean_class_accuracy"])
    seeds = len({row["seed"] for row in rows})
    table = Table("streams present", caption=f"mean class accuracy, mean ± spread of {seeds} seeds")
    for subset in subsets:
        table.add_column(subset, justify="right")
    for training in dict.fromkeys(row["training"] for row in rows):
        measured = [row["mean_class_accuracy"] for row in rows if row["training"] == training]
        table.add_row(training, *(summary([m[subset] for m in measured]) for subset in subsets))
    return table


def summary(values: Sequence[float]) -> str:
    """Write the mean and standard deviation of shares."""
    spread = stdev(values) if len(values) > 1 else 0.0
    return f"{fmean(values):.1%} ± {100 * spread:.1f}"


if __name__ == "__main__":
    main()
