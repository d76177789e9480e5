"""Training steps side by side: eager, in CUDA graphs and the baselines, beside their floor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from manystream.functional.kernels.dispatch import launches_are_free
from manystream.memory.bench import REFERENCE, Row, modes_and_baselines
from manystream.memory.case import Case, blanked_in_turn
from manystream.memory.workload import Workload, step_times
from manystream.speed.floor import Ceilings, floor_of
from manystream.speed.kinds import kernel_times

_WARM_UP = 3  # an eager step, a captured one, and a replayed one


@dataclass(frozen=True)
class Way:
    """A case, and whether CUDA graphs run it."""

    case: Case
    graphs: bool = False

    @property
    def name(self) -> str:
        """What a table calls it."""
        return f"{self.case.name}, graphs" if self.graphs else self.case.name


def ways_of(case: Case, baselines: Path | None) -> list[Way]:
    """The baselines of a file and the memory modes, these in graphs too where there is a GPU."""
    ways = []
    for each in modes_and_baselines(case, baselines):
        ways.append(Way(each))
        if each.baselines is None and case.device.startswith("cuda"):
            ways.append(Way(each, graphs=True))
    return ways


def measure_ways(ways: Sequence[Way]) -> Iterator[Row]:
    """Measure training steps, forward to optimizer, in this process.

    Yields:
        For each way its case, ``step_ms`` and ``step_spread_ms`` (median, and distance of the
        quartiles), ``floor_ms``, ``flops`` and ``bytes`` of a memory mode, and on a GPU
        ``peak_reserved_bytes`` and ``kinds``, the time by kind of kernel; ``error`` where it could
        not be measured.
    """
    floors: dict[str, dict[str, float]] = {}
    for way in ways:
        try:
            measured = _measure(way)
            if way.case.baselines is None:
                same = replace(way.case, name="fast")
                if str(same) not in floors:
                    floors[str(same)] = _floor(same)
                measured |= floors[str(same)]
        except (RuntimeError, ValueError) as error:
            measured = {"error": str(error).splitlines()[0]}
        yield {**asdict(way.case), "graphs": way.graphs, "way": way.name, **measured}


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Add the speed against the reference among the rows, masked execution where it is there."""
    good = [row for row in rows if "step_ms" in row]
    reference = next((r for r in good if r["name"] == REFERENCE), good[0] if good else {})
    return [
        {
            **row,
            "ratio_to": reference["way"],
            "speedup": reference["step_ms"] / row["step_ms"],
        }
        if row in good
        else row
        for row in rows
    ]


def table_of(rows: Sequence[Row], title: str | None = None) -> Table:
    """Rows with ratios, for a terminal."""
    to = next((row["ratio_to"] for row in rows if "ratio_to" in row), "")
    table = Table(title=title, caption=f"times as fast as: {to}")
    for column in ("", "step, ms", "speed", "floor, ms", "of floor"):
        table.add_column(column, justify="left" if column == "" else "right")
    for row in rows:
        table.add_row(row["way"], *_cells(row))
    return table


def kinds_table(rows: Sequence[Row]) -> Table | None:
    """Time by kind of kernel of every row that has it; None without a GPU."""
    profiled = [row for row in rows if "kinds" in row]
    if not profiled:
        return None
    kinds = list(dict.fromkeys(kind for row in profiled for kind in row["kinds"]))
    table = Table(title="milliseconds by kind of kernel (launches)")
    table.add_column("")
    for row in profiled:
        table.add_column(row["way"], justify="right")
    for kind in kinds:
        found = [row["kinds"].get(kind) for row in profiled]
        table.add_row(kind, *(f"{k['ms']:.2f} ({k['launches']:.0f})" if k else "" for k in found))
    return table


def _measure(way: Way) -> dict[str, Any]:
    on_gpu = way.case.device.startswith("cuda")
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    case, bench = way.case, Workload(way.case)
    mask = blanked_in_turn(case)
    loss = bench.graphed(mask) if way.graphs else partial(bench.loss, bench.forward(mask)[0])
    step = partial(bench.step, loss, free_gradients=True)
    for _ in range(_WARM_UP):
        step()
    measured: dict[str, Any] = step_times(step, case.steps, bench.device)
    if on_gpu:
        measured["peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
        measured["kinds"] = {k: asdict(t) for k, t in kernel_times(step).items()}
    return measured


def _floor(case: Case) -> dict[str, float]:
    """Floor of the mode that rebuilds nothing, by the fewest operations there are."""
    bench = Workload(case)
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    ceilings = Ceilings.measure(bench.device, dtype)
    loss = partial(bench.loss, bench.forward(blanked_in_turn(case))[0])
    fewest = launches_are_free() if bench.device.type == "cuda" else nullcontext()
    with fewest:
        bench.warm_up(loss)
        floor = floor_of(partial(bench.step, loss, free_gradients=True), ceilings)
    return {"floor_ms": floor.ms, "flops": floor.flops, "bytes": floor.bytes}


def _cells(row: Row) -> list[str]:
    if "error" in row:
        return [str(row["error"])[:40]]
    step = f"{row['step_ms']:.2f} ± {row['step_spread_ms'] / 2:.2f}"
    if "floor_ms" not in row:
        return [step, f"{row['speedup']:.2f}", "", ""]
    floor = row["floor_ms"]
    return [step, f"{row['speedup']:.2f}", f"{floor:.2f}", f"{row['step_ms'] / floor:.2f}"]
