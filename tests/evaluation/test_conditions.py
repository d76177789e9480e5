from itertools import pairwise

import pytest
import torch

from manystream.data.streams import StreamSpec
from manystream.evaluation import EvaluationOptions
from tests.builders import mask_of
from tests.data.builders import identity
from tests.training.builders import CPU, dict_batches, tiny_model, tuple_batches

PREPROCESSING = identity(StreamSpec("rgb", 3, "color"), StreamSpec("depth", 1, "depth"), size=32)
"""Means of 0: a dark image is one of small numbers."""


class Counted(list):
    """Batches that count how often they are asked for."""

    reads = 0

    def __iter__(self):
        for batch in super().__iter__():
            self.reads += 1
            yield batch


@pytest.fixture(scope="module")
def model():
    model = tiny_model()
    model.fit(tuple_batches(24), epochs=8, learning_rate=1e-2, **CPU)
    return model.eval()


def test_every_batch_is_read_once(model):
    batches = Counted(tuple_batches(20))
    model.evaluate_conditions(batches, preprocessing=PREPROCESSING, **CPU)
    assert batches.reads == len(batches)
    model.evaluate_subsets(batches, **CPU)
    assert batches.reads == 2 * len(batches)


def test_subsets_are_those_of_evaluate_subsets(model):
    batches = tuple_batches(20)
    measured = model.evaluate_conditions(batches, preprocessing=PREPROCESSING, **CPU)
    assert measured.subsets == model.evaluate_subsets(batches, **CPU)


@torch.no_grad()
def test_darkness_on_a_stream_is_what_the_network_says_of_dark_images(model):
    batches = tuple_batches(24)
    options = EvaluationOptions(noise_levels=[], darkness_levels=[0.5, 1.0])
    measured = model.evaluate_conditions(batches, options, preprocessing=PREPROCESSING, **CPU)
    points = measured.corruptions["darkness"]["rgb"]
    assert [point["level"] for point in points] == [0, 0.5, 1]
    for point in points:
        right = [
            model([rgb * (1 - point["level"]), depth]).argmax(dim=1) == target
            for rgb, depth, target in batches
        ]
        assert point["accuracy"] == pytest.approx(torch.cat(right).float().mean().item())


def test_noise_enough_to_hide_everything_does_hurt(model):
    options = EvaluationOptions(noise_levels=[0.1, 30.0], darkness_levels=[])
    noise = model.evaluate_conditions(tuple_batches(48), options, **CPU).corruptions["noise"]
    for points in noise.values():
        none, little, much = (point["mean_class_accuracy"] for point in points)
        assert little > none - 0.1
        assert much < none - 0.1
    again = model.evaluate_conditions(tuple_batches(48), options, **CPU).corruptions["noise"]
    assert again == noise


def test_absent_images_are_never_looked_at(model):
    batches = dict_batches(tuple_batches(12, 12), mask_of("11 01 10 11 01 10 11 11 10 01 11 11"))
    measured = model.evaluate_conditions(batches, preprocessing=PREPROCESSING, **CPU)
    assert measured.subsets["rgb"]["num_samples"] == 6
    assert measured.subsets.as_they_are["rgb"]["num_samples"] == 9
    assert measured.subsets.as_they_come["num_samples"] == 12
    curves = measured.curves()
    assert curves.pop("streams lost at random").num_samples == 12
    assert {curve.num_samples for curve in curves.values()} == {6}
    for by_stream in measured.corruptions.values():
        for points in by_stream.values():
            assert all(point["num_samples"] == 6 for point in points)
            assert all(point["loss"] < float("inf") for point in points)  # and not NaN


def test_a_model_knows_how_its_images_were_prepared(model):
    batches = tuple_batches(8)
    model.preprocessing = PREPROCESSING.to_dict()
    measured = model.evaluate_conditions(batches, **CPU)
    model.preprocessing = None
    assert measured == model.evaluate_conditions(batches, preprocessing=PREPROCESSING, **CPU)


