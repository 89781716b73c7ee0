"""LightningCLI behind the front: typed keys, run folders, resuming, and messages on failure."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from dummy.parts import Chase
from helpers import heed_signals
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from distillkit import precision, runs
from distillkit.callbacks.checkpoint import Checkpoint
from distillkit.cli import catalogue, front, lightning

TESTS = Path(__file__).resolve().parents[1]
DUMMY = [
    f"hydra.searchpath=[file://{TESTS / 'dummy' / 'conf'}]",
    "domain=dummy",
    "method=chase",
    "~vars.callbacks.finish",
    "~vars.callbacks.watch",
]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Every run in its own folder, in this process; nothing of one run reaches the next."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(runs.OUT, "")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", runs.OUT):
        monkeypatch.delenv(name, raising=False)


def fit(*args, verb="fit", code=0):
    assert front.main([verb, *DUMMY, *map(str, args)]) == code


def weights(run):
    return torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def complaint(capsys, *args, code=2, verb="fit"):
    fit(*args, code=code, verb=verb)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: ")
    return err.removeprefix("error: ").strip()


def test_default_run(tmp_path, capsys):
    fit()
    run = tmp_path / "runs" / "dummy-chase-1"
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "checkpoints"}
    shown = capsys.readouterr()
    assert shown.out.startswith("run folder: runs/dummy-chase-1\n")
    assert shown.err == ""
    assert "\nnote: without the callback Finish this run leaves no student, evaluation.json" in shown.out
    for noise in ("Tip", "GPU", "Seed", "eval mode", "stopped:", "warn"):
        assert noise not in shown.out
    assert torch.get_num_threads() == int(os.environ.get("DISTILLKIT_THREADS", 1)) or torch.cuda.is_available()
    fit()
    assert (tmp_path / "runs" / "dummy-chase-2").is_dir()


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU in all that decides the precision; the run itself is on the CPU."""
    monkeypatch.setattr(precision, "on_gpu", lambda accelerator: accelerator == "auto")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield lambda: torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_a_run_on_a_gpu_is_in_bfloat16_says_so_and_can_be_rerun(gpu, capsys, monkeypatch):
    def used(run):
        return yaml.safe_load(Path(run, "config.yaml").read_text())["trainer"]["precision"], gpu()

    short, said = "trainer.max_steps=1", f"run folder: a\n{precision.SAID}\n"
    fit("--out", "a", short)
    assert used("a") == ("bf16-mixed", "high") and said in capsys.readouterr().out
    fit("--out", "b", short, "trainer.precision=32-true")  # as the line says
    assert used("b") == ("32-true", "highest")
    fit("--out", "c", short, "trainer.precision=bf16-mixed")
    assert used("c") == ("bf16-mixed", "high")
    monkeypatch.setattr(Chase, "precise", True)
    fit("--out", "d", short)
    assert used("d") == ("32-true", "highest")
    assert front.main(["fit", "--config", "a/config.yaml", "--out", "e"]) == 0
    assert used("e") == used("c")
    assert precision.SAID not in capsys.readouterr().out  # who chose it knows
    monkeypatch.setattr(precision, "on_gpu", lambda accelerator: False)
    torch.set_float32_matmul_precision("highest")
    fit("--out", "f", short)
    assert used("f") == ("32-true", "highest")


def test_all_gpus_of_a_machine_without_one_can_be_the_cpu():
    fit("trainer=gpus", "trainer.accelerator=cpu", "trainer.max_steps=1")


def test_saved_config_runs_again_elsewhere(tmp_path):
    fit("teacher.place=5", "--out", "a", "--trainer.max_steps=3")
    text = Path("a/config.yaml").read_text()
    assert str(tmp_path) not in text and "default_root_dir: null" in text and "save_dir: null" in text
    assert not {"teacher", "network", "vars", "_target_"} & yaml.safe_load(text).keys()
    assert yaml.safe_load(text)["method"] == "chase"
    assert front.main(["fit", "--config", "a/config.yaml", "--out", "b"]) == 0
    assert Path("b/config.yaml").read_text() == text
    assert same(weights("a"), weights("b"))
    assert front.main(["fit", "--config", "a/config.yaml", "--model.rate=2"]) == 0
    assert yaml.safe_load(Path("runs/a-1/config.yaml").read_text())["model"]["init_args"]["rate"] == 2


def test_another_class_is_not_called_by_the_word_of_the_method():

    assert catalogue.word_of({"method": "chase"}, ["method=chase", "model.rate=2"]) == "chase"
    assert catalogue.word_of({"method": "chase"}, ["method=chase", "--model.rate=2"]) == "chase"
    for token in ("model._target_=parts.Other", "++model._target_=parts.Other", "--model", "--model.class_path=Other"):
        assert catalogue.word_of({"method": "chase"}, ["method=chase", token]) is None
    assert catalogue.word_of({}, []) is None


