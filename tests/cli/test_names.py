"""Classes, streams and files may be called anything: whole commands, from data to figures."""

import csv

import numpy as np
import pytest

from tests.cli.test_main import QUICK, status
from tests.data.builders import noise, write_image

CLASSES = ("[/red]", r"$\frac{a$b", ":cat:")
COLOR, DEPTH = "[/rgb]", r"$\depth{$"
FEEDING = ("--data.image-size=16", "--data.batch-size=4", "--data.num-workers=0")


@pytest.fixture
def manifest(tmp_path):
    """Three classes of four training samples and two to validate on, all with names of trouble."""
    folder, rows = tmp_path / "[/b] :cat: $", []
    for number in range(18):
        split = "train" if number < 12 else "val"
        color, depth = f"{number}[/].png", f"${number}{{$.png"
        write_image(folder / color, noise(20, 24) ^ number)
        write_image(folder / depth, noise(20, 24, 1)[..., 0].astype(np.uint16) * 9 + number)
        rows.append([color, depth, CLASSES[number % 3], split])
    path = folder / "list.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[COLOR, DEPTH, "label", "split"], *rows])
    return path


def test_a_run_ends_with_its_tables_and_figures(manifest, tmp_path, capsys):
    run, data = tmp_path / "run", ("--data.root", manifest, *FEEDING)
    assert status("train", "--out", run, *data, *QUICK, "--fit.epochs=1") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*CLASSES, COLOR, DEPTH))
    figures = {"confusion.png", "subsets.png", "curves.png", "report.html"}
    assert figures <= {path.name for path in run.iterdir()}
    model = ("--model", run / "model.safetensors")
    few = ("--conditions.noise-levels=[1]", "--conditions.loss-draws=1")
    assert status("evaluate", *model, *data, *few, "--out", tmp_path / "evaluated") == 0
    assert status("inspect", *model, *data, "--out", tmp_path / "inspected") == 0
    printed = capsys.readouterr().out
    assert f"noise on {COLOR}" in printed
    assert str(manifest.parent) in printed


def test_data_are_shown_checked_and_prepared(manifest, tmp_path, capsys):
    data = ("--data.root", manifest, *FEEDING)
    (manifest.parent / "0[/].png").write_text("torn")
    assert status("data", "show", *data, "--out", tmp_path / "sheet.png") == 0
    assert status("data", "check", *data, "--smallest-class=1") == 1
    printed = capsys.readouterr().out
    assert f"without {COLOR}" in printed
    assert "0[/].png" in "".join(printed.split())
    words = ("prepare", *data, "--out", tmp_path / "set", "--data.on-error=skip")
    assert status(*words) == 0
