import gc
import re
import weakref

import pytest
import torch
from torchmetrics import MeanAbsoluteError, MetricCollection

from manystream.memory import measure
from manystream.tasks import StepLoss, Task
from manystream.training import StepOutOfMemory
from manystream.training.out_of_memory import (
    StepForm,
    count_steps,
    explained,
    line_through,
    settings_that_fit,
)
from tests.training.builders import CPU, tiny_model, tuple_batches

MIB = 2**20


def fitting(batch_size, available, **per_sample):
    """Settings that fit into so many MiB beside weights and optimizer, which take 10 MiB.

    A sample takes as many MiB as is given for each mode, and no step takes any besides.
    """
    peaks = {mode: lambda b, mib=mib: round(mib * b * MIB) for mode, mib in per_sample.items()}
    available_bytes = None if available is None else (10 + available) * MIB
    return settings_that_fit(peaks, 10 * MIB, batch_size, available_bytes)


def step(batch_size: int, **changes) -> StepForm:
    return StepForm(batch_size, (32, 32), torch.arange(3), **changes)


def out_of_memory_above(model, batch_size, modes=("fast", "balanced", "lean", "min")):
    """Have a model's larger steps fail as they would on a full GPU."""

    def fail(module, inputs):
        if len(inputs[0]) > batch_size and module.memory in modes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return model.network.register_forward_pre_hook(fail)


@pytest.mark.parametrize(("mode", "dtype"), [("balanced", None), ("lean", torch.bfloat16)])
def test_what_is_counted_at_two_sizes_tells_what_is_measured_at_another(mode, dtype):
    model = tiny_model(memory=mode)
    network, loss = model.network, StepLoss(model.task.loss)
    reports = count_steps(network, loss, step(16), dtype)
    assert list(reports) == ["fast", "balanced", "lean", "min"][{"balanced": 1, "lean": 2}[mode] :]
    (small, large), found = reports[mode], measure(network, step(16).noise(network, 16), dtype)

    def drawn_on(few: dict, many: dict) -> dict:
        return {name: line_through(few.get(name, 0), many[name])(16) for name in many}

    peak = line_through(small.peak_allocated_bytes, large.peak_allocated_bytes)(16)
    assert peak == pytest.approx(found.peak_allocated_bytes, rel=0.02)
    by_kind = drawn_on(small.kept_by_kind, large.kept_by_kind)
    assert by_kind == pytest.approx(found.kept_by_kind, rel=0.02)
    by_layer = drawn_on(small.kept_by_layer, large.kept_by_layer)
    assert by_layer == pytest.approx(found.kept_by_layer, rel=0.02)


def test_a_line_goes_through_both_counts():
    line = line_through(30, 50)
    assert [line(batch_size) for batch_size in (2, 4, 8)] == [30, 50, 90]


@pytest.mark.parametrize(
    ("failed", "available", "per_sample", "expected"),
    [
        pytest.param(
            64,
            200,
            {"fast": 4, "balanced": 3, "lean": 2, "min": 1},
            [("lean", 64, 138), ("fast", 32, 138)],
            id="a leaner mode is the first advice",
        ),
        pytest.param(
            64,
            60,
            {"fast": 4, "balanced": 3, "lean": 2, "min": 1},
            [("min", 32, 42), ("fast", 8, 42)],
            id="the leanest takes the largest batch where none takes it whole",
        ),
        pytest.param(
            64,
            None,
            {"fast": 4, "balanced": 3.9, "lean": 3.8, "min": 3},
            [("min", 64, 202), ("fast", 32, 138)],
            id="nothing takes more than what failed",
        ),
        pytest.param(
            64,
            10**6,
            {"fast": 4, "balanced": 3.9, "lean": 3.8, "min": 3},
            [("min", 64, 202), ("fast", 32, 138)],
            id="whatever memory there seems to be",
        ),
        pytest.param(
            48, 100, {"min": 4}, [("min", 16, 74)], id="the leanest only takes fewer samples"
        ),
        pytest.param(2, 1, {"lean": 4, "min": 3}, [], id="nothing fits"),
    ],
)
def test_what_fits(failed, available, per_sample, expected):
    found = fitting(failed, available, **per_sample)
    assert found == [(mode, size, mib * MIB) for mode, size, mib in expected]


