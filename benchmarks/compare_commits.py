"""Training steps of two checkouts in turn on one machine: what a change made faster or slower.

OLD and NEW are folders with the package in src/. Each is measured --rounds times, in a fresh
process each time, OLD NEW OLD NEW …, with the networks and batches that `step.py` publishes. Only
public names are used, so that any two versions can be compared.

Run on a GPU: python benchmarks/compare_commits.py OLD NEW
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.results import Row, commit_of, device_tag, load, parser_of, save
from harness.tables import console, number, table_of
from harness.timing import step_times, times_ms

GROUPS = {"ResNet-18 B32": (18, 32), "ResNet-18 B128": (18, 128), "ResNet-50 B32": (50, 32)}
"""Depth and samples of a batch."""

MODES = ("fast", "balanced", "lean")
STREAMS, NUM_CLASSES = {"rgb": 3, "depth": 1}, 19
WARM_UP = 3  # in graphs an eager step, a captured one and a replayed one
PEAKS = ("reserved_bytes", "allocated_bytes")

COLUMNS = {
    "old, ms": number("old_ms", ".2f"),
    "new, ms": number("new_ms", ".2f"),
    "new / old": number("ratio", ".3f"),
    "least": number("ratio_least", ".3f"),
    "greatest": number("ratio_greatest", ".3f"),
    "reserved, MB: old": number("old_reserved_bytes", ".0f", 1e-6),
    "reserved, MB: new": number("new_reserved_bytes", ".0f", 1e-6),
    "allocated, MB: old": number("old_allocated_bytes", ".0f", 1e-6),
    "allocated, MB: new": number("new_allocated_bytes", ".0f", 1e-6),
}


def main(words: Sequence[str] | None = None) -> None:
    """Measure round after round, save after each, and print the table."""
    parser = parser_of(__doc__, f"compare_commits_{device_tag()}.json")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("checkouts", type=Path, nargs="*", metavar="OLD NEW", help="two folders")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each checkout (5)")
    parser.add_argument("--steps", type=int, default=20, help="steps to time in graphs (20)")
    parser.add_argument("--eager-steps", type=int, default=5, help="steps to time without (5)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=device, help=f"({device})")
    parser.add_argument("--small", action="store_true", help="tiny cases, to see that it runs")
    options = parser.parse_args(words)
    if options.show is None:
        missing = [c for c in options.checkouts if not (c / "src" / "manystream").is_dir()]
        if missing or len(options.checkouts) != 2:
            parser.error(f"no src/manystream in {missing}; expected two folders, each with one")
        rows = measure_in_turns(options)
    else:
        rows = load(options.show)
    for group in dict.fromkeys(row["group"] for row in rows):
        console.print(table_of([row for row in rows if row["group"] == group], COLUMNS, group))


def measure_in_turns(options: Namespace) -> list[Row]:
    """Measure old, new, old, new, … and save after each round."""
    old, new = (checkout.resolve() for checkout in options.checkouts)
    names = ("device", "steps", "eager_steps", "small")
    plan = {name: getattr(options, name) for name in names}
    of_old, of_new, rows = list[list[Row]](), list[list[Row]](), list[Row]()
    for round_number in range(1, options.rounds + 1):
        of_old.append(in_process(old, plan))
        of_new.append(in_process(new, plan))
        rows = compared(of_old, of_new)
        save(options.out, rows, options.commit or f"{commit_of(new)} against {commit_of(old)}")
        print(f"round {round_number} of {options.rounds}; {options.out}", flush=True)
    return rows


def in_process(checkout: Path, plan: Mapping[str, Any]) -> list[Row]:
    """Measure a checkout's steps in a fresh process.

    Args:
        checkout: full path.
        plan: arguments of :func:`measure`.

    Raises:
        RuntimeError: if the process fails.
    """
    path = os.pathsep.join([str(checkout / "src"), str(Path(__file__).resolve().parent)])
    program = "import sys, manystream, compare_commits; compare_commits.child(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(checkout), json.dumps(plan)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the steps of {checkout} could not be measured:\n{done.stderr}")
    rows: list[Row] = json.loads(done.stdout.strip().splitlines()[-1])
    return rows


def child(checkout: str, plan: str) -> None:
    """Measure the package that this process imports, and print its rows as JSON."""
    import manystream

    found = Path(str(manystream.__file__)).resolve()
    if Path(checkout) / "src" not in found.parents:
        raise RuntimeError(f"imported {found}; expected the package of {checkout}")
    print("\n" + json.dumps(list(measure(**json.loads(plan))), allow_nan=False))


def measure(device: str, steps: int, eager_steps: int, small: bool) -> Iterator[Row]:
    """Yield time and peaks of each way to take a step; ``error`` where it could not be taken.

    Args:
        device: where.
        steps: steps to time in graphs.
        eager_steps: steps to time without, which take several times as long.
        small: whether the networks and batches are tiny.
    """
    for group, (depth, batch_size) in GROUPS.items():
        network = _network(depth, device, small)
        size, pixels = (batch_size // 8, 32) if small else (batch_size, 224)
        images = [_noise((size, c, pixels, pixels), device) for c in STREAMS.values()]
        for mode in MODES:
            network.memory = mode
            for graphs in (True, False) if device == "cuda" else (False,):
                row: Row = {"group": group, "name": mode, "graphs": graphs}
                step = _step(network, images, graphs)
                try:
                    row |= _measure(step, steps if graphs else eager_steps, device)
                except RuntimeError as error:
                    row["error"] = str(error).splitlines()[0]
                del step  # and its graphs, before the next one's
                yield row


def _measure(step: Callable[[], None], steps: int, device: str) -> Row:
    gc.collect()  # an earlier step's graphs are in cycles
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        step()
    measured: Row = {**step_times(times_ms(step, steps, torch.device(device)))}
    if device == "cuda":
        measured["reserved_bytes"] = torch.cuda.max_memory_reserved()
        measured["allocated_bytes"] = torch.cuda.max_memory_allocated()
    return measured


def _network(depth: int, device: str, small: bool) -> Any:
    """Build a network by public names; of a model that holds a network, that network."""
    import manystream as ms

    torch.manual_seed(0)
    width = 0.125 if small else 1.0
    model = ms.create_model(depth=depth, streams=STREAMS, num_classes=NUM_CLASSES, width=width)
    return getattr(model, "network", model).to(device).train()


def _step(network: Any, images: Sequence[Tensor], graphs: bool) -> Callable[[], None]:
    """Return how to take a step, from a compact batch on the device to new weights."""
    import manystream as ms

    num_samples = len(images[0])
    present = torch.ones(num_samples, len(images), dtype=torch.bool)
    blanked = torch.arange(round(0.2 * num_samples))
    present[blanked, blanked % len(images)] = False
    target = (torch.arange(num_samples) % NUM_CLASSES).to(images[0].device)
    batch = replace(network.to_batch(images, present), target=target)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=True)
    graphed = ms.GraphedStep(network, F.cross_entropy) if graphs else None

    def loss() -> Tensor:
        with torch.autocast(target.device.type, torch.bfloat16):
            if graphed is None:
                return F.cross_entropy(network(batch), target)
            result: Tensor = graphed(batch)[0]
            return result

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _noise(shape: Sequence[int], device: str) -> Tensor:
    return torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)


def compared(old: Sequence[Sequence[Row]], new: Sequence[Sequence[Row]]) -> list[Row]:
    """Set the rounds of two checkouts beside each other.

    Args:
        old: the rows of each round.
        new: the same of the other checkout.

    Returns:
        For each way the medians over rounds, ``old_ms`` and ``new_ms`` with their range, and their
        ``ratio``, with the least and greatest of the ratios within a round; and the peaks.
    """
    ways = zip(zip(*old, strict=True), zip(*new, strict=True), strict=True)
    return [_compared(of_old, of_new) for of_old, of_new in ways]


def _compared(old: Sequence[Row], new: Sequence[Row]) -> Row:
    row: Row = {key: old[0][key] for key in ("group", "name", "graphs")}
    sides = {"old": old, "new": new}
    failed = {f"{side}: {r['error']}" for side, rows in sides.items() for r in rows if "error" in r}
    if failed:
        return {**row, "error": "; ".join(sorted(failed))}
    for side, rows in sides.items():
        times = [r["step_ms"] for r in rows]
        row |= {f"{side}_ms": median(times), f"{side}_ms_range": [min(times), max(times)]}
        row |= {f"{side}_{key}": max(r[key] for r in rows) for key in PEAKS if key in rows[0]}
    ratios = [b["step_ms"] / a["step_ms"] for a, b in zip(old, new, strict=True)]
    row |= {"ratio_least": min(ratios), "ratio_greatest": max(ratios), "rounds": len(ratios)}
    return {**row, "ratio": row["new_ms"] / row["old_ms"]}


if __name__ == "__main__":
    main()
