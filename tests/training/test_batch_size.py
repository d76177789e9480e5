import copy
import warnings
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from manystream.training import FitOptions, StepOutOfMemory
from manystream.training.batch_size import largest_that_fits
from manystream.training.module import make_step
from tests.training.builders import CPU, easy_samples, tiny_model, tuple_batches
from tests.training.test_out_of_memory import out_of_memory_above


@given(limit=st.integers(0, 3000), largest=st.integers(1, 3000))
def test_the_search_ends_just_below_the_limit(limit, largest):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= limit

    found = largest_that_fits(fits, largest)
    most = min(limit, largest)
    assert found <= most
    assert most - found <= max(found // 16, 0)
    assert found == largest or limit < largest
    assert max(tried) <= min(2 * max(limit, 1), largest)
    assert len(tried) <= 2 + most.bit_length() + 4


@pytest.mark.parametrize("limit", [1, 5])
def test_real_steps_find_what_fits(limit):
    model = tiny_model()
    out_of_memory_above(model, limit)
    found = model.find_batch_size(tuple_batches(8), FitOptions(**CPU), largest=8)
    assert found == max(int(0.9 * limit), 1)


def warn_above(model, batch_size, reason):
    """Have larger steps be refused a CUDA graph, as a :class:`GraphedStep` says it."""

    def warn(module, inputs):
        if len(inputs[0]) > batch_size:
            warnings.warn(f"no CUDA graph, the step runs eagerly: {reason}", stacklevel=1)

    model.network.register_forward_pre_hook(warn)


def test_a_size_that_leaves_no_room_for_cuda_graphs_is_too_large():
    model = tiny_model()
    warn_above(model, 5, "CUDA out of memory. Tried to allocate 20.00 MiB.")
    assert model.find_batch_size(tuple_batches(8), FitOptions(**CPU), largest=8) == 4


def test_a_step_that_cannot_be_captured_at_any_size_is_eager_in_the_run_too():
    model = tiny_model()
    warn_above(model, 0, "operation not permitted")
    with pytest.warns(UserWarning, match="operation not permitted"):
        assert model.find_batch_size(tuple_batches(8), FitOptions(**CPU), largest=8) == 8


def test_no_try_meets_what_an_earlier_one_held(monkeypatch):
    model, before = tiny_model(), []
    out_of_memory_above(model, 5)

    def watched(network, loss, options, trainer):
        step = make_step(network, loss, options, trainer)
        assert [ref() for ref in before] == [None] * len(before)
        before.extend(map(weakref.ref, (step, trainer)))
        return step

    monkeypatch.setattr("manystream.training.module.make_step", watched)
    model.find_batch_size(tuple_batches(8), FitOptions(**CPU), largest=8)
    assert len(before) == 2 * 6


def test_the_number_of_samples_is_the_most():
    loader = DataLoader(TensorDataset(*easy_samples(3)), batch_size=2)
    assert tiny_model().find_batch_size(loader, **CPU) == 3


def test_each_try_is_a_training_step_of_the_mode_and_precision(monkeypatch):
    model = tiny_model(memory="lean")
    seen = []

    def look(module, inputs):
        (batch,) = inputs
        counts = {len(rows) for rows in batch.streams}
        seen.append((module.training, module.memory, torch.is_autocast_enabled("cpu"), counts))

    model.network.register_forward_pre_hook(look)
    stepped = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *a, **k: stepped.append(1) or step(*a, **k))
    options = {"optimizer": "sgd", "precision": "bf16-mixed", "modality_dropout": True}
    model.find_batch_size(tuple_batches(4), FitOptions(**options, **CPU), largest=2)
    # Of two samples, the last step has one fewer: another shape, as the end of an epoch has.
    assert seen == [(True, "lean", True, {rows}) for rows in (1, 1, 2, 2, 1)]
    assert len(stepped) == 5


def test_a_try_in_double_precision_is_one():
    model, seen = tiny_model(), []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].streams[0]))
    model.find_batch_size(tuple_batches(4), FitOptions(precision="64-true", **CPU), largest=1)
    assert {rows.dtype for rows in seen} == {torch.float64}


def test_it_leaves_no_trace():
    model = tiny_model(dropout=0.2)
    before, training = copy.deepcopy(model.state_dict()), model.training
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    model.find_batch_size(tuple_batches(8), largest=4, **CPU)
    assert torch.rand(1) == expected
    assert model.training is training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_not_even_one_sample_fits():
    model = tiny_model()

    def fail(module, inputs):
        if len(inputs[0]) == 1:  # The advice is counted with more, but not on the device.
            raise torch.OutOfMemoryError

    model.network.register_forward_pre_hook(fail)
    with pytest.raises(StepOutOfMemory, match="a training step of 1 samples of 32x32 pixels"):
        model.find_batch_size(tuple_batches(8), largest=4, **CPU)


def test_what_cannot_be_sized():
    model = tiny_model()
    with pytest.raises(ValueError, match="name the largest batch size to try"):
        model.find_batch_size(tuple_batches(8), **CPU)
    with pytest.raises(ValueError, match="the loader has no batch"):
        model.find_batch_size([], largest=4, **CPU)
    with pytest.raises(ValueError, match="a batch size is found for one device"):
        model.find_batch_size(tuple_batches(8), largest=4, devices=2, **CPU)
