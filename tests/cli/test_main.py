import contextlib
import csv
import io
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from manystream import __version__, create_model, load_model
from manystream.cli import main
from manystream.data.loader import StreamDataset
from manystream.data.scenes import RenderedScenes
from tests.data.builders import noise, write_image
from tests.training.test_history import strict

SCENES = (
    "--data.num-scenes=24",
    "--data.image-size=16",
    "--data.batch-size=8",
    "--data.num-workers=0",
)
QUICK = (
    "--model.width=0.0625",
    "--fit.epochs=2",
    "--fit.accelerator=cpu",
    "--fit.progress=false",
)
WRITTEN = {
    "checkpoints",
    "classes.json",
    "config.yaml",
    "confusion.png",
    "curves.png",
    "history.json",
    "logs",
    "model.safetensors",
    "report.html",
    "subsets.json",
    "subsets.png",
}


def status(*words) -> int:
    """Exit status of a command line."""
    try:
        return main([str(word) for word in words])
    except SystemExit as ended:  # argparse ends the process by itself
        return ended.code


def train(out, *words) -> int:
    return status("train", "--out", out, *SCENES, *QUICK, *words)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run on rendered scenes: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "some" / "run"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert train(out, "--fit.modality-dropout", "true", "--fit.seed=3") == 0
    return SimpleNamespace(out=out, model=out / "model.safetensors", printed=printed.getvalue())


@pytest.fixture
def images(tmp_path) -> Path:
    """Unlabelled images: a of both streams, b of colour, c of depth."""
    for name in "ab":
        write_image(tmp_path / "new/rgb" / f"{name}.png", noise(20, 20))
    for name in "ac":
        depth = np.full((20, 20), 1500, np.uint16)
        write_image(tmp_path / "new/depth" / f"{name}.png", depth)
    return tmp_path / "new"


@pytest.fixture
def labelled(tmp_path) -> Path:
    """A folder of two classes; one training image is torn."""
    for split in ("train", "val"):
        for number in range(6):
            name = f"{('bed', 'desk')[number % 2]}/{number}.png"
            write_image(tmp_path / "images" / split / "rgb" / name, noise(20, 20))
            depth = np.full((20, 20), 1000 + number, np.uint16)
            write_image(tmp_path / "images" / split / "depth" / name, depth)
    (tmp_path / "images/train/depth/bed/0.png").write_text("torn")
    (tmp_path / "images/train/depth/bed/2.png").unlink()
    return tmp_path / "images"