def test_curves_know_what_is_left_without_the_stream(model):
    measured = model.evaluate_conditions(tuple_batches(20), preprocessing=PREPROCESSING, **CPU)
    curves = measured.curves()
    assert list(curves) == [
        "streams lost at random",
        "noise on rgb",
        "noise on depth",
        "darkness on rgb",
        "darkness on depth",
    ]
    assert curves["noise on rgb"].without == measured.subsets["depth"]["mean_class_accuracy"]
    whole = measured.subsets["rgb + depth"]["mean_class_accuracy"]
    for curve in curves.values():
        assert curve.values[0] == whole
        assert all(a < b for a, b in pairwise(curve.levels))


def test_darkness_needs_to_know_what_is_black(model):
    with pytest.raises(ValueError, match="darkness needs preprocessing"):
        model.evaluate_conditions(tuple_batches(4), **CPU)


@torch.no_grad()
def test_a_stream_that_fails_is_compared_on_the_samples_that_have_every_stream(model):
    present = mask_of("11 01 10 11 01 10 11 11")
    ((rgb, depth, target),) = batches = tuple_batches(8)
    options = EvaluationOptions(noise_levels=[], darkness_levels=[0.5])
    measured = model.evaluate_conditions(
        dict_batches(batches, present), options, preprocessing=PREPROCESSING, **CPU
    )
    whole, dark = measured.corruptions["darkness"]["rgb"]
    assert whole == {"level": 0.0, **measured.subsets["rgb + depth"]}
    complete = present.all(dim=1)
    right = model([rgb[complete] * 0.5, depth[complete]]).argmax(dim=1) == target[complete]
    assert dark["accuracy"] == pytest.approx(right.float().mean().item())
    curve = measured.curves()["darkness on rgb"]
    assert curve.without == measured.subsets["depth"]["mean_class_accuracy"]


def test_where_no_sample_has_every_stream_failing_sensors_are_measured_on_all(model):
    batches = dict_batches(tuple_batches(8), mask_of("01 10 10 01 01 10 10 01"))
    options = EvaluationOptions(noise_levels=[1.0], darkness_levels=[])
    measured = model.evaluate_conditions(batches, options, **CPU)
    whole, _ = measured.corruptions["noise"]["rgb"]
    assert whole == {"level": 0.0, **measured.subsets.as_they_come}
    assert all(curve.num_samples == 8 for curve in measured.curves().values())
    assert measured.curves()["noise on rgb"].without is None


def test_curves_know_the_chance_level_of_their_samples(model):
    present = mask_of("11 01 10 11 01 10 11 11")
    (batch,) = dict_batches(tuple_batches(8), present)
    batch["target"] = torch.tensor([0, 1, 2, 0, 1, 2, 1, 0])
    options = EvaluationOptions(noise_levels=[1.0], darkness_levels=[])
    curves = model.evaluate_conditions([batch], options, **CPU).curves()
    assert curves["streams lost at random"].chance == pytest.approx(1 / 3)
    assert curves["noise on rgb"].chance == pytest.approx(1 / 2)  # no complete sample is of 2


def test_nothing_to_measure(model):
    with pytest.raises(ValueError, match="the loader has no sample"):
        model.evaluate_conditions([], EvaluationOptions(darkness_levels=[]), **CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_rates": [0.5, 1.5]}, r"loss_rates has 1.5; expected numbers of 0 to 1"),
        ({"noise_levels": [-1.0]}, r"noise_levels has -1.0; expected numbers of 0 or more"),
        ({"darkness_levels": [2.0]}, r"darkness_levels has 2.0; expected numbers of 0 to 1"),
        ({"loss_draws": 0}, r"loss_draws is 0; expected at least 1"),
        ({"seed": -1}, r"seed is -1; expected 0 or more"),
    ],
)
def test_options_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        EvaluationOptions(**changes)
