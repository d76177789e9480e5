import copy
import math

import pytest
import torch

from manystream.training.loss_guard import NonFiniteLossError
from manystream.training.recipe.averaging import WeightAverage
from tests.training.builders import CPU, dict_batches, tiny_model, tuple_batches


def poisoned(value, batch=1, sample=2, count=24):
    """Batches of which one image has a value that is not finite."""
    batches = tuple_batches(count)
    batches[batch][0][sample, 0, 0, 0] = value
    return batches


def with_ids(batches):
    everything = torch.ones(8, 2, dtype=torch.bool)
    return [
        {**batch, "ids": [f"room/{n}-{b}" for b in range(8)]}
        for n, batch in enumerate(dict_batches(batches, everything))
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_it_stops_at_the_step_and_names_the_samples(value):
    model, seen = tiny_model(), []
    model.network.register_forward_pre_hook(lambda *_: seen.append(1))
    with pytest.raises(NonFiniteLossError) as caught:
        model.fit(with_ids(poisoned(value)), epochs=2, **CPU)
    message = str(caught.value)
    assert "batch 1 in epoch 0 (both from 0) is nan" in message
    assert ", ".join(f"room/1-{b}" for b in range(8)) in message
    assert "room/0-" not in message
    assert "No checkpoint has been written yet" in message
    assert len(seen) == 2
    assert all(p.isfinite().all() for p in model.parameters())


def test_only_samples_that_keep_a_stream_are_named():
    batches = with_ids(poisoned(math.nan, batch=0))
    model = tiny_model()
    batches[0]["rgb"][:] = math.nan
    batches[0]["present"] = torch.tensor([[False, True]] * 8)
    model.fit(batches, epochs=1, **CPU)  # NaN where nothing is read
    batches[0]["present"][4, 0] = True
    with pytest.raises(NonFiniteLossError, match="batch 0 in epoch 0"):
        model.fit(batches, epochs=1, **CPU)


def test_batches_without_ids_are_named_by_their_number():
    with pytest.raises(
        NonFiniteLossError, match=r"batch 2 .* unknown: the loader's batches have no"
    ):
        tiny_model().fit(poisoned(math.nan, batch=2), epochs=1, **CPU)


def test_it_is_found_within_accumulated_batches():
    with pytest.raises(NonFiniteLossError, match="batch 1 in epoch 0"):
        tiny_model().fit(poisoned(math.nan), epochs=1, accumulate_batches=3, **CPU)


def test_it_says_where_the_last_good_checkpoint_is(tmp_path):
    given = []

    class Late(list):
        """Batches of three to an epoch, of which the fifth is bad."""

        def __iter__(self):
            for batch in tuple_batches(24):
                given.append(batch)
                if len(given) == 5:
                    batch[0][0] = math.nan
                yield batch

    with pytest.raises(NonFiniteLossError, match=r"batch 1 in epoch 1 .* is nan") as caught:
        tiny_model().fit(Late(tuple_batches(24)), epochs=3, out_dir=tmp_path, **CPU)
    kept = [path for path in (tmp_path / "checkpoints").iterdir() if str(path) in str(caught.value)]
    assert len(kept) == 1
    assert f"The last good checkpoint is {kept[0]}. " in str(caught.value)


def states_before_steps(model):
    """What the network was before each of its forward passes, added to as it trains."""
    states = []
    model.network.register_forward_pre_hook(
        lambda *_: states.append(copy.deepcopy(model.state_dict()))
    )
    return states


def assert_same_state(model, state):
    ours = model.state_dict()
    assert ours.keys() == state.keys()
    assert [name for name in state if not torch.equal(ours[name], state[name])] == []


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("options", [{}, {"accumulate_batches": 3}, {"precision": "bf16-mixed"}])
def test_a_refused_step_leaves_the_network_as_it_was(batch, options):
    model = tiny_model()
    states = states_before_steps(model)
    with pytest.raises(NonFiniteLossError):
        model.fit(poisoned(math.nan, batch), epochs=1, **options, **CPU)
    assert len(states) == batch + 1
    assert any("running_var" in name for name in states[-1])
    assert_same_state(model, states[-1])
    assert all(p.grad is None for p in model.parameters())


def test_a_network_whose_step_was_refused_trains_on():
    model = tiny_model()
    with pytest.raises(NonFiniteLossError):
        model.fit(poisoned(math.nan), epochs=1, **CPU)
    history = model.fit(tuple_batches(24), tuple_batches(8), epochs=1, **CPU)
    assert math.isfinite(history["val_loss"][0])


def test_buffers_that_a_step_replaces_or_reshapes_are_brought_back():
    model = tiny_model()
    model.network.register_buffer("seen", torch.zeros(1))
    model.network.register_buffer("queue", torch.zeros(0, 2))
    states = states_before_steps(model)

    def remember(module, inputs, logits):
        module.seen = module.seen + 1
        module.queue = torch.cat([module.queue, logits.detach()[:1, :2]])

    model.network.register_forward_hook(remember)
    with pytest.raises(NonFiniteLossError):
        model.fit(poisoned(math.nan, batch=2), epochs=1, **CPU)
    assert model.network.seen == 2
    assert model.network.queue.shape == (2, 2)
    assert_same_state(model, states[-1])


def test_no_average_takes_in_a_refused_step(monkeypatch):
    model, averages = tiny_model(), []
    monkeypatch.setattr(
        WeightAverage, "on_exception", lambda average, *_: averages.append(average.weights)
    )
    states = states_before_steps(model)
    with pytest.raises(NonFiniteLossError):
        model.fit(poisoned(math.nan, batch=2), epochs=1, ema_decay=0.9, **CPU)
    assert_same_state(model, states[-1])
    (average,) = averages
    assert all(value.isfinite().all() for value in average.values())
    tracked = [name for name in average if name.endswith("num_batches_tracked")]
    assert {int(average[name]) for name in tracked} == {2}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cuda_graphs", ["on", "off"])
def test_a_step_that_is_refused_on_a_gpu_leaves_the_network_as_it_was(cuda_graphs):
    model, states = tiny_model(), []
    batches = poisoned(math.nan, batch=5, count=64)

    class Watched(list):
        """Batches that look at the network before each step: a replay calls no hook."""

        def __iter__(self):
            for batch in super().__iter__():
                states.append(copy.deepcopy(model.state_dict()))
                yield batch

    with pytest.raises(NonFiniteLossError, match="batch 5"):
        model.fit(
            Watched(batches), epochs=1, cuda_graphs=cuda_graphs, accelerator="gpu", progress=False
        )
    assert len(states) == 6
    assert_same_state(model.cpu(), {name: value.cpu() for name, value in states[-1].items()})
    assert all(p.grad is None for p in model.parameters())
