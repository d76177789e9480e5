import json

import numpy as np
import pytest
from PIL import Image

from manystream.cli import main
from tests.data.builders import noise, write_image

FEEDING = ("--data.image-size=16", "--data.batch-size=4", "--data.num-workers=0")


def status(*words) -> int:
    """Exit status of a command line."""
    try:
        return main([str(word) for word in words])
    except SystemExit as ended:  # argparse ends the process by itself
        return ended.code


@pytest.fixture
def root(tmp_path):
    """Two classes of six training and four validation samples; two depths are missing."""
    number = 0
    for split, per_class in (("train", 3), ("val", 2)):
        for name in ("bed", "desk") * per_class:
            number += 1
            write_image(
                tmp_path / "files" / split / "rgb" / name / f"{number}.png", noise(20, 24) ^ number
            )
            if number not in (2, 9):
                depth = noise(20, 24, 1)[..., 0].astype(np.uint16) * 9 + number
                write_image(tmp_path / "files" / split / "depth" / name / f"{number}.png", depth)
    return tmp_path


def test_a_set_is_prepared_and_trained_on(root, capsys):
    files, prepared = root / "files", root / "set"
    assert (
        status("prepare", "--data.root", files, "--out", prepared, "--size=[16, 18]", *FEEDING) == 0
    )
    printed = capsys.readouterr().out
    assert f"{prepared / 'train'}: 11 images, " in printed
    assert f"train from it with --data.root {prepared}" in printed
    assert np.load(prepared / "val/1-depth.npy").shape == (3, 16, 18, 1)
    again = status("prepare", "--data.root", files, "--out", prepared, "--size=[16, 18]", *FEEDING)
    assert again == 0
    quick = ("--model.width=0.0625", "--fit.epochs=1", "--fit.progress=false")
    quick += ("--fit.accelerator=cpu", "--data.verify=true")
    assert status("train", "--data.root", prepared, "--out", root / "run", *FEEDING, *quick) == 0
    assert "found a prepared set" in capsys.readouterr().out
    assert (root / "run/model.safetensors").exists()


def test_another_size_is_not_mixed_into_a_prepared_set(root, capsys):
    words = ("prepare", "--data.root", root / "files", "--out", root / "set", *FEEDING)
    assert status(*words) == 0
    assert status(*words, "--size=8") == 2
    assert "holds a split of another source, selection or size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size=0",), "--size is 0; expected at least 1 pixel"),
        (("--splits=[train,train]",), "--splits is ['train', 'train']"),
        (("--data.augmentation.flip=2",), "flip=2"),
    ],
)
def test_numbers_out_of_range(root, capsys, words, message):
    assert status("prepare", "--data.root", root / "files", "--out", root / "set", *words) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (root / "set").exists()


def test_a_contact_sheet_is_drawn(root, capsys):
    out = root / "some/sheet.png"
    assert status("data", "show", "--data.root", root / "files", "--out", out, "--per-class=2") == 0
    assert "train: 6 samples; depth is missing in 1 (16.7%)" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert min(sheet.size) > 300
    assert status("data", "show", "--data.root", root / "files", "--out", out) == 2


def test_a_contact_sheet_is_a_png(root, capsys):
    words = ("data", "show", "--data.root", root / "files", "--out", root / "sheet")
    assert status(*words) == 2
    assert "ends in .png" in capsys.readouterr().err


def test_a_clean_set_is_found_clean(root, capsys):
    words = ("data", "check", "--data.root", root / "files", "--smallest-class=3")
    assert status(*words) == 0
    assert "nothing was found" in capsys.readouterr().out


def test_what_would_hurt_is_listed_and_told_by_the_status(root, capsys):
    files, out = root / "files", root / "found.json"
    (files / "train/rgb/bed/1.png").write_text("torn")
    (files / "val/rgb/desk/8.png").write_bytes((files / "train/rgb/desk/4.png").read_bytes())
    assert status("data", "check", "--data.root", files, "--out", out) == 1
    kept = json.loads(out.read_text())
    kinds = [finding["kind"] for finding in kept["findings"]]
    assert kinds == ["unreadable", "small class", "small class", "leak"]
    assert kept["harmful"] == 4
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in ("unreadable", "small class", "leak"))
    assert "… and" not in printed
