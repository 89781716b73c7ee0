"""The one-step student that starts from an approximation, at a level of its own choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion.denoiser import Cond, numbers
from distillkit.diffusion.start import Start
from distillkit.networks.policy import Policy
from distillkit.spec import from_spec, named, to_spec
from distillkit.students.base import refuse
from distillkit.students.few_step import FewStepStudent

Known = Mapping[str, Sequence[int]]


def state_shape(event_shape: Sequence[int], context: Sequence[str], known: Known | None) -> list[int]:
    """The shape of what `state` returns for one sample of this shape.

    Raises:
        ValueError: a name is not among the conditions in `context`, or samples have no such frames.
    """
    if not known:
        return list(event_shape)
    if strange := sorted({*known} - {*context}):
        raise ValueError(f"known names {strange[0]!r}, which is not among the conditions {list(context)}: mend known")
    frames = [k for those in known.values() for k in those]
    size = event_shape[1] if len(event_shape) > 1 else 0
    if not all(-size <= k < size for k in frames):
        raise ValueError(f"known must name frames of samples, which have {size}, got {frames}: mend known")
    return [event_shape[0], len(frames), *event_shape[2:]]


def state(base: Tensor, cond: Cond, known: Known | None) -> Tensor:
    """What a policy sees of approximations: their errors where these are known, else themselves.

    Args:
        base: the approximations, [B, C, F, ...].
        cond: their conditions.
        known: names of conditions that hold n frames of the samples as they are, [B, C, n, ...],
            and which these are; negative ones count from the end.

    Returns:
        `|base - known|` of these frames, [B, C, sum of n, ...], or `base` where none is known.

    Raises:
        ValueError: a condition does not hold such frames.
    """
    if not known:
        return base
    wrong = []
    for name, frames in known.items():
        guessed = base[:, :, list(frames)]
        if cond[name].shape != guessed.shape:
            raise ValueError(
                f"cond[{name!r}] must hold frames {list(frames)} of the samples, {list(guessed.shape)}, got "
                f"{list(cond[name].shape)}: mend known"
            )
        wrong.append((guessed - cond[name]).abs())
    return torch.cat(wrong, 2)


class LeapStudent(FewStepStudent):
    """One step from a noised approximation, at the level that a policy chooses for each sample.

    The worse an approximation, the more noise it should start with (VideoScene, arXiv 2504.01956).

    Args:
        args, kwargs: as in `FewStepStudent`; there is one time, the largest level, and the start
            has a base.
        policy: gives the logits of the levels for the state of each approximation.
        actions: the levels among which it chooses, in the process's units.
        known: what the state is made of, see `state`.

    Raises:
        ValueError: the start has no base, there are several times, or the actions or the states
            are not the policy's.
    """

    def __init__(self, *args, policy: Policy, actions: Sequence[float], known: Known | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        process = self.denoiser.process
        checks.within(f"({process.t_min}, {process.t_max}]", actions=list(actions))
        if self.start.base is None or len(self._times) != 1 or len(actions) != policy.num:
            raise ValueError(
                f"a policy of {policy.num} actions chooses the level of one step from an approximation, got "
                f"{len(actions)} levels, {len(self._times)} steps and the base {self.start.base!r}"
            )
        seen = tuple(state_shape(self.event_shape, self.context, known))
        if policy.event_shape != seen:
            raise ValueError(f"the policy looks at states of shape {policy.event_shape}, the student's are {seen}")
        self.policy, self.actions, self.known = policy, list(actions), known

    @property
    def weights(self):
        return nn.ModuleDict({"denoiser": self.denoiser, "policy": self.policy})

    def levels(self, cond: Cond) -> Tensor:
        """The chosen levels for the approximations among some conditions, float64 [n]."""
        base = cond[self.start.base]
        base = self.start.repeated(base, base.new_empty(len(base), *self.event_shape, device="meta"))
        levels = torch.tensor(self.actions, dtype=torch.float64, device=base.device)
        return levels[self.policy(state(base, cond, self.known)).argmax(1)]

    def with_level(self, level: float) -> FewStepStudent:
        """Returns a student that starts all samples from one level; the weights are shared."""
        return FewStepStudent(
            self.denoiser,
            [level],
            self.event_shape,
            self.classes,
            self.renoise,
            self.config,
            self.context,
            self.noise_scale,
            Start(self.start.base, level),
            self.codec,
            self.examples,
            self.continuation,
        ).eval()

    def with_steps(self, num):
        if num != 1:
            raise ValueError("this student takes one step, from a level that it chooses: leave the number of steps out")
        return self

    def solve(self, noise, cond=None, draw=None):
        cond = cond or {}
        t = self.levels(cond)
        return self.denoiser(self.start(self.denoiser.process, noise, t, cond, self.noise_scale), t, cond)

    def facts(self):
        return {**super().facts(), "policy": to_spec(self.policy), "actions": self.actions, "known": self.known}

    @classmethod
    def own(cls, config, file, trust=(), home=None, weights=None):
        with named(file):
            policy = from_spec(config.get("policy"), trust, home, weights)
        actions, known = (config.get(name) for name in ("actions", "known"))
        sound = known is None or isinstance(known, dict) and all(map(_places, known.values()))
        refuse(config, file, {"policy": isinstance(policy, Policy), "actions": numbers(actions), "known": sound})
        return {"policy": policy, "actions": actions, "known": known}


def _places(value: object) -> bool:
    """Whether the value is a list of whole numbers, at least one."""
    return isinstance(value, list) and bool(value) and all(type(k) is int for k in value)
