import json
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from manystream.data.image import UnreadableImageError
from manystream.data.prepared import PreparedSource
from manystream.data.survey import survey
from tests.data.builders import DEPTH, OTHER, RGB, ArraySource, noise, ramps
from tests.data.prepared.builders import prepared, small_source


@pytest.fixture
def root(tmp_path):
    prepared(tmp_path / "set")
    return tmp_path / "set"


def flip_a_bit(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_what_was_written_is_read(root):
    source, found = small_source(), PreparedSource(root, "train")
    assert found.streams == (RGB, DEPTH)
    assert (found.classes, found.ids, found.groups) == (source.classes, source.ids, source.groups)
    assert torch.equal(found.targets, source.targets)
    assert torch.equal(found.present, source.present)
    assert found.statistics == survey(source).statistics
    for index, stream in source.present.nonzero().tolist():
        expected = source.read(index, stream)
        assert found.read(index, stream).dtype == expected.dtype
        np.testing.assert_array_equal(found.read(index, stream), expected)


def test_only_present_rows_are_stored(root):
    present = small_source().present.sum(dim=0).tolist()
    stored = [np.load(root / "train" / f).shape for f in ("0-rgb.npy", "1-depth.npy")]
    assert stored == [(present[0], 6, 8, 3), (present[1], 6, 8, 1)]


def test_many_images_are_read_at_once(root):
    found = PreparedSource(root, "train")
    wanted = [9, 0, 3, 0]
    rows = found.read_many(wanted, 0)
    np.testing.assert_array_equal(rows, np.stack([found.read(i, 0) for i in wanted]))


def test_a_read_image_cannot_be_changed(root):
    image = PreparedSource(root, "train").read(0, 0)
    with pytest.raises(ValueError, match="read-only"):
        image[:] = 0


def test_streams_are_selected_by_name(root):
    source, found = small_source(), PreparedSource(root, "train", ["depth"])
    kept = source.present[:, 1].nonzero().flatten().tolist()
    assert found.streams == (DEPTH,)
    assert found.ids == [source.ids[i] for i in kept]
    assert found.groups == [source.groups[i] for i in kept]
    for new, old in enumerate(kept):
        np.testing.assert_array_equal(found.read(new, 0), source.read(old, 1))
    both = PreparedSource(root, "train", ["depth", "rgb"])
    np.testing.assert_array_equal(both.read(0, 1), source.read(0, 0))


def test_targets_follow_the_classes_of_training(root):
    found = PreparedSource(root, "train", classes=("sofa", "desk", "bed"))
    assert found.classes == ("sofa", "desk", "bed")
    assert found.targets.tolist() == [2 - t for t in small_source().targets.tolist()]


def test_resized_images_keep_their_dtype(tmp_path):
    images = [[noise(12, 16), np.full((12, 16, 1), 700, np.uint16), ramps(12, 16)]]
    images.append([noise(30, 20), np.full((24, 16, 1), 800, np.uint16), None])
    source = ArraySource((RGB, DEPTH, OTHER), images)
    prepared(tmp_path, source, size=(6, 8))
    found = PreparedSource(tmp_path, "train")
    assert [found.read(0, m).dtype for m in range(3)] == [np.uint8, np.uint16, np.float32]
    assert [found.read(0, m).shape for m in range(3)] == [(6, 8, 3), (6, 8, 1), (6, 8, 2)]
    assert (found.read(1, 1) == 800).all()
    ramp = found.read(0, 2)[1:-1, 1:-1]
    np.testing.assert_allclose(ramp, ramps(6, 8)[1:-1, 1:-1], atol=1e-5)
    means = [found.read(1, 0).mean(), noise(30, 20).mean()]
    assert means[0] == pytest.approx(means[1], abs=2)


def test_a_worker_maps_the_files_itself(root):
    found = PreparedSource(root, "train")
    sent = pickle.dumps(found)
    assert len(sent) < 20_000 + sum(len(i) for i in found.ids)
    np.testing.assert_array_equal(pickle.loads(sent).read(3, 0), found.read(3, 0))


def test_a_stream_that_nobody_has(tmp_path):
    source = ArraySource((RGB, DEPTH), [[noise(4, 4), None], [noise(4, 4), None]])
    prepared(tmp_path, source)
    assert PreparedSource(tmp_path, "train").present.tolist() == [[True, False]] * 2


@pytest.mark.parametrize("change", [-1, +1])
def test_a_file_of_another_length_is_refused(root, change):
    path = root / "train" / "1-depth.npy"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"x")
    with pytest.raises(ValueError, match=r"damaged: .*1-depth\.npy: it has \d+ bytes; expected"):
        PreparedSource(root, "train")


def test_another_header_is_refused(root):
    path = root / "train" / "1-depth.npy"
    path.write_bytes(path.read_bytes().replace(b"<u2", b"<i2"))
    with pytest.raises(ValueError, match=r"it holds int16 .*; expected uint16 of shape"):
        PreparedSource(root, "train")


def test_a_missing_file_is_refused(root):
    (root / "train" / "0-rgb.npy").unlink()
    with pytest.raises(ValueError, match=r"damaged: .*0-rgb\.npy: .*prepare` again"):
        PreparedSource(root, "train")


@pytest.mark.parametrize("old_new", [('"targets": [0', '"targets": [1'), ("{", "["), ("0", "1")])
def test_a_changed_index_is_refused(root, old_new):
    path = root / "train" / "index.json"
    path.write_text(path.read_text().replace(*old_new, 1))
    with pytest.raises(ValueError, match=r"damaged: .*index\.json"):
        PreparedSource(root, "train")


def test_a_flipped_bit_is_never_handed_out(root):
    flip_a_bit(root / "train" / "0-rgb.npy")
    found = PreparedSource(root, "train")
    last = found.present[:, 0].nonzero().flatten().tolist()[-1]
    found.read(0, 0)
    with pytest.raises(UnreadableImageError, match=r"0-rgb\.npy: row \d+ is not what was written"):
        found.read(last, 0)
    with pytest.raises(UnreadableImageError, match="is not what was written"):
        found.read_many([0, last], 0)


def test_a_flipped_bit_is_found_at_once_if_asked(root):
    PreparedSource(root, "train", verify=True)
    flip_a_bit(root / "train" / "1-depth.npy", place=200)
    with pytest.raises(UnreadableImageError, match=r"1-depth\.npy: row 0 is not what was written"):
        PreparedSource(root, "train", verify=True)


def test_a_split_that_is_not_there(root):
    with pytest.raises(ValueError, match=r"split 'val' is not in .*; splits there: train"):
        PreparedSource(root, "val")
    with pytest.raises(ValueError, match=r"no stream 'lidar' in .*; it has rgb, depth"):
        PreparedSource(root, "train", ["lidar"])
    with pytest.raises(ValueError, match="classes that training lacks: desk"):
        PreparedSource(root, "train", classes=("bed", "sofa"))


def test_another_format_is_refused(root):
    marker = root / "prepared.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "format": 99}))
    with pytest.raises(ValueError, match="has format 99; expected 1: prepare the set again"):
        PreparedSource(root, "train")


def test_workers_read_what_the_process_reads(root):
    found = PreparedSource(root, "train", ["rgb"])

    class Images:
        def __len__(self):
            return len(found.ids)

        def __getitem__(self, index):
            return found.read(index, 0).copy()

    loader = DataLoader(Images(), batch_size=None, num_workers=1)
    for index, image in enumerate(loader):
        np.testing.assert_array_equal(image, found.read(index, 0))
