"""What evaluating every subset of the streams costs, beside one plain evaluation.

A plain evaluation measures the batches once, with everything present. All ways take the same
batches from memory, in turns. Run: python benchmarks/evaluation.py
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from statistics import median
from time import perf_counter, process_time

import torch
from torch import Tensor

import manystream as ms
from harness.cases import NUM_CLASSES
from harness.results import Row, device_tag, load, parser_of, save
from harness.tables import Cell, console, number, table_of
from harness.timing import in_turns, spread, wait
from manystream.model import StreamModel

STREAMS = {"rgb": 3, "depth": 1, "infrared": 1}
NUM_STREAMS = (2, 3)
PLAIN = "one plain evaluation"
EVERY, ONE_BY_ONE = "every subset", "every subset, one evaluation each"

Batch = tuple[Tensor, ...]


def _range(row: Row) -> str:
    return f"{row['ratio_least']:.2f} to {row['ratio_greatest']:.2f}"


COLUMNS: dict[str, Cell] = {
    "streams": number("num_streams", ".0f"),
    "time, ms": number("ms", ".0f"),
    "ratio": number("ratio", ".2f"),
    "least to greatest": _range,
}


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = parser_of(__doc__, f"evaluation_{device_tag()}.json")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=device, help=f"({device})")
    parser.add_argument("--family", default="li_net3", help="how the streams are mixed (li_net3)")
    parser.add_argument("--depth", type=int, default=18, help="layers of the ResNet (18)")
    parser.add_argument("--width", type=float, default=1.0, help="multiplier of its widths (1)")
    parser.add_argument("--batch-size", type=int, default=32, help="samples (32)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels (224)")
    parser.add_argument("--batches", type=int, default=2, help="batches of an evaluation (2)")
    parser.add_argument("--rounds", type=int, default=5, help="evaluations of each way (5)")
    options = parser.parse_args(words)
    rows = load(options.show) if options.show else measure(options)
    console.print(table_of(rows, COLUMNS, caption=f"against {PLAIN} with as many streams"))
    if not options.show:
        save(options.out, rows, options.commit)


def measure(options: Namespace) -> list[Row]:
    """Measure all ways in turn, for each number of streams; on a CPU with one thread."""
    torch.set_num_threads(1)  # of a GPU's work the host's threads do nothing
    rows = []
    for num_streams in NUM_STREAMS:
        streams = dict(list(STREAMS.items())[:num_streams])
        torch.manual_seed(0)
        model = ms.create_model(
            options.family,
            depth=options.depth,
            width=options.width,
            streams=streams,
            num_classes=NUM_CLASSES,
        ).to(options.device)
        loader = make_batches(streams, options)
        ways = ways_of(model, loader, options.device)
        for way in ways.values():
            way()
        rows += _rows(in_turns(ways, options.rounds), num_streams, options)
    return rows


def make_batches(streams: dict[str, int], options: Namespace) -> list[Batch]:
    """Make batches of noise with a class for each sample, where they are to be measured."""
    generator = torch.Generator().manual_seed(0)
    size, batch_size = (options.image_size, options.image_size), options.batch_size
    batches = []
    for _ in range(options.batches):
        images = [torch.randn(batch_size, c, *size, generator=generator) for c in streams.values()]
        target = torch.randint(NUM_CLASSES, (batch_size,), generator=generator)
        batches.append(tuple(x.to(options.device) for x in (*images, target)))
    return batches


def ways_of(
    model: StreamModel, loader: Sequence[Batch], device: str
) -> dict[str, Callable[[], float]]:
    """Return what takes its time in milliseconds, by name."""
    accelerator = "gpu" if device == "cuda" else "cpu"
    names = model.stream_names
    blanked = [b for size in range(len(names)) for b in combinations(names, size)]

    def one_by_one() -> None:
        for streams in blanked:
            model.evaluate(loader, blanked_streams=streams, accelerator=accelerator)

    ways: dict[str, Callable[[], object]] = {
        PLAIN: partial(model.evaluate, loader, accelerator=accelerator),
        EVERY: partial(model.evaluate_subsets, loader, accelerator=accelerator),
        ONE_BY_ONE: one_by_one,
    }
    return {name: partial(_timed_ms, way, torch.device(device)) for name, way in ways.items()}


def _timed_ms(way: Callable[[], object], device: torch.device) -> float:
    """Time by the clock; on a CPU by the processor's time, which the work of others is not in."""
    clock = perf_counter if device.type == "cuda" else process_time
    wait(device)
    start = clock()
    way()
    wait(device)
    return 1e3 * (clock() - start)


def _rows(times: dict[str, list[float]], num_streams: int, options: Namespace) -> list[Row]:
    names = ("family", "depth", "width", "batch_size", "image_size", "batches", "rounds")
    case = {name: getattr(options, name) for name in names}
    return [
        {
            "name": name,
            "num_streams": num_streams,
            **case,
            "ms": median(taken),
            "ratio_to": PLAIN,
            **spread("ratio", [a / b for a, b in zip(taken, times[PLAIN], strict=True)]),
        }
        for name, taken in times.items()
    ]


if __name__ == "__main__":
    main()
