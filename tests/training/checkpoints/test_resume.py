import csv
import json
import random

import pytest
import torch

from manystream.training import FitOptions
from manystream.training.checkpoints.checkpoint_file import read_checkpoint
from manystream.training.checkpoints.nest import take_apart
from manystream.training.reports.history import HistoryRecorder
from tests.processes import KILLED, in_processes
from tests.training.builders import CPU, repeatable, tiny_model, tuple_batches
from tests.training.killing import OPTIONS, run, run_until_sigterm

KINDS = ("step", "write", "between epochs", "write", "step")
"""What the run is doing at each of five random moments, in each of two runs."""


@pytest.fixture(scope="module", params=OPTIONS)
def unbroken(request, tmp_path_factory):
    """A run that is not killed: its kind, its folder, and the moments it passed."""
    folder = tmp_path_factory.mktemp(request.param)
    [moments] = in_processes(run, request.param, folder, False, None)
    return request.param, folder, moments


def contents(folder):
    """All that a finished run leaves but how long it took, and how often Lightning started."""
    content = read_checkpoint(folder / "checkpoints/final.safetensors")
    del content["loops"]
    history = json.loads((folder / "history.json").read_text())
    recorded = content["callbacks"][HistoryRecorder.__qualname__]
    recorded["history"] = repeatable(recorded["history"])
    tree, tensors = take_apart(content)
    return tree, tensors, repeatable(history)


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_a_killed_run_ends_as_if_it_had_not_been(unbroken, number, tmp_path):
    kind, folder, moments = unbroken
    candidates = [i for i, moment in enumerate(moments) if moment == KINDS[number]]
    kill_at = random.Random(f"{kind} {number}").choice(candidates)
    assert in_processes(run, kind, tmp_path, False, kill_at) == [KILLED]
    assert not (tmp_path / "checkpoints/final.safetensors").exists()
    in_processes(run, kind, tmp_path, True, None)
    assert_same(tmp_path, folder)


def logged_at(folder):
    """The steps at which a run logged each epoch's validation."""
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return {row["epoch"]: row["step"] for row in rows if row["val_loss"]}


@pytest.mark.parametrize("accumulate_batches", [1, 3])
def test_a_resumed_run_logs_at_the_same_steps(accumulate_batches, tmp_path):
    options = FitOptions(epochs=3, loggers=["csv"], accumulate_batches=accumulate_batches, **CPU)
    arguments = tuple_batches(40), tuple_batches(8), options
    tiny_model().fit(*arguments, out_dir=tmp_path)
    whole = logged_at(tmp_path / "logs")
    (tmp_path / "checkpoints/final.safetensors").unlink()
    tiny_model().fit(*arguments, out_dir=tmp_path, resume=True)
    assert logged_at(tmp_path / "logs-2") == {"2": whole["2"]}


@pytest.mark.parametrize("moment", [("step", 8), ("validation", 1), ("between epochs", 0)])
def test_a_terminated_run_loses_nothing_and_ends_as_if_it_had_not_been(unbroken, moment, tmp_path):
    kind, folder, _ = unbroken
    [(status, message)] = in_processes(run_until_sigterm, kind, tmp_path, moment)
    assert status == 143
    assert not (tmp_path / "checkpoints/final.safetensors").exists()
    state = max((tmp_path / "checkpoints").glob("epoch-*"))
    assert f"its state is in {state}; go on with resume=True" in message
    in_processes(run, kind, tmp_path, True, None)
    assert_same(tmp_path, folder)


def assert_same(cut, folder):
    tree, tensors, history = contents(cut)
    expected_tree, expected_tensors, expected_history = contents(folder)
    assert tensors.keys() == expected_tensors.keys()
    assert [n for n in tensors if not torch.equal(tensors[n], expected_tensors[n])] == []
    assert tree == expected_tree
    assert history == expected_history
