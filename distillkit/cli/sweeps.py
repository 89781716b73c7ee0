"""`-m`, Hydra's multirun: each job is an ordinary run in a fresh process; a comparison ends it."""

import os
import shlex
import signal
import subprocess
import sys
import time
from codecs import getincrementaldecoder
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillkit import runs, signals
from distillkit.cli import config
from distillkit.errors import UsageError


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        words: its own words, as typed in a shell.
        code: its exit code.
        seconds: its duration.
        reason: the last line that it wrote to standard error.
    """

    number: int
    words: str
    code: int
    seconds: float
    reason: str


class Sweep:
    """The jobs of one sweep, one after the other.

    A signal is handed to the running job, once for each time it came: jobs are in sessions of their
    own, out of reach of the terminal's Ctrl-C. No further job is started after it.

    Args:
        verb: the verb of every job.
        flags: the flags of every job.
        folder: job N runs in FOLDER/N.
        chain: whether each job begins with the student of the one before; none follows a failure.
    """

    def __init__(self, verb: str, flags: Sequence[str], folder: Path, chain: bool = False):
        self.verb, self.flags, self.folder, self.chain = verb, list(flags), folder, chain
        self.jobs: list[Job] = []
        self.stopped = False
        self._process: subprocess.Popen | None = None

    def job(self, _: Any) -> None:
        """Run one combination; Hydra calls this after composing it."""
        from hydra.core.hydra_config import HydraConfig

        if self.stopped:
            raise KeyboardInterrupt
        hydra = HydraConfig.get()
        words, number = list(hydra.overrides.task), hydra.job.num
        shown = shlex.join(word.lstrip("+") for word in words if not word.startswith("hydra."))
        words += [f"{config.SEARCH_PATH}[{','.join(map(config.quoted, hydra.searchpath))}]"] if hydra.searchpath else []
        if self.chain and self.jobs:
            words += ["student=folder", f"student.path={self.folder / str(self.jobs[-1].number)}"]
        print(f"\n[{number}] {shown}", flush=True)
        command = [
            sys.executable,
            "-m",
            "distillkit",
            self.verb,
            *words,
            *self.flags,
            "--out",
            str(self.folder / str(number)),
        ]
        begun, last = time.monotonic(), ""
        with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as self._process:
            if self.stopped:
                self._process.send_signal(signal.SIGINT)
            decode = getincrementaldecoder("utf-8")("replace").decode
            while part := self._process.stderr.read1():
                text = decode(part)
                print(text, end="", file=sys.stderr, flush=True)
                last = (last + text)[-2000:]
        reason = last.strip().rpartition("\n")[2].removeprefix("error: ")
        self.jobs.append(Job(number, shown, self._process.returncode, time.monotonic() - begun, reason))
        if self.stopped or self.broken:
            raise KeyboardInterrupt

    @property
    def broken(self) -> bool:
        """Whether the chain has a failed job, after which none is started."""
        return self.chain and any(job.code for job in self.jobs)

    def stop(self, number: int, frame: Any) -> None:
        """Hand a signal to the running job; a handler of signals."""
        self.stopped = True
        if self._process is not None:
            with suppress(OSError):
                self._process.send_signal(number)

    def table(self, compared: Container[str] = ()) -> str:
        """A line for each job that is not `compared`: number, ending, seconds, words."""
        jobs = [job for job in self.jobs if str(job.number) not in compared]
        if not jobs:
            return ""
        lines = [["", "ended", "seconds", "words"]]
        for job in jobs:
            ended = {0: "done", 130: "interrupted"}.get(job.code, f"failed ({job.code})")
            lines.append([str(job.number), ended, f"{job.seconds:.0f}", job.words])
        widths = [max(2, *(len(line[i]) for line in lines)) for i in range(3)]
        text = ""
        for line, job in zip(lines, [None, *jobs], strict=True):
            cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
            text += f"  {'  '.join([*cells, line[-1]])}".rstrip() + "\n"
            if job and job.code and job.reason:
                text += f"  {' ' * widths[0]}  {job.reason}\n"
        return text

    def tell(self) -> None:
        """Print how the jobs ended and compare those that were evaluated, each job in one place."""
        from distillkit.cli import compare

        found, left_out = compare.read_all({str(job.number): self.folder / str(job.number) for job in self.jobs})
        try:
            side_by_side = compare.SideBySide(found) if found else None
        except UsageError as error:
            print(f"{self.table()}not compared: {error}", flush=True)
            return
        print(self.table([run.name for run in found]), end="", flush=True)
        if side_by_side:
            compare.tell(side_by_side)
            compare.save(side_by_side, self.folder, left_out)


def sweep(verb: str, words: Sequence[str], flags: Sequence[str], out: str | None, chain: bool = False) -> int:
    """Run every combination of the words; returns 0 if all were done, 130 if stopped, else 1.

    With `chain` one word alone lists several values: the runs, in order.
    """
    changes = config.overrides(words, sweep=True)
    if chain and (several := config.listing(changes)) != 1:
        raise UsageError(
            f"a chain is one row of runs, so exactly one word lists several values, and {several or 'none'} of these "
            f"{'do' if several > 1 else 'does'}: list the runs in one, such as method=hyper_sd,feedback,dmd"
        )
    folder = runs.claim(out, "sweep").resolve()
    os.environ.pop(runs.OUT, None)
    from hydra.core.global_hydra import GlobalHydra

    quiet = [
        f"hydra.sweep.dir={config.quoted(str(folder))}",
        "hydra.output_subdir=null",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
    ]
    made = Sweep(verb, flags, folder, chain)
    try:
        with signals.handled(made.stop), config.hydra_over(config.places_of(words)):
            jobs = GlobalHydra.instance().hydra.multirun("config", made.job, [*changes, *quiet], False)
            for done in (job for batch in jobs for job in batch):
                done.return_value  # noqa: B018 (raises what broke a job before its start)
        if not made.jobs:
            (folder / "multirun.yaml").unlink(missing_ok=True)
            raise UsageError("these words make no runs: one of them, such as a glob(...), stands for no value")
    except KeyboardInterrupt:
        made.stopped = made.stopped or not made.broken
    finally:
        runs.release(folder)
    of = "stopped after " if made.stopped else "the chain ends where a run failed: " if made.broken else ""
    print(f"\n{of}{len(made.jobs)} run{'s' * (len(made.jobs) != 1)} in {folder}", flush=True)
    made.tell()
    if made.stopped:
        return 130
    return int(any(job.code for job in made.jobs))