def test_full_folder_is_refused(capsys):
    Path("a").mkdir()
    Path("a/precious").write_text("x")
    assert re.match(r"the run folder a is not empty; give another one with --out$", complaint(capsys, "--out", "a"))
    assert [p.name for p in Path("a").iterdir()] == ["precious"]


def test_resume_in_the_same_folder_equals_one_run():
    fit("--out", "whole", "model.schedule=constant", "trainer.max_steps=7")
    fit("--out", "part", "model.schedule=constant", "trainer.max_steps=3")
    fit("--ckpt_path", "part/checkpoints/last.ckpt", "model.schedule=constant", "trainer.max_steps=7")
    assert not Path("runs").exists()
    assert same(weights("whole"), weights("part"))
    assert yaml.safe_load(Path("part/config.yaml").read_text())["ckpt_path"] is None


def test_last_checkpoint_of_a_run_that_may_be_cut_off():
    fit("--out", "a", "--ckpt_path", "last", "model.schedule=constant", "trainer.max_steps=3")  # nothing there yet
    fit("--out", "a", "--ckpt_path", "last", "model.schedule=constant", "trainer.max_steps=7")
    fit("--out", "whole", "model.schedule=constant", "trainer.max_steps=7")
    assert same(weights("a"), weights("whole"))


def test_the_checkpoint_does_not_override_the_command():
    fit("--out", "a", "model.student.lr=0.1")
    fit("--ckpt_path", "a/checkpoints/last.ckpt", "--out", "b", "--model.student.lr=0.3", "trainer.max_steps=5")
    assert yaml.safe_load(Path("b/config.yaml").read_text())["model"]["init_args"]["student"]["lr"] == 0.3


def test_an_end_before_the_checkpoint_is_refused(capsys):
    fit("--out", "a", "trainer.max_steps=3")
    said = complaint(capsys, "--ckpt_path", "a/checkpoints/last.ckpt", "--out", "b", "trainer.max_steps=2")
    assert said.startswith("the checkpoint is of step 3, and trainer.max_steps=2 ends before it: raise that")
    assert not Path("b").exists()
    fit("--ckpt_path", "a/checkpoints/last.ckpt", "trainer.max_steps=2", verb="validate")


@pytest.mark.parametrize("verb, part", [("validate", "val"), ("test", "test")])
def test_measuring_nothing_is_refused(capsys, verb, part):
    fit("--out", "a", "trainer.max_steps=1")
    fit("--ckpt_path", "a/checkpoints/last.ckpt", f"trainer.limit_{part}_batches=0", verb=verb, code=2)
    assert f"trainer.limit_{part}_batches=0 leaves nothing to measure" in capsys.readouterr().err


def test_another_seed_than_the_checkpoint_s_is_told(capsys):
    fit("--out", "a", "trainer.max_steps=3")
    fit("--ckpt_path", "a/checkpoints/last.ckpt", "trainer.max_steps=5")
    assert "seed" not in capsys.readouterr().err
    fit("--ckpt_path", "a/checkpoints/last.ckpt", "trainer.max_steps=7", "seed_everything=7")
    assert "goes on with the checkpoint's seed 0: seed_everything=7 changes nothing" in capsys.readouterr().err


def test_validate_leaves_no_config(capsys):
    fit("--out", "a")
    before = Path("a/config.yaml").read_bytes()
    fit("--ckpt_path", "a/checkpoints/last.ckpt", verb="validate")
    assert "val/mean" in capsys.readouterr().out
    assert Path("a/config.yaml").read_bytes() == before and not Path("runs").exists()


def test_print_config_claims_nothing(tmp_path, capsys):
    fit("--print_config", "--model.rate", "0.25")
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["rate"] == 0.25
    assert not any(tmp_path.iterdir())


def test_model_help_is_of_the_chosen_class(capsys):
    fit("--model.help")
    assert "must be positive." in capsys.readouterr().out


def test_help_asks_for_no_value_that_has_no_default(capsys):
    assert front.main(["fit", "domain=image", "method=dmd", "data=image_folder", "--data.help"]) == 0
    told = capsys.readouterr()
    assert "--data.path" in told.out and "error" not in told.err


