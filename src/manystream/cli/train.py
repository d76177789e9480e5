"""`manystream train`: train, measure every subset of streams, write everything into one folder."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
import yaml

from manystream.classifier import create_model
from manystream.cli.options import TrainOptions
from manystream.cli.output import fresh_path, plain, print_subsets, say
from manystream.data.loaders import training_data
from manystream.training import evaluate_subsets
from manystream.training.fit import check_fit
from manystream.training.report import Run, write_report

MODEL_FILE = "model.safetensors"


def train(options: TrainOptions) -> None:
    """Run one training."""
    out = fresh_path(options.out)
    data = training_data(options.data, seed=options.fit.seed, report=say)
    torch.manual_seed(options.fit.seed)
    model = create_model(
        **asdict(options.model), streams=data.in_channels, num_classes=len(data.classes)
    )
    model.classes, model.preprocessing = data.classes, data.preprocessing.to_dict()
    check_fit(options.fit, model.num_streams)
    config = _config(options)
    out.mkdir(parents=True)
    (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    try:
        history = model.fit(data.train, data.val, options.fit, out_dir=out)
    finally:
        model.save(out / MODEL_FILE)
        say(f"weights so far, the history and the checkpoint are in {out}")
    subsets = evaluate_subsets(model, data.val, accelerator=options.fit.accelerator)
    print_subsets({options.model.family: subsets})
    run = Run(options.model.family, history, subsets, config)
    say(f"report: {write_report([run], out, f'manystream: {out.name}')}")


def _config(options: TrainOptions) -> dict[str, Any]:
    """What was asked for, but for the folder, so that it can be asked for again."""
    config: dict[str, Any] = plain(asdict(options))
    del config["out"]
    return config
