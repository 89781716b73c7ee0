"""The run folder: its choice, its checks, and the checkpoint that it starts from."""

import errno
import os
import re
import shlex
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from distillkit.errors import Failure, UsageError, pasted

LAST, PREVIOUS, DAMAGED, LOCK = "last.ckpt", "previous.ckpt", "damaged.ckpt", ".lock"
PARTIAL = ".partial-"  # prefix of the names of unfinished files
OUT = "DISTILLKIT_OUT"  # the parent's run folder, for the processes that Lightning starts for DDP
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # in Lightning's order
NODES = ("NODE_RANK", "GROUP_RANK")  # of this machine, among those whose processes were started by hand
ROOT = Path("runs")
NAMELESS = "several processes were started from outside: name their run folder with --out"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # such an error may come without a file name


def rank() -> int:
    """This process's index among those that train together, as Lightning sees it; 0 is the first.

    Where processes were started by hand on several machines, it is that on its own machine, but at
    least 1 on every machine after the first.
    """
    if by_srun() and "RANK" not in os.environ:
        return int(os.environ.get("SLURM_PROCID", 0))
    own = int(next((os.environ[name] for name in RANKS if name in os.environ), 0))
    node = int(next((os.environ[name] for name in NODES if name in os.environ), 0))
    return max(own, 1) if node and "RANK" not in os.environ else own


def processes_from_outside() -> bool:
    """Whether torchrun or srun started several processes, which cannot agree on a new number."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1 or (by_srun() and int(os.environ.get("SLURM_NTASKS") or 1) > 1)


def by_srun() -> bool:
    """Whether srun started this process; false in a shell or a script inside an allocation."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return not interactive and ("SLURM_STEP_NUM_TASKS" in os.environ or os.environ.get("SLURM_PROCID", "0") != "0")


def surroundings() -> None:
    """Make Lightning see one process where only one was started, whatever the environment says.

    Raises:
        UsageError: variables that Lightning reads are not numbers, or name processes that do not
            exist.
    """
    for name in (*RANKS, *NODES, "WORLD_SIZE", "SLURM_NTASKS"):
        if not os.environ.get(name, "0").strip().isdecimal():
            raise UsageError(f"the environment says {name}={os.environ[name]}, which is no whole number: unset {name}")
    alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0} | ({} if by_srun() else dict.fromkeys(NODES, 0))
    left = [name for name in alone if name in os.environ]
    others = any(int(os.environ[name]) > alone[name] for name in left)
    if others and "MASTER_ADDR" not in os.environ:
        said = " ".join(f"{name}={os.environ[name]}" for name in left)
        raise UsageError(f"the environment says {said}, but torchrun did not start this: unset {' '.join(left)}")
    if int(os.environ.get("SLURM_PROCID", 0)) and not {"SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"} & set(os.environ):
        raise UsageError(
            f"the environment says SLURM_PROCID={os.environ['SLURM_PROCID']}, but srun did not start this: unset SLURM_PROCID"
        )
    if "SLURM_NTASKS" in os.environ and not by_srun():
        os.environ["SLURM_JOB_NAME"] = "bash"  # to Lightning: start no processes through SLURM, wait for none


def home_of(checkpoint: str | None) -> Path | None:
    """The run folder X of X/checkpoints/NAME.ckpt."""
    parent = Path(checkpoint).parent if checkpoint else None
    return parent.parent if parent and parent.name == "checkpoints" else None


def is_last(checkpoint: str, folder: Path) -> bool:
    """Whether a checkpoint is the last one of this run folder."""
    return Path(checkpoint).resolve() == (folder / "checkpoints" / LAST).resolve()


def resolve_checkpoint(given: object, out: str | None) -> str | None:
    """The checkpoint that a run starts from, checked; None for a first start.

    `last` means OUT/checkpoints/last.ckpt if there is one; if that is not whole, the one before it.

    Raises:
        UsageError: it is no file of this machine, or is not whole.
    """
    if given is None:
        return None
    if str(given) == "":
        raise UsageError("--ckpt_path needs a file, such as --ckpt_path RUN/checkpoints/last.ckpt")
    if "://" in str(given):
        raise UsageError(f"--ckpt_path takes a file of this machine, not an address ({given}): fetch it first")
    path = Path(os.path.expanduser(str(given)))
    if str(given) == "last":
        if out is None:
            raise UsageError("--ckpt_path=last needs --out with the run folder whose last checkpoint is meant")
        path = Path(out, "checkpoints", LAST)
        previous = path.with_name(PREVIOUS)
        if not path.exists() and not previous.exists():
            return None
        if is_whole(previous) and not is_whole(path):
            return str(previous)
    check_checkpoint(path)
    return str(path)


def check_checkpoint(path: str | Path) -> None:
    """Refuse a checkpoint that is missing or not whole; the error names a whole one before it."""
    path = Path(path)
    if not path.is_file():
        wrong = f"there is no file {path}"
    elif reason := damage(path):
        wrong = f"{path} {reason}"
    else:
        wrong = ""
    if wrong:
        previous = path.with_name(PREVIOUS)
        whole = previous != path and is_whole(previous)
        mend = f"; the one before it is whole: --ckpt_path {shlex.quote(str(previous))}" if whole else ""
        raise UsageError(f"--ckpt_path: {wrong}{mend}")


def is_whole(path: Path) -> bool:
    """Whether there is a checkpoint without a fault."""
    return path.is_file() and not damage(path)


