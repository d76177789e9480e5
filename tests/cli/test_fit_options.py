"""Options of `fit` from the command line and from YAML, up to what they do."""

import pytest
import yaml

from tests.cli.test_main import train
from tests.training.test_history import strict

FIT = {
    "optimizer": "torch.optim.RAdam",
    "optimizer_arguments": {"betas": [0.8, 0.9]},
    "learning_rate_multipliers": {"stem": 21.0, "depth": 0.5},
    "schedule": "step",
    "step_epochs": [1],
    "warmup_epochs": 0.0,
    "class_weights": "balanced",
    "ema_decay": 0.9,
    "subset_accuracy_every": 1,
    "loggers": {"csv": {"version": "numbers"}},
}


def test_yaml_and_words_together(tmp_path):
    config, out = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump({"fit": FIT}))
    words = ("--fit.log-gradient-norms", "true", "--fit.learning_rate_multipliers.stem", "7")
    assert train(out, "--config", config, *words) == 0
    written = yaml.safe_load((out / "config.yaml").read_text())["fit"]
    expected = {**FIT, "learning_rate_multipliers": {"stem": 7.0, "depth": 0.5}}
    assert {name: written[name] for name in FIT} == expected
    history = strict(out / "history.json")
    assert history["learning_rate"] == pytest.approx([1e-3, 1e-4])
    assert len(history["gradient_norm/depth"]) == len(history["val_mean_class_accuracy/rgb"]) == 2
    assert (out / "numbers/metrics.csv").exists()
    classes = strict(out / "classes.json")
    assert len(classes["classes"]) == len(classes["confusion"]) == 10


def test_a_run_that_diverges_says_where_and_keeps_no_weights(tmp_path, capsys):
    out = tmp_path / "run"
    words = ("--fit.learning_rate", "1e30", "--fit.warmup_epochs", "0")
    assert train(out, *words) == 2
    message = capsys.readouterr().err
    assert "error: the loss of batch " in message
    assert "its samples are train-0000" in message
    assert not (out / "model.safetensors").exists()