@pytest.mark.parametrize(
    ("arg", "said"),
    [
        ("model.rate=abc", "model.rate must be a float, got abc"),
        ("--model.rate=abc", "model.rate must be a float, got abc"),
        ("model.rrate=3", r"no key model.rrate \(did you mean 'model.rate'\?\); Chase takes teacher, student, rate"),
        ("--model.rrate=3", r"no key model.rrate \(did you mean 'model.rate'"),
        ("model.student.lrr=1", r"no key model.student.lrr \(did you mean 'model.student.lr'"),
        ("teacher.plce=3", r"no key teacher.plce \(did you mean 'teacher.place'\?\); Point takes place"),
        ("model.schedule=foo", "model.schedule must be 'constant' or 'linear' or 'cosine', got foo"),
        ("seed_everything=x", "seed_everything must be a bool or an int, got x"),
        ("trainer.max_step=3", r"no key trainer.max_step \(did you mean 'trainer.max_steps'"),
        ("--trainer.max_step=3", r"no key trainer.max_step \(did you mean 'trainer.max_steps'"),
        ("--traner.max_steps=3", r"no key traner.max_steps \(did you mean 'trainer.max_steps'"),
        (
            "++vars.callbacks.checkpoint.evry=3",
            r"no key vars.callbacks.checkpoint.evry \(did you mean 'vars.callbacks.checkpoint.every'\?\)",
        ),
        ("model.teacher=null", "model needs a value for teacher"),
        ("model._target_=dummy.parts.Nope", "model: module 'dummy.parts' has no attribute 'Nope'"),
        ("++model.teacher._target_=dummy.parts.Numbers", "model.teacher: .* subclass of Point"),
        ("model.rate=-1", r"rate must be positive, got -1.0$"),
        ("data.batch_size=0", r"batch_size must be at least 1, got 0$"),
        ("seed_everything=-1", "seed_everything=-1 is not in bounds"),
        ("vars.callbacks.checkpoint.every=0", r"vars.callbacks.checkpoint.every must be at least 1, got 0$"),
        ("data.batch_size=1000", r"batch_size 1000 .* lower data.batch_size$"),
        ("trainer.max_steps=-5", "max_steps.* -5"),
        ("trainer=gpus", "trainer.accelerator=gpu finds no GPU on this machine: say trainer.accelerator=cpu, or leave"),
        ("trainer.accelerator=cuda", "trainer.accelerator=cuda finds no GPU"),
        ("trainer.default_root_dir=x", "trainer.default_root_dir is the run folder: give it with --out"),
    ],
)
def test_wrong_values(tmp_path, capsys, monkeypatch, arg, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert re.search(said, complaint(capsys, arg, "--out", "a"))
    assert not Path("a").exists()  # nothing is left behind


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer"),
        torch.distributed.DistBackendError("NCCL"),
    ],
)
def test_a_lost_process_is_one_sentence_with_the_way_on(capsys, monkeypatch, error):
    own = Chase.student_loss

    def lost(self, batch):
        if self.global_step == 2:
            raise error
        return own(self, batch)

    monkeypatch.setattr(Chase, "student_loss", lost)
    said = complaint(capsys, "vars.callbacks.checkpoint.every=1", "--out", "run", code=1)
    assert said == f"a process of this run was lost; {runs.way_on('run')}"


def test_a_process_that_is_killed_is_told_of_before_the_others_are(capsys, monkeypatch):
    """Lightning's observer ends a process that waits for the lost one, in its own thread."""
    own, killed, lost = Chase.student_loss, [], SimpleNamespace(pid=7, returncode=-9, poll=lambda: None)

    def observed(self, batch):
        if self.global_step == 2:
            assert _ChildProcessObserver(main_pid=0, child_processes=[lost])._run()
        return own(self, batch)

    monkeypatch.setattr(Chase, "student_loss", observed)
    monkeypatch.setattr(_ChildProcessObserver, "_terminate_all", lambda self: killed.append(capsys.readouterr().err))
    monkeypatch.setattr(lightning, "NOTICE", 0.0)
    fit("vars.callbacks.checkpoint.every=1", "--out", "run")
    assert killed == [f"error: a process of this run was lost; {runs.way_on('run')}\n"]


