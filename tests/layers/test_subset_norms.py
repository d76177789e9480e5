from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn

from manystream.batch import StreamBatch
from manystream.layers import StreamNormAct2d, SubsetNorms
from manystream.models import StreamResNet
from manystream.presence import Group, Presence, Views, gray_rank
from tests.builders import compact_batch, mask_of, random_images, small_resnet


def seen_once(norms: SubsetNorms, *names: str) -> SubsetNorms:
    """Have only these norms count a batch."""
    for name, norm in norms.named_children():
        norm.num_batches_tracked.fill_(int(name in names))
    return norms.eval()


def answers(norms: SubsetNorms, subset: int) -> str:
    ((norm, _),) = norms.of([Group(subset, slice(0, 1))])
    return next(name for name, own in norms.named_children() if own is norm)


@pytest.mark.parametrize(
    ("seen", "subset", "name"),
    [
        (["0", "0_1", "0_1_2"], 0b001, "0"),
        (["0_1", "0_1_2"], 0b001, "0_1"),
        (["1_2", "0_1_2"], 0b001, "0_1_2"),
        (["0", "1"], 0b110, "0_1_2"),
        ([], 0b010, "0_1_2"),
        (["0_2", "0_1"], 0b001, "0_1"),
    ],
)
def test_an_unseen_subset_is_answered_for_by_the_smallest_that_contains_it(seen, subset, name):
    assert answers(seen_once(SubsetNorms(2, 3), *seen), subset) == name


def test_what_was_seen_lies_in_the_state_dict():
    trained = seen_once(SubsetNorms(2, 2), "0_1")
    assert answers(trained, 1) == "0_1"
    loaded = SubsetNorms(2, 2).eval()
    assert answers(loaded, 1) == "0_1"
    seen_once(trained, "0", "0_1")
    loaded.load_state_dict(trained.state_dict())
    assert answers(loaded, 1) == answers(deepcopy(loaded), 1) == answers(trained, 1) == "0"


def test_the_state_of_one_norm_is_taken_into_all():
    single = nn.BatchNorm2d(3)
    single(torch.randn(4, 3, 2, 2))
    norms = SubsetNorms(3, 2)
    norms.load_state_dict(single.state_dict())
    for norm in norms.children():
        for key, value in norm.state_dict().items():
            assert torch.equal(value, single.state_dict()[key]), key
    assert answers(norms.eval(), 1) == "0"


@pytest.mark.parametrize("words", ["111 110 011", "101 001"])
def test_a_network_with_one_norm_in_each_place_becomes_one_with_many(words):
    mask = mask_of(words)
    images = random_images(mask)
    one, many = small_resnet(3).eval(), small_resnet(3, subset_norms=True).eval()
    many.load_state_dict(one.state_dict())
    torch.testing.assert_close(many(images, present=mask), one(images, present=mask))


