import math
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from manystream.presence import Presence
from manystream.streams import StreamBatch, make_batch
from tests.builders import CHANNELS, compact_batch, mask_of, presences, random_images, with_absent

NAMES = {"rgb": 3, "depth": 1}
RGB, DEPTH = random_images(mask_of("11 11 11"), size=(4, 6))


def assert_same_batch(batch: StreamBatch, expected: StreamBatch) -> None:
    assert torch.equal(batch.presence.mask, expected.presence.mask)
    for x, y in zip(batch.streams, expected.streams, strict=True):
        assert torch.equal(x, y)
    for rows, same in zip(batch.presence.rows, expected.presence.rows, strict=True):
        assert torch.equal(torch.arange(99)[rows], torch.arange(99)[same])
    for index in ("order", "restore_index"):
        came, due = getattr(batch.presence, index), getattr(expected.presence, index)
        assert (came is None and due is None) or torch.equal(came, due)
    assert (batch.target is None) is (expected.target is None)
    assert batch.target is None or torch.equal(batch.target, expected.target)
    assert batch.integrated is None
    assert expected.integrated is None


@given(presences())
def test_from_full_takes_the_present_rows(words: str) -> None:
    mask = mask_of(words)
    images = with_absent(random_images(mask, size=(2, 3)), mask, math.nan)
    batch = StreamBatch.from_full(images, Presence.from_mask(mask))
    assert len(batch) == len(mask)
    for m, (x, rows) in enumerate(zip(images, batch.streams, strict=True)):
        assert rows.shape == (mask[:, m].sum(), CHANNELS[m], 2, 3)
        assert torch.equal(rows, x[batch.presence.samples(m)])


