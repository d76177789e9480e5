"""What the embedded data set asks of a network: each sensor alone, and both, by ordinary training.

The set was made so that a network of one sensor is right in 85 to 95% and one of both in 97% or
more; it was frozen before any training against missing sensors was tried on it. The network of both
is also measured with a sensor taken away: it was never trained for that.

Nine small networks, some twenty minutes on one core. Run: python benchmarks/embedded_data.py
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from rich.table import Table

import manystream as ms
from harness.results import Row, load, parser_of, save
from harness.tables import console
from manystream.data import DataOptions, training_data
from manystream.training import FitOptions
from robustness import in_memory, summary

DATA = DataOptions(image_size=48, num_scenes=3000, augment=False, num_workers=0)
FIT = FitOptions(epochs=16, learning_rate=3e-3, accelerator="cpu", progress=False)
WIDTH = 0.25
NETWORKS = {("rgb",): "single_stream", ("depth",): "single_stream", ("rgb", "depth"): "li_net3"}


def main(words: Sequence[str] | None = None) -> None:
    """Train, print the table, keep the numbers."""
    parser = parser_of(__doc__, "embedded_data.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    options = parser.parse_args(words)
    torch.set_num_threads(1)  # so small a network gains nothing from more
    console.print(table_of(load(options.show) if options.show else measure_all(options)))


def measure_all(options: Namespace) -> list[Row]:
    """Train all networks, and save after each."""
    rows: list[Row] = []
    for row in train_all(options.seeds):
        rows.append(row)
        print(row["family"], f"seed {row['seed']}", row["accuracy"], flush=True)
        save(options.out, rows, options.commit)
    return rows


def train_all(
    seeds: Iterable[int], data: DataOptions = DATA, fit: FitOptions = FIT
) -> Iterator[Row]:
    """Train a network of each sensor and one of both for every seed; the scenes are the same.

    Yields:
        Of each its streams, its family, its seed, and its accuracy by the streams that are left.
    """
    for streams, family in NETWORKS.items():
        fed = training_data(replace(data, streams=[*streams]))
        train, val = in_memory(fed.train, shuffle=True), in_memory(fed.val)
        for seed in seeds:
            torch.manual_seed(seed)
            model = ms.create_model(
                family, streams=fed.in_channels, num_classes=len(fed.classes), width=WIDTH
            )
            model.fit(train, None, replace(fit, seed=seed))
            subsets = model.evaluate_subsets(val, accelerator="cpu")
            yield {
                "streams": " + ".join(streams),
                "family": family,
                "seed": seed,
                "accuracy": {left: found["accuracy"] for left, found in subsets.items()},
                "epochs": fit.epochs,
                "learning_rate": fit.learning_rate,
                "width": WIDTH,
                "image_size": data.image_size,
                "num_scenes": data.num_scenes,
            }


def table_of(rows: Sequence[Row]) -> Table:
    """Show mean and standard deviation over the seeds, by network and streams that are left."""
    seeds = len({row["seed"] for row in rows})
    table = Table(
        "trained with", "measured with", caption=f"accuracy, mean ± spread of {seeds} seeds"
    )
    table.add_column("accuracy", justify="right")
    for streams in dict.fromkeys(row["streams"] for row in rows):
        measured = [row["accuracy"] for row in rows if row["streams"] == streams]
        for left in measured[0]:
            table.add_row(streams, left, summary([accuracy[left] for accuracy in measured]))
    return table


if __name__ == "__main__":
    main()
