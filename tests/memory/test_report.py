"""What a step keeps, by layer and by kind, against sizes worked out by hand."""

from dataclasses import replace

import pytest
import torch
from tests.builders import WIDTHS, mask_of, random_images, small_resnet
from torch import Tensor

from manystream.batch import StreamBatch
from manystream.memory import measure
from manystream.memory.counting import bytes_over_time, kept_bytes, peak_bytes
from manystream.models import StreamResNet

MODES = ("fast", "balanced", "lean", "min")
WORDS = "11 10 11"
SIZE = (64, 64)
DOUBLE = 8
PLACES = (16 * 16, 8 * 8, 4 * 4, 2 * 2)
"""Pixels of the maps of each stage."""


def network(mode: str, layers: tuple[int, ...] = (1, 1, 1, 1)) -> StreamResNet:
    model = small_resnet(layers=layers)
    model.memory = mode
    return model


def batch_for(model: StreamResNet, words: str = WORDS) -> StreamBatch:
    mask = mask_of(words)
    batch = model.to_batch(random_images(mask, size=SIZE), mask)
    return replace(batch, target=torch.zeros(len(mask), dtype=torch.int64))


def maps(stage: int, samples: int) -> int:
    return samples * WIDTHS[stage] * PLACES[stage] * DOUBLE


def raw_output_bytes(rows: int) -> int:
    """The stem's, at twice the resolution; two convolutions a block; a shortcut but in one."""
    stem = 4 * maps(0, rows)
    return stem + sum((2 if stage == 0 else 3) * maps(stage, rows) for stage in range(4))


def test_every_mode_but_min_keeps_the_raw_outputs_of_the_present_rows() -> None:
    rows = 3 + 2
    for mode in ("fast", "balanced", "lean"):
        model = network(mode)
        kinds = measure(model, batch_for(model)).kept_by_kind
        # The last block's second norm and shortcut norm move statistics only, but integration
        # needs their inputs.
        assert kinds["raw output"] == raw_output_bytes(rows), mode
    model = network("min")
    assert "raw output" not in measure(model, batch_for(model)).kept_by_kind


def test_integrated_raw_outputs_are_kept_up_to_balanced() -> None:
    expected = raw_output_bytes(rows=3)  # One pathway of all samples.
    for mode, bytes_kept in (("fast", expected), ("balanced", expected), ("lean", 0), ("min", 0)):
        model = network(mode)
        kinds = measure(model, batch_for(model)).kept_by_kind
        assert kinds.get("integrated raw output", 0) == bytes_kept, mode


def test_activations_inside_blocks_are_kept_in_fast_only() -> None:
    model = network("fast")
    inside = sum(maps(stage, 5 + 3) for stage in range(4))
    pooled = maps(0, 5 + 3)
    kinds = measure(model, batch_for(model)).kept_by_kind
    assert kinds["activation"] == inside + pooled
    for mode in ("balanced", "lean", "min"):
        model = network(mode)
        assert "activation" not in measure(model, batch_for(model)).kept_by_kind, mode


def test_lean_keeps_the_first_and_every_third_block() -> None:
    last = maps(3, 3)  # Of the last block, only the integrated pathway goes on.
    every = sum(maps(stage, 5 + 3) for stage in range(3)) + last
    some = maps(0, 5 + 3) + maps(2, 5 + 3)
    for mode, expected in (("fast", every), ("balanced", every), ("min", every), ("lean", some)):
        model = network(mode)
        kinds = measure(model, batch_for(model)).kept_by_kind
        assert kinds["block output"] == expected, mode


@pytest.mark.parametrize("mode", MODES)
def test_the_parts_are_the_whole_and_no_more_than_the_peak(mode: str) -> None:
    model = network(mode, (2, 1, 1, 1))
    report = measure(model, batch_for(model))
    assert sum(report.kept_by_kind.values()) == report.kept_bytes
    assert sum(report.kept_by_layer.values()) == report.kept_bytes
    assert report.kept_bytes <= report.peak_allocated_bytes
    assert report.peak_reserved_bytes is None
    names = {name for name, _ in model.named_modules()}
    assert report.kept_by_layer.keys() <= names


@pytest.mark.parametrize("mode", MODES)
def test_what_is_kept_is_what_lives_after_the_forward(mode: str) -> None:
    """Independent of the hooks: the storages alive while the loss waits for backward."""
    model = network(mode)
    batch = batch_for(model)
    alive: list[Tensor] = []

    def forward() -> None:
        alive.append(model(batch).sum())

    left = bytes_over_time(forward)[-1]
    kept = kept_bytes(lambda: model(batch).sum(), [*model.parameters(), *batch.streams])
    # Batch statistics, a few numbers per channel, live too.
    assert kept <= left <= kept + 20_000


def test_a_layer_by_its_name() -> None:
    model = network("lean")
    by_layer = measure(model, batch_for(model)).kept_by_layer
    # Its raw outputs are asked for by the integration inside of the convolution.
    assert by_layer["conv1"] == 4 * maps(0, 5)


def test_the_network_is_left_as_it_was() -> None:
    model = network("lean")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    batch = batch_for(model)
    assert measure(model, batch) == measure(model, batch)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_batch_without_target_is_refused() -> None:
    model = network("fast")
    with pytest.raises(ValueError, match="no target"):
        measure(model, replace(batch_for(model), target=None))


def test_memory_over_time_has_the_peak() -> None:
    x = torch.ones(10, requires_grad=True)

    def step() -> None:
        x.exp().exp().backward(torch.ones(10))

    samples = bytes_over_time(step)
    x.grad = None
    assert samples[0] > 0
    assert max(samples) == peak_bytes(step)
