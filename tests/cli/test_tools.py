"""`compare`, `inspect` and `convert`, end to end on tiny cases."""

import json

import pytest
import torch
from PIL import Image

from manystream import load_model
from manystream.models import load_original
from tests.cli.test_main import QUICK, SCENES, status, train
from tests.models.weights.originals import synthetic_checkpoint


def test_compare_trains_every_family_and_reports(tmp_path, capsys) -> None:
    out = tmp_path / "compared"
    families = "[li_net3, early_fusion, single_stream]"
    assert status("compare", "--out", out, "--families", families, *SCENES, *QUICK) == 0
    names = {"li_net3", "early_fusion", "rgb alone", "depth alone"}
    measured = json.loads((out / "subsets.json").read_text())
    assert measured.keys() == names
    assert list(measured["li_net3"]["same_samples"]) == ["rgb + depth", "rgb", "depth"]
    assert list(measured["rgb alone"]["same_samples"]) == ["rgb"]
    costs = json.loads((out / "costs.json").read_text())
    assert costs.keys() == names
    assert all(value > 0 for cost in costs.values() for value in cost.values())
    assert costs["li_net3"]["num_parameters"] > costs["early_fusion"]["num_parameters"]
    for figure in ("costs", "curves", "subsets"):
        Image.open(out / f"{figure}.png").verify()
    page = (out / "report.html").read_text()
    assert all(name in page for name in names)
    printed = capsys.readouterr().out
    assert "parameters" in printed
    assert "early_fusion" in printed


def test_compare_refuses_a_family_that_is_none(tmp_path, capsys) -> None:
    out = tmp_path / "compared"
    assert status("compare", "--out", out, "--families", "[li_net3, li_net4]", *SCENES, *QUICK) == 2
    assert "unknown family 'li_net4'" in capsys.readouterr().err
    assert not out.exists()


def test_inspect_writes_numbers_and_plots(tmp_path, capsys) -> None:
    run, out = tmp_path / "run", tmp_path / "inspected"
    assert train(run) == 0
    model = run / "model.safetensors"
    assert status("inspect", "--model", model, "--out", out, *SCENES) == 0
    written = json.loads((out / "inspection.json").read_text())
    assert written.keys() == {"contributions", "mixing_weights"}
    assert list(written["contributions"])[:2] == ["conv1", "layer1.0.conv1"]
    assert written["contributions"]["conv1"].keys() == {"rgb", "depth"}
    for figure in written:
        Image.open(out / f"{figure}.png").verify()
    assert "layer4.1.conv2" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["li_net3", "direct_mixing_conv"])
def test_convert_writes_a_model_that_predicts_the_same(tmp_path, capsys, family) -> None:
    checkpoint, out = tmp_path / "old.pth", tmp_path / "model.safetensors"
    state = synthetic_checkpoint(family)
    torch.save({"state_dict": state}, checkpoint)
    names = "[rgb, depth]"
    assert status("convert", "--checkpoint", checkpoint, "--out", out, "--streams", names) == 0
    assert "left aside: " in capsys.readouterr().out
    ours, theirs = load_model(out).eval(), load_original(state).eval()
    assert ours.stream_names == ("rgb", "depth")
    dtype = next(ours.parameters()).dtype
    images = [torch.randn(2, c, 32, 32, dtype=dtype) for c in ours.network.in_channels.values()]
    assert torch.equal(ours(images), theirs(images))


def test_convert_refuses_what_it_cannot_read(tmp_path, capsys) -> None:
    checkpoint = tmp_path / "old.pth"
    checkpoint.write_bytes(b"no checkpoint")
    out = tmp_path / "model.safetensors"
    assert status("convert", "--checkpoint", checkpoint, "--out", out) == 2
    assert str(checkpoint) in capsys.readouterr().err
    assert not out.exists()


def test_compare_takes_modality_dropout_from_a_stream_alone(tmp_path) -> None:
    words = ("--fit.modality_dropout=true", "--fit.modality_dropout_rate=0.4", "--fit.epochs=1")
    out = tmp_path / "compared"
    families = ("--families", "[single_stream]", "--data.streams=[rgb]")
    assert status("compare", "--out", out, *families, *SCENES, *QUICK, *words) == 0
    assert json.loads((out / "subsets.json").read_text()).keys() == {"rgb alone"}


def test_compare_takes_subsets_from_a_stream_alone(tmp_path) -> None:
    words = ("--fit.subsets", "all", "--fit.subset_weights", "{rgb: 2}")
    out = tmp_path / "compared"
    assert (
        status("compare", "--out", out, "--families=[single_stream]", *SCENES, *QUICK, *words) == 0
    )
