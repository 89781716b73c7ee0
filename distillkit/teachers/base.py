"""The teacher contract: what all worlds share, and the teacher of a Gaussian process."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit import cache, checks
from distillkit.codec import Codec
from distillkit.devices import in_chunks
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.guidance import guided, null_condition
from distillkit.diffusion.process import Process
from distillkit.diffusion.sampling import FEW_STEP_SOLVERS, SOLVERS, network_passes
from distillkit.diffusion.start import Start
from distillkit.files import hash_weights, save_weights, write_yaml
from distillkit.networks.adapters import Base, TeacherBase
from distillkit.networks.dtypes import DTYPES, Dtype, cast
from distillkit.progress import calls
from distillkit.rollouts import Continuation
from distillkit.spec import Recorded, to_spec
from distillkit.teachers.key import samples_key

WEIGHTS, CONFIG = "model.safetensors", "teacher.yaml"


class BaseTeacher(Recorded, nn.Module, ABC):
    """A frozen denoiser and its surroundings.

    It is always in eval mode, never trained, and never stored in a checkpoint.

    Args:
        denoiser: a `denoiser_kind`.
        event_shape: shape of one sample; of a padded set, with its largest size.
        classes: categorical conditions, `{batch key: number of classes}`; index `number of classes`
            is the null condition.
        context: batch keys of the other conditions (positions, an observation, a `mask`): tensors
            that guidance keeps and that have no null.
        codec: between data and samples; None means they are the same.
        continuation: how a sample follows another; None means that samples do not follow each
            other.
        dtype: of the network's weights, which `bfloat16` rounds; None leaves them as they are.
            What is trained is float32.

    Attributes:
        denoiser_kind: the class of its denoiser.
        solvers: its samplers by name.
        best: the solver and the number of steps with which the teacher samples best. A student's
            quality is measured against these samples.
        provides: what methods may ask for: `denoiser` (continuous diffusion), `features`
            (activations for GAN heads), `log_probs` (a discrete diffusion model). See
            `distillkit.capabilities`.
        kind: name of the folder that holds the product of a run.
        chunk: samples in one network evaluation, if `generate` is not told another number.
        most: samples in one network evaluation, whatever `generate` is told.
        apart: names of attributes that samples do not depend on. Samples are kept only if all
            others are plain data, see `distillkit.teachers.key`.
    """

    kind = "teacher"
    chunk = 500
    most: float = math.inf
    apart = frozenset({"_id", "drop"})
    denoiser_kind: type
    solvers: dict
    provides: frozenset[str]
    best: dict

    def __init__(
        self,
        denoiser: nn.Module,
        event_shape: tuple[int, ...],
        classes: dict[str, int] | None = None,
        context: Sequence[str] = (),
        codec: Codec | None = None,
        continuation: Continuation | None = None,
        dtype: Dtype | None = None,
    ):
        super().__init__()
        if dtype not in (None, *DTYPES):
            raise checks.Unfit("dtype", dtype, f"be {' or '.join(DTYPES)}")
        if dtype is not None:
            cast(denoiser.network, dtype)
        self.denoiser, self.event_shape, self.codec = denoiser, tuple(event_shape), codec or Codec()
        self.classes, self.context, self.continuation = dict(classes or {}), tuple(context), continuation
        self.requires_grad_(False).eval()

    @classmethod
    def offers(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """`provides`, and `classes` and `labels` where these arguments name some."""
        return cls.provides | ({"classes", "labels"} if arguments.get("classes") else set())

    @property
    def process(self) -> Any:
        return self.denoiser.process

    @property
    def id(self) -> str:
        """A name for people."""
        return type(self).__name__

    def train(self, mode: bool = True):
        """Does nothing: a teacher stays in eval mode."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where it computes: that of its weights."""
        return next(self.buffers(), next(self.parameters(), torch.empty(0))).device

    # Conditions

    def condition(self, batch: dict[str, Tensor]) -> Cond:
        """The conditioning of the denoiser, from a batch."""
        names = (*self.classes, *self.context)
        missing = [name for name in names if name not in batch]
        if missing:
            raise ValueError(
                f"the teacher is conditioned on {missing}, but batches have {sorted(batch)}: choose data with these keys"
            )
        return {name: batch[name] for name in names}

    def null_condition(self, cond: Cond) -> Cond:
        """The unconditional counterpart of `cond`."""
        return null_condition(cond, self.classes, getattr(self.denoiser, "network", None))

    @property
    def guidable(self) -> bool:
        """Whether there is an unconditional counterpart for guidance."""
        return bool(self.classes) or hasattr(getattr(self.denoiser, "network", None), "null")

    def proceed(self, cond: Cond, x_0: Tensor) -> Cond | None:
        """The conditioning of the sample after x_0, or None if nothing follows it.

        Args:
            cond: the conditioning of x_0.
            x_0: the sample [B, ...], decoded.
        """
        return None if self.continuation is None else self.continuation(cond, x_0)

    # Sampling

    def solver(self, name: Any) -> Any:
        """A sampler by name; None means the teacher's best.

        A sampler itself (a learned one) is returned as it is.
        """
        name = name or self.best["solver"]
        if not isinstance(name, str):
            return name
        if name not in self.solvers:
            raise ValueError(f"there is no solver {name!r}; there are {', '.join(self.solvers)}")
        return self.solvers[name]

    @abstractmethod
    def grid(self, steps: int) -> Tensor:
        """The `steps` decreasing times that the teacher's sampler visits, float64."""

    @abstractmethod
    def sample(
        self, noise: Any, cond: Cond, steps: int | None = None, solver: Any = None, kappa: float | Tensor = 1.0
    ) -> Tensor:
        """Samples of the slow reference: one [*event_shape] for each condition.

        Args:
            noise: see the kind of teacher.
            cond: one condition per sample.
            steps, solver: None means the teacher's best; `steps` counts times, the last one
                included, at which the denoiser is called once more.
            kappa: guidance scale, 1 = none.
        """

    def generate(
        self,
        num: int,
        cond: Cond,
        seed: int,
        solver: Any = None,
        times: Tensor | None = None,
        kappa: float | Tensor = 1.0,
        chunk: int | None = None,
        decode: bool = True,
    ) -> Tensor:
        """`num` samples of `sample` as data, on the CPU.

        Students start from the same noise with this seed. Within `distillkit.cache.using` the
        samples are kept, and made only once.

        Args:
            num, cond, seed, decode: as in `Student.sample`.
            solver, times, kappa: as in `sample`; of a Gaussian process kappa may be one per sample,
                [num].
            chunk: number of samples in one network evaluation, at most, halved where there is too
                little memory, see `devices.in_chunks`; None means the kind's own.
        """
        chosen = self._chosen(solver, times, kappa, chunk)
        if (kept := cache.current()) is None:
            x = self.make(num, cond, seed, *chosen)
        else:
            x = kept.recall(
                lambda: samples_key(self, num, cond, seed, *chosen),
                self.shape(num, cond),
                lambda: self.make(num, cond, seed, *chosen),
            )
        if not decode or type(self.codec) is Codec:
            return x

        def decoded(rows: slice) -> Tensor:
            own = {name: value[rows].to(self.device) for name, value in cond.items()}
            return self.codec.decode(x[rows].to(self.device), own)

        return in_chunks(decoded, num, chosen[-1], math.prod(x.shape[1:]), self.device)

    def kept(
        self,
        num: int,
        cond: Cond,
        seed: int,
        solver: Any = None,
        times: Tensor | None = None,
        kappa: float | Tensor = 1.0,
        chunk: int | None = None,
    ) -> bool:
        """Whether `generate` with these arguments would find its samples kept."""
        chosen = self._chosen(solver, times, kappa, chunk)
        return cache.current() is not None and cache.current().holds(samples_key(self, num, cond, seed, *chosen))

    def _chosen(self, solver: Any, times: Tensor | None, kappa: float | Tensor, chunk: int | None) -> tuple:
        """The arguments of `make` after the seed, with the defaults of `generate` filled in."""
        if times is None:
            times = solver.times() if isinstance(solver, nn.Module) else self.grid(self.best["steps"])
        return solver or self.best["solver"], times, kappa, min(chunk or self.chunk, self.most)

    @abstractmethod
    def make(
        self, num: int, cond: Cond, seed: int, solver: Any, times: Tensor, kappa: float | Tensor, chunk: int
    ) -> Tensor:
        """The samples of `generate` before they are decoded, made by the sampler, on the CPU."""

    def shape(self, num: int, cond: Cond) -> tuple[int, ...]:
        """The shape of `num` samples before they are decoded."""
        return (num, *self.event_shape)

    @abstractmethod
    def network_passes(self, solver: str, num_times: int) -> int:
        """Number of calls of the denoiser in a run of the solver over so many times."""

    @abstractmethod
    def few_step_choices(self, passes: int, own: Sequence[float] = ()) -> list[tuple[str, Tensor]]:
        """Simple samplers with that many network evaluations, by name and times.

        A student must beat them.

        Args:
            passes: number of network evaluations.
            own: times of the student.
        """

    def calls_per_sample(self, solver: Any = None, times: Tensor | None = None, kappa: float | Tensor = 1.0) -> int:
        """How often `generate` with these arguments sends each sample through the denoiser."""
        self.solver(solver)  # refuses one that there is not
        learned = isinstance(solver, nn.Module)
        if times is None:
            times = solver.times() if learned else range(self.best["steps"])
        passes = len(times) if learned else self.network_passes(solver or self.best["solver"], len(times))
        once = isinstance(kappa, (int, float)) and kappa in (0, 1)
        return passes * (1 if once or not self.guidable else 2)

    # What a folder keeps

    def new_denoiser(self, network: nn.Module | None = None) -> Any:
        """A trainable denoiser on the same process.

        It has a copy of the teacher's network, whose weights are at least float32, or of the given
        one.
        """
        own = self.denoiser
        made = cast(copy.deepcopy(own), "float32") if network is None else own.with_network(copy.deepcopy(network))
        return made.requires_grad_(True).train()

    def frozen_network(self) -> nn.Module:
        """The network under the adapters; shared, never copied."""
        return self.denoiser.network

    def base(self) -> Base:
        """The record by which adapters find that network again."""
        return TeacherBase(self)

    def begins(self) -> str:
        """The start of sampling as text for the teacher's hash; empty for noise alone."""
        return ""

    def fingerprint(self) -> str:
        """sha256 of the weights, of how they are read and of the start of sampling."""
        said = json.dumps(to_spec(self.denoiser), sort_keys=True) + self.begins()
        digest = hashlib.sha256(said.encode())
        hash_weights(digest, self)
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        """The facts in teacher.yaml besides those that `save` is given."""
        own = {"codec": to_spec(self.codec)} if type(self.codec) is not Codec else {}
        if self.continuation is not None:
            own["continuation"] = to_spec(self.continuation)
        return {
            "provides": sorted(
                self.provides
                | ({"decoder"} if self.codec.tunable else set())
                | ({"classes"} if self.guidable and not self.classes else set())
            ),
            "best": self.best,
            "event_shape": list(self.event_shape),
            "classes": self.classes,
            "context": list(self.context),
            "denoiser": to_spec(self.denoiser),
            **own,
        }

    def save(self, folder: str | Path, **facts: Any) -> Path:
        """Write a teacher folder; `facts` (id, domain ...) join teacher.yaml."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / WEIGHTS, self.denoiser)
        write_yaml(folder / CONFIG, {**facts, **self.facts()})
        return folder


class Teacher(BaseTeacher):
    """A teacher of a Gaussian process: `denoiser(x_t, t, cond) -> x_0`.

    Args:
        denoiser, event_shape, classes, context, codec, continuation, dtype: as in `BaseTeacher`.
        start: the start of sampling; None means pure noise at the process's largest time.
    """

    denoiser_kind = Denoiser
    solvers = SOLVERS
    provides = frozenset({"denoiser", "features"})
    best = {"solver": "heun", "steps": 18}

    def __init__(
        self,
        denoiser: nn.Module,
        event_shape: tuple[int, ...],
        classes: dict[str, int] | None = None,
        context: Sequence[str] = (),
        codec: Codec | None = None,
        start: Start | None = None,
        continuation: Continuation | None = None,
        dtype: Dtype | None = None,
    ):
        super().__init__(denoiser, event_shape, classes, context, codec, continuation, dtype)
        self.start = start or Start()
        self.start.check(self.process, self.context)

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def shape(self, num: int, cond: Cond) -> tuple[int, ...]:
        return self.codec.shape(num, self.event_shape, cond)

    def noise(self, num: int, cond: Cond, seed: int) -> Tensor:
        """Unit Gaussian noise for `num` samples, on the CPU."""
        return torch.randn(self.shape(num, cond), generator=torch.Generator().manual_seed(seed))

    def grid(self, steps: int) -> Tensor:
        return self.process.grid(steps, self.start.level)

    def guidance(self, t: Tensor, kappa: float | Tensor) -> float | Tensor:
        """The guidance scale at time t (a scalar).

        A teacher that is guided on an interval only overrides it.

        Args:
            t: the time.
            kappa: one number, or one per sample [B].
        """
        return kappa

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        cond: Cond,
        steps: int | None = None,
        solver: Any = None,
        kappa: float | Tensor = 1.0,
        draw: Callable[[int], Tensor] | None = None,
        times: Tensor | None = None,
    ) -> Tensor:
        """Samples of the slow reference from `noise` [B, *event_shape].

        Args:
            noise: unit Gaussian.
            cond, steps, solver, kappa: as in `BaseTeacher`.
            draw: `draw(i)` feeds stochastic solvers; None draws from a generator with a fixed seed,
                on the CPU.
            times: the decreasing times to visit, instead of the teacher's grid of `steps`.
        """
        solver, cond = self.solver(solver), self.codec.conditions(cond, self.event_shape)
        if times is None:
            times = solver.times() if isinstance(solver, nn.Module) else self.grid(steps or self.best["steps"])
        return self.solve(noise, cond, solver, times, kappa, draw)

    def solve(
        self,
        noise: Tensor,
        cond: Cond,
        solver: Callable,
        times: Tensor,
        kappa: float | Tensor = 1.0,
        draw: Callable[[int], Tensor] | None = None,
    ) -> Tensor:
        """`sample` with the solver itself, and with gradients where times or solver have some."""
        times, generator = times.to(noise.device), torch.Generator().manual_seed(0)

        def fresh(i):  # on the CPU: the same noise on every device
            return torch.randn(noise.shape, generator=generator, dtype=noise.dtype).to(noise.device)

        x = self.start(self.process, noise, times[0], cond)
        return solver(self.stepper(cond, kappa), self.process, x, times, draw or fresh)

    def stepper(self, cond: Cond, kappa: float | Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """`denoise(x, t)` for one run of a solver, which calls it along its times.

        A teacher whose steps see the one before overrides it.
        """
        null = self.null_condition(cond)
        return lambda x, t: guided(self.denoiser, x, t, cond, null, self.guidance(t, kappa))

    def make(self, num, cond, seed, solver, times, kappa, chunk):
        noise, device = self.noise(num, cond, seed), self.device

        def made(rows: slice) -> Tensor:
            own = {name: value[rows].to(device) for name, value in cond.items()}
            scale = kappa[rows].to(device) if isinstance(kappa, Tensor) else kappa
            draw = noise_of_rows(seed, rows, noise.shape[1:], device)
            return self.sample(noise[rows].to(device), own, None, solver, scale, draw, times)

        with calls("sampling", self.denoiser, num * self.calls_per_sample(solver, times, kappa)):
            return in_chunks(made, num, chunk, math.prod(noise.shape[1:]), device)

    def few_step_choices(self, passes, own=()):
        """One-pass solvers on the full grid, on one that stops earlier, and on the `own` times.

        With few steps the full grid wastes its last one on a level without noise. With one step all
        choices are the same.
        """
        grids = [self.grid(passes), self.grid(passes + 1)[:-1]]
        if passes == 1:
            return [("ddim", grids[0])]
        own = torch.tensor(list(own), dtype=torch.float64)
        if len(own) and not any(torch.allclose(own, grid) for grid in grids):
            grids.append(own)
        return [(solver, times) for solver in FEW_STEP_SOLVERS for times in grids]

    def network_passes(self, solver, num_times):
        return network_passes(solver, num_times)

    def begins(self):
        return "" if self.start.pure else json.dumps(to_spec(self.start), sort_keys=True)

    def facts(self):
        own = {} if self.start.pure else {"start": to_spec(self.start)}
        return {**super().facts(), **own}


def noise_of_rows(seed: int, rows: slice, shape: tuple[int, ...], device: torch.device) -> Callable[[int], Tensor]:
    """Unit Gaussian noise `draw(i)` [rows, *shape] of a stochastic solver, drawn on the CPU.

    Each row of a run has a stream of its own, so chunks do not share their noise, and its samples
    are the same however it is cut into chunks.
    """
    digests = (
        hashlib.blake2b(f"{seed} {row}".encode(), digest_size=8).digest() for row in range(rows.start, rows.stop)
    )
    streams = [torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1) for digest in digests]

    def draw(i: int) -> Tensor:
        noise = torch.empty(len(streams), *shape)
        for row, stream in zip(noise, streams, strict=True):
            row.normal_(generator=stream)
        return noise.to(device)

    return draw
