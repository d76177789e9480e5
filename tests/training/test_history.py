import json
import math
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger

from manystream.training import history as history_module
from manystream.training.history import History, check_loggers, make_loggers
from tests.training.builders import CPU, tiny_model, tuple_batches


def strict(path: Path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_an_entry_per_epoch():
    history = History()
    assert history.num_epochs == 0
    history.append({"train_loss": 2.0})
    history.append({"train_loss": 1.0, "val_loss": 3.0})
    history.append({"train_loss": 0.5})
    assert list(history) == ["train_loss", "val_loss"]
    assert history["train_loss"] == [2.0, 1.0, 0.5]
    assert history["val_loss"] == pytest.approx([math.nan, 3.0, math.nan], nan_ok=True)
    assert history.num_epochs == 3


def test_what_is_not_finite_is_null_on_disk(tmp_path):
    path = tmp_path / "history.json"
    history = History(train_loss=[1.5, math.nan, math.inf, -math.inf])
    history.save(path)
    assert strict(path) == {"train_loss": [1.5, None, None, None]}
    assert math.isnan(history["train_loss"][1])


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "history.json"
    History(train_loss=[1.0]).save(path)

    def fill_the_disk(self, text):
        with self.open("w") as file:
            file.write(text[:5])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(OSError, match="no space left"):
        History(train_loss=[1.0, 2.0]).save(path)
    assert strict(path) == {"train_loss": [1.0]}


def test_nothing_else_is_left_behind(tmp_path):
    for epochs in (1, 2):
        History(train_loss=[1.0] * epochs).save(tmp_path / "history.json")
    assert [p.name for p in tmp_path.iterdir()] == ["history.json"]
    assert strict(tmp_path / "history.json") == {"train_loss": [1.0, 1.0]}


class Clock:
    """Stands still, but while something reads."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


class Slow:
    """Batches that take their time."""

    def __init__(self, batches, clock, seconds):
        self.batches, self.clock, self.seconds = batches, clock, seconds

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            self.clock.seconds += self.seconds
            yield batch


def test_training_is_timed_and_validation_is_not(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(history_module, "perf_counter", clock)
    history = tiny_model().fit(
        Slow(tuple_batches(20), clock, 0.5),
        Slow(tuple_batches(16), clock, 100.0),
        epochs=3,
        out_dir=tmp_path,
        **CPU,
    )
    assert history["train_samples_per_second"] == pytest.approx([20 / 1.5] * 3)
    assert history["num_processes"] == [1, 1, 1]
    assert json.loads((tmp_path / "history.json").read_text()) == history
    logged = (tmp_path / "logs/metrics.csv").read_text()
    assert "train_samples_per_second" in logged.splitlines()[0]


def test_an_epoch_that_is_entered_in_its_middle_counts_from_there(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(history_module, "perf_counter", clock)
    batches = tuple_batches(24)

    def train(**changes):
        options = {"epochs": 1, "checkpoint_every_steps": 1, "out_dir": tmp_path, **CPU}
        return model.fit(Slow(batches, clock, 0.5), **{**options, **changes})

    model, seen = tiny_model(), []

    def stop(*_):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    hook = model.network.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        train()
    hook.remove()
    history = train(resume=True)
    # Two batches are read again, but not trained on.
    assert history["train_samples_per_second"] == pytest.approx([8 / 1.5])


def test_names_are_enough(tmp_path):
    first, second = make_loggers(["csv", "tensorboard"], tmp_path)
    assert first.log_dir == second.log_dir == str(tmp_path / "logs")


def test_another_of_lightnings_with_arguments(tmp_path):
    (logger,) = make_loggers({"CSVLogger": {"name": "mine", "version": 7}}, tmp_path)
    assert isinstance(logger, CSVLogger)
    assert logger.log_dir == str(tmp_path / "mine/version_7")


def test_a_run_logs_where_it_was_told_to(tmp_path):
    loggers = {"csv": {"version": "numbers"}}
    tiny_model().fit(tuple_batches(8), epochs=1, out_dir=tmp_path, loggers=loggers, **CPU)
    assert "train_loss" in (tmp_path / "numbers/metrics.csv").read_text()
    assert not list(tmp_path.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("name", ["wandb", "Logger", "logger"])
def test_a_logger_that_there_is_not(name):
    with pytest.raises(ValueError, match=rf"unknown logger '{name}'; expected one of csv, ten"):
        check_loggers([name])


def test_arguments_that_it_does_not_take(tmp_path):
    with pytest.raises(ValueError, match=r"logger 'csv' with arguments .*colour"):
        make_loggers({"csv": {"colour": "red"}}, tmp_path)


def test_a_learning_rate_of_numpy_is_written_down(tmp_path):
    options = {"epochs": 1, "learning_rate": np.float32(0.01), **CPU}
    tiny_model().fit(tuple_batches(8), out_dir=tmp_path, **options)
    assert strict(tmp_path / "history.json")["learning_rate"] == [pytest.approx(0.01)]
