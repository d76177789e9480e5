"""A choice that there is not, and a name that there is not, are refused with the nearest."""

from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

import manystream as ms
from manystream.cli.options import CompareOptions, PredictOptions, TrainOptions
from manystream.data.options import DataOptions
from manystream.training import FitOptions
from tests.training.builders import CPU, tiny_model, tuple_batches

STREAMS = {"rgb": 3, "depth": 1}


@pytest.mark.parametrize(
    ("options", "name", "value", "message"),
    [
        (DataOptions, "on_error", "rasie", "expected one of raise, skip; did you mean raise?"),
        (DataOptions, "format", "foldr", "nyu, manifest, prepared; did you mean folder?"),
        (DataOptions, "depth", "row", "expected one of filled, raw; did you mean raw?"),
        (DataOptions, "nyu_classes", 12, "expected one of 10, 27"),
        (DataOptions, "batch_size", "autp", "expected one of auto, int; did you mean auto?"),
        (DataOptions, "augment", "no", "expected one of True, False"),
        (FitOptions, "cuda_graphs", "yes", "expected one of auto, on, off"),
        (FitOptions, "cuda_graphs", True, "expected one of auto, on, off"),
        (
            FitOptions,
            "precision",
            "fp16",
            "expected one of 32-true, tf32, bf16-mixed, 16-mixed, 64",
        ),
        (FitOptions, "precision", "bf16-mxed", "did you mean bf16-mixed?"),
        (FitOptions, "precision", None, "expected one of 32-true"),
        (FitOptions, "precision", ["tf32"], "expected one of 32-true"),
        (FitOptions, "schedule", "cosin", "did you mean cosine?"),
        (FitOptions, "loss", "focl", "expected one of cross_entropy, focal; did you mean focal?"),
        (FitOptions, "class_weights", "balance", "did you mean balanced?"),
        (FitOptions, "modality_dropout_schedule", "rampup", "did you mean ramp_up?"),
        (FitOptions, "restore_best", "false", "expected one of True, False"),
    ],
)
def test_a_misspelt_choice(options, name, value, message):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        options(**{name: value})
    assert f"{name} is {value!r}; " in str(refused.value)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (DataOptions, {"kinds": {"d": "dpeth"}}, "kinds of d is 'dpeth'; .* did you mean depth?"),
        (DataOptions, {"units": {"d": "km"}}, "units of d is 'km'; expected one of m, dm, cm, mm"),
        (PredictOptions, {"on_error": "skipp"}, "on_error is 'skipp'; .* did you mean skip?"),
        (PredictOptions, {"units": {"d": "mmm"}}, "units of d is 'mmm'; .* did you mean mm?"),
    ],
)
def test_a_misspelt_choice_of_others(options, changes, message):
    needed = {"model": "m", "folder": "f"} if options is PredictOptions else {}
    with pytest.raises(ValueError, match=message):
        options(**needed, **changes)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (DataOptions, {"batch_size": "auto", "format": None, "nyu_classes": 27}),
        (DataOptions, {"kinds": {"ir": "other"}, "units": {"depth": "mm"}, "streams": ["rgb"]}),
        (FitOptions, {"class_weights": [1.0, 2.0], "ema_decay": None, "progress": False}),
        (FitOptions, {"class_weights": (1.0, 2.0), "modality_dropout": 0}),
    ],
)
def test_what_is_a_choice_is_taken(options, changes):
    made = options(**changes)
    assert {name: getattr(made, name) for name in changes} == changes


def test_a_misspelt_metric_of_the_task():
    with pytest.raises(ValueError, match=r"monitor is 'val_los'; .* did you mean val_loss\?"):
        FitOptions(monitor="val_los").monitored(ms.tasks.Classification(2))


def has_choices(hint) -> bool:
    return get_origin(hint) is Literal or any(map(has_choices, get_args(hint)))


def test_no_field_with_choices_is_left_out():
    groups = [DataOptions, FitOptions, type(TrainOptions().model), type(CompareOptions().model)]
    for group in groups:
        hints = get_type_hints(group)
        chosen = [f.name for f in fields(group) if has_choices(hints[f.name])]
        assert chosen
        for name in chosen:
            nested = (
                {"rgb": "nothing"} if get_origin(get_args(hints[name])[0]) is dict else "nothing"
            )
            with pytest.raises(ValueError, match=f"{name} .*is 'nothing'; expected one of "):
                group(**{name: nested})


def test_a_misspelt_option_of_fit():
    model, batches = tiny_model(), tuple_batches(8)
    with pytest.raises(TypeError, match=r"fit\(\) has no option 'epohcs'; did you mean epochs\?"):
        model.fit(batches, epohcs=4)
    with pytest.raises(TypeError, match=r"fit\(\) has no option 'epohcs'; did you mean epochs\?"):
        model.fit(batches, options=FitOptions(**CPU), epohcs=4)
    with pytest.raises(TypeError, match=r"fit\(\) has no option 'outdir'; did you mean out_dir\?"):
        model.fit(batches, outdir="runs")
    with pytest.raises(
        TypeError, match=r"find_batch_size\(\) has no option 'largst'; did you mean l"
    ):
        model.find_batch_size(batches, largst=4)
    with pytest.raises(TypeError, match=r"fit\(\) has no option 'zzz'$"):
        model.fit(batches, zzz=4)


@pytest.mark.parametrize("given", [True, "resnet18.pth", ["rgb"]])
def test_pretrained_that_is_no_mapping(given):
    with pytest.raises(ValueError, match=r"pretrained is .*; expected weights by stream, for exam"):
        ms.create_model(streams=STREAMS, num_classes=2, width=0.0625, pretrained=given)


def test_a_misspelt_argument_of_create_model():
    for wrong, nearest in (("pretraned", "pretrained"), ("widht", "width"), ("memroy", "memory")):
        with pytest.raises(
            TypeError, match=rf"create_model\(\) has no option '{wrong}'; did you mean {nearest}\?"
        ):
            ms.create_model(streams=STREAMS, num_classes=2, **{wrong: 1})


def test_a_misspelt_value_of_create_model():
    for name, value, nearest in (("family", "li_net_3", "li_net3"),):
        with pytest.raises(ValueError, match=rf"{value}.* did you mean {nearest}\?"):
            ms.create_model(streams=STREAMS, num_classes=2, width=0.0625, **{name: value})
    with pytest.raises(ValueError, match=r"'rbg'.* did you mean rgb\?"):
        ms.create_model(streams=STREAMS, num_classes=2, width=0.0625, pretrained={"rbg": {}})
