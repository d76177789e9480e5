import re
import shlex

import pytest
import torch
import yaml

from manystream.cli import memory
from manystream.cli.memory import command_to_try
from manystream.models import StreamResNet
from tests.cli.test_main import SCENES, status, train


def out_of_memory_above(monkeypatch, limit, modes=("fast",)):
    """Have every network's larger training steps fail as they would on a full GPU."""
    forward = StreamResNet.forward_batch

    def limited(self, batch):
        if self.training and len(batch) > limit and self.memory in modes:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, batch)

    monkeypatch.setattr(StreamResNet, "forward_batch", limited)


def test_the_command_that_it_names_does_train(tmp_path, monkeypatch, capsys):
    out_of_memory_above(monkeypatch, 4)
    assert train(tmp_path / "run", "--fit.epochs=1") == 3
    complaint = capsys.readouterr().err
    assert "a training step of 8 samples of 16x16 pixels in memory mode fast" in complaint
    (command,) = re.findall(r"^try: manystream (.*)$", complaint, re.MULTILINE)
    assert "--model.memory" in command
    assert status(*shlex.split(command)) == 0
    (other,) = set(tmp_path.iterdir()) - {tmp_path / "run"}
    config = yaml.safe_load((other / "config.yaml").read_text())
    assert config["model"]["memory"] != "fast"
    assert config["data"]["batch_size"] == 8


def test_a_batch_size_is_found_and_kept_with_the_run(tmp_path, monkeypatch, capsys):
    out_of_memory_above(monkeypatch, 11)
    monkeypatch.setattr(memory, "_has_gpu", lambda accelerator: True)
    words = ("--data.batch_size", "auto", "--fit.epochs=1")
    assert train(tmp_path / "run", *words) == 0
    assert "batches of 9 samples, the most whose training steps fit" in capsys.readouterr().out
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["data"]["batch_size"] == 9


def test_auto_is_for_training_on_a_gpu(tmp_path, capsys):
    assert train(tmp_path / "run", "--data.batch_size", "auto") == 2
    assert "--data.batch_size is auto, which fills the memory of a GPU" in capsys.readouterr().err
    words = ("--families", "[early_fusion]", "--out", tmp_path / "run")
    assert status("compare", *SCENES, *words, "--data.batch_size", "auto") == 2
    assert "which only `train` finds; name a number" in capsys.readouterr().err
    assert train(tmp_path / "run", "--data.batch_size", "automatic") == 2
    assert "data.batch_size" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train"], "manystream train --model.memory lean"),
        (
            ["train", "--out=a b"],
            "manystream train '--out=a b' --model.memory lean --out 'a b-lean'",
        ),
    ],
)
def test_the_command_to_try(words, expected):
    assert command_to_try(words, {"memory": "lean"}) == expected
