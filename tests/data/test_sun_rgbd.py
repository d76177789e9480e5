import sys

import numpy as np
import pytest

from manystream.data.splitting import HeldOut
from manystream.data.streams import StreamSpec
from manystream.data.sun_rgbd import CLASSES, DecodeDepth, is_sun_rgbd, scene_groups, sun_rgbd
from manystream.data.survey import look_at
from tests.data import official
from tests.data.builders import write_image
from tests.data.official import SHAPE, SUN_TEST, SUN_TRAIN, part_of

RGB, DEPTH = 0, 1
sun_rgbd_module = sys.modules["manystream.data.sun_rgbd"]
OFFICE = "kv1/NYUdata/NYU0003"


@pytest.fixture
def root(tmp_path):
    return official.write_sun(tmp_path)


def kept(folders) -> list[str]:
    return [folder for folder, label in folders.items() if label in CLASSES]


def test_the_19_classes():
    assert len(CLASSES) == len(set(CLASSES)) == 19
    assert list(CLASSES) == sorted(CLASSES)


def test_the_official_training_split_of_the_19_classes(root):
    source = part_of(sun_rgbd, root, "trainval")
    assert source.ids == kept(SUN_TRAIN)
    assert [CLASSES[t] for t in source.targets] == [SUN_TRAIN[i] for i in source.ids]
    assert source.present.all()
    assert source.streams == (
        StreamSpec("rgb", 3, "color"),
        StreamSpec("depth", 1, "depth", "m"),
    )


def test_the_official_test_split(root):
    source = part_of(sun_rgbd, root, "test")
    assert source.ids == list(SUN_TEST)
    assert [CLASSES[t] for t in source.targets] == ["kitchen", "bedroom"]


@pytest.mark.parametrize(("depth", "more"), [("filled", 1), ("raw", 0)])
def test_depth_is_decoded_to_the_millimetre(root, depth, more):
    source = part_of(sun_rgbd, root, "trainval", depth=depth)
    for index, folder in enumerate(source.ids):
        expected = (official.sun_depth(list(SUN_TRAIN).index(folder)) + more) / 1000
        expected[0, 1] = 8
        found = source.read(index, DEPTH)
        assert found.dtype == np.float32
        assert found.shape == (*SHAPE, 1)
        np.testing.assert_array_equal(found[..., 0], expected.astype(np.float32))


def test_color_is_read_from_image_and_not_from_fullres(root):
    source = part_of(sun_rgbd, root, "trainval")
    found = source.read(3, RGB)
    assert (found.shape, found.dtype) == ((*SHAPE, 3), np.uint8)
    assert abs(found.mean() - 30) < 2


@pytest.mark.parametrize("millimetres", [0, 1, 7, 8, 1234, 7999, 8000])
def test_every_bit_of_depth_comes_back(millimetres):
    stored = official.rotated(np.full((1, 1, 1), millimetres))
    assert DecodeDepth()(stored).item() == np.float32(millimetres / 1000)


def test_the_three_bits_that_are_turned_around_make_far_depth():
    assert official.rotated(np.array([0xE000]))[0] == 7
    assert DecodeDepth()(np.array([7], np.uint16)).item() == 8


def test_depth_that_is_not_16_bit_is_unreadable(root):
    write_image(root / "SUNRGBD" / OFFICE / "depth/0000103.png", np.zeros(SHAPE, np.uint8))
    table = part_of(sun_rgbd, root, "trainval", depth="raw")
    found = {image: look.problem for image, look in look_at(table).items() if look.problem}
    ((image, reason),) = found.items()
    assert table.path(*image) == root / "SUNRGBD" / OFFICE / "depth/0000103.png"
    assert reason == "its values are uint8; expected a 16-bit PNG"


def test_validation_is_held_out_by_room(root):
    lines = []
    train = part_of(sun_rgbd, root, "train", val_share=0.4)
    val = part_of(sun_rgbd, root, "val", lines.append, val_share=0.4)
    assert sorted(train.ids + val.ids) == sorted(kept(SUN_TRAIN))
    assert not set(train.groups) & set(val.groups)
    assert set(val.targets.tolist()) == set(train.targets.tolist())
    assert "0.0% of them show a scene that is in training" in lines[-1]


