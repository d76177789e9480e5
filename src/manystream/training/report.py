"""What a run leaves to look at: figures, and one HTML page that holds them all."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from manystream.training.cost import StepCost
from manystream.training.history import History
from manystream.training.plots import plot_curves, plot_subsets
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
    """Write ``curves.png``, ``subsets.png``, ``subsets.json`` and a self-contained ``report.html``.

    Args:
        runs: one run, or several of the same streams to compare.
        folder: where to write; made if it does not exist.
        title: headline of the page.

    Returns:
        Path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"curves": plot_curves(runs), "subsets": plot_subsets(runs)}
    images = {name: _png(figure) for name, figure in figures.items()}
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
    measured = {run.name: run.subsets for run in runs}
    (folder / "subsets.json").write_text(strict_json(measured) + "\n")
    page = folder / "report.html"
    encoded = {name: base64.b64encode(image).decode() for name, image in images.items()}
    page.write_text(_template().render(title=title, runs=runs, images=encoded), encoding="utf-8")
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
