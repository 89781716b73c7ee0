import csv
import os

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from distillkit.report import logger as logger_module
from distillkit.report.logger import MetricsLogger, read_metrics


def table(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def without_seconds(folder):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in table(folder)]


def test_columns_may_appear_later_and_a_step_is_one_row(tmp_path):
    log = MetricsLogger(str(tmp_path))
    log.log_metrics({"student/loss": 1.5, "epoch": 0}, step=0)
    log.log_metrics({"student/loss": torch.tensor(0.3)}, step=10)
    log.log_metrics({"val/frechet": 2.0}, step=10)
    log.log_metrics({"fake_score/loss": torch.tensor(-4.0, dtype=torch.float64)}, step=20)
    log.finalize("success")
    assert without_seconds(tmp_path) == [
        {"step": "0", "student/loss": "1.5", "val/frechet": "", "fake_score/loss": ""},
        {"step": "10", "student/loss": "0.3", "val/frechet": "2", "fake_score/loss": ""},
        {"step": "20", "student/loss": "", "val/frechet": "", "fake_score/loss": "-4"},
    ]
    assert list(table(tmp_path)[0])[:2] == ["step", "seconds"]


def test_a_resumed_run_drops_what_it_replays(tmp_path):
    first = MetricsLogger(str(tmp_path))
    for step in (0, 10, 20, 30):
        first.log_metrics({"student/loss": step, "val/frechet": 1.0}, step=step)
    first.finalize("failed")
    second = MetricsLogger(str(tmp_path))
    for step in (20, 30, 40):
        second.log_metrics({"student/loss": 100.0 + step}, step=step)
    second.finalize("success")
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [(row["step"], row["student/loss"]) for row in rows] == [(0, 0), (10, 10), (20, 120), (30, 130), (40, 140)]
    assert "val/frechet" in rows[1] and "val/frechet" not in rows[2]


def test_seconds_of_all_parts_add_up(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(logger_module.time, "monotonic", lambda: now[0])
    for start in (0, 10):
        log = MetricsLogger(str(tmp_path))
        now[0] += 7.0
        log.log_metrics({"student/loss": 0.0}, step=start)
        log.finalize("success")
        now[0] += 1000.0  # the pause between two parts does not count
    assert [row["seconds"] for row in read_metrics(tmp_path / "metrics.csv")] == [7.0, 14.0]


def test_a_run_goes_on_beside_a_damaged_history(tmp_path):
    """What a broken disk or another program left is no reason to stop a training."""
    whole, file = "step,seconds,val/w2\n0,1.5,7\n1,2.5,8\n", tmp_path / "metrics.csv"
    for damage in (b"\xff\xfe\x00,1\n", b"1e400,\n,\n", b"9" * 200_000 + b",1\n"):
        file.write_bytes(whole.encode() + damage)
        logger = MetricsLogger(tmp_path)
        logger.log_metrics({"student/loss": 1.0}, 2)
        logger.finalize("success")
        rows = read_metrics(file)
        assert [row["step"] for row in rows] == [0, 1, 2] and rows[1]["val/w2"] == 8
    file.write_bytes(b"\xff\xfe" + whole.encode())
    assert read_metrics(file) == []


def test_an_evaluation_in_the_folder_of_a_finished_run_leaves_its_history(tmp_path):
    fit = MetricsLogger(str(tmp_path))
    fit.log_metrics({"student/loss": 1.0}, step=0)
    fit.log_metrics({"student/loss": 0.5}, step=900)
    fit.finalize("success")
    before = (tmp_path / "metrics.csv").read_bytes()
    validate = MetricsLogger(str(tmp_path))
    validate.log_metrics({"val/frechet": 0.4, "epoch": 0}, step=0)
    validate.finalize("success")
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_an_evaluation_in_a_new_folder_is_written(tmp_path):
    validate = MetricsLogger(str(tmp_path))
    validate.log_metrics({"test/frechet": 0.4}, step=0)
    validate.finalize("success")
    assert without_seconds(tmp_path) == [{"step": "0", "test/frechet": "0.4"}]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    log = MetricsLogger(str(tmp_path))
    log.log_metrics({"student/loss": 1.0}, step=0)
    log.finalize("checkpoint")
    before = (tmp_path / "metrics.csv").read_bytes()

    def fail(*args):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    log.log_metrics({"student/loss": 2.0}, step=1)
    with pytest.raises(OSError, match="no space"):
        log.finalize("success")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    assert (tmp_path / "metrics.csv").read_bytes() == before
    monkeypatch.undo()
    log.finalize("success")  # nothing was forgotten
    assert [row["step"] for row in table(tmp_path)] == ["0", "1"]


def test_tensors_are_read_when_written_and_keep_the_value_they_had(tmp_path, monkeypatch):
    log = MetricsLogger(str(tmp_path))
    value = torch.tensor(3.0, requires_grad=True)

    def wait(self, *args):
        raise AssertionError("the device was waited for")

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__float__", "cpu"):
            patch.setattr(torch.Tensor, name, wait)
        log.log_metrics({"student/loss": value, "student/norm": value.detach()}, step=0)
        log.save()
    with torch.no_grad():
        value.fill_(9.0)
    log.finalize("success")
    assert without_seconds(tmp_path) == [{"step": "0", "student/loss": "3", "student/norm": "3"}]


def test_save_waits_for_its_interval_and_a_checkpoint_does_not(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(logger_module.time, "monotonic", lambda: now[0])
    log = MetricsLogger(str(tmp_path))
    log.log_metrics({"student/loss": 1.0}, step=0)
    log.save()
    assert not log.path.exists()
    now[0] = log.every
    log.save()
    assert len(table(tmp_path)) == 1
    log.log_metrics({"student/loss": 1.0}, step=1)
    log.save()
    assert len(table(tmp_path)) == 1
    log.after_save_checkpoint(None)
    assert len(table(tmp_path)) == 2


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log = MetricsLogger(str(tmp_path))
    log.log_metrics({"student/loss": 1.0}, step=0)
    log.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_survive(tmp_path):
    log = MetricsLogger(str(tmp_path))
    log.log_metrics({"student/loss": float("nan"), "fake_score/loss": torch.tensor(float("inf"))}, step=0)
    log.finalize("success")
    (row,) = read_metrics(tmp_path / "metrics.csv")
    assert row["student/loss"] != row["student/loss"] and row["fake_score/loss"] == float("inf")


class Descent(LightningModule):
    """w <- 0.9 w: the loss at each step is known, and resuming must reproduce it."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(1.0))

    def training_step(self, batch, batch_idx):
        loss = 0.5 * self.w**2
        self.log("student/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, max_steps, ckpt_path=None):
    log = MetricsLogger(str(folder))
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        logger=log,
        log_every_n_steps=2,
        callbacks=[ModelCheckpoint(every_n_train_steps=5, save_last=True, save_top_k=0)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Descent(), torch.utils.data.DataLoader(torch.zeros(100)), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_run_cut_off_and_resumed_has_the_history_of_one_that_was_not(tmp_path):
    fit(tmp_path / "whole", 20)
    trainer = fit(tmp_path / "cut", 13)  # its last checkpoint is of step 10, so rows 11 and 12 are replayed
    assert trainer.log_dir == str(tmp_path / "cut")
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=False)["global_step"] == 10
    fit(tmp_path / "cut", 20, last)
    rows = without_seconds(tmp_path / "whole")
    assert len(rows) == 10
    assert without_seconds(tmp_path / "cut") == rows
    assert float(rows[-1]["student/loss"]) == pytest.approx(0.5 * 0.9 ** (2 * int(rows[-1]["step"])), rel=1e-5)
