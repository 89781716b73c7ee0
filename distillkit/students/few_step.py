"""The few-step student, which has a network of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.codec import Codec
from distillkit.devices import in_chunks
from distillkit.diffusion.denoiser import Cond, Denoiser, check_facts, number, numbers
from distillkit.diffusion.sampling import few_step
from distillkit.diffusion.start import Start
from distillkit.files import load_weights
from distillkit.progress import calls
from distillkit.rollouts import Continuation
from distillkit.spec import from_spec, named, to_spec
from distillkit.students.base import MOST_STEPS, WEIGHTS, Student, check_origin, load_codec, refuse


class FewStepStudent(Student):
    """A few-step sampler: a denoiser and the times at which it is called.

    Args:
        denoiser: `(x_t, t, cond) -> x_0`.
        times: decreasing times of the steps.
        event_shape, classes, context, codec, config, examples, continuation: as in `Student`.
        renoise: between steps, fresh noise (true) or the noise that the student implies (false).
        noise_scale: factor on all noise that it draws, see `few_step`; training uses 1.
        start: the input of the first step; None means pure noise.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        times: Sequence[float],
        event_shape: Sequence[int],
        classes: dict[str, int] | None = None,
        renoise: bool = True,
        config: dict[str, Any] | None = None,
        context: Sequence[str] = (),
        noise_scale: float = 1.0,
        start: Start | None = None,
        codec: Codec | None = None,
        examples: Cond | None = None,
        continuation: Continuation | None = None,
    ):
        super().__init__(event_shape, classes, context, codec, config, examples, continuation)
        self.denoiser, self._times = denoiser, list(times)
        self.renoise, self.noise_scale, self.start = renoise, noise_scale, start or Start()
        self.start.check(denoiser.process, self.context)

    @property
    def times(self) -> list[float]:
        return self._times

    @property
    def told(self):
        return {name: tuple(kind["range"]) for name, kind in self.denoiser.told.items() if "range" in kind}

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

    @torch.no_grad()
    def forward(self, noise: Tensor, cond: Cond | None = None, draw: Callable[[int], Tensor] | None = None) -> Tensor:
        """Map unit noise [B, *event_shape] to undecoded samples; `draw(i)` is step i's noise."""
        times, cond = torch.tensor(self.times, dtype=torch.float64, device=noise.device), cond or {}
        x_0, _ = few_step(
            lambda x, t: self.denoiser(x, t, cond),
            self.denoiser.process,
            times,
            lambda i: noise if i == 0 else draw(i),
            self.renoise,
            start=lambda eps, t: self.start(self.denoiser.process, eps, t, cond, self.noise_scale),
            noise_scale=self.noise_scale,
        )
        return x_0

    def sample(self, n=64, cond=None, seed=0, batch_size=1000, decode=True, kappa=None):
        cond = self.checked_condition(n, cond, kappa)
        shape = self.codec.data_shape(self.event_shape) if decode else self.event_shape
        if not n:
            return torch.empty(0, *shape)
        device = self.device
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on every device
        draws = [
            torch.randn(self.codec.shape(n, self.event_shape, cond), generator=generator)
            for _ in range(self.num_steps if self.renoise else 1)
        ]

        def made(rows: slice) -> Tensor:
            part = {name: value[rows].to(device) for name, value in cond.items()}
            x = self(draws[0][rows].to(device), part, lambda i: draws[i][rows].to(device))
            return self.codec.decode(x, part) if decode else x

        with calls("sampling", self.denoiser, n * self.num_steps):
            return in_chunks(made, n, batch_size)

    def facts(self):
        where = {} if self.start.pure else {"start": to_spec(self.start)}
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
        times, scale = config["times"], config.get("noise_scale", 1.0)
        falling = numbers(times) and all(a > b for a, b in zip(times, times[1:], strict=False))
        sound = {
            "times": falling and len(times) <= MOST_STEPS,
            "renoise": isinstance(config["renoise"], bool),
            "noise_scale": number(scale),
            "start": start is None or isinstance(start, Start),
            "continuation": going_on is None or isinstance(going_on, Continuation),
        }
        refuse(config, file, sound)
        load_weights(denoiser, folder / WEIGHTS)
        codec = load_codec(config, file, trust, home)
        with named(file):
            return cls(
                denoiser,
                times,
                config["event_shape"],
                config.get("classes"),
                config["renoise"],
                config,
                config.get("context") or (),
                scale,
                start,
                codec,
                continuation=going_on,
            )
