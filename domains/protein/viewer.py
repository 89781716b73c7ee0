"""Chains to turn with the mouse: one page of HTML that needs neither a network nor a library."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

import numpy as np

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>%(title)s</title>
<style>
body { font: 14px system-ui, sans-serif; margin: 1rem; background: #fff; color: #222 }
#chains { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)) }
figure { margin: 0 }
canvas { width: 100%%; border: 1px solid #ddd; cursor: grab; touch-action: none }
</style>
<h1>%(title)s</h1>
<p>C-alpha traces, blue where a chain starts and red where it ends. Drag to turn.</p>
<div id="chains"></div>
<script>
const chains = %(chains)s, size = 560, reach = %(reach)s;
let turn = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];  // rows: right, up, towards the viewer
const product = (a, b) => a.map(row => [0, 1, 2].map(j => row.reduce((s, v, k) => s + v * b[k][j], 0)));
const canvases = chains.map((chain, i) => {
  const figure = document.createElement("figure"), canvas = document.createElement("canvas");
  const caption = document.createElement("figcaption");
  canvas.width = canvas.height = size;
  caption.textContent = `chain ${i}, ${chain.length} residues`;
  figure.append(canvas, caption);
  document.getElementById("chains").append(figure);
  return canvas;
});
function draw() {
  chains.forEach((chain, c) => {
    const pen = canvases[c].getContext("2d");
    const seen = chain.map(p => turn.map(row => row[0] * p[0] + row[1] * p[1] + row[2] * p[2]));
    const at = p => [size / 2 + p[0] * size / reach, size / 2 - p[1] * size / reach];
    const order = [...seen.keys()].slice(1).sort((i, j) => seen[i][2] + seen[i - 1][2] - seen[j][2] - seen[j - 1][2]);
    pen.clearRect(0, 0, size, size);
    for (const i of order) {
      const hue = 240 * (1 - i / (chain.length - 1)), light = 45 - 12 * (seen[i][2] / reach) ;
      for (const [width, cap, colour] of [[18, "butt", "#fff"], [10, "round", `hsl(${hue} 80%% ${light}%%)`]]) {
        pen.lineCap = cap;
        pen.strokeStyle = colour;
        pen.lineWidth = width;
        pen.beginPath();
        pen.moveTo(...at(seen[i - 1]));
        pen.lineTo(...at(seen[i]));
        pen.stroke();
      }
    }
  });
}
addEventListener("pointermove", event => {
  if (!event.buttons || event.target.tagName !== "CANVAS") return;
  const [a, b] = [event.movementX / 90, event.movementY / 90];
  const around = [[Math.cos(a), 0, Math.sin(a)], [0, 1, 0], [-Math.sin(a), 0, Math.cos(a)]];
  const over = [[1, 0, 0], [0, Math.cos(b), Math.sin(b)], [0, -Math.sin(b), Math.cos(b)]];
  turn = product(over, product(around, turn));
  draw();
});
draw();
</script></html>
"""


def page(chains: Sequence[np.ndarray], title: str = "Protein backbones") -> str:
    """The page for chains [n, 3] in nanometres, of which three decimals are kept."""
    centred = [chain - chain.mean(0) for chain in chains if len(chain)]
    reach = 2.1 * max((np.linalg.norm(chain, axis=1).max() for chain in centred), default=1.0)
    numbers = [np.round(chain, 3).tolist() for chain in centred]
    values = {
        "title": html.escape(title),
        "chains": json.dumps(numbers, separators=(",", ":")),
        "reach": f"{max(reach, 1.0):.2f}",
    }
    return PAGE % values
