"""What a run leaves to look at: figures, and one HTML page that holds them all."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from manystream.training.cost import StepCost
from manystream.training.history import History
from manystream.training.plots import all_subsets, plot_costs, plot_curves, plot_subsets
from manystream.training.strict_json import strict_json


@dataclass(frozen=True)
class Run:
    """A trained network's record.

    Attributes:
        name: what the run is called beside others.
        history: what happened in each epoch.
        subsets: measurements for every subset of streams, as ``evaluate_subsets`` gives them.
        config: what the run was told, plain values.
        cost: what a training step of it costs, if measured.
    """

    name: str
    history: History
    subsets: Mapping[str, Mapping[str, float]]
    config: Mapping[str, Any]
    cost: StepCost | None = None


def write_report(runs: Sequence[Run], folder: Path, title: str) -> Path:
    """Write figures, numbers and a self-contained ``report.html`` that shows them.

    The figures are ``curves.png``, ``subsets.png`` and, where steps were measured, ``costs.png``;
    the numbers are in ``subsets.json`` and ``costs.json``.

    Args:
        runs: one run, or several of the same streams to compare.
        folder: where to write; made if it does not exist.
        title: headline of the page.

    Returns:
        Path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"curves": plot_curves(runs), "subsets": plot_subsets(runs)}
    costs = {run.name: asdict(run.cost) for run in runs if run.cost is not None}
    if costs:
        figures["costs"] = plot_costs(runs)
        (folder / "costs.json").write_text(strict_json(costs) + "\n")
    images = {name: _png(figure) for name, figure in figures.items()}
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
    measured = {run.name: run.subsets for run in runs}
    (folder / "subsets.json").write_text(strict_json(measured) + "\n")
    page = folder / "report.html"
    encoded = {name: base64.b64encode(image).decode() for name, image in images.items()}
    rendered = _template().render(title=title, runs=runs, subsets=all_subsets(runs), images=encoded)
    page.write_text(rendered, encoding="utf-8")
    return page


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("manystream.training", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.jinja")
