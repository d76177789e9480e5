"""Time of a training step: memory modes, eager and in CUDA graphs, beside what users run instead.

All ways of a group run in one process; beside them stand the least time that the operations need
on this machine, and the time by kind of kernel. Run on a GPU: python benchmarks/step.py; a network
of your own: python benchmarks/step.py --depth 50 --streams rgb=3 infrared=1 --batch-size 64
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from rich.table import Table

from harness.cases import Case, baselines, blanked_in_turn, modes
from harness.groups import Groups, add_group_options, groups_of, run_groups
from harness.kernels import kernel_times
from harness.results import Row, device_tag, parser_of
from harness.roofline import Ceilings, roofline_of
from harness.tables import REFERENCE, console, label, number, step, table_of
from harness.timing import step_times, times_ms
from harness.workload import Loss, Workload
from manystream.functional.kernels.dispatch import launches_are_free

COMPARED = (REFERENCE, "plain (dropout off)")
PUBLISHED_MODES = ("fast", "balanced", "lean")

COLUMNS = {
    "step, ms": step,
    "speed": number("speedup", ".2f"),
    "roofline, ms": number("roofline_ms", ".2f"),
    "of roofline": lambda row: (
        f"{row['step_ms'] / row['roofline_ms']:.2f}" if "roofline_ms" in row else ""
    ),
}


def main(words: Sequence[str] | None = None) -> None:
    """Measure all groups, and save after each."""
    parser = parser_of(__doc__, f"step_{device_tag()}.json")
    add_group_options(parser, steps=50)
    options = parser.parse_args(words)
    run_groups(groups_of(parser, options, published, all_of), options, measure, show)


def published(base: Case) -> Groups:
    """Return ways to run a step, by the group they are compared in.

    The first three are measured eagerly too, the others in graphs, beside masked execution.
    """
    large = replace(base, batch_size=128)
    others = {
        "ResNet-18 B32, three streams": replace(
            base, streams={"rgb": 3, "depth": 1, "infrared": 1}
        ),
        "ResNet-18 B32, tf32": replace(base, precision="tf32"),
        "ResNet-18 B16, 416x544": replace(base, batch_size=16, image_size=(416, 544)),
        "ResNet-18 B128, 0% blanked": replace(large, blanked=0.0),
    }
    return {
        "ResNet-18 B32": _compared(base),
        "ResNet-18 B128": _compared(large),
        "ResNet-50 B32": _compared(replace(base, depth=50)),
        **{name: _graphed(case) for name, case in others.items()},
    }


def all_of(case: Case) -> list[Case]:
    """Return a case under every baseline, and in every memory mode; in graphs too on a GPU."""
    return baselines(case) + modes(case, graphs=case.device == "cuda")


def _compared(case: Case) -> list[Case]:
    return [c for c in all_of(case) if c.name in (*COMPARED, *PUBLISHED_MODES)]


def _graphed(case: Case) -> list[Case]:
    on_gpu = case.device == "cuda"
    found = [c for c in all_of(case) if c.name in PUBLISHED_MODES and c.graphs == on_gpu]
    return baselines(case, [REFERENCE]) + found


def measure(cases: Sequence[Case], seconds: float = float("inf")) -> Iterator[Row]:
    """Measure training steps, forward to optimizer, in this process.

    Yields:
        For each case ``step_ms`` and ``step_spread_ms`` (median, and distance of the quartiles),
        ``roofline_ms``, ``flops`` and ``bytes`` of a memory mode, and on a GPU
        ``peak_reserved_bytes`` and ``kinds``, the time by kind of kernel; ``error`` where it could
        not be measured.
    """
    del seconds  # a group is short, and is measured whole
    rooflines: dict[str, dict[str, float]] = {}
    for case in cases:
        try:
            measured = _measure(case)
            if not case.is_baseline:
                same = replace(case, name="fast", graphs=False)
                if str(same) not in rooflines:
                    rooflines[str(same)] = _roofline(same)
                measured |= rooflines[str(same)]
        except (RuntimeError, ValueError) as error:
            measured = {"error": str(error).splitlines()[0]}
        yield {**asdict(case), **measured}


def _measure(case: Case) -> dict[str, Any]:
    on_gpu = case.device == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    work, loss = _work(case)
    step = partial(work.step, loss, free_gradients=True)
    work.warm_up(loss, free_gradients=True)
    measured: dict[str, Any] = step_times(times_ms(step, case.steps, work.device))
    if on_gpu:
        measured["peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
        measured["kinds"] = {k: asdict(t) for k, t in kernel_times(step).items()}
    return measured


def _roofline(case: Case) -> dict[str, float]:
    """Count the mode that rebuilds nothing, by the fewest operations there are."""
    work, loss = _work(case)
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    ceilings = Ceilings.measure(work.device, dtype)
    fewest = launches_are_free() if case.device == "cuda" else nullcontext()
    with fewest:
        work.warm_up(loss, free_gradients=True)
        found = roofline_of(partial(work.step, loss, free_gradients=True), ceilings)
    return {"roofline_ms": found.ms, "flops": found.flops, "bytes": found.bytes}


def _work(case: Case) -> tuple[Workload, Loss]:
    work = Workload(case)
    loss, _ = work.loss(blanked_in_turn(case.batch_size, len(case.streams), case.blanked))
    return work, loss


def show(group: str, rows: list[Row]) -> None:
    """Print a group's times, and its times by kind of kernel where there are any."""
    console.print(table_of(rows, COLUMNS, group))
    if (kinds := kinds_table(rows)) is not None:
        console.print(kinds)


def kinds_table(rows: Sequence[Row]) -> Table | None:
    """Set time by kind of kernel beside each other for rows in graphs; None without such."""
    profiled = [row for row in rows if row.get("graphs") and "kinds" in row]
    if not profiled:
        return None
    kinds = list(dict.fromkeys(kind for row in profiled for kind in row["kinds"]))
    table = Table("", title="milliseconds by kind of kernel (launches)")
    for row in profiled:
        table.add_column(label(row), justify="right")
    for kind in kinds:
        found = [row["kinds"].get(kind) for row in profiled]
        table.add_row(kind, *(f"{k['ms']:.2f} ({k['launches']:.0f})" if k else "" for k in found))
    return table


if __name__ == "__main__":
    main()
