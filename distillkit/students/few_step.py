"""The few-step student, which has a network of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from distillkit.codec import Codec
from distillkit.devices import in_chunks
from distillkit.diffusion.denoiser import Cond, Denoiser, check_facts, number, numbers
from distillkit.diffusion.process import Process
from distillkit.diffusion.sampling import Renoise, draws, few_step, jump_steps
from distillkit.diffusion.start import Start
from distillkit.files import load_weights
from distillkit.progress import calls
from distillkit.rollouts import Continuation
from distillkit.spec import from_spec, named, to_spec
from distillkit.students.base import MOST_STEPS, WEIGHTS, Student, check_origin, load_codec, refuse

END = "end"  # the told condition of a student of jumps: where the jump ends
SIDE = "side"  # the told condition of a student that also knows its own samples' trajectories: 0 for those of data
EARLIER = {True: "fresh", False: "implied"}  # words of earlier folders


class FewStepStudent(Student):
    """A few-step sampler: a denoiser and the times at which it is called.

    Args:
        denoiser: `(x_t, t, cond) -> x_0`.
        times: decreasing times of the steps.
        event_shape, classes, context, codec, config, examples, continuation: as in `Student`.
        renoise: noise between steps, see `few_step`.
        noise_scale: factor on all noise that it draws, see `few_step`; training uses 1.
        start: the input of the first step; None means pure noise.
        gamma: share of new noise in [0, 1], see `jump_steps`: of a student whose denoiser is told
            the `end` of its jump. None for others.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        times: Sequence[float],
        event_shape: Sequence[int],
        classes: dict[str, int] | None = None,
        renoise: Renoise = "fresh",
        config: dict[str, Any] | None = None,
        context: Sequence[str] = (),
        noise_scale: float = 1.0,
        start: Start | None = None,
        codec: Codec | None = None,
        examples: Cond | None = None,
        continuation: Continuation | None = None,
        gamma: float | None = None,
    ):
        super().__init__(event_shape, classes, context, codec, config, examples, continuation)
        self.denoiser, self._times = denoiser, list(times)
        self.renoise, self.noise_scale, self.start, self.gamma = renoise, noise_scale, start or Start(), gamma
        self.start.check(denoiser.process, self.context)
        if (END in denoiser.told) != (gamma is not None):
            raise ValueError(f"a student has a gamma if it is told the end of its jumps, and only then, got {gamma}")

    @property
    def times(self) -> list[float]:
        return self._times

    @property
    def told(self):
        numbers = {name: kind["range"] for name, kind in self.denoiser.told.items() if "range" in kind}
        return {name: tuple(ends) for name, ends in numbers.items() if name != END}

    @property
    def draws(self) -> int:
        """The number of draws of noise in one sample."""
        return draws(self.renoise if self.gamma is None else "fresh" if self.gamma else "implied", self.num_steps)

    @property
    def weights(self) -> nn.Module:
        return self.denoiser

    @property
    def network(self):
        return getattr(self.denoiser, "network", None)

    def merged(self) -> FewStepStudent:
        """Returns the student with adapters merged into its network, or itself without any."""
        plain = self.denoiser.merged()
        if plain is self.denoiser:
            return self
        made = copy.copy(self)
        made._modules = {**self._modules, "denoiser": plain.requires_grad_(False).eval()}
        made.config = {**self.config, **made.facts()}
        return made

    def with_steps(self, num: int) -> FewStepStudent:
        """Returns the student with `num` steps; the weights are shared.

        Another number than its own spreads them as training does: over the process's grid from its
        first time on. A student is good only at times that it was trained at.
        """
        if num == self.num_steps:
            return self
        made = copy.copy(self)
        made._times = self.denoiser.process.grid(num + 1, self.times[0])[:-1].tolist()
        return made

    @torch.no_grad()
    def forward(self, noise: Tensor, cond: Cond | None = None, draw: Callable[[int], Tensor] | None = None) -> Tensor:
        """Map unit noise [B, *event_shape] to undecoded samples; `draw(i)` is step i's noise."""
        return self.solve(noise, cond, draw)

    def solve(self, noise: Tensor, cond: Cond | None = None, draw: Callable[[int], Tensor] | None = None) -> Tensor:
        """`forward` with gradients, which reach the noise of all steps."""
        times, cond = torch.tensor(self.times, dtype=torch.float64, device=noise.device), cond or {}
        process = self.denoiser.process
        cond |= {name: noise.new_zeros(len(noise), dtype=torch.int64) for name in self.denoiser.told if name == SIDE}

        def drawn(i: int) -> Tensor:
            return noise if i == 0 else draw(i)

        def begin(eps: Tensor, t: Tensor) -> Tensor:
            return self.start(process, eps, t, cond, self.noise_scale)

        def jumping(x: Tensor, t: Tensor, end: Tensor) -> Tensor:
            return self.denoiser(x, t, {**cond, END: told_end(process, end, x)})

        if END in self.denoiser.told:
            return jump_steps(jumping, process, times, drawn, self.gamma, begin, self.noise_scale)
        return few_step(
            lambda x, t: self.denoiser(x, t, cond),
            process,
            times,
            drawn,
            self.renoise,
            start=begin,
            noise_scale=self.noise_scale,
            through=True,
        )[0]

    def sample(self, n=64, cond=None, seed=0, batch_size=1000, decode=True, kappa=None):
        cond = self.checked_condition(n, cond, kappa)
        shape = self.codec.data_shape(self.event_shape) if decode else self.event_shape
        if not n:
            return torch.empty(0, *shape)
        return self.denoised(self.noise(n, cond, seed), cond, batch_size, decode)

    def noise(self, n: int, cond: Cond, seed: int) -> list[Tensor]:
        """All draws of unit noise for `n` samples, on the CPU: the same on every device."""
        generator, shape = torch.Generator().manual_seed(seed), self.codec.shape(n, self.event_shape, cond)
        return [torch.randn(shape, generator=generator) for _ in range(self.draws)]

    def denoised(self, draws: Sequence[Tensor], cond: Cond, batch_size: int, decode: bool = True) -> Tensor:
        """The samples of given draws of noise; the other arguments are those of `sample`."""
        device, n = self.device, len(draws[0])

        def made(rows: slice) -> Tensor:
            part = {name: value[rows].to(device) for name, value in cond.items()}
            part = self.codec.conditions(part, self.event_shape)
            x = self(draws[0][rows].to(device), part, lambda i: draws[i][rows].to(device))
            return self.codec.decode(x, part) if decode else x

        with calls("sampling", self.denoiser, n * self.num_steps):
            return in_chunks(made, n, batch_size, math.prod(draws[0].shape[1:]), device)

    def facts(self):
        where = {} if self.start.pure else {"start": to_spec(self.start)}
        where |= {} if self.gamma is None else {"gamma": self.gamma}
        return {
            **super().facts(),
            "times": self.times,
            "renoise": self.renoise,
            "noise_scale": self.noise_scale,
            **where,
            "denoiser": to_spec(self.denoiser),
        }

    @classmethod
    def load(cls, folder, home, config, trust, teacher):
        file = folder / "student.yaml"
        missing = [key for key in ("denoiser", "times", "event_shape", "renoise") if key not in config]
        if missing:
            raise ValueError(f"{file} is damaged: it lacks {', '.join(missing)}")
        with named(file):
            denoiser = from_spec(config["denoiser"], trust, home, folder / WEIGHTS)
            start = from_spec(config["start"], trust, home) if "start" in config else None
            going_on = from_spec(config["continuation"], trust, home) if "continuation" in config else None
        check_facts(config, file, denoiser)
        check_origin(config, file)
        times, scale, gamma = config["times"], config.get("noise_scale", 1.0), config.get("gamma")
        renoise = EARLIER.get(config["renoise"], config["renoise"]) if _plain(config["renoise"]) else None
        falling = numbers(times) and all(a > b for a, b in zip(times, times[1:], strict=False))
        sound = {
            "times": falling and len(times) <= MOST_STEPS,
            "renoise": renoise in get_args(Renoise),
            "gamma": gamma is None or number(gamma) and gamma <= 1,
            "noise_scale": number(scale),
            "start": start is None or isinstance(start, Start),
            "continuation": going_on is None or isinstance(going_on, Continuation),
        }
        refuse(config, file, sound)
        own, codec = cls.own(config, file, trust, home, folder / WEIGHTS), load_codec(config, file, trust, home)
        with named(file):
            made = cls(
                denoiser,
                times,
                config["event_shape"],
                config.get("classes"),
                renoise,
                config,
                config.get("context") or (),
                scale,
                start,
                codec,
                continuation=going_on,
                gamma=gamma,
                **own,
            )
        load_weights(made.weights, folder / WEIGHTS)
        return made

    @classmethod
    def own(
        cls,
        config: dict[str, Any],
        file: Path,
        trust: tuple[str, ...] = (),
        home: Path | None = None,
        weights: Path | None = None,
    ) -> dict[str, Any]:
        """A subclass's own arguments, from a student.yaml.

        Args:
            config: the content of student.yaml.
            file: its path, for errors.
            trust, home, weights: as in `from_spec`.

        Raises:
            ValueError: a value is missing or of the wrong kind.
        """
        return {}


def _plain(value: Any) -> bool:
    return isinstance(value, bool | str)


def told_end(process: Process, end: Tensor, x: Tensor) -> Tensor:
    """The flow time of the end of a jump as a network is told it, [B]: 0 at the datum.

    Args:
        process: the noising process.
        end: a time, scalar or [B]; `CLEAN` for the datum.
        x: samples, [B, ...].
    """
    alpha, sigma = process.scales(end)
    return (sigma / (alpha + sigma)).to(x.dtype).expand(len(x))
