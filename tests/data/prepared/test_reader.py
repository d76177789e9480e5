import hashlib
import json
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from manystream.data.image import UnreadableImageError
from manystream.data.prepared import prepared
from tests.data.builders import DEPTH, OTHER, RGB, noise, ramps, table_of
from tests.data.prepared.builders import contents, small_table, statistics_of, write_set


@pytest.fixture
def root(tmp_path):
    write_set(tmp_path / "set")
    return tmp_path / "set"


def test_every_byte_is_as_the_first_release_wrote_it(root):
    """What was written then is read now: the format is the same to the byte."""
    digests = {
        name: hashlib.sha256(content).hexdigest()
        for name, content in contents(root / "train").items()
    }
    assert digests == {
        "0-rgb.npy": "d797617a640900a5343ebee4daf21082b6970cbec81fdf316e474ecd1296ccb5",
        "1-depth.npy": "a8e093896fe98e1b78b9bd03a15ad59ea43007f79bff799244d3a055c961d63b",
        "index.json": "d9730c48f70f55319f8b0ddba08d0defafab84d8b7b0ca51d083f9a634747f15",
    }
    assert (root / "prepared.json").read_text() == '{"format": 1, "splits": ["train"]}\n'


def test_several_splits_are_one_table(root):
    write_set(root, small_table(12), "val")
    table = prepared(root)
    assert table.splits == ["train"] * 39 + ["val"] * 12
    for split, source in (("train", small_table()), ("val", small_table(12))):
        part = table.part(split)
        assert part.ids == source.ids
        for m in (0, 1):
            having = source.present[:, m].nonzero().flatten().tolist()
            expected = np.stack([source.read(i, m) for i in having])
            np.testing.assert_array_equal(part.read_many(having, m), expected)
    both = table.read_many([0, 39, 1], 0)
    np.testing.assert_array_equal(both[1], small_table(12).read(0, 0))
    np.testing.assert_array_equal(both[2], small_table().read(1, 0))


@pytest.mark.parametrize("name", ["0-rgb.npy", "1-depth.npy", "index.json"])
def test_every_flipped_byte_is_found(root, name):
    path = root / "train" / name
    whole = path.read_bytes()
    for place in range(0, len(whole), 41):
        flip_a_bit(path, place)
        with pytest.raises(ValueError, match=r"damaged|is not what was written"):
            prepared(root, verify=True)
        path.write_bytes(whole)
    prepared(root, verify=True)


def flip_a_bit(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_what_was_written_is_read(root):
    source, found = small_table(), prepared(root, splits=["train"])
    assert found.streams == (RGB, DEPTH)
    assert (found.classes, found.ids, found.groups) == (source.classes, source.ids, source.groups)
    assert torch.equal(found.targets, source.targets)
    assert torch.equal(found.present, source.present)
    known = found.known_statistics("train")
    assert known == statistics_of(source)
    for index, stream in source.present.nonzero().tolist():
        expected = source.read(index, stream)
        assert found.read(index, stream).dtype == expected.dtype
        np.testing.assert_array_equal(found.read(index, stream), expected)


def test_only_present_rows_are_stored(root):
    present = small_table().present.sum(dim=0).tolist()
    stored = [np.load(root / "train" / f).shape for f in ("0-rgb.npy", "1-depth.npy")]
    assert stored == [(present[0], 6, 8, 3), (present[1], 6, 8, 1)]


def test_many_images_are_read_at_once(root):
    found = prepared(root, splits=["train"])
    wanted = [9, 0, 3, 0]
    rows = found.read_many(wanted, 0)
    np.testing.assert_array_equal(rows, np.stack([found.read(i, 0) for i in wanted]))


def test_a_read_image_cannot_be_changed(root):
    image = prepared(root, splits=["train"]).read(0, 0)
    with pytest.raises(ValueError, match="read-only"):
        image[:] = 0


def test_streams_are_selected_by_name(root):
    source, found = small_table(), prepared(root, splits=["train"], streams=["depth"])
    kept = source.present[:, 1].nonzero().flatten().tolist()
    assert found.streams == (DEPTH,)
    assert found.ids == [source.ids[i] for i in kept]
    assert found.groups == [source.groups[i] for i in kept]
    for new, old in enumerate(kept):
        np.testing.assert_array_equal(found.read(new, 0), source.read(old, 1))
    both = prepared(root, splits=["train"], streams=["depth", "rgb"])
    np.testing.assert_array_equal(both.read(0, 1), source.read(0, 0))


def test_targets_follow_the_classes_of_training(root):
    found = prepared(root, splits=["train"], classes=("sofa", "desk", "bed"))
    assert found.classes == ("sofa", "desk", "bed")
    assert found.targets.tolist() == [2 - t for t in small_table().targets.tolist()]


def test_resized_images_keep_their_dtype(tmp_path):
    images = [[noise(12, 16), np.full((12, 16, 1), 700, np.uint16), ramps(12, 16)]]
    images.append([noise(30, 20), np.full((24, 16, 1), 800, np.uint16), None])
    source = table_of((RGB, DEPTH, OTHER), images)
    write_set(tmp_path, source, size=(6, 8))
    found = prepared(tmp_path, splits=["train"])
    assert [found.read(0, m).dtype for m in range(3)] == [np.uint8, np.uint16, np.float32]
    assert [found.read(0, m).shape for m in range(3)] == [(6, 8, 3), (6, 8, 1), (6, 8, 2)]
    assert (found.read(1, 1) == 800).all()
    ramp = found.read(0, 2)[1:-1, 1:-1]
    np.testing.assert_allclose(ramp, ramps(6, 8)[1:-1, 1:-1], atol=1e-5)
    means = [found.read(1, 0).mean(), noise(30, 20).mean()]
    assert means[0] == pytest.approx(means[1], abs=2)


def test_a_worker_maps_the_files_itself(root):
    found = prepared(root, splits=["train"])
    sent = pickle.dumps(found)
    assert len(sent) < 20_000 + sum(len(i) for i in found.ids)
    np.testing.assert_array_equal(pickle.loads(sent).read(3, 0), found.read(3, 0))


def test_a_stream_that_nobody_has(tmp_path):
    source = table_of((RGB, DEPTH), [[noise(4, 4), None], [noise(4, 4), None]])
    write_set(tmp_path, source)
    assert prepared(tmp_path, splits=["train"]).present.tolist() == [[True, False]] * 2


@pytest.mark.parametrize("change", [-1, +1])
def test_a_file_of_another_length_is_refused(root, change):
    path = root / "train" / "1-depth.npy"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"x")
    with pytest.raises(ValueError, match=r"damaged: .*1-depth\.npy: it has \d+ bytes; expected"):
        prepared(root, splits=["train"])


