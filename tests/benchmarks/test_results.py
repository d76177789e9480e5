"""Every kept result can still be shown by the script that made it."""

import pytest

from benchmarks import (
    compare_commits,
    cpu_step,
    distributed,
    evaluation,
    feeding,
    lightning_overhead,
    memory,
    presence,
    robustness,
    scalar_mixing,
    step,
    subsets,
)
from harness.results import RESULTS

SCRIPTS = {
    "compare_commits": (compare_commits, "balanced"),
    "cpu_step": (cpu_step, "balanced"),
    "distributed": (distributed, "exactness"),
    "evaluation": (evaluation, "every subset"),
    "feeding": (feeding, "plain DataLoader"),
    "lightning_overhead": (lightning_overhead, "fit into a folder"),
    "memory": (memory, "balanced"),
    "presence": (presence, "0% blanked"),
    "robustness": (robustness, "careless"),
    "scalar_mixing": (scalar_mixing, "list and sum"),
    "step": (step, "fast"),
    "subsets": (subsets, "a norm each"),
}
"""What a script shows of any result of its own, by the beginning of the file's name."""

TYPED_IN = "eager_h200.json"

FILES = sorted(path.name for path in RESULTS.glob("*.json") if path.name != TYPED_IN)


@pytest.mark.parametrize("name", FILES)
def test_a_kept_result_is_shown_and_left_alone(name, capsys, tmp_path):
    (found,) = (script for script in SCRIPTS if name.startswith(script))
    script, expected = SCRIPTS[found]
    before = (RESULTS / name).read_bytes()
    script.main(["--show", str(RESULTS / name), "--out", str(tmp_path / "out.json")])
    assert expected in capsys.readouterr().out
    assert (RESULTS / name).read_bytes() == before
    assert list(tmp_path.iterdir()) == []
