"""One pass gives what the network says of each subset alone."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from manystream.evaluation.inference import answers_by_subset, in_parts
from manystream.model import StreamModel
from manystream.models import StreamNetwork, StreamResNet
from manystream.tasks import Classification
from tests.builders import (
    INTEGRATED_FAMILIES,
    compact_batch,
    mask_of,
    presences,
    random_images,
    small_resnet,
    with_absent,
)
from tests.training.builders import CPU, tuple_batches

SHARING = (*INTEGRATED_FAMILIES, "late_fusion")


def kept_of(subset, num_streams):
    return torch.tensor([bool(subset >> m & 1) for m in range(num_streams)])


@settings(max_examples=25, deadline=None)
@given(
    words=presences(min_streams=2, max_streams=4, max_samples=5),
    family=st.sampled_from((*SHARING, "early_fusion")),
)
@example("11 01 10 11", "li_net3")
@example("111 011 101 001 010", "direct_mixing_conv")
@example("1111 0111 1010 0001", "late_fusion")
@example("10 01", "early_fusion")
@torch.no_grad()
def test_it_is_the_network_called_on_each_subset_alone(words, family):
    mask = mask_of(words)
    num_streams = mask.shape[1]
    network = small_resnet(num_streams, family=family).eval()
    images = with_absent(random_images(mask), mask, float("nan"))
    found = answers_by_subset(network, network.to_batch(images, mask))
    having = {
        subset: mask[:, kept_of(subset, num_streams)].all(dim=1)
        for subset in range(1, 2**num_streams)
    }
    assert found.keys() == {subset for subset, samples in having.items() if samples.any()}
    for subset, (output, samples) in found.items():
        assert sorted(samples.tolist()) == having[subset].nonzero().flatten().tolist()
        kept = kept_of(subset, num_streams)
        inputs = [x[samples] if kept[m] else None for m, x in enumerate(images)]
        alone = network(inputs)
        torch.testing.assert_close(output, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", [*SHARING, "early_fusion"])
def test_the_head_is_asked_once(family):
    network = small_resnet(2, family=family).eval()
    passes = []
    network.fc.register_forward_hook(lambda *_: passes.append(1))
    mask = mask_of("11 11 10")
    answers_by_subset(network, network.to_batch(random_images(mask), mask))
    assert len(passes) == 1


class Blind(StreamNetwork):
    """A network of one's own that does not know of views."""

    def __init__(self):
        super().__init__([3, 1], 2)
        self.head = nn.Linear(3, 2)

    def forward_batch(self, batch):
        return self.head(batch.streams[0].mean((2, 3)))


def test_a_network_that_gives_no_row_for_each_view_is_told():
    batch = compact_batch(mask_of("11 11")).map(torch.Tensor.float)
    with pytest.raises(ValueError, match=r"Blind.forward_batch gives 2 rows; .* batch's 6 views"):
        answers_by_subset(Blind(), batch)


class FullOnly(StreamResNet):
    """A network whose user gave it a ``forward`` before there were views."""

    def forward(self, inputs, present=None, *, blanked_mask=None):
        return 2 * super().forward(inputs, present, blanked_mask=blanked_mask)


@pytest.mark.parametrize(
    "use",
    [
        lambda model, data: model.evaluate_subsets(data, accelerator="cpu"),
        lambda model, data: model.fit(data, None, epochs=1, subsets="all", **CPU),
    ],
)
def test_a_network_that_cannot_be_asked_for_views_is_told(use):
    sizes = {"layers": (1, 1, 1, 1), "widths": (4, 4, 4, 4)}
    network = FullOnly(in_channels={"rgb": 3, "depth": 1}, num_classes=3, **sizes)
    data = tuple_batches(8)
    with pytest.raises(ValueError, match=r"FullOnly.forward does not take by_view.*forward_batch"):
        use(StreamModel(network, Classification(3)), data)


@torch.no_grad()
def test_many_streams_are_asked_about_in_parts():
    mask = mask_of("1111 0111 1010 1111 0001 1111 1100")
    network = small_resnet(4).eval()
    batch = network.to_batch(random_images(mask), mask)
    parts = list(in_parts(batch))
    assert [len(part) for part in parts] == [4, 3]
    start, whole = 0, answers_by_subset(network, batch)
    for part in parts:
        for subset, (output, samples) in answers_by_subset(network, part).items():
            for row, sample in zip(output, samples.tolist(), strict=True):
                (place,) = (whole[subset].samples == sample + start).nonzero()
                torch.testing.assert_close(row, whole[subset].output[place[0]])
        start += len(part)


def test_few_streams_are_not_cut():
    batch = compact_batch(mask_of("111 011"))
    (part,) = in_parts(batch)
    assert part is batch