def test_another_header_is_refused(root):
    path = root / "train" / "1-depth.npy"
    path.write_bytes(path.read_bytes().replace(b"<u2", b"<i2"))
    with pytest.raises(ValueError, match=r"it holds int16 .*; expected uint16 of shape"):
        prepared(root, splits=["train"])


def test_a_missing_file_is_refused(root):
    (root / "train" / "0-rgb.npy").unlink()
    with pytest.raises(ValueError, match=r"damaged: .*0-rgb\.npy: .*prepare` again"):
        prepared(root, splits=["train"])


@pytest.mark.parametrize("old_new", [('"targets": [0', '"targets": [1'), ("{", "["), ("0", "1")])
def test_a_changed_index_is_refused(root, old_new):
    path = root / "train" / "index.json"
    path.write_text(path.read_text().replace(*old_new, 1))
    with pytest.raises(ValueError, match=r"damaged: .*index\.json"):
        prepared(root, splits=["train"])


def test_a_flipped_bit_is_never_handed_out(root):
    flip_a_bit(root / "train" / "0-rgb.npy")
    found = prepared(root, splits=["train"])
    last = found.present[:, 0].nonzero().flatten().tolist()[-1]
    found.read(0, 0)
    with pytest.raises(UnreadableImageError, match=r"0-rgb\.npy: row \d+ is not what was written"):
        found.read(last, 0)
    with pytest.raises(UnreadableImageError, match="is not what was written"):
        found.read_many([0, last], 0)


def test_a_flipped_bit_is_found_at_once_if_asked(root):
    prepared(root, splits=["train"], verify=True)
    flip_a_bit(root / "train" / "1-depth.npy", place=200)
    with pytest.raises(UnreadableImageError, match=r"1-depth\.npy: row 0 is not what was written"):
        prepared(root, splits=["train"], verify=True)


def test_a_split_that_is_not_there(root):
    with pytest.raises(ValueError, match=r"split 'val' is not in .*; splits there: train"):
        prepared(root, splits=["val"])
    with pytest.raises(ValueError, match=r"no stream 'lidar' in .*; it has rgb, depth"):
        prepared(root, splits=["train"], streams=["lidar"])
    with pytest.raises(ValueError, match="classes that training lacks: desk"):
        prepared(root, splits=["train"], classes=("bed", "sofa"))


def test_another_format_is_refused(root):
    marker = root / "prepared.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "format": 99}))
    with pytest.raises(ValueError, match="has format 99; expected 1: prepare the set again"):
        prepared(root, splits=["train"])


def test_workers_read_what_the_process_reads(root):
    found = prepared(root, splits=["train"], streams=["rgb"])

    class Images:
        def __len__(self):
            return len(found.ids)

        def __getitem__(self, index):
            return found.read(index, 0).copy()

    loader = DataLoader(Images(), batch_size=None, num_workers=1)
    for index, image in enumerate(loader):
        np.testing.assert_array_equal(image, found.read(index, 0))
