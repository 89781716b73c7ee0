"""RFD4-Proteina as a network of the library.

It moves two things at once: C-alpha positions (nm) and a latent of each token, which its
autoencoder decodes into all atoms. Both are flows, and the model is told a time of each. The
pipeline counts time from noise to data, tau = 1 - t, and gives each its own schedule.

Here both are one sample [B, N, 3 + D] of one rectified flow with time t of the positions. With the
latents z scaled by 1 / L, L the `lead`, the noised sample divided by `(1 + (L - 1) t) / L` is

    (1 - h) z + h eps,  h = L t / (1 + (L - 1) t):

the latents at their own time h. So for every L the marginals are those that the model knows. L = 1
gives both the same time; a larger one lets positions settle first, as the pipeline's schedules do.
Other pairs of times have no common process: `sigma / alpha` of both must be proportional.

B: designs; N: tokens; D: numbers of a latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion.process import RectifiedFlow
from distillkit.networks.blocks import Told
from distillkit.pipelines import network
from distillkit.pipelines.files import import_diffusers, read_index
from distillkit.pipelines.network import Cond, Network
from domains.protein.pipelines.codec import Atoms
from domains.protein.pipelines.design import features, latent_mask


class RFD4Proteina(Network):
    """RFD4-Proteina: the velocities of positions and latents, for prepared designs.

    Every call runs the trunk `passes` times. Its settings are `lead` and `passes`. What it is told
    is a vector that is added to the noised latents.
    """

    pipelines, kinds = ("RFD4ProteinaPipeline",), ("RFD4ProteinaTransformer",)
    scheduler_part, schedulers = "bb_ca_scheduler", ("RFD4ProteinaScheduler",)
    codec, given, text_parts = Atoms, "", ()
    steps = 60

    def __init__(
        self,
        configs: list[dict[str, Any]],
        texts: Any = None,
        boundary: float | None = None,
        settings: dict[str, Any] | None = None,
    ):
        super().__init__(configs, texts, boundary, settings)
        self.embed = Told(configs[0]["latent_dim"])

    @classmethod
    def latent_shape(cls, root, size):
        return size["tokens"], 3 + cls.model_config(root)["latent_dim"]

    @classmethod
    def process(cls, scheduler, shape):
        return RectifiedFlow(), "flow"

    @classmethod
    def grid(cls, scheduler, process, steps, shape):
        return 1 - taus(settings_of(scheduler), steps)[:-1]

    @classmethod
    def read_settings(cls, root: Path, shape: Sequence[int], asked: Mapping[str, Any]) -> dict[str, Any]:
        passes, depths = asked["passes"], recycle_depths(root)
        checks.positive(lead=asked["lead"])
        if passes is not None:
            checks.whole(1, passes=passes)
        return {"lead": float(asked["lead"]), "passes": passes or max(1, round(sum(depths) / len(depths)))}

    def forward(self, x, time, cond):
        return self.call(self.models[0], x, time, cond)  # its input layers cast what they are given

    def call(self, model, x, time, cond):
        lead, t = self.settings["lead"], time[:, None, None]
        positions, latents, late = self.apart(x, time, cond)
        seen = latents + self.embed(cond)[:, None] if self.embed else latents
        v, v_latents = self.velocities(model, positions, seen, 1 - time, 1 - late, cond, self.settings["passes"])
        flow = latents * (lead - 1) / lead - v_latents / (1 + (lead - 1) * t)
        flow = torch.where(latent_mask(cond)[..., None], flow, x[..., 3:] / t)  # tokens without a latent: it is zero
        return torch.cat([-v, flow], -1)

    def apart(self, x: Tensor, time: Tensor, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
        """The model's positions and latents in a noised sample x, and the latents' time [B]."""
        lead = self.settings["lead"]
        scale = 1 + (lead - 1) * time
        latents = torch.where(latent_mask(cond)[..., None], x[..., 3:] * (lead / scale)[:, None, None], 0)
        return x[..., :3] * cond["mask"][..., None], latents, lead * time / scale

    def together(self, positions: Tensor, latents: Tensor) -> Tensor:
        """The sample of clean positions and latents."""
        return torch.cat([positions, latents / self.settings["lead"]], -1)

    @staticmethod
    def velocities(
        model: nn.Module, positions: Tensor, latents: Tensor, tau: Tensor, tau_latents: Tensor, cond: Cond, passes: int
    ) -> tuple[Tensor, Tensor]:
        """The velocities `x_0 - eps` of positions and latents.

        Args:
            model: the transformer.
            positions: [B, N, 3], noised.
            latents: [B, N, D], noised.
            tau: time of the positions, 1 for data.
            tau_latents: that of the latents.
            cond: see `read_designs`.
            passes: of the trunk.
        """
        known = features(cond)
        mask, token_type, atoms = (known.pop(name, None) for name in ("padding_mask", "token_type", "atom37_mask"))
        found = model(
            positions, latents, tau, tau_latents, mask, token_type, atoms, conditioning=known, recycle_depth=passes
        )
        return found.backbone.float(), found.local_latents.float()


def settings_of(scheduler: Any) -> dict[str, Any]:
    """The settings of one of the pipeline's schedulers, as plain data."""
    return {name: value for name, value in scheduler.config.items() if name[:1] != "_"}


def taus(settings: Mapping[str, Any], steps: int) -> Tensor:
    """The times of a scheduler, rising from almost 0 to 1, float64 [steps + 1].

    With too few steps for the finer ones at the end there are none of these.
    """
    short = steps < settings["tail_steps"] * settings["tail_step_multiplier"]
    scheduler = import_diffusers().RFD4ProteinaScheduler(**{**settings, **({"tail_steps": 0} if short else {})})
    scheduler.set_timesteps(steps)
    return torch.cat([scheduler.timesteps.double(), torch.ones(1, dtype=torch.float64)])


def recycle_depths(root: Path) -> list[int]:
    """Passes of the trunk in each of the pipeline's steps."""
    return [max(1, depth) for depth in read_index(root)["recycle_depths"]]


NETWORKS = {cls.__name__: cls for cls in (RFD4Proteina,)}


class PipelineBase(network.PipelineBase):
    """The frozen network of a protein pipeline."""

    networks = NETWORKS