def test_classes_outside_the_19_are_counted(root):
    lines = []
    part_of(sun_rgbd, root, "trainval", lines.append)
    assert lines == [
        "trainval: 1 of 12 official samples are outside the 19 classes and left out: idk 1"
    ]


def test_a_stream_without_a_file_is_absent(root):
    for folder in ("depth_bfx", "depth"):
        (root / "SUNRGBD" / OFFICE / folder / "0000103.png").unlink()
    (root / "SUNRGBD" / OFFICE / "depth").rmdir()
    for depth in ("filled", "raw"):
        source = part_of(sun_rgbd, root, "trainval", depth=depth)
        index = source.ids.index(OFFICE)
        assert source.present[index].tolist() == [True, False]
        assert int(source.present.sum()) == 2 * len(source.ids) - 1


def test_streams_are_chosen_by_name_and_do_not_change_the_split(root):
    both, alone = (part_of(sun_rgbd, root, "train", streams=names) for names in (None, ["depth"]))
    assert [s.name for s in alone.streams] == ["depth"]
    assert alone.ids == both.ids
    with pytest.raises(ValueError, match="no stream 'lidar' in the data; it has rgb, depth"):
        part_of(sun_rgbd, root, "train", streams=["lidar"])


@pytest.mark.parametrize("place", [".", "SUNRGBD"])
def test_the_root_is_the_tree_or_the_folder_around_it(root, place):
    assert is_sun_rgbd(root / place)
    assert len(part_of(sun_rgbd, root / place, "test").ids) == 2


def test_other_folders_are_not_sun_rgbd(tmp_path):
    (tmp_path / "train/rgb").mkdir(parents=True)
    assert not is_sun_rgbd(tmp_path)


@pytest.mark.parametrize("kind", [{}, {"do_compression": True}, {"format": "5", "oned_as": "row"}])
def test_versions_of_the_split_file(tmp_path, kind):
    assert len(part_of(sun_rgbd, official.write_sun(tmp_path, **kind), "test").ids) == 2


def test_a_missing_split_file_says_where_to_get_it(root):
    path = root / "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
    path.unlink()
    with pytest.raises(ValueError, match=rf"no official split at {path}; .*rgbd\.cs\.princeton"):
        part_of(sun_rgbd, root, "train")


def test_a_missing_tree_says_where_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"no kv1, kv2.* unpack it there from .*SUNRGBD\.zip"):
        part_of(sun_rgbd, tmp_path, "train")


def test_a_torn_split_file(root):
    official.torn_png(root / "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat")
    with pytest.raises(ValueError, match=r"cannot read 'alltest' of the MATLAB file .*allsplit"):
        part_of(sun_rgbd, root, "test")


def test_an_unknown_split(root):
    with pytest.raises(ValueError, match="'dev' is none of these data; expected train, val"):
        part_of(sun_rgbd, root, "dev")


def test_a_split_that_leads_out_of_the_tree(root):
    official.write_sun_split(root / "SUNRGBD", ["kv1/../../../etc"], list(SUN_TEST))
    with pytest.raises(ValueError, match=r"lists '/n/fs/.*/etc'; expected a folder"):
        part_of(sun_rgbd, root, "train")


def second_image(scene):
    write_image(scene / "image/1.jpg", np.zeros((*SHAPE, 3), np.uint8))


def link_to_itself(scene):
    (scene / "depth_bfx/0000103.png").unlink()
    (scene / "depth_bfx").rmdir()
    (scene / "depth_bfx").symlink_to("depth_bfx")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda scene: (scene / "scene.txt").unlink(),
            r"NYU0003/scene\.txt: it is missing; unpack it",
        ),
        (
            lambda scene: (scene / "scene.txt").write_text(" \n"),
            r"NYU0003/scene\.txt: its label is empty",
        ),
        (lambda scene: (scene / "scene.txt").write_bytes(b"caf\xe9"), r"NYU0003: .*utf-8"),
        (second_image, r"NYU0003: image holds 0000103\.jpg and 1\.jpg; expected one image"),
        (link_to_itself, r"NYU0003: .*symbolic links"),
    ],
)
def test_an_unusable_folder_stops_or_is_counted(root, spoil, reason):
    spoil(root / "SUNRGBD" / OFFICE)
    with pytest.raises(ValueError, match=rf"unusable folders: 1\n  .*{reason}"):
        part_of(sun_rgbd, root, "trainval")
    lines = []
    source = part_of(sun_rgbd, root, "trainval", lines.append, on_error="skip")
    assert OFFICE not in source.ids
    assert len(source.ids) == len(kept(SUN_TRAIN)) - 1
    assert "unusable folders: 1" in lines[0]


