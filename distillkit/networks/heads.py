"""Discriminator heads on features of a denoiser."""

from __future__ import annotations

from torch import Tensor, nn


class Head(nn.Module):
    """A two-layer perceptron at every position; the logit of a sample is the mean over positions. Any modality.

    Args:
        channels: size of the features, [B, channels, *positions].
    """

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B]; positive means real."""
        tokens = features.flatten(2).transpose(1, 2) if features.ndim > 2 else features[:, None]
        return self.layers(tokens.to(self.layers[1].weight.dtype)).mean(dim=(1, 2))