def table(printed: str) -> dict[str, list[str]]:
    """The printed table: cells by the first of each row."""
    rows = [line.strip("│ ").split("│") for line in printed.splitlines() if line.startswith("│")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def subset_rows(out: Path) -> dict[str, list[str]]:
    """Cells of the table of subsets, from the numbers that a command wrote."""
    (subsets,) = strict(out / "subsets.json").values()
    metrics = ("mean_class_accuracy", "accuracy", "calibration_error")
    return {
        kept: [f"{m['num_samples']:.0f}", *(share(m[name]) for name in metrics)]
        for kept, m in subsets["same_samples"].items()
    }


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def test_training_writes_everything(trained):
    assert {path.name for path in trained.out.iterdir()} == WRITTEN
    history = strict(trained.out / "history.json")
    assert len(history["val_accuracy"]) == 2
    assert history["dropout_probability"] == pytest.approx([0.2, 0.2])
    model = load_model(trained.model)
    assert model.network.in_channels == {"rgb": 3, "depth": 1}
    assert len(model.classes) == 10


def test_training_ends_with_a_table_of_every_subset(trained):
    shown = subset_rows(trained.out)
    found = table(trained.printed)
    assert {kept: found[kept] for kept in shown} == shown
    assert list(shown) == ["rgb + depth", "rgb", "depth"]
    assert f"report: {trained.out / 'report.html'}\n" in trained.printed


def test_the_configuration_repeats_the_run(trained, tmp_path):
    again = tmp_path / "again"
    assert status("train", "--config", trained.out / "config.yaml", "--out", again) == 0
    config = yaml.safe_load((trained.out / "config.yaml").read_text())
    assert config == yaml.safe_load((again / "config.yaml").read_text())
    assert config["fit"]["seed"] == 3
    assert config["fit"]["modality_dropout"] is True
    assert config["data"]["num_scenes"] == 24
    first, second = load_file(trained.model), load_file(again / "model.safetensors")
    assert all((first[name] == second[name]).all() for name in first)


def test_the_command_line_overrides_the_configuration(trained, tmp_path):
    config, out = trained.out / "config.yaml", tmp_path / "other"
    words = ("--fit.epochs", "1", "--fit.modality_dropout", "false")
    assert status("train", "--config", config, *words, "--out", out) == 0
    assert strict(out / "history.json")["dropout_probability"] == [0]


def test_evaluate_measures_every_condition(trained, tmp_path, capsys):
    words = ("--conditions.noise-levels", "[1]", "--conditions.loss-draws", 2)
    out = tmp_path / "out"
    assert status("evaluate", "--model", trained.model, *SCENES, *words, "--out", out) == 0
    printed = capsys.readouterr().out
    assert subset_rows(out) == subset_rows(trained.out)
    found = table(printed)
    assert all(found[kept] == cells for kept, cells in subset_rows(out).items())
    (measured,) = strict(out / "conditions.json").values()
    assert [point["rate"] for point in measured["random_loss"]] == [i / 10 for i in range(10)]
    assert [point["level"] for point in measured["corruptions"]["noise"]["rgb"]] == [0, 1]
    half = measured["random_loss"][5]
    spread = share(half["mean_class_accuracy_std"])
    assert f"{share(half['mean_class_accuracy'])} ± {spread}" in printed
    assert {"report.html", "conditions.png", "subsets.png"} <= {p.name for p in out.iterdir()}
    page = (out / "report.html").read_text()
    assert page.count('<li class="sample"') == 10  # of 24 / 4 scenes, or ten
    assert page.count('role="switch"') == 2
    assert status("evaluate", "--model", trained.model, *SCENES, "--out", out) == 2
    assert f"--out {out} exists" in capsys.readouterr().err


def test_evaluate_renders_scenes_as_large_as_the_model_had_them(trained, monkeypatch):
    rendered, read = set(), RenderedScenes.read

    def noted(self, cell):
        rendered.add(self.image_size)
        return read(self, cell)

    monkeypatch.setattr(RenderedScenes, "read", noted)
    words = ("--model", trained.model, "--data.num-scenes", 24, "--data.num-workers", 0)
    assert status("evaluate", *words, "--blanked-streams", "[depth]") == 0
    assert rendered == {16}


def test_evaluate_takes_streams_away(trained, capsys):
    words = ("--model", trained.model, *SCENES, "--blanked-streams", "[depth]")
    assert status("evaluate", *words) == 0
    found = table(capsys.readouterr().out)
    printed = table(trained.printed)
    assert found == {name: printed[name] for name in ("rgb", "chance")}


def test_predict_writes_a_row_per_sample(trained, images, tmp_path):
    out = tmp_path / "deep" / "p.csv"
    words = ("--model", trained.model, "--folder", images, "--num-workers", 0)
    assert status("predict", *words, "--out", out) == 0
    with out.open(newline="") as file:
        header, *rows = csv.reader(file)
    classes = list(load_model(trained.model).classes)
    assert header == ["id", "streams", "class", "probability", *classes]
    assert [row[:2] for row in rows] == [["a", "rgb + depth"], ["b", "rgb"], ["c", "depth"]]
    for _, _, winner, probability, *every in rows:
        each = [float(p) for p in every]
        assert sum(each) == pytest.approx(1, abs=1e-3)
        assert float(probability) == max(each) == each[classes.index(winner)]


def test_a_folder_with_missing_and_torn_files(labelled, tmp_path, capsys):
    folder = ("--data.root", labelled, "--data.batch-size", 2)
    assert train(tmp_path / "no", *folder) == 2
    assert f"{labelled}/train/depth/bed/0.png: " in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert train(tmp_path / "yes", *folder, "--data.on-error", "skip") == 0
    printed = capsys.readouterr().out
    assert f"{labelled}/train/depth/bed/0.png: " in printed
    assert "train: 6 samples; depth is missing in 2 (33.3%)\n" in printed
    assert "val: 6 samples; every stream present in all\n" in printed


def test_a_torn_image_to_predict(trained, images, tmp_path, capsys):
    (images / "rgb/b.png").write_text("torn")
    out = tmp_path / "p.csv"
    words = ("predict", "--model", trained.model, "--folder", images, "--out", out)
    assert status(*words, "--num-workers", 0) == 2
    assert "new/rgb/b.png: " in capsys.readouterr().err
    assert not out.exists()
    assert status(*words, "--num-workers", 0, "--on-error", "skip") == 0
    assert "1 samples had nothing else" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.rooot", "x"], "--data.rooot"),
        (["--data.num_work", "0"], "--data.num_work"),
        (["--fit.epochs", "many"], "fit.epochs"),
        (["--fit.epochs", "0"], "--fit.epochs is 0; expected at least 1"),
        (["--fit.freeze_patience", "1"], "set --fit.subset_accuracy_every to 1 or more"),
        (["--fit.modality_dropout_rate", "1.5"], "rate is 1.5; expected a probability in [0, 1]"),
        (["--fit.modality_dropout_schedule", "up"], "'ramp_up', 'ramp_down'"),
        (["--fit.accelerator", "abacus"], "abacus"),
        (["--fit.modality_dropout=true", "--data.streams=[rgb]"], "at least two streams"),
        (["--model.depth", "19"], "depth is 19; expected one of 18, 34, 50, 101"),
        (["--model.family", "resnet"], "unknown family 'resnet'"),
        (["--data.root", "/no/such/folder"], "root /no/such/folder is no data set"),
        (["--data.val_split", "valid"], "'valid': 10}; expected samples of train, val, test"),
        (["--data.streams", "[lidar]"], "no stream 'lidar' in the data; it has rgb, depth"),
        (["--data.batch_size", "0"], "batch_size is 0; expected at least 1"),
        (["--config", "/no/such.yaml"], "/no/such.yaml"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, capsys, words, message):
    assert train(tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fit:\n  epohcs: 3\n", "fit.epohcs"),
        ("fit:\n  modality_dropout_schedule: up\n", "'ramp_up', 'ramp_down'"),
        ("fit:\n  epochs: -1\n", "epochs is -1; expected at least 1"),
        ("fit: [\n", "config"),
    ],
)
def test_a_configuration_that_cannot_be(tmp_path, capsys, text, message):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert status("train", "--config", config, "--out", tmp_path / "out", *SCENES) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [config]


