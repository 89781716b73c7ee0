"""The run folder: which one, whose, and what it is continued from."""

import errno
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from distillkit import runs
from distillkit.errors import Failure, UsageError


def test_next_number_follows_the_largest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("toy-sid-2", "toy-sid-10", "toy-sid-x", "other-99"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    monkeypatch.delenv(runs.OUT, raising=False)
    assert [runs.claim(None, "toy-sid") for _ in range(2)] == [Path("runs/toy-sid-11"), Path("runs/toy-sid-12")]


def test_children_take_the_parents_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(runs.OUT, "runs/toy-sid-1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runs.claim(None, "toy-sid") == Path("runs/toy-sid-1")
    assert not any(tmp_path.iterdir())


def test_stale_environment_is_not_obeyed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(runs.OUT, "runs/toy-sid-1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert runs.claim("mine", "toy-sid") == Path("mine")


def test_processes_from_outside_need_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(runs.OUT, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="name their run folder with --out"):
        runs.claim(None, "toy-sid")


def written(path, value=0):
    """A file as torch writes checkpoints: a zip archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("last/data.pkl", bytes(1000))
        archive.writestr("last/data/0", bytes([value]) * 5000)
    return path


def claimed(*args):
    """The folder that a run would get, let go of again."""
    folder = runs.claim(*args)
    runs.release(folder)
    return folder


def test_checkpoint_decides_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    assert runs.resolve_checkpoint("last", "a") is None
    written(last)
    assert runs.resolve_checkpoint("last", "a") == "a/checkpoints/last.ckpt"
    assert claimed(None, "x", "a/checkpoints/last.ckpt") == Path("a")
    assert claimed("a", "x", str(last)) == Path("a")
    assert claimed("b", "x", str(last)) == Path("b") and not Path("b").exists()
    with pytest.raises(UsageError, match="the run folder a is not empty; .* --ckpt_path a/checkpoints/last.ckpt$"):
        runs.claim("a", "x")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "something").touch()
    with pytest.raises(UsageError, match="the run folder b is not empty; give another one with --out$"):
        runs.claim("b", "x", str(last))


def test_last_starts_again_what_died_before_its_first_checkpoint(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".partial-1-config.yaml").touch()
    assert claimed(str(run), "x") == run and not run.exists()
    run.mkdir()
    (run / "config.yaml").touch()
    with pytest.raises(UsageError, match="is not empty"):
        runs.claim(str(run), "x")
    assert runs.resolve_checkpoint("last", str(run)) is None
    assert claimed(str(run), "x", None, True) == run
    (run / "config.yaml").rename(run / "precious")
    with pytest.raises(UsageError, match="is not empty"):
        runs.claim(str(run), "x", None, True)


def test_two_runs_do_not_share_a_folder(tmp_path):
    """The lock is of the process: one that was killed holds nothing."""
    hold = "import sys; from distillkit import runs; runs.claim(sys.argv[1], 'x'); print('held', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "a")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    try:
        with pytest.raises(UsageError, match="another run is writing to .*a now; give another folder with --out"):
            runs.claim(str(tmp_path / "a"), "x")
    finally:
        other.kill()
        other.wait()
    assert (tmp_path / "a" / ".lock").exists()
    partial = tmp_path / "a" / ".partial-1-last.ckpt"
    partial.touch()
    written(tmp_path / "a" / "checkpoints" / "last.ckpt")
    assert claimed(str(tmp_path / "a"), "x", str(tmp_path / "a" / "checkpoints" / "last.ckpt")) == tmp_path / "a"
    assert not partial.exists() and not (tmp_path / "a" / ".lock").exists()


def test_a_folder_that_cannot_be_written_to_is_let_go_of(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(Failure, match="cannot write to .*No space left"):
        patched.setattr(Path, "touch", full)
        runs.claim(str(tmp_path / "a"), "x")
    assert not (tmp_path / "a").exists() and claimed(str(tmp_path / "a"), "x") == tmp_path / "a"


def test_nobody_s_home_is_a_name_like_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert claimed("~nobody-here/a", "x") == Path("~nobody-here/a")
    with pytest.raises(UsageError, match="there is no file ~nobody-here/last.ckpt"):
        runs.resolve_checkpoint("~nobody-here/last.ckpt", None)


def test_a_checkpoint_that_is_not_whole_is_refused_and_the_one_before_is_named(tmp_path):
    last = written(tmp_path / "last.ckpt")
    whole = last.read_bytes()
    assert runs.resolve_checkpoint(str(last), None) == str(last)
    overwritten = whole[:3000] + b"\xff" * 64 + whole[3064:]
    for content in (whole[:4000], b"", overwritten, b"PK" + bytes(5000)):
        last.write_bytes(content)
        with pytest.raises(UsageError, match=r"last.ckpt is (empty|not whole|damaged)[^;]*$"):
            runs.resolve_checkpoint(str(last), None)
        previous = written(tmp_path / "previous.ckpt")
        with pytest.raises(UsageError, match=f"; the one before it is whole: --ckpt_path {previous}$"):
            runs.resolve_checkpoint(str(last), None)
        previous.write_bytes(content)
        with pytest.raises(UsageError, match=r"last.ckpt is [^;]*$"):
            runs.resolve_checkpoint(str(last), None)
    previous.unlink()
    last.unlink()
    with pytest.raises(UsageError, match=r"there is no file .*last.ckpt$"):
        runs.resolve_checkpoint(str(last), None)
    with pytest.raises(UsageError, match="a file of this machine, not an address"):
        runs.resolve_checkpoint("http://localhost/last.ckpt", None)


@pytest.mark.parametrize("content", [None, b"", b"PK" + bytes(5000)])
def test_last_is_the_one_before_where_the_last_is_not_whole(content, tmp_path, capsys):
    """None: killed between two renames, where links do not exist."""
    last = tmp_path / "checkpoints" / "last.ckpt"
    previous = written(last.with_name("previous.ckpt"))
    whole = previous.read_bytes()
    if content is not None:
        last.write_bytes(content)
    assert runs.resolve_checkpoint("last", str(tmp_path)) == str(previous)
    assert claimed(str(tmp_path), "x", str(previous), True) == tmp_path
    said = capsys.readouterr().err
    assert said.startswith("note: ") and said.endswith("last.ckpt, so previous.ckpt is taken\n") == (content is None)
    assert previous.read_bytes() == whole and not last.exists()  # the next save would make it the one before
    assert (last.with_name("damaged.ckpt").exists()) == (content is not None)
    previous.write_bytes(b"")
    last.write_bytes(content or b"")
    with pytest.raises(UsageError, match=r"last.ckpt is [^;]*$"):
        runs.resolve_checkpoint("last", str(tmp_path))


def test_a_run_on_another_node_is_not_the_first(monkeypatch):
    for name in (*runs.RANKS, *runs.NODES, "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def rank(**environment):
        with monkeypatch.context() as patched:
            for name, value in environment.items():
                patched.setenv(name, str(value))
            return runs.rank()

    assert rank() == rank(NODE_RANK=0) == rank(RANK=0, GROUP_RANK=0) == 0
    assert rank(LOCAL_RANK=2) == rank(LOCAL_RANK=2, NODE_RANK=0) == 2
    assert rank(NODE_RANK=1) == rank(GROUP_RANK=1, LOCAL_RANK=0) == 1 and rank(NODE_RANK=1, LOCAL_RANK=3) == 3
    assert rank(RANK=0, NODE_RANK=1) == 0  # torchrun knows it all
    tasks = {"SLURM_JOB_NAME": "mine", "SLURM_STEP_NUM_TASKS": 4}
    assert rank(**tasks, SLURM_PROCID=2, LOCAL_RANK=0, NODE_RANK=1) == 2
    assert rank(**tasks, SLURM_PROCID=0, LOCAL_RANK=0, NODE_RANK=0) == 0


def test_the_advice_names_only_what_exists_and_can_be_pasted(tmp_path, monkeypatch):
    folder = tmp_path / "my run (1)"
    folder.mkdir()
    assert runs.continuation(folder) == f"python -m distillkit fit --config '{folder}/config.yaml'"
    written(folder / "checkpoints" / "last.ckpt")
    words = shlex.split(runs.continuation(folder))
    assert words[-4:] == ["--config", f"{folder}/config.yaml", "--ckpt_path", f"{folder}/checkpoints/last.ckpt"]
    monkeypatch.setenv("WORLD_SIZE", "2")  # Lightning sets it where it starts the others
    assert runs.way_on(folder) == f"go on with: {shlex.join(words)}"
    monkeypatch.setenv("RANK", "0")
    assert runs.way_on(folder) == f"the same command goes on, with --out '{folder}' --ckpt_path last"
