"""The cost of training every subset, from the command line to numbers."""

import json
from dataclasses import asdict

from benchmarks import subsets
from harness.workers import run_case

OWN = "--width 0.0625 --image-size 32 32 --batch-size 4 --steps 1 --device cpu"


def test_every_way_is_set_beside_the_full_step(tmp_path, monkeypatch, capsys):
    here = lambda cases, seconds: ({**asdict(c), **run_case(c)} for c in cases)  # noqa: E731
    monkeypatch.setattr(subsets, "run_cases", here)
    out = tmp_path / "subsets.json"
    subsets.main([*OWN.split(), "--out", str(out), "--commit", "abc"])
    rows = json.loads(out.read_text())["rows"]
    ways = [(row["name"], row["seen"], row["subset_norms"]) for row in rows]
    assert ways == [
        *(
            (mode, *way)
            for mode in ("fast", "lean")
            for way in (("full", False), ("subsets", False), ("subsets", True))
        ),
        ("fast", "repeated", False),
    ]
    assert [row["kept_to_full"] for row in rows if row["seen"] == "full"] == [1, 1]
    one, each, repeated = (rows[i]["kept_to_full"] for i in (1, 2, -1))
    assert 1 < one <= each < repeated
    assert "a norm each" in capsys.readouterr().out
