import multiprocessing
import os
import signal
import time

import pytest
import torch

from manystream.training import FitOptions, termination
from manystream.training.sigterm import Terminated
from manystream.training.termination import Termination
from tests.processes import in_processes
from tests.training.builders import CPU, tiny_model, tuple_batches

OPTIONS = FitOptions(epochs=3, **CPU)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


class Doing:
    """Batches, before one of which something is done."""

    def __init__(self, batches, number, what):
        self.batches, self.number, self.what = batches, number, what

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for number, batch in enumerate(self.batches):
            if number == self.number:
                self.what()
            yield batch


@pytest.fixture
def handler():
    """A handler of the caller's; the signal never comes to it."""
    signals = []
    before = signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
    yield signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
    assert signals == []


def test_sigterm_saves_within_the_epoch_and_says_how_to_go_on(handler, tmp_path, caplog):
    loader = Doing(tuple_batches(40), 2, terminate)
    with pytest.raises(Terminated) as ended:
        tiny_model().fit(loader, tuple_batches(8), OPTIONS, out_dir=tmp_path)
    assert ended.value.code == 143
    assert isinstance(ended.value, SystemExit)
    state = tmp_path / "checkpoints/epoch-00000-batch-00000003.ckpt"
    assert state.exists()
    assert not (tmp_path / "checkpoints/final.ckpt").exists()
    said = "SIGTERM ended training after batch 3 of epoch 0 (counted from 0); its state is in "
    assert ended.value.message == f"{said}{state}; go on with resume=True"
    assert [record.getMessage() for record in caplog.records] == [ended.value.message]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_accumulated_gradients_are_not_lost(tmp_path):
    loader = Doing(tuple_batches(64), 3, terminate)
    with pytest.raises(Terminated, match="143"):
        tiny_model().fit(loader, epochs=1, accumulate_batches=3, out_dir=tmp_path, **CPU)
    [state] = (tmp_path / "checkpoints").glob("epoch-*")
    assert state.name == "epoch-00000-batch-00000006.ckpt"


def test_without_a_folder_it_says_that_nothing_is_kept(handler):
    with pytest.raises(Terminated) as ended:
        tiny_model().fit(Doing(tuple_batches(40), 2, terminate), options=OPTIONS)
    assert "without an out_dir no state is kept" in ended.value.message


def test_before_the_first_step_there_is_nothing_to_save(handler, tmp_path):
    class Slow(list):
        def __len__(self):
            terminate()
            return 5

    with pytest.raises(Terminated) as ended:
        tiny_model().fit(Slow(tuple_batches(40)), options=OPTIONS, out_dir=tmp_path)
    assert "before epoch 0 (counted from 0); there was no state to save yet" in ended.value.message


def test_in_the_last_validation_the_run_is_finished_first(handler, tmp_path):
    validation = Doing(tuple_batches(8), 0, terminate)
    options = FitOptions(epochs=1, **CPU)
    with pytest.raises(Terminated) as ended:
        tiny_model().fit(tuple_batches(16), validation, options, out_dir=tmp_path)
    assert "SIGTERM came when training had ended" in ended.value.message
    again = tiny_model().fit([], options=options, out_dir=tmp_path, resume=True)
    assert again.num_epochs == 1


def test_a_long_validation_is_broken_off(handler, tmp_path, monkeypatch):
    monkeypatch.setattr(termination, "_PATIENCE_SECONDS", 0.0)
    validation, model = Doing(tuple_batches(80), 2, terminate), tiny_model()
    validated = []
    model.network.register_forward_pre_hook(
        lambda *_: None if model.network.training else validated.append(1)
    )
    weights = None

    def remember():
        nonlocal weights
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    validation.batches = Doing(validation.batches, 0, remember)
    with pytest.raises(Terminated) as ended:
        model.fit(tuple_batches(16), validation, OPTIONS, out_dir=tmp_path)
    assert "SIGTERM ended training in a validation" in ended.value.message
    assert len(validated) == 3
    assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())


def test_what_else_goes_wrong_is_not_hidden_by_it(handler):
    def fail(words):
        terminate()
        raise RuntimeError(words)

    def fit_failing(words):
        tiny_model().fit(Doing(tuple_batches(40), 2, lambda: fail(words)), options=OPTIONS)

    with pytest.raises(RuntimeError, match="the disk is gone"):
        fit_failing("the disk is gone")
    # Who signals a process group ends the processes that read, too.
    with pytest.raises(Terminated):
        fit_failing("DataLoader worker (pid 7) is killed by signal: Terminated.")


def terminated_twice(seconds_between):
    def twice():
        terminate()
        time.sleep(seconds_between)
        terminate()

    termination._SAME_SECONDS = 0.1
    with pytest.raises(Terminated):
        tiny_model().fit(Doing(tuple_batches(40), 2, twice), options=OPTIONS)
    return "saved"


@pytest.mark.slow
def test_a_second_sigterm_ends_at_once_but_not_one_that_came_with_the_first():
    [ended] = in_processes(terminated_twice, 0.2, may_fail=True)
    assert ended == -signal.SIGTERM
    assert in_processes(terminated_twice, 0.0, may_fail=True) == ["saved"]


def sleep(begun):
    begun.set()
    time.sleep(60)


def test_a_process_that_was_forked_dies_of_it():
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    with Termination().listening():
        child = context.Process(target=sleep, args=(begun,))
        child.start()
        assert begun.wait(30)
        child.terminate()
        child.join(30)
    assert child.exitcode == -signal.SIGTERM


def test_where_sigterm_is_ignored_it_stays_so():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        tiny_model().fit(Doing(tuple_batches(16), 1, terminate), options=OPTIONS)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_evaluation_leaves_sigterm_to_the_caller(handler):
    seen = []
    loader = Doing(tuple_batches(16), 1, lambda: seen.append(signal.getsignal(signal.SIGTERM)))
    tiny_model().evaluate(loader, accelerator="cpu")
    assert seen == [handler]
