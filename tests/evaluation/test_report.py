import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations

import pytest
from matplotlib.colors import to_hex
from PIL import Image

from manystream.evaluation.conditions import Robustness
from manystream.evaluation.measurement import Subsets
from manystream.evaluation.plots import plot_conditions, plot_costs, plot_curves, plot_subsets
from manystream.evaluation.report import Run, all_verdicts, verdicts, write_report
from manystream.memory.cost import StepCost
from manystream.tasks import Classification
from manystream.training.history import History
from tests.tasks.test_task import Brightness
from tests.training.test_history import strict

TASK = Classification(12)
TRAINED = ("training", "validation")


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
        kept: {
            "loss": 1.0,
            "accuracy": value + seed,
            "mean_class_accuracy": value - 0.1 + seed,
            "calibration_error": 0.0456,
            "accuracy_chance": 0.2345,
            "mean_class_accuracy_chance": 1 / 12,
            "num_samples": 412.0,
        }
        for kept, value in (("rgb + depth", 0.8123), ("rgb", 0.5), ("depth", 0.31))
    }
    return Run(
        **{
            "name": name,
            "task": TASK,
            "history": history,
            "subsets": Subsets(measured, dict(measured), measured["rgb + depth"]),
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
        cells = rf"412\s*{100 * mean_class:.1f} %\s*{100 * accuracy:.1f} %\s*4.6 %"
        assert re.search(rf"{re.escape(kept)}\s*{cells}", text)
    assert re.search(r"chance\s*412\s*8.3 %\s*23.4 %", text)
    assert "The calibration error says" in text
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
    kept = strict(tmp_path / "subsets.json")["li_net3"]
    assert kept == {
        "same_samples": run.subsets.same_samples,
        "as_they_are": run.subsets.as_they_are,
        "as_they_come": run.subsets.as_they_come,
    }


def test_a_run_that_diverged_still_has_its_report(tmp_path):
    run = make_run()
    run.subsets["rgb"]["loss"] = math.nan
    run.history["train_loss"][1] = math.inf
    write_report([run], tmp_path, "diverged")
    kept = strict(tmp_path / "subsets.json")["li_net3"]
    assert kept["same_samples"]["rgb"]["loss"] is None


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
        run.subsets,
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
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(named) == ["chance", "li_net3", "other"]
    for axes in panels:
        assert chance_levels(axes) == pytest.approx([1 / 12] * 2)
        assert axes.get_xlabel().endswith("\n412 samples")


def chance_levels(axes) -> list[float]:
    return [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]


def incomplete(run: Run) -> Run:
    """The same where some samples lack a stream."""
    counts = {"rgb + depth": 412.0, "rgb": 500.0, "depth": 450.0}
    every = {
        kept: {**values, "num_samples": counts[kept], "mean_class_accuracy_chance": 0.1}
        for kept, values in run.subsets.as_they_are.items()
    }
    come = {**every["rgb"], "num_samples": 538.0}
    return replace(run, subsets=Subsets(run.subsets.same_samples, every, come))


def never_complete(run: Run) -> Run:
    run = incomplete(run)
    alone = {kept: run.subsets.as_they_are[kept] for kept in ("rgb", "depth")}
    return replace(run, subsets=Subsets({}, alone, run.subsets.as_they_come))


def test_bars_say_their_samples_and_their_chance():
    (axes,) = plot_subsets([make_run()]).axes
    assert axes.get_xlabel() == "streams present (the same 412 samples)"
    assert chance_levels(axes) == pytest.approx([1 / 12] * 3)
    (axes,) = plot_subsets([never_complete(make_run())]).axes
    assert axes.get_xlabel() == "streams present (samples differ)"
    assert [text.get_text() for text in axes.texts] == ["40%\nn = 500", "21%\nn = 450"]
    assert chance_levels(axes) == pytest.approx([0.1] * 2)


@pytest.mark.parametrize("number", [2, 7])
def test_the_legend_of_several_runs_covers_no_bar_and_is_whole(number):
    runs = [make_run(f"mean_imputation {i}") for i in range(number)]
    figure = plot_subsets(runs)
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    (axes,) = figure.axes
    assert legend.y1 <= axes.get_window_extent().y0
    assert figure.bbox.x0 <= legend.x0
    assert legend.x1 <= figure.bbox.x1
    texts = [text.get_window_extent() for text in axes.texts]
    assert len(texts) == 3 * number
    assert not any(a.overlaps(b) for a, b in combinations(texts, 2))
    assert all(text.y1 <= axes.get_window_extent().y1 for text in texts)


def test_curves_leave_out_what_was_not_trained_itself_and_keep_the_colours_of_others():
    ensemble, late = make_run("ensemble", history={}), make_run("late_fusion")
    figure = plot_curves([make_run(), ensemble, late])
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {f"{n}, {of}" for n in ("li_net3", "late_fusion") for of in TRAINED}
    loss, *_ = figure.axes
    bars = plot_subsets([make_run(), ensemble, late]).axes[0].containers
    assert loss.lines[-1].get_color() == to_hex(bars[2][0].get_facecolor()).upper()


def test_the_costs_of_runs_are_drawn_and_kept(tmp_path):
    costs = [StepCost(2_000_000, 3 * 2**20, 4.0), StepCost(1_000_000, 2**20, 2.0)]
    runs = [
        make_run(name, cost=cost, training_s=seconds)
        for name, cost, seconds in zip(("plain", "ensemble"), costs, (50.0, 70.0), strict=True)
    ]
    drawn = {
        axes.get_title(): [bar.get_width() for bar in axes.patches]
        for axes in plot_costs(runs).axes
    }
    assert drawn == {
        "parameters, millions": [2.0, 1.0],
        "peak memory of a step, MiB": [3.0, 1.0],
        "time of a step, ms": [4.0, 2.0],
        "time of training, s": [50.0, 70.0],
    }
    write_report(runs, tmp_path, "costs")
    assert strict(tmp_path / "costs.json")["ensemble"] == {
        "num_parameters": 1_000_000,
        "peak_bytes": 2**20,
        "step_ms": 2.0,
        "training_s": 70.0,
    }


def test_curves_of_training_show_what_guessing_reaches():
    _, metric, *_ = plot_curves([make_run()]).axes
    assert chance_levels(metric) == pytest.approx([1 / 12])


def test_dropout_is_drawn_where_there_is_any():
    titles = [axes.get_title() for axes in plot_curves([make_run()]).axes]
    assert titles[3:] == ["modality dropout probability"]
    without = make_run()
    without.history["dropout_probability"] = [0.0, 0.0]
    assert [axes.get_title() for axes in plot_curves([without]).axes] == titles[:3]
    assert len(plot_curves([without, make_run()]).axes) == 4


def test_the_verdict_says_what_is_left_and_of_how_many_samples():
    of_everything = (
        "of the mean class accuracy that it has with everything, on the same 412 samples"
    )
    assert verdicts(make_run()) == [
        f"Without rgb, it keeps 29.5 % {of_everything} (21.0 % of 71.2 %; chance 8.3 %).",
        f"Without depth, it keeps 56.2 % {of_everything} (40.0 % of 71.2 %; chance 8.3 %).",
    ]
    first, _ = verdicts(make_run(), named=True)
    assert first.startswith("Without rgb, li_net3 keeps")


def test_verdicts_on_several_runs_stand_by_stream():
    alone = {"rgb": make_run().subsets["rgb"]}
    single = make_run("rgb alone", subsets=Subsets(alone, alone, alone["rgb"]))
    said = [" ".join(s.split()[:3]) for s in all_verdicts([make_run(), single, make_run("other")])]
    assert said == [
        *("Without rgb, li_net3", "Without rgb, other"),
        *("Without depth, li_net3", "Without depth, other"),
    ]
    assert all_verdicts([make_run()]) == verdicts(make_run())


def test_the_verdict_on_a_task_of_which_less_is_better():
    measured = {
        kept: {"loss": 1.0, "mae": value, "num_samples": 7.0}
        for kept, value in (("rgb + depth", 0.25), ("rgb", 0.5), ("depth", 0.75))
    }
    subsets = Subsets(measured, measured, measured["rgb + depth"])
    first, second = verdicts(make_run(task=Brightness(), subsets=subsets))
    assert first == "Without rgb, it has a mae of 0.75 instead of 0.25, on the same 7 samples."
    assert second == "Without depth, it has a mae of 0.5 instead of 0.25, on the same 7 samples."


def test_one_stream_leaves_nothing_to_compare():
    alone = {"rgb": make_run().subsets["rgb"]}
    assert verdicts(make_run(subsets=Subsets(alone, alone, alone["rgb"]))) == []


def test_samples_that_lack_a_stream_have_a_table_of_their_own(tmp_path):
    text = References(write_report([incomplete(make_run())], tmp_path, "t").read_text("utf-8")).text
    same, _, others = text.partition("Each on all samples that have its streams")
    assert "On the same samples" in same
    assert re.search(r"rgb\s*500\s*40.0 %", others)
    assert re.search(r"all as they come\s*538", others)
    complete = References(write_report([make_run()], tmp_path, "t").read_text("utf-8")).text
    assert "Each on all samples" not in complete


def test_where_no_sample_has_every_stream_the_page_says_so(tmp_path):
    run = never_complete(make_run())
    text = References(write_report([run], tmp_path, "t").read_text("utf-8")).text
    assert "No sample has every stream" in text
    assert "On the same samples" not in text
    assert re.search(r"depth\s*450\s*21.0 %", text)


def test_several_runs_show_their_samples_behind_each_value(tmp_path):
    runs = [make_run(), incomplete(make_run("second", 0.1))]
    text = References(write_report(runs, tmp_path, "t").read_text("utf-8")).text
    same, _, others = text.partition("Each on all samples that have its streams")
    assert re.search(r"second\s*81.2 % \(412\)\s*50.0 % \(412\)\s*31.0 % \(412\)\s*8.3 %", same)
    assert re.search(r"second\s*81.2 % \(412\)\s*50.0 % \(500\)", others)
    assert "li_net3" not in others.partition("Chance is")[0]
