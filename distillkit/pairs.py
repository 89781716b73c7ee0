"""Pairs of noise, conditions and samples of a frozen teacher, made once and reused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import distillkit
from distillkit import cache, checks
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.sampling import ODE_SOLVERS
from distillkit.diffusion.start import Start
from distillkit.errors import Failure, UsageError
from distillkit.files import hash_tensors, read_yaml, shapes, write_atomic, write_yaml
from distillkit.progress import calls
from distillkit.runs import LOCK, PARTIAL
from distillkit.spec import to_spec
from distillkit.teachers.base import BaseTeacher

SHARD = 4096  # pairs in one file, made together
CONFIG = "pairs.yaml"
PROBES = 256  # training samples whose conditions tell one data set from another
COND = "cond."  # prefix of the names of conditions in a shard


class Pairs:
    """`num` pairs (noise, sample, condition) of a teacher: `make` them once, then draw from them.

    Pair i is made for the conditions of training sample `i mod len(data)`, in shards of 4096 pairs.
    Shard k starts from `teacher.noise(..., shard_seed(seed, k))`. So pairs are a function of
    teacher, solver, steps, kappa, seed, number and conditions, and a resumed run has the same ones.
    A discrete diffusion model has no noise here, and its samples are its clean ones.

    In memory every process makes all pairs. On disk the first process writes the missing ones to
    `path/pairs-00000.safetensors` and so on, and all processes map the files: memory does not grow
    with their number. A folder with more pairs serves the first `num`. In a folder with fewer, full
    shards stay and an incomplete last one is made anew.

    Args:
        teacher: the frozen teacher.
        num: number of pairs.
        path: the folder of the shards; None keeps pairs in memory.
        kappa: guidance scale of the teacher; 1 means no guidance.
        solver, steps: solver and steps of the teacher; None means its best ones, or the clean
            samples of a discrete diffusion model.

    Attributes:
        shards: name to tensor for each shard, on the CPU: `noise`, `sample` and `cond.NAME`, a row
            per pair.
    """

    def __init__(
        self,
        teacher: BaseTeacher,
        num: int,
        path: str | None = None,
        kappa: float = 1.0,
        solver: str | None = None,
        steps: int | None = None,
    ):
        checks.whole(1, num_pairs=num)
        teacher.solver(solver)  # refuses an unknown solver
        if steps is not None:
            checks.whole(1, steps=steps)
        if path is not None and not str(path).strip():
            raise ValueError("pairs_path is empty: give a folder, or null to keep pairs in memory")
        self.teacher, self.num, self.kappa, self.solver, self.steps = teacher, num, kappa, solver, steps
        self.folder = None if path is None else Path(os.path.expanduser(path))
        self.noisy = "log_probs" not in teacher.provides
        self.shards: list[dict[str, Tensor]] = []
        self._waited = False

    def make(self, data: Any, seed: int, strategy: Any = None) -> None:
        """Make the missing pairs and open all.

        Args:
            data: the training data, `len` and `[LongTensor] -> batch`.
            seed: seed of the noise.
            strategy: Lightning's strategy in a run with several processes; None means one process.

        Raises:
            UsageError: the folder holds other pairs than these, or no pairs.
            Failure: the folder cannot be written.
            ValueError: a sample of the teacher is not finite.
        """
        parts = torch.arange(self.num).split(SHARD)
        if self.folder is None:
            self.shards = []
            with self._shown(self.num) as shown:
                for k, rows in enumerate(parts):
                    self.shards.append(self._made(data, rows, shard_seed(seed, k)))
                    shown.advance(shown.total * (int(rows[-1]) + 1) // self.num - shown.done)  # of those that were kept
        else:
            self._write(data, seed, parts, strategy)
            from safetensors.torch import load_file

            self.shards = [load_file(self._file(k)) for k in range(len(parts))]  # maps, reads nothing yet
        sizes = {name: [shard[name].shape[1:] for shard in self.shards] for name in self.shards[0]}
        self._shapes = {name: tuple(map(max, zip(*each, strict=True))) for name, each in sizes.items()}

    def draw(self, rows: Tensor, device: torch.device | str | None = None) -> tuple[Tensor | None, Tensor, Cond]:
        """Returns the pairs `rows` [B], integers from 0 to num - 1: `(noise, sample, condition)`.

        Args:
            device: the device of the result; None means that of the rows. Rows on another device
                than the CPU make it wait for them.

        Returns:
            noise, sample: [B, *event_shape], in the space of the diffusion; sets are padded to the
                longest of all shards. Noise is None for discrete diffusion.
            condition: name to [B, ...].
        """
        device, rows = torch.device(device or rows.device), rows.cpu()
        found = {name: _to(self._taken(name, rows), device) for name in self.shards[0]}
        cond = {name.removeprefix(COND): value for name, value in found.items() if name.startswith(COND)}
        return found.get("noise"), found["sample"], cond

    def random(self, num: int, generator: torch.Generator) -> tuple[Tensor | None, Tensor, Cond]:
        """`draw` of `num` random rows, with repetition, on the generator's device.

        The rows are drawn on the CPU from the generator's seed, without waiting for a device.
        """
        own = torch.Generator().manual_seed(generator.initial_seed())
        return self.draw((torch.rand(num, generator=own) * self.num).long(), generator.device)

    def _taken(self, name: str, rows: Tensor) -> Tensor:
        if len(self.shards) == 1:
            return self.shards[0][name][rows]
        shard, row = rows // SHARD, rows % SHARD
        taken = torch.zeros(len(rows), *self._shapes[name], dtype=self.shards[0][name].dtype)
        for k in shard.unique().tolist():
            here, own = (shard == k).nonzero()[:, 0], self.shards[k][name]
            taken[(here, *map(slice, own.shape[1:]))] = own[row[here]]
        return taken

    def passes(self, num: int | None = None) -> int:
        """Passes of one sample through the teacher that making `num` pairs, or all, takes."""
        times = None if self.steps is None else self.teacher.grid(self.steps)
        return (self.num if num is None else num) * self.teacher.calls_per_sample(self.solver, times, self.kappa)

    def pretend(self, data: Any, num: int) -> int:
        """Takes zeros in the place of the pairs, at most `num` of them, and makes nothing.

        Args:
            data: as for `make`.
            num: number of pairs from now on.

        Returns:
            The bytes of one pair.
        """
        self.num, teacher = min(num, self.num), self.teacher
        cond = {
            name: value.cpu() for name, value in teacher.condition(data[torch.arange(self.num) % len(data)]).items()
        }
        zeros = torch.zeros(teacher.shape(self.num, cond), dtype=torch.float32 if self.noisy else torch.long)
        found = {"sample": zeros} | ({"noise": zeros} if self.noisy else {})
        found |= {COND + name: value for name, value in cond.items()}
        self.shards, self._shapes = [found], {name: tuple(value.shape[1:]) for name, value in found.items()}
        return sum(value[:1].nbytes for value in found.values())

    def facts(self) -> dict[str, Any]:
        """The facts about the pairs for the yaml of a product."""
        best = self.teacher.best
        return {
            "num": self.num,
            "solver": self.solver or best["solver"],
            "steps": self.steps or best["steps"],
            "kappa": self.kappa,
        }

    # Making

    def _made(self, data: Any, rows: Tensor, seed: int) -> dict[str, Tensor]:
        """The pairs of one shard, on the CPU."""
        teacher, num = self.teacher, len(rows)
        cond = {name: value.cpu() for name, value in teacher.condition(data[rows % len(data)]).items()}
        made = {"noise": teacher.noise(num, cond, seed)} if self.noisy else {}
        if self.noisy or self.solver or self.steps:
            times = None if self.steps is None else teacher.grid(self.steps)
            made["sample"] = teacher.generate(num, cond, seed, self.solver, times, self.kappa, decode=False)
        else:
            made["sample"] = teacher.clean_samples(num, cond, seed, self.kappa)
        if not made["sample"].isfinite().all():
            raise ValueError(f"{teacher.id} makes samples with NaN or infinity, from which nothing is learnt: mend it")
        return made | {COND + name: value for name, value in cond.items()}

    def _shown(self, num: int) -> Any:
        """`progress` over the making of `num` pairs."""
        return calls(f"making {num:,} pairs to learn from", self.teacher.denoiser, self.passes(num))

    # The folder

    def _file(self, k: int) -> Path:
        return self.folder / f"pairs-{k:05}.safetensors"

    def _write(self, data: Any, seed: int, parts: tuple[Tensor, ...], strategy: Any) -> None:
        """Write the missing shards in the first process; all processes wait for each shard."""
        writes = strategy is None or strategy.is_global_zero
        refusal = None
        if writes:
            try:
                refusal = self._claim(self._key(data, seed))
            except ValueError as error:
                refusal = str(error)
        if strategy is not None:
            refusal = strategy.broadcast(refusal)
        if refusal:
            raise UsageError(refusal)
        names = {COND + name for name in self.teacher.condition(data[parts[0][:1]])}
        missing = sum(len(rows) for k, rows in enumerate(parts) if self._damage(k, len(rows), names))
        with self._shown(missing):
            for k, rows in enumerate(parts):
                failure = None
                if writes:
                    try:
                        with self._alone(), cache.using(None):  # the folder keeps them
                            self._write_shard(k, data, rows, seed, names)
                    except (Failure, ValueError) as error:  # the others would wait for ever
                        failure = error
                if strategy is not None:
                    failure = strategy.broadcast(failure)
                if failure is not None:
                    raise failure

    def _write_shard(self, k: int, data: Any, rows: Tensor, seed: int, names: set[str]) -> None:
        """Make shard k, unless it is there and whole."""
        from safetensors.torch import save_file

        if not (damage := self._damage(k, len(rows), names)):
            return
        if self._file(k).exists():
            print(f"{damage}: it is made anew", flush=True)
        made = self._made(data, rows, shard_seed(seed, k))
        made = {name: value.contiguous() for name, value in made.items()}
        try:
            write_atomic(self._file(k), lambda temporary: save_file(made, temporary))
        except OSError as error:
            raise Failure(self._cannot_write(error)) from error

    def _damage(self, k: int, num: int, names: set[str]) -> str | None:
        """The fault of file k; None if it has `num` pairs with these conditions; reads headers."""
        file = self._file(k)
        try:
            found = shapes(file)
        except ValueError:
            return f"{file} is no whole safetensors file"
        expected = {"sample", *(("noise",) if self.noisy else ()), *names}
        if found.keys() != expected:
            return f"{file} holds {', '.join(sorted(found)) or 'nothing'} instead of {', '.join(sorted(expected))}"
        there = min((shape[0] if shape else 0) for shape in found.values())
        if there < num:
            return f"{file} holds {there:,} pairs instead of {num:,}"
        cond = {name.removeprefix(COND): torch.empty(found[name], device="meta") for name in names}
        shape = self.teacher.shape(there, cond)
        if any(tuple(found[name]) != shape for name in ("noise", "sample") if name in found):
            return f"{file} holds samples of another shape than {list(shape[1:])}"
        return None

    def _claim(self, key: dict[str, Any]) -> str | None:
        """Record the pairs' key in the folder; returns an error if it holds others, else None."""
        folder, mend = self.folder, "give another folder as model.pairs_path"
        if folder.exists() and not folder.is_dir():
            return f"{folder} is a file, not a folder of pairs: {mend}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                for left in folder.glob(f"{PARTIAL}*"):  # by a run that was killed
                    left.unlink(missing_ok=True)
                if not (folder / CONFIG).exists():
                    if next(folder.glob("pairs-*.safetensors"), None):
                        return f"{folder} does not say whose pairs it holds, for {CONFIG} is gone: {mend}"
                    write_yaml(
                        folder / CONFIG, {"distillkit": distillkit.__version__, "teacher": self.teacher.id, **key}
                    )
                there = read_yaml(folder / CONFIG)
        except ValueError as error:
            return f"{error}; {mend}"
        except OSError as error:
            return self._cannot_write(error)
        differs = [
            f"{n} {_short(there.get(n))}, here {_short(value)}" for n, value in key.items() if there.get(n) != value
        ]
        return f"{folder} holds other pairs than this run needs ({'; '.join(differs)}): {mend}" if differs else None

    def _key(self, data: Any, seed: int) -> dict[str, Any]:
        """All facts that the content of a shard depends on."""
        teacher = self.teacher
        best = dict(teacher.best)
        return {
            "teacher_hash": teacher.fingerprint(),
            **best,
            "solver": self.solver or best["solver"],
            "steps": self.steps or best["steps"],
            "kappa": float(self.kappa),
            "guidance": self._guidance(),
            "seed": seed,
            "event_shape": list(teacher.event_shape),
            "conditions": self._conditions(data),
            "shard": SHARD,
        }

    def _guidance(self) -> list[float] | None:
        """The guidance scales at the teacher's times; None if they are kappa at all of them."""
        if not hasattr(self.teacher, "guidance"):  # a discrete diffusion model
            return None
        times = self.teacher.grid(self.steps or self.teacher.best["steps"])
        scales = [float(self.teacher.guidance(t, self.kappa)) for t in times]
        return None if set(scales) == {float(self.kappa)} else scales

    def _conditions(self, data: Any) -> str:
        """sha256 of the conditions of up to 256 even training samples, and of their number.

        A teacher without conditions makes the same pairs from any data.
        """
        num = min(PROBES, len(data))
        cond = self.teacher.condition(data[torch.arange(num) * len(data) // num])
        digest = hashlib.sha256(str(len(data) if cond else 0).encode())
        hash_tensors(digest, cond)
        return digest.hexdigest()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A context in which no other run writes to the folder, if its file system has locks."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / LOCK)
        try:
            try:
                lock.acquire(blocking=False)
            except Timeout:
                if not self._waited:
                    print(f"another run makes pairs in {self.folder}: they are made in turn", flush=True)
                self._waited = True
                lock.acquire()
        except NotImplementedError:
            pass
        try:
            yield
        finally:
            lock.release()

    def _cannot_write(self, error: OSError) -> str:
        return (
            f"cannot write pairs to {self.folder} ({error.strerror or error}): give another folder as model.pairs_path"
        )


def shard_seed(seed: int, k: int) -> int:
    """The seed of shard k: `seed` for the first, 31 bits that depend on both for the others."""
    if k == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} pairs {k}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


def own_start(start: Start, teacher: BaseTeacher) -> None:
    """Refuse a student that starts elsewhere than the teacher: pairs share the teacher's start.

    Raises:
        ValueError: it does.
    """
    if to_spec(start) != to_spec(teacher.start):
        raise ValueError(
            "pairs join noise with the samples that the teacher makes of it, and this student does not start from noise as "
            "the teacher does: say student=copy, or take another method"
        )


def ode_solver(teacher: BaseTeacher, solver: str | None) -> str:
    """The solver asked for, which must be deterministic; None means the teacher's best, or DDIM.

    DDIM replaces a best solver that draws noise.

    Raises:
        ValueError: there is no such solver, or it draws noise.
    """
    if solver is None:
        best = teacher.best["solver"]
        return best if best in ODE_SOLVERS else "ddim"
    teacher.solver(solver)
    if solver not in ODE_SOLVERS:
        raise ValueError(
            f"pairs join a noise and the sample that it decides, which solver {solver!r} does not give: take one of "
            f"{', '.join(ODE_SOLVERS)}, or leave model.solver out"
        )
    return solver


def _to(value: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to the device without waiting for it."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


def _short(value: Any) -> str:
    return "missing" if value is None else repr(value)[:24]
