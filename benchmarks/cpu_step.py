"""Training steps on a CPU: the memory modes against masked execution, by the share blanked.

Time is the process's own, so that other programs on the machine do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median, quantiles

import torch
from rich.console import Console
from rich.table import Table

from cases import BASELINES, HERE, TWO
from manystream.memory.bench import REFERENCE, Row, save
from manystream.memory.case import Case, blanked_in_turn
from manystream.memory.workload import Workload
from manystream.models import StreamResNet, resnet_size

SHARES = (0.0, 0.25, 0.5, 0.75)
MODES = ("fast", "balanced", "lean")
ROUNDS = 9


def main() -> None:
    """Take turns among the ways, so that a slow moment falls on all, and print ratios."""
    torch.set_num_threads(1)
    rows = [row for share in SHARES for row in _measure(replace(_case(), blanked=share))]
    save(HERE / "results" / "cpu_step.json", rows)
    table = Table("blanked", *MODES, caption=f"time against {REFERENCE}")
    for share in SHARES:
        shown = {r["name"]: r["time_ratio"] for r in rows if r["blanked"] == share}
        table.add_row(f"{share:.0%}", *(f"{shown[mode]:.2f}" for mode in MODES))
    Console().print(table)


def _case() -> Case:
    with torch.device("meta"):
        network = StreamResNet(**resnet_size(18, 0.5), in_channels=TWO, num_classes=19)
    return Case(
        "fast",
        network.layout,
        batch_size=8,
        image_size=(96, 96),
        precision="fp32",
        device="cpu",
    )


def _measure(case: Case) -> list[Row]:
    masked = replace(case, name=REFERENCE, baselines=str(BASELINES))
    steps = {c.name: _step(c) for c in (masked, *(replace(case, name=m) for m in MODES))}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append((time.process_time() - start) * 1000)
    reference = median(times[REFERENCE][1:])  # the first round warms up
    return [
        {
            "name": name,
            "blanked": case.blanked,
            "step_ms": median(taken[1:]),
            "step_spread_ms": quantiles(taken[1:], n=4)[2] - quantiles(taken[1:], n=4)[0],
            "time_ratio": median(taken[1:]) / reference,
        }
        for name, taken in times.items()
    ]


def _step(case: Case) -> Callable[[], None]:
    work = Workload(case)
    forward, _ = work.forward(blanked_in_turn(case))
    return partial(work.step, partial(work.loss, forward))


if __name__ == "__main__":
    main()
