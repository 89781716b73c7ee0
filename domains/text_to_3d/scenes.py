"""Scenes as students: a sample is the render of a prompt's scene by a camera.

B: views; S: pixels along a side.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.networks.blocks import wanted
from distillkit.networks.particles import chosen
from distillkit.pipelines.prompts import read_prompts
from distillkit.rendering import cameras
from distillkit.rendering.gaussians import GaussianField
from distillkit.rendering.regularisers import binarisation, sparsity, total_variation
from distillkit.rendering.triplane import TriplaneField
from distillkit.rendering.volume import Rendered
from distillkit.rendering.voxels import VoxelField
from distillkit.spec import Recorded
from domains.text_to_3d.solids import PROMPTS, REACH

# by name: the class, its argument that says how fine a scene is, and what should be smooth
KINDS = {
    "voxels": (VoxelField, "side", "grid"),
    "triplane": (TriplaneField, "side", "planes"),
    "gaussians": (GaussianField, "count", None),
}

THICKEST = -1.0  # of the first channel of new voxels: where light reaches the middle, a hole can be made


class Painter(Recorded, nn.Module):
    """The base of networks that render scenes: an image of `prompt` [B] by `camera` [B, 13].

    Noise does not become part of the image. In training it chooses where in their intervals the
    samples of rays lie.

    In training the loss has a penalty (ScaleDreamer, arXiv 2407.02040): `smooth` times the scene's
    total variation, `sparse` times the mean opacity, and from `late` on `opaque` times the entropy
    of opacities, see `distillkit.rendering.regularisers`.

    Args:
        texts: the prompts by number, or the file that holds them, see `read_prompts`; None means
            `domains.text_to_3d.solids.PROMPTS`.
        only: the prompts among them that scenes are made for; None means all.
        side: S, pixels along a side of a render.
        radius: of the balls that scenes start from. In a smaller one scenes stay smaller, for the
            teacher accepts several sizes.
        coarse: share of a run in which renders have half the size and are enlarged.
        smooth, sparse, opaque: weights of the penalty.
        late: share of a run after which `opaque` counts.

    Attributes:
        event_shape: of a render, (3, S, S).
        known: see `distillkit.networks.base.Reader`.
        penalty: see `distillkit.networks.base.Penalised`.

    Raises:
        ValueError: there are no prompts, one of `only` is not among `texts`, or a number is out of
            range.
    """

    blind = True

    def __init__(
        self,
        texts: Sequence[str] | str | None,
        only: Sequence[str] | None,
        side: int,
        radius: float,
        coarse: float,
        smooth: float,
        sparse: float,
        opaque: float,
        late: float,
    ):
        super().__init__()
        checks.whole(2, 4096, side=side)
        checks.within("[0, 1]", coarse=coarse, late=late)
        checks.within("(0, 1]", radius=radius)
        checks.not_negative(smooth=smooth, sparse=sparse, opaque=opaque)
        self.texts = read_prompts(texts) if isinstance(texts, str) else list(PROMPTS if texts is None else texts)
        self.only = self.texts if only is None else list(only)
        if not self.texts or not self.only:
            raise ValueError("there are no prompts to make scenes for: give some in data.only, or null for all")
        if strange := [prompt for prompt in self.only if prompt not in self.texts]:
            raise ValueError(
                f"a scene is asked for {strange[0]!r}, which is none of the {len(self.texts)} prompts, such as {self.texts[0]!r}"
            )
        self.side, self.event_shape, self.coarse, self.late = side, (3, side, side), coarse, late
        self.known = self.only
        self.smooth, self.sparse, self.opaque = smooth, sparse, opaque
        self.done, self.penalty = 0.0, None

    def recorded(self):
        """The arguments; the prompts themselves instead of their file."""
        return {**super().recorded(), "texts": self.texts}

    @abstractmethod
    def rendered(self, camera: Tensor, prompt: Tensor, x: Tensor, size: int, jitter: Tensor | float) -> Rendered:
        """Renders [B, ...] of size x size; noise x may choose among scenes of a prompt."""

    @abstractmethod
    def roughness(self, prompt: Tensor) -> Tensor:
        """The mean total variation of the scenes of these prompts, int64 [B]; a scalar."""

    def progress(self, done: float) -> None:
        """See `distillkit.networks.base.Changing`."""
        self.done = done

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        camera, prompt = wanted(cond, "camera"), wanted(cond, "prompt")
        size = self.side // 2 if self.training and self.done < self.coarse else self.side
        made = self.rendered(camera, prompt, x, size, _jitter(x, size) if self.training else 0.5)
        self.penalty = self._penalty(made.opacity, prompt) if self.training and torch.is_grad_enabled() else None
        image = 2 * made.image - 1
        if size == self.side:
            return image
        return F.interpolate(image, size=(self.side, self.side), mode="bilinear", align_corners=False)

    def _penalty(self, opacity: Tensor, prompt: Tensor) -> Tensor:
        penalty = self.sparse * sparsity(opacity)
        if self.smooth:
            penalty = penalty + self.smooth * self.roughness(prompt)
        if self.opaque and self.done >= self.late:
            penalty = penalty + self.opaque * binarisation(opacity)
        return penalty

    def check_context(self, cond: Cond) -> None:
        """See `distillkit.networks.base.WithContext`."""
        camera, last = cond["camera"], len(self.texts)
        cameras.check(camera)
        if camera.ndim != 2:
            raise ValueError(f"each sample is seen by one camera, [B, {cameras.SIZE}], got {list(camera.shape)}")
        if len(lost := (cond["prompt"] > last).nonzero()):
            raise ValueError(
                f"there are {last} prompts, from 0 to {last - 1}, got the number {int(cond['prompt'][lost[0, 0]])}"
            )
        if len(near := cameras.inside(camera, REACH).nonzero()):
            raise ValueError(
                f"camera {int(near[0])} stands inside of the object, less than {REACH} from the origin: move it away"
            )

    def ask(self, texts: list[str]) -> None:
        """Take these texts as the prompts from now on; see `distillkit.networks.base.Reader`."""
        self.check_texts(texts)
        self.texts = list(texts)

    @abstractmethod
    def check_texts(self, texts: list[str]) -> None:
        """Refuse texts that there is no scene for.

        Raises:
            ValueError: there is none.
        """

    def __getstate__(self):
        return {**self.__dict__, "penalty": None}  # a tensor of a graph cannot be copied


class Scenes(Painter):
    """A scene of its own for each prompt, or up to four: particles (arXiv 2305.16213).

    Args:
        kind: what scenes are made of, of `KINDS`.
        resolution: voxels along a side, pixels along a side of a plane, or the number of Gaussians,
            at most 512; None is the kind's own.
        particles: scenes of each prompt, 1 to 4; noise chooses one.
        seed: of the first scenes.
        held_out: prompts that are not trained on, or their number; there can be none.
        texts, only, side, radius, coarse, smooth, sparse, opaque, late: as in `Painter`.
    """

    def __init__(
        self,
        texts: Sequence[str] | str | None = None,
        only: Sequence[str] | None = None,
        kind: Literal["voxels", "triplane", "gaussians"] = "voxels",
        resolution: int | None = None,
        particles: int = 1,
        side: int = 32,
        radius: float = 0.5,
        coarse: float = 0.0,
        smooth: float = 0.0,
        sparse: float = 0.0,
        opaque: float = 0.0,
        late: float = 0.5,
        seed: int = 0,
        held_out: Sequence[str] | int = (),
    ):
        super().__init__(texts, only, side, radius, coarse, smooth, sparse, opaque, late)
        if held_out:
            raise ValueError(
                "a prompt that is held out gets no scene where each has its own: leave data.held_out out, or say "
                "stage=amortised for one generator of all"
            )
        if kind not in KINDS:
            raise ValueError(f"scenes are made of {', '.join(KINDS)}, got kind={kind!r}")
        checks.whole(1, 4, particles=particles)
        self.particles = particles
        field, size, self._smooth = KINDS[kind]
        own = {} if resolution is None else {size: resolution}
        try:
            self.field = field(num=len(self.only) * particles, radius=radius, seed=seed, **own)
        except checks.Unfit as error:
            name = "resolution" if error.name == size else error.name
            raise checks.Unfit(name, error.value, error.demand) from error
        if kind == "voxels":
            self.field.grid.data[:, 0].clamp_(max=THICKEST)

    def rendered(self, camera, prompt, x, size, jitter):
        return self.field.render(camera, self.scene(prompt, x), size, size, jitter=jitter)

    def scene(self, prompt: Tensor, x: Tensor) -> Tensor:
        """The numbers of scenes in the field, int64 [B]; noise x [B, ...] chooses the particle."""
        return self._own(prompt) * self.particles + chosen(x, self.particles)

    def roughness(self, prompt):
        if self._smooth is None:
            return self.field.means.new_zeros(())  # Gaussians have no neighbours
        own = (
            self._own(prompt)[:, None] * self.particles + torch.arange(self.particles, device=prompt.device)
        ).unique()
        return total_variation(getattr(self.field, self._smooth)[own], 3 if self._smooth == "grid" else 2)

    def check_context(self, cond):
        super().check_context(cond)
        if len(lost := (self._own(cond["prompt"]) < 0).nonzero()):
            self.check_texts([[*self.texts, "no prompt"][int(cond["prompt"][lost[0, 0]])]])

    def check_texts(self, texts):
        if strange := [text for text in texts if text not in self.only]:
            raise ValueError(
                f"there is no scene of {strange[0]!r} here: the run made {', '.join(map(repr, self.only[:8]))}"
                f"{' ...' if len(self.only) > 8 else ''}; ask for one of them, or make a scene of it (data.only)"
            )

    def _own(self, prompt: Tensor) -> Tensor:
        """The places in `only` of prompts by number; of one without a scene, -1."""
        places = {text: i for i, text in enumerate(self.only)}
        return torch.tensor([*(places.get(text, -1) for text in self.texts), -1], device=prompt.device)[prompt]


def _jitter(x: Tensor, size: int) -> Tensor:
    """Uniform numbers in [0, 1) of noise x [B, C, H, W], [B, size, size]: directions on a circle.

    They do not depend on the spread of the noise.
    """
    turn = torch.atan2(x[:, -1], x[:, -2]) / (2 * math.pi) + 0.5
    return F.interpolate(turn[:, None], size=(size, size))[:, 0].clamp(0, 1 - 1e-6)
