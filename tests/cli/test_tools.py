"""`inspect` and `convert`, end to end on tiny cases."""

import json

import pytest
import torch
from PIL import Image

from manystream import load_model
from manystream.models import load_original
from tests.cli.test_main import SCENES, status, train
from tests.models.weights.originals import synthetic_checkpoint


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
