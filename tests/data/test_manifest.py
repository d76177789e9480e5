import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from manystream.data import DataOptions, training_data
from manystream.data.manifest import is_manifest, manifest, read_rows
from manystream.data.streams import StreamSpec
from manystream.data.table import Sample
from tests.data.builders import write_image
from tests.data.manifests import (
    FIVE_BANDS,
    MILLIMETRES,
    ROWS,
    pixels,
    write_csv,
    write_files,
    write_parquet,
)
from tests.data.official import part_of


@pytest.fixture
def folder(tmp_path):
    write_files(tmp_path)
    return tmp_path


UNITS = {"units": {"depth": "mm"}}


@pytest.mark.parametrize(
    ("write", "name"), [(write_csv, "all.csv"), (write_parquet, "all.parquet")]
)
def test_any_streams_of_any_channels(folder, write, name):
    path = write(folder / name)
    assert is_manifest(path)
    source = part_of(manifest, path, "train", **UNITS)
    assert source.streams == (
        StreamSpec("rgb", 3, "color"),
        StreamSpec("bands", 5, "other"),
        StreamSpec("depth", 1, "depth", "m"),
        StreamSpec("hha", 3, "other"),
        StreamSpec("infrared", 1, "other"),
    )
    assert source.classes == ("bed", "desk")
    assert source.ids == ["rgb/a.jpg", "rgb/b.jpg", "depth/c.npy"]
    assert source.targets.tolist() == [0, 1, 1]
    assert source.groups == ["r1", "r2", "r2"]
    assert source.present.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 1], [0, 0, 1, 1, 0]]
    np.testing.assert_array_equal(source.read(0, 1), FIVE_BANDS)
    for index in (0, 2):
        expected = (MILLIMETRES / 1000).astype(np.float32)
        np.testing.assert_array_equal(source.read(index, 2)[..., 0], expected)
    np.testing.assert_array_equal(source.read(0, 4)[..., 0], MILLIMETRES)


def test_streams_and_their_order_are_chosen(folder):
    path = write_csv(folder / "all.csv")
    source = part_of(manifest, path, "train", streams=["depth", "rgb"])
    assert source.streams == (StreamSpec("depth", 1, "depth"), StreamSpec("rgb", 3, "color"))
    np.testing.assert_array_equal(source.read(0, 0)[..., 0], MILLIMETRES)
    assert len(part_of(manifest, path, "train", streams=["infrared"]).ids) == 2
    with pytest.raises(
        ValueError, match=r"no stream 'lidar' in .*columns are rgb, depth, infrared"
    ):
        part_of(manifest, path, "train", streams=["lidar"])


def test_kinds_can_be_told(folder):
    told = {"infrared": "depth", "hha": "color"}
    source = part_of(manifest, write_csv(folder / "all.csv"), "train", kinds=told)
    kinds = {spec.name: spec.kind for spec in source.streams}
    assert kinds["infrared"] == "depth"
    assert kinds["hha"] == "color"


@pytest.mark.parametrize("told", [{"units": {"dpeth": "mm"}}, {"kinds": {"dpeth": "depth"}}])
def test_hints_about_no_stream(folder, told):
    with pytest.raises(ValueError, match=r"names the stream 'dpeth'; the data has rgb, depth"):
        part_of(manifest, write_csv(folder / "all.csv"), "train", **told)


def test_a_model_in_metres_needs_the_unit(folder):
    path = write_csv(folder / "all.csv")
    trained = part_of(manifest, path, "train", streams=["depth"], **UNITS)
    model = {"streams": trained.streams, "classes": trained.classes}
    again = part_of(manifest, path, "val", **model, **UNITS)
    assert again.streams == trained.streams
    assert again.classes == ("bed", "desk")
    with pytest.raises(ValueError, match=r"takes the depth of 'depth' in metres; give .*units"):
        part_of(manifest, path, "val", **model)
    plain = {**model, "streams": (StreamSpec("depth", 1, "depth"),)}
    with pytest.raises(ValueError, match="as its files store it; leave out"):
        part_of(manifest, path, "val", **plain, **UNITS)


def test_the_split_column_holds(folder):
    lines = []
    path = write_csv(folder / "all.csv")
    val = part_of(manifest, path, "val", lines.append, streams=["rgb"])
    assert val.ids == ["rgb/d.jpg"]
    assert lines == ["val: 0.0% of 1 samples are of a group that is in training"]
    both = part_of(manifest, path, "trainval", streams=["rgb"])
    assert both.ids == ["rgb/a.jpg", "rgb/b.jpg", "rgb/d.jpg"]
    with pytest.raises(ValueError, match=r"split='test' is not in .*; there are train, val"):
        part_of(manifest, path, "test")


