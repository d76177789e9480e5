import copy
import math
import os
import random
import signal

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from manystream.data.loader import StreamDataset, make_loader
from manystream.data.options import DataOptions
from manystream.dropout import scheduled_probability
from manystream.training import FitOptions
from manystream.training.checkpoints import read_state
from manystream.training.fit import check_fit
from manystream.training.schedule import warmup_cosine
from tests.builders import mask_of
from tests.data.builders import DEPTH, RGB, ArraySource, identity, noise
from tests.training.builders import CPU, dict_batches, easy_samples, tiny_model, tuple_batches
from tests.training.test_history import strict

QUANTITIES = ("loss", "accuracy", "mean_class_accuracy")
OF_TRAINING = {
    *(f"train_{q}" for q in (*QUANTITIES, "samples_per_second")),
    "dropout_probability",
    "learning_rate",
    "num_processes",
}
FINAL = "final.ckpt"
OF_VALIDATION = {f"val_{q}" for q in (*QUANTITIES, "num_samples")}


class Watched(ArraySource):
    """A source that counts what is read."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.reads = []

    def read(self, index, stream):
        self.reads.append((index, stream))
        return super().read(index, stream)


class Interrupted:
    """Batches, until Ctrl-C is pressed in some epoch."""

    def __init__(self, batches, epoch):
        self.batches, self.epochs_left = batches, epoch

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        yield self.batches[0]
        if self.epochs_left == 0:
            raise KeyboardInterrupt
        self.epochs_left -= 1
        yield from self.batches[1:]


def own_loader(source, batch_size=4):
    preprocessing = identity(RGB, DEPTH, size=32)
    options = DataOptions(batch_size=batch_size, num_workers=0)
    return make_loader(StreamDataset(source, preprocessing), options, shuffle=True)


def watched_source(num_samples=8):
    source = Watched((RGB, DEPTH), [[noise(32, 32), noise(32, 32, 1)] for _ in range(num_samples)])
    source.targets = torch.arange(num_samples) % 2
    return source


def presence_seen(model) -> list:
    """The presence mask of every batch that the network will see in training."""
    seen = []

    def note(_, arguments):
        if model.network.training:
            seen.append(arguments[0].presence.mask)

    model.network.register_forward_pre_hook(note)
    return seen


def test_it_learns_what_is_easy():
    model = tiny_model()
    history = model.fit(
        tuple_batches(96), tuple_batches(48, seed=1), epochs=6, learning_rate=0.01, **CPU
    )
    assert history["val_accuracy"][-1] > 0.9
    assert history["train_accuracy"][-1] > 0.9
    assert history["train_loss"][-1] < history["train_loss"][0] / 2


def test_the_history_has_every_quantity_of_every_epoch():
    history = tiny_model().fit(tuple_batches(24), tuple_batches(12), epochs=3, **CPU)
    assert set(history) == OF_TRAINING | OF_VALIDATION
    assert {len(values) for values in history.values()} == {3}
    assert history["val_num_samples"] == [12, 12, 12]
    alone = tiny_model().fit(tuple_batches(24), epochs=2, **CPU)
    assert set(alone) == OF_TRAINING
    assert alone.num_epochs == 2


def test_the_call_of_the_design():
    dataset = TensorDataset(*easy_samples(16))
    history = tiny_model().fit(
        DataLoader(dataset, batch_size=8, shuffle=True),
        DataLoader(dataset, batch_size=8),
        epochs=2,
        modality_dropout=True,
        modality_dropout_rate=0.2,
        modality_dropout_ramp=20,
        **CPU,
    )
    assert history["dropout_probability"] == pytest.approx([0.01, 0.02])


@pytest.mark.parametrize("schedule", ["ramp_up", "ramp_down"])
def test_the_dropout_probability_follows_its_schedule(schedule):
    history = tiny_model().fit(
        tuple_batches(8),
        epochs=5,
        modality_dropout=True,
        modality_dropout_rate=0.4,
        modality_dropout_schedule=schedule,
        modality_dropout_start=1,
        modality_dropout_ramp=2,
        **CPU,
    )
    expected = [scheduled_probability(e, 0.4, schedule, 1, 2) for e in range(5)]
    assert history["dropout_probability"] == pytest.approx(expected)


def test_batches_lose_streams_as_often_as_the_schedule_says():
    model = tiny_model()
    seen = presence_seen(model)
    dropped = {"modality_dropout": True, "modality_dropout_rate": 1.0, "modality_dropout_start": 1}
    model.fit(tuple_batches(24), tuple_batches(8), epochs=2, **dropped, **CPU)
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert len(seen) == 6
    assert first.all()
    assert second.sum(dim=1).tolist() == [1] * 24
    assert second.any(dim=0).all()


def test_our_own_loader_does_not_read_what_is_blanked():
    source, model = watched_source(), tiny_model()
    loader, seen = own_loader(source), presence_seen(model)
    dropped = {"modality_dropout": True, "modality_dropout_rate": 1.0, "modality_dropout_start": 1}
    model.fit(loader, epochs=2, **dropped, **CPU)
    first, second = source.reads[:16], source.reads[16:]
    assert sorted(first) == [(index, stream) for index in range(8) for stream in range(2)]
    assert sorted(index for index, _ in second) == list(range(8))
    assert torch.cat(seen[2:]).sum() == 8
    assert loader.batch_sampler.select is None
    assert [index for index, _ in second] != [index for index, _ in first[::2]]


def test_a_dict_loader_with_present():
    model = tiny_model()
    seen = presence_seen(model)
    present = mask_of("11 01 10 11 01 01 10 11")
    history = model.fit(dict_batches(tuple_batches(16), present), epochs=1, **CPU)
    assert torch.equal(torch.cat(seen), torch.cat([present, present]))
    assert 0 < history["train_loss"][0] < 10


def test_what_is_left_on_disk(tmp_path):
    out = tmp_path / "run"
    model = tiny_model()
    history = model.fit(tuple_batches(8), tuple_batches(8), epochs=2, out_dir=out, **CPU)
    assert strict(out / "history.json") == history
    assert (out / "logs/metrics.csv").read_text().count("\n") > 2
    assert list((out / "logs").glob("events.out.tfevents.*"))
    names = {path.name for path in (out / "checkpoints").glob("[!.]*")}
    assert names == {"epoch-00001-batch-00000000.ckpt", "best.ckpt", FINAL}
    saved = read_state(out / "checkpoints" / FINAL)
    for name, tensor in model.state_dict().items():
        assert torch.equal(saved["state_dict"][name], tensor)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model().fit(tuple_batches(8), tuple_batches(8), epochs=1, **CPU)
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_gives_the_same_weights():
    def trained(seed):
        model = tiny_model(dropout=0.5)
        loader = DataLoader(TensorDataset(*easy_samples(16)), batch_size=4, shuffle=True)
        model.fit(loader, epochs=2, modality_dropout=True, seed=seed, **CPU)
        return model.state_dict()

    first, again, other = trained(3), trained(3), trained(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.fc.weight"], other["network.fc.weight"])


def test_training_again_with_our_own_loader_repeats_its_order():
    loader, model = own_loader(watched_source()), tiny_model()
    twin = copy.deepcopy(model)
    for network in (model, twin):
        network.fit(loader, epochs=2, modality_dropout=True, **CPU)
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))


def test_ctrl_c_keeps_what_was_finished(tmp_path):
    handler, model = signal.getsignal(signal.SIGINT), tiny_model()
    loader = Interrupted(tuple_batches(16), epoch=2)
    with pytest.raises(KeyboardInterrupt):
        model.fit(loader, tuple_batches(8), epochs=5, out_dir=tmp_path, **CPU)
    kept = strict(tmp_path / "history.json")
    assert {len(values) for values in kept.values()} == {2}
    state = tmp_path / "checkpoints/epoch-00002-batch-00000000.ckpt"
    assert read_state(state)["epoch"] == 2
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_before_the_first_batch_leaves_the_next_one_to_the_caller():
    class Slow(list):
        def __len__(self):
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tiny_model().fit(Slow(), epochs=1, **CPU)
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_error_in_a_loader_is_what_comes_out():
    def broken():
        raise OSError("the disk is gone")
        yield

    with pytest.raises(OSError, match="the disk is gone"):
        tiny_model().fit(broken(), epochs=1, **CPU)


def test_a_batch_that_does_not_fit_comes_out_as_a_value_error():
    rgb, depth, target = easy_samples(4)
    with pytest.raises(ValueError, match="sample 2 of the batch is 11; expected 0 to 2"):
        tiny_model().fit([(rgb, depth, target + 9 * (target > 1))], epochs=1, **CPU)
    with pytest.raises(ValueError, match="batches have no target"):
        tiny_model().fit([(rgb, depth)], epochs=1, **CPU)


@pytest.mark.parametrize(
    ("changes", "num_streams", "message"),
    [
        ({"modality_dropout": True}, 1, "at least two streams; the model has 1"),
        ({"modality_dropout": True, "modality_dropout_max_blanked": 2}, 2, "max_blanked is 2"),
        ({"modality_dropout": True, "modality_dropout_rate": [0.1, 0.1]}, 3, "2 modality dropout"),
        ({"accelerator": "abacus"}, 2, "abacus"),
        ({"accelerator": "tpu"}, 2, "tpu"),
    ],
)
def test_what_does_not_fit_is_found_before_training(changes, num_streams, message):
    with pytest.raises(ValueError, match=message):
        check_fit(FitOptions(**changes), list("abc")[:num_streams])


def test_what_fits_passes():
    check_fit(FitOptions(accelerator="cpu"), ["rgb"])
    check_fit(FitOptions(modality_dropout=True, modality_dropout_max_blanked=2, **CPU), list("abc"))


def test_a_loader_without_a_length_is_scheduled_by_epoch():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(tuple_batches(24))

    loader = DataLoader(Stream(), batch_size=None)
    history = tiny_model().fit(loader, loader, epochs=4, learning_rate=0.01, **CPU)
    assert history["learning_rate"] == pytest.approx(
        [0.01 * warmup_cosine(epoch, num_warmup=1, num_steps=4) for epoch in range(4)]
    )
    assert history["train_accuracy"][-1] > history["train_accuracy"][0]
    assert history["val_num_samples"] == [24] * 4


def test_a_model_in_evaluation_mode_is_trained_all_the_same():
    model = tiny_model().eval()
    before = model.network.bn1.streams[0].running_mean.clone()
    model.fit(tuple_batches(8), epochs=1, **CPU)
    assert not torch.equal(model.network.bn1.streams[0].running_mean, before)


def test_frozen_parts_stay_in_evaluation_mode():
    model = tiny_model()
    frozen = model.network.bn1.eval().streams[0]
    before = frozen.running_mean.clone()
    with pytest.warns(UserWarning, match="in eval mode at the start of training"):
        model.fit(tuple_batches(8), epochs=1, **CPU)
    assert torch.equal(frozen.running_mean, before)


def test_the_callers_random_numbers_go_on_as_if_nothing_had_been_trained(monkeypatch):
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    random.seed(5), np.random.seed(6), torch.manual_seed(7)  # noqa: NPY002
    expected = draw()
    random.seed(5), np.random.seed(6), torch.manual_seed(7)  # noqa: NPY002
    tiny_model().fit(tuple_batches(8), epochs=1, **CPU)
    assert draw() == expected
    assert torch.initial_seed() == 7
    assert os.environ["PL_SEED_WORKERS"] == "0"
    assert "PL_GLOBAL_SEED" not in os.environ


def test_a_generator_is_refused_for_more_than_one_epoch():
    def batches():
        yield from tuple_batches(16)

    model = tiny_model()
    with pytest.raises(ValueError, match=r"train_loader is a generator, .* and epochs is 3; give"):
        model.fit(batches(), epochs=3, **CPU)
    with pytest.raises(ValueError, match="val_loader is a generator"):
        model.fit(tuple_batches(8), batches(), epochs=2, **CPU)
    history = model.fit(batches(), batches(), epochs=1, **CPU)
    assert history["val_num_samples"] == [16]


@pytest.mark.parametrize("which", ["train_loader", "val_loader"])
def test_a_loader_that_is_used_up_after_an_epoch_is_noticed(which):
    class Once(IterableDataset):
        def __init__(self):
            self.batches = iter(tuple_batches(16))

        def __iter__(self):
            return self.batches

    loaders = {"train_loader": tuple_batches(16), "val_loader": tuple_batches(16)}
    loaders[which] = DataLoader(Once(), batch_size=None)
    with pytest.raises(ValueError, match=f"{which} has no batch in an epoch after the first"):
        tiny_model().fit(**loaders, epochs=3, **CPU)


def test_validation_images_that_give_nan_are_named():
    validation = dict_batches(tuple_batches(16), torch.ones(8, 2, dtype=torch.bool))
    validation[1]["rgb"][3, 0, 0, 0] = math.nan
    validation[1]["ids"] = [f"room/{b}" for b in range(8)]
    with pytest.warns(UserWarning, match="val_loss of epoch") as caught:
        history = tiny_model().fit(tuple_batches(16), validation, epochs=2, **CPU)
    assert all(map(math.isnan, history["val_loss"]))
    assert [str(warning.message) for warning in caught] == [
        f"val_loss of epoch {epoch} (from 0) is not a finite number: the network gives NaN or "
        "infinity for 1 of 16 validation samples, room/3; look at these images"
        for epoch in range(2)
    ]


@pytest.mark.parametrize("arguments", [{"strategy": "deepspeed"}, {"devices": 3}, {}])
def test_a_package_that_is_missing_is_not_blamed_on_the_accelerator(arguments, monkeypatch):
    def broken(**_):
        raise ImportError("cannot import abacus")

    monkeypatch.setattr("lightning.pytorch.Trainer", broken)
    with pytest.raises(ValueError, match="cannot import abacus") as error:
        check_fit(FitOptions(**arguments, **CPU), ["rgb", "depth"])
    assert "accelerator" not in str(error.value)
    assert all(f"{name} is {value!r}" in str(error.value) for name, value in arguments.items())


def test_nothing_to_train_on():
    with pytest.raises(ValueError, match="train_loader has no batch; expected at least one"):
        tiny_model().fit([], epochs=1, **CPU)