@pytest.mark.parametrize("stopped", [False, True])
def test_an_error_of_the_first_process_ends_those_that_it_started(stopped, monkeypatch):
    """Those of a run that is told to stop save with it, and end by themselves."""
    procs = [subprocess.Popen(["sleep", "60"])]
    make, (other,) = lightning.CLI.instantiate_trainer, procs

    def launched(self, **kwargs):
        trainer = make(self, **kwargs)
        launch = lambda work, *args, trainer, **kwargs: work(*args, **kwargs)  # noqa: E731
        trainer.strategy._launcher = SimpleNamespace(launch=launch, procs=procs)
        return trainer

    monkeypatch.setattr(lightning.CLI, "instantiate_trainer", launched)
    if stopped:
        monkeypatch.setattr(Checkpoint, "on_train_batch_end", lambda self, trainer, *_: self.stop(trainer))
    try:
        fit("model.crash=value", code=130 if stopped else 1)
        assert not procs  # Lightning watches none of them any more
        assert other.poll() is None if stopped else other.wait(10) == -signal.SIGKILL
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("rank", [0, 1])
def test_another_process_lets_the_first_say_the_error(rank, capsys, monkeypatch):
    waited = []
    monkeypatch.setattr(front.time, "sleep", lambda seconds: waited.append((seconds, capsys.readouterr().err)))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert front.main(["nosuch"]) == 2
    assert waited == [(front.WAY, "")] * rank and "no verb 'nosuch'" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_say_their_error_once_and_one_alone_is_heard(tmp_path):
    two = ["trainer.accelerator=cpu", "trainer.devices=2", "vars.callbacks.checkpoint.every=1"]
    for crash, first, *more in (("value", "the second step broke"), ("alone", "only this process broke", "was lost")):
        process = spawn(f"model.crash={crash}", *two, "--out", crash)
        _, err = process.communicate(timeout=120)
        said = [f"error: ValueError: {first} (--debug shows the traceback)"]
        said += [f"error: a process of this run was lost; {runs.way_on(crash)}" for _ in more]
        assert process.returncode == 1 and [line for line in err.splitlines() if line] == said, err


def test_failure_in_training(capsys, monkeypatch):
    text = complaint(capsys, "model.crash=value", code=1)
    assert text == "ValueError: the second step broke (--debug shows the traceback)"
    fit("model.crash=value", "--debug", code=1)
    assert "Traceback" in capsys.readouterr().err


def test_a_student_that_never_learns_is_a_failure(capsys, monkeypatch):
    """Its shadow does, every other step; nor does going on from the last step leave a student."""
    said = "the last 4 of 4 steps of student had NaN or infinite gradients and were skipped .* lower model.student.lr"
    assert re.search(said, complaint(capsys, "model.crash=infinity", "trainer.max_steps=8", "--out", "run", code=1))
    again = ["model.crash=infinity", "trainer.max_steps=8", "--ckpt_path", "run/checkpoints/last.ckpt"]
    assert front.main(["fit", *(word for word in DUMMY if "finish" not in word), *again]) == 1
    assert re.search(said, capsys.readouterr().err) and not Path("run/student").exists()


def test_no_space(capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("distillkit.cli.lightning.write_text", full)
    text = complaint(capsys, "--out", "a", code=1)
    assert text == "cannot write to a: No space left on device; free some space or give another folder with --out"


def test_threads(capsys, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("threads are left alone where there is a GPU")
    before = torch.get_num_threads()
    for wrong in ("many", "²", "0"):
        monkeypatch.setenv("DISTILLKIT_THREADS", wrong)
        assert "DISTILLKIT_THREADS must be a whole number" in complaint(capsys)
    monkeypatch.setenv("DISTILLKIT_THREADS", "2")
    fit("trainer.max_steps=1")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_tensorboard_writes_into_the_run_folder():
    pytest.importorskip("tensorboard")
    best = "++vars.callbacks.best._target_=lightning.pytorch.callbacks.ModelCheckpoint"
    fit(
        "logger=tensorboard",
        "--out",
        "a",
        "trainer.log_every_n_steps=1",
        best,
        "++vars.callbacks.best.filename=best",
        "++vars.callbacks.best.every_n_train_steps=2",
    )
    assert Path("a/checkpoints/best.ckpt").is_file()  # Lightning alone would put it beside TensorBoard's files
    assert list(Path("a/tensorboard").glob("events*")) and Path("a/metrics.csv").is_file()
    assert str(Path("a/config.yaml").read_text()).count("save_dir: a") == 0


def test_several_devices_take_turns_under_plain_ddp():
    """Idle roles break plain DDP; two processes equal one with two accumulated micro-batches."""
    two = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp_fork"]
    fit("--out", "two", *two, "trainer.max_steps=3")
    fit("--out", "one", "trainer.max_steps=3", "trainer.accumulate_grad_batches=2")
    one, both = weights("one"), weights("two")
    for key in ("student.weight", "student.bias", "shadow.weight"):
        assert torch.allclose(one[key], both[key], atol=1e-6), key


def spawn(*args):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "distillkit", "fit", *DUMMY, *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, preexec_fn=heed_signals, **pipes)


@pytest.mark.slow
def test_ddp_children_share_the_folder(tmp_path):
    process = spawn("trainer.accelerator=cpu", "trainer.devices=2")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["dummy-chase-1"]
    assert out.count("run folder") == 1


@pytest.mark.slow
def test_interrupt_is_130():
    process = spawn("model.crash=sleep", "~vars.callbacks.checkpoint")
    while "asleep" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
