"""A network of one's own, from the command line to numbers and plot."""

import json
from dataclasses import asdict

import pytest
from PIL import Image

from benchmarks import memory
from harness.cases import Case
from harness.workers import run_case

OWN = "--width 0.0625 --image-size 32 32 --batch-size 4 --steps 1 --device cpu"


def test_every_way_is_measured_and_kept(tmp_path, monkeypatch, capsys):
    here = lambda cases, seconds: ({**asdict(c), **run_case(c)} for c in cases)  # noqa: E731
    monkeypatch.setattr(memory, "run_cases", here)
    out = tmp_path / "memory.json"
    memory.main([*OWN.split(), "--out", str(out), "--commit", "abc"])
    kept = json.loads(out.read_text())
    assert kept["environment"]["commit"] == "abc"
    names = [row["name"] for row in kept["rows"]]
    assert names[0] == "masked in-place"
    assert names[-4:] == ["fast", "balanced", "lean", "min"]
    assert kept["rows"][0]["memory_ratio"] == 1
    Image.open(tmp_path / "memory.png").verify()
    assert "balanced" in capsys.readouterr().out


def test_what_makes_no_sense_ends_with_a_message(capsys):
    with pytest.raises(SystemExit):
        memory.main(["--blanked", "2"])
    assert "blanked is 2.0; expected a share from 0 to 1" in capsys.readouterr().err


def test_memory_over_a_step_is_followed_in_one_published_group():
    groups = memory.published(Case(device="cuda"))
    followed = [name for name, cases in groups.items() if any(c.timeline for c in cases)]
    assert followed == ["ResNet-18 B32"]
    assert list(groups)[-1] == "ResNet-18 B32, compiled"
