import csv
from dataclasses import replace

import numpy as np
import pytest

from manystream.data.folder import unlabelled
from manystream.data.opening import identified, open_data, recognise
from manystream.data.options import DataOptions
from manystream.data.problems import Problems
from manystream.data.streams import StreamSpec
from manystream.data.usable import look_over, usable_samples
from tests.data import official
from tests.data.builders import DEPTH, noise, write_image

METRIC = StreamSpec("depth", 1, "depth", "m")


def silent(line):
    """Take a line that nobody needs to see."""


def usable(options, split, streams=None, classes=None, report=silent, progress=None):
    """One split's usable samples, and their statistics."""
    table = open_data(options, [split], streams=streams, classes=classes, report=report)
    found = usable_samples(table, [split], options, report=report, progress=progress)
    return found.table, found.statistics[split]


def write_manifest(root):
    rows = [("rgb", "depth", "label", "group")]
    for number in range(12):
        rgb, depth = f"rgb/{number}.png", f"depth/{number}.npy"
        write_image(root / rgb, noise(6, 8))
        write_image(root / depth, np.full((6, 8), 100 + number, np.float32))
        rows.append((rgb, depth, ("bed", "desk")[number % 2], f"room{number // 2}"))
    path = root / "all.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def write_folders(root):
    for split in ("train", "val"):
        for name in ("bed/a", "desk/b"):
            write_image(root / split / "rgb" / f"{name}.png", noise(6, 8))
    return root


WRITERS = {
    "folder": write_folders,
    "sun_rgbd": official.write_sun,
    "nyu": official.write_nyu,
    "manifest": write_manifest,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_at_the_root_is_found_out_said_and_opened(tmp_path, name):
    root = WRITERS[name](tmp_path)
    assert recognise(root) == name
    lines = []
    options = identified(DataOptions(root=root, val_share=0.4), lines.append)
    assert options.format == name
    assert len(lines) == 1
    assert lines[0].endswith(f" at {root}")
    assert identified(options, lines.append) is options
    table = open_data(options, report=lines.append)
    train, val = table.part("train"), table.part("val")
    assert not set(train.ids) & set(val.ids) or name == "folder"
    found = usable_samples(table, ("train", "val"), options, report=lines.append)
    assert len(found.statistics["train"]) == len(train.streams)
    assert sum(line.startswith("found ") for line in lines) == 1


def test_the_first_look_at_every_image_is_counted(tmp_path):
    options, counted = DataOptions(root=write_manifest(tmp_path), val_share=0.4), []

    def opened(split):
        return usable(options, split, progress=lambda *of: counted.append(of))[0]

    total = int(opened("train").present.sum())
    assert counted == [(done + 1, total) for done in range(total)]
    opened("train")  # what was found is kept
    assert len(counted) == total


def test_what_is_said_to_be_at_the_root_is_not_searched_for(tmp_path):
    root = write_folders(tmp_path)
    with pytest.raises(ValueError, match="no kv1, kv2, realsense or xtion in"):
        usable(DataOptions(root=root, format="sun_rgbd"), "train")
    with pytest.raises(ValueError, match=r"no file .*nyu_depth_v2_labeled\.mat; get it|get nyu"):
        usable(DataOptions(root=root, format="nyu"), "train")
    with pytest.raises(ValueError, match="no manifest at"):
        usable(DataOptions(root=root, format="manifest"), "train")


@pytest.mark.parametrize("name", ["nothing", "notes.txt"])
def test_nothing_that_can_be_opened(tmp_path, name):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"root .* is no data set; expected a folder laid"):
        identified(DataOptions(root=tmp_path / name))


def test_a_model_of_other_streams_or_classes_is_refused(tmp_path):
    options = DataOptions(root=official.write_sun(tmp_path))
    train, _ = usable(options, "trainval")
    with pytest.raises(ValueError, match=r"on the classes bed, desk, .* has bathroom"):
        usable(options, "test", train.streams, ("bed", "desk"))
    with pytest.raises(ValueError, match=r"on the streams depth \(1 of depth\), .* in m\)"):
        usable(options, "test", (DEPTH,), train.classes)


def odd_manifest(tmp_path):
    path = write_manifest(tmp_path)
    for number in (3, 4):
        depth = np.full((6, 8), 100, np.float32)
        depth[0, :number] = np.nan if number == 3 else -1
        write_image(tmp_path / f"depth/{number}.npy", depth)
    return DataOptions(root=path, format="manifest", units={"depth": "cm"})


def test_nan_and_negative_depth_stop_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"no depth: 2\n  .*3\.npy: 3 of 48 .*\n.*4\.npy: 4 of 48"):
        usable(odd_manifest(tmp_path), "trainval")


def test_nan_and_negative_depth_count_as_no_reading_if_that_is_chosen(tmp_path):
    lines = []
    options = replace(odd_manifest(tmp_path), on_error="skip")
    source, statistics = usable(options, "trainval", report=lines.append)
    assert lines[0].endswith("skipped: they count as no reading")
    assert source.present.all()
    readings = [1 + n / 100 for n in range(12) if n not in (3, 4) for _ in range(48)]
    readings += [1.0] * (45 + 44)
    assert statistics[1].mean[0] == pytest.approx(np.mean(readings), rel=1e-6)


def test_mixed_sizes_stop_or_leave_the_sample_out(tmp_path):
    path = write_manifest(tmp_path)
    write_image(tmp_path / "depth/5.npy", np.ones((8, 6), np.float32))
    options = DataOptions(root=path, format="manifest")
    with pytest.raises(ValueError, match=r"unreadable images: 2\n.*differ in aspect ratio \(8x6"):
        usable(options, "trainval")
    lines = []
    skipping = replace(options, on_error="skip")
    source, _ = usable(skipping, "trainval", report=lines.append)
    assert len(source.ids) == 11
    assert "rgb/5.png" not in source.ids
    assert lines[1] == "1 samples had nothing else and are left out"
    mixed = replace(options, same_view=False)
    assert len(usable(mixed, "trainval", report=lines.append)[0].ids) == 12


def test_unlabelled_depth_is_converted_for_a_model_in_metres(tmp_path):
    write_image(tmp_path / "depth/a.png", np.full((6, 8), 1234, np.uint16))
    source = unlabelled(tmp_path, (METRIC,), units={"depth": "mm"})
    assert source.read(0, 0).max() == np.float32(1.234)
    with pytest.raises(ValueError, match="in metres; give the files' unit: units="):
        unlabelled(tmp_path, (METRIC,))
    with pytest.raises(ValueError, match="unreadable images: 1"):
        look_over(unlabelled(tmp_path, (DEPTH,), max_pixels=9), (), Problems())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, r"^image_size is "),
        ({"batch_size": 0}, r"^batch_size is "),
        ({"num_scenes": -1}, r"^num_scenes is "),
        ({"num_workers": -1}, r"^num_workers is "),
        ({"streams": []}, r"^streams is "),
        ({"streams": ["rgb", "rgb"]}, r"^streams is "),
        ({"val_share": 0.0}, r"val_share is 0\.0; expected between 0 and 1"),
        ({"val_share": 1.0}, r"val_share is 1\.0"),
        ({"split_seed": -1}, r"split_seed is -1; expected 0 or more"),
        ({"max_pixels": 0}, r"max_pixels is 0; expected at least 1"),
        ({"units": {"depth": "km"}}, r"units of depth is 'km'; expected one of m, dm"),
        (
            {"units": {"ir": "mm"}, "kinds": {"ir": "other"}},
            r"units gives ir in mm, but kinds says other",
        ),
    ],
)
def test_options_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        DataOptions(**changes)
