import multiprocessing
import os

import pytest
import torch

from manystream.training import FitOptions
from manystream.training.checkpoints import read_state, write_state
from manystream.training.run_folder import RunFolder
from tests.training.builders import CPU, tiny_model, tuple_batches

OPTIONS = FitOptions(epochs=3, **CPU)


def folder_with_states(path, *states):
    folder = RunFolder(path)
    with folder.held(resume=False):
        for number, (epoch, batch) in enumerate(states):
            write_state({"number": number}, folder.state_path(epoch, batch))
    return folder


def names(folder):
    return sorted(path.name.partition(".")[0] for path in folder.checkpoints.glob("[!.]*"))


def tear(path):
    os.truncate(path, path.stat().st_size // 2)


def trained(path, **changes):
    tiny_model().fit(tuple_batches(16), tuple_batches(8), OPTIONS, out_dir=path, **changes)


def test_the_newest_whole_state_is_found(tmp_path):
    folder = folder_with_states(tmp_path, (1, 0), (1, 10), (1, 9), (2, 0))
    assert folder.newest()[1] == {"number": 3}
    tear(folder.state_path(2, 0))
    with pytest.warns(UserWarning, match=r"epoch-00002-.* is damaged.*falling back to the one bef"):
        path, content = folder.newest()
    assert (path, content) == (folder.state_path(1, 10), {"number": 1})


def test_no_state_and_no_whole_state(tmp_path):
    assert folder_with_states(tmp_path / "empty").newest() is None
    folder = folder_with_states(tmp_path / "torn", (1, 0))
    tear(folder.state_path(1, 0))
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match=r"no checkpoint in .*torn/checkpoints is whole"),
    ):
        folder.newest()


def test_two_states_are_kept(tmp_path):
    folder = folder_with_states(tmp_path, (1, 0), (2, 0), (3, 0), (5, 0))
    folder.keep(folder.state_path(3, 0))  # what is newer was never reached by this run
    assert names(folder) == ["epoch-00002-batch-00000000", "epoch-00003-batch-00000000"]


def test_the_best_state_has_a_second_name(tmp_path, monkeypatch):
    folder = folder_with_states(tmp_path, (1, 0), (2, 0))
    folder.keep_as_best(folder.state_path(1, 0))
    folder.keep_as_best(folder.state_path(2, 0))
    assert read_state(folder.best) == {"number": 1}

    def no_links(*_):
        raise OSError("not supported")

    folder.keep_as_best(folder.state_path(2, 0))  # as by a run that goes on from there
    assert not list(folder.checkpoints.glob(".*.partial"))

    monkeypatch.setattr(os, "link", no_links)
    folder.keep_as_best(folder.state_path(1, 0))
    assert read_state(folder.best) == {"number": 0}


def test_what_a_killed_process_had_begun_to_write_is_removed(tmp_path):
    folder = folder_with_states(tmp_path, (1, 0))
    (folder.checkpoints / ".epoch-00002-batch-00000000.ckpt.partial").write_bytes(b"half")
    with folder.held(resume=True):
        assert not list(folder.checkpoints.glob("*.partial"))
    assert names(folder) == ["epoch-00001-batch-00000000"]


def test_a_folder_holds_one_run(tmp_path):
    trained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"holds a run already; resume it, or name another folder"):
        trained(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def hold(path, held, let_go):
    with RunFolder(path).held(resume=False):
        held.set()
        let_go.wait(30)


def test_another_process_in_the_folder_is_noticed(tmp_path):
    context = multiprocessing.get_context("fork")
    held, let_go = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, held, let_go))
    other.start()
    assert held.wait(30)
    for resume in (False, True):
        with (
            pytest.raises(ValueError, match=r"another process is training into"),
            RunFolder(tmp_path).held(resume=resume),
        ):
            pass
    let_go.set()
    other.join()
    with RunFolder(tmp_path).held(resume=True):
        pass


def test_a_folder_that_cannot_be_written_into(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"cannot write into .*file/run: Not a directory; name a f"
    ):
        trained(tmp_path / "file/run")


def test_a_finished_run_is_not_trained_again(tmp_path):
    trained(tmp_path)
    model = tiny_model(seed=5)
    history = model.fit([], tuple_batches(8), OPTIONS, out_dir=tmp_path, resume=True)
    assert history.num_epochs == 3
    state = read_state(tmp_path / "checkpoints/final.ckpt")["state_dict"]
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_resuming_what_was_never_begun_begins(tmp_path):
    trained(tmp_path / "new", resume=True)
    assert (tmp_path / "new/checkpoints/final.ckpt").exists()
    with pytest.raises(ValueError, match="resume is True, but there is no out_dir"):
        trained(None, resume=True)


def test_a_checkpoint_of_another_network(tmp_path):
    trained(tmp_path)
    state = (tmp_path / "checkpoints/final.ckpt").read_bytes()
    wider = tiny_model(widths=(8, 8, 8, 8))
    with pytest.raises(
        ValueError, match=r"of another network: bn1.integrated.bias is \(4,\), here"
    ):
        wider.fit(tuple_batches(16), options=OPTIONS, out_dir=tmp_path, resume=True)
    other = tiny_model(family="late_fusion")
    with pytest.raises(ValueError, match=r"is not in this network"):
        other.fit(tuple_batches(16), options=OPTIONS, out_dir=tmp_path, resume=True)
    assert (tmp_path / "checkpoints/final.ckpt").read_bytes() == state


def test_a_run_of_an_older_version_is_not_begun_anew(tmp_path):
    folder = folder_with_states(tmp_path)
    (folder.checkpoints / "epoch-00001-batch-00000000.safetensors").write_bytes(b"of old")
    with pytest.raises(ValueError, match="was begun by an older version"):
        trained(tmp_path, resume=True)
    with pytest.raises(ValueError, match="holds a run already"):
        trained(tmp_path)