def told(form, settings):
    """What is said of a step in mode ``fast``, of which little was counted."""
    model = tiny_model()
    reports = count_steps(model.network, StepLoss(model.task.loss), form)
    return explained(form, "fast", reports["fast"], settings)


def test_where_nothing_fits_it_says_so():
    error = told(step(2), [])
    assert error.changes == {}
    assert str(error).endswith(
        "no memory mode and batch size would fit; take smaller images or a narrower net"
    )


def test_what_needs_more_memory_than_was_counted_is_turned_off():
    error = told(step(64, in_graphs=True), fitting(64, 1000, fast=4, min=1))
    assert error.changes == {"memory": "min", "cuda_graphs": "off"}
    assert "what would fit, without CUDA graphs, by estimate:" in error.reason
    assert "  memory mode min with batches of 64: 74 MiB in all" in error.reason
    assert str(error).endswith('try: model.memory = "min", fit(cuda_graphs="off")')


def test_training_that_runs_out_of_memory_says_what_kept_it_and_what_fits():
    model, batches = tiny_model(), tuple_batches(24)
    out_of_memory_above(model, 7, modes=["fast"])
    with pytest.raises(StepOutOfMemory) as caught:
        model.fit(batches, epochs=1, **CPU)
    message = str(caught.value)
    assert "a training step of 8 samples of 32x32 pixels in memory mode fast" in message
    assert re.search(r"raw output \d+ MiB", message)
    assert "conv1" in message or "bn1" in message
    changes = caught.value.changes
    assert f'try: model.memory = "{changes["memory"]}"' in message
    model.memory = changes["memory"]
    assert model.fit(batches, epochs=1, **CPU).num_epochs == 1
    assert caught.value.__context__ is None  # which would hold the step's tensors


def test_an_error_that_is_kept_keeps_nothing_of_the_run(monkeypatch):
    seen = []

    class NoStep:
        """A step that does not fit, and holds memory as one with CUDA graphs does."""

        def __init__(self, network, loss, options, trainer):
            seen.extend(map(weakref.ref, (self, trainer)))

        def __call__(self, batch):
            seen.append(weakref.ref(batch))
            raise torch.OutOfMemoryError

    monkeypatch.setattr("manystream.training.module.make_step", NoStep)
    with pytest.raises(StepOutOfMemory) as caught:
        tiny_model().fit(tuple_batches(8), epochs=1, **CPU)
    gc.collect()
    assert caught.tb is not None
    assert [ref() for ref in seen] == [None, None, None]


def test_what_it_advises_is_less_than_what_failed():
    model = tiny_model()
    out_of_memory_above(model, 4)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        model.fit(tuple_batches(16, 16), epochs=1, **CPU)
    failed = peak_of(model.memory, 16)
    assert caught.value.settings
    assert all(peak_of(s.memory, s.batch_size) < failed for s in caught.value.settings)


def peak_of(memory, batch_size):
    tried = tiny_model(memory=memory).network
    return measure(tried, step(batch_size).noise(tried, batch_size)).peak_allocated_bytes


def test_a_step_that_fails_otherwise_is_left_alone():
    model = tiny_model()

    def fail(module, inputs):
        raise RuntimeError("something else")

    model.network.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="something else"):
        model.fit(tuple_batches(8), epochs=1, **CPU)


class Where(Task):
    """A number of every pixel of a map of four by four: a task without classes."""

    name, num_outputs = "where", 16
    primary_metric, higher_is_better = "mae", False

    def loss(self, output, target):
        return (output.unflatten(1, (4, 4)) - target["map"]).square().mean(dim=(1, 2))

    def predict(self, output):
        return output

    def metrics(self):
        return MetricCollection({"mae": MapError()})


class MapError(MeanAbsoluteError):
    def update(self, predictions, target):
        super().update(predictions, target["map"].flatten(1))


def test_it_advises_for_a_task_without_classes():
    batches = [(*images, {"map": torch.rand(8, 4, 4)}) for *images, _ in tuple_batches(8)]
    model = tiny_model(task=Where())
    out_of_memory_above(model, 7, modes=["fast"])
    with pytest.raises(StepOutOfMemory, match="a training step of 8 samples") as caught:
        model.fit(batches, epochs=1, **CPU)
    model.memory = caught.value.changes["memory"]
    assert model.fit(batches, epochs=1, **CPU).num_epochs == 1
