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
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.results import RESULTS, Row, commit_of, device_tag, load, save
from harness.tables import console, number, table_of
from harness.timing import step_times, times_ms

MODES = ("fast", "balanced", "lean")
STREAMS, NUM_CLASSES = {"rgb": 3, "depth": 1}, 19
WARM_UP = 3  # an eager step, a captured one and a replayed one

Step = Callable[[], object]

COLUMNS = {
    "old, ms": number("old_ms", ".2f"),
    "new, ms": number("new_ms", ".2f"),
    "new / old": number("ratio", ".3f"),
    "least": number("ratio_least", ".3f"),
    "greatest": number("ratio_greatest", ".3f"),
    "old, reserved MB": number("old_reserved_bytes", ".0f", 1e-6),
    "new": number("new_reserved_bytes", ".0f", 1e-6),
    "old, allocated MB": number("old_allocated_bytes", ".0f", 1e-6),
    "new ": number("new_allocated_bytes", ".0f", 1e-6),
}


@dataclass(frozen=True)
class Size:
    """A network and its batch."""

    name: str
    depth: int
    batch_size: int
    width: float = 1.0
    image_size: int = 224


@dataclass(frozen=True)
class Plan:
    """What one process measures.

    Attributes:
        device: where.
        steps: steps to time in graphs.
        eager_steps: steps to time without, which take several times as long.
        small: tiny networks, to see that it runs.
    """

    device: str
    steps: int
    eager_steps: int
    small: bool = False

    def sizes(self) -> list[Size]:
        """The networks and their batches."""
        sizes = [
            Size("ResNet-18 B32", 18, 32),
            Size("ResNet-18 B128", 18, 128),
            Size("ResNet-50 B32", 50, 32),
        ]
        if not self.small:
            return sizes
        return [replace(s, batch_size=s.batch_size // 8, width=0.125, image_size=32) for s in sizes]


def main(words: Sequence[str] | None = None) -> None:
    """Measure round after round, save after each, and print the table."""
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    out = RESULTS / f"compare_commits_{device_tag()}.json"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("checkouts", type=Path, nargs="*", metavar="OLD NEW", help="two folders")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each checkout (5)")
    parser.add_argument("--steps", type=int, default=20, help="steps to time in graphs (20)")
    parser.add_argument("--eager-steps", type=int, default=5, help="steps to time without (5)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=device, help=f"({device})")
    parser.add_argument("--small", action="store_true", help="tiny cases, to see that it runs")
    parser.add_argument("--commits", nargs=2, help="of the checkouts, where git cannot say")
    parser.add_argument("--out", type=Path, default=out, help=f"file for the numbers ({out})")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print a kept file's table")
    options = parser.parse_args(words)
    if options.show is not None:
        show(load(options.show))
        return
    try:
        old, new = (checked(folder) for folder in options.checkouts)
    except ValueError as error:
        parser.error(str(error))
    commits = options.commits or [commit_of(old), commit_of(new)]
    plan = Plan(options.device, options.steps, options.eager_steps, options.small)
    found: dict[str, list[list[Row]]] = {"old": [], "new": []}
    for number_of_round in range(1, options.rounds + 1):
        found["old"].append(measured(old, plan))
        found["new"].append(measured(new, plan))
        rows = compared(found["old"], found["new"])
        save(options.out, rows, " against ".join(reversed(commits)))
        print(f"round {number_of_round} of {options.rounds}", flush=True)
    show(rows)
    print(options.out)


def checked(folder: Path) -> Path:
    """Return a checkout's full path.

    Raises:
        ValueError: if the package is not in it.
    """
    if not (folder / "src" / "manystream").is_dir():
        raise ValueError(f"there is no src/manystream in {folder}; expected a checkout")
    return folder.resolve()


def measured(checkout: Path, plan: Plan) -> list[Row]:
    """Measure a checkout's steps in a fresh process.

    Raises:
        RuntimeError: if the process fails.
    """
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(checkout / "src"), str(here)])
    program = "import sys, manystream, compare_commits; compare_commits.child(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(checkout), json.dumps(asdict(plan))],
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
    """Measure all steps of the package that this process imports, and print them as JSON."""
    import manystream

    found = Path(str(manystream.__file__))
    if Path(checkout) / "src" not in found.resolve().parents:
        raise RuntimeError(f"imported {found}; expected the package of {checkout}")
    print("\n" + json.dumps(list(measure(Plan(**json.loads(plan)))), allow_nan=False))


def measure(plan: Plan) -> Iterator[Row]:
    """Yield time and peaks of each way to take a step; ``error`` where it could not be taken."""
    on_gpu = plan.device == "cuda"
    for size in plan.sizes():
        network = _network(size, plan)
        images = [_noise(size, channels, plan.device) for channels in STREAMS.values()]
        for mode in MODES:
            network.memory = mode
            for graphs in (True, False) if on_gpu else (False,):
                row = {"group": size.name, "name": mode, "graphs": graphs}
                steps = plan.steps if graphs else plan.eager_steps
                try:
                    row |= _measure(_step(network, images, graphs=graphs), steps, plan.device)
                except RuntimeError as error:
                    row["error"] = str(error).splitlines()[0]
                yield row


def _measure(step: Step, steps: int, device: str) -> dict[str, Any]:
    on_gpu = device == "cuda"
    gc.collect()  # an earlier step's graphs, which are in cycles
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        step()
    measured: dict[str, Any] = step_times(times_ms(step, steps, torch.device(device)))
    if on_gpu:
        measured["reserved_bytes"] = torch.cuda.max_memory_reserved()
        measured["allocated_bytes"] = torch.cuda.max_memory_allocated()
    return measured


def _network(size: Size, plan: Plan) -> Any:
    """Build a network by public names; of a model that holds a network, that network."""
    import manystream as ms

    torch.manual_seed(0)
    model = ms.create_model(
        depth=size.depth, streams=STREAMS, num_classes=NUM_CLASSES, width=size.width
    )
    return getattr(model, "network", model).to(plan.device).train()


def _step(network: Any, images: Sequence[Tensor], *, graphs: bool) -> Step:
    """Return how to take a step, from a compact batch on the device to new weights."""
    import manystream as ms

    num_samples = len(images[0])
    present = torch.ones(num_samples, len(images), dtype=torch.bool)
    blanked = torch.arange(num_samples // 5)
    present[blanked, blanked % len(images)] = False
    target = (torch.arange(num_samples) % NUM_CLASSES).to(images[0].device)
    batch = replace(network.to_batch(images, present), target=target)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=True)
    graphed = ms.GraphedStep(network, F.cross_entropy) if graphs else None

    def loss() -> Tensor:
        with torch.autocast(target.device.type, torch.bfloat16):
            if graphed is not None:
                result: Tensor = graphed(batch)[0]
                return result
            return F.cross_entropy(network(batch), target)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _noise(size: Size, channels: int, device: str) -> Tensor:
    shape = (size.batch_size, channels, size.image_size, size.image_size)
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
    row = {key: old[0][key] for key in ("group", "name", "graphs")}
    failed = {
        n: r["error"] for n, rows in (("old", old), ("new", new)) for r in rows if "error" in r
    }
    if failed:
        return {**row, "error": "; ".join(f"{name}: {error}" for name, error in failed.items())}
    for name, rows in (("old", old), ("new", new)):
        times = [r["step_ms"] for r in rows]
        row |= {f"{name}_ms": median(times), f"{name}_ms_range": [min(times), max(times)]}
        row |= {
            f"{name}_{key}": max(r[key] for r in rows)
            for key in ("reserved_bytes", "allocated_bytes")
            if key in rows[0]
        }
    ratios = [b["step_ms"] / a["step_ms"] for a, b in zip(old, new, strict=True)]
    row |= {"ratio_least": min(ratios), "ratio_greatest": max(ratios)}
    return {**row, "rounds": len(ratios), "ratio": row["new_ms"] / row["old_ms"]}


def show(rows: Sequence[Row]) -> None:
    """Print a table for each network."""
    for group in dict.fromkeys(row["group"] for row in rows):
        console.print(table_of([row for row in rows if row["group"] == group], COLUMNS, group))


if __name__ == "__main__":
    main()
