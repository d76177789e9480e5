"""What a command line loads before it is answered: a slip of the pen costs no import of torch."""

import json
import subprocess
import sys

import pytest

from tests.test_imports import HEAVY

PARSING = {"jsonargparse", "rich", "yaml"}
OPTIONS = {*PARSING, "PIL", "numpy"}

SCRIPT = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from manystream.cli import main
said = StringIO()
with redirect_stdout(said), redirect_stderr(said):
    try:
        main({words!r})
    except SystemExit:
        pass
print(json.dumps([said.getvalue(), list(sys.modules)]))
"""


def answer(*words: str) -> tuple[str, set[str]]:
    """What a command line prints, and the packages that its process has loaded."""
    command = [sys.executable, "-c", SCRIPT.format(words=words)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    said, modules = json.loads(run.stdout)
    return said, {name.partition(".")[0] for name in modules} & {*HEAVY, "numpy", "torch"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--version"], "manystream "),
        (["--help"], "Measure a trained network when sensors fail."),
        (["trian"], "invalid choice: 'trian'"),
        (["data", "chekc"], "invalid choice: 'chekc'"),
        (["--verison"], "unrecognized arguments: --verison"),
        ([], "COMMAND"),
    ],
)
def test_the_list_of_commands_needs_the_parser_only(words, said):
    printed, loaded = answer(*words)
    assert said in printed
    assert loaded <= PARSING


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--fit.epohcs=3"], "did you mean fit.epochs?"),
        (["train", "--fit.epochs=many"], "fit.epochs"),
        (["compare", "--famlies=[li_net3]"], "did you mean families?"),
        (["evaluate", "--model=m", "--conditions.loss_drawz=3"], "conditions.loss_draws?"),
        (["predict", "--model=m", "--folder=f", "--uints={d: mm}"], "did you mean units?"),
        (["inspect", "--model=m", "--data.rooot=r"], "did you mean data.root?"),
        (["convert", "--checkpoint=c", "--out=o", "--strems=[rgb]"], "did you mean streams?"),
        (["prepare", "--out=o", "--sise=12"], "did you mean size?"),
        (["data", "show", "--per_clas=2"], "did you mean per_class?"),
        (["data", "check", "--data.num_workers=many"], "data.num_workers"),
    ],
)
def test_a_mistyped_option_needs_no_torch(words, said):
    printed, loaded = answer(*words)
    assert said in printed
    assert loaded <= OPTIONS


def test_what_is_loaded_is_seen():
    printed, loaded = answer("convert", "--checkpoint=/none", "--out=/none/m.safetensors")
    assert "/none" in printed
    assert {"torch", "numpy"} <= loaded


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--model=/none", "--blanked_streams=[rgb]"],
        ["predict", "--model=/none", "--folder=/none", "--out=/none/p.csv"],
        ["inspect", "--model=/none"],
        ["convert", "--checkpoint=/none", "--out=none.safetensors"],
        ["prepare", "--out=none", "--data.root=/none"],
        ["data", "show", "--data.root=/none"],
        ["data", "check", "--data.root=/none"],
    ],
    ids=lambda words: words[0] + words[1] * (words[0] == "data"),
)
def test_a_command_that_does_not_train_needs_no_trainer(words):
    printed, loaded = answer(*words)
    assert "error: " in printed
    assert "torch" in loaded
    assert "lightning" not in loaded


MEASURED = """
import sys
import manystream as ms
from manystream.cli import main
from manystream.data import DataOptions, training_data

options = DataOptions(num_scenes=12, image_size=16, batch_size=8, num_workers=0)
data = training_data(options, report=print)
task = ms.tasks.Classification(classes=data.classes)
model = ms.create_model(streams=data.in_channels, task=task, width=0.0625)
model.preprocessing, model.held_out = data.preprocessing.to_dict(), data.held_out
model.save({path!r})
words = ["--data.num_scenes=12", "--data.num_workers=0", "--blanked_streams=[depth]"]
assert main(["evaluate", "--model", {path!r}, *words]) == 0
assert "torchmetrics" in sys.modules
assert "lightning" not in sys.modules
"""


def test_a_model_is_measured_without_a_trainer(tmp_path):
    script = MEASURED.format(path=str(tmp_path / "model.safetensors"))
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_command_that_trains_is_seen_to_need_it():
    _, loaded = answer("train", "--data.root=/none")
    assert "lightning" in loaded
