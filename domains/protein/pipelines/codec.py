"""The codec between structures with all atoms and RFD4-Proteina's positions and latents.

B: designs; N: tokens; D: numbers of a latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distillkit.pipelines.codec import PipelineCodec
from domains.protein.pipelines.design import features
from domains.protein.pipelines.residues import ATOMS, kinds_of

CA = 1  # place of the C-alpha atom


class Atoms(PipelineCodec):
    """Structures [B, N, 37, 5] and positions with latents [B, N, 3 + D].

    An atom has its position in nm, 1 where it exists and 0 elsewhere, and the number of its
    residue's kind, see `residues.KINDS`. What is not designed is zero. The kinds of residues are
    the decoder's choice, where a design leaves them open.

    Args:
        path, print: as in `PipelineCodec`.
        lead: see `RFD4Proteina`.
    """

    kinds = ("RFD4ProteinaAutoencoder",)

    def __init__(self, path: str, print: str | None = None, lead: float = 1.0):
        super().__init__(path, print)
        self.lead = lead

    def units(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(1), torch.full((1,), 1 / self.lead)

    @torch.no_grad()
    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        """C-alpha positions and the mean of the encoder's latents.

        The batch has all that the encoder looks at (bonds, elements, charges), beside `data`.
        """
        data, (known, parts) = batch["data"].float(), self._known(batch)
        parts["atom37_mask"] = data[..., 3] > 0.5
        found = self.vae.to(data.device).encode(data[..., :3], conditioning=known, **parts).mean
        return torch.cat([data[..., CA, :3] * batch["mask"][..., None], found / self.lead], -1)

    @torch.no_grad()
    def decode(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Structures of positions and latents; a token without a latent has its C-alpha alone."""
        (known, parts), mask = self._known(cond), cond["mask"]
        positions, latents = x[..., :3].float() * mask[..., None], self.lead * x[..., 3:].float()
        found = self.vae.to(x.device).decode(latents, positions, conditioning=known, **parts)
        place, there = found.coordinates.clone(), found.atom_mask.clone()
        place[..., CA, :], there[..., CA] = positions, mask
        kind = torch.tensor(kinds_of(self.config), device=x.device)[found.residue_type.long()]
        made = torch.cat([place, torch.stack([there, kind[..., None].expand(there.shape)], -1).to(place)], -1)
        return made * mask[..., None, None]

    def data_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        return event_shape[0], len(ATOMS), 5

    def _known(self, cond: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The features of conditions, and those that the autoencoder takes by name."""
        known = features({name: value for name, value in cond.items() if name != "data"})
        return known, {name: known.pop(name, None) for name in ("padding_mask", "token_type", "atom37_mask")}
