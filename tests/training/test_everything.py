"""What acts together in a run: all callbacks at once, their state, and what they ask for."""

import math

import pytest
import torch

from manystream.training import FitOptions
from tests.training.builders import CPU, repeatable, tiny_model, tuple_batches

VAL = [(torch.zeros(3, 3, 32, 32), torch.zeros(3, 1, 32, 32), torch.arange(3))]
EVERYTHING = {
    "epochs": 4,
    "schedule": "plateau",
    "learning_rate": 0.01,
    "gradient_clip": 1.0,
    "modality_dropout": True,
    "loss": "focal",
    "class_weights": [1.0, 2.0, 0.5],
    "ema_decay": 0.9,
    "restore_best": True,
    "early_stopping_patience": 9,
    "subset_accuracy_every": 1,
    "freeze_patience": 1,
    "balance_penalty": 0.3,
    "log_gradient_norms": True,
    "checkpoint_every_steps": 2,
}


class Cut(list):
    """Batches whose reading fails once so many have been handed out."""

    def __init__(self, batches, after):
        super().__init__(batches)
        self.left = after

    def __iter__(self):
        for batch in super().__iter__():
            if self.left == 0:
                raise OSError("the disk is gone")
            self.left -= 1
            yield batch


@pytest.mark.parametrize("subsets", [None, "all"])
def test_a_run_with_everything_resumes_to_the_last_bit(tmp_path, subsets):
    instead = {} if subsets is None else {"modality_dropout": False, "subsets": subsets}
    options, batches = FitOptions(**EVERYTHING | instead, **CPU), tuple_batches(24)
    layout = {"dropout": 0.3, "subset_norms": subsets is not None}
    whole = tiny_model(**layout)
    expected = whole.fit(batches, VAL, options, out_dir=tmp_path / "whole")
    with pytest.raises(OSError, match="the disk is gone"):
        tiny_model(**layout).fit(Cut(batches, 9), VAL, options, out_dir=tmp_path / "cut")
    resumed = tiny_model(seed=9, **layout)
    history = resumed.fit(batches, VAL, options, out_dir=tmp_path / "cut", resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    told, expected = (repeatable(h) for h in (history, expected))
    assert list(map(repr, told.items())) == list(map(repr, expected.items()))
    assert history["frozen/rgb"] == [0, 0, 1, 1]


def test_accumulated_batches_are_the_joined_batch():
    def trained(batch_size, accumulate_batches):
        model = tiny_model()
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.eval()  # its statistics alone would tell the batches apart
        with pytest.warns(UserWarning, match="in eval mode at the start of training"):
            model.fit(
                tuple_batches(24, batch_size),
                epochs=2,
                optimizer="sgd",
                learning_rate=0.01,
                class_weights=[1.0, 2.0, 0.5],
                accumulate_batches=accumulate_batches,
                **CPU,
            )
        return model.state_dict()

    joined, accumulated = trained(12, 1), trained(4, 3)
    for name, tensor in joined.items():
        torch.testing.assert_close(accumulated[name], tensor, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(
        joined["network.fc.weight"], tiny_model().network.fc.weight, atol=1e-4
    )


def test_the_learning_rates_of_the_published_recipe():
    model, rates = tiny_model(), []

    def make(groups, lr):
        optimizer = torch.optim.AdamW(groups, lr=lr)
        optimizer.register_step_pre_hook(
            lambda *_: rates.append(sorted({g["lr"] for g in optimizer.param_groups}))
        )
        return optimizer

    history = model.fit(
        tuple_batches(16),
        epochs=4,
        optimizer=make,
        learning_rate=1.53e-4,
        learning_rate_multipliers={"stem": 21.0},
        final_learning_rate=3.27e-6,
        warmup_epochs=0,
        **CPU,
    )
    share = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    base = [3.27e-6 + (1.53e-4 - 3.27e-6) * s for s in share]
    assert [rate for pair in rates for rate in pair] == pytest.approx(
        [rate * k for rate in base for k in (1, 21)]
    )
    assert history["learning_rate"] == pytest.approx(base[::2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "plateau"}, "schedule plateau looks at val_mean_class_accuracy"),
        ({"early_stopping_patience": 1}, "early_stopping_patience looks at val_mean"),
        ({"restore_best": True}, "restore_best looks at val_mean_class_accuracy, but there is no"),
        ({"loggers": ["wandb"]}, "unknown logger 'wandb'"),
        ({"class_weights": [1.0]}, "class_weights has 1 numbers; the model has 3 classes"),
        (
            {"learning_rate_multipliers": {"lidar": 2.0}},
            "'lidar'; the network's parameter groups",
        ),
    ],
)
def test_what_does_not_fit_is_found_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().fit(tuple_batches(8), out_dir=tmp_path / "run", **changes, **CPU)
    assert list(tmp_path.iterdir()) == []
