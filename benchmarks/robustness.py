"""What training every subset of the sensors buys, on the embedded scenes: five seeds of each way.

The careless network never misses a sensor in training; beside it stand modality dropout, every
subset at every step, and networks that were trained for one sensor alone. All take equally many
steps; ``--equal-time`` gives the others as many more as the dearer step of every subset costs. All
are measured on the same scenes, which none was trained or tuned on.

Small networks, one or two minutes each on one core. Run: python benchmarks/robustness.py
"""

from __future__ import annotations

import itertools
import os
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from statistics import fmean, median, stdev
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
WIDTH = 0.25
FIT = FitOptions(
    epochs=16,
    schedule="one_cycle",
    learning_rate=2e-3,
    weight_decay=1e-3,
    label_smoothing=0.1,
    gradient_clip=1.0,
    accelerator="cpu",
    progress=False,
)


@dataclass(frozen=True)
class Way:
    """A way to train.

    Attributes:
        streams: sensors that the network has.
        network: arguments of ``create_model`` beside them.
        fit: options beside those that all ways share.
    """

    streams: tuple[str, ...] = ("rgb", "depth")
    network: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)


ALONE = {"family": "single_stream"}
WAYS = {
    "careless": Way(),
    "every subset": Way(network={"subset_norms": True}, fit={"subsets": "all"}),
    "rgb alone": Way(("rgb",), ALONE),
    "depth alone": Way(("depth",), ALONE),
    "modality dropout": Way(
        fit={
            "modality_dropout": True,
            "modality_dropout_rate": 0.48,
            "modality_dropout_ramp": 6,
        }
    ),
}
DEAREST = "every subset"


def main(words: Sequence[str] | None = None) -> None:
    """Train, print the table, keep the numbers."""
    parser = parser_of(__doc__, "robustness.json")
    parser.add_argument("--seeds", type=int, default=5, help="networks of each way (5)")
    parser.add_argument("--only", nargs="+", default=list(WAYS), help=f"of {', '.join(WAYS)}")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--epochs", type=int, default=FIT.epochs)
    parser.add_argument("--equal-time", action="store_true", help="equal time instead of steps")
    options = parser.parse_args(words)
    rows = load(options.show) if options.show else measure_all(options)
    console.print(table_of(rows))
    for line in verdicts(rows):
        console.print(line)


def measure_all(options: Namespace) -> list[Row]:
    """Train all networks, and save after each."""
    epochs = dict.fromkeys(options.only, options.epochs)
    if options.equal_time:
        costs = {name: step_seconds(name) for name in (*options.only, DEAREST)}
        epochs = {n: round(e * costs[DEAREST] / costs[n]) for n, e in epochs.items()}
    jobs = itertools.product(range(options.seeds), options.only)
    rows: list[Row] = []
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        started = [pool.submit(train, name, seed, epochs[name]) for seed, name in jobs]
        for done in as_completed(started):
            rows.append(done.result())
            row = rows[-1]
            print(f"{row['way']}, seed {row['seed']}: {row['accuracy']}", flush=True)
            save(options.out, sorted(rows, key=_place), options.commit)
    return sorted(rows, key=_place)


def _place(row: Row) -> tuple[int, int]:
    return list(WAYS).index(row["way"]), row["seed"]


def train(name: str, seed: int, epochs: int) -> Row:
    """Train a network, and measure it with every subset of its sensors."""
    torch.set_num_threads(1)  # so small a network gains nothing from more
    way = WAYS[name]
    loader, val, classes = _data(way.streams)
    torch.manual_seed(seed)
    channels = {stream: 3 if stream == "rgb" else 1 for stream in way.streams}
    layout = {"width": WIDTH, "num_classes": classes, **way.network}
    model = ms.create_model(streams=channels, **layout)
    options = replace(FIT, epochs=epochs, seed=seed, **way.fit)
    started = time.process_time()
    model.fit(loader, None, options)
    seconds = time.process_time() - started
    subsets = model.evaluate_subsets(val, accelerator="cpu")
    return {
        "way": name,
        "seed": seed,
        "accuracy": {left: found["accuracy"] for left, found in subsets.items()},
        "num_samples": int(next(iter(subsets.values()))["num_samples"]),
        "seconds": seconds,
        "fit": asdict(options),
        "width": WIDTH,
        "image_size": DATA.image_size,
        "num_scenes": DATA.num_scenes,
    }


def step_seconds(name: str, steps: int = 8) -> float:
    """Time a training step of a way, in processor seconds, median of some."""
    way = WAYS[name]
    loader, _, classes = _data(way.streams)
    channels = {stream: 3 if stream == "rgb" else 1 for stream in way.streams}
    model = ms.create_model(streams=channels, width=WIDTH, num_classes=classes, **way.network)
    few = list(itertools.islice(loader, 1))
    torch.set_num_threads(1)
    found = []
    for _ in range(3):
        started = time.process_time()
        model.fit(few * steps, None, replace(FIT, epochs=1, schedule="constant", **way.fit))
        found.append((time.process_time() - started) / steps)
    return median(found)


@cache
def _data(streams: tuple[str, ...]) -> tuple[DataLoader[Any], DataLoader[Any], int]:
    data = training_data(replace(DATA, streams=[*streams]))
    return in_memory(data.train, shuffle=True), in_memory(data.val), len(data.classes)


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
    """Show mean and standard deviation over the seeds, by way and sensors that are left."""
    subsets = list(dict.fromkeys(subset for row in rows for subset in row["accuracy"]))
    seeds, count = len({row["seed"] for row in rows}), rows[0]["num_samples"]
    caption = f"accuracy on {count} scenes, mean ± spread of {seeds} seeds; chance is 10%"
    table = Table("trained", caption=caption)
    for subset in subsets:
        table.add_column(subset, justify="right")
    for way in dict.fromkeys(row["way"] for row in rows):
        measured = [row["accuracy"] for row in rows if row["way"] == way]
        cells = [[m[subset] for m in measured if subset in m] for subset in subsets]
        table.add_row(way, *(summary(cell) if cell else "" for cell in cells))
    return table


def verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """Say what a network keeps of one that was trained for the sensor that is left."""
    found = {(row["way"], row["seed"]): row["accuracy"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    for way, sensor in itertools.product(("careless", "every subset"), ("rgb", "depth")):
        pairs = [(found.get((way, s)), found.get((f"{sensor} alone", s))) for s in seeds]
        shares = [ours[sensor] / theirs[sensor] for ours, theirs in pairs if ours and theirs]
        if shares:
            yield (
                f"{way}, {sensor} left: {fmean(shares):.1%} of what a network for it reaches, "
                f"{min(shares):.1%} with the worst of {len(shares)} seeds"
            )


def summary(values: Sequence[float]) -> str:
    """Write the mean and standard deviation of shares."""
    spread = stdev(values) if len(values) > 1 else 0.0
    return f"{fmean(values):.1%} ± {100 * spread:.1f}"


if __name__ == "__main__":
    main()
