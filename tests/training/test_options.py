from dataclasses import asdict, fields, replace
from typing import get_args, get_type_hints

import pytest

from manystream.training import FitOptions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected more than 0"),
        ({"gradient_clip": -1.0}, "gradient_clip is -1.0; expected more than 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; expected 0 or more"),
        ({"warmup_epochs": -1.0}, "warmup_epochs is -1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"modality_dropout_rate": 1.5}, r"rate is 1.5; expected a probability in \[0, 1\]"),
        ({"modality_dropout_rate": [0.9, 0.2]}, "together are at most 1"),
        ({"modality_dropout_rate": [0.9]}, "1 modality dropout rates for 2 streams"),
        (
            {"modality_dropout_schedule": "up"},
            "modality_dropout_schedule is 'up'; expected one of r",
        ),
        ({"modality_dropout_max_blanked": 0}, "max_blanked is 0"),
    ],
)
def test_options_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        FitOptions(**changes)


def test_modality_dropout_is_made_where_it_is_asked_for():
    assert FitOptions().make_dropout(1) is None
    options = FitOptions(
        modality_dropout=True,
        modality_dropout_rate=[0.1, 0.2, 0.3],
        modality_dropout_schedule="ramp_down",
        modality_dropout_start=1,
        modality_dropout_ramp=2,
        modality_dropout_max_blanked=2,
        modality_dropout_stratified=True,
    )
    dropout = options.make_dropout(3)
    assert dropout.rates == (0.1, 0.2, 0.3)
    assert [dropout.probability(e) for e in range(4)] == pytest.approx([1, 0.8, 0.6, 0.6])
    assert (dropout.max_blanked, dropout.stratified) == (2, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modality_dropout_rate", 0.3),
        ("modality_dropout_rate", [0.1, 0.3]),
        ("modality_dropout_schedule", "ramp_down"),
        ("modality_dropout_start", 2),
        ("modality_dropout_ramp", 20),
        ("modality_dropout_max_blanked", 2),
        ("modality_dropout_stratified", True),
    ],
)
def test_what_is_said_of_modality_dropout_that_is_off_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*, but modality_dropout is off") as refused:
        FitOptions(**{name: value})
    assert "set modality_dropout to true" in str(refused.value)
    with pytest.raises(ValueError, match=f"{name} is"):
        replace(FitOptions(), modality_dropout=False, **{name: value})
    assert getattr(FitOptions(modality_dropout=True, **{name: value}), name) == value


def test_all_that_is_said_of_it_is_named():
    with pytest.raises(
        ValueError, match=r"^modality_dropout_rate is 0.4, modality_dropout_ramp is 5, "
    ):
        FitOptions(modality_dropout_rate=0.4, modality_dropout_ramp=5)


@pytest.mark.parametrize("rate", [0.2, 0, 0.0, [0.0, 0.0]])
def test_defaults_and_no_rate_say_nothing(rate):
    # A run's configuration holds every option, and its dropout may be taken away by the rate.
    written = asdict(FitOptions())
    assert FitOptions(**{**written, "modality_dropout_rate": rate}).make_dropout(2) is None
    assert FitOptions(modality_dropout=True, modality_dropout_rate=0.0).make_dropout(2).rate == 0


def test_the_command_line_can_read_every_type():
    hints = get_type_hints(FitOptions.__init__)
    assert set(hints) == {field.name for field in fields(FitOptions)} | {"return"}
    assert get_args(hints["schedule"]) == ("cosine", "step", "one_cycle", "plateau", "constant")
