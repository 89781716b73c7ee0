"""Base of methods whose student is a sampler with a few dozen learned numbers.

The network stays the teacher's, frozen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillkit import capabilities, checks
from distillkit.diffusion.denoiser import Cond
from distillkit.methods.base import Adam, Distiller
from distillkit.methods.few_step import KAPPAS, steps_of
from distillkit.methods.refusals import check_belongs, check_guidable, check_sizes
from distillkit.pairs import Pairs, ode_solver
from distillkit.progress import progress
from distillkit.students.sampler import SamplerStudent
from distillkit.teachers.base import BaseTeacher


class SamplerDistiller(Distiller):
    """A student that calls the teacher's own network with learned times and coefficients.

    Its one role, `student`, is an `nn.Module` that `Teacher.generate` takes for a solver. It starts
    as a plain sampler. At the end the learned and the plain sampler draw from the same noise, and
    the better one by the domain's headline metric is exported. So a run never ends worse than it
    began.

    Args:
        teacher: the frozen teacher.
        sampler: the student.
        student: its optimiser.
        kappa: guidance scale of the teacher, 1 = none.
        guard: number of samples in that comparison; 0 always keeps the learned sampler.
        num_pairs: number of the teacher's samples made at the start, to which the student is
            compared; by the teacher's best solver, of a Gaussian process DDIM if that one draws
            noise.
        pairs_path: a folder that keeps them for other runs, see `Pairs`; None makes them anew in
            memory.
    """

    def __init__(
        self,
        teacher: BaseTeacher,
        sampler: nn.Module,
        student: Adam,
        kappa: float = 1.0,
        guard: int = 2000,
        num_pairs: int = 4096,
        pairs_path: str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.within(KAPPAS, kappa=kappa)
        if guard != 0:
            checks.whole(2, why="0 compares nothing", guard=guard)
        check_guidable(teacher, kappa)
        self.requires = self.needs({"kappa": kappa})
        self.teacher, self.kappa, self.guard = teacher, kappa, guard
        noisy = "log_probs" not in teacher.provides  # then the pairs share a noise, which has to decide the sample
        self.pairs = Pairs(teacher, num_pairs, pairs_path, kappa, ode_solver(teacher, None) if noisy else None)
        self.add_role("student", student, student=sampler)
        self.keep_ema()
        self.verdict: dict[str, Any] = {}

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """`classes` or a condition with a null, where there is guidance."""
        return super().needs(arguments) | capabilities.guidance(arguments)

    def on_fit_start(self) -> None:
        self.pairs.make(self.trainer.datamodule.train, self.seed, self.trainer.strategy)

    def paired(self, batch: dict[str, Tensor]) -> tuple[Tensor | None, Tensor, Cond]:
        """As many random pairs as the batch has samples, see `Pairs.random`."""
        return self.pairs.random(len(next(iter(batch.values()))), self.generator("pairs"))

    @property
    def num_steps(self) -> int:
        return len(self.student.times())

    def condition(self, batch: dict[str, Tensor]) -> Cond:
        return self.teacher.condition(batch)

    def product(self) -> SamplerStudent:
        """The learned sampler, or the one that the comparison kept."""
        sampler = self.best_student
        if reset := self.choices()[self.verdict.get("kept", "learned")]:
            sampler = copy.deepcopy(sampler)
            for name in reset:
                sampler.get_parameter(name).data.zero_()
        return SamplerStudent(self.teacher, sampler, self.kappa)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "guard": self.verdict}

    def sample(self, cond: Cond, num: int, seed: int) -> Tensor:
        return self.product().sample(num, cond, seed)

    def check(self, data) -> None:
        check_belongs(self.teacher, data)
        check_sizes(self.teacher, data)

    # The guard

    def measure(self, seed: int) -> dict[str, float]:
        """The domain's metrics of `guard` samples of the student.

        An infinite headline alone, where they are no numbers.
        """
        num = self.guard or 256
        cond = self.teacher.condition(self.trainer.datamodule.conditions(num))
        samples = self.sample(cond, num, seed)
        if not samples.isfinite().all():
            return {self.evaluator.headline: math.inf}
        found = self.evaluator(samples, cond)
        if self.evaluator.headline not in found:  # without real data: against the teacher's, of other noise
            found |= self.evaluator.paired(samples, self.teacher.generate(num, cond, seed + 1, kappa=self.kappa), cond)
        return {name: float(v) for name, v in found.items()}

    @property
    def evaluator(self) -> Any:
        """The data's evaluator, on the device of the method."""
        return self.trainer.datamodule.evaluator(device=self.device)

    def best_of(self, measured: dict[str, dict[str, float]], reference: str, margin: float = 0.0) -> str:
        """The name with the best headline, among those that keep the targets.

        Where a metric has a target (an entropy, say), none may be further from it than `reference`
        is by more than a tenth of the target: a sampler that is sharper than its data does not win.
        Others than `reference` win by the share `margin`.
        """
        evaluator = self.evaluator
        real = evaluator.floor(self.guard or 256)
        known = real.keys() & measured[reference].keys()  # what is measured of scenes, say, is not of samples
        targets = [name for name, which in evaluator.better.items() if which == "target" and name in known]

        def off(name: str, metric: str) -> float:
            return abs(measured[name][metric] - real[metric])

        def admitted(name: str) -> bool:
            headline = math.isfinite(measured[name][evaluator.headline])
            return headline and all(off(name, m) <= off(reference, m) + abs(real[m]) / 10 for m in targets)

        def handicapped(name: str) -> float:
            return measured[name][evaluator.headline] / (1.0 if name == reference else 1.0 - margin)

        return min(filter(admitted, measured), key=handicapped, default=reference)

    def choices(self) -> dict[str, tuple[str, ...]]:
        """The samplers compared at the end: name to the parameters that are reset."""
        every = tuple(name for name, _ in self.best_student.named_parameters())
        coefficients = tuple(name for name in every if not name.startswith("times."))
        between = {"times alone": coefficients} if coefficients != every else {}
        return {"learned": (), **between, "plain": every}

    @torch.no_grad()
    def conclude(self) -> bool:
        if not self.guard or "kept" in self.verdict:
            return False
        measured = {}
        with progress("comparing samplers", len(self.choices())) as comparing:
            for name in self.choices():
                self.verdict["kept"] = name
                measured[name] = self.measure(GUARD_SEED)
                comparing.advance()
        kept = self.best_of(measured, "plain")
        headline = self.evaluator.headline
        scores = {name: metrics[headline] for name, metrics in measured.items()}
        self.verdict |= {"metric": headline, **scores, "kept": kept}
        if kept != "learned" and self.trainer.is_global_zero:
            figures = ", ".join(f"{name} {score:.4g}" for name, score in scores.items())
            print(f"guard ({headline}: {figures}): kept is {kept}", flush=True)
        return True

    # The verdict belongs to the step at which it was made, and is kept with it; what is trained
    # stays as it was

    def on_train_start(self) -> None:
        super().on_train_start()
        self.verdict = {name: value for name, value in self.verdict.items() if name == "times"}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["distillkit"]["verdict"] = self.verdict

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.verdict = dict(checkpoint["distillkit"].get("verdict", {}))


def first_times(num_steps: int | None, times: list[float] | None, grid: Callable[[int], Tensor]) -> list[float]:
    """The times at which a sampler starts, largest first.

    Args:
        num_steps: their number; None means six, or as many as there are times.
        times: the times; None means `grid(num_steps)`.

    Raises:
        ValueError: there are fewer than two, or number and times contradict.
    """
    num_steps = steps_of(num_steps, times, 6)
    times = grid(num_steps).tolist() if times is None else list(times)
    if len(times) < 2:
        raise ValueError(f"a sampler needs at least 2 steps to have something to learn, got {len(times)}")
    return times


GUARD_SEED = 4321