def test_all_present_streams_are_not_copied() -> None:
    batch = make_batch([RGB, DEPTH], NAMES)
    assert batch.streams[0].data_ptr() == RGB.data_ptr()
    assert batch.streams[1].data_ptr() == DEPTH.data_ptr()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([RGB, DEPTH[:2]], r"differ in batch size, height or width: 'rgb' is \(3, 3, 4, 6\), 'dep"),
        ([RGB, DEPTH[..., :5]], r"differ in batch size, height or width: .*'depth' is \(3, 1, 4,"),
        ([RGB, DEPTH[:, :, :3]], r"differ in batch size, height or width: .*\(3, 1, 3, 6\)"),
        ([DEPTH, DEPTH], r"stream 'rgb' has shape \(3, 1, 4, 6\); expected \(B, 3, H, W\)"),
        ([RGB.numpy(), DEPTH], r"stream 'rgb' is ndarray; expected a torch\.Tensor"),
        ([RGB, DEPTH[0]], r"stream 'depth' has shape \(1, 4, 6\); expected \(B, 1, H, W\)"),
        ({"rgb": RGB, "thermal": DEPTH}, "unknown stream 'thermal'; .* streams are rgb, depth"),
        ([None, None], "inputs hold no stream; expected at least one of rgb, depth"),
        ({}, "inputs hold no stream; expected at least one of rgb, depth"),
        ([RGB], "inputs are 1 streams; expected a list of 2 tensors, rgb, depth"),
        ([RGB, DEPTH, DEPTH], "inputs are 3 streams; expected a list of 2 tensors"),
        (RGB, "expected a list of 2 tensors, rgb, depth"),
        ([RGB.to(torch.uint8), DEPTH], "stream 'rgb' is torch.uint8; expected floating point"),
        ([RGB, DEPTH.long()], r"stream 'depth' is torch.int64; .* for example x.float\(\) / 255"),
    ],
)
def test_bad_images(inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_batch(inputs, NAMES)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"present": torch.ones(3, 2)}, r"present is torch.float32 of shape \(3, 2\); expected bo"),
        ({"present": mask_of("11 11")}, r"shape \(2, 2\); expected bool of shape \(3, 2\)"),
        ({"present": mask_of("1 1 1")}, r"shape \(3, 1\); expected bool of shape \(3, 2\)"),
        ({"present": mask_of("11 00 10")}, r"samples without any stream: 1 \(1 of 3\)"),
        ({"blanked_mask": {2: torch.ones(3, dtype=torch.bool)}}, "blanked_mask names stream 2"),
        (
            {"blanked_mask": {"ir": torch.ones(3, dtype=torch.bool)}},
            "blanked_mask names stream 'ir'; this model's streams are rgb, depth",
        ),
        ({"blanked_mask": {"rgb": torch.ones(3)}}, r"blanked_mask\[0\] is torch.float32"),
        ({"blanked_mask": {"depth"}}, r'is set; expected a mapping .* \{"depth": torch.tensor\('),
        ({"blanked_mask": ["depth"]}, "blanked_mask is list; expected a mapping of streams"),
        ({"blanked_mask": set()}, "blanked_mask is set; expected a mapping of streams to masks"),
        ({"blanked_mask": {None: mask_of("0 1 0").flatten()}}, "blanked_mask names stream None"),
        (
            {"blanked_mask": dict.fromkeys((1, "depth"), mask_of("0 1 0").flatten())},
            "blanked_mask names a stream twice: 1, 'depth'",
        ),
        (
            {"present": mask_of("11 01 11"), "blanked_mask": {1: mask_of("0 1 0").flatten()}},
            r"samples without any stream: 1 \(1 of 3\)",
        ),
    ],
)
def test_bad_masks(masks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_batch([RGB, DEPTH], NAMES, **masks)


def test_one_mask_written_in_four_ways() -> None:
    lost = torch.tensor([False, True, False])
    expected = make_batch([RGB, DEPTH], NAMES, present=mask_of("11 10 11"))
    for same in (
        make_batch([RGB, DEPTH], NAMES, blanked_mask={1: lost}),
        make_batch([RGB, DEPTH], NAMES, blanked_mask={"depth": lost}),
        make_batch({"depth": DEPTH, "rgb": RGB}, NAMES, blanked_mask={"depth": lost}),
    ):
        assert_same_batch(same, expected)


def test_present_and_blanked_mask_both_count() -> None:
    lost = torch.tensor([False, True, False])
    batch = make_batch(
        [RGB, DEPTH], NAMES, present=mask_of("01 11 11"), blanked_mask={"depth": lost}
    )
    assert torch.equal(batch.presence.mask, mask_of("01 10 11"))


@pytest.mark.parametrize("inputs", [{"depth": DEPTH}, [None, DEPTH], (None, DEPTH)])
def test_a_missing_stream_is_a_blanked_stream(inputs: Any) -> None:
    target = torch.tensor([4, 5, 6])
    lost = torch.ones(3, dtype=torch.bool)
    assert_same_batch(
        make_batch(inputs, NAMES, target=target),
        make_batch([RGB, DEPTH], NAMES, blanked_mask={"rgb": lost}, target=target),
    )


@given(words=presences(), data=st.data())
def test_keep_is_the_batch_built_from_the_smaller_mask(words: str, data: st.DataObject) -> None:
    mask = mask_of(words)
    flags = st.lists(st.booleans(), min_size=mask.shape[1], max_size=mask.shape[1])
    keep = torch.tensor(data.draw(st.lists(flags, min_size=len(mask), max_size=len(mask))))
    assert_keep_is_from_scratch(mask, keep)


@given(presences(min_streams=2, max_streams=3))
@example("11 01 10")
def test_keep_drops_a_sample_whose_only_stream_goes(words: str) -> None:
    mask = mask_of(words)
    keep = torch.ones_like(mask)
    keep[:, 0] = False
    assert_keep_is_from_scratch(mask, keep)


def assert_keep_is_from_scratch(mask: Tensor, keep: Tensor) -> None:
    images = random_images(mask, size=(2, 3))
    target = torch.arange(10, 10 + len(mask))
    kept = StreamBatch.from_full(images, Presence.from_mask(mask), target).keep(keep)
    left = (mask & keep).any(dim=1)
    presence = Presence.from_mask((mask & keep)[left])
    expected = StreamBatch.from_full([x[left] for x in images], presence, target[left])
    assert_same_batch(kept, expected)


def test_keep_needs_no_target() -> None:
    batch = compact_batch(mask_of("11 01"))
    kept = batch.keep(mask_of("10 11"))
    assert kept.target is None
    assert torch.equal(kept.presence.mask, mask_of("10 01"))


def test_map_reaches_every_pathway_and_leaves_the_rest() -> None:
    batch = compact_batch(mask_of("11 01 10"), integrated_channels=2)
    doubled = batch.map(lambda x: 2 * x)
    assert all(torch.equal(y, 2 * x) for x, y in zip(batch.streams, doubled.streams, strict=True))
    assert torch.equal(doubled.integrated, 2 * batch.integrated)
    assert doubled.presence is batch.presence
    assert compact_batch(mask_of("11 01")).map(torch.neg).integrated is None


def test_to_moves_everything_but_the_mask() -> None:
    mask = mask_of("110 101 011")
    target = torch.tensor([1, 2, 3])
    images = random_images(mask, size=(2, 3))
    batch = StreamBatch.from_full(images, Presence.from_mask(mask), target)
    assert_same_batch(batch.to("cpu"), batch)
    moved = batch.to(torch.device("meta"))
    index = [rows for rows in moved.presence.rows if isinstance(rows, Tensor)]
    assert index
    tensors = [*moved.streams, moved.target, moved.presence.restore_index, *index]
    assert {x.device.type for x in tensors} == {"meta"}
    assert moved.presence.mask.device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_pin_memory() -> None:
    batch = make_batch([RGB, DEPTH], NAMES, target=torch.tensor([1, 2, 3])).pin_memory()
    assert batch.target is not None
    assert all(x.is_pinned() for x in (*batch.streams, batch.target))


MASK = mask_of("11 01 10")
PRESENCE = Presence.from_mask(MASK)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([RGB], "there are 1 streams, and the presence has 2"),
        ([RGB, DEPTH, DEPTH], "there are 3 streams, and the presence has 2"),
        ([RGB, DEPTH[:2]], r"inputs\[1\] has shape \(2, 1, 4, 6\); expected \(3, C, H, W\)"),
        ([RGB, torch.cat([DEPTH, DEPTH])], r"inputs\[1\] has shape \(6, 1, 4, 6\); expected \(3,"),
        ([RGB[:, 0], DEPTH], r"inputs\[0\] has shape \(3, 4, 6\); expected \(3, C, H, W\)"),
    ],
)
def test_full_batches_that_do_not_fit_the_presence(inputs: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamBatch.from_full(inputs, PRESENCE)


def test_a_stream_that_nobody_has_needs_no_rows() -> None:
    batch = StreamBatch.from_full([RGB, DEPTH[:0]], Presence.from_mask(mask_of("10 10 10")))
    assert batch.streams[1].shape == (0, 1, 4, 6)


@pytest.mark.parametrize(
    ("streams", "integrated", "message"),
    [
        ((RGB[:2],), None, "there are 1 streams, and the presence has 2"),
        ((RGB, DEPTH), None, r"streams\[0\] has shape \(3, 3, 4, 6\); expected .* the 2 rows"),
        ((RGB[:2], DEPTH[:1]), None, r"streams\[1\] has shape \(1, 1, 4, 6\); expected .* the 2"),
        ((RGB[:2, 0], DEPTH[:2]), None, r"streams\[0\] has shape \(2, 4, 6\); expected"),
        ((RGB[:2], DEPTH[:2]), RGB[:2], r"integrated has shape \(2, 3, 4, 6\); expected \(3, C,"),
        ((), RGB[:, 0], r"integrated has shape \(3, 4, 6\); expected \(3, C, H, W\)"),
    ],
)
def test_a_batch_that_does_not_fit_its_presence(
    streams: tuple[Tensor, ...], integrated: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        StreamBatch(streams, PRESENCE, integrated)


def test_with_maps_keeps_the_rest() -> None:
    batch = StreamBatch((RGB[:2], DEPTH[:2]), PRESENCE, target=torch.arange(3), ids=("a", "b", "c"))
    other = batch.with_maps((), RGB)
    assert (other.streams, other.integrated) == ((), RGB)
    assert other.presence is batch.presence
    assert (other.target, other.ids) == (batch.target, batch.ids)
