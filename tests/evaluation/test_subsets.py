import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings

from manystream.data.loader import StreamDataset, make_loader
from manystream.data.options import DataOptions
from manystream.evaluation import evaluate_subsets
from manystream.evaluation.measurement import numbered_subsets
from manystream.tasks import Classification
from tests.builders import mask_of, presences, random_images, small_resnet, with_absent
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
    confidence = logits.softmax(dim=1).amax(dim=1)
    gaps = []
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            gap = (right[inside].mean() - confidence[inside].mean()).abs()
            gaps.append(gap * inside.float().mean())
    return {
        "loss": F.cross_entropy(logits, target).item(),
        "accuracy": right.mean().item(),
        "mean_class_accuracy": torch.stack(per_class).mean().item(),
        "calibration_error": sum(gaps).item(),
        "accuracy_chance": max((target == c).float().mean().item() for c in range(NUM_CLASSES)),
        "mean_class_accuracy_chance": 1 / NUM_CLASSES,
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


def chosen(batches, samples):
    """Some of the samples, as one batch."""
    return [tuple(torch.cat(parts)[samples] for parts in zip(*batches, strict=True))]


def test_subsets_are_compared_on_the_samples_that_have_every_stream():
    model, batches = tiny_model(), tuple_batches(16)
    present = mask_of("11 01 10 11 01 11 10 11")
    subsets = model.evaluate_subsets(dict_batches(batches, present), **CPU)
    complete = present.all(dim=1).repeat(2)
    assert list(subsets) == ["rgb + depth", "rgb", "depth"]
    for name, blanked in (("rgb + depth", ()), ("rgb", (1,)), ("depth", (0,))):
        assert subsets[name]["num_samples"] == 8
        expected = by_hand(model, chosen(batches, complete), blanked)
        assert subsets[name] == pytest.approx(expected, rel=1e-5)
    assert not subsets.all_complete


def test_beside_it_each_subset_on_all_samples_that_have_its_streams():
    model, batches = tiny_model(), tuple_batches(16)
    present = mask_of("11 01 10 11 01 11 10 11")
    subsets = model.evaluate_subsets(dict_batches(batches, present), **CPU)
    counts = {name: values["num_samples"] for name, values in subsets.as_they_are.items()}
    assert counts == {"rgb + depth": 8, "rgb": 12, "depth": 12}
    assert subsets.as_they_are["rgb + depth"] == subsets["rgb + depth"]
    for name, stream in (("rgb", 0), ("depth", 1)):
        having = chosen(batches, present[:, stream].repeat(2))
        expected = by_hand(model, having, (1 - stream,))
        assert subsets.as_they_are[name] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("words", ["11 01 10 11 01 11 10 11", "11 11 11 11 11 11 11 11"])
def test_all_samples_as_they_come_are_what_evaluate_measures(words):
    batches = dict_batches(tuple_batches(16), mask_of(words))
    model = tiny_model()
    subsets = model.evaluate_subsets(batches, **CPU)
    expected = model.evaluate(batches, **CPU)
    assert subsets.as_they_come == pytest.approx(expected, rel=1e-5)
    assert subsets.as_they_come["num_samples"] == 16
    assert subsets.all_complete is ("0" not in words)


def test_samples_that_are_incomplete_only_later():
    """The measurements of the same samples and of all are one until then."""
    model, batches = tiny_model(), tuple_batches(16)
    present = mask_of("11 " * 8 + "10 " * 4 + "11 " * 4)
    parts = zip(batches, present.split(8), strict=True)
    loader = [dict_batches([batch], part)[0] for batch, part in parts]
    subsets = model.evaluate_subsets(loader, **CPU)
    expected = by_hand(model, chosen(batches, present.all(dim=1)), (1,))
    assert subsets["rgb"] == pytest.approx(expected, rel=1e-5)
    assert subsets.as_they_are["rgb"] == pytest.approx(by_hand(model, batches, (1,)), rel=1e-5)


@settings(max_examples=10, deadline=None)
@given(words=presences(min_streams=2, max_streams=4, max_samples=6))
@example("11 01 10 11 01 10")
@example("1111 0111 1010 1111 0001")
@torch.no_grad()
def test_any_pattern_of_absence(words):
    """Each table is of the samples that it says, and of what the network says of them alone."""
    mask = mask_of(words)
    network, task = small_resnet(mask.shape[1]).eval(), Classification(5)
    images, target = random_images(mask), torch.arange(len(mask)) % 5
    hidden = with_absent(images, mask, float("nan"))
    loader = [
        {**dict(zip(network.stream_names, x, strict=True)), "present": present, "target": of}
        for *x, present, of in zip(
            *(x.split(4) for x in hidden), mask.split(4), target.split(4), strict=True
        )
    ]
    subsets = evaluate_subsets(network, task, loader, accelerator="cpu")
    for name, bits in numbered_subsets(network.stream_names).items():
        kept = tuple(bool(bits >> m & 1) for m in range(network.num_streams))
        having = mask[:, torch.tensor(kept)].all(dim=1)
        for table, samples in (
            (subsets.same_samples, mask.all(dim=1)),
            (subsets.as_they_are, having),
        ):
            assert (name in table) == bool(samples.any())
            if name in table:
                pairs = zip(images, kept, strict=True)
                logits = network([x[samples] if stays else None for x, stays in pairs])
                loss = F.cross_entropy(logits, target[samples])
                assert table[name]["num_samples"] == samples.sum()
                assert table[name]["loss"] == pytest.approx(loss.item(), rel=1e-10)
    loss = F.cross_entropy(network(images, present=mask), target)
    assert subsets.as_they_come["loss"] == pytest.approx(loss.item(), rel=1e-10)
    assert subsets.as_they_come["num_samples"] == len(mask)


def test_where_no_sample_has_every_stream_nothing_is_compared():
    batches = dict_batches(tuple_batches(4), mask_of("01 01 01 01"))
    subsets = tiny_model().evaluate_subsets(batches, **CPU)
    assert list(subsets) == []
    assert list(subsets.as_they_are) == list(subsets.shown) == ["depth"]
    assert subsets.as_they_are["depth"] == subsets.as_they_come
    with pytest.raises(KeyError, match="depth: no sample has every stream"):
        subsets["depth"]


def test_a_loader_without_a_sample_gives_no_subset():
    subsets = tiny_model().evaluate_subsets([], **CPU)
    assert (subsets.same_samples, subsets.as_they_are, subsets.as_they_come) == ({}, {}, {})


def test_each_stream_runs_once():
    model, batches = tiny_model(), tuple_batches(16)
    rows = []
    kernels = model.network.conv1.streams
    for kernel in kernels:
        kernel.register_forward_hook(lambda _, images, __: rows.append(len(images[0])))
    model.evaluate_subsets(batches, **CPU)
    assert rows == [8, 8] * len(batches)


def test_measuring_changes_nothing():
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    model.evaluate(tuple_batches(8), **CPU)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
