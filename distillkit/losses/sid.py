"""SiD, score identity distillation (arXiv 2404.04057)."""

from __future__ import annotations

from torch import Tensor

from distillkit.losses.reduce import Normalise, distance_scale, mean


def sid_loss(
    x_g: Tensor,
    real: Tensor,
    fake: Tensor,
    alpha: float = 1.2,
    normalise: Normalise | None = "sample",
    mask: Tensor | None = None,
) -> Tensor:
    """`mean (real - fake) [(real - x_g) - alpha (real - fake)] / n` (eq. 23).

    n = sg[mean |x_g - real|], per sample or per batch. Without n the loss equals
    `(1 - alpha) |real - fake|^2 + <real - fake, fake - x_g>`. Gradient flows through all three
    arguments, since `real` and `fake` are functions of x_g through the noised sample; only n has a
    stop-gradient. With detached `real` and `fake` the gradient would silently
    become DMD's, whatever alpha.

    Args:
        x_g: student samples, [B, ...].
        real, fake: teacher's and fake score's denoised samples at the noised x_g, not detached.
        alpha: 0.5 is the exact gradient of the Fisher divergence, 1 drops its second half, 1.2
            is the paper's best.
        normalise: the extent of the mean in n; None leaves n out and gives the plain loss of the
            closed forms.
        mask: mask of sets, bool [B, *positions], true at elements.
    """
    difference = real - fake
    loss = difference * ((real - x_g) - alpha * difference)
    if normalise:
        loss = loss / distance_scale(x_g, real, normalise, mask)
    return mean(loss, mask)
