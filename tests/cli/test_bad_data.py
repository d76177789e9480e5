"""Data that cannot be what was meant are refused before training, with the likely cause."""

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
