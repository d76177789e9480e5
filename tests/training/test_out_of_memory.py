import gc
import re
import weakref

import pytest
import torch
from torchmetrics import MeanAbsoluteError, MetricCollection

from manystream.memory import measure
from manystream.tasks import StepLoss, Task
from manystream.training.out_of_memory import (
    Need,
    StepForm,
    StepNeeds,
    StepOutOfMemory,
    advise,
    measure_needs,
)
from tests.training.builders import CPU, tiny_model, tuple_batches

MIB = 2**20


def needs_of(**per_sample: float) -> StepNeeds:
    """What steps take, in MiB a sample by mode; weights and optimizer take 10 MiB."""
    peak = {mode: Need(0, size * MIB) for mode, size in per_sample.items()}
    return StepNeeds(peak, {"raw output": Need(0, MIB)}, {"conv1": Need(0, MIB)}, 10 * MIB)


def step(batch_size: int, **changes) -> StepForm:
    return StepForm(batch_size, (32, 32), torch.arange(3), **changes)


def out_of_memory_above(model, batch_size, modes=("fast", "balanced", "lean", "min")):
    """Have a model's larger steps fail as they would on a full GPU."""

    def fail(module, inputs):
        if len(inputs[0]) > batch_size and module.memory in modes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return model.network.register_forward_pre_hook(fail)


@pytest.mark.parametrize(("mode", "dtype"), [("balanced", None), ("lean", torch.bfloat16)])
def test_needs_at_a_size_are_those_that_are_measured_there(mode, dtype):
    model = tiny_model(memory=mode)
    network, loss = model.network, StepLoss(model.task.loss)
    needs = measure_needs(network, loss, step(16), dtype)
    report = measure(network, step(16).noise(network), dtype)
    assert next(iter(needs.peak)) == mode
    assert needs.peak[mode].at(16) == pytest.approx(report.peak_allocated_bytes, rel=0.02)
    for told, found in (
        (needs.kept_by_kind, report.kept_by_kind),
        (needs.kept_by_layer, report.kept_by_layer),
    ):
        assert {name: need.at(16) for name, need in told.items()} == pytest.approx(found, rel=0.02)


def test_a_leaner_mode_is_the_first_advice():
    needs = needs_of(fast=4, balanced=3, lean=2, min=1)
    advice = advise(needs, step(64), available_bytes=10 * MIB + 200 * MIB)
    assert advice.changes() == {"memory": "lean"}
    best, other = advice.settings
    assert best.need_bytes == 138 * MIB
    assert (other.memory, other.batch_size) == ("fast", 32)


def test_the_leanest_mode_takes_the_largest_batch_where_none_takes_it_whole():
    needs = needs_of(fast=4, balanced=3, lean=2, min=1)
    advice = advise(needs, step(64), available_bytes=10 * MIB + 60 * MIB)
    assert advice.changes() == {"memory": "min", "batch_size": 32}
    assert [(s.memory, s.batch_size) for s in advice.settings] == [("min", 32), ("fast", 8)]


def test_no_advice_takes_more_than_what_failed():
    needs = needs_of(fast=4, balanced=3.9, lean=3.8, min=3)
    advice = advise(needs, step(64), available_bytes=None)
    assert advice.changes() == {"memory": "min"}
    assert advise(needs, step(64), 10**12) == advice


def test_a_network_in_the_leanest_mode_can_only_take_fewer_samples():
    advice = advise(needs_of(min=4), step(48), available_bytes=10 * MIB + 100 * MIB)
    assert advice.changes() == {"batch_size": 16}


def test_where_nothing_fits_it_says_so():
    advice = advise(needs_of(lean=4, min=3), step(2), available_bytes=11 * MIB)
    assert advice.changes() == {}
    assert "no memory mode and batch size would fit" in str(advice)


def test_what_needs_more_memory_than_was_counted_is_turned_off():
    advice = advise(needs_of(fast=4, min=1), step(64, in_graphs=True), 10**9)
    assert advice.changes() == {"memory": "min", "cuda_graphs": "off"}
    assert "without CUDA graphs" in str(advice)
    assert str(StepOutOfMemory(advice)).endswith(
        'try: model.memory = "min", fit(cuda_graphs="off")'
    )


def test_training_that_runs_out_of_memory_says_what_kept_it_and_what_fits():
    model, batches = tiny_model(), tuple_batches(24)
    out_of_memory_above(model, 7, modes=["fast"])
    with pytest.raises(StepOutOfMemory) as caught:
        model.fit(batches, epochs=1, **CPU)
    message = str(caught.value)
    assert "a training step of 8 samples of 32x32 pixels in memory mode fast" in message
    assert re.search(r"raw output \d+ MiB", message)
    assert "conv1" in message or "bn1" in message
    changes = caught.value.advice.changes()
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
    failed, *_ = caught.value.advice.needs.peak.values()
    for setting in caught.value.advice.settings:
        tried = tiny_model(memory=setting.memory).network
        peak = measure(tried, step(setting.batch_size).noise(tried)).peak_allocated_bytes
        assert peak < failed.at(16)


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
    model.memory = caught.value.advice.changes()["memory"]
    assert model.fit(batches, epochs=1, **CPU).num_epochs == 1