def test_a_folder_that_exists_is_not_written_into(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("42")
    assert train(tmp_path) == 2
    assert f"--out {tmp_path} exists; name one that does not" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_models_that_cannot_be_used(trained, images, tmp_path, capsys):
    bare = tmp_path / "bare.safetensors"
    create_model(streams={"rgb": 3}, num_classes=2, width=0.0625).save(bare)
    for model, message in (
        (tmp_path / "none", "no model file at"),
        (trained.out, "no model file at"),
        (trained.out / "report.html", "is not a model file of manystream"),
        (bare, "does not say how its images were prepared"),
    ):
        assert status("evaluate", "--model", model, *SCENES) == 2
        assert message in capsys.readouterr().err
        assert status("predict", "--model", model, "--folder", images) == 2
        assert message in capsys.readouterr().err


def test_what_cannot_be_evaluated(trained, labelled, capsys):
    words = ("evaluate", "--model", trained.model, *SCENES)
    assert status(*words, "--data.root", labelled) == 2
    assert "classes that training lacks: 'bed', 'desk'" in capsys.readouterr().err
    assert status(*words, "--blanked_streams", "[dpeth]") == 2
    assert "unknown stream 'dpeth'; the model's streams are rgb, depth" in capsys.readouterr().err
    assert status(*words, "--blanked_streams", "[rgb,depth]") == 2
    assert "at least one must stay" in capsys.readouterr().err
    assert status(*words, "--conditions.loss_rates", "[2]") == 2
    assert "loss_rates has 2.0; expected numbers of 0 to 1" in capsys.readouterr().err


def test_what_cannot_be_predicted(trained, images, tmp_path, capsys):
    words = ("predict", "--model", trained.model, "--num_workers", 0)
    assert status(*words, "--folder", tmp_path / "none") == 2
    assert "expected <stream>/<id>.<ext>" in capsys.readouterr().err
    assert status(*words, "--folder", images, "--out", tmp_path) == 2
    assert f"--out {tmp_path} exists; name one that does not" in capsys.readouterr().err


def test_predictions_are_not_written_over(trained, images, tmp_path, capsys):
    out = tmp_path / "p.csv"
    out.write_text("precious")
    words = ("predict", "--model", trained.model, "--folder", images, "--out", out)
    assert status(*words, "--num-workers", 0) == 2
    assert f"--out {out} exists; name one that does not" in capsys.readouterr().err
    assert out.read_text() == "precious"


@pytest.mark.parametrize("place", ["file/x.png", "file/deep/x.png", "n" * 300 + ".png"])
@pytest.mark.parametrize(
    "command", [("data", "show"), ("data", "check"), ("predict", "--folder=none", "--model=none")]
)
def test_where_to_write_is_looked_at_before_the_work(tmp_path, capsys, monkeypatch, command, place):
    """None of them gets as far as its input, which is not there."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.chdir(tmp_path)
    data = () if command[0] == "predict" else ("--data.root=none",)
    assert status(*command, *data, "--out", place) == 2
    said = capsys.readouterr().err
    assert f"cannot write into --out {place}: " in said
    assert "Errno" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_long_message_is_not_broken_into_lines(tmp_path, capsys):
    path = tmp_path / ("a-long-name-" * 12)
    assert status("train", "--data.root", path, *QUICK) == 2
    assert str(path) in capsys.readouterr().err


def test_ctrl_c_keeps_weights_and_history(tmp_path, monkeypatch, capsys):
    asked, read = [], StreamDataset.read

    def read_until_pressed(self, keys, **how):
        before = len(asked)
        asked.extend(keys)
        # An epoch, its validation, and part of the next.
        if before < 24 + 12 + 10 <= len(asked):
            signal.raise_signal(signal.SIGINT)
        return read(self, keys, **how)

    monkeypatch.setattr(StreamDataset, "read", read_until_pressed)
    handler, out = signal.getsignal(signal.SIGINT), tmp_path / "out"
    assert train(out, "--fit.epochs", "9") == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert str(out) in capsys.readouterr().out
    assert len(strict(out / "history.json")["train_loss"]) == 1
    assert (out / "checkpoints/epoch-00001-batch-00000000.ckpt").exists()
    assert not (out / "report.html").exists()
    words = ("--model", out / "model.safetensors", *SCENES, "--blanked-streams", "[rgb]")
    assert status("evaluate", *words) == 0


def test_help_names_commands_and_options(capsys):
    assert status("--help") == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("train", "evaluate", "predict"))
    assert status("train", "--help") == 0
    words = capsys.readouterr().out.split()
    for option in ("--data.root", "--model.depth", "--fit.modality_dropout_rate", "--config"):
        assert option in [word.rstrip(",") for word in words]
    assert status("--version") == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("words", [(), ("trian",), ("predict",)])
def test_a_command_line_without_what_it_needs(words, capsys):
    assert status(*words) == 2
    assert "error: " in capsys.readouterr().err


def test_without_out_a_run_is_named_after_its_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status("train", *SCENES, *QUICK, "--fit.epochs", "1") == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in run.iterdir()} == WRITTEN
