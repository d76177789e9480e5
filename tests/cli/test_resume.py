import errno
import os
import shlex
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file

from manystream.cli.main import build_parser
from manystream.data.loader import StreamDataset
from manystream.model import StreamModel
from manystream.training.run_folder import RunFolder
from manystream.training.sigterm import Terminated
from tests.cli.test_main import SCENES, status, train
from tests.training.builders import repeatable
from tests.training.test_history import strict


def fail_on_save(monkeypatch, error, number=2):
    """Have some checkpoint of a run fail."""
    original, saved = torch.save, []

    def failing(content, file):
        saved.append(file)
        if len(saved) == number:
            raise error
        original(content, file)

    monkeypatch.setattr(torch, "save", failing)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train(out, "--fit.epochs=3") == 0
    return out


def assert_same_run(whole, out):
    histories = [repeatable(strict(run / "history.json")) for run in (whole, out)]
    assert histories[0] == histories[1]
    first, second = load_file(whole / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (out / "report.html").exists()


def test_the_same_command_with_resume_ends_the_run(whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        fail_on_save(patch, KeyboardInterrupt())
        assert train(out, "--fit.epochs=3") == 130
    config = (out / "config.yaml").read_text()
    assert train(out, "--fit.epochs=3") == 2
    assert "exists; name one that does not" in capsys.readouterr().err
    assert train(out, "--fit.epochs=3", "--resume", "--data.num_workers=1") == 0
    assert (out / "config.yaml").read_text() == config
    assert_same_run(whole, out)
    assert {path.name for path in out.glob("logs*")} == {"logs", "logs-2"}


def test_sigterm_saves_everything_and_the_command_it_names_ends_the_run(
    whole, tmp_path, monkeypatch, capsys
):
    asked, read = [], StreamDataset.read

    def read_until_terminated(self, keys, **how):
        before = len(asked)
        asked.extend(keys)
        # An epoch, its validation, and part of the next.
        if before < 24 + 12 + 4 <= len(asked):
            signal.raise_signal(signal.SIGTERM)
        return read(self, keys, **how)

    handler, out = signal.getsignal(signal.SIGTERM), tmp_path / "a run"
    with monkeypatch.context() as patch:
        patch.setattr(StreamDataset, "read", read_until_terminated)
        assert train(out, "--fit.epochs=3") == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    assert (out / "checkpoints/epoch-00001-batch-00000001.ckpt").exists()
    assert (out / "model.safetensors").exists()
    assert not (out / "report.html").exists()
    printed = capsys.readouterr()
    assert f"weights so far, the history and the checkpoints are in {out}\n" in printed.out
    assert "ended by SIGTERM" in printed.err
    [command] = [line for line in printed.out.splitlines() if line.startswith("go on with: ")]
    name, *words = shlex.split(command.removeprefix("go on with: "))
    assert name == "manystream"
    assert status(*words) == 0
    assert_same_run(whole, out)


def test_torchrun_passing_sigterm_on_does_not_keep_the_model_from_being_saved(
    tmp_path, monkeypatch, capsys
):
    def terminated(*_, **__):
        raise Terminated("SIGTERM ended training")

    save = StreamModel.save

    def save_while_others_end(self, path):
        signal.raise_signal(signal.SIGTERM)
        save(self, path)

    monkeypatch.setattr(StreamModel, "fit", terminated)
    monkeypatch.setattr(StreamModel, "save", save_while_others_end)
    assert train(tmp_path / "run") == 143
    assert (tmp_path / "run/model.safetensors").exists()
    assert "go on with: manystream train" in capsys.readouterr().out


def test_sigterm_before_training_ends_it_with_a_word(tmp_path, monkeypatch, capsys):
    def terminate(*_):
        signal.raise_signal(signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("manystream.cli.train.load_training_data", terminate)
    assert train(tmp_path / "run") == 143
    assert capsys.readouterr().err == "ended by SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"fit: {epochs: 3", "expected ',' or '}'"),
        (b"\xff\xfe\x00", ""),
        (b"", "it has no options of data"),
        (b"[1, 2]", "it has no options of data"),
        (b"data: {}\nmodel: 3\nfit: {}", "it has no options of model"),
    ],
)
def test_a_damaged_configuration(content, reason, tmp_path, capsys):
    (tmp_path / "config.yaml").write_bytes(content)
    assert train(tmp_path, "--resume", "--data.batch_size=auto") == 2
    error = capsys.readouterr().err
    assert f"error: {tmp_path / 'config.yaml'} is damaged: " in error
    assert reason in error
    assert "remove it, and resume with the options that the run was started with" in error


def test_resume_where_nothing_is_begins(tmp_path):
    out = tmp_path / "run"
    assert train(out, "--fit.epochs=1", "--resume", "true") == 0
    assert len(strict(out / "history.json")["train_loss"]) == 1


def test_a_full_disk_ends_the_run_and_keeps_what_is_there(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        fail_on_save(patch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        assert train(out, "--fit.epochs=3") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write the checkpoint")
    assert "the disk is full; those before it are untouched" in error
    kept = RunFolder(out)
    path, content = kept.newest()
    assert (path, content["epoch"]) == (kept.state_path(1, 0), 1)
    assert not (out / "model.safetensors").exists()
    assert train(out, "--fit.epochs=3", "--resume") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fit.seed=4"], "--fit.seed is 4, was 0"),
        (["--model.depth=34"], "--model.depth is 34, was 18"),
        (["--data.image_size=24"], "--data.image_size is 24, was 16"),
    ],
)
def test_resuming_with_other_options(words, message, whole, capsys):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert train(whole, "--fit.epochs=3", "--resume", *words) == 2
    assert f"the run was started with other options: {message}" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}


def test_a_checkpoint_of_another_network_overwrites_nothing(whole, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(out, "--fit.epochs=3", "--model.width=0.125") == 0
    weights = (out / "model.safetensors").read_bytes()
    config = yaml.safe_load((out / "config.yaml").read_text())
    config["model"]["width"] = 0.0625
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    assert train(out, "--fit.epochs=3", "--resume") == 2
    assert "is a checkpoint of another network" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == weights


def test_resume_needs_a_folder_and_so_do_several_processes(capsys):
    assert status("train", *SCENES, "--resume") == 2
    assert "--resume needs the folder of the run; name it with --out" in capsys.readouterr().err
    assert status("train", *SCENES, "--fit.devices", 2) == 2
    assert "training in several processes needs the folder" in capsys.readouterr().err
    assert status("compare", *SCENES, "--fit.devices", 2) == 2
    assert "compare trains in one process" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_into(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train(tmp_path / "file" / "run") == 2
    assert "cannot write into --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "nearest"),
    [
        ({"fit": {"epoch": 3}}, "fit.epochs"),
        ({"data": {"imagesize": 3}}, "data.image_size"),
        ({"modle": {"depth": 18}}, "model.depth"),
    ],
)
def test_an_unknown_key_names_the_nearest(content, nearest, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert status("train", "--config", tmp_path / "config.yaml") == 2
    assert f"did you mean {nearest}?" in capsys.readouterr().err


def test_an_unknown_option_names_the_nearest(capsys):
    assert status("train", "--fit.learning-rat", "0.1") == 2
    assert "did you mean fit.learning_rate?" in capsys.readouterr().err
    assert status("train", "--xyz", "0.1") == 2
    assert "did you mean" not in capsys.readouterr().err


def test_every_option_is_known():
    names = set(build_parser("train").known)
    assert {"out", "resume", "data.root", "model.depth", "fit.epochs", "fit.devices"} <= names
    assert "fit" not in names
