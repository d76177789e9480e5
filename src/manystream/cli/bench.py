"""`manystream bench memory` and `bench step`: memory modes and baselines side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from manystream.cli.options import BenchMemoryOptions, BenchOptions, BenchStepOptions
from manystream.cli.output import console, fresh_path, say
from manystream.memory.bench import (
    modes_and_baselines,
    plot,
    run_cases,
    save,
    table_of,
    with_ratios,
)
from manystream.memory.case import Case
from manystream.models import StreamResNet, resnet_size
from manystream.speed.bench import kinds_table, measure_ways, ways_of
from manystream.speed.bench import table_of as step_table
from manystream.speed.bench import with_ratios as step_ratios


def bench_memory(options: BenchMemoryOptions) -> None:
    """Measure every case, print the table, write numbers and plot."""
    out = fresh_path(options.out, "bench-memory")
    case = replace(_case(options), timeline=True)
    cases = modes_and_baselines(case, _existing(options.baselines))
    rows = []
    with console.status("measuring") as status:
        for number, row in enumerate(run_cases(cases), start=1):
            rows.append(row)
            status.update(f"measured {row['name']}, {number} of {len(cases)}")
    rows = with_ratios(rows)
    save(out / "memory.json", rows)
    plot(out / "memory.png", rows)
    console.print(table_of(rows))
    say(f"numbers and plot are in {out}")


def bench_step(options: BenchStepOptions) -> None:
    """Measure every step, print the tables, write the numbers."""
    out = fresh_path(options.out, "bench-step")
    ways = ways_of(_case(options), _existing(options.baselines))
    rows = []
    with console.status("measuring") as status:
        for number, row in enumerate(measure_ways(ways), start=1):
            rows.append(row)
            status.update(f"measured {row['way']}, {number} of {len(ways)}")
    rows = step_ratios(rows)
    save(out / "step.json", rows)
    console.print(step_table(rows))
    if (kinds := kinds_table(rows)) is not None:
        console.print(kinds)
    say(f"numbers are in {out}")


def _case(options: BenchOptions) -> Case:
    with torch.device("meta"):
        network = StreamResNet(
            **resnet_size(options.depth, options.width),
            family=options.family,
            in_channels=options.streams,
            num_classes=2,
            dropout=options.dropout,
        )
    return Case(
        "fast",
        network.layout,
        batch_size=options.batch_size,
        image_size=options.image_size,
        blanked=options.blanked,
        precision=options.precision,
        device=options.device,
        steps=options.steps,
    )


def _existing(baselines: Path | None) -> Path | None:
    return baselines if baselines is not None and baselines.is_file() else None
