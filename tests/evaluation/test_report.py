import math
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from manystream.evaluation.conditions import Robustness
from manystream.evaluation.plots import plot_conditions
from manystream.evaluation.report import Run, write_report
from manystream.tasks import Classification
from manystream.training.history import History
from tests.training.test_history import strict

TASK = Classification(12)


class References(HTMLParser):
    """Collects everything that a page points to, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "data", "action")]
        assert tag not in ("script", "link", "iframe", "base")

    def handle_data(self, data):
        self.text += data


def make_run(name="li_net3", seed=0.0, **changes) -> Run:
    history = History(
        train_loss=[2.0, 1.0],
        val_loss=[2.1, 1.2],
        train_mean_class_accuracy=[0.2, 0.6],
        val_mean_class_accuracy=[0.3, 0.5],
        dropout_probability=[0.0, 0.2],
        train_samples_per_second=[87.6, 123.4],
        num_processes=[2.0, 2.0],
    )
    measured = {
        kept: {"loss": 1.0, "accuracy": value + seed, "mean_class_accuracy": value - 0.1 + seed}
        for kept, value in (("rgb + depth", 0.8123), ("rgb", 0.5), ("depth", 0.31))
    }
    return Run(
        **{
            "name": name,
            "task": TASK,
            "history": history,
            "subsets": measured,
            "config": {},
            **changes,
        }
    )


def test_the_page_holds_the_numbers_and_the_configuration(tmp_path):
    run = make_run(config={"fit": {"epochs": 17}, "note": "<b>bold</b>"})
    page = write_report([run], tmp_path / "out", "a <title>").read_text(encoding="utf-8")
    text = References(page).text
    for kept, measured in run.subsets.items():
        mean_class, accuracy = measured["mean_class_accuracy"], measured["accuracy"]
        cells = rf"{re.escape(kept)}\s+{100 * mean_class:.1f} %\s+{100 * accuracy:.1f} %"
        assert re.search(cells, text)
    assert "a <title>" in text
    assert '"epochs": 17' in text
    assert "<b>" not in page


def test_the_page_says_how_fast_each_run_trained(tmp_path):
    fast, resumed, old = make_run(), make_run("resumed"), make_run("old")
    fast.history["train_samples_per_second"] = [50.0, 210.0, 200.0]
    resumed.history["train_samples_per_second"] = [math.nan, 40.0]
    resumed.history["num_processes"] = [1.0, 1.0]
    del old.history["train_samples_per_second"], old.history["num_processes"]
    page = write_report([fast, resumed, old], tmp_path, "speeds").read_text("utf-8")
    said = References(page).text.partition("training samples per second")[2]
    assert re.search(r"li_net3\s+2\s+50\s+200\s+resumed\s+1\s+40\s+40\s+All processes", said)
    page = write_report([old], tmp_path, "no speed").read_text("utf-8")
    assert "samples per second" not in References(page).text


def test_the_page_needs_nothing_but_itself(tmp_path):
    page = write_report([make_run(), make_run("second", 0.1)], tmp_path, "two").read_text("utf-8")
    references = References(page).found
    assert len(references) == 2
    assert all(value.startswith("data:image/png;base64,") for value in references)
    assert not re.search(r"https?:|url\(|@import", page)


def test_the_pictures_are_pictures(tmp_path):
    write_report([make_run(), make_run("second", 0.1)], tmp_path, "two")
    for name in ("curves.png", "subsets.png"):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            assert min(image.size) > 200
            assert len(image.convert("RGB").getcolors(2**20)) > 10


def test_the_numbers_are_kept_as_strict_json(tmp_path):
    run = make_run()
    write_report([run], tmp_path, "one")
    assert strict(tmp_path / "subsets.json") == {"li_net3": run.subsets}


def test_a_run_that_diverged_still_has_its_report(tmp_path):
    run = make_run()
    run.subsets["rgb"]["loss"] = math.nan
    run.history["train_loss"][1] = math.inf
    write_report([run], tmp_path, "diverged")
    assert strict(tmp_path / "subsets.json")["li_net3"]["rgb"]["loss"] is None


@pytest.mark.parametrize("without", ["train", "val"])
def test_a_history_of_one_half(tmp_path, without):
    run = make_run()
    for name in [name for name in run.history if name.startswith(without)]:
        del run.history[name]
    assert write_report([run], tmp_path, "half").exists()


def robust(run: Run) -> Robustness:
    """Measurements under conditions: the more is lost or noisy, the worse."""
    loss = [
        {"rate": r, "mean_class_accuracy": 0.8 - r / 2, "mean_class_accuracy_std": r / 20}
        for r in (0.0, 0.5, 0.9)
    ]
    noise = [{"level": v, "mean_class_accuracy": 0.8 - v / 4} for v in (0.0, 1.0, 2.0)]
    return Robustness(
        dict(run.subsets),
        loss,
        {"noise": {"rgb": noise, "depth": noise}},
        metric="mean_class_accuracy",
    )


def test_a_network_that_was_only_measured(tmp_path):
    run = make_run()
    run = make_run(history={}, robustness=robust(run))
    page = write_report([run], tmp_path, "measured").read_text("utf-8")
    written = {"conditions.json", "conditions.png", "report.html", "subsets.json", "subsets.png"}
    assert {path.name for path in tmp_path.iterdir()} == written
    assert len(References(page).found) == 2
    assert "When sensors fail" in page
    assert "<h2>Training</h2>" not in page
    kept = strict(tmp_path / "conditions.json")["li_net3"]
    assert kept["random_loss"] == run.robustness.random_loss
    assert kept["corruptions"]["noise"]["depth"] == run.robustness.corruptions["noise"]["depth"]


def test_the_figure_of_conditions_draws_what_was_measured():
    runs = [
        make_run(robustness=robust(make_run())),
        make_run("other", robustness=robust(make_run())),
    ]
    figure = plot_conditions(runs)
    panels = [axes for axes in figure.axes if axes.axison]
    titles = [axes.get_title() for axes in panels]
    assert titles == ["streams lost at random", "noise on rgb", "noise on depth"]
    (first, *_) = panels[1].containers
    assert first.lines[0].get_ydata().tolist() == pytest.approx([0.8, 0.55, 0.3])
    without = [line.get_ydata()[0] for line in panels[1].lines if line.get_linestyle() == "--"]
    assert without == [pytest.approx(0.21)] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["li_net3", "other"]
