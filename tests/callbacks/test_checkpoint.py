"""Checkpoints: their files, refusals of damaged ones, and the moments of saving."""

import errno
import os
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import Pairs, neural, same, trainer

from distillkit import runs, signals
from distillkit.callbacks.checkpoint import Checkpoint, CheckpointFiles
from distillkit.errors import Interrupted, UsageError
from distillkit.methods.sid import SiD

STATE = {"distillkit": {"method": "SiD", "teacher": None, "seed": 0}, "step": 3}
STATE |= {"state_dict": {"a": torch.arange(3000.0), "b": torch.ones(7)}}
STATE |= {
    "optimizer_states": [{"state": {}}],
    "loops": {"fit_loop": {}},
    "epoch": 0,
    "global_step": 3,
    "pytorch-lightning_version": "2",
}


@pytest.fixture
def last(tmp_path):
    return tmp_path / "checkpoints" / "last.ckpt"


def write(path, state=STATE):
    CheckpointFiles().save_checkpoint(state, path)
    return path


def run(folder, max_steps, callback, ckpt_path=None, **settings):
    torch.manual_seed(0)
    settings |= {"enable_checkpointing": True, "default_root_dir": folder}
    made = trainer(max_steps, callbacks=[callback], **settings)
    made.fit(SiD(neural()), Pairs(batch_size=8), ckpt_path=ckpt_path, weights_only=True)
    return made


def test_what_is_written_is_read_again(last):
    assert same(CheckpointFiles().load_checkpoint(write(last)), STATE)


