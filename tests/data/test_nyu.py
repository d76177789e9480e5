import sys

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from manystream.data.nyu import COMMON_TYPES, SCENE_TYPES, is_nyu, nyu
from manystream.data.splitting import HeldOut
from manystream.data.streams import StreamSpec
from manystream.data.survey import look_at
from tests.data import official
from tests.data.official import NYU_FRAMES, SHAPE, part_of

RGB, DEPTH = 0, 1
nyu_module = sys.modules["manystream.data.nyu"]
FILE = "nyu_depth_v2_labeled.mat"


@pytest.fixture
def root(tmp_path):
    return official.write_nyu(tmp_path)


def numbers(training: bool) -> list[int]:
    return [i for i, frame in enumerate(NYU_FRAMES) if frame[2] == training]


def test_the_lists_of_classes():
    assert len(SCENE_TYPES) == len(set(SCENE_TYPES)) == 27
    assert len(COMMON_TYPES) == 9
    assert set(COMMON_TYPES) < set(SCENE_TYPES)


def test_the_official_splits_count_from_1(root):
    assert part_of(nyu, root, "trainval").ids == [f"{i + 1:04d}" for i in numbers(True)]
    assert part_of(nyu, root, "test").ids == ["0001", "0002", "0009"]


def test_ten_classes_take_rare_types_as_other(root):
    source = part_of(nyu, root, "trainval")
    assert source.classes == (*COMMON_TYPES, "other")
    expected = [t if t in COMMON_TYPES else "other" for t, _, training in NYU_FRAMES if training]
    assert [source.classes[t] for t in source.targets] == expected
    assert "other" in expected


def test_27_classes_are_the_types(root):
    source = part_of(nyu, root, "trainval", num_classes=27)
    assert source.classes == SCENE_TYPES
    assert [SCENE_TYPES[t] for t in source.targets] == [NYU_FRAMES[i][0] for i in numbers(True)]


@pytest.mark.parametrize(
    ("depth", "written"), [("filled", official.nyu_depth), ("raw", official.nyu_raw_depth)]
)
def test_images_are_turned_and_depth_is_in_metres(root, depth, written):
    source = part_of(nyu, root, "trainval", depth=depth)
    assert source.streams == (
        StreamSpec("rgb", 3, "color"),
        StreamSpec("depth", 1, "depth", "m"),
    )
    for index, number in enumerate(numbers(True)):
        color, metres = source.read(index, RGB), source.read(index, DEPTH)
        assert (color.dtype, metres.dtype) == (np.uint8, np.float32)
        assert metres.shape == (*SHAPE, 1)
        np.testing.assert_array_equal(color, official.nyu_image(number))
        np.testing.assert_array_equal(metres[..., 0], written(number))


def test_groups_are_scenes_and_validation_shares_none(root):
    lines = []
    train = part_of(nyu, root, "train", val_share=0.4)
    val = part_of(nyu, root, "val", lines.append, val_share=0.4)
    everything = part_of(nyu, root, "trainval")
    assert everything.groups == [NYU_FRAMES[i][1] for i in numbers(True)]
    assert sorted(train.ids + val.ids) == everything.ids
    assert not set(train.groups) & set(val.groups)
    assert lines[0].startswith("val: ")
    assert "0.0% of them show a scene that is in training" in lines[0]


def test_recordings_of_one_room_are_one_group(tmp_path):
    parts = (
        ("cafe", "cafe_0001a", True),
        ("cafe", "cafe_0001b", True),
        ("cafe", "cafe_0002", True),
    )
    source = part_of(nyu, official.write_nyu(tmp_path, (NYU_FRAMES[0], *parts)), "trainval")
    assert source.groups == ["cafe_0001", "cafe_0001", "cafe_0002"]


def test_streams_are_chosen_by_name(root):
    alone = part_of(nyu, root, "trainval", streams=["depth"])
    np.testing.assert_array_equal(alone.read(0, 0)[..., 0], official.nyu_depth(numbers(True)[0]))


@pytest.mark.parametrize("place", [".", FILE])
def test_the_root_is_the_file_or_its_folder(root, place):
    assert is_nyu(root / place)
    assert len(part_of(nyu, root / place, "test").ids) == 3


