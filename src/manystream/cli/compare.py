"""`manystream compare`: several families on the same data, with the same options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from manystream.cli.batches import load_training_data
from manystream.cli.options import CompareOptions
from manystream.cli.output import fresh_path, plain, print_subsets, print_table, say
from manystream.data import TrainingData
from manystream.evaluation.inference import device_of
from manystream.evaluation.report import Run, write_report
from manystream.memory.cost import measure_step
from manystream.model import create_model
from manystream.tasks import Classification
from manystream.training.options import dropout_off


def compare(options: CompareOptions) -> None:
    """Train every family, then print and plot accuracy by subset, size, memory and time."""
    out = fresh_path(options.out, "compare")
    runs = []
    for name, family, data in _contenders(options):
        say(f"training {name}")
        runs.append(_run(name, family, data, options, out / name.replace(" ", "-")))
    print_subsets({run.name: run.subsets for run in runs}, runs[0].task.evaluation_quantities())
    _print_costs(runs)
    say(f"report: {write_report(runs, out, 'manystream: families compared')}")


def _contenders(options: CompareOptions) -> Iterator[tuple[str, str, TrainingData]]:
    """Give name, family and data of each run; a single-stream family has a run for every stream."""
    data = load_training_data(options.data, options.fit)
    for family in options.families:
        if family != "single_stream":
            yield family, family, data
            continue
        for stream in data.in_channels:
            alone = replace(options.data, streams=[stream])
            yield f"{stream} alone", family, load_training_data(alone, options.fit)


def _run(name: str, family: str, data: TrainingData, options: CompareOptions, folder: Path) -> Run:
    torch.manual_seed(options.fit.seed)
    model = create_model(
        family,
        **asdict(options.model),
        streams=data.in_channels,
        task=Classification(classes=data.classes),
    )
    fit = options.fit
    if len(data.in_channels) == 1:  # there is no other stream to survive on
        off: dict[str, Any] = {"subset_accuracy_every": 0, "freeze_patience": None}
        off |= {"subsets": None, "subset_weights": {}, "balance_penalty": 0.0}
        fit = replace(fit, **dropout_off(), **off)
    history = model.fit(data.train, data.val, fit, out_dir=folder)
    subsets = model.evaluate_subsets(data.val, accelerator=fit.accelerator)
    batch = next(iter(data.train)).to(device_of(fit.accelerator))
    cost = measure_step(model.network, model.task, batch)
    return Run(name, model.task, history, subsets, plain(asdict(options)), cost)


def _print_costs(runs: list[Run]) -> None:
    rows = [
        (
            run.name,
            f"{run.cost.num_parameters / 1e6:.2f} M",
            f"{run.cost.peak_bytes / 2**20:.0f} MiB",
            f"{run.cost.step_ms:.0f} ms",
        )
        for run in runs
        if run.cost is not None
    ]
    print_table(["family", "parameters", "peak memory of a step", "time of a step"], rows)