def many_rows(folder, count=40, group=lambda i: f"room{i // 4}"):
    """Images of two classes, without a split, four of a room unless told otherwise."""
    rows = [(f"rgb/{i}.png", ("bed", "desk")[i // 4 % 2], group(i)) for i in range(count)]
    for row in rows:
        write_image(folder / row[0], pixels("rgb"))
    return write_csv(folder / "many.csv", rows, ("rgb", "label", "group"))


def test_without_a_split_validation_is_held_out_by_group(tmp_path):
    lines = []
    path = many_rows(tmp_path)
    train = part_of(manifest, path, "train")
    val = part_of(manifest, path, "val", lines.append)
    assert (len(train.ids), len(val.ids)) == (32, 8)
    assert not set(train.groups) & set(val.groups)
    assert val.targets.bincount().tolist() == [4, 4]
    # With either of 8 held out of 40, the 3 others of its room are too in 35 of 82251 draws.
    assert lines == [
        "val: 8 of 40 training samples (20.0%) are held out by scene: 0.0% of them show a scene "
        "that is in training (drawn one by one it would be 99.6%)"
    ]


def test_without_groups_validation_is_drawn_one_by_one_and_that_is_said(tmp_path):
    lines = []
    val = part_of(manifest, many_rows(tmp_path, group=lambda i: ""), "val", lines.append)
    assert len(val.ids) == 8
    assert val.groups is None
    assert lines[0].endswith("one by one: the data does not say which show the same scene")


def test_a_leak_in_the_given_split_is_said(folder):
    lines = []
    rows = [*ROWS, ("rgb/a.jpg", "", "", "", "", "bed", "val", "r1")]
    part_of(manifest, write_csv(folder / "all.csv", rows), "val", lines.append, streams=["rgb"])
    assert lines == ["val: 50.0% of 2 samples are of a group that is in training"]


def test_a_manifest_is_read_and_divided_once_for_all_its_splits(tmp_path, monkeypatch):
    module, read, lines = sys.modules["manystream.data.manifest"], [], []
    original = module.read_rows
    monkeypatch.setattr(module, "read_rows", lambda path: read.append(path) or original(path))
    path = many_rows(tmp_path)
    data = training_data(DataOptions(root=path, num_workers=0), report=lines.append)
    assert read == [path]
    assert sum("are held out by scene" in line for line in lines) == 1
    assert data.held_out == {"val_share": 0.2, "split_seed": 0}
    train, val = (loader.dataset.source for loader in (data.train, data.val))
    assert (len(train), len(val)) == (32, 8)
    assert not set(train.ids) & set(val.ids)


def test_a_split_that_is_given_is_not_held_out(folder):
    path = write_csv(folder / "all.csv")
    table = manifest(path, streams=["rgb"], report=lambda line: None)
    assert table.held_out is None
    assert table.splits == ["train", "train", "val"]


def written(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_rows_know_their_lines(tmp_path):
    path = written(tmp_path, 'rgb,label\n"a\n.png", bed \n\n,\nb.png,desk\n')
    streams, rows = read_rows(path)
    assert streams == ["rgb"]
    assert [row.where for row in rows] == [f"{path}, line 3", f"{path}, line 6"]
    assert [row.sample for row in rows] == [
        Sample("", {"rgb": "a\n.png"}, "bed", "train"),
        Sample("", {"rgb": "b.png"}, "desk", "train"),
    ]


def test_a_byte_order_mark_and_windows_lines(tmp_path):
    streams, rows = read_rows(written(tmp_path, b"\xef\xbb\xbfrgb,label\r\na.png,bed\r\n"))
    assert streams == ["rgb"]
    assert [row.sample.label for row in rows] == ["bed"]


def test_words_for_nothing_are_words(tmp_path):
    _, rows = read_rows(written(tmp_path, "rgb,label\na.png,NA\nb.png,nan\n"))
    assert [row.sample.label for row in rows] == ["NA", "nan"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns ; expected 'label'"),
        ("rgb,depth\na.png,b.png\n", "has the columns rgb, depth; expected 'label'"),
        ("label,split\nbed,train\n", "expected 'label', one for every stream"),
        ("rgb,rgb,label\na.png,b.png,bed\n", "a column named 'rgb'; expected a name for each"),
        ("rgb,,label\na.png,b.png,bed\n", "a column named ''; expected a name for each"),
        ("rgb,label\n", "has no rows"),
        ('rgb,label\n"a.png,bed\n', r"x\.csv, line 2: "),
        ("rgb,label\na.png," + "x" * 200_000, r"x\.csv, line 2: field larger"),
    ],
)
def test_a_file_that_is_no_manifest(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_rows(written(tmp_path, text))


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"no manifest at .*x\.csv"):
        read_rows(tmp_path / "x.csv")


def test_parquet_of_numbers_and_nulls(tmp_path):
    path = tmp_path / "x.parquet"
    columns = {"rgb": ["a.png", None], "label": [3, None]}
    pyarrow.parquet.write_table(pa.table(columns), path)
    _, rows = read_rows(path)
    assert [(row.sample.cells["rgb"], row.sample.label) for row in rows] == [
        ("a.png", "3"),
        (None, ""),
    ]
    assert rows[1].where == f"{path}, row 2"


def test_torn_parquet(tmp_path):
    (tmp_path / "x.parquet").write_text("torn")
    with pytest.raises(ValueError, match=r"cannot read .*x\.parquet"):
        read_rows(tmp_path / "x.parquet")
