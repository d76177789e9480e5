import pytest
import torch

from manystream.dropout import ModalityDropout
from manystream.evaluation import EvaluationOptions
from tests.builders import mask_of
from tests.training.builders import CPU, dict_batches, easy_samples, tiny_model, tuple_batches

RATES = [0.0, 0.5, 0.9]


def only_loss(**changes):
    return EvaluationOptions(
        **{"loss_rates": RATES, "noise_levels": [], "darkness_levels": [], **changes}
    )


@pytest.fixture(scope="module")
def model():
    model = tiny_model()
    model.fit(tuple_batches(24), epochs=8, learning_rate=1e-2, **CPU)
    return model.eval()


@torch.no_grad()
def asked_again(model, present, rate, seed, batch_size):
    """Mean class accuracy of a network that is shown the drawn streams themselves."""
    *images, target = easy_samples(len(present), seed=7)
    dropout, parts = ModalityDropout(2, rate, seed=seed), []
    for number, part in enumerate(present.split(batch_size)):
        dropout.begin(number)  # every batch is drawn anew
        parts.append(dropout.draw(part))
    kept = torch.cat(parts)
    right = model(images, present=kept).argmax(dim=1) == target
    return torch.stack([right[target == c].float().mean() for c in range(3)]).mean().item()


@pytest.mark.parametrize("batch_size", [30, 8])
@pytest.mark.parametrize("words", ["11", "11 01 10"])
def test_it_is_what_the_network_says_of_the_drawn_streams(model, words, batch_size):
    present = mask_of(words).repeat(30, 1)[:30]
    parts = zip(tuple_batches(30, batch_size, seed=7), present.split(batch_size), strict=True)
    batches = [dict_batches([batch], part)[0] for batch, part in parts]
    curve = model.evaluate_conditions(batches, only_loss(loss_draws=1, seed=5), **CPU).random_loss
    assert [point["rate"] for point in curve] == RATES
    expected = [asked_again(model, present, rate, 5, batch_size) for rate in RATES]
    assert [point["mean_class_accuracy"] for point in curve] == pytest.approx(expected)


def test_draws_are_averaged_and_their_spread_is_told(model):
    batches = tuple_batches(24, seed=7)
    first, second = (
        model.evaluate_conditions(batches, only_loss(loss_draws=n), **CPU).random_loss
        for n in (1, 30)
    )
    assert [point["mean_class_accuracy_std"] for point in first] == [0, 0, 0]
    assert second[0]["accuracy_std"] == 0
    assert second[1]["mean_class_accuracy_std"] > 0
    again = model.evaluate_conditions(batches, only_loss(loss_draws=30), **CPU).random_loss
    assert again == second


def test_a_network_with_one_stream_has_none_to_lose():
    model = tiny_model(in_channels={"rgb": 3})
    batches = [(rgb, target) for rgb, _, target in tuple_batches(8)]
    robustness = model.evaluate_conditions(batches, only_loss(), **CPU)
    assert robustness.random_loss == []
    assert list(robustness.subsets) == ["rgb"]
    assert robustness.curves() == {}
