"""What a run leaves to look at: figures, and one HTML page that holds them all."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
from matplotlib.figure import Figure

from manystream.evaluation.conditions import Robustness
from manystream.evaluation.measurement import Measured, Subsets
from manystream.evaluation.plots import (
    first_quantity,
    plot_conditions,
    plot_costs,
    plot_curves,
    plot_subsets,
)
from manystream.evaluation.showcase import Showcase, page_of
from manystream.evaluation.strict_json import finite, strict_json
from manystream.evaluation.tables import subset_tables
from manystream.memory.cost import StepCost
from manystream.tasks import Task


@dataclass(frozen=True)
class Run:
    """A trained network's record.

    Attributes:
        name: what the run is called beside others.
        task: what it was trained on; the same for all that are compared.
        history: what happened in each epoch; empty for a network that was only measured.
        subsets: measurements for every subset of streams, as ``evaluate_subsets`` gives them.
        config: what the run was told, plain values.
        cost: what a training step of it costs, if measured.
        robustness: measurements under further conditions, if there are any.
        training_s: how long it was trained, in seconds, if known.
        showcase: samples to look at while sensors are switched off, if there are any.
    """

    name: str
    task: Task
    history: Mapping[str, Sequence[float]]
    subsets: Subsets
    config: Mapping[str, Any]
    cost: StepCost | None = None
    robustness: Robustness | None = None
    training_s: float | None = None
    showcase: Showcase | None = None


def write_report(runs: Sequence[Run], folder: Path, title: str) -> Path:
    """Write figures, numbers and a self-contained ``report.html`` that shows them.

    Where runs have samples to look at, the page has a switch for every sensor.

    The figures are ``subsets.png`` and, for what the runs have, ``curves.png`` of the training,
    ``conditions.png`` and ``costs.png``; the numbers are in ``subsets.json``, ``conditions.json``
    and ``costs.json``.

    Args:
        runs: one run, or several of the same streams to compare.
        folder: where to write; made if it does not exist.
        title: headline of the page.

    Returns:
        Path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in _numbers(runs).items():
        (folder / f"{name}.json").write_text(strict_json(values) + "\n")
    images = {name: _png(figure) for name, figure in _figures(runs).items()}
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
    page = folder / "report.html"
    encoded = {name: base64.b64encode(image).decode() for name, image in images.items()}
    quantities = runs[0].task.evaluation_quantities()
    rendered = _template().render(
        title=title,
        runs=runs,
        metric=first_quantity(runs)[1].title,
        verdicts=all_verdicts(runs),
        quantities=quantities,
        tables=subset_tables({run.name: run.subsets for run in runs}, quantities),
        speeds=_speeds(runs),
        showcase=finite(page_of(runs)),
        images=encoded,
    )
    page.write_text(rendered, encoding="utf-8")
    return page


def all_verdicts(runs: Sequence[Run]) -> list[str]:
    """Say of one stream after the other what each run has left without it."""
    of_runs = [verdicts(run, named=len(runs) > 1) for run in runs]
    return [sentence for of_stream in zip_longest(*of_runs) for sentence in of_stream if sentence]


def verdicts(run: Run, *, named: bool = False) -> list[str]:
    """Say what is left without each stream, and on how many samples.

    Args:
        run: what was measured.
        named: whether the run is named in each sentence, where there are several.

    Returns:
        A sentence for each stream; none of a network with one stream.
    """
    who = run.name if named else "it"
    if not run.subsets:
        return [
            f"{'' if not named else f'{run.name}: '}No sample has every stream, so subsets cannot "
            "be compared on the same samples."
        ]
    (everything, whole), *_ = run.subsets.items()
    names = everything.split(" + ")
    sentences = []
    for stream in names if len(names) > 1 else []:
        left = run.subsets[" + ".join(name for name in names if name != stream)]
        sentences.append(f"Without {stream}, {who} {_kept(run, left, whole)}.")
    return sentences


def _kept(run: Run, left: Measured, whole: Measured) -> str:
    metric, quantity = first_quantity([run])
    samples = f"on the same {whole['num_samples']:.0f} samples"
    chance = whole.get(f"{metric}_chance")
    guessed = "" if chance is None else f"; chance {quantity.text(chance)}"
    with_all, without = quantity.text(whole[metric]), quantity.text(left[metric])
    if quantity.is_share and run.task.higher_is_better and whole[metric] > 0:
        kept = f"{quantity.text(left[metric] / whole[metric])} of the {quantity.title}"
        values = f"({without} of {with_all}{guessed})"
        return f"keeps {kept} that it has with everything, {samples} {values}"
    return f"has a {quantity.title} of {without} instead of {with_all}, {samples}{guessed}"


@dataclass(frozen=True)
class _Speed:
    """How fast a run trained: samples per second of all its processes, by epoch."""

    name: str
    num_processes: int
    first: float
    median: float


def _speeds(runs: Sequence[Run]) -> list[_Speed]:
    """List the runs whose histories say so; an epoch resumed after its last batch does not.

    The first epoch is slower than the others by what is set up in it.
    """
    speeds = []
    for run in runs:
        epochs = [v for v in run.history.get("train_samples_per_second", []) if math.isfinite(v)]
        if epochs:
            number = int(run.history["num_processes"][-1])
            speeds.append(_Speed(run.name, number, epochs[0], median(epochs)))
    return speeds


def _numbers(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Gather what each file of numbers holds, by the runs' names; an empty one is not written."""
    files: dict[str, dict[str, Any]] = {
        "subsets": {run.name: asdict(run.subsets) for run in runs},
        "conditions": {run.name: asdict(r) for run in runs if (r := run.robustness) is not None},
        "costs": {
            run.name: {**asdict(run.cost), "training_s": run.training_s}
            for run in runs
            if run.cost is not None
        },
    }
    return {name: values for name, values in files.items() if values}


def _figures(runs: Sequence[Run]) -> dict[str, Figure]:
    figures = {"subsets": plot_subsets(runs)}
    if any(run.robustness for run in runs):
        figures["conditions"] = plot_conditions(runs)
    if any(run.history for run in runs):
        figures["curves"] = plot_curves(runs)
    if any(run.cost for run in runs):
        figures["costs"] = plot_costs(runs)
    return figures


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("manystream.evaluation", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.jinja")
