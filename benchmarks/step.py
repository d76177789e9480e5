"""Time of a training step: memory modes, eager and in CUDA graphs, beside what users run instead.

All ways of a group run in one process. Run on a GPU: python benchmarks/step.py --out FILE.json
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from cases import BASELINES, HERE, THREE, TWO, case_of, wider
from manystream.memory.bench import REFERENCE, Row, save
from manystream.memory.case import Case
from manystream.speed.bench import (
    Way,
    kinds_table,
    measure_ways,
    table_of,
    ways_of,
    with_ratios,
)

COMPARED = ("masked in-place", "plain (dropout off)")
MODES = ("fast", "balanced", "lean")
MAIN = ("ResNet-18 B32", "ResNet-18 B128", "ResNet-50 B32")
"""Groups that are measured eagerly too; the others in graphs, beside masked execution."""


def main() -> None:
    """Measure all groups, and save after each."""
    options = _options()
    console, rows, started = Console(width=150), list[Row](), time.monotonic()
    changes = {"commit": options.commit} if options.commit else {}
    for group, ways in groups(options.small, options.steps).items():
        if not re.search(options.only, group):
            continue
        if time.monotonic() - started > options.seconds:
            break
        measured = with_ratios([{"group": group, **row} for row in measure_ways(ways)])
        rows += measured
        save(options.out, rows, **changes)
        console.print(table_of(measured, group))
        if (kinds := kinds_table([r for r in measured if r["graphs"]])) is not None:
            console.print(kinds)
    print(f"{time.monotonic() - started:.0f} s; {options.out}")


def groups(small: bool, steps: int) -> dict[str, list[Way]]:
    """Ways to run a step, by the group they are compared in."""
    cases = {name: replace(c, steps=steps) for name, c in _cases(small)}
    cases["ResNet-18 B128, 0% blanked"] = replace(cases["ResNet-18 B128"], blanked=0.0)
    found = {name: list(_ways(case)) for name, case in cases.items()}
    for name, ways in found.items():
        if name not in MAIN and not small:
            found[name] = [w for w in ways if w.graphs or w.case.name == REFERENCE]
    return found


def _cases(small: bool) -> Iterator[tuple[str, Case]]:
    two = case_of(18, TWO, small)
    yield "ResNet-18 B32", two
    yield "ResNet-18 B128", replace(two, batch_size=4 * two.batch_size)
    yield "ResNet-50 B32", case_of(50, TWO, small)
    yield "ResNet-18 B32, three streams", case_of(18, THREE, small)
    yield "ResNet-18 B32, tf32", replace(two, precision="tf32")
    yield "ResNet-18 B16, 416x544", wider(two)


def _ways(case: Case) -> Iterator[Way]:
    for way in ways_of(case, BASELINES):
        if way.case.name in (*COMPARED, *MODES):
            yield way


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "step_h200.json")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time for all groups")
    parser.add_argument("--steps", type=int, default=50, help="steps to time")
    parser.add_argument("--small", action="store_true", help="tiny cases, on the CPU")
    parser.add_argument("--only", default="", help="groups whose name matches this pattern")
    parser.add_argument("--commit", default="", help="commit of the code, where git cannot say")
    return parser.parse_args()


if __name__ == "__main__":
    main()
