"""Rows and files of a manifest that cannot be used: told with their line, or skipped."""

import os
import re

import pytest

from manystream.data.manifest import manifest
from tests.data.builders import write_image
from tests.data.manifests import ROWS, pixels, write_csv, write_files
from tests.data.official import part_of


@pytest.fixture
def folder(tmp_path):
    write_files(tmp_path)
    return tmp_path


def problem(folder, row, split="train", **options) -> tuple[str, object]:
    """What is said of a row added as line 6, and what is left if it is skipped."""
    path = write_csv(folder / "all.csv", [*ROWS, row])
    chosen = {"streams": ["rgb", "depth"]} | options
    with pytest.raises(ValueError, match=r"all\.csv, line 6") as caught:
        part_of(manifest, path, split, **chosen)
    lines = []
    source = part_of(manifest, path, split, lines.append, on_error="skip", **chosen)
    (said,) = (line for line in lines if "line 6" in line)
    assert re.search(r": 1\n", said)
    return str(caught.value), source


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("rgb/a.jpg", "", "", "", "", "", "train", "r9"), "its label is empty"),
        (("rgb/a.jpg", "", "", "", "", "  ", "train", "r9"), "its label is empty"),
        (("rgb/a.jpg", "", "", "", "", "bed", "", "r9"), "its split is empty"),
        (("", "", "", "", "", "bed", "train", "r9"), "it names no file of any stream"),
        (("rgb/a.jpg", "bed"), "it has 2 cells; expected 8"),
    ],
)
def test_a_row_that_cannot_be_used_stops_or_is_left_out(folder, row, reason):
    message, source = problem(folder, row)
    assert reason in message
    assert source.ids == ["rgb/a.jpg", "rgb/b.jpg", "depth/c.npy"]


def test_an_unknown_class_stops_or_is_left_out(folder):
    row = ("rgb/b.jpg", "", "", "", "", "throne", "val", "r9")
    message, source = problem(folder, row, "val")
    assert "its class 'throne' is not one that is trained on" in message
    assert source.ids == ["rgb/d.jpg"]
    assert source.targets.tolist() == [0]


def link(folder, target):
    (folder / "rgb/link.jpg").symlink_to(target)
    return "rgb/link.jpg"


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (lambda folder: "../outside.jpg", "it is outside"),
        (lambda folder: "rgb/../../outside.jpg", "it is outside"),
        (lambda folder: str(folder.parent / "outside.jpg"), "it is outside"),
        (lambda folder: "../" + folder.name + "-twin/a.jpg", "it is outside"),
        (lambda folder: link(folder, "../../outside.jpg"), "it is outside"),
        (lambda folder: link(folder, "link.jpg"), "it leads nowhere|there is no file"),
        (lambda folder: link(folder, "nothing.jpg"), "there is no file"),
        (lambda folder: "rgb/nothing.jpg", "there is no file"),
        (lambda folder: "rgb", "it is no image"),
        (lambda folder: "all.csv", "it is no image"),
        (lambda folder: "rgb/\0.jpg", "it leads nowhere|there is no file"),
    ],
)
def test_a_file_that_cannot_be_used_stops_or_is_absent(folder, cell, reason):
    write_image(folder.parent / "outside.jpg", pixels("rgb"))
    row = (cell(folder), "depth/a.png", "", "", "", "desk", "train", "r9")
    if "\0" in row[0]:
        pytest.importorskip("tomllib", reason="the csv module of Python 3.10 takes no NUL")
    message, source = problem(folder, row)
    assert re.search(reason, message)
    assert source.ids == ["rgb/a.jpg", "rgb/b.jpg", "depth/c.npy", "depth/a.png"]
    assert source.present[-1].tolist() == [False, True]


def test_links_and_dots_that_stay_inside_are_followed(folder):
    link(folder, "a.jpg")
    rows = [("rgb/link.jpg", "bed"), ("depth/../rgb/b.jpg", "desk"), (folder / "rgb/d.jpg", "bed")]
    source = part_of(manifest, write_csv(folder / "x.csv", rows, ("rgb", "label")), "trainval")
    assert source.ids == ["rgb/a.jpg", "rgb/b.jpg", "rgb/d.jpg"]


@pytest.mark.parametrize("cell", [0, 5, 6, 7])
def test_bytes_that_are_no_utf8_are_named_by_their_line(folder, cell):
    name = os.fsencode(folder / "rgb") + b"/caf\xe9.jpg"
    os.link(folder / "rgb/a.jpg", name)
    row = ["rgb/a.jpg", "depth/a.png", "", "", "", "bed", "train", "r9"]
    row[cell] = "rgb/caf\udce9.jpg"
    path = write_csv(folder / "all.csv")
    with path.open("ab") as file:
        file.write(",".join(row).encode("utf-8", "surrogateescape") + b"\r\n")
    with pytest.raises(ValueError, match=r"all\.csv, line 6.*not UTF-8") as caught:
        part_of(manifest, path, "train", streams=["rgb", "depth"])
    str(caught.value).encode("utf-8")
    lines = []
    options = {"on_error": "skip", "streams": ["rgb", "depth"]}
    assert part_of(manifest, path, "train", lines.append, **options).targets.tolist()[:3] == [
        0,
        1,
        1,
    ]
    assert "line 6" in lines[0]


def test_a_column_without_a_file_in_the_split(folder):
    rows = [(*row[:4], "", *row[5:]) for row in ROWS]
    with pytest.raises(ValueError, match=r"no row of split 'train' in .* has a file in .*'bands'"):
        part_of(manifest, write_csv(folder / "all.csv", rows), "train")


def test_no_training_rows_and_one_class_only(folder):
    rows = [(*row[:6], "test", "r") for row in ROWS]
    with pytest.raises(ValueError, match=r"no row of .* is of split 'train'; there are test"):
        part_of(manifest, write_csv(folder / "all.csv", rows), "train")
    rows = [(*row[:5], "bed", "train", "r") for row in ROWS]
    with pytest.raises(ValueError, match="one class only to train on, 'bed'"):
        part_of(manifest, write_csv(folder / "all.csv", rows), "train")
