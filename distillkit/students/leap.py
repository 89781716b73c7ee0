"""The one-step student that starts from an approximation, at a level of its own choice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion.denoiser import Cond, numbers
from distillkit.diffusion.start import Start
from distillkit.networks.policy import Policy
from distillkit.spec import from_spec, named, to_spec
from distillkit.students.base import refuse
from distillkit.students.few_step import FewStepStudent


class LeapStudent(FewStepStudent):
    """One step from a noised approximation, at the level that a policy chooses for each sample.

    The worse an approximation, the more noise it should start with (VideoScene, arXiv 2504.01956).

    Args:
        args, kwargs: as in `FewStepStudent`; there is one time, the largest level, and the start
            has a base.
        policy: gives the logits of the levels for each approximation.
        actions: the levels among which it chooses, in the process's units.

    Raises:
        ValueError: the start has no base, there are several times, or the actions or the samples
            are not the policy's.
    """

    def __init__(self, *args, policy: Policy, actions: Sequence[float], **kwargs):
        super().__init__(*args, **kwargs)
        process = self.denoiser.process
        checks.within(f"({process.t_min}, {process.t_max}]", actions=list(actions))
        if self.start.base is None or len(self._times) != 1 or len(actions) != policy.num:
            raise ValueError(
                f"a policy of {policy.num} actions chooses the level of one step from an approximation, got "
                f"{len(actions)} levels, {len(self._times)} steps and the base {self.start.base!r}"
            )
        if policy.event_shape != tuple(self.event_shape):
            raise ValueError(
                f"the policy looks at samples of shape {policy.event_shape}, the student's are {tuple(self.event_shape)}"
            )
        self.policy, self.actions = policy, list(actions)

    @property
    def weights(self):
        return nn.ModuleDict({"denoiser": self.denoiser, "policy": self.policy})

    def levels(self, cond: Cond) -> Tensor:
        """The chosen levels for the approximations among some conditions, float64 [n]."""
        base = cond[self.start.base]
        base = self.start.repeated(base, base.new_empty(len(base), *self.event_shape, device="meta"))
        levels = torch.tensor(self.actions, dtype=torch.float64, device=base.device)
        return levels[self.policy(base).argmax(1)]

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
        return {**super().facts(), "policy": to_spec(self.policy), "actions": self.actions}

    @classmethod
    def own(cls, config, file, trust=(), home=None, weights=None):
        with named(file):
            policy = from_spec(config.get("policy"), trust, home, weights)
        refuse(config, file, {"policy": isinstance(policy, Policy), "actions": numbers(config.get("actions"))})
        return {"policy": policy, "actions": config["actions"]}
