"""VideoScene (arXiv 2504.01956): consistency from coarse samples, at a level that is chosen."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.hops import Hops
from distillkit.losses.bandit import reinforce
from distillkit.losses.consistency import Distance, distance
from distillkit.losses.reduce import mean_per_sample
from distillkit.methods.base import WEIGHTS, Adam
from distillkit.methods.consistency import Consistency
from distillkit.networks.policy import Policy
from distillkit.students.leap import Known, LeapStudent, state, state_shape
from distillkit.students.makers import Maker
from distillkit.teachers.base import Teacher

LEAST = 1e-12  # mean squared error that is told from none


class VideoScene(Consistency):
    """Consistency distillation along trajectories that leap over the largest noise levels.

    The states are those of a noised approximation x_r of each sample, such as the render of a
    coarse reconstruction, at levels t up to T', where `student=leap` starts:

        x_t = alpha_t x_r + sigma_t eps,   d(J(x_t, t), sg[J(x_s, s)]) + lambda_gt d(J(x_t, t), x_0)

    x_s is x_t after one step of the teacher, J the student. Without `lambda_gt` the fixed point is
    the teacher's sampler from x_t on. On Gaussian data of mean m a coarse sample of mean m + delta
    then becomes one of mean `m + delta alpha_t S / sqrt(alpha_t^2 S^2 + sigma_t^2)`, with exact
    steps. The higher the level, the more of its errors is mended, and the less is kept of what it
    got right.

    A policy chooses the level for each x_r among `actions` (DDPNet, a contextual bandit). It climbs
    its reward by REINFORCE, see `losses/bandit.py`, of which the student gets no gradient. Its
    entropy is rewarded too, without which it soon has one level for all. So it comes to rest at
    `pi(a) ~ exp(r(a) / entropy)`. Its state is x_r, or, where some frames of x_0 are `known`, how
    far x_r is from them: in a short run that tells good approximations from bad ones, and x_r alone
    does not.

    In network passes a student's step costs 2 of the student and 1 of the teacher (of Heun 2), a
    policy's step one of the student without gradient for each draw.

    Args:
        teacher: the frozen teacher.
        student_maker: `Leap`, which says the base and T'.
        hops: the law of the hops, from T' down.
        hop: the teacher's step, `ddim` or `heun`.
        distance, c: as in `Consistency`.
        lambda_gt: weight of the distance to the true sample, in [0, 1000]; it draws the student to
            the conditional mean, which is blurred and has the least squared error.
        actions: number of levels among which the policy chooses, 2 to 1000: T' and further ones on
            the process's own grid. A student that goes on from a folder with a policy keeps both.
        draws: number of levels that are tried for each sample in a policy's step, 2 to 100.
        reward: `mse` for `- mean (J(x_t, t) - x_0)^2`; `log_mse` for minus its logarithm, which is
            the PSNR in other units: samples whose errors are large then do not rule the others.
        entropy: weight of the policy's entropy in nats, in units of the reward, in [0, 1000].
        known: conditions that hold frames of the samples as they are, and which, such as `{first:
            [0, -1]}`; see `students/leap.py`.
        student, policy: settings of the optimisers.
        kwargs: as in `Consistency`.

    Raises:
        ValueError: a value is out of range, or the student does not start from an approximation.
    """

    requires = Consistency.requires | {"approximation"}
    chooses = True
    proof = {}  # no law of the plane has approximations

    def __init__(
        self,
        teacher: Teacher,
        student_maker: Maker | None = None,
        hops: Hops | None = None,
        hop: Literal["ddim", "heun"] = "ddim",
        distance: Distance = "huber",
        c: float = 0.001,
        lambda_gt: float = 0.0,
        actions: int = 8,
        draws: int = 4,
        reward: Literal["mse", "log_mse"] = "log_mse",
        entropy: float = 0.05,
        known: dict[str, list[int]] | None = None,
        student: Adam = Adam(lr=3e-5, updates=4),
        policy: Adam = Adam(lr=3e-3),
        **kwargs,
    ):
        checks.within(WEIGHTS, lambda_gt=lambda_gt, entropy=entropy)
        checks.whole(2, 1000, "among which it chooses", actions=actions)
        checks.whole(2, 100, "each is the baseline of the others", draws=draws)
        super().__init__(
            teacher,
            hops,
            hop,
            student_maker=student_maker,
            segments=1,
            ends="edge",
            distance=distance,
            c=c,
            gan=0.0,
            num_steps=1,
            student=student,
            **kwargs,
        )
        if self.start.base is None:
            raise ValueError("VideoScene starts from an approximation of the sample: say student=leap")
        self.lambda_gt, self.draws, self.reward_of, self.entropy = lambda_gt, draws, reward, entropy
        levels = teacher.process.grid(actions + 1, self.top)[:-1].tolist()
        self.known: Known | None = known
        seen = state_shape(teacher.event_shape, teacher.context, known)
        made, levels = self.student_maker.sampling.get("policy") or (Policy(seen, actions), levels)
        if len(levels) != actions:
            raise ValueError(
                f"the student to go on from chooses among {len(levels)} levels: say model.actions={len(levels)}"
            )
        if list(made.event_shape) != seen:
            raise ValueError(
                f"the policy to go on with looks at {list(made.event_shape)}, here its state is {seen}: say "
                f"model.known as the run had it"
            )
        self.actions = torch.tensor(levels, dtype=torch.float64)  # no buffer, which half precision would round
        self.add_role("policy", policy, policy=copy.deepcopy(made).requires_grad_(True).train())

    # Checkpoints say what the policy's actions mean

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["distillkit"]["actions"] = self.actions.tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        here = self.actions.tolist()
        made = checkpoint["distillkit"].get("actions", here)
        if len(made) != len(here) or not math.isclose(made[0], here[0], rel_tol=1e-4):
            raise ValueError(
                f"the checkpoint's policy chooses among {len(made)} levels from {made[0]:.6g} down, here there are {len(here)} "
                f"from {here[0]:.6g} down: say student.level={made[0]:.6g} model.actions={len(made)}"
            )

    # The student

    def origin(self, batch: dict[str, Tensor], cond: Cond) -> Tensor:
        """The approximations, [B, ...]."""
        x_r = cond[self.start.base]
        return self.start.repeated(x_r, x_r.new_empty(self.teacher.shape(len(x_r), cond), device="meta"))

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        ends = self.hop_ends(batch, "student")
        loss = self.agreement(ends)
        if not self.lambda_gt:
            return loss
        x_0, mask = self.teacher.codec.encode(batch), ends.cond.get("mask")
        truth = (ends.weight * distance(ends.far, x_0, self.distance, self.c, mask)).mean()
        self.note("student/truth", truth)
        return loss + self.lambda_gt * truth

    # The policy

    def policy_loss(self, batch: dict[str, Tensor]) -> Tensor:
        cond = self.condition(batch)
        log_policy = self.policy(state(self.origin(batch, cond), cond, self.known)).log_softmax(1)
        probabilities = log_policy.detach().exp()
        actions = torch.multinomial(probabilities, self.draws, True, generator=self.generator("policy actions"))
        rewards, entropy = self.rewards(batch, cond, actions), -(log_policy.exp() * log_policy).sum(1).mean()
        self.note("policy/reward", rewards.mean())
        self.note("policy/level", self.actions.to(probabilities)[log_policy.argmax(1)].mean())
        self.note("policy/entropy", entropy)
        return reinforce(log_policy, actions, rewards).mean() - self.entropy * entropy

    @torch.no_grad()
    def rewards(self, batch: dict[str, Tensor], cond: Cond, actions: Tensor) -> Tensor:
        """What the student's samples from each of the levels are worth, [B, draws].

        All levels of a sample have the same noise.
        """
        x_0, x_r = self.teacher.codec.encode(batch), self.origin(batch, cond)
        eps = self.randn(x_0.shape, "policy eps")
        told = self.with_kappa(cond, len(x_0), "policy kappa") if self.tell_kappa else cond
        found = []
        for t in self.actions.to(x_0.device, torch.float32)[actions].unbind(1):
            x_g = self.student(self.teacher.process.add_noise(x_r, eps, t), t, told)
            found.append(mean_per_sample((x_g - x_0).square(), cond.get("mask")).flatten())
        errors = torch.stack(found, 1)
        return -errors if self.reward_of == "mse" else -errors.clamp_min(LEAST).log()

    # The product

    def product(self) -> LeapStudent:
        own: dict[str, Any] = {"policy": self.policy, "actions": self.actions.tolist(), "known": self.known}
        return self.few_step_student(self.best_student, self.teacher.codec, LeapStudent, **own)
