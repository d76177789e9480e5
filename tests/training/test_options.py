from dataclasses import asdict, fields, replace
from typing import get_args, get_type_hints

import pytest
from torchmetrics import MeanAbsoluteError, MetricCollection, R2Score

from manystream.tasks import Classification, Task
from manystream.training import FitOptions
from tests.training.builders import CPU, easy_samples, tiny_model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": None}, "epochs is None; expected at least 1"),
        ({"epochs": "3"}, "epochs is 3; expected at least 1"),
        ({"learning_rate": None}, "learning_rate is None; expected more than 0"),
        ({"label_smoothing": None}, r"label_smoothing is None; expected \[0, 1\)"),
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


class Age(Task):
    """A task without accuracies, whose metrics say by themselves what is better."""

    name, num_outputs = "age in years", 1
    primary_metric, higher_is_better = "error", False

    def loss(self, output, target):
        return (output[:, 0] - target).square()

    def predict(self, output):
        return output[:, 0]

    def metrics(self):
        return MetricCollection({"error": MeanAbsoluteError(), "r2": R2Score()})


@pytest.mark.parametrize(
    ("monitor", "task", "name", "mode"),
    [
        (None, Classification(3), "val_mean_class_accuracy", "max"),
        ("train_accuracy", Classification(3), "train_accuracy", "max"),
        ("val_loss", Classification(3), "val_loss", "min"),
        (None, Age(), "val_error", "min"),
        ("train_error", Age(), "train_error", "min"),
        ("val_r2", Age(), "val_r2", "max"),
        ("train_loss", Age(), "train_loss", "min"),
    ],
)
def test_what_is_watched_is_the_tasks(monitor, task, name, mode):
    assert FitOptions(monitor=monitor).monitored(task) == (name, mode)


def test_what_the_task_does_not_measure_is_not_watched():
    with pytest.raises(ValueError, match="expected one of val_error, val_r2, val_loss, train_err"):
        FitOptions(monitor="val_accuracy").monitored(Age())


def test_the_best_epoch_of_a_task_without_accuracies():
    rgb, depth, target = (part.split(8) for part in easy_samples(24))
    batches = [(r, d, t.float()) for r, d, t in zip(rgb, depth, target, strict=True)]
    # What is learned is wrong there, so that each epoch is worse than the one before.
    val = [(r, d, -9 - t) for r, d, t in batches]
    model = tiny_model(task=Age())
    options = {"epochs": 4, "learning_rate": 0.01, "restore_best": True, **CPU}
    errors = model.fit(batches, val, early_stopping_patience=2, **options)["val_error"]
    assert len(errors) == 3
    assert errors == sorted(errors)
    assert model.evaluate(val, **CPU)["error"] == pytest.approx(errors[0])
