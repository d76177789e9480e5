"""Training in which each sample is seen with several subsets of its streams."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from manystream.dropout import subset_views
from manystream.presence import Presence
from manystream.tasks import Classification
from manystream.training import FitOptions
from manystream.training.callbacks.step_watch import StepWatch
from manystream.training.module import TrainingModule
from manystream.training.out_of_memory import StepForm
from tests.builders import mask_of
from tests.models.test_views import seen_in
from tests.oracle import forward_by_view
from tests.training.builders import CPU, dict_batches, tiny_model, tuple_batches

PRESENT = mask_of("11 10 11 01 11 11 10 01")
WEIGHTS = {"rgb": 2.0, "rgb + depth": 0.5}
EXACT = {"precision": "64-true", "optimizer": "sgd", "schedule": "constant", "warmup_epochs": 0}


def batches(absent=float("nan")):
    """Three batches of which some samples lack a stream; the last is smaller."""
    return dict_batches(tuple_batches(20), PRESENT, absent)


def plain_training(model, options, accumulate=1):
    """The same run in plain torch: rows are picked for each view, and SGD written out."""
    network = deepcopy(model.network).double().train()
    optimizer = torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad], 0.1, 0.9, nesterov=True
    )
    losses = []
    for number, batch in enumerate(batches(absent=0.0), start=1):
        mask = batch["present"]
        see = subset_views(["rgb", "depth"], options["subsets"], options.get("subset_weights"))
        views = see(Presence.from_mask(mask))
        images = [batch[name].double() for name in ("rgb", "depth")]
        logits, statistics = forward_by_view(network, images, mask, seen_in(views), training=True)
        of_views = F.cross_entropy(logits, batch["target"][views.sample], reduction="none")
        loss = (of_views * views.weight).sum()
        losses.append((loss.item(), len(mask)))
        (loss / accumulate).backward()
        if number % accumulate == 0 or number == 3:
            optimizer.step()
            optimizer.zero_grad()
        buffers = dict(network.named_buffers())
        with torch.no_grad():
            for name, value in statistics.items():
                buffers[name].copy_(value)
    mean = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    return network, mean


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("subset_norms", [False, True])
@pytest.mark.parametrize(
    ("changes", "accumulate"),
    [
        ({"subsets": "all"}, 1),
        ({"subsets": 2}, 2),
        ({"subsets": "all", "subset_weights": WEIGHTS}, 1),
    ],
)
def test_a_run_is_what_plain_torch_makes_of_it(changes, accumulate, subset_norms, memory):
    """Weights, running statistics and loss, with real absence."""
    model = tiny_model(subset_norms=subset_norms)
    expected, loss = plain_training(model, changes, accumulate)
    model.memory = memory
    options = FitOptions(
        epochs=1,
        learning_rate=0.1,
        weight_decay=0.0,
        accumulate_batches=accumulate,
        **changes,
        **EXACT,
        **CPU,
    )
    history = model.fit(batches(), None, options)
    assert history["train_loss"][0] == pytest.approx(loss, rel=1e-6)
    ours = dict(model.network.named_parameters()) | dict(model.network.named_buffers())
    for name, value in (*expected.named_parameters(), *expected.named_buffers()):
        if not name.endswith("num_batches_tracked"):
            close = {"rtol": 1e-6, "atol": 1e-7}  # a run leaves float32
            torch.testing.assert_close(ours[name].double(), value, **close, msg=name)


class MeanLoss(Classification):
    """A user's loss that gives no more than a mean."""

    name = "mean loss"

    def training_loss(self, options, targets=None):
        return F.cross_entropy


@pytest.mark.parametrize("changes", [{}, {"subset_weights": WEIGHTS}])
def test_a_loss_that_gives_a_mean_is_asked_once_per_subset(changes):
    """Where samples of a subset count alike, that is the same."""
    options = FitOptions(epochs=2, subsets="all", **changes, **EXACT, **CPU)
    model, other = tiny_model(), tiny_model(task=MeanLoss(3))
    history = model.fit(tuple_batches(16), None, options)
    assert other.fit(tuple_batches(16), None, options)["train_loss"] == pytest.approx(
        history["train_loss"], rel=1e-6
    )


