import pytest
import torch

from tests.builders import mask_of
from tests.training.builders import CPU, STREAMS, dict_batches, tiny_model, tuple_batches
from tests.training.test_fit import own_loader, watched_source


@pytest.fixture
def model():
    model = tiny_model()
    model.fit(tuple_batches(16), epochs=1, **CPU)  # so that running statistics are not trivial
    return model.eval()


def softmax_of(model, *arguments, **named):
    with torch.no_grad():
        return model(*arguments, **named).softmax(dim=1)


def test_it_is_the_softmax_of_the_model_in_the_loaders_order(model):
    batches = tuple_batches(20)
    found = model.predict(batches, **CPU)
    expected = torch.cat([softmax_of(model, images) for *images, _ in batches])
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found[0], found[1], atol=1e-6)  # or the order could not be seen


def test_absent_streams_do_not_mix_the_order_up(model):
    present = mask_of("11 01 10 11 01 10 01 11")
    batches = dict_batches(tuple_batches(16), present)
    expected = [softmax_of(model, {n: b[n] for n in STREAMS}, present=present) for b in batches]
    torch.testing.assert_close(model.predict(batches, **CPU), torch.cat(expected))


def test_targets_are_not_needed(model):
    batches = tuple_batches(8)
    without = [batch[:2] for batch in batches]
    assert torch.equal(
        model.predict(without, **CPU),
        model.predict(batches, **CPU),
    )


def test_a_generator_is_a_loader(model):
    batches = tuple_batches(16)
    assert torch.equal(model.predict(iter(batches), **CPU), model.predict(batches, **CPU))


def test_a_loader_that_trained_predicts_with_every_stream(model):
    source = watched_source()
    loader = own_loader(source)
    model.fit(loader, epochs=1, modality_dropout=True, modality_dropout_rate=1.0, **CPU)
    source.reads.clear()
    assert model.predict(loader, **CPU).shape == (8, 3)
    assert len(source.reads) == 16


def test_a_batch_that_does_not_fit(model):
    with pytest.raises(ValueError, match="unknown stream 'lidar'"):
        model.predict([{"lidar": torch.zeros(2, 1, 32, 32)}], **CPU)


def test_a_loader_without_a_batch(model):
    with pytest.raises(ValueError, match="the loader has no batch"):
        model.predict([], **CPU)


class MadeOnce:
    """Batches that are made on the first pass and kept, as a data set with a cache does."""

    def __init__(self):
        self.batches = []

    def __iter__(self):
        if not self.batches:
            self.batches = [[x + 0 for x in batch] for batch in tuple_batches(16)]
        return iter(self.batches)

    def __len__(self):
        return 2


def test_what_a_loader_keeps_of_an_evaluation_can_be_trained_on(model):
    loader = MadeOnce()
    model.evaluate(loader, **CPU)
    assert model.fit(loader, epochs=1, **CPU).num_epochs == 1


def test_the_network_comes_back_as_it_was(model):
    model.network.train()
    model.network.bn1.eval()
    model.predict(tuple_batches(8), **CPU)
    modes = {module.training for module in model.network.bn1.modules()}
    assert modes == {False}
    assert model.network.training
    with pytest.raises(RuntimeError, match="is broken"):
        model.predict(broken(), **CPU)
    assert model.network.training


def broken():
    yield tuple_batches(8)[0]
    raise RuntimeError("the disk is broken")


@pytest.mark.parametrize("accelerator", ["tpu", "cdua", ""])
def test_a_device_that_is_not_here(model, accelerator):
    with pytest.raises(
        ValueError, match=rf"accelerator is '{accelerator}'; expected one of auto, cpu"
    ):
        model.predict(tuple_batches(8), accelerator=accelerator)


def test_a_network_that_trained_in_double_precision_is_measured():
    data = dict_batches(tuple_batches(16), mask_of("11 10 11 01 11 11 10 01"))
    model = tiny_model(subset_norms=True)
    model.fit(data, data, epochs=1, precision="64-true", subsets="all", **CPU)
    measured = model.evaluate_subsets(data, accelerator="cpu")
    assert measured.as_they_come == model.evaluate(data, accelerator="cpu")
    assert model.predict(data, accelerator="cpu").shape == (16, 3)
