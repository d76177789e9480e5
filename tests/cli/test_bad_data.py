"""Data that cannot be what was meant are refused before training, with the likely cause."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.cli.test_main import QUICK, status
from tests.data.builders import noise, write_image

FEEDING = ("--data.image-size=16", "--data.batch-size=4", "--data.num-workers=0")


def color(number: int) -> np.ndarray:
    return noise(20, 24) ^ number


def depth(number: int) -> np.ndarray:
    return noise(20, 24, 1)[..., 0].astype(np.uint16) * 9 + number


def write_sample(root, split, label, number, color_name="rgb/{}/{}", depth_name="depth/{}/{}"):
    """Both images of a sample in a folder; the names take the class and the number."""
    for name, pixels in ((color_name, color(number)), (depth_name, depth(number))):
        write_image(root / split / f"{name.format(label, number)}.png", pixels)


def write_folder(root, **names):
    """Two classes of four training and two validation samples."""
    for number in range(12):
        split = "train" if number < 8 else "val"
        write_sample(root, split, ("bed", "desk")[number % 2], number, **names)
    return root


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "files")


@pytest.fixture
def refused(tmp_path, capsys):
    """What training says of data that it refuses, having written nothing."""

    def run(root, *words) -> str:
        out = tmp_path / "run"
        assert status("train", "--data.root", root, "--out", out, *FEEDING, *QUICK, *words) == 2
        assert not out.exists()
        return capsys.readouterr().err

    return run


def write_parquet(folder, labels: pa.Array):
    """A manifest with an image for every label."""
    names = [f"{number}.png" for number in range(len(labels))]
    for number, name in enumerate(names):
        write_image(folder / name, color(number))
    path = folder / "list.parquet"
    pyarrow.parquet.write_table(pa.table({"rgb": names, "label": labels}), path)
    return path


def test_nan_in_a_parquet_label_is_no_label(tmp_path, refused):
    labels = pa.array([1.0, 2.0, float("nan"), 1.0, 2.0], from_pandas=False)
    said = refused(write_parquet(tmp_path, labels))
    assert "row 3: its label is empty" in said
    assert "rows that cannot be used: 1" in said


@pytest.mark.parametrize(
    ("labels", "kind"), [([["bed"], ["desk"]], "list"), ([b"bed", b"desk"], "bytes")]
)
def test_a_parquet_label_that_is_no_text(tmp_path, refused, labels, kind):
    said = refused(write_parquet(tmp_path, pa.array(labels)))
    assert f"row 1: its label is of type {kind}; expected a text or a number" in said


@pytest.mark.parametrize(
    ("depth_name", "cause"),
    [
        (
            "depth/{}/depth_{}",
            "names begin with 'depth_' in depth, and are the same in rgb without it",
        ),
        ("depth/{}/{}_d", "names end with '_d' in depth, and are the same in rgb without it"),
        ("depth/{}/9{}9", "two of them; expected one name for all images of a sample"),
    ],
)
def test_streams_whose_names_differ(tmp_path, refused, capsys, depth_name, cause):
    root = write_folder(tmp_path / "files", depth_name=depth_name)
    said = refused(root)
    assert "streams rgb, depth: no sample has two of them" in said
    assert cause in said
    out = tmp_path / "found.json"
    words = ("data", "check", "--data.root", root, "--smallest-class=1", "--out", out)
    assert status(*words) == 1
    assert cause in out.read_text()


def test_streams_whose_names_differ_in_case_or_by_two_words(tmp_path, refused):
    names = {"color_name": "rgb/{}/IMG_{}", "depth_name": "depth/{}/img_{}"}
    said = refused(write_folder(tmp_path / "case", **names))
    assert "names differ in upper and lower case between rgb and depth" in said
    names = {"color_name": "rgb/{}/rgb_{}", "depth_name": "depth/{}/depth_{}"}
    said = refused(write_folder(tmp_path / "words", **names))
    assert "names begin with 'rgb' in rgb, and with 'depth' in depth" in said


def test_a_third_stream_that_never_meets_the_others(folder, refused):
    for number in range(12):
        split = "train" if number < 8 else "val"
        name = f"thermal/{('bed', 'desk')[number % 2]}/t{number}.png"
        write_image(folder / split / name, depth(number))
    said = refused(folder)
    assert "streams thermal: no sample has another stream as well" in said
    assert "names begin with 't' in thermal, and are the same in rgb without it" in said


def test_streams_that_never_meet_can_be_trained_on_if_one_insists(tmp_path, capsys):
    root = write_folder(tmp_path / "files", depth_name="depth/{}/depth_{}")
    words = ("--data.root", root, *FEEDING, *QUICK, "--data.on-error=skip", "--fit.epochs=1")
    assert status("train", "--out", tmp_path / "run", *words) == 0
    assert "skipped: they are used as they are" in capsys.readouterr().out


def test_a_class_that_is_misspelt_in_one_stream(folder, refused, tmp_path):
    (folder / "train/depth/desk").rename(folder / "train/depth/desks")
    said = refused(folder)
    assert "it has no image of depth, and 4 of its images are called like those that" in said
    assert "'desk'" in said
    assert "'desks'" in said
    out = tmp_path / "found.json"
    words = ("data", "check", "--data.root", folder, "--smallest-class=1", "--splits=[train]")
    assert status(*words, "--out", out) == 1
    assert "is one of the classes misspelt?" in out.read_text()


def test_a_class_that_lacks_a_stream_is_told(folder, capsys):
    for number in range(12, 18):
        name = f"rgb/window/{number}.png"
        write_image(folder / ("train" if number < 15 else "val") / name, color(number))
    status("prepare", "--data.root", folder, "--out", folder / "set", *FEEDING)
    assert "train: class 'window' has no image of depth\n" in capsys.readouterr().out


def test_streams_and_classes_that_are_swapped(tmp_path, refused):
    names = {"color_name": "{}/rgb/{}", "depth_name": "{}/depth/{}"}
    said = refused(write_folder(tmp_path / "files", **names))
    assert "classes depth, rgb: they are called like sensors" in said
    assert "seem to be swapped; expected <split>/<stream>/<class>/<id>.<ext>" in said


def test_a_manifest_with_semicolons(tmp_path, refused):
    path = tmp_path / "list.csv"
    path.write_text("rgb;depth;label\na.png;b.png;bed\n")
    assert "Its separator seems to be ';'; save it with commas" in refused(path)


@pytest.mark.parametrize(
    "words", [["--data.val_split=train"], ["--data.train_split=val", "--data.val_split=val"]]
)
def test_validation_on_what_was_trained_on(folder, refused, words):
    assert "validation would be on what was trained on" in refused(folder, *words)


def test_validation_on_a_part_of_what_was_trained_on(tmp_path, refused):
    manifest = tmp_path / "list.csv"
    rows = [f"{n}.png,{('bed', 'desk')[n % 2]}" for n in range(8)]
    manifest.write_text("\n".join(["rgb,label", *rows]))
    for number in range(8):
        write_image(tmp_path / f"{number}.png", color(number))
    said = refused(manifest, "--data.train_split=trainval")
    assert "--data.val_split is val, and --data.train_split is trainval" in said


def test_color_has_no_unit(folder, refused):
    said = refused(folder, "--data.units={rgb: mm}")
    assert "units gives rgb in mm, but its images have 3 channels of uint8" in said
    assert "leave it out, or if it is depth, say so: kinds={rgb: depth}" in said


def test_the_streams_of_a_trained_model_are_its_own(folder, tmp_path, capsys):
    data, run = ("--data.root", folder, *FEEDING), tmp_path / "run"
    assert status("train", *data, "--out", run, *QUICK, "--fit.epochs=1") == 0
    words = ("evaluate", *data, "--model", run / "model.safetensors", "--blanked_streams=[depth]")
    assert status(*words, "--data.streams=[rgb]") == 2
    said = capsys.readouterr().err
    assert "streams is rgb, and the model's streams are rgb, depth; leave it out" in said
    assert status(*words, "--data.streams=[rgb,depth]") == 0
    assert status(*words, "--data.val_split=train") == 0


@pytest.mark.parametrize("words", [(), ("--data.units={depth: mm}",)])
def test_one_depth_of_8_bits_among_16(folder, refused, tmp_path, words):
    write_image(folder / "train/depth/bed/4.png", noise(20, 24, 1)[..., 0])
    said = refused(folder, *words)
    assert "depth/bed/4.png: it has uint8 values; expected uint16 as in most of its" in said
    out = tmp_path / "found.json"
    check = ("data", "check", "--data.root", folder, "--smallest-class=1", "--out", out)
    assert status(*check, *words) == 1
    assert "it has uint8 values; expected uint16 as in most" in out.read_text()


@pytest.mark.parametrize("words", [(), ("--data.verify=true",)])
def test_splits_of_a_prepared_set_that_are_exchanged(folder, refused, tmp_path, words):
    prepared = tmp_path / "set"
    assert status("prepare", "--data.root", folder, "--out", prepared, *FEEDING) == 0
    for old, new in (("train", "x"), ("val", "train"), ("x", "val")):
        (prepared / old).rename(prepared / new)
    said = refused(prepared, *words)
    assert f"{prepared / 'train'} was written as split 'val'" in said


def test_a_file_under_two_labels_in_a_manifest(tmp_path, refused):
    rows = [f"{n}.png,{('bed', 'desk')[n % 2]},{('train', 'val')[n >= 6]}" for n in range(8)]
    for number in range(8):
        write_image(tmp_path / f"{number}.png", color(number))
    manifest = tmp_path / "list.csv"
    manifest.write_text("\n".join(["rgb,label,split", *rows, "2.png,desk,train"]))
    said = refused(manifest)
    assert "samples with a file of another label: 2" in said
    assert "2.png has the labels bed, desk; expected one" in said


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_file_under_two_labels_in_a_folder(folder, refused, tmp_path, capsys, link):
    link(folder / "train/rgb/desk/2.png", folder / "train/rgb/bed/2.png")
    said = refused(folder)
    assert "bed/2: its file" in said
    assert "desk/2: its file" in said
    words = ("--data.root", folder, *FEEDING, "--data.on-error=skip", "--out", tmp_path / "set")
    assert status("prepare", *words) == 0
    assert "train: 7 samples; every stream present in all" in capsys.readouterr().out