def test_a_look_is_kept_and_taken_again_when_the_file_changes(root):
    table, counted = part_of(nyu, root, "trainval"), []
    first = look_at(table, progress=lambda *of: counted.append(of))
    assert len(counted) == len(first) == 2 * len(table)
    again = look_at(part_of(nyu, root, "trainval"), progress=lambda *of: counted.append(of))
    assert again.keys() == first.keys()
    assert len(counted) == len(first)
    with h5py.File(root / FILE, "r+") as file:
        file["depths"][2] = 7
    changed = look_at(part_of(nyu, root, "trainval"))
    assert changed[0, DEPTH].constant == 7
    assert first[0, DEPTH].constant is None


def test_missing_files_say_where_to_get_them(root):
    (root / "splits.mat").unlink()
    with pytest.raises(ValueError, match=rf"no file {root}/splits\.mat; get splits\.mat from http"):
        part_of(nyu, root, "train")
    (root / FILE).unlink()
    with pytest.raises(ValueError, match=rf"no file {root}/{FILE}; get .* from https://cs\.nyu"):
        part_of(nyu, root, "train")


def test_a_torn_file(root):
    official.torn_png(root / FILE)
    with pytest.raises(ValueError, match=rf"cannot read 'sceneTypes' of the MATLAB file .*{FILE}"):
        part_of(nyu, root, "train")


def test_a_file_that_tears_later_is_unreadable(root):
    source = part_of(nyu, root, "trainval")
    official.torn_png(root / FILE)
    found = look_at(source)
    assert all(look.problem for look in found.values())
    assert len(found) == 2 * len(source.ids)
    assert source.path(0, RGB) == root / FILE / "images" / "0003"


def test_a_file_without_an_array(root):
    with h5py.File(root / FILE, "r+") as file:
        del file["rawDepths"]
    with pytest.raises(ValueError, match="cannot read 'rawDepths'"):
        part_of(nyu, root, "train")


def test_arrays_of_different_lengths(root):
    with h5py.File(root / FILE, "r+") as file:
        del file["depths"]
        file["depths"] = np.zeros((3, *SHAPE[::-1]), np.float32)
    with pytest.raises(ValueError, match=r"is not as expected: .*'depths': 3"):
        part_of(nyu, root, "train")


@pytest.mark.parametrize("listed", [[0, 3], [3, 99], []])
def test_a_split_of_another_file(root, listed):
    splits = {"trainNdxs": np.array([listed]).T, "testNdxs": np.array([[1]])}
    savemat(root / "splits.mat", splits)
    with pytest.raises(ValueError, match=r"splits\.mat names frames that are not among the 11"):
        part_of(nyu, root, "train")


def test_an_unknown_scene_type_stops_or_is_counted(tmp_path):
    frames = (*NYU_FRAMES, ("spaceship", "spaceship_0001", True))
    official.write_nyu(tmp_path, frames)
    reason = rf"unknown type: 1\n  .*{FILE}, frame 12: its scene type 'spaceship' is none of the 27"
    with pytest.raises(ValueError, match=reason):
        part_of(nyu, tmp_path, "trainval")
    lines = []
    source = part_of(nyu, tmp_path, "trainval", lines.append, on_error="skip")
    assert len(source.ids) == len(numbers(True))
    assert "frame 12" in lines[0]


def test_everything_is_one_table_and_read_once(root, monkeypatch):
    read = []
    for name in ("read_strings", "read_numbers"):
        original = getattr(nyu_module, name)
        noted = lambda *of, original=original: read.append(of[1]) or original(*of)  # noqa: E731
        monkeypatch.setattr(nyu_module, name, noted)
    lines = []
    table = nyu(root, held_out=HeldOut(0.4), report=lines.append)
    assert sorted(read) == sorted({"sceneTypes", "scenes", "trainNdxs", "testNdxs"})
    assert table.held_out == HeldOut(0.4)
    assert [table.part(split).ids for split in ("train", "val", "test", "trainval")] == [
        part_of(nyu, root, split, val_share=0.4).ids
        for split in ("train", "val", "test", "trainval")
    ]
    assert len(lines) == 1
