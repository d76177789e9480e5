import pytest
import torch

from manystream.batch import StreamBatch, read_batch
from manystream.presence import Presence
from tests.builders import mask_of

STREAMS = {"rgb": 3, "depth": 1}
RGB, DEPTH = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
TARGET = torch.tensor([0, 4])


def read(batch) -> StreamBatch:
    return read_batch(batch, STREAMS)


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_tuple_in_the_models_order(kind):
    compact = read(kind([RGB, DEPTH, TARGET]))
    assert torch.equal(compact.streams[0], RGB)
    assert torch.equal(compact.streams[1], DEPTH)
    assert torch.equal(compact.target, TARGET)
    assert compact.presence.mask.all()


def test_without_a_target():
    assert read((RGB, DEPTH)).target is None
    assert read({"rgb": RGB}).target is None


def test_a_dict_by_name():
    present = mask_of("01 11")
    compact = read({"target": TARGET, "depth": DEPTH, "present": present, "rgb": RGB})
    assert torch.equal(compact.presence.mask, present)
    assert torch.equal(compact.streams[0], RGB[1:])
    assert torch.equal(compact.target, TARGET)


def test_a_stream_that_a_dict_lacks_is_absent():
    assert read({"depth": DEPTH, "target": TARGET}).presence.mask.tolist() == [[False, True]] * 2


def test_a_dict_is_left_as_it_is():
    batch = {"rgb": RGB, "depth": DEPTH, "target": TARGET}
    read(batch)
    assert list(batch) == ["rgb", "depth", "target"]


def test_a_compact_batch_passes():
    batch = StreamBatch.from_full([RGB, DEPTH], Presence.all_present(2, 2), TARGET)
    assert read(batch) is batch


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((RGB,), r"is 1 tensors; expected \(rgb, depth, target\), a dict"),
        ((RGB, DEPTH, TARGET, TARGET), "is 4 tensors"),
        (RGB, "is Tensor; expected"),
        ({"rgb": RGB, "lidar": DEPTH, "target": TARGET}, "unknown stream 'lidar'"),
        ({"target": TARGET}, "hold no stream"),
        ((RGB, DEPTH[:1], TARGET), "streams differ in batch size"),
        ((RGB, DEPTH[:, :, :3], TARGET), "streams differ in batch size, height or width"),
        ((DEPTH, RGB, TARGET), r"'rgb' has shape \(2, 1, 4, 4\); expected \(B, 3, H, W\)"),
        ((RGB.to(torch.uint8), DEPTH, TARGET), "'rgb' is torch.uint8; expected floating point"),
        ({"rgb": RGB, "depth": DEPTH, "present": mask_of("11 00")}, "without any stream: 1"),
        ({"rgb": RGB, "depth": DEPTH, "present": mask_of("11")}, "expected bool of shape"),
    ],
)
def test_batches_that_do_not_fit(batch, message):
    with pytest.raises(ValueError, match=message):
        read(batch)


def test_a_target_may_be_a_tree():
    tree = {"class": TARGET, "boxes": (torch.rand(2, 4), torch.rand(2, 1))}
    compact = read((RGB, DEPTH, tree))
    kept = compact.keep(mask_of("00 11")).target
    assert torch.equal(kept["class"], TARGET[1:])
    assert all(torch.equal(k, t[1:]) for k, t in zip(kept["boxes"], tree["boxes"], strict=True))
    moved = compact.to("meta").target
    assert {moved["class"].device.type, moved["boxes"][1].device.type} == {"meta"}


def test_no_sample_at_all():
    assert len(read((RGB[:0], DEPTH[:0], TARGET[:0]))) == 0
