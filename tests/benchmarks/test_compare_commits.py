"""Two checkouts in turn; these hold packages that are a few lines long."""

import json

import pytest
from benchmarks.compare_commits import compared, main

PACKAGE = """
from dataclasses import dataclass
from torch import Tensor, nn

@dataclass
class Batch:
    features: Tensor
    target: Tensor | None = None

class Network(nn.Module):
    memory = "fast"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 19)

    def to_batch(self, images, present):
        assert present.shape == (len(images[0]), 2)
        return Batch(images[0].mean(dim=(2, 3)))

    def forward(self, batch):
        assert len(batch.target) == len(batch.features)
        return self.fc(batch.features)
"""
OLD = PACKAGE + "\ndef create_model(**arguments):\n    return Network()\n"
NEW = f"""{PACKAGE}
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = Network()

def create_model(*, depth, streams, num_classes, width):
    return Model()
"""


def checkout(folder, package: str):
    (folder / "src/manystream").mkdir(parents=True)
    (folder / "src/manystream/__init__.py").write_text(package)
    return folder


def test_checkouts_are_measured_by_public_names_only(tmp_path, capsys):
    folders = checkout(tmp_path / "old", OLD), checkout(tmp_path / "new", NEW)
    out = tmp_path / "compared.json"
    words = ["--rounds", "1", "--small", "--device", "cpu", "--commit", "bbb against aaa"]
    main([*map(str, folders), *words, "--out", str(out)])
    kept = json.loads(out.read_text())
    assert kept["environment"]["commit"] == "bbb against aaa"
    names = [(row["group"], row["name"]) for row in kept["rows"]]
    assert len(set(names)) == 9
    assert names[:2] == [("ResNet-18 B32", "fast"), ("ResNet-18 B32", "balanced")]
    assert all(row["ratio"] == row["new_ms"] / row["old_ms"] for row in kept["rows"])
    main(["--show", str(out)])
    assert "ResNet-50 B32" in capsys.readouterr().out


def test_a_checkout_that_fails_is_named(tmp_path):
    folder = checkout(tmp_path / "broken", "raise ImportError('half a merge')")
    with pytest.raises(RuntimeError, match=r"broken could not be measured:(.|\n)*half a merge"):
        main([str(folder), str(folder), "--rounds", "1"])


def test_a_folder_without_the_package_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(tmp_path)])
    assert "no src/manystream" in capsys.readouterr().err


def test_medians_and_ratios_of_rounds():
    def rounds(*times):
        way = {"group": "g", "name": "fast", "graphs": True, "reserved_bytes": 3}
        return [[{**way, "step_ms": ms, "allocated_bytes": int(ms)}] for ms in times]

    (row,) = compared(rounds(2.0, 1.0, 4.0), rounds(3.0, 2.0, 2.0))
    assert (row["old_ms"], row["new_ms"], row["ratio"]) == (2.0, 2.0, 1.0)
    assert (row["ratio_least"], row["ratio_greatest"]) == (0.5, 2.0)
    assert (row["old_allocated_bytes"], row["new_allocated_bytes"]) == (4, 3)
    failed = [[{**rounds(1.0)[0][0], "error": "no memory"}]]
    assert compared(rounds(1.0), failed)[0]["error"] == "new: no memory"