def test_the_one_before_is_kept(last):
    for step in range(3):
        write(last, {**STATE, "step": step})
    assert [CheckpointFiles().load_checkpoint(p)["step"] for p in (last, last.with_name("previous.ckpt"))] == [2, 1]
    assert sorted(p.name for p in last.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_only_of_the_last_the_one_before_is_kept(last):
    """Another callback may keep its best checkpoint in the same folder."""
    for step in range(2):
        write(last.with_name("best.ckpt"), {**STATE, "step": step})
    assert [p.name for p in last.parent.iterdir()] == ["best.ckpt"]


def test_the_one_before_is_kept_without_hard_links(last, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    for step in range(3):
        write(last, {**STATE, "step": step})
    assert [CheckpointFiles().load_checkpoint(p)["step"] for p in (last, last.with_name("previous.ckpt"))] == [2, 1]


def test_nothing_is_written_elsewhere_first(last, monkeypatch):
    """The temporary folder may be on another file system, from which no file can be moved."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    monkeypatch.setenv("TMPDIR", "/nowhere")
    assert same(CheckpointFiles().load_checkpoint(write(last)), STATE)


@pytest.mark.parametrize("part", [0, 1000, 10**9])
def test_a_full_disk_leaves_the_old_one(last, monkeypatch, part):
    write(last)
    before = last.read_bytes()

    def full(state, file):
        file.write(before[:part])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        write(last)
    assert last.read_bytes() == before and [p.name for p in last.parent.iterdir()] == ["last.ckpt"]


def test_a_disk_that_is_full_says_so(last):
    """torch covers the system's error by one of its own; a limit of file sizes is the disk."""
    resource = pytest.importorskip("resource")
    before = write(last, {**STATE, "state_dict": {}}).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            write(last)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert last.read_bytes() == before and [p.name for p in last.parent.iterdir()] == ["last.ckpt"]


def test_damage_anywhere_is_refused_or_harmless(last):
    """64 bytes overwritten at forty places of a file, its directory and headers among them."""
    whole = write(last).read_bytes()
    refused = 0
    for k in range(40):
        at = (len(whole) - 64) * k // 39
        last.write_bytes(whole[:at] + bytes(b ^ 0xA5 for b in whole[at : at + 64]) + whole[at + 64 :])
        try:
            assert same(CheckpointFiles().load_checkpoint(last), STATE), f"damage at byte {at} was read"
        except UsageError:
            refused += 1
    assert refused > 35  # the rest was padding


@pytest.mark.parametrize("part", ["state_dict", "global_step"])
def test_a_checkpoint_that_lacks_a_part_is_refused(last, part):
    write(last, {name: value for name, value in STATE.items() if name != part})
    with pytest.raises(UsageError, match=f"last.ckpt lacks {part}: give another checkpoint of the run"):
        CheckpointFiles().load_checkpoint(last)
    with pytest.raises(UsageError, match="last.ckpt lacks optimizer_states"):
        CheckpointFiles().load_checkpoint(write(last, {**STATE, "optimizer_states": []}))
    with pytest.raises(UsageError, match="last.ckpt lacks what it is of"):
        CheckpointFiles().load_checkpoint(write(last, {**STATE, "distillkit": None}))


def test_what_is_no_checkpoint_is_refused(last):
    last.parent.mkdir()
    for content in ({"state_dict": {}}, [1, 2]):
        torch.save(content, last)
        with pytest.raises(UsageError, match="was not written by distillkit"):
            CheckpointFiles().load_checkpoint(last)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(last.parent / "opened"),)

    torch.save({**STATE, "more": Evil()}, last)
    with pytest.raises(UsageError, match="is no checkpoint of a run"):
        CheckpointFiles().load_checkpoint(last, weights_only=False)
    torch.save(Evil(), last, _use_new_zipfile_serialization=False)
    with pytest.raises(UsageError, match="is not whole, or no checkpoint"):
        CheckpointFiles().load_checkpoint(last)
    assert not (last.parent / "opened").exists()


# When


def test_steps_and_minutes_whichever_comes_first(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        CheckpointFiles, "save_checkpoint", lambda self, state, *_, **__: saved.append(state["global_step"])
    )
    run(tmp_path, 7, Checkpoint(every=3))
    assert saved == [3, 6, 7]
    saved.clear()
    minutes = iter(range(0, 10**6, 60))  # one passes at every look
    clock = SimpleNamespace(monotonic=lambda: next(minutes))
    monkeypatch.setattr("distillkit.callbacks.checkpoint.time", clock)
    run(tmp_path, 7, Checkpoint(every=1000, minutes=3))
    assert saved[-1] == 7 and 2 <= len(saved) <= 5 and saved[0] < 5
    for wrong in ({"every": 0}, {"minutes": 0}, {"minutes": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Checkpoint(**wrong)


@pytest.mark.parametrize("number", signals.STOP)
def test_a_signal_saves_after_a_whole_step_and_the_run_goes_on_bit_for_bit(tmp_path, number, monkeypatch):
    """The signal comes in the first of two micro-batches; checkpoints hold no gradients."""

    class Signalled(Checkpoint):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 3 and args[-1] % 2 == 0:
                os.kill(os.getpid(), number)
            super().on_train_batch_end(trainer, *args)

    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)  # the parent of the tests may ignore them
    with pytest.raises(Interrupted, match=r"stopped at step 4; go on with: python -m distillkit fit .*last\.ckpt$"):
        run(tmp_path / "cut", 8, Signalled(), accumulate_grad_batches=2)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    resumed = run(tmp_path / "cut", 8, Checkpoint(), last, accumulate_grad_batches=2)
    straight = run(tmp_path / "straight", 8, Checkpoint(), accumulate_grad_batches=2)
    assert same(*(dict(made.lightning_module.state_dict()) for made in (resumed, straight)))


def test_a_signal_is_heard_in_epochs_shorter_than_a_step_has_micro_batches(tmp_path):
    class Signalled(Checkpoint):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 2:
                self.signal = signal.SIGTERM
            super().on_train_batch_end(trainer, *args)

    with pytest.raises(Interrupted, match="stopped at step 2"):
        run(tmp_path, 8, Signalled(), accumulate_grad_batches=4, limit_train_batches=3)


def test_a_signal_in_the_last_validation_is_heard(tmp_path, last):
    class Told(Checkpoint):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.global_step == 4:
                self.signal = signal.SIGTERM

    with pytest.raises(Interrupted, match="stopped at step 4; go on with: "):
        run(tmp_path, 4, Told(), limit_train_batches=4)
    assert CheckpointFiles().load_checkpoint(last)["global_step"] == 4
    run(tmp_path, 4, Checkpoint(), str(last))  # only its products are left to make


@pytest.mark.parametrize("seconds, kept", [(10.0, False), (100.0, True)])
def test_the_last_step_is_safe_in_its_validation_if_it_cost_much(tmp_path, last, monkeypatch, capfd, seconds, kept):
    """Once it is saved a first signal stops at once; else what runs is finished."""
    times = (seconds * look for look in range(10**6))
    monkeypatch.setattr("distillkit.callbacks.checkpoint.time", SimpleNamespace(monotonic=lambda: next(times)))
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)

    class Told(Checkpoint):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.global_step == 4 and self.signal is None:
                assert last.is_file() == kept
                os.kill(os.getpid(), signal.SIGTERM)
                assert not kept, "it goes on"

    with pytest.raises((Interrupted, KeyboardInterrupt, SystemExit)) as stopped:
        run(tmp_path, 4, Told(), limit_train_batches=4)
    assert isinstance(stopped.value, Interrupted) != kept
    assert ("another signal stops at once" in capfd.readouterr().err) != kept
    assert CheckpointFiles().load_checkpoint(last)["global_step"] == 4
    run(tmp_path, 4, Checkpoint(), str(last))


def test_what_the_last_validation_finds_is_saved_with_the_last_step(tmp_path, last):
    """Also where the step itself was saved before it."""

    class Counts(Checkpoint):
        seen = 0

        def on_train_epoch_end(self, trainer, pl_module):  # these data have no validation
            self.seen += 1
            self.on_validation_end(trainer, pl_module)

        def state_dict(self):
            return {"seen": self.seen}

    run(tmp_path, 4, Counts(every=2), limit_train_batches=2)
    (state,) = CheckpointFiles().load_checkpoint(last)["callbacks"].values()
    assert state == {"seen": 2}


def test_what_a_validation_finds_is_saved_a_step_after_a_step_that_was_saved_before_it(tmp_path, monkeypatch):
    """A run that is killed afterwards goes on with it; a validation between saves adds none."""
    saved = []
    monkeypatch.setattr(
        CheckpointFiles, "save_checkpoint", lambda self, state, *_, **__: saved.append(state["global_step"])
    )

    class Validated(Checkpoint):
        def on_train_epoch_end(self, trainer, pl_module):  # these data have no validation
            self.on_validation_end(trainer, pl_module)

    run(tmp_path, 11, Validated(every=4), limit_train_batches=2)  # after steps 2, 4, 6, 8 and 10
    assert saved == [4, 5, 8, 9, 11]


def test_an_ignored_signal_stays_ignored(tmp_path):
    """nohup leaves SIGHUP ignored, and a shell SIGINT of its background commands."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        class Signalled(Checkpoint):
            def on_train_batch_end(self, trainer, *args):
                os.kill(os.getpid(), signal.SIGHUP)
                super().on_train_batch_end(trainer, *args)

        assert run(tmp_path, 3, Signalled()).global_step == 3
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("later", "ended"), [(0.5, Interrupted), (1.5, KeyboardInterrupt)])
def test_a_signal_that_comes_twice_at_once_is_one_and_a_later_one_stops(tmp_path, monkeypatch, later, ended):
    """torchrun hands on what its processes may have got from the terminal too."""
    now = SimpleNamespace(monotonic=lambda: now.time, time=0.0)
    monkeypatch.setattr("distillkit.callbacks.checkpoint.time", now)
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)

    class Signalled(Checkpoint):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
                now.time += later
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises((ended, SystemExit)) as stopped:
        run(tmp_path, 8, Signalled(every=100))
    saved = (tmp_path / "checkpoints" / runs.LAST).is_file()
    assert saved == isinstance(stopped.value, Interrupted) == (ended is Interrupted)


def test_a_checkpoint_io_of_one_s_own_is_left_alone(tmp_path):
    class Own(CheckpointFiles):
        pass

    own = Own()
    made = run(tmp_path, 1, Checkpoint(), plugins=[own])
    assert made.strategy.checkpoint_io is own and Path(tmp_path, "checkpoints", runs.LAST).is_file()
