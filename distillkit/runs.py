"""The run folder: which one, whether it may be used, and what it was started from."""

import errno
import os
import re
from contextlib import suppress
from pathlib import Path

from distillkit.errors import Failure, UsageError

OUT = "DISTILLKIT_OUT"  # tells the processes that Lightning starts for DDP which run folder their parent has chosen
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # in Lightning's order
ROOT = Path("runs")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # such an error may come without a file name


def rank() -> int:
    """This process's place among those that train together, as Lightning sees it."""
    return int(next((os.environ[k] for k in RANKS if k in os.environ), 0))


def processes_from_outside() -> bool:
    """Whether torchrun or srun started several processes, which cannot agree on a new folder's number."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1 or (by_srun() and int(os.environ.get("SLURM_NTASKS") or 1) > 1)


def by_srun() -> bool:
    """Whether srun started this process, which is not so in a shell or a script inside an allocation."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return not interactive and ("SLURM_STEP_NUM_TASKS" in os.environ or os.environ.get("SLURM_PROCID", "0") != "0")


def surroundings() -> None:
    """Make Lightning see one process where only one was started, whatever a queue or a parent shell left behind.

    Raises:
        UsageError: variables that Lightning reads are not numbers, or speak of other processes that are not there.
    """
    for name in (*RANKS, "WORLD_SIZE", "SLURM_NTASKS"):
        if not os.environ.get(name, "0").strip().isdecimal():
            raise UsageError(f"the environment says {name}={os.environ[name]}, which is no whole number: unset {name}")
    left = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in os.environ]
    if "MASTER_ADDR" not in os.environ and (int(os.environ.get("RANK", 0)) or int(os.environ.get("WORLD_SIZE", 1)) > 1):
        said = " ".join(f"{name}={os.environ[name]}" for name in left)
        raise UsageError(f"the environment says {said}, but torchrun did not start this: unset {' '.join(left)}")
    if "SLURM_NTASKS" in os.environ and not by_srun():
        os.environ["SLURM_JOB_NAME"] = "bash"  # to Lightning: start no processes through SLURM, wait for none


def home_of(checkpoint: str | None) -> Path | None:
    """The run folder X of X/checkpoints/NAME.ckpt."""
    parent = Path(checkpoint).parent if checkpoint else None
    return parent.parent if parent and parent.name == "checkpoints" else None


def resolve_checkpoint(given: str | None, out: str | None) -> str | None:
    """`last` becomes OUT/checkpoints/last.ckpt if it exists, else nothing: the first start of a run."""
    if given is None or given in ("best", "hpc", "registry") or ":" in given:
        return given
    if given == "last":
        if out is None:
            raise UsageError("--ckpt_path=last needs --out with the run folder whose last checkpoint is meant")
        last = Path(out, "checkpoints", "last.ckpt")
        return str(last) if last.is_file() else None
    if not Path(given).exists():
        raise UsageError(f"--ckpt_path: there is no file {given}")
    return given


def check(out: Path, checkpoint: str | None) -> None:
    """Refuse a folder that holds something, unless the run continues in it."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"the run folder {out} is a file; give another one with --out")
    if out.is_dir() and any(out.iterdir()) and not (checkpoint and out.resolve() in Path(checkpoint).resolve().parents):
        raise UsageError(
            f"the run folder {out} is not empty; give another one with --out, or continue that run with "
            f"--ckpt_path {out / 'checkpoints' / 'last.ckpt'}"
        )


def claim(out: str | None, name: str, checkpoint: str | None = None) -> Path:
    """Make the run folder and return it: `out`, else the checkpoint's own run, else the next runs/NAME-NUMBER.

    Only the first process chooses and checks; the others are told by the environment.
    """
    if rank() > 0 and OUT in os.environ:
        return Path(os.environ[OUT])
    if out is None and home_of(checkpoint) is None and processes_from_outside():
        raise UsageError("several processes were started from outside: name their run folder with --out")
    folder = Path(out) if out else home_of(checkpoint)
    try:
        if folder is None:
            folder = _next(name)
        elif rank() == 0:
            check(folder, checkpoint)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".writable").touch()
            (folder / ".writable").unlink()
    except OSError as error:
        raise cannot_write(error, folder or ROOT) from error
    os.environ[OUT] = str(folder)
    return folder


def release(folder: Path) -> None:
    """Remove a claimed folder in which nothing was written, and ROOT if there is no other run in it."""
    if rank() == 0:
        with suppress(OSError):
            folder.rmdir()
            if folder.parent.resolve() == ROOT.resolve():
                ROOT.rmdir()


def _next(name: str) -> Path:
    """Make ROOT/name-N, N one above the largest there; made here, so that two runs started together get two folders."""
    ROOT.mkdir(parents=True, exist_ok=True)
    taken = [int(m[1]) for p in ROOT.iterdir() if (m := re.fullmatch(re.escape(name) + r"-(\d+)", p.name))]
    number = max(taken, default=0) + 1
    while True:
        try:
            (ROOT / f"{name}-{number}").mkdir()
            return ROOT / f"{name}-{number}"
        except FileExistsError:
            number += 1


def cannot_write(error: OSError, where: Path) -> Failure:
    hint = "free some space or give" if error.errno in FULL[:2] else "give"
    return Failure(f"cannot write to {where}: {error.strerror or error}; {hint} another folder with --out")


def name_of(config: str) -> str:
    """The name of a rerun of RUN/config.yaml: RUN without its number."""
    return re.sub(r"-\d+$", "", Path(config).resolve().parent.name) or "run"
