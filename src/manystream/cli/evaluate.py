"""`manystream evaluate`: measure a trained model on a split, whole and with failing sensors."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch.utils.data import DataLoader

from manystream.cli.batches import evaluation_loader, samples_to_show
from manystream.cli.options import EvaluateOptions
from manystream.cli.output import (
    fresh_path,
    plain,
    print_curves,
    print_subsets,
    print_table,
    say,
)
from manystream.data import loader as read_few
from manystream.data.loader import StreamLoader
from manystream.evaluation import Showcase
from manystream.evaluation.report import Run, write_report
from manystream.evaluation.tables import measured_table
from manystream.model import StreamModel, load_model


def evaluate(options: EvaluateOptions) -> None:
    """Measure under every condition and write a report, or print what is left of some streams."""
    model = load_model(options.model)
    if options.blanked_streams is None:
        out = fresh_path(options.out, "evaluate")
        loader = evaluation_loader(model, options.model, options.data)
        robustness = model.evaluate_conditions(loader, options.conditions, progress=True)
        quantities = model.task.evaluation_quantities()
        print_subsets({str(options.model): robustness.subsets}, quantities)
        print_curves(robustness.curves(), quantities[robustness.metric])
        config = plain(asdict(options))
        name = getattr(model.network, "layout", {}).get("family", "network")
        showcase = _showcase(model, loader)
        run = Run(
            name, model.task, {}, robustness.subsets, config, None, robustness, showcase=showcase
        )
        say(f"report: {write_report([run], out, f'manystream: {options.model} evaluated')}")
    else:
        loader = evaluation_loader(model, options.model, options.data)
        _print_left(model, loader, options.blanked_streams)


def _showcase(model: StreamModel, loader: StreamLoader) -> Showcase:
    """Ask about a few samples of every class."""
    dataset: Any = loader.dataset
    few = dataset.source.select(samples_to_show(dataset.source))
    return model.show_samples(read_few(few, dataset.preprocessing, num_workers=0))


def _print_left(model: StreamModel, loader: DataLoader[Any], blanked: list[str]) -> None:
    """Measure the streams that are not taken away."""
    left = " + ".join(n for n in model.stream_names if n not in blanked)
    measured = model.evaluate(loader, blanked_streams=blanked, progress=True)
    quantities = model.task.evaluation_quantities()
    table = measured_table("samples that have any of these", {left: measured}, quantities)
    print_table(table.columns, table.rows, title=table.title)