def test_training_accuracy_is_of_the_full_views():
    options = FitOptions(epochs=1, subsets="all", learning_rate=1e-9, ema_decay=None, **CPU)
    model = tiny_model()
    full = FitOptions(epochs=1, learning_rate=1e-9, **CPU)
    expected = tiny_model().fit(tuple_batches(16), None, full)
    history = model.fit(tuple_batches(16), None, options)
    assert set(history) == set(expected)
    assert 0 <= history["train_accuracy"][0] <= 1


def test_subsets_are_learned():
    """A network that never saw a sample without depth does not know what to do with it."""
    data = tuple_batches(48, seed=1)
    robust, careless = tiny_model(subset_norms=True), tiny_model()
    options = {"epochs": 12, "learning_rate": 0.02, **CPU}
    robust.fit(data, None, FitOptions(subsets="all", **options))
    careless.fit(data, None, FitOptions(**options))
    for lost in ("rgb", "depth"):
        kept = robust.evaluate(data, blanked_streams={lost})["accuracy"]
        assert kept > 0.9
        assert kept > careless.evaluate(data, blanked_streams={lost})["accuracy"]


@pytest.mark.parametrize(
    ("streams", "changes", "views"),
    [
        (2, {}, 3),
        (4, {}, 15),
        (1, {}, None),
        (5, {}, None),
        (2, {"modality_dropout": True}, None),
    ],
)
def test_auto_is_all_subsets_of_few_streams(streams, changes, views):
    see = FitOptions(subsets="auto", **changes).make_views(list("abcde")[:streams])
    found = None if see is None else see(Presence.all_present(1, streams)).num_views
    assert found == views


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subsets": 1}, "subsets is 1; expected 'all', or 2 or more"),
        ({"subsets": True}, "subsets is True; expected"),
        ({"subsets": "every"}, "subsets is 'every'; expected"),
        ({"subset_weights": {"rgb": 2.0}}, "but subsets is not set, so nothing would use it"),
        ({"subsets": "all", "subset_weights": {"rgb": 0.0}}, "has rgb: 0.0; expected more than 0"),
        ({"subsets": "all", "modality_dropout": True}, "leave one of the two out"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FitOptions(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subsets": 4}, "subsets is 4; expected 'all', or 2 to 3 for the streams rgb, depth"),
        (
            {"subsets": "all", "subset_weights": {"rgb + dept": 2.0}},
            "subset 'rgb [+] dept' names stream 'dept'; the network's streams are rgb, depth; did "
            "you mean depth",
        ),
        (
            {"subsets": "auto", "modality_dropout": True, "subset_weights": {"rgb": 2.0}},
            "subsets is 'auto', which here trains the full set alone, so nothing would use it",
        ),
        (
            {"subsets": "all", "subset_weights": {"rgb + depth": 2.0, "depth + rgb": 1.0}},
            "names a subset twice: rgb [+] depth, depth [+] rgb; expected each once",
        ),
    ],
)
def test_options_that_do_not_fit_the_streams_are_refused_before_training(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().fit(tuple_batches(8), None, epochs=1, **changes, **CPU)


def test_a_network_of_one_stream_has_no_subsets():
    model = tiny_model(family="single_stream", in_channels={"rgb": 3})
    loader = [(rgb, target) for rgb, _, target in tuple_batches(8)]
    with pytest.raises(ValueError, match="the network has one stream, rgb; leave subsets out"):
        model.fit(loader, None, epochs=1, subsets="all", **CPU)


def test_advice_about_memory_counts_all_views():
    """What a step is told to take, and what a search for a batch size tries."""
    module = TrainingModule(tiny_model().network, Classification(3), FitOptions(subsets="all"))
    latest = StepForm(image_size=(32, 32), target=torch.zeros(1, dtype=torch.int64))
    module._step = None
    batch = module.network.to_batch([x[:4] for x in tuple_batches(8)[0][:2]])
    StepWatch(latest).on_train_batch_start(None, module, batch, 0)
    assert latest.noise(module.network, 4).views.num_views == 3 * 4
