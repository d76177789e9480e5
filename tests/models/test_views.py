"""Networks that see each sample with several subsets of its streams, in one pass of each."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manystream.presence import Views
from tests.builders import INTEGRATED_FAMILIES, mask_of, presences, random_images, small_resnet

FAMILIES = (*INTEGRATED_FAMILIES, "late_fusion")


def seen_with_all_subsets(network, images, mask):
    """Outputs of all views, and for each the caller's sample and the mask of its streams."""
    batch = network.to_batch(images, mask)
    views = Views.all_subsets(batch.presence)
    out = network.forward_batch(replace(batch, views=views))
    order = batch.presence.order
    samples = views.sample if order is None else order[views.sample]
    kept = [
        [bool(group.subset >> m & 1) for m in range(mask.shape[1])]
        for group in views.groups
        for _ in range(group.views.start, group.views.stop)
    ]
    return out, samples, torch.tensor(kept), views


@settings(max_examples=15)
@given(words=presences(max_streams=3, max_samples=4), family=st.sampled_from(FAMILIES))
@example("111 111", "li_net3")
@example("111 011 101 001", "direct_mixing_conv")
def test_a_view_is_what_the_network_gives_for_its_streams_alone(words: str, family: str) -> None:
    mask = mask_of(words)
    network = small_resnet(mask.shape[1], family=family).eval()
    images = random_images(mask)
    out, samples, kept, views = seen_with_all_subsets(network, images, mask)
    alone = network([x[samples] for x in images], present=kept)
    torch.testing.assert_close(out, alone, rtol=1e-10, atol=1e-10)
    full = network(images, present=mask)
    torch.testing.assert_close(views.restore(out), full, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", INTEGRATED_FAMILIES)
@pytest.mark.parametrize("mode", ["fast", "balanced", "lean", "min"])
def test_complete_batches_train_as_the_batch_repeated_for_each_subset(
    family: str, mode: str
) -> None:
    """Gradients are the same; of running statistics those of the integrated pathway."""
    mask = mask_of("11 11 11")
    images = random_images(mask)
    network, repeated = small_resnet(2, family=family), small_resnet(2, family=family)
    network.memory = mode
    out, samples, kept, _ = seen_with_all_subsets(network.train(), images, mask)
    out.sin().sum().backward()
    alone = repeated.train()([x[samples] for x in images], present=kept)
    alone.sin().sum().backward()
    torch.testing.assert_close(out, alone, rtol=1e-10, atol=1e-10)
    for (name, p), q in zip(network.named_parameters(), repeated.parameters(), strict=True):
        assert (p.grad is None) is (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9, msg=name)
    for (name, b), c in zip(network.named_buffers(), repeated.buffers(), strict=True):
        if ".integrated." in name or name.endswith("running_mean"):
            torch.testing.assert_close(b, c, rtol=1e-10, atol=1e-10, msg=name)
