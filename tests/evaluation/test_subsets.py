import pytest
import torch
import torch.nn.functional as F

from manystream.data.loader import StreamDataset, make_loader
from manystream.data.options import DataOptions
from tests.builders import mask_of
from tests.data.builders import DEPTH, RGB, ArraySource, identity, noise
from tests.training.builders import CPU, NUM_CLASSES, dict_batches, tiny_model, tuple_batches

UNREAD = AssertionError("a blanked image was read")


def own_loader(*samples, batch_size=4):
    source = ArraySource((RGB, DEPTH), list(samples))
    dataset = StreamDataset(source, identity(RGB, DEPTH, size=32))
    return make_loader(dataset, DataOptions(batch_size=batch_size, num_workers=0))


@torch.no_grad()
def by_hand(model, batches, blanked=()):
    """Loss, accuracy and mean class accuracy from one call of the model per batch."""
    model.eval()
    logits = torch.cat(
        [
            model(images, blanked_mask={m: torch.ones(len(target), dtype=bool) for m in blanked})
            for *images, target in batches
        ]
    )
    target = torch.cat([batch[-1] for batch in batches])
    right = (logits.argmax(dim=1) == target).float()
    per_class = [right[target == c].mean() for c in range(NUM_CLASSES)]
    return {
        "loss": F.cross_entropy(logits, target).item(),
        "accuracy": right.mean().item(),
        "mean_class_accuracy": torch.stack(per_class).mean().item(),
        "num_samples": len(target),
    }


@pytest.mark.parametrize(("names", "numbers"), [((), ()), (("rgb",), (0,)), (("depth",), (1,))])
def test_it_measures_what_a_loop_by_hand_measures(names, numbers):
    # 20 samples in batches of 8: the last is smaller, and the classes are not balanced.
    model, batches = tiny_model(), tuple_batches(20)
    model.fit(batches, epochs=1, **CPU)
    measured = model.evaluate(batches, blanked_streams=names, **CPU)
    assert measured == pytest.approx(by_hand(model, batches, numbers), rel=1e-5)


def test_a_stream_may_be_named_alone():
    model, batches = tiny_model(), tuple_batches(8)
    assert model.evaluate(batches, blanked_streams="depth", **CPU) == model.evaluate(
        batches, blanked_streams={"depth"}, **CPU
    )


def test_a_sample_with_only_the_blanked_stream_is_left_out():
    model, batches = tiny_model(), tuple_batches(8)
    present = mask_of("11 01 10 11 01 11 10 11")
    measured = model.evaluate(dict_batches(batches, present), blanked_streams=["depth"], **CPU)
    has_rgb = present[:, 0]
    ((rgb, depth, target),) = batches
    expected = by_hand(model, [(rgb[has_rgb], depth[has_rgb], target[has_rgb])], (1,))
    assert expected["num_samples"] == 6
    assert measured == pytest.approx(expected, rel=1e-5)


def test_nothing_left_to_measure():
    batches = dict_batches(tuple_batches(4), mask_of("01 01 01 01"))
    with pytest.raises(ValueError, match="a stream that is not blanked; blanked are: depth"):
        tiny_model().evaluate(batches, blanked_streams=["depth"], **CPU)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dpeth"], "unknown stream 'dpeth'; the model's streams are rgb, depth"),
        ("dpeth", "unknown stream 'dpeth'"),
        (["rgb", "depth"], "names every stream; at least one must stay"),
    ],
)
def test_streams_that_cannot_be_blanked(names, message):
    def unasked():
        raise AssertionError("a batch was asked for")
        yield

    with pytest.raises(ValueError, match=message):
        tiny_model().evaluate(unasked(), blanked_streams=names, **CPU)


def test_our_own_loader_does_not_read_what_is_blanked():
    loader = own_loader(*[[noise(32, 32), UNREAD]] * 6)
    model = tiny_model()
    measured = model.evaluate(loader, blanked_streams={"depth"}, **CPU)
    assert measured["num_samples"] == 6
    assert loader.batch_sampler.select is None
    with pytest.raises(AssertionError, match="a blanked image was read"):
        model.evaluate(loader, **CPU)


def test_our_own_loader_leaves_the_same_samples_out():
    rgb, depth = noise(32, 32), noise(32, 32, 1)
    loader = own_loader([rgb, depth], [None, depth], [None, depth], [rgb, None], batch_size=2)
    measured = tiny_model().evaluate(loader, blanked_streams={"depth"}, **CPU)
    assert measured["num_samples"] == 2


def test_every_subset_of_the_streams():
    model = tiny_model(in_channels={"a": 1, "b": 1, "c": 1})
    images = torch.randn(3, 6, 1, 32, 32)
    batches = [(*images, torch.arange(6) % NUM_CLASSES)]
    subsets = model.evaluate_subsets(batches, **CPU)
    assert list(subsets) == ["a + b + c", "a + b", "a + c", "b + c", "a", "b", "c"]
    for subset, measured in subsets.items():
        blanked = [m for m, name in enumerate("abc") if name not in subset.split(" + ")]
        assert measured == pytest.approx(by_hand(model, batches, blanked), rel=1e-5)


def test_a_subset_that_no_sample_has_any_of_is_left_out():
    batches = dict_batches(tuple_batches(4), mask_of("01 01 01 01"))
    assert list(tiny_model().evaluate_subsets(batches, **CPU)) == ["rgb + depth", "depth"]


def test_measuring_changes_nothing():
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    model.evaluate(tuple_batches(8), **CPU)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
