"""`manystream train`: train, measure every subset of streams, write everything into one folder."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from manystream.cli.batches import load_training_data
from manystream.cli.memory import check_can_size, fill_memory
from manystream.cli.options import ModelOptions, TrainOptions
from manystream.cli.output import console, print_classes, print_subsets, say
from manystream.cli.run_config import (
    check_same_config,
    command_to_resume,
    config_of,
    folder_of,
    read_config,
    write_config,
)
from manystream.evaluation import ClassTable
from manystream.evaluation.plots import plot_confusion
from manystream.evaluation.report import Run, write_report
from manystream.evaluation.strict_json import strict_json
from manystream.model import StreamModel, create_model
from manystream.models.families import has_batch_norm
from manystream.tasks import Classification
from manystream.training.callbacks.loss_guard import NonFiniteLossError
from manystream.training.distributed import first_to_start
from manystream.training.fit import check_against_network, check_fit
from manystream.training.sigterm import Terminated, sigterm_handled

MODEL_FILE = "model.safetensors"


def train(options: TrainOptions) -> None:
    """Train a network, then print and write how well it does."""
    first = first_to_start()
    console.quiet = not first
    out = folder_of(options, first=first)
    started_with = read_config(out) if options.resume else None
    if started_with is not None and options.data.batch_size == "auto":
        options.data.batch_size = started_with["data"]["batch_size"]
    find_size = options.data.batch_size == "auto"
    if find_size:
        check_can_size(options.fit)
    _check_model(options.model)
    wanted = replace(options.data, batch_size=1) if find_size else options.data
    data = load_training_data(wanted, options.fit)
    check_fit(options.fit, list(data.in_channels))
    if options.model.subset_norms is None:
        sees_subsets = options.fit.make_views(list(data.in_channels)) is not None
        norms = sees_subsets and has_batch_norm(options.model.family)
        options.model = replace(options.model, subset_norms=norms)
    torch.manual_seed(options.fit.seed)
    model = create_model(
        **asdict(options.model),
        streams=data.in_channels,
        task=Classification(classes=data.classes),
    )
    model.preprocessing, model.held_out = data.preprocessing.to_dict(), data.held_out
    check_against_network(options.fit, model.network, model.task, data.train, has_validation=True)
    if find_size:
        options.data.batch_size = fill_memory(model, data, options.fit)
    config = config_of(options)
    if started_with is not None:
        check_same_config(config, started_with)
    elif first:
        write_config(out, config)
    with _weights_kept(model, out if first else None):
        history = model.fit(data.train, data.val, options.fit, out_dir=out, resume=options.resume)
    if not first:
        return
    subsets = model.evaluate_subsets(data.val, accelerator=options.fit.accelerator)
    print_subsets({options.model.family: subsets}, model.task.evaluation_quantities())
    classes = model.evaluate_classes(data.val, accelerator=options.fit.accelerator)
    print_classes(classes)
    _write_classes(classes, out)
    run = Run(options.model.family, model.task, history, subsets, config)
    say(f"report: {write_report([run], out, f'manystream: {out.name}')}")


def _check_model(options: ModelOptions) -> None:
    """Refuse a network that cannot be built, before the data are looked at.

    Raises:
        ValueError: if there is no such network.
    """
    # Weights, and what norms there are, depend on streams that are yet unknown.
    norms = options.subset_norms or False
    size = asdict(replace(options, pretrained=None, subset_norms=norms))
    with torch.device("meta"):  # takes no memory
        create_model(**size, streams=[3], num_classes=2)


def _write_classes(table: ClassTable, folder: Path) -> None:
    (folder / "classes.json").write_text(strict_json(table.to_dict()) + "\n")
    plot_confusion(table).savefig(folder / "confusion.png", dpi=120)


@contextmanager
def _weights_kept(model: StreamModel, out: Path | None) -> Iterator[None]:
    """Save the model when training ends, or a signal ends it; else there are checkpoints."""
    try:
        yield
    except NonFiniteLossError:
        say(f"the history and the checkpoints are in {out}")
        raise
    except (KeyboardInterrupt, Terminated):
        # As soon as another process has ended, torchrun passes SIGTERM to this one.
        with sigterm_handled(signal.SIG_IGN):
            _save(model, out)
            if out is not None:
                say(f"go on with: {command_to_resume(out)}")
        raise
    _save(model, out)


def _save(model: StreamModel, out: Path | None) -> None:
    if out is not None:
        model.save(out / MODEL_FILE)
        say(f"weights so far, the history and the checkpoints are in {out}")
