"""Non-saturating adversarial losses on logits whose positive sign means real (arXiv 1406.2661)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus


def generator_loss(fake_logits: Tensor) -> Tensor:
    """`mean softplus(-l(x_g))`."""
    return softplus(-fake_logits).mean()


def discriminator_loss(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """`mean softplus(l(sg x_g)) + mean softplus(-l(x_real))`."""
    return softplus(fake_logits).mean() + softplus(-real_logits).mean()
