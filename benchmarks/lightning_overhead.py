"""What training through Lightning costs per step, beside a loop written by hand.

Rounds of all alternate in one process; a round is a run of one epoch, of which the first steps are
left out. Run: python benchmarks/lightning_overhead.py
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from statistics import median, quantiles
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

import manystream as ms
from harness.cases import NUM_CLASSES, STREAMS
from harness.results import Row, load, parser_of, save
from harness.tables import Cell, console, number, table_of
from harness.timing import in_turns
from manystream.model import StreamModel

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
    """Do the least that trains: AdamW, a schedule, the loss and the accuracy of the epoch."""
    optimizer = AdamW(model.parameters(), lr=1e-3)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / (2 * len(loader)))
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
    """Call ``fit`` without a folder."""
    model.fit(loader, epochs=1, accelerator="cpu", progress=False)


def by_fit_with_logs(model: StreamModel, loader: Clocked) -> None:
    """Call ``fit`` with checkpoints, TensorBoard and CSV."""
    with tempfile.TemporaryDirectory() as folder:
        model.fit(loader, epochs=1, accelerator="cpu", progress=False, out_dir=folder)


WAYS: dict[str, Callable[[StreamModel, Clocked], None]] = {
    REFERENCE: by_hand,
    "fit": by_fit,
    "fit into a folder": by_fit_with_logs,
}


def _range(key: str, spec: str) -> Cell:
    return lambda row: " to ".join(format(value, spec) for value in row[key])


COLUMNS = {
    "step, ms": number("step_ms", ".2f"),
    "quartiles": _range("step_ms_quartiles", ".2f"),
    "ratio": number("ratio", ".3f"),
    "range over rounds": _range("ratio_range", ".3f"),
}


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    parser = parser_of(__doc__, "lightning_overhead.json")
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each way (7)")
    parser.add_argument("--steps", type=int, default=110, help="steps of an epoch (110)")
    parser.add_argument("--batch-size", type=int, default=32, help="samples (32)")
    parser.add_argument("--image-size", type=int, default=64, help="pixels (64)")
    options = parser.parse_args(words)
    rows = load(options.show) if options.show else measure(options)
    console.print(table_of(rows, COLUMNS, caption=f"against {REFERENCE}"))
    if not options.show:
        save(options.out, rows, options.commit)


def measure(options: Namespace) -> list[Row]:
    """Run all ways in turn."""
    torch.set_num_threads(1)
    batches = make_batches(options.steps, options.batch_size, options.image_size)
    steps: dict[str, list[float]] = {name: [] for name in WAYS}

    def epoch(name: str) -> float:
        taken = run(WAYS[name], batches)
        steps[name] += taken
        return median(taken)

    medians = in_turns({name: partial(epoch, name) for name in WAYS}, options.rounds)
    return [_row(name, steps[name], medians, options) for name in WAYS]


def make_batches(steps: int, batch_size: int, image_size: int) -> list[Batch]:
    """Make a few batches of noise, and repeat them."""
    generator = torch.Generator().manual_seed(0)
    size = (image_size, image_size)
    few = [
        (
            torch.randn(batch_size, 3, *size, generator=generator),
            torch.randn(batch_size, 1, *size, generator=generator),
            torch.randint(NUM_CLASSES, (batch_size,), generator=generator),
        )
        for _ in range(4)
    ]
    return [few[i % len(few)] for i in range(steps)]


def run(way: Callable[[StreamModel, Clocked], None], batches: Sequence[Batch]) -> list[float]:
    """Return the time of each step of a fresh, small network."""
    torch.manual_seed(0)
    loader = Clocked(batches)
    way(ms.create_model(streams=STREAMS, num_classes=NUM_CLASSES, width=0.125), loader)
    return loader.step_ms


def _row(
    name: str, step_ms: Sequence[float], medians: dict[str, list[float]], options: Namespace
) -> Row:
    low, middle, high = quantiles(step_ms, n=4)
    ratios = [a / b for a, b in zip(medians[name], medians[REFERENCE], strict=True)]
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


if __name__ == "__main__":
    main()