def damage(path: Path) -> str | None:
    """The fault of a checkpoint, None if it is whole.

    torch writes a zip archive, in which every record has a checksum that torch itself does not
    compare.
    """
    if not path.stat().st_size:
        return "is empty"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            names = archive.namelist()
    except Exception:  # whatever a random file leads zipfile to
        return "is not whole, or no checkpoint"
    if broken:
        return "is damaged inside"
    return None if any(name.endswith("/data.pkl") for name in names) else "is no checkpoint"


def continuation(folder: str | Path) -> str:
    """The command that goes on with a run, ready to paste, with its last checkpoint if any."""
    config, last = Path(folder, "config.yaml"), Path(folder, "checkpoints", LAST)
    return pasted("fit", "--config", config, *(("--ckpt_path", last) if last.is_file() else ()))


def way_on(folder: str | Path) -> str:
    """The end of a sentence about a run that stopped: how it goes on from its last checkpoint."""
    if "RANK" in os.environ or by_srun():  # how torchrun or srun was called is not known here
        return f"the same command goes on, with --out {shlex.quote(str(folder))} --ckpt_path last"
    return f"go on with: {continuation(folder)}"


def check(out: Path, checkpoint: str | None, again: bool = False, mark: str = "config.yaml") -> None:
    """Refuse a folder with content, unless the run continues there or, `again`, has left `mark`."""
    holds = any(path.name != LOCK and not path.name.startswith(PARTIAL) for path in out.iterdir())
    inside = checkpoint is not None and out.resolve() in Path(checkpoint).resolve().parents
    if holds and not inside and not (again and (out / mark).is_file()):
        last = out / "checkpoints" / LAST
        mend = ", or go on there with --ckpt_path last" if (out / mark).is_file() else ""
        mend = f", or continue that run with --ckpt_path {shlex.quote(str(last))}" if last.is_file() else mend
        raise UsageError(f"the run folder {out} is not empty; give another one with --out{mend}")


def claim(
    out: str | None,
    name: str,
    checkpoint: str | None = None,
    again: bool = False,
    alone: bool = True,
    mark: str = "config.yaml",
) -> Path:
    """Make the run folder: `out`, else the checkpoint's own run, else the next runs/NAME-NUMBER.

    The first process chooses and checks; the others get the folder from the environment.

    Args:
        again: whether `out` may hold a run that died before its first checkpoint.
        alone: whether the folder is locked until `release`, against a second run that would write
            the same files; a process that died holds no lock.
        mark: the file that shows a folder to be of such a run.

    Returns:
        The run folder.
    """
    if rank() > 0 and OUT in os.environ:
        return Path(os.environ[OUT])
    if out is None and home_of(checkpoint) is None and processes_from_outside():
        raise UsageError(NAMELESS)
    folder = Path(out) if out else home_of(checkpoint)
    try:
        if folder is None:
            folder = _next(name)
        if rank() == 0:
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"the run folder {folder} is a file; give another one with --out")
            folder.mkdir(parents=True, exist_ok=True)
            if alone:
                _lock(folder)
            try:
                check(folder, checkpoint, again, mark)
                (folder / f"{PARTIAL}writable").touch()
                (folder / f"{PARTIAL}writable").unlink()
            except (UsageError, OSError):
                release(folder)
                raise
            for left in folder.rglob(f"{PARTIAL}*") if alone else ():  # by a run that was killed
                left.unlink(missing_ok=True)
            if again and checkpoint and Path(checkpoint).name == PREVIOUS:
                instead_of(Path(checkpoint).with_name(LAST), alone)
    except OSError as error:
        raise cannot_write(error, folder or ROOT) from error
    os.environ[OUT] = str(folder)
    return folder


def instead_of(last: Path, rename: bool) -> None:
    """Say that the checkpoint before the last is taken.

    Args:
        last: the one that is not whole.
        rename: whether that becomes damaged.ckpt; else the next save would keep it as the one
            before.
    """
    why = f"{last} {damage(last)}" if last.is_file() else f"there is no {last}"
    if rename and last.is_file():
        os.replace(last, last.with_name(DAMAGED))
        why += f" (it is {DAMAGED} now)"
    print(f"note: {why}, so {PREVIOUS} is taken", file=sys.stderr, flush=True)


_locks: dict[Path, Any] = {}


def _lock(folder: Path) -> None:
    """Hold RUN/.lock for this process."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UsageError(f"another run is writing to {folder} now; give another folder with --out") from None
    except NotImplementedError:  # a file system without locks
        return
    _locks[folder.resolve()] = lock


def release(folder: Path) -> None:
    """Release a claimed folder; remove it, and then ROOT, if nothing was written there."""
    if lock := _locks.pop(folder.resolve(), None):
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()
    if rank() == 0:
        with suppress(OSError):
            folder.rmdir()
            if folder.parent.resolve() == ROOT.resolve():
                ROOT.rmdir()


def _next(name: str) -> Path:
    """Make ROOT/name-N, N one above the largest; made at once, for runs that start together."""
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
    begun = (where / "checkpoints" / LAST).is_file()
    then = f"; then go on with: {continuation(where)}" if begun else ""
    return Failure(f"cannot write to {where}: {error.strerror or error}; {hint} another folder with --out{then}")


def name_of(config: str) -> str:
    """The name of a rerun of RUN/config.yaml: RUN without its number."""
    return re.sub(r"-\d+$", "", Path(config).resolve().parent.name) or "run"
