"""`compare`, end to end on tiny cases, and what it trains for each way."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from manystream.cli import output
from manystream.cli.compare import _fill
from manystream.cli.contenders import Contender, contenders_of
from manystream.cli.options import WAYS, CompareOptions, ResNetOptions
from manystream.data import DataOptions, loader, training_data
from manystream.training import FitOptions
from tests.cli.test_main import QUICK, SCENES, status, table
from tests.data.builders import noise, write_image

pytestmark = pytest.mark.xdist_group("compare")  # what is trained is used by all of one worker

FAST = (*QUICK, "--fit.epochs=1")
SUBSETS = ["rgb + depth", "rgb", "depth"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of two classes in which samples of both splits lack a stream."""
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for number in range(10):
            name = f"{('bed', 'desk')[number % 2]}/{number}.png"
            if number != 4:
                write_image(root / split / "rgb" / name, noise(20, 20))
            if number not in (3, 6, 8):
                depth = np.full((20, 20), 1000 + number, np.uint16)
                write_image(root / split / "depth" / name, depth)
    return root


@pytest.fixture(scope="module")
def compared(tmp_path_factory, images):
    """All ways and single streams, on samples of which some lack a stream."""
    out = tmp_path_factory.mktemp("runs") / "compared"
    words = ("--data.root", images, "--data.image-size=16", "--data.batch-size=4")
    ways = ("--ways", f"[{', '.join(WAYS)}]", "--families", "[single_stream]")
    assert status("compare", "--out", out, *words, "--data.num-workers=0", *ways, *FAST) == 0
    read = {name: json.loads((out / f"{name}.json").read_text()) for name in ("subsets", "costs")}
    return SimpleNamespace(out=out, **read)


def test_every_way_is_measured_on_the_same_samples(compared):
    names = {*WAYS, "rgb alone", "depth alone"}
    assert compared.subsets.keys() == compared.costs.keys() == names
    for way in WAYS:
        same = compared.subsets[way]["same_samples"]
        assert list(same) == SUBSETS
        assert {measured["num_samples"] for measured in same.values()} == {6.0}
        assert compared.subsets[way]["as_they_are"]["rgb"]["num_samples"] == 9.0
    page = (compared.out / "report.html").read_text()
    assert all(name in page for name in names)
    for figure in ("costs", "curves", "subsets"):
        Image.open(compared.out / f"{figure}.png").verify()


def test_an_ensemble_is_the_networks_of_one_stream_which_are_trained_once(compared):
    """With one stream it answers as that stream's network; it costs what both do."""
    folders = {path.name for path in compared.out.iterdir() if path.is_dir()}
    assert folders == {*WAYS, "rgb-alone", "depth-alone"} - {"ensemble"}
    ensemble = compared.subsets["ensemble"]["as_they_are"]
    for stream in ("rgb", "depth"):
        alone = compared.subsets[f"{stream} alone"]["as_they_are"][stream]
        assert ensemble[stream] == pytest.approx(alone, rel=1e-5)
    ours, rgb, depth = (compared.costs[n] for n in ("ensemble", "rgb alone", "depth alone"))
    for cost in ("num_parameters", "step_ms", "training_s"):
        assert ours[cost] == pytest.approx(rgb[cost] + depth[cost])
    assert ours["peak_bytes"] == max(rgb["peak_bytes"], depth["peak_bytes"])


def test_costs_are_of_steps_as_training_has_them(compared):
    assert all(value > 0 for cost in compared.costs.values() for value in cost.values())
    costs = compared.costs
    assert costs["every_subset"]["num_parameters"] > costs["plain"]["num_parameters"]
    assert costs["every_subset"]["peak_bytes"] > costs["plain"]["peak_bytes"]
    assert costs["zero_filling"]["num_parameters"] == costs["plain"]["num_parameters"]


