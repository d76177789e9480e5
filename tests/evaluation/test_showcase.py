"""Samples to look at: pictures, answers by subset, and what the page is told of them."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from manystream.data import Preprocessing, StreamSpec
from manystream.data.contact_sheet import picture
from manystream.data.statistics import StreamStatistics
from manystream.evaluation import show_samples
from manystream.evaluation.report import write_report
from manystream.evaluation.showcase import Showcase, ShownSample, page_of
from manystream.tasks import Answer
from tests.builders import mask_of
from tests.evaluation.test_report import References, make_run
from tests.training.builders import dict_batches, easy_samples, tiny_model

NAMES = ("bed", "desk", "sofa")
RGB = StreamSpec("rgb", 3, "color")
DEPTH = StreamSpec("depth", 1, "depth", "m")
PREPARED = Preprocessing(
    (4, 6),
    (RGB, DEPTH),
    (StreamStatistics((120.0, 100.0, 80.0), (50.0, 60.0, 70.0)), StreamStatistics((2.0,), (0.5,))),
)


def pixels_of(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@torch.no_grad()
def test_answers_are_the_networks_from_each_subset_of_what_a_sample_has():
    mask = mask_of("11 01 10 11 10")
    model, samples = tiny_model().eval(), easy_samples(5)
    shown = show_samples(model.network, model.task, dict_batches([samples], mask), count=5)
    assert shown.stream_names == ("rgb", "depth")
    *images, target = samples
    for b, sample in enumerate(shown.samples):
        has = [m for m in (0, 1) if mask[b, m]]
        assert sample.truth == str(target[b].item())
        assert [png is not None for png in sample.pictures] == mask[b].tolist()
        subsets = [bits for bits in (1, 2, 3) if all(m in has for m in (0, 1) if bits >> m & 1)]
        assert sorted(sample.answers) == subsets
        for bits in subsets:
            kept = [x[b : b + 1] if bits >> m & 1 else None for m, x in enumerate(images)]
            sure, winner = model(kept).softmax(dim=1).max(dim=1)
            answer = sample.answers[bits]
            assert (answer.text, answer.is_right) == (str(winner.item()), winner == target[b])
            assert answer.confidence == pytest.approx(sure.item(), abs=1e-5)


def test_what_a_sample_lacks_is_not_asked_for():
    answers = {1: Answer("rgb"), 4: Answer("ir"), 5: Answer("both")}
    sample = ShownSample("bed", (b"", None, b""), answers)
    assert [sample.answer(bits) for bits in (7, 5, 3, 6)] == [
        *(answers[5], answers[5], answers[1], answers[4])
    ]
    assert sample.answer(2) is None


def test_pictures_show_images_as_they_were_before_normalisation():
    generator = np.random.default_rng(0)
    rgb = generator.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    depth = generator.uniform(0.5, 4, (4, 6, 1)).astype(np.float32)
    depth[1, 2] = 0
    normal = [
        (image.astype(np.float32) - np.float32(s.mean)) / np.float32(s.std)
        for image, s in zip((rgb, depth), PREPARED.statistics, strict=True)
    ]
    normal[1][1, 2] = 0
    batch = (*(torch.tensor(x).permute(2, 0, 1)[None] for x in normal), torch.tensor([1]))
    model = tiny_model()
    (sample,) = show_samples(
        model.network, model.task, [batch], preprocessing=PREPARED.to_dict()
    ).samples
    first, second = map(pixels_of, sample.pictures)
    assert np.array_equal(first, rgb)
    wanted = picture(depth, DEPTH).pixels
    assert np.abs(second.astype(int) - wanted).max() <= 2  # a rounding of the stretch
    assert second[1, 2].tolist() == wanted[1, 2].tolist() == [150, 150, 150]


def test_without_preprocessing_values_are_stretched():
    model = tiny_model()
    (sample,) = show_samples(model.network, model.task, [easy_samples(1)]).samples
    for png in sample.pictures:
        pixels = pixels_of(png)
        assert pixels.shape == (32, 32, 3)
        assert (pixels.min(), pixels.max()) == (0, 255)


def test_it_shows_the_first_samples_and_reads_no_further():
    def batches():
        yield easy_samples(4)
        yield easy_samples(4, seed=1)
        raise AssertionError("read on")

    model = tiny_model()
    shown = model.show_samples(batches(), count=6)
    assert [sample.truth for sample in shown.samples] == ["0", "1", "2", "0", "0", "1"]
    with pytest.raises(ValueError, match="no sample"):
        model.show_samples([])


PNG = b"a picture"


def showcase(names=("rgb", "depth"), truths=("bed", "sofa"), text="desk") -> Showcase:
    subsets = range(1, 2 ** len(names))
    answers = {bits: Answer(f"{text} {bits}", bits / 10, bits == 3) for bits in subsets}
    pictures = tuple(f"{name}".encode() for name in names)
    return Showcase(names, tuple(ShownSample(truth, pictures, answers) for truth in truths))


def test_the_page_is_told_scores_and_answers_of_every_subset():
    runs = [make_run(showcase=showcase()), make_run("plain", 0.1, showcase=showcase(text="bed"))]
    page = page_of(runs)
    assert page["streams"] == ["rgb", "depth"]
    assert [sample["truth"] for sample in page["samples"]] == ["bed", "sofa"]
    assert page["samples"][0]["pictures"] == ["cmdi", "ZGVwdGg="]
    first, second = page["runs"]
    assert (first["name"], second["name"]) == ("li_net3", "plain")
    assert first["color"] != second["color"]
    assert {bits: told["score"] for bits, told in first["subsets"].items()} == {
        3: "71.2 %",
        1: "40.0 %",
        2: "21.0 %",
    }
    rgb = second["subsets"][1]
    assert rgb["note"] == "mean class accuracy on 412 samples, chance 8.3 %"
    assert rgb["share"] == pytest.approx(0.5)
    assert rgb["chance"] == pytest.approx(1 / 12)
    assert rgb["answers"] == [Answer("bed 1", 0.1, False)] * 2


def test_a_network_of_fewer_sensors_answers_from_those_it_has():
    alone = make_run("depth alone", showcase=showcase(("depth",), text="sofa"))
    page = page_of([make_run(showcase=showcase()), make_run("not shown"), alone])
    assert [run["name"] for run in page["runs"]] == ["li_net3", "depth alone"]
    subsets = page["runs"][1]["subsets"]
    assert set(subsets) == {2, 3}
    assert subsets[3]["score"] == subsets[2]["score"] == "21.0 %"
    assert subsets[3]["answers"][0].text == "sofa 1"


def test_runs_that_show_different_samples_are_refused():
    runs = [make_run(showcase=showcase()), make_run(showcase=showcase(truths=("bed", "bed")))]
    with pytest.raises(ValueError, match="different samples"):
        page_of(runs)


def test_nothing_to_show_leaves_the_page_as_it_was(tmp_path):
    assert page_of([make_run()]) is None
    page = write_report([make_run()], tmp_path, "plain").read_text("utf-8")
    assert "<script" not in page
    assert "Switch a sensor off" not in page


class WithSwitches(References):
    """Of a page that may have scripts of its own, none from elsewhere."""

    def handle_starttag(self, tag, attrs):
        assert tag != "script" or "src" not in dict(attrs)
        super().handle_starttag("style" if tag == "script" else tag, attrs)


def test_the_page_with_switches_needs_nothing_but_itself(tmp_path):
    nasty = showcase(truths=("</script><b>", "sofa"), text="</script><img src=x>")
    page = write_report([make_run(showcase=nasty)], tmp_path, "t").read_text("utf-8")
    found = WithSwitches(page)
    assert len(found.found) == 2 + 4  # figures, and pictures of two samples
    assert all(value.startswith("data:image/png;base64,") for value in found.found)
    assert "<b>" not in page
    assert page.count("</script>") == 2


def test_confidence_that_is_not_a_number_is_null(tmp_path):
    sample = ShownSample("bed", (PNG, PNG), {3: Answer("desk", float("nan"), False)})
    run = make_run(showcase=replace(showcase(), samples=(sample,)))
    page = write_report([run], tmp_path, "t").read_text("utf-8")
    _, _, rest = page.partition('id="showcase">')
    (told,) = json.loads(rest.partition("</script>")[0])
    assert told["subsets"]["3"]["answers"] == [["desk", None, False]]
