import math

import pytest
import torch

from manystream.training.loss_guard import NonFiniteLossError
from tests.training.builders import CPU, dict_batches, tiny_model, tuple_batches


def poisoned(value, batch=1, sample=2):
    """Batches of which one image has a value that is not finite."""
    batches = tuple_batches(24)
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
