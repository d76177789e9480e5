"""The reference configurations parse and build what they say."""

from dataclasses import asdict
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import yaml

from manystream.cli.main import build_parser
from manystream.cli.options import ModelOptions, TrainOptions
from manystream.dropout import Schedule
from manystream.model import create_model
from manystream.models import MemoryMode
from manystream.training import FitOptions

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def options_of(path, *words) -> TrainOptions:
    parser = build_parser("train")
    values = parser.instantiate(parser.parse_args(["train", "--config", str(path), *words]))
    given = values["train"].as_dict()
    given.pop("config")
    return TrainOptions(**given)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_is_taken_as_it_is_written(path):
    options = options_of(path)
    for group, values in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        taken = asdict(getattr(options, group))
        assert {name: taken[name] for name in values} == values
    with torch.device("meta"):
        model = create_model(
            **asdict(options.model), streams={"rgb": 3, "depth": 1}, num_classes=19
        )
    options.fit.make_dropout(model.network.num_streams)


def test_the_published_figures_of_sun_rgbd():
    options = options_of(CONFIGS[0].with_name("sun_rgbd_li_net3_r18.yaml"))
    fit, model = options.fit, options.model
    assert (model.family, model.depth, model.width, model.dropout) == ("li_net3", 18, 0.75, 0.28)
    assert (options.data.format, options.data.batch_size) == ("sun_rgbd", 64)
    assert (fit.optimizer, fit.learning_rate, fit.weight_decay) == ("adamw", 1.53e-4, 6.74e-5)
    assert (fit.schedule, fit.epochs, fit.final_learning_rate) == ("cosine", 80, 3.27e-6)
    assert (fit.gradient_clip, fit.label_smoothing) == (1.0, 0.1)
    assert fit.learning_rate_multipliers == {"stem": 21}
    dropout = fit.make_dropout(2)
    assert [round(dropout.probability(e), 3) for e in (0, 14, 29, 79)] == [0.016, 0.24, 0.48, 0.48]


def test_the_widths_are_three_quarters():
    options = options_of(CONFIGS[0].with_name("sun_rgbd_li_net3_r18.yaml"))
    with torch.device("meta"):
        model = create_model(
            **asdict(options.model), streams={"rgb": 3, "depth": 1}, num_classes=19
        )
    assert model.network.conv1.streams[0].weight.shape == (48, 3, 7, 7)
    assert model.network.fc.weight.shape == (19, 384)


def test_a_word_overrides_a_configuration():
    options = options_of(CONFIGS[0], "--model.family", "li_net3_soma", "--fit.epochs", "2")
    assert (options.model.family, options.fit.epochs) == ("li_net3_soma", 2)
    assert options.fit.learning_rate == 1.53e-4


@pytest.mark.parametrize(
    ("options", "name", "choices"),
    [
        (ModelOptions, "memory", MemoryMode),
        (FitOptions, "modality_dropout_schedule", Schedule),
    ],
)
def test_options_have_the_choices_of_the_library(options, name, choices):
    """They are written out twice, since options are read before torch is loaded."""
    assert get_args(get_type_hints(options)[name]) == get_args(choices)
