import math

import pytest
import torch

from manystream.training import FitOptions
from manystream.training.callbacks.subset_accuracy import SubsetAccuracy
from tests.builders import mask_of
from tests.training.builders import CPU, dict_batches, repeatable, tiny_model, tuple_batches

PRESENT = mask_of("11 01 10 11 01 11 10 11")


def learned(val, epochs=2, **changes):
    model = tiny_model()
    options = {"learning_rate": 0.01, "subset_accuracy_every": 1, **changes, **CPU}
    return model, model.fit(tuple_batches(48), val, epochs=epochs, **options)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_it_is_what_evaluation_finds_afterwards(ema_decay):
    val = dict_batches(tuple_batches(24, seed=1), PRESENT)
    model, history = learned(val, ema_decay=ema_decay)
    for name, lost in (("rgb", "depth"), ("depth", "rgb")):
        expected = model.evaluate(val, blanked_streams=[lost], **CPU)["mean_class_accuracy"]
        assert history[f"val_mean_class_accuracy/{name}"][-1] == pytest.approx(expected)
        assert 0 < expected < 1 or ema_decay is not None


def test_it_is_measured_every_so_many_epochs():
    _, history = learned(tuple_batches(8, seed=1), 5, subset_accuracy_every=2)
    measured = [not math.isnan(v) for v in history["val_mean_class_accuracy/rgb"]]
    assert measured == [False, True, False, True, False]
    assert not any(map(math.isnan, history["val_mean_class_accuracy"]))


def test_measuring_changes_nothing_else():
    val = tuple_batches(12, seed=1)
    model, history = learned(val)
    plain, expected = learned(val, subset_accuracy_every=0)
    expected = repeatable(expected)
    assert {name: history[name] for name in expected} == expected
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))


def test_a_subset_that_no_sample_has_is_left_out():
    val = dict_batches(tuple_batches(8, seed=1), mask_of("10 10 10 10 10 10 10 10"))
    _, history = learned(val, 1)
    assert "val_mean_class_accuracy/rgb" in history
    assert "val_mean_class_accuracy/depth" not in history


def test_three_streams_have_six_proper_subsets():
    model = tiny_model(in_channels={"a": 1, "b": 1, "c": 1})
    found = SubsetAccuracy(1, model.network, model.task).metrics
    assert list(found) == ["a + b", "a + c", "b + c", "a", "b", "c"]


def test_what_it_needs():
    with pytest.raises(ValueError, match="subset_accuracy_every measures validation batches"):
        learned(None)
    with pytest.raises(ValueError, match="a network with one stream"):
        tiny_model(in_channels={"rgb": 3}).fit([], [], subset_accuracy_every=1, **CPU)
    with pytest.raises(ValueError, match="subset_accuracy_every is -1"):
        FitOptions(subset_accuracy_every=-1)
