"""What training through Lightning costs per step, beside a loop written by hand.

Run: python benchmarks/lightning_overhead.py. Rounds of both alternate in one process; a round is a
run of one epoch, of which the first steps are left out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

import manystream as ms
from manystream.memory.bench import save
from manystream.model import StreamModel

RESULTS = Path(__file__).parent / "results" / "lightning_overhead.json"
STREAMS, CLASSES = {"rgb": 3, "depth": 1}, 19
WARM_UP = 10
REFERENCE = "loop by hand"

Batch = tuple[Tensor, Tensor, Tensor]


class Clocked:
    """Batches that note when they are asked for."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches
        self.times: list[float] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            self.times.append(perf_counter())
            yield batch
        self.times.append(perf_counter())

    @property
    def step_ms(self) -> list[float]:
        """Length of every step after the first ones."""
        times = self.times[WARM_UP:]
        return [1e3 * (b - a) for a, b in pairwise(times)]


def by_hand(model: StreamModel, loader: Clocked) -> None:
    """The least that trains: AdamW, a schedule, the loss and the accuracy of the epoch."""
    optimizer = AdamW(model.parameters(), lr=1e-3)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / (2 * len(loader)))
    model.train()
    total_loss, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    for rgb, depth, target in loader:
        logits = model([rgb, depth])
        loss = F.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total_loss += loss.detach()
        right += (logits.argmax(dim=1) == target).sum()


def by_fit(model: StreamModel, loader: Clocked) -> None:
    """``fit`` without a folder."""
    model.fit(loader, epochs=1, accelerator="cpu", progress=False)


def by_fit_with_logs(model: StreamModel, loader: Clocked) -> None:
    """``fit`` with checkpoints, TensorBoard and CSV."""
    with tempfile.TemporaryDirectory() as folder:
        model.fit(loader, epochs=1, accelerator="cpu", progress=False, out_dir=folder)


WAYS: dict[str, Callable[[StreamModel, Clocked], None]] = {
    REFERENCE: by_hand,
    "fit": by_fit,
    "fit into a folder": by_fit_with_logs,
}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    batches = make_batches(options.steps, options.batch_size, options.image_size)
    steps: dict[str, list[float]] = {name: [] for name in WAYS}
    ratios: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(options.rounds):
        measured = {name: run(way, batches) for name, way in WAYS.items()}
        for name, step_ms in measured.items():
            steps[name] += step_ms
            ratios[name].append(median(step_ms) / median(measured[REFERENCE]))
    rows = [describe(name, steps[name], ratios[name], options) for name in WAYS]
    print_table(rows)
    save(options.out, rows)
    print(options.out)


def make_batches(steps: int, batch_size: int, image_size: int) -> list[Batch]:
    """The same few batches of noise, over and over."""
    generator = torch.Generator().manual_seed(0)
    size = (image_size, image_size)
    few = [
        (
            torch.randn(batch_size, 3, *size, generator=generator),
            torch.randn(batch_size, 1, *size, generator=generator),
            torch.randint(CLASSES, (batch_size,), generator=generator),
        )
        for _ in range(4)
    ]
    return [few[i % len(few)] for i in range(steps)]


def run(way: Callable[[StreamModel, Clocked], None], batches: Sequence[Batch]) -> list[float]:
    """Time of each step of a fresh, small network."""
    torch.manual_seed(0)
    model = ms.create_model(streams=STREAMS, num_classes=CLASSES, width=0.125)
    loader = Clocked(batches)
    way(model, loader)
    return loader.step_ms


def describe(
    name: str, step_ms: list[float], ratios: list[float], options: argparse.Namespace
) -> dict[str, object]:
    """One row of the result."""
    low, middle, high = quantiles(step_ms, n=4)
    return {
        "name": name,
        "batch_size": options.batch_size,
        "image_size": options.image_size,
        "rounds": options.rounds,
        "step_ms": middle,
        "step_ms_quartiles": [low, high],
        "ratio_to": REFERENCE,
        "ratio": median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def print_table(rows: Sequence[dict[str, object]]) -> None:
    """Print the rows."""
    table = Table("", "step, ms", "quartiles", "ratio", "range over rounds")
    for row in rows:
        cells = [row["step_ms"], *_pair(row["step_ms_quartiles"]), row["ratio"]]
        cells += _pair(row["ratio_range"])
        step, low, high, ratio, least, most = cells
        table.add_row(
            str(row["name"]),
            f"{step:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{ratio:.3f}",
            f"{least:.3f} to {most:.3f}",
        )
    Console().print(table)


def _pair(values: object) -> list[float]:
    assert isinstance(values, list)
    return values


if __name__ == "__main__":
    main()