def test_training_moves_the_statistics_of_the_subsets_in_the_batch_alone():
    network = small_resnet(2, subset_norms=True).train()
    mask = mask_of("11 10 11 10")
    before = {k: v.clone() for k, v in network.bn1.integrated.state_dict().items()}
    network(random_images(mask), present=mask).sum().backward()
    moved = {
        key.split(".")[0]
        for key, value in network.bn1.integrated.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert moved == {"0", "0_1"}
    unused = network.bn1.integrated.get_submodule("1")
    assert torch.equal(unused.weight.grad, torch.zeros_like(unused.weight))


def test_a_layout_is_built_again():
    network = small_resnet(2, subset_norms=True)
    again = StreamResNet(**network.layout)
    again.load_state_dict(network.state_dict())


@pytest.mark.parametrize(
    ("family", "has"),
    [("li_net3_soma", "a group norm"), ("late_fusion", "no integrated pathway")],
)
def test_families_without_a_batch_norm_there_refuse(family, has):
    with pytest.raises(ValueError, match=f"'{family}' has {has}.*leave subset_norms out"):
        small_resnet(2, family=family, subset_norms=True)


def test_too_many_streams_are_refused():
    with pytest.raises(ValueError, match="9 streams would be 511; expected up to 8 streams"):
        SubsetNorms(4, 9)


def test_norms_without_running_statistics_are_refused():
    def no_statistics(channels):
        return SubsetNorms(
            channels, 2, norm_layer=lambda c: nn.BatchNorm2d(c, track_running_stats=False)
        )

    with pytest.raises(ValueError, match="keeps no running statistics"):
        StreamNormAct2d(3, 2, no_statistics)


def test_norms_stand_in_one_order_whatever_a_batch_has():
    """Processes that have other subsets add the statistics of the same norms up."""
    norms = SubsetNorms(2, 3)
    for subsets in ([1, 7], [3, 2, 4], []):
        in_order = sorted(subsets, key=gray_rank)
        groups = [Group(subset, slice(i, i + 1)) for i, subset in enumerate(in_order)]
        rows = norms.of(groups)
        assert [norm for norm, _ in rows] == list(norms.children())
        assert [views.stop - views.start for _, views in rows].count(1) == len(subsets)


class OwnNorm(nn.BatchNorm2d):
    """A user's: the same numbers, but a class that we do not know."""


def layer_and_batch(norm_layer, words):
    mask = mask_of(words)
    layer = StreamNormAct2d(
        3, mask.shape[1], partial(SubsetNorms, num_streams=mask.shape[1], norm_layer=norm_layer)
    ).double()
    views = Views.with_subsets(Presence.from_mask(mask))
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(views.num_views, 3, 5, 7, dtype=torch.float64, generator=generator)
    batch = compact_batch(mask, 3)
    return layer, StreamBatch(batch.streams, batch.presence, z.requires_grad_(), views=views)


@pytest.mark.parametrize("words", ["11 11 11", "110 101 110"])
@pytest.mark.parametrize("training", [True, False])
def test_norms_of_another_class_have_their_own_rows_each(words, training):
    found = []
    for norm_layer in (nn.BatchNorm2d, OwnNorm):
        layer, batch = layer_and_batch(norm_layer, words)
        layer(batch)  # what was seen has statistics of its own
        y = layer.train(training)(batch).integrated
        y.sin().sum().backward()
        of_norms = [p.grad for p in layer.integrated.parameters() if training or p.grad is not None]
        found.append([y, batch.integrated.grad, *of_norms, *layer.integrated.buffers()])
    torch.testing.assert_close(*found)


def test_group_norms_have_their_own_rows_each():
    layer, batch = layer_and_batch(lambda c: nn.GroupNorm(1, c), "11 11")
    for number, norm in enumerate(layer.integrated.children()):
        nn.init.constant_(norm.weight, float(number))
    y = layer(batch).integrated
    for number, (group, norm) in enumerate(
        zip(batch.views.groups, layer.integrated.children(), strict=True)
    ):
        assert norm.weight[0] == number
        torch.testing.assert_close(y[group.views], norm(batch.integrated[group.views]).relu())


def test_norms_that_may_hang_are_refused():
    network = nn.SyncBatchNorm.convert_sync_batchnorm(small_resnet(2, subset_norms=True))
    with pytest.raises(ValueError, match=r"SyncBatchNorm, which hangs.*synchronise_norms"):
        network.train()(random_images(mask_of("11 10")))


def test_frozen_norms_train_as_they_evaluate():
    """Fine-tuning often has the batch norms, and nothing else, in evaluation."""
    layer, batch = layer_and_batch(nn.BatchNorm2d, "11 11")
    layer.train()
    for name, norm in layer.integrated.named_children():
        norm.num_batches_tracked.fill_(int(name == "0_1"))
        norm.running_mean.fill_(len(name))
    for norm in layer.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    trained = layer(batch).integrated
    torch.testing.assert_close(trained, layer.eval()(batch).integrated)


@pytest.mark.parametrize("training", [True, False])
def test_no_samples_have_no_logits(training):
    network = small_resnet(2, subset_norms=True).train(training)
    images = [x[:0] for x in random_images(mask_of("11"))]
    assert network(images).shape == (0, 5)


def test_a_network_made_in_inference_mode_answers():
    """Tensors made there have no versions; what was seen is read anew each time."""
    with torch.inference_mode():
        norms = seen_once(SubsetNorms(2, 2), "0_1")
        assert answers(norms, 1) == "0_1"
        assert answers(seen_once(norms, "0", "0_1"), 1) == "0"


def test_exchanged_counters_are_read_anew():
    """A new tensor may lie where an old one did."""
    norms = SubsetNorms(2, 2).eval()
    for _ in range(20):
        for seen, name in ((1, "0"), (0, "0_1")):
            for norm in norms.children():
                del norm.num_batches_tracked
                norm.register_buffer("num_batches_tracked", torch.tensor(seen))
            assert answers(norms, 1) == name


def test_the_state_of_one_norm_is_assigned_to_all_as_copies():
    norms = SubsetNorms(3, 2)
    norms.load_state_dict(nn.BatchNorm2d(3).state_dict(), assign=True)
    tensors = list(norms.state_dict().values())
    assert len({t.data_ptr() for t in tensors}) == len(tensors)
    norms.train().get_submodule("0")(torch.randn(4, 3, 2, 2))
    assert [int(norm.num_batches_tracked) for norm in norms.children()] == [1, 0, 0]
