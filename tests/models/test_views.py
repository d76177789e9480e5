"""Networks that see each sample with several subsets of its streams, in one pass of each."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manystream.presence import Views
from tests.builders import INTEGRATED_FAMILIES, mask_of, presences, random_images, small_resnet
from tests.oracle import forward_by_view

FAMILIES = (*INTEGRATED_FAMILIES, "late_fusion", "early_fusion")
NETWORKS = [*((family, False) for family in INTEGRATED_FAMILIES), ("li_net3", True)]
"""Families, and whether they have a norm for every subset."""


def seen_in(views: Views) -> list[tuple[int, int]]:
    """The caller's sample and the subset of each view."""
    subsets = [group.subset for group in views.groups for _ in range(*group.views.indices(9999))]
    return list(zip(views.sample.tolist(), subsets, strict=True))


def kept_in(views: Views) -> torch.Tensor:
    """Which streams each view has, (V, M), bool."""
    streams = range(views.presence.num_streams)
    return torch.tensor([[bool(subset >> m & 1) for m in streams] for _, subset in seen_in(views)])


def with_subsets(network, images, mask, per_sample=None):
    """Outputs of all views, and the views."""
    batch = network.to_batch(images, mask)
    views = Views.with_subsets(batch.presence, per_sample)
    return network(replace(batch, views=views), by_view=True), views


@settings(max_examples=20)
@given(words=presences(max_streams=3, max_samples=4), family=st.sampled_from(FAMILIES))
@example("111 111", "li_net3")
@example("111 011 101 001", "direct_mixing_conv")
def test_a_view_is_what_the_network_gives_for_its_streams_alone(words: str, family: str) -> None:
    mask = mask_of(words)
    network = small_resnet(mask.shape[1], family=family).eval()
    images = random_images(mask)
    out, views = with_subsets(network, images, mask)
    alone = network([x[views.sample] for x in images], present=kept_in(views))
    torch.testing.assert_close(out, alone, rtol=1e-10, atol=1e-10)
    full = network(images, present=mask)
    torch.testing.assert_close(views.restore(out), full, rtol=1e-10, atol=1e-10)


@settings(max_examples=25)
@given(
    words=presences(max_streams=4, max_samples=5),
    network=st.sampled_from(NETWORKS),
    mode=st.sampled_from(["fast", "balanced", "lean", "min"]),
    per_sample=st.one_of(st.none(), st.integers(2, 6)),
)
@example("111 111 111", ("li_net3", True), "fast", None)
@example("11 10 01 11", ("li_net3", True), "lean", None)
@example("1111 1111 1111 1111 0110", ("direct_mixing_conv", False), "balanced", 4)
def test_training_agrees_with_rows_picked_for_each_view(words, network, mode, per_sample) -> None:
    """Outputs, gradients and buffers, for any presence pattern."""
    mask, (family, subset_norms) = mask_of(words), network
    images = random_images(mask)
    ours, plain = (
        small_resnet(mask.shape[1], family=family, subset_norms=subset_norms) for _ in range(2)
    )
    ours.memory = mode
    out, views = with_subsets(ours.train(), images, mask, per_sample)
    (out.sin() * views.weight[:, None]).sum().backward()
    logits, statistics = forward_by_view(plain, images, mask, seen_in(views), training=True)
    (logits.sin() * views.weight[:, None]).sum().backward()
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(out, logits, **close)
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        if p.requires_grad:
            expected = torch.zeros_like(p) if q.grad is None else q.grad
            torch.testing.assert_close(p.grad, expected, **close, msg=name)
    buffers = dict(ours.named_buffers())
    for name, expected in statistics.items():
        torch.testing.assert_close(buffers[name], expected, **close, msg=name)


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
    out, views = with_subsets(network.train(), images, mask)
    out.sin().sum().backward()
    alone = repeated.train()([x[views.sample] for x in images], present=kept_in(views))
    alone.sin().sum().backward()
    torch.testing.assert_close(out, alone, rtol=1e-10, atol=1e-10)
    for (name, p), q in zip(network.named_parameters(), repeated.parameters(), strict=True):
        assert (p.grad is None) is (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9, msg=name)
    for (name, b), c in zip(network.named_buffers(), repeated.buffers(), strict=True):
        if ".integrated." in name or name.endswith("running_mean"):
            torch.testing.assert_close(b, c, rtol=1e-10, atol=1e-10, msg=name)
