"""The teacher of discrete diffusion: a frozen `DiscreteDenoiser` and its slow samplers."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.devices import in_chunks
from distillkit.diffusion.denoiser import Cond
from distillkit.discrete.denoiser import DiscreteDenoiser, Guided
from distillkit.discrete.exact import Exact
from distillkit.discrete.jump import jump_your_steps
from distillkit.discrete.learned import LearnedSampler
from distillkit.discrete.noise import Draws, fresh
from distillkit.discrete.process import Absorbing
from distillkit.discrete.sampling import SAMPLERS, network_passes, sample
from distillkit.progress import calls
from distillkit.teachers.base import BaseTeacher
from distillkit.teachers.folder import Folder

CELLS = 2**27  # sequences x positions x states of a call, half a GiB of the network's output in float32


class DiscreteTeacher(BaseTeacher):
    """A frozen discrete diffusion model of sequences of d tokens.

    Args:
        denoiser: `(x_t, t, cond) -> Reading` of log pi [B, d, S].
        event_shape: (d,).
        classes, context, codec, continuation, dtype: as in `BaseTeacher`.
    """

    denoiser_kind = DiscreteDenoiser
    solvers = SAMPLERS
    provides = frozenset({"log_probs"})
    best = {"solver": "tweedie", "steps": 128}
    chunk = 256

    @property
    def most(self) -> int:
        return max(1, CELLS // (self.event_shape[0] * self.process.num_states))

    def grid(self, steps: int) -> Tensor:
        return self.process.grid(steps)

    @torch.no_grad()
    def sample(
        self,
        noise: Draws,
        cond: Cond,
        steps: int | None = None,
        solver: str | None = None,
        kappa: float = 1.0,
        times: Tensor | None = None,
    ) -> Tensor:
        """The slow reference: clean tokens [B, d].

        Args:
            noise: `noise(0)` makes the start, `noise(1 + i)` is that of call i of the denoiser.
            cond, steps, solver, kappa: as in `BaseTeacher`.
            times: the decreasing times to visit, instead of the teacher's grid of `steps`.
        """
        start = self.process.start(noise(0))
        step = self.solver(solver)
        if isinstance(step, LearnedSampler):
            step, times = step.steps(), step.times()
        times = (self.grid(steps or self.best["steps"]) if times is None else times).to(start.device)
        denoiser = self.denoiser if kappa == 1 else Guided(self.denoiser, self.null_condition, kappa)
        return sample(denoiser, start, times, lambda i: noise(1 + i), step, cond)

    def make(self, num, cond, seed, solver, times, kappa, chunk):
        (length,), device = self.event_shape, self.device

        def made(rows: slice) -> Tensor:
            noise = fresh(seed, rows.stop - rows.start, length, device, rows.start)
            own = {name: value[rows].to(device) for name, value in cond.items()}
            return self.sample(noise, own, None, solver, kappa, times)

        with calls("sampling", self.denoiser, num * self.calls_per_sample(solver, times, kappa)):
            return in_chunks(made, num, chunk, length, device)

    def clean_samples(self, num: int, cond: Cond, seed: int, kappa: float = 1.0) -> Tensor:
        """`num` exact draws from the model if it has them, else samples of the slow reference."""
        if isinstance(self.denoiser, Exact) and kappa == 1:
            return self.denoiser.draw(num, torch.Generator().manual_seed(seed))
        return self.generate(num, cond, seed, kappa=kappa, decode=False)

    def few_step_choices(self, passes, own=()):
        """Every sampler that aims at the model's law, on even times.

        Tweedie's also has squared times, those of Jump-Your-Steps and the `own` ones. Samplers with
        two calls a step get the most steps that fit. The confidence sampler seeks modes and is left
        out.
        """
        even = self.grid(passes)
        if passes == 1:
            return [("tweedie", even)]
        left_out = {"confidence"} if isinstance(self.process, Absorbing) else {"confidence", "first_hitting"}
        choices = []
        for name, step in SAMPLERS.items():
            if name not in left_out:
                choices.append((name, self.grid((passes - 1) // step.calls + 1)))
        if not self.classes and not self.context:  # a schedule for all conditions
            x_0 = self.clean_samples(64, {}, seed=0).to(self.device)
            shared = fresh(0, *x_0.shape, self.device)(0)
            choices.append(("tweedie", jump_your_steps(self.denoiser, x_0, passes, shared).cpu()))
        squared = even**2
        own = torch.tensor(list(own), dtype=torch.float64)
        choices += [("tweedie", times) for times in (squared, own) if len(times)]
        return choices

    def network_passes(self, solver, num_times):
        return network_passes(SAMPLERS[solver], num_times)


class DiscreteFolderTeacher(Folder, DiscreteTeacher):
    """A discrete diffusion model from `model.safetensors` and `teacher.yaml`.

    See `distillkit.teachers.folder.Folder`.
    """
