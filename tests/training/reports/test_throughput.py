import json

import pytest

from manystream.training.reports import throughput
from tests.training.builders import CPU, tiny_model, tuple_batches


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
    monkeypatch.setattr(throughput, "perf_counter", clock)
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
    monkeypatch.setattr(throughput, "perf_counter", clock)
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
