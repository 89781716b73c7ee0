"""One generator of all scenes: from the words of a prompt to a grid of voxels (amortised).

B: views; K: different prompts among them; V: known words; R: voxels along a side.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.rendering.regularisers import total_variation
from distillkit.rendering.voxels import ball, centres, render_grid
from domains.text_to_3d.scenes import Painter

FIRST = 3  # R of the first layer; each of three layers doubles it


class Generator(Painter):
    """A network from prompts to scenes, as ScaleDreamer's 3D convolutions (arXiv 2407.02040).

    The embeddings of a prompt's words are summed; two layers and three transposed steps make a grid
    [4, 24, 24, 24] of it, which starts as a ball. So it can be asked for prompts that it was not
    trained on, if it knows their words; it warns then.

    Args:
        held_out: prompts among `only` that are not trained on, or the number of the last of them.
        width: channels of the first grid; each step halves them.
        texts, only, side, radius, coarse, smooth, sparse, opaque, late: as in `Painter`.

    Attributes:
        words: the words of the prompts that are trained on, sorted.
    """

    def __init__(
        self,
        texts: Sequence[str] | str | None = None,
        only: Sequence[str] | None = None,
        held_out: Sequence[str] | int = (),
        width: int = 64,
        side: int = 32,
        radius: float = 0.5,
        coarse: float = 0.0,
        smooth: float = 0.0,
        sparse: float = 0.0,
        opaque: float = 0.0,
        late: float = 0.5,
    ):
        super().__init__(texts, only, side, radius, coarse, smooth, sparse, opaque, late)
        checks.whole(8, 1024, width=width)
        if isinstance(held_out, int):
            held_out = self.only[len(self.only) - held_out :]
        self.known = self.trained = [text for text in self.only if text not in held_out]
        self.words = sorted({word for text in self.trained for word in _words(text)})
        self.embed_words = nn.Parameter(torch.randn(len(self.words), width))
        self.mix = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width * FIRST**3), nn.SiLU()
        )
        self.grow, channels = nn.Sequential(), width
        for _ in range(3):
            after = max(8, channels // 2)
            self.grow += nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv3d(channels, after, 3, padding=1), nn.SiLU())
            channels = after
        self.out, self.colour = nn.Conv3d(channels, 4, 3, padding=1), nn.Linear(width, 3)
        self.register_buffer("first", ball(centres(8 * FIRST), radius), persistent=False)

    def grids(self, prompt: Tensor) -> Tensor:
        """The grids of prompts by number, int64 [K]: [K, 4, R, R, R]."""
        known = [_words(text) for text in self.texts]
        counts = torch.tensor([[float(text.count(word)) for word in self.words] for text in known])
        text = counts.to(self.embed_words)[prompt] @ self.embed_words
        out = self.out(self.grow(self.mix(text).unflatten(1, (-1, FIRST, FIRST, FIRST))))
        return torch.cat([out[:, :1] + self.first, out[:, 1:] + self.colour(text)[..., None, None, None]], 1)

    def rendered(self, camera, prompt, x, size, jitter):
        different, own = prompt.unique(return_inverse=True)
        self._made = self.grids(different)
        return render_grid(self._made[own], camera, size, size, jitter=jitter)

    def roughness(self, prompt):
        return total_variation(self._made)

    def check_context(self, cond):
        super().check_context(cond)
        if bool((cond["prompt"] >= len(self.texts)).any()):
            raise ValueError("a scene needs a prompt: give numbers of prompts in cond['prompt']")
        self.check_texts([self.texts[i] for i in cond["prompt"].unique().tolist()])

    def check_texts(self, texts):
        """Refuse unknown words; warn of known words in a combination that was not trained on."""
        for text in texts:
            if unknown := [word for word in _words(text) if word not in self.words]:
                raise ValueError(
                    f"the generator never saw the word {unknown[0]!r} of {text!r}; it knows {', '.join(self.words)}"
                )
        seen = [sorted(_words(text)) for text in self.trained]
        if new := [text for text in texts if sorted(_words(text)) not in seen]:
            warnings.warn(
                f"the generator was not trained on {', '.join(map(repr, new[:4]))}: it puts words together that it knows",
                stacklevel=2,
            )

    def __getstate__(self):
        return {name: value for name, value in super().__getstate__().items() if name != "_made"}


def _words(text: str) -> list[str]:
    return text.lower().replace(",", " ").split()
