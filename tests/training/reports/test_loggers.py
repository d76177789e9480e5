import pytest
from lightning.pytorch.loggers import CSVLogger

from manystream.training.reports.loggers import check_loggers, make_loggers
from tests.training.builders import CPU, tiny_model, tuple_batches


def test_names_are_enough(tmp_path):
    first, second = make_loggers(["csv", "tensorboard"], tmp_path)
    assert first.log_dir == second.log_dir == str(tmp_path / "logs")


def test_another_of_lightnings_with_arguments(tmp_path):
    (logger,) = make_loggers({"CSVLogger": {"name": "mine", "version": 7}}, tmp_path)
    assert isinstance(logger, CSVLogger)
    assert logger.log_dir == str(tmp_path / "mine/version_7")


def test_a_run_logs_where_it_was_told_to(tmp_path):
    loggers = {"csv": {"version": "numbers"}}
    tiny_model().fit(tuple_batches(8), epochs=1, out_dir=tmp_path, loggers=loggers, **CPU)
    assert "train_loss" in (tmp_path / "numbers/metrics.csv").read_text()
    assert not list(tmp_path.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("name", ["wandb", "Logger", "logger"])
def test_a_logger_that_there_is_not(name):
    with pytest.raises(ValueError, match=rf"unknown logger '{name}'; expected one of csv, ten"):
        check_loggers([name])


def test_arguments_that_it_does_not_take(tmp_path):
    with pytest.raises(ValueError, match=r"logger 'csv' with arguments .*colour"):
        make_loggers({"csv": {"colour": "red"}}, tmp_path)