def test_one_table_shows_all(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(output.console, "width", 200)
    out, ways = tmp_path / "compared", "[plain, mean_imputation]"
    assert status("compare", "--out", out, "--ways", ways, *SCENES, *FAST) == 0
    rows = table(capsys.readouterr().out)
    measured = json.loads((out / "subsets.json").read_text())
    costs = json.loads((out / "costs.json").read_text())
    assert rows.keys() == measured.keys() == {"plain", "mean_imputation"}
    for name, cells in rows.items():
        same = measured[name]["same_samples"]
        shown = [f"{100 * same[s]['mean_class_accuracy']:.1f} % (10)" for s in SUBSETS]
        cost = costs[name]
        assert cells == [
            *shown,
            "10.0 %",
            f"{cost['num_parameters'] / 1e6:.2f} M",
            f"{cost['peak_bytes'] / 2**20:.0f} MiB",
            f"{cost['step_ms']:.0f} ms",
            f"{cost['training_s']:.0f} s",
        ]


def test_a_narrow_terminal_cuts_nothing_off(capsys, monkeypatch):
    monkeypatch.setattr(output.console, "width", 50)
    numbers = [["12.3 % (456)"] * 8, ["65.4 % (321)"] * 8]
    names = ["modality_dropout", "mean_imputation"]
    rows = [[name, *cells] for name, cells in zip(names, numbers, strict=True)]
    output.print_table(["mean class accuracy (samples)", *["parameters"] * 8], rows)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 50
    assert "…" not in printed
    assert all(f"│ {name}" in printed for name in names)


def test_whole_training_samples_train_a_filled_network_as_plain(tmp_path, capsys):
    """Said by one that was trained by itself, and one that was not."""
    out, ways = tmp_path / "compared", "[zero_filling, plain, mean_imputation]"
    assert status("compare", "--out", out, "--ways", ways, *SCENES, *FAST) == 0
    measured = json.loads((out / "subsets.json").read_text())
    whole = [measured[name]["same_samples"]["rgb + depth"] for name in measured]
    assert len(whole) == 3
    assert whole[0] == whole[1] == whole[2]
    assert (out / "zero_filling").is_dir()
    assert not (out / "mean_imputation").exists()


def test_compare_trains_every_family_and_reports(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(output.console, "width", 200)  # else words of the table are broken
    out = tmp_path / "compared"
    families = "[li_net3, early_fusion, single_stream]"
    assert status("compare", "--out", out, "--families", families, *SCENES, *QUICK) == 0
    names = {"li_net3", "early_fusion", "rgb alone", "depth alone"}
    measured = json.loads((out / "subsets.json").read_text())
    assert measured.keys() == names
    assert list(measured["li_net3"]["same_samples"]) == ["rgb + depth", "rgb", "depth"]
    assert list(measured["rgb alone"]["same_samples"]) == ["rgb"]
    costs = json.loads((out / "costs.json").read_text())
    assert costs.keys() == names
    assert all(value > 0 for cost in costs.values() for value in cost.values())
    assert costs["li_net3"]["num_parameters"] > costs["early_fusion"]["num_parameters"]
    for figure in ("costs", "curves", "subsets"):
        Image.open(out / f"{figure}.png").verify()
    page = (out / "report.html").read_text()
    assert all(name in page for name in names)
    printed = capsys.readouterr().out
    assert "parameters" in printed
    assert "early_fusion" in printed


def test_compare_refuses_a_family_that_is_none(tmp_path, capsys) -> None:
    out = tmp_path / "compared"
    assert status("compare", "--out", out, "--families", "[li_net3, li_net4]", *SCENES, *QUICK) == 2
    assert "unknown family 'li_net4'" in capsys.readouterr().err
    assert not out.exists()


def test_compare_takes_modality_dropout_from_a_stream_alone(tmp_path) -> None:
    words = ("--fit.modality_dropout=true", "--fit.modality_dropout_rate=0.4", "--fit.epochs=1")
    out = tmp_path / "compared"
    families = ("--families", "[single_stream]", "--data.streams=[rgb]")
    assert status("compare", "--out", out, *families, *SCENES, *QUICK, *words) == 0
    assert json.loads((out / "subsets.json").read_text()).keys() == {"rgb alone"}


@pytest.fixture(scope="module")
def data(images):
    return training_data(
        DataOptions(root=images, image_size=16, batch_size=4, num_workers=0, augment=False),
        report=lambda line: None,
        accelerator="cpu",
    )


def contenders(data, ways, family="li_net3", families=None, **fit) -> dict[str, Contender]:
    options = CompareOptions(
        ways=ways,
        families=families,
        model=ResNetOptions(family=family, width=1 / 16),
        data=DataOptions(image_size=16, batch_size=4, num_workers=0),
        fit=FitOptions(accelerator="cpu", **fit),
    )
    return {contender.name: contender for contender in contenders_of(options, data)}


def test_ways_differ_in_how_they_are_trained_and_in_nothing_else(data):
    found = contenders(data, None, epochs=40)
    assert list(found) == list(WAYS)
    plain = FitOptions(accelerator="cpu", epochs=40)
    for name in ("plain", "zero_filling", "mean_imputation", "late_fusion"):
        assert found[name].fit == plain
    assert found["every_subset"].fit == FitOptions(accelerator="cpu", epochs=40, subsets="all")
    assert found["modality_dropout"].fit == FitOptions(
        accelerator="cpu",
        epochs=40,
        modality_dropout=True,
        modality_dropout_rate=0.48,
        modality_dropout_ramp=15,
    )
    assert [c.fill for c in found.values()] == [None, None, None, "zero", "mean", None, None]
    families = ["li_net3"] * 5 + ["single_stream", "late_fusion"]
    assert [c.family for c in found.values()] == families
    assert [c.name for c in found["ensemble"].members] == ["rgb alone", "depth alone"]
    assert found["ensemble"].members[0].fit == plain


@pytest.mark.parametrize(("family", "norms"), [("li_net3", True), ("li_net3_soma", False)])
def test_every_subset_has_norms_of_its_own_where_there_is_batch_norm(data, family, norms):
    found = contenders(data, ["every_subset", "plain"], family)
    assert found["every_subset"].subset_norms == norms
    assert not found["plain"].subset_norms


def test_what_fit_says_is_for_the_way_of_that_name_and_for_families(data):
    said = {"modality_dropout": True, "modality_dropout_rate": [0.1, 0.3]}
    ways = ["modality_dropout", "every_subset", "plain", "ensemble"]
    found = contenders(data, ways, families=["early_fusion"], **said)
    for name in ("modality_dropout", "early_fusion"):
        assert found[name].fit == FitOptions(accelerator="cpu", **said)
    assert found["every_subset"].fit == FitOptions(accelerator="cpu", subsets="all")
    assert not found["plain"].fit.modality_dropout
    assert not found["ensemble"].members[1].fit.modality_dropout
    said = {"subsets": 2, "subset_weights": {"rgb": 2.0}}
    found = contenders(data, ways, families=["single_stream"], **said)
    assert found["every_subset"].fit == FitOptions(accelerator="cpu", **said)
    assert found["depth alone"].fit.subsets is None
    assert found["modality_dropout"].fit.modality_dropout_rate == 0.48


def test_a_stream_alone_is_trained_on_samples_that_the_others_are_trained_on(data):
    """Also where validation would be held out of fewer samples otherwise."""
    for member in contenders(data, ["ensemble"])["ensemble"].members:
        for alone, whole in ((member.data.train, data.train), (member.data.val, data.val)):
            ours, theirs = alone.dataset.source, whole.dataset.source
            assert len(ours) == (9 if member.name == "rgb alone" else 7)
            assert set(ours.ids) < set(theirs.ids)
        (spec,) = member.data.preprocessing.streams
        number = list(data.in_channels).index(spec.name)
        (statistics,) = member.data.preprocessing.statistics
        assert statistics == data.preprocessing.statistics[number]


def test_zeros_as_stored_are_what_zero_filling_fills_in(data):
    """Of colour black, which is not 0 to the network; of depth no reading, which is."""
    fill = _fill(contenders(data, ["zero_filling"])["zero_filling"])
    rgb = data.preprocessing.statistics[list(data.in_channels).index("rgb")]
    black = [-mean / std for mean, std in zip(rgb.mean, rgb.std, strict=True)]
    assert fill["rgb"].flatten().tolist() == pytest.approx(black)
    assert fill["depth"].flatten().tolist() == [0.0]
    assert {x.shape[1:] for x in fill.values()} == {(1, 1)}


def test_the_mean_of_the_training_images_is_what_mean_imputation_fills_in(data):
    fill = _fill(contenders(data, ["mean_imputation"])["mean_imputation"])
    batches = list(data.train)
    for m, name in enumerate(data.in_channels):
        rows = torch.cat([batch.streams[m] for batch in batches])
        torch.testing.assert_close(fill[name], rows.mean(dim=0), rtol=1e-4, atol=1e-5)


def refused(tmp_path, capsys, *words) -> str:
    """What a comparison says that ends before anything is trained."""
    out = tmp_path / "compared"
    assert status("compare", "--out", out, *SCENES, *QUICK, *words) == 2
    assert not out.exists()
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ways=[zerofilling]"], "unknown way 'zerofilling'; expected one of every_subset, "),
        (["--ways=[zerofilling]"], "; did you mean zero_filling?"),
        (["--ways=[plain, plain]"], "expected one or more in all, each once"),
        (["--ways=[late_fusion]", "--families=[late_fusion]"], "expected one or more in all"),
        (["--ways=[]"], "--ways is [] and --families is []; expected one or more in all"),
        (
            ["--ways=[plain]", "--fit.subsets=all"],
            "nothing would use --fit.subsets; name 'every_subset' too",
        ),
        (
            ["--ways=[ensemble]", "--fit.modality_dropout=true"],
            "use --fit.modality_dropout; name 'modality_dropout' too, or leave it out",
        ),
        (
            ["--families=[late_fusion]", "--model.family=li_net3_soma"],
            "--model.family is li_net3_soma, but --families says what is trained",
        ),
        (["--model.family=li_net4"], "unknown family 'li_net4'"),
        (["--ways=[plain]", "--model.family=single_stream"], "'single_stream' has one stream"),
        (["--data.streams=[rgb]"], "the data have one stream, rgb; expected two or more"),
        (["--fit.balance_penalty=1"], "needs two or more streams that meet in an integrated"),
        (["--fit.learning_rate_multipliers={rbg: 2}"], "'rbg'; the network's parameter groups"),
    ],
)
def test_nonsense_is_refused_before_anything_is_trained(tmp_path, capsys, words, said):
    assert said in refused(tmp_path, capsys, *words)


def test_samples_of_which_none_has_every_stream_are_refused(tmp_path, capsys):
    root = tmp_path / "images"
    for split in ("train", "val"):
        for number in range(4):
            name = f"{('bed', 'desk')[number % 2]}/{number}.png"
            if split == "train" or number < 2:
                write_image(root / split / "rgb" / name, noise(20, 20))
            if split == "train" or number >= 2:
                write_image(root / split / "other" / name, noise(20, 20))
    said = refused(tmp_path, capsys, "--data.root", root, "--data.on_error=skip")
    assert "no validation sample has every stream, rgb, other, so ways cannot be" in said


def test_a_stream_that_is_never_trained_is_refused(data):
    number = list(data.in_channels).index("depth")
    whole = data.train.dataset.source
    table = whole.without(
        [(i, number) for i in whole.present[:, number].nonzero().flatten().tolist()]
    )
    train = loader(table, data.preprocessing, batch_size=4, num_workers=0, accelerator="cpu")
    with pytest.raises(ValueError, match=r"no training sample has stream depth; leave it out of"):
        contenders(replace(data, train=train), ["plain"])
