"""Nothing that a configuration names is called or imported, but what an option asks for."""

import sys

import pytest
import torch
import yaml

from manystream.cli import main
from manystream.training import FitOptions
from tests.cli.test_main import QUICK, SCENES, status, train

pytestmark = pytest.mark.filterwarnings("ignore")  # a warning that is an error would refuse, too

COMMAND = {"class_path": "os.system", "init_args": {"command": "touch it_ran"}}
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "it_ran"]}}
PLANTED = {"class_path": "planted.Thing"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder that can be imported from, with a module that leaves a file when it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (tmp_path / "planted.py").write_text(
        "from pathlib import Path\nfrom torch.optim import SGD\nPath('it_ran').touch()\n"
        "class Thing(SGD): pass\n"
    )
    yield tmp_path
    sys.modules.pop("planted", None)


@pytest.mark.parametrize("spec", [COMMAND, POPEN, PLANTED], ids=lambda spec: spec["class_path"])
@pytest.mark.parametrize(
    "place",
    [
        "fit.optimizer",
        "fit.optimizer_arguments.betas",
        "fit.loggers.csv.version",
        "fit.loggers.csv",
        "fit.loggers",
        "fit.learning_rate_multipliers",
        "fit",
        "data.augmentation",
        "data",
        "model.pretrained",
        "model",
    ],
)
def test_a_class_path_is_refused_wherever_it_stands(here, capsys, place, spec):
    nest = spec
    for name in reversed(place.split(".")):
        nest = {name: nest}
    (here / "c.yaml").write_text(yaml.safe_dump(nest))
    assert train(here / "out", "--config", here / "c.yaml") == 2
    assert "class_path" in capsys.readouterr().err
    assert not (here / "it_ran").exists()
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    "text",
    [
        "fit: {optimizer.class_path: os.system, optimizer.init_args.command: touch it_ran}",
        "fit.optimizer: {class_path: os.system, init_args: {command: touch it_ran}}",
        "fit: {loggers: {csv: '{class_path: os.system, init_args: {command: touch it_ran}}'}}",
        "fit: '{optimizer: {class_path: os.system, init_args: {command: touch it_ran}}}'",
        "fit: fit.yaml",
        "!!python/object/apply:os.system ['touch it_ran']",
        "fit: !!python/object/apply:os.system ['touch it_ran']",
    ],
)
def test_nor_by_another_way_of_writing(here, text):
    (here / "fit.yaml").write_text(yaml.safe_dump({"optimizer": COMMAND}))
    (here / "c.yaml").write_text(text)
    assert train(here / "out", "--config", "c.yaml") == 2
    assert not (here / "it_ran").exists()
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--fit.optimizer={class_path: os.system, init_args: {command: touch it_ran}}",),
        ("--fit.optimizer.class_path=os.system", "--fit.optimizer.command=touch it_ran"),
        (
            "--fit.optimizer_arguments="
            "{a: {class_path: os.system, init_args: {command: touch it_ran}}}",
        ),
        ("--fit.loggers={csv: {class_path: os.system, init_args: {command: touch it_ran}}}",),
        ("--fit.optimizer=planted.Thing",),
        ("--fit.optimizer=os.system",),
    ],
)
def test_nor_by_words(here, words):
    assert train(here / "out", *words) == 2
    assert not (here / "it_ran").exists()
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    "path", ["planted.Thing", "planted.Path", "planted", "antigravity.webbrowser"]
)
def test_an_optimizer_is_imported_from_what_is_installed_only(here, path):
    with pytest.raises(ValueError, match=f"unknown optimizer '{path}'; expected one of adamw, sgd"):
        FitOptions(optimizer=path)
    assert not (here / "it_ran").exists()
    assert not {"planted", "antigravity"} & set(sys.modules)


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "torch.save",
        "torch.nn.Linear",
        "torch.optim.lr_scheduler.LambdaLR",
        "builtins.exec",
        "tests.cli.test_main.SCENES",
    ],
)
def test_what_is_no_optimizer_is_not_called(path):
    with pytest.raises(ValueError, match=f"optimizer '{path}' is no subclass of torch.optim.Opt"):
        FitOptions(optimizer=path)


def test_what_was_imported_already_is_taken(here):
    __import__("planted")
    assert FitOptions(optimizer="planted.Thing").optimizer == "planted.Thing"
    assert FitOptions(optimizer=torch.optim.RAdam).optimizer is torch.optim.RAdam


def test_a_configuration_names_no_python_file(here, capsys):
    (here / "base.py").write_text(
        "from pathlib import Path\nPath('it_ran').touch()\nBASELINES = {}\n"
    )
    (here / "c.yaml").write_text("baselines: base.py\nsteps: 1\n")
    words = ("bench", "step", "--width=0.0625", "--image_size=[32,32]", "--device=cpu")
    assert status(*words, "--config", "c.yaml", "--out", "out") == 2
    assert "baselines is a Python file, which would be run" in capsys.readouterr().err
    assert not (here / "it_ran").exists()


def test_only_lightnings_loggers_are_built(here):
    (here / "c.yaml").write_text(
        yaml.safe_dump({"fit": {"loggers": {"os.system": {"command": "touch it_ran"}}}})
    )
    assert train(here / "out", "--config", "c.yaml") == 2
    assert not (here / "it_ran").exists()


def test_the_ordinary_ways_still_train(here):
    fit = {"optimizer": "torch.optim.RAdam", "optimizer_arguments": {"betas": [0.8, 0.9]}}
    (here / "c.yaml").write_text(
        yaml.safe_dump({"fit": {**fit, "loggers": {"csv": {"version": "x"}}}})
    )
    words = ("train", "--out", here / "out", *SCENES, *QUICK, "--config", "c.yaml")
    assert main([str(word) for word in words]) == 0
    written = yaml.safe_load((here / "out/config.yaml").read_text())["fit"]
    assert {name: written[name] for name in fit} == fit
