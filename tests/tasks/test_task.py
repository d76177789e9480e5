"""A task of one's own, and one whose targets are trees, through everything that a user does."""

import pytest
import torch
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection

import manystream as ms
from manystream.evaluation import EvaluationOptions
from manystream.presence import Presence, Views
from manystream.tasks import StepLoss, Task, load_task
from tests.builders import mask_of
from tests.training.builders import CPU, dict_batches, easy_samples, tiny_model, tuple_batches


class Brightness(Task):
    """A dozen lines: a number per sample."""

    name, num_outputs = "brightness", 1
    primary_metric, higher_is_better = "mae", False

    def loss(self, output, target):
        return (output[:, 0] - target).square()

    def predict(self, output):
        return output[:, 0]

    def metrics(self):
        return MetricCollection({"mae": MeanAbsoluteError()})


class MeanLoss(Brightness):
    """The same with a loss that is one number."""

    name = "mean brightness"

    def loss(self, output, target):
        return torch.nn.functional.mse_loss(output[:, 0], target)


class BothError(Metric):
    """Sum of the errors of two heads."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, predictions, target):
        self.total += sum((predictions[n] - target[n]).abs().sum() for n in predictions)
        self.count += len(target["mean"])

    def compute(self):
        return self.total / self.count


class TwoHeads(Task):
    """Two numbers a sample, as a tree."""

    name, num_outputs = "two heads", 2
    primary_metric, higher_is_better = "error", False

    def loss(self, output, target):
        found = self.predict(output)
        return sum((found[n] - target[n]).square() for n in found)

    def predict(self, output):
        return {"mean": output[:, 0], "top": output[:, 1]}

    def metrics(self):
        return MetricCollection({"error": BothError()})

    def describe(self, predictions):
        return [(name, values.tolist()) for name, values in predictions.items()]


def mean_of(rgb, depth):
    return (rgb.mean(dim=(1, 2, 3)) + depth.mean(dim=(1, 2, 3))) / 2


def batches_of(target_of, count=24, size=8):
    rgb, depth, _ = easy_samples(count)
    parts = zip(rgb.split(size), depth.split(size), strict=True)
    return [(r, d, target_of(r, d)) for r, d in parts]


def tree_of(rgb, depth):
    return {"mean": mean_of(rgb, depth), "top": rgb[:, :, :8].mean(dim=(1, 2, 3))}


@torch.no_grad()
def test_a_task_of_ones_own_trains_measures_and_predicts(tmp_path):
    batches = batches_of(mean_of)
    model = tiny_model(task=Brightness())
    history = model.fit(batches, batches, epochs=3, **CPU)
    assert history["train_loss"][-1] < history["train_loss"][0]
    assert set(history) >= {"train_mae", "val_mae", "val_loss"}

    model.eval()
    output = torch.cat([model([r, d])[:, 0] for r, d, _ in batches])
    error = output - torch.cat([target for *_, target in batches])
    expected = {
        "loss": error.square().mean().item(),
        "mae": error.abs().mean().item(),
        "num_samples": 24,
    }
    assert model.evaluate(batches, **CPU) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(model.predict(batches, **CPU), output)

    model.save(tmp_path / "m.safetensors")
    loaded = ms.load_model(tmp_path / "m.safetensors")
    assert isinstance(loaded.task, Brightness)
    assert loaded.evaluate(batches, **CPU) == model.evaluate(batches, **CPU)


def test_a_loss_of_one_number_is_taken_too():
    batches = batches_of(mean_of)
    one, each = tiny_model(task=MeanLoss()), tiny_model(task=Brightness())
    found, expected = (m.fit(batches, None, epochs=1, **CPU) for m in (one, each))
    assert found["train_loss"] == pytest.approx(expected["train_loss"])
    assert one.evaluate(batches, **CPU) == pytest.approx(each.evaluate(batches, **CPU), rel=1e-4)


def test_trees_of_targets_go_everywhere():
    present = mask_of("11 01 10 11 01 11 10 11")
    batches = dict_batches(batches_of(tree_of), present)
    model = tiny_model(task=TwoHeads())
    model.fit(batches, batches, epochs=1, subset_accuracy_every=1, **CPU)
    options = EvaluationOptions(loss_rates=[0.5], loss_draws=2, darkness_levels=[])
    measured = model.evaluate_conditions(batches, options, **CPU)
    assert measured.metric == "error"
    assert set(measured.subsets["depth"]) == {"loss", "error", "num_samples"}
    assert measured.subsets["depth"]["num_samples"] == 12
    assert measured.subsets.as_they_are["depth"]["num_samples"] == 18
    assert measured.curves()["streams lost at random"].values[0] > 0
    predictions = model.predict(batches, **CPU)
    assert {name: len(values) for name, values in predictions.items()} == {"mean": 24, "top": 24}
    assert model.find_batch_size(batches, largest=2, **CPU) == 2


def test_training_watches_the_first_metric_with_every_subset():
    batches = batches_of(mean_of)
    model = tiny_model(task=Brightness())
    history = model.fit(batches, batches, epochs=1, subset_accuracy_every=1, **CPU)
    expected = model.evaluate(batches, blanked_streams=["depth"], **CPU)["mae"]
    assert history["val_mae/rgb"] == [pytest.approx(expected)]


def test_a_target_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"target has shape \(7,\); expected a tensor with 8"):
        Brightness().check_target({"a": torch.zeros(8), "b": torch.zeros(7)}, 8)
    with pytest.raises(ValueError, match="target has 3; expected a tensor"):
        Brightness().check_target({"a": 3}, 8)


def test_an_unknown_task_says_what_to_import():
    with pytest.raises(ValueError, match=r"task is 'ages'; known are .*classification"):
        load_task({"type": "ages"})


def test_network_and_task_must_agree():
    network = tiny_model(num_classes=4).network
    with pytest.raises(ValueError, match="the network has 4 outputs; the task takes 1"):
        ms.StreamModel(network, Brightness())


def test_answers_and_targets_are_put_into_words():
    number, tree = torch.tensor([0.25, 12345.678]), {"mean": torch.ones(2), "top": torch.zeros(2)}
    answers = Brightness().answers(number, number)
    assert [answer.text for answer in answers] == ["output 0 0.25", "output 0 1.235e+04"]
    assert {(answer.confidence, answer.is_right) for answer in answers} == {(None, None)}
    assert Brightness().describe_target(number) == ["0.25", "1.235e+04"]
    assert [answer.text for answer in TwoHeads().answers(tree, tree)] == ["mean 1"] * 2
    assert TwoHeads().describe_target(tree) == ["", ""]
    assert Brightness().describe_target(torch.ones(2, 5, 5)) == ["", ""]


def test_samples_of_a_task_of_ones_own_are_shown():
    model = tiny_model(task=Brightness())
    rgb, depth, _ = easy_samples(3)
    shown = model.show_samples([(rgb, depth, mean_of(rgb, depth))])
    assert [sample.truth for sample in shown.samples] == [
        f"{value:.4g}" for value in mean_of(rgb, depth).tolist()
    ]
    assert all(sample.answers[3].text.startswith("output 0 ") for sample in shown.samples)


@pytest.mark.parametrize("parts", [(), (1,), (3,), (2, 2)])
def test_a_loss_with_parts_is_their_mean_in_each_view(parts):
    """As it is without views: (V, 1) times (V,) would be (V, V), and V times too large."""
    views = Views.with_subsets(Presence.all_present(4, 2))
    losses = torch.rand(views.num_views, *parts)
    step = StepLoss(lambda output, target: losses)
    torch.testing.assert_close(step(losses, losses, views), step(losses, losses))


def test_losses_that_are_of_no_view_are_refused():
    views = Views.with_subsets(Presence.all_present(4, 2))
    step = StepLoss(lambda output, target: torch.ones(1))
    with pytest.raises(ValueError, match=r"shape \(1,\); expected one per view, \(12,\)"):
        step(torch.zeros(12, 1), torch.zeros(12), views)


@pytest.mark.parametrize("subsets", [None, "all"])
def test_a_loss_that_is_one_number_is_validated(subsets):
    data = [(rgb, depth, rgb.mean((1, 2, 3))) for rgb, depth, _ in tuple_batches(16)]
    options = {"epochs": 1, "learning_rate": 1e-3, "subsets": subsets, **CPU}
    each = tiny_model(task=Brightness()).fit(data, data, **options)
    mean = tiny_model(task=MeanLoss()).fit(data, data, **options)
    assert mean["val_loss"] == pytest.approx(each["val_loss"], rel=1e-5)


def test_a_loss_with_parts_is_validated():
    class Column(Brightness):
        name = "column"

        def loss(self, output, target):
            return (output - target[:, None]).square()

    data = [(rgb, depth, rgb.mean((1, 2, 3))) for rgb, depth, _ in tuple_batches(16)]
    each = tiny_model(task=Brightness()).fit(data, data, epochs=1, subsets="all", **CPU)
    column = tiny_model(task=Column()).fit(data, data, epochs=1, subsets="all", **CPU)
    assert column["train_loss"] == pytest.approx(each["train_loss"], rel=1e-5)
    assert column["val_loss"] == pytest.approx(each["val_loss"], rel=1e-5)