def test_everything_is_one_table_and_each_folder_looked_at_once(root, monkeypatch):
    looked = []
    original = sun_rgbd_module._look_at
    monkeypatch.setattr(
        sun_rgbd_module, "_look_at", lambda *of: looked.append(of[1]) or original(*of)
    )
    lines = []
    table = sun_rgbd(root, held_out=HeldOut(0.4), report=lines.append)
    assert looked == [*SUN_TRAIN, *SUN_TEST]
    assert [table.part(split).ids for split in ("train", "val", "test", "trainval")] == [
        part_of(sun_rgbd, root, split, val_share=0.4).ids
        for split in ("train", "val", "test", "trainval")
    ]
    assert len(lines) == 2


def together(*folders: str, labels=None) -> bool:
    """Whether all folders are one group."""
    return len(set(scene_groups(folders, labels or ["office"] * len(folders)))) == 1


def test_all_recordings_of_a_place_are_together():
    assert together(
        "xtion/sun3ddata/brown_bm_1/brown_bm_1/0000103-000003416566",
        "xtion/sun3ddata/brown_bm_1/other_visit/0000001-000000000000",
    )
    assert not together(
        "xtion/sun3ddata/brown_bm_1/brown_bm_1/0000103-000003416566",
        "xtion/sun3ddata/brown_bm_2/brown_bm_2/0000103-000003416566",
    )


def test_frames_of_a_video_are_together_whatever_their_number():
    video = "kv2/kinect2data/{}_2014-05-26_14-{}_260595134347_rgbf{}-resize"
    assert together(video.format("000002", "23-37", "000103"), video.format("9", "23-37", "7"))
    assert not together(video.format("1", "23-37", "103"), video.format("1", "23-38", "103"))


def test_consecutive_numbers_of_one_label_are_together():
    nyu = "kv1/NYUdata/NYU{}"
    assert together(nyu.format("0003"), nyu.format("0004"), nyu.format("0005"))
    assert together(nyu.format("0004"), nyu.format("0003"))
    assert not together(nyu.format("0003"), nyu.format("0005"))
    assert not together(nyu.format("0003"), nyu.format("0004"), labels=["office", "kitchen"])
    assert not together(nyu.format("0003"), "kv1/b3dodata/img_0004")
    assert together("kv1/b3dodata/img_0063", "kv1/b3dodata/img_0064")


def test_pictures_of_one_visit_are_together():
    shot = "realsense/{}/2014_10_21-15_21_{}-1311000073"
    assert together(shot.format("sa", "11"), shot.format("sa", "59"))
    assert not together(shot.format("sa", "11"), shot.format("lg", "12"))
    assert not together(shot.format("sa", "11"), shot.format("sa", "12"), labels=["lab", "office"])
    minute_apart = [
        "kv2/align_kv2/2014-12-18_11-3{}-54_2605",
        "xtion/xtion_align_data/2014_12_18_12_{}_40",
    ]
    for name in minute_apart:
        assert together(name.format(1), name.format(2))
        assert together(name.format(1), name.format(3), name.format(2))
        assert not together(name.format(1), name.format(3))


def test_a_visit_may_pass_midnight():
    assert together("realsense/sa/2014_10_31-23_59_50-1", "realsense/sa/2014_11_01-00_00_10-1")


def test_names_that_tell_nothing_are_alone():
    folders = ["kv2/x/room", "realsense/sa/2014_99_99-15_21_11-1", "realsense/sa/hall"]
    assert scene_groups(folders, ["office"] * 3) == folders
