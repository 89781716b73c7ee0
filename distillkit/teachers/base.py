"""The teacher contract."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.guidance import guided, null_condition
from distillkit.diffusion.process import Process, set_shape
from distillkit.diffusion.sampling import FEW_STEP_SOLVERS, SOLVERS, network_passes, pure_noise
from distillkit.files import hash_weights
from distillkit.progress import calls
from distillkit.spec import Recorded, to_spec


class Teacher(Recorded, nn.Module):
    """A frozen denoiser and what surrounds it. Always in eval mode, never trained, never stored in a checkpoint.

    Args:
        denoiser: a `denoiser_kind`, `(x_t, t, cond) -> x_0`.
        event_shape: shape of one sample; of a padded set, with its largest size.
        classes: categorical conditions, `{batch key: number of classes}`; index `number of classes` is the null condition.
        context: batch keys of what else a sample is made for (positions, a first frame, a `mask`): tensors that guidance
            keeps and that have no null.

    Attributes:
        denoiser_kind: the class of its denoiser.
        solvers: its samplers by name.
        best: solver and steps at which the teacher is at its best (the quality a student is measured against).
        provides: what methods may ask for: `denoiser` (continuous diffusion), `features` (activations for GAN heads),
            `log_probs` (a model of tokens). See `distillkit.capabilities`.
    """

    denoiser_kind: type = Denoiser
    solvers: dict = SOLVERS
    provides: frozenset[str] = frozenset({"denoiser", "features"})
    best: dict = {"solver": "heun", "steps": 18}

    def __init__(
        self,
        denoiser: nn.Module,
        event_shape: tuple[int, ...],
        classes: dict[str, int] | None = None,
        context: Sequence[str] = (),
    ):
        super().__init__()
        self.denoiser, self.event_shape = denoiser, tuple(event_shape)
        self.classes, self.context = dict(classes or {}), tuple(context)
        self.requires_grad_(False).eval()

    @classmethod
    def offers(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """`provides`, and `classes` where the teacher with these arguments has some."""
        return cls.provides | ({"classes"} if arguments.get("classes") else set())

    @property
    def process(self) -> Process:
        return self.denoiser.process

    @property
    def id(self) -> str:
        """A name for people."""
        return type(self).__name__

    def train(self, mode: bool = True):
        """A teacher stays in eval mode."""
        return super().train(False)

    def condition(self, batch: dict[str, Tensor]) -> Cond:
        """What the denoiser is conditioned on, from a batch."""
        names = (*self.classes, *self.context)
        missing = [name for name in names if name not in batch]
        if missing:
            raise ValueError(
                f"the teacher is conditioned on {missing}, but batches have {sorted(batch)}: choose data with these keys"
            )
        return {name: batch[name] for name in names}

    def null_condition(self, cond: Cond) -> Cond:
        """The unconditional counterpart of `cond`."""
        return null_condition(cond, self.classes)

    @property
    def guidable(self) -> bool:
        """Whether there is an unconditional counterpart to guide away from."""
        return bool(self.classes)

    def shape(self, num: int, cond: Cond) -> tuple[int, ...]:
        """Of `num` samples: a set takes its size from its mask, everything else is `event_shape`."""
        return set_shape(num, self.event_shape, cond.get("mask"))

    def start(self, noise: Tensor, cond: Cond, t: Tensor) -> Tensor:
        """The sample at the first time, without signal, from unit Gaussian noise [B, *event_shape]."""
        return pure_noise(self.process, noise, t)

    def grid(self, steps: int) -> Tensor:
        """The `steps` decreasing times that its sampler visits, float64."""
        return self.process.grid(steps)

    def guidance(self, t: Tensor, kappa: float) -> float:
        """The guidance scale at time t (a scalar); a teacher that is guided on an interval only says so here."""
        return kappa

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        cond: Cond,
        steps: int | None = None,
        solver: Any = None,
        kappa: float = 1.0,
        draw: Callable[[int], Tensor] | None = None,
        times: Tensor | None = None,
    ) -> Tensor:
        """The slow reference: `noise` [B, *event_shape] to samples.

        Args:
            noise: unit Gaussian.
            cond: one condition per sample.
            steps, solver: None means the teacher's best.
            kappa: guidance scale, 1 = none.
            draw: `draw(i)` feeds stochastic solvers; None draws from a generator with a fixed seed.
            times: the decreasing times to visit, instead of the teacher's grid of `steps`.
        """
        solver = self.solver(solver)
        if times is None:
            times = solver.times() if isinstance(solver, nn.Module) else self.grid(steps or self.best["steps"])
        return self.solve(noise, cond, solver, times, kappa, draw)

    def solve(
        self,
        noise: Tensor,
        cond: Cond,
        solver: Callable,
        times: Tensor,
        kappa: float = 1.0,
        draw: Callable[[int], Tensor] | None = None,
    ) -> Tensor:
        """`sample` with the solver itself, and with gradients where times or solver have some."""
        times, generator = times.to(noise.device), torch.Generator(noise.device).manual_seed(0)

        def fresh(i):
            return torch.randn(noise.shape, generator=generator, device=noise.device, dtype=noise.dtype)

        denoise = self.stepper(cond, kappa)
        return solver(denoise, self.process, self.start(noise, cond, times[0]), times, draw or fresh)

    def stepper(self, cond: Cond, kappa: float) -> Callable[[Tensor, Tensor], Tensor]:
        """`denoise(x, t)` for one run of a solver, which calls it along its times; where steps see the one before, says how."""
        null = self.null_condition(cond)
        return lambda x, t: guided(self.denoiser, x, t, cond, null, self.guidance(t, kappa))

    def solver(self, name: Any) -> Any:
        """A sampler by name; None means the teacher's best; a sampler itself (a learned one) is returned as it is."""
        name = name or self.best["solver"]
        if not isinstance(name, str):
            return name
        if name not in self.solvers:
            raise ValueError(f"there is no solver {name!r}; there are {', '.join(self.solvers)}")
        return self.solvers[name]

    def generate(
        self,
        num: int,
        cond: Cond,
        seed: int,
        solver: Any = None,
        times: Tensor | None = None,
        kappa: float = 1.0,
        chunk: int = 500,
    ) -> Tensor:
        """`num` samples of `sample`, on the CPU, from the noise that students start from with this seed.

        Args:
            num, cond, seed: as in `Student.sample`.
            solver, times, kappa: as in `sample`.
            chunk: samples of one network call.
        """
        noise, parts = self.noise(num, cond, seed), []
        with calls("sampling", self.denoiser, num * self.calls_per_sample(solver, times, kappa)):
            for rows in torch.arange(num).split(chunk):
                own = {name: value[rows].to(self.device) for name, value in cond.items()}
                parts.append(self.sample(noise[rows].to(self.device), own, None, solver, kappa, times=times).cpu())
        return torch.cat(parts)

    def calls_per_sample(self, solver: Any = None, times: Tensor | None = None, kappa: float = 1.0) -> int:
        """How often `generate` with these arguments sends each sample through the denoiser."""
        self.solver(solver)  # refuses one that there is not
        learned = isinstance(solver, nn.Module)
        if times is None:
            times = solver.times() if learned else range(self.best["steps"])
        passes = len(times) if learned else self.network_passes(solver or self.best["solver"], len(times))
        return passes * (1 if kappa in (0, 1) or not self.guidable else 2)

    def noise(self, num: int, cond: Cond, seed: int) -> Tensor:
        """Unit Gaussian noise for `num` samples, on the CPU."""
        return torch.randn(self.shape(num, cond), generator=torch.Generator().manual_seed(seed))

    def few_step_choices(self, passes: int, own: Sequence[float] = ()) -> list[tuple[str, Tensor]]:
        """Simple samplers with that many network passes, by name and times: what a student has to beat.

        One-pass solvers on the full grid, one that stops earlier, and `own` times (a student's). With few steps the full
        grid wastes its last one on a level without noise; with one step all choices are the same.
        """
        grids = [self.grid(passes), self.grid(passes + 1)[:-1]]
        if passes == 1:
            return [("ddim", grids[0])]
        own = torch.tensor(list(own), dtype=torch.float64)
        if len(own) and not any(torch.allclose(own, grid) for grid in grids):
            grids.append(own)
        return [(solver, times) for solver in FEW_STEP_SOLVERS for times in grids]

    def network_passes(self, solver: str, num_times: int) -> int:
        """Calls of the denoiser in a run of the solver over so many times."""
        return network_passes(solver, num_times)

    @property
    def device(self) -> torch.device:
        return next(self.buffers(), next(self.parameters(), torch.empty(0))).device

    def new_denoiser(self, network: nn.Module | None = None) -> Denoiser:
        """A trainable denoiser on the same process: a copy of the teacher's, or the given network in its place."""
        if network is None:
            copied = copy.deepcopy(self.denoiser)
        else:
            own = self.denoiser
            copied = Denoiser(copy.deepcopy(network), own.process, own.prediction, own.sigma_data)
        return copied.requires_grad_(True).train()

    def fingerprint(self) -> str:
        """sha256 of the weights and of how they are read."""
        digest = hashlib.sha256(json.dumps(to_spec(self.denoiser), sort_keys=True).encode())
        hash_weights(digest, self)
        return digest.hexdigest()
