"""Pictures of points: samples over the exact density they should follow."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distillkit.teachers.exact import ExactTeacher, Mixture

MOST = 2000  # points drawn
GRID = 120
COLUMNS = 5  # panels side by side


class ToyMedia:
    """Draws samples over a teacher's exact density.

    A scatter plot in the first two dimensions, a histogram in one.

    Args:
        teacher: the exact teacher.
        extent: half the width of the plot, in std of the law around its mean; samples outside are
            drawn at the border.
    """

    def __init__(self, teacher: ExactTeacher, extent: float = 3.0):
        self.law, self.extent = teacher.mixture, extent

    def picture(self, samples: Tensor, cond: dict[str, Tensor] | None = None) -> Image.Image:
        """Samples [N, D] as one picture, 400 x 400 pixels."""
        return self._draw({"": samples})

    def compare(self, rows: dict[str, Tensor], cond: dict[str, Tensor] | None = None) -> Image.Image:
        """One titled panel for each set of samples, on the same axes, `COLUMNS` in a row."""
        if not rows:
            raise ValueError("there is nothing to compare; give at least one set of samples")
        return self._draw(rows)

    def _draw(self, panels: dict[str, Tensor]) -> Image.Image:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        columns = min(len(panels), COLUMNS)
        lines = -(-len(panels) // columns)
        width, height = 4 * columns, 4 * lines
        figure = Figure(figsize=(width, height), dpi=100)
        canvas = FigureCanvasAgg(figure)
        # in inches; matplotlib's own layouts take half of the time of a picture
        edges = {"left": 0.45 / width, "right": 1 - 0.1 / width, "bottom": 0.3 / height, "top": 1 - 0.3 / height}
        figure.subplots_adjust(**edges, wspace=0.05, hspace=0.1)
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for i in range(len(panels), len(axes)):
            axes[i].remove()
            axes[i - columns].tick_params(labelbottom=True)
        for axis, (title, samples) in zip(axes, panels.items(), strict=False):
            self._panel(axis, samples.detach().cpu().double().flatten(1).nan_to_num())
            axis.set_title(title, fontsize=10, y=1.0)  # without y every panel's ticks are laid out twice
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")

    def _panel(self, axis: Any, x_ND: Tensor) -> None:
        law = _marginal(self.law, dim := min(2, x_ND.shape[1]))
        reach_D = self.extent * law.covariance.diagonal().sqrt()
        low_D, high_D = law.mean - reach_D, law.mean + reach_D
        x_ND = x_ND[:MOST, :dim].clamp(low_D, high_D)
        ends = zip(low_D.tolist(), high_D.tolist(), strict=True)
        lines = [torch.linspace(low, high, GRID).double() for low, high in ends]
        if dim == 1:
            axis.hist(x_ND[:, 0].numpy(), bins=50, density=True, color="tab:blue", alpha=0.6)
            axis.plot(lines[0].numpy(), law.log_prob(lines[0][:, None]).exp().numpy(), color="black")
            return
        density = law.log_prob(torch.cartesian_prod(*lines)).exp().reshape(GRID, GRID)
        axis.contourf(*(line.numpy() for line in lines), density.T.numpy(), levels=12, cmap="Greys")
        axis.scatter(*x_ND.T.numpy(), s=3, color="tab:red", alpha=0.5, linewidths=0)
        axis.set(xlim=(float(low_D[0]), float(high_D[0])), ylim=(float(low_D[1]), float(high_D[1])))


def _marginal(law: Mixture, dim: int) -> Mixture:
    """The law of the first `dim` dimensions, on the CPU."""
    axes_KDD, variance_KD = law.axes.cpu(), law.variances.cpu()
    covariance_KDD = torch.einsum("kde,ke,kfe->kdf", axes_KDD, variance_KD, axes_KDD)
    return Mixture(law.means.cpu()[:, :dim], covariance_KDD[:, :dim, :dim], law.weights.cpu())
