"""The base of methods whose student is a network of its own, called once or a few times."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distillkit import capabilities, checks
from distillkit.codec import Codec
from distillkit.data import TensorData
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.process import Process
from distillkit.diffusion.sampling import Renoise, few_step
from distillkit.diffusion.start import Start
from distillkit.diffusion.times import Times
from distillkit.methods.base import Distiller
from distillkit.methods.refusals import check_belongs, check_guidable, check_sizes
from distillkit.students.few_step import FewStepStudent
from distillkit.students.makers import Copy, Leap, Maker
from distillkit.teachers.base import Teacher

KAPPAS = "[0, 1000]"  # guidance scales; 0 is no conditioning at all


class FewStepDistiller(Distiller):
    """A method whose student makes one network evaluation at each of its times.

    A subclass adds the role `student` and roles of its own, then calls `keep_ema`.

    Args:
        teacher: the frozen teacher.
        student_maker: makes the student's denoiser; None copies the teacher's.
        num_steps: network evaluations of the student; None means one, or the number of `times`.
        times: the student's times, largest first, in the process's units. None spreads `num_steps`
            of them over the process's own grid, from `t_init` down. A student that goes on from a
            folder keeps the folder's times, unless other times or another number are given.
        t_init: the largest time; None means the level at which sampling starts, the student's or
            else the teacher's, or the first of `times`.
        renoise: the noise between steps: `fresh`, the one that the student has `implied`, or the
            `first` one again. None means fresh, or that of the folder that the student goes on
            from.
        kappa: guidance scale of the teacher, 1 = none. Some methods take a range `[low, high]`: the
            student is then conditioned on kappa, drawn for each sample in training, and samples
            with any kappa of the range, see `Student.sample`.
        noise_scale: factor of the noise that the finished student draws, in [0, 10], see
            `few_step`; it is 1 in training. The paper on protein backbones takes 0.45.

    Raises:
        ValueError: a value is out of range, arguments contradict each other, or the teacher cannot
            be guided.
    """

    requires = frozenset({"denoiser"})
    maps = False  # whether the student learns a map from noise, which a blind network is not
    ranged = False  # whether kappa may be a range
    chooses = False  # whether it trains the policy of a student that chooses where it starts
    tells = frozenset({"kappa"})  # what the method may tell its student
    gamma: float | None = None  # new noise between the jumps of a student that is told their ends, see `jump_steps`
    renamed = {"network": "another network is student=fresh network=..., of the fake score fake_score=fresh"}

    def __init__(
        self,
        teacher: Teacher,
        student_maker: Maker | None = None,
        num_steps: int | None = None,
        times: list[float] | None = None,
        t_init: float | None = None,
        renoise: Renoise | None = None,
        kappa: float | list[float] = 1.0,
        noise_scale: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.within("[0, 10]", noise_scale=noise_scale)
        checks.within(KAPPAS, kappa=kappa)
        self.requires = self.needs({"kappa": kappa})
        self.kappa_range: tuple[float, float] | None = None
        if isinstance(kappa, list | tuple):
            if not self.ranged:
                raise ValueError(f"kappa of {type(self).__name__} is one number, got the range {list(kappa)}: give one")
            if len(kappa) != 2 or not kappa[0] < kappa[1]:
                raise ValueError(f"kappa is a number or a range [low, high], got {list(kappa)}")
            self.kappa_range, kappa = (float(kappa[0]), float(kappa[1])), sum(kappa) / 2
        for scale in self.kappa_range or (kappa,):
            check_guidable(teacher, scale)
        self.teacher, self.kappa, self.student_maker = teacher, kappa, student_maker or Copy()
        brought = self.student_maker.sampling
        self.start: Start = brought.get("start", teacher.start)
        self.start.check(teacher.process, teacher.context)
        self._check_level(t_init, times)
        if times is None and num_steps in (None, len(brought.get("times", ()))):
            times = brought.get("times")
        times = times_of(teacher.process, num_steps, times, t_init, self.start.level)
        self.step_times = torch.tensor(times, dtype=torch.float64)  # no buffer, which half precision would round
        self.num_steps, self.noise_scale = len(times), noise_scale
        self.renoise = brought.get("renoise", "fresh") if renoise is None else renoise
        if "policy" in brought and not self.chooses:
            warnings.warn(
                f"the student to go on from chooses by a policy where a sample starts, which {type(self).__name__} does not "
                f"keep: all samples start at {times[0]:g} now; method=videoscene keeps the policy",
                stacklevel=2,
            )

    def _check_level(self, t_init: float | None, times: Sequence[float] | None) -> None:
        """Refuse a first time that is not the level at which the maker's student starts."""
        level = getattr(self.student_maker.sampling.get("start"), "level", None)
        first = t_init if t_init is not None else next(iter(times or ()), None)
        if level is not None and first is not None and not math.isclose(first, level):
            own, key = isinstance(self.student_maker, Leap), "times" if t_init is None else "t_init"
            mend = f"say student.level={first:g} in its place" if own else f"leave model.{key} out"
            raise ValueError(f"the student starts at {level:g}, and model.{key} at {first:g}: {mend}")

    def make_student(self) -> Denoiser:
        """The student's denoiser, conditioned on kappa if that is a range."""
        made = self.student_maker.make(self.teacher)
        if strange := sorted(made.told.keys() - self.tells):
            raise ValueError(
                f"the student to go on from was told {' and '.join(strange)}, which {type(self).__name__} does not tell: take "
                f"another student or method"
            )
        blind = getattr(getattr(made, "network", None), "blind", False)
        if blind and self.maps:
            raise ValueError(
                f"{type(made.network).__name__} looks at the conditions alone, and {type(self).__name__} learns a map from "
                f"noise: take a method that judges samples alone (sds, vsd, asd, dmd, sid), or student=copy"
            )
        if blind and self.num_steps > 1:
            raise ValueError(
                f"{type(made.network).__name__} looks at the conditions alone, so that further steps change nothing, got "
                f"{self.num_steps}: leave model.num_steps at 1"
            )
        return self.knowing_kappa(made)

    def knowing_kappa(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser, conditioned on kappa from now on if that is a range.

        Raises:
            ValueError: the denoiser is conditioned on another range of kappa already.
        """
        knows = denoiser.told.get("kappa", {}).get("range")
        if knows and tuple(knows) != self.kappa_range:
            given = list(self.kappa_range) if self.kappa_range else self.kappa
            mend = f"say model.kappa={list(knows)}" if self.ranged else "take one that was not"
            raise ValueError(f"the student to go on from was told a kappa in {list(knows)}, here it is {given}: {mend}")
        if self.kappa_range and not knows:
            denoiser.tell("kappa", range=self.kappa_range)
        return denoiser

    @property
    def guides(self) -> bool:
        """Whether the teacher is guided: kappa is a range or not 1."""
        return self.kappa_range is not None or self.kappa != 1

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """The needs of the base, and for guidance conditions that have a null."""
        return super().needs(arguments) | capabilities.guidance(arguments)

    # What a student's network may say of a step, see `networks.base`

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        network = getattr(getattr(self, "student", None), "network", None)
        if hasattr(network, "progress"):
            network.progress(self.done)
        loss = super().training_step(batch, batch_idx)
        if self.turn(self.global_step) == "student" and (penalty := getattr(network, "penalty", None)) is not None:
            self.note("student/penalty", penalty)
            loss = loss + penalty
        return loss

    # Conditions

    def condition(self, batch: dict[str, Tensor]) -> Cond:
        return self.teacher.condition(batch)

    def null(self, cond: Cond) -> Cond:
        return self.teacher.null_condition(cond)

    def with_kappa(self, cond: Cond, num: int, purpose: str) -> Cond:
        """The conditions, with a kappa drawn for each of `num` samples if that is a range."""
        if not self.kappa_range:
            return cond
        low, high = self.kappa_range
        return {**cond, "kappa": low + (high - low) * self.rand(num, purpose)}

    # Noise levels

    def draw_times(self, times: Times, num: int, purpose: str) -> Tensor:
        """`num` noise levels [num] of `times`, as they are at this step."""
        return times(self.rand(num, purpose), self.teacher.process, self.done if times.changes else None)

    def check_ends(self, *levels: Times) -> None:
        """Raises ValueError if levels change in shares of a run whose end is not known."""
        if any(times.changes for times in levels) and self.total == math.inf:
            raise ValueError("noise levels change in shares of the run, whose end is not known: give trainer.max_steps")

    # Samples in training

    def generate(
        self,
        shape: tuple[int, ...],
        cond: Cond,
        purpose: str,
        step: int,
        noise_scale: float = 1.0,
        denoiser: Denoiser | None = None,
    ) -> Tensor:
        """Samples after `step`, with gradient in that step only; the noise is that of `purpose`.

        Those of the student, or of another `denoiser` in its place.
        """
        denoiser = self.student if denoiser is None else denoiser
        x_g, _ = few_step(
            lambda x, t: denoiser(x, t, cond),
            self.teacher.process,
            self.step_times,
            lambda i: noise_scale * self.randn(shape, f"{purpose} noise {i}"),
            self.renoise,
            step,
            lambda eps, t: self.start(self.teacher.process, eps, t, cond),
        )
        return x_g

    def reward(self, x_g: Tensor, cond: Cond, batch: dict[str, Tensor]) -> Tensor:
        """The data's reward of samples made for the conditions of a batch, [B].

        Raises:
            ValueError: the reward is not one number for each sample.
        """
        data = self.trainer.datamodule
        reward = data.reward(self.teacher.codec.decode(x_g, cond), batch)
        if reward.shape != (len(x_g),):
            raise ValueError(
                f"{type(data).__name__}.reward must give one number for each of {len(x_g)} samples, got "
                f"{list(reward.shape)}"
            )
        return reward

    # Checkpoints say in which waves the student's weights see the level

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["distillkit"]["fastest"] = self.fastest_wave

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        here = self.fastest_wave
        made = checkpoint["distillkit"].get("fastest", here)
        if made != here:
            made, here = ("null" if fastest is None else fastest for fastest in (made, here))
            raise ValueError(
                f"the checkpoint's student was trained with model.fastest={made}, here it is {here}: say "
                f"model.fastest={made}"
            )

    @property
    def fastest_wave(self) -> float | None:
        """`Denoiser.fastest` of the student; a decoder that is trained has no such thing."""
        return getattr(self.student, "fastest", None)

    # The product

    def product(self) -> FewStepStudent:
        return self.few_step_student(self.best_student, self.teacher.codec)

    def untrained(self) -> FewStepStudent | None:
        """See `Distiller`; it is made once more, for a maker gives the same every time."""
        if self.student_maker.copies:
            return None
        return self.few_step_student(self.make_student().to(self.device), self.teacher.codec)

    def few_step_student(
        self, denoiser: Denoiser, codec: Codec, kind: type[FewStepStudent] = FewStepStudent, **own: Any
    ) -> FewStepStudent:
        """A student with the run's times and the teacher's surroundings; a `kind` has its `own`."""
        teacher = self.teacher
        return kind(
            denoiser,
            self.step_times.tolist(),
            teacher.event_shape,
            teacher.classes,
            self.renoise,
            context=teacher.context,
            noise_scale=self.noise_scale,
            start=self.start,
            codec=codec,
            continuation=teacher.continuation,
            gamma=self.gamma,
            **own,
        )

    def facts(self) -> dict[str, Any]:
        scene = {"scene": True} if self.makes_scenes else {}
        about = {"kappa": self.kappa, "teacher": {"id": self.teacher.id, "hash": self.teacher_hash()}}
        return {**super().facts(), **about, **scene}

    def sample(self, cond: Cond, num: int, seed: int) -> Tensor:
        return self.product().sample(num, cond, seed)

    def check(self, data) -> None:
        check_belongs(self.teacher, data)
        check_sizes(self.teacher, data)
        self._check_scenes(data)

    @property
    def makes_scenes(self) -> bool:
        """Whether the student is a scene, see `makers.Scene`."""
        return "scene" in getattr(self.student_maker, "provides", ())

    def _check_scenes(self, data) -> None:
        """Raises ValueError if the student makes other scenes than the data ask for."""
        if not self.makes_scenes or not isinstance(data.train, TensorData):
            return
        network = self.student.network
        prompts = zip(getattr(network, "texts", ()), getattr(data, "prompts", ()), strict=False)
        for number, (made, asked) in enumerate(prompts):
            if made != asked:
                raise ValueError(
                    f"prompt {number} is {asked!r} in the data, and {made!r} to the student: give it the prompts that it was "
                    f"made for"
                )
        if hasattr(network, "check_context"):
            network.check_context(self.condition(data.train.tensors))


def steps_of(num_steps: int | None, times: Sequence[float] | None, default: int) -> int:
    """The student's number of steps: `num_steps`, the number of `times`, or `default`.

    Raises:
        ValueError: `num_steps` and `times` contradict each other.
    """
    if num_steps is not None:
        checks.whole(1, 10_000, num_steps=num_steps)
    if times is None:
        return default if num_steps is None else num_steps
    checks.finite(times=times)
    if num_steps not in (None, len(times)):
        raise ValueError(
            f"num_steps={num_steps} and the {len(times)} times {list(times)} contradict: give as many times, or leave one of "
            f"them out (model.num_steps=null or model.times=null)"
        )
    return len(times)


def times_of(
    process: Process, num_steps: int | None, times: list[float] | None, t_init: float | None, level: float | None
) -> list[float]:
    """The student's times, largest first: `times`, or the process's own grid from `t_init` down.

    Without `t_init` it goes from `level` down, where sampling starts.

    Raises:
        ValueError: the arguments contradict each other, or the times do not fall or are out of
            range.
    """
    num_steps = steps_of(num_steps, times, 1)
    if t_init is not None:
        checks.within(f"({process.t_min}, {process.t_max}]", t_init=t_init)
    if times is None:
        return process.grid(num_steps + 1, level if t_init is None else t_init)[:-1].tolist()
    if not times or not times[-1] > 0 or not times[0] <= process.t_max or sorted(set(times), reverse=True) != times:
        raise ValueError(f"times must fall and lie in (0, {process.t_max}], got {times}")
    if t_init is not None and not math.isclose(t_init, times[0]):
        raise ValueError(f"t_init={t_init} and times={times} contradict: leave one of them out (null)")
    return times
