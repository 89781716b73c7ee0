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
from distillkit.cli import catalogue, cluster, config, grammar
from distillkit.errors import Failure, UsageError, one_line
from distillkit.files import read_yaml

RECORD = "multirun.yaml"  # Hydra's, in the folder of a sweep


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
        queued: whether the jobs run elsewhere, and are waited for.
        places: words that name further configuration folders.
    """

    def __init__(
        self,
        verb: str,
        flags: Sequence[str],
        folder: Path,
        chain: bool = False,
        queued: bool = False,
        places: Sequence[str] = (),
    ):
        self.verb, self.flags, self.folder, self.chain = verb, list(flags), folder, chain
        self.jobs: list[Job] = []
        self.stopped, self.queued, self.places = False, queued, tuple(places)
        self._process: subprocess.Popen | None = None

    def job(self, _: Any) -> Job:
        """Run one combination; Hydra calls this after composing it, in a queue elsewhere."""
        from hydra.core.hydra_config import HydraConfig

        if self.stopped:
            raise KeyboardInterrupt
        hydra = HydraConfig.get()
        words, number = list(hydra.overrides.task), hydra.job.num
        shown = shlex.join(word.lstrip("+") for word in words if not word.startswith("hydra."))
        words += (
            [f"{catalogue.SEARCH_PATH}[{','.join(map(grammar.quoted, hydra.searchpath))}]"] if hydra.searchpath else []
        )
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
            try:
                while part := self._process.stderr.read1():
                    text = decode(part)
                    print(text, end="", file=sys.stderr, flush=True)
                    last = (last + text)[-2000:]
            except SystemExit:  # submitit has put the job into the queue again, and SLURM is about to end it
                self._process.send_signal(signal.SIGTERM)
                raise
        reason = last.strip().rpartition("\n")[2].removeprefix("error: ")
        self.jobs.append(Job(number, shown, self._process.returncode, time.monotonic() - begun, reason))
        self._process = None
        if self.stopped or self.broken:
            raise KeyboardInterrupt
        return self.jobs[-1]

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
        elif self.queued:
            raise KeyboardInterrupt

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Where the job of a queue runs, Hydra composes anew, before it calls `job`."""
        self.__dict__.update(state)
        config.register_resolvers(self.places)

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


def sweep(
    verb: str,
    words: Sequence[str],
    flags: Sequence[str],
    out: str | None,
    chain: bool = False,
    checkpoint: str | None = None,
) -> int:
    """Run every combination of the words; returns 0 if all were done, 130 if stopped, else 1.

    Args:
        verb, words, flags, out: of the command line.
        chain: one word alone lists several values: the runs, in order.
        checkpoint: the value of --ckpt_path; `last` lets each run of a sweep that stopped go on.
    """
    queued = cluster.named(words) is not None
    if queued and chain:
        raise UsageError("the runs of a chain wait for each other, and those of a queue do not: leave one of them out")
    words = cluster.translated(words)
    changes = grammar.overrides(words, sweep=True)
    if chain and (several := grammar.listing(changes)) != 1:
        raise UsageError(
            f"a chain is one row of runs, so exactly one word lists several values, and {several or 'none'} of these "
            f"{'do' if several > 1 else 'does'}: list the runs in one, such as method=hyper_sd,feedback,dmd"
        )
    if queued:
        cluster.needs_launcher()
        flags = [*flags, *([] if checkpoint else ["--ckpt_path", "last"])]  # a queue may start a job again
    folder = runs.claim(out, "sweep", again=checkpoint == "last", mark=RECORD).resolve()
    os.environ.pop(runs.OUT, None)
    from hydra.core.global_hydra import GlobalHydra

    quiet = [
        f"hydra.sweep.dir={grammar.quoted(str(folder))}",
        "hydra.output_subdir=null",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
    ]
    made = Sweep(verb, flags, folder, chain, queued, catalogue.places_of(words))
    try:
        refuse_others(folder / RECORD, changes)
        if queued:
            print(f"what the jobs say is kept in {folder / '.submitit'}", flush=True)
        with signals.handled(made.stop), config.hydra_over(made.places):
            jobs = GlobalHydra.instance().hydra.multirun("config", made.job, [*changes, *quiet], False)
            for done in (job for batch in jobs for job in batch):
                if (job := done.return_value) not in made.jobs:  # it raises what broke a job before its start
                    made.jobs.append(job)
        if not made.jobs:
            (folder / RECORD).unlink(missing_ok=True)
            raise UsageError("these words make no runs: one of them, such as a glob(...), stands for no value")
    except KeyboardInterrupt:
        made.stopped = made.stopped or not made.broken
    except Exception as error:
        if queued and type(error).__module__.startswith("submitit."):
            raise Failure(f"a job of the queue was lost: {one_line(error, 300)}; see {folder / '.submitit'}") from error
        raise
    finally:
        runs.release(folder)
    of = "stopped after " if made.stopped else "the chain ends where a run failed: " if made.broken else ""
    print(f"\n{of}{len(made.jobs)} run{'s' * (len(made.jobs) != 1)} in {folder}", flush=True)
    if made.stopped and queued:
        print("the jobs stay in the queue: scancel ends them, compare shows what they left", flush=True)
    made.tell()
    if made.stopped:
        return 130
    return int(any(job.code for job in made.jobs))


def refuse_others(record: Path, changes: Sequence[str]) -> None:
    """Refuse a folder whose sweep had other words, for then run N would be another one.

    Args:
        record: Hydra's multirun.yaml; it need not exist.
        changes: Hydra's overrides of this sweep.
    """
    if record.is_file():
        before = read_yaml(record)["hydra"]["overrides"]["task"]
        if before != [change for change in changes if not change.startswith("hydra")]:
            raise UsageError(
                f"the sweep in {record.parent} had other words ({shlex.join(before)}): give another folder with --out"
            )
