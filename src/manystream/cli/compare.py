"""`manystream compare`: several ways to deal with a missing sensor, on the same data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from manystream.batch import StreamBatch
from manystream.cli.batches import load_training_data
from manystream.cli.contenders import (
    Contender,
    check_contender,
    contenders_of,
    create,
    table_of,
)
from manystream.cli.options import WAYS, CompareOptions
from manystream.cli.output import fresh_path, plain, print_table, say
from manystream.data.preprocessing import normalise
from manystream.evaluation.inference import device_of
from manystream.evaluation.report import Run, write_report
from manystream.evaluation.tables import subset_tables
from manystream.memory.cost import StepCost, measure_step
from manystream.model import StreamModel
from manystream.models import Ensemble, FilledNetwork, StreamNetwork, mean_images

_COSTS = ["parameters", "step memory", "step time", "training time"]


@dataclass(frozen=True)
class _Trained:
    run: Run
    network: StreamNetwork


def compare(options: CompareOptions) -> None:
    """Train every contender, then print and plot accuracy by subset, size, memory and time."""
    out = fresh_path(options.out, "compare")
    data = load_training_data(options.data, options.fit)
    contenders = contenders_of(options, data)
    for contender in contenders:
        check_contender(contender, options)
    trained: dict[str, _Trained] = {}
    runs = [_train(contender, options, out, trained).run for contender in contenders]
    _print_table(runs)
    say(f"report: {write_report(runs, out, 'manystream: when a sensor is missing')}")


def _train(
    contender: Contender, options: CompareOptions, out: Path, trained: dict[str, _Trained]
) -> _Trained:
    """Train and measure a contender, unless that has been done for another."""
    if contender.name not in trained:
        meaning = filter(None, [WAYS.get(contender.name)])
        say(": ".join([f"training {contender.name}", *meaning]))
        members = [_train(member, options, out, trained) for member in contender.members]
        # Where no training sample lacks a stream, there is nothing to fill in: trained as plain.
        fills_none = contender.fill is not None and table_of(contender.data.train).present.all()
        twin = trained.get("plain") if fills_none else None
        trained[contender.name] = (
            _join(contender, members) if members else _train_network(contender, options, out, twin)
        )
    return trained[contender.name]


def _train_network(
    contender: Contender, options: CompareOptions, out: Path, twin: _Trained | None
) -> _Trained:
    """Train and measure a network; or only measure that of a twin, which was trained alike."""
    data, fit = contender.data, contender.fit
    torch.manual_seed(fit.seed)
    start = time.perf_counter()
    model = create(contender, options)
    if twin is not None:
        model = StreamModel(twin.network, twin.run.task)
    if contender.fill is not None:
        model = StreamModel(FilledNetwork(model.network, _fill(contender)), model.task)
    if twin is None:
        folder = out / contender.name.replace(" ", "-")
        history: Mapping[str, Sequence[float]] = model.fit(
            data.train, data.val, fit, out_dir=folder
        )
        training_s: float | None = time.perf_counter() - start
    else:
        history, training_s = twin.run.history, twin.run.training_s
    subsets = model.evaluate_subsets(data.val, accelerator=fit.accelerator)
    cost = measure_step(model.network, model.task, _training_batch(contender))
    config = plain(
        {
            **asdict(options),
            "model": asdict(replace(options.model, family=contender.family)),
            "fit": asdict(fit),
        }
    )
    run = Run(contender.name, model.task, history, subsets, config, cost, training_s=training_s)
    return _Trained(run, model.network)


def _join(contender: Contender, members: Sequence[_Trained]) -> _Trained:
    """Measure an ensemble; its members are trained one after the other, which costs their sum."""
    model = StreamModel(Ensemble([m.network for m in members]), members[0].run.task)
    subsets = model.evaluate_subsets(contender.data.val, accelerator=contender.fit.accelerator)
    costs = [m.run.cost for m in members if m.run.cost is not None]
    cost = StepCost(
        sum(cost.num_parameters for cost in costs),
        max(cost.peak_bytes for cost in costs),
        sum(cost.step_ms for cost in costs),
    )
    training_s = sum(m.run.training_s or 0.0 for m in members)
    config = {m.run.name: m.run.config for m in members}
    run = Run(contender.name, model.task, {}, subsets, config, cost, training_s=training_s)
    return _Trained(run, model.network)


def _fill(contender: Contender) -> dict[str, Tensor]:
    """What replaces an absent image of each stream, as the network sees it."""
    data = contender.data
    if contender.fill == "mean":
        return mean_images(data.train, data.in_channels)
    prepared = data.preprocessing
    return {
        spec.name: normalise(torch.zeros(spec.channels, 1, 1), spec, statistics)
        for spec, statistics in zip(prepared.streams, prepared.statistics, strict=True)
    }


def _training_batch(contender: Contender) -> StreamBatch:
    """Give a batch as the steps of the last epoch see it."""
    batch: StreamBatch = next(iter(contender.data.train))
    names = list(contender.data.in_channels)
    dropout, see = contender.fit.make_dropout(len(names)), contender.fit.make_views(names)
    if dropout is not None:
        dropout.begin(contender.fit.epochs - 1)
        batch = batch.keep(dropout.draw(batch.presence.mask))
    if see is not None:
        batch = replace(batch, views=see(batch.presence))
    return batch.to(device_of(contender.fit.accelerator))


def _print_table(runs: Sequence[Run]) -> None:
    """Print accuracy by subset and costs in one table; then what is not on the same samples."""
    costs = {run.name: _costs(run) for run in runs}
    by_name = {run.name: run.subsets for run in runs}
    for table in subset_tables(by_name, runs[0].task.evaluation_quantities()):
        rows = [[*row, *costs.pop(row[0], [])] for row in table.rows]
        wider = len(rows[0]) > len(table.columns)
        print_table([*table.columns, *(_COSTS if wider else [])], rows, title=table.title)


def _costs(run: Run) -> list[str]:
    assert run.cost is not None
    assert run.training_s is not None
    return [
        f"{run.cost.num_parameters / 1e6:.2f} M",
        f"{run.cost.peak_bytes / 2**20:.0f} MiB",
        f"{run.cost.step_ms:.0f} ms",
        f"{run.training_s:.0f} s",
    ]
