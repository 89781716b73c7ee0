"""Tiny checkpoints in the published layouts: read, and computed again here in the plainest way."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from distillkit.discrete.denoiser import Mean, Ratio
from distillkit.networks.ddit import DDiT
from domains.discrete.checkpoints import DDiTCheckpoint

TOKENS, WIDTH, HEADS, DEPTH, COND, LENGTH = 11, 16, 2, 2, 12, 6
SEDD = {
    "tokens": TOKENS,
    "graph": {"type": "absorb"},
    "noise": {"type": "loglinear"},
    "model": {
        "hidden_size": WIDTH,
        "cond_dim": COND,
        "n_blocks": DEPTH,
        "n_heads": HEADS,
        "length": LENGTH,
        "scale_by_sigma": True,
    },
}
MDLM = {
    "model_type": "mdlm",
    "vocab_size": TOKENS + 1,
    "hidden_dim": WIDTH,
    "cond_dim": COND,
    "n_blocks": DEPTH,
    "n_heads": HEADS,
    "model_length": LENGTH,
    "time_conditioning": False,
}


def weights(adaln: bool = True) -> dict[str, torch.Tensor]:
    """Random weights under the published names."""
    shapes = {"vocab_embed.embedding": (TOKENS + 1, WIDTH)}
    if adaln:
        for i, size in ((0, 256), (2, COND)):
            shapes |= {f"sigma_map.mlp.{i}.weight": (COND, size), f"sigma_map.mlp.{i}.bias": (COND,)}
    for n in range(DEPTH):
        shapes |= {
            f"blocks.{n}.norm1.weight": (WIDTH,),
            f"blocks.{n}.norm2.weight": (WIDTH,),
            f"blocks.{n}.attn_qkv.weight": (3 * WIDTH, WIDTH),
            f"blocks.{n}.attn_out.weight": (WIDTH, WIDTH),
            f"blocks.{n}.mlp.0.weight": (4 * WIDTH, WIDTH),
            f"blocks.{n}.mlp.0.bias": (4 * WIDTH,),
            f"blocks.{n}.mlp.2.weight": (WIDTH, 4 * WIDTH),
            f"blocks.{n}.mlp.2.bias": (WIDTH,),
        }
        if adaln:
            shapes |= {
                f"blocks.{n}.adaLN_modulation.weight": (6 * WIDTH, COND),
                f"blocks.{n}.adaLN_modulation.bias": (6 * WIDTH,),
            }
    shapes |= {
        "output_layer.norm_final.weight": (WIDTH,),
        "output_layer.linear.weight": (TOKENS + 1, WIDTH),
        "output_layer.linear.bias": (TOKENS + 1,),
    }
    if adaln:
        shapes |= {
            "output_layer.adaLN_modulation.weight": (2 * WIDTH, COND),
            "output_layer.adaLN_modulation.bias": (2 * WIDTH,),
        }
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def plain(w: dict[str, torch.Tensor], x: torch.Tensor, sigma: torch.Tensor | None) -> torch.Tensor:
    """The published forward pass, one head and position at a time; rotation by complex numbers."""

    def norm(h, name):
        centred = h - h.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[name]

    c = None
    if sigma is not None:
        angle = sigma[:, None] * torch.tensor([10_000 ** (-i / 128) for i in range(128)])
        c = torch.cat([angle.cos(), angle.sin()], 1) @ w["sigma_map.mlp.0.weight"].T + w["sigma_map.mlp.0.bias"]
        c = F.silu(F.silu(c) @ w["sigma_map.mlp.2.weight"].T + w["sigma_map.mlp.2.bias"])

    def modulation(name, num):
        if c is None:
            return [0.0, 0.0, 1.0] * (num // 3) if num == 6 else [0.0, 0.0]
        return (c @ w[f"{name}.weight"].T + w[f"{name}.bias"])[:, None].chunk(num, -1)

    h, size = w["vocab_embed.embedding"][x], WIDTH // HEADS
    turns = torch.stack(
        [torch.tensor([complex(math.cos(a), math.sin(a)) for a in (p * 10_000 ** (-2 * i / size) for i in range(size // 2))])
         for p in range(x.shape[1])]
    )  # fmt: skip
    for n in range(DEPTH):
        name = f"blocks.{n}"
        shift0, scale0, gate0, shift1, scale1, gate1 = modulation(f"{name}.adaLN_modulation", 6)
        a = norm(h, f"{name}.norm1.weight") * (1 + scale0) + shift0
        qkv = (a @ w[f"{name}.attn_qkv.weight"].T).reshape(*x.shape, 3, HEADS, size)
        heads = []
        for k in range(HEADS):
            q, key, v = qkv[:, :, 0, k], qkv[:, :, 1, k], qkv[:, :, 2, k]
            q, key = (torch.complex(z[..., : size // 2], z[..., size // 2 :]) * turns for z in (q, key))
            scores = (q[:, :, None] * key[:, None].conj()).real.sum(-1) / math.sqrt(size)
            heads.append(scores.softmax(-1) @ v)
        h = h + gate0 * (torch.cat(heads, -1) @ w[f"{name}.attn_out.weight"].T)
        a = norm(h, f"{name}.norm2.weight") * (1 + scale1) + shift1
        a = F.gelu(a @ w[f"{name}.mlp.0.weight"].T + w[f"{name}.mlp.0.bias"], approximate="tanh")
        h = h + gate1 * (a @ w[f"{name}.mlp.2.weight"].T + w[f"{name}.mlp.2.bias"])
    shift, scale = modulation("output_layer.adaLN_modulation", 2)
    h = norm(h, "output_layer.norm_final.weight") * (1 + scale) + shift
    return h @ w["output_layer.linear.weight"].T + w["output_layer.linear.bias"]


def written(folder, config: dict, state: dict, prefix: str = ""):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({prefix + name: value for name, value in state.items()}, folder / "model.safetensors")
    return str(folder)


@pytest.fixture
def x():
    return torch.randint(0, TOKENS + 1, (4, LENGTH), generator=torch.Generator().manual_seed(1))


def test_sedd_gives_its_log_score(tmp_path, x):
    teacher = DDiTCheckpoint(written(tmp_path / "sedd", SEDD, weights()))
    assert isinstance(teacher.denoiser, Ratio) and teacher.event_shape == (LENGTH,) and teacher.id == "sedd"
    t = torch.tensor([0.1, 0.4, 0.7, 0.95])
    sigma = -torch.log1p(-(1 - 1e-3) * t)
    expected = plain(weights(), x, sigma) - (sigma.expm1().log() + math.log(TOKENS))[:, None, None]
    found = teacher.denoiser(x, t).log_score()
    elsewhere = torch.arange(TOKENS + 1) != x[..., None]
    assert (found - expected)[elsewhere].abs().max() < 1e-4
    assert (found[~elsewhere] == 0).all()


def test_radd_gives_its_posterior_at_any_time(tmp_path, x):
    teacher = DDiTCheckpoint(written(tmp_path / "radd", SEDD, weights(adaln=False)), length=4)
    assert isinstance(teacher.denoiser, Mean) and teacher.event_shape == (4,)
    expected = plain(weights(adaln=False), x, None)[..., :TOKENS].log_softmax(-1)
    masked = x == TOKENS
    assert masked.any() and (teacher.denoiser(x, 0.3).log_mean() - expected)[masked].abs().max() < 1e-4
    assert torch.equal(teacher.denoiser(x, 0.3).log_mean(), teacher.denoiser(x, 0.9).log_mean())
    assert (teacher.denoiser(x, 0.3).log_mean().exp().sum(-1) - 1).abs().max() < 1e-5


def test_mdlm_is_told_no_noise_and_drops_the_prefix(tmp_path, x):
    state = weights() | {"rotary_emb.inv_freq": torch.zeros(4)}
    teacher = DDiTCheckpoint(written(tmp_path / "mdlm", MDLM, state, "backbone."))
    expected = plain(weights(), x, torch.zeros(4))[..., :TOKENS].log_softmax(-1)
    masked = x == TOKENS
    assert (teacher.denoiser(x, 0.6).log_mean() - expected)[masked].abs().max() < 1e-4
    samples = teacher.generate(3, {}, seed=0, times=teacher.grid(4))
    assert samples.shape == (3, LENGTH) and int(samples.max()) < TOKENS and len(teacher.fingerprint()) == 64


def test_plain_weights_in_a_pickle_are_read_and_others_are_not(tmp_path, x):
    folder = tmp_path / "radd"
    path = written(folder, SEDD, weights(adaln=False))
    expected = DDiTCheckpoint(path).denoiser(x, 0.5).log_mean()
    (folder / "model.safetensors").unlink()
    torch.save(weights(adaln=False), folder / "pytorch_model.bin")
    assert torch.equal(DDiTCheckpoint(path).denoiser(x, 0.5).log_mean(), expected)
    torch.save({"model": SimpleNamespace()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no plain weights"):
        DDiTCheckpoint(path)


@pytest.mark.parametrize(
    "config, said",
    [
        (SEDD | {"graph": {"type": "simplex"}}, "graph.type = 'simplex'"),
        (MDLM | {"model_type": "DUO"}, "model_type = 'DUO'"),
        ({key: value for key, value in MDLM.items() if key != "n_heads"}, "n_heads"),
        (MDLM | {"n_blocks": 1}, "blocks.1"),
        (MDLM | {"hidden_dim": 32}, "size mismatch"),
    ],
)
def test_what_is_unknown_is_refused(tmp_path, config, said):
    with pytest.raises(ValueError, match=said):
        DDiTCheckpoint(written(tmp_path / "odd", config, weights()))


def test_folders_that_are_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="config.json does not exist"):
        DDiTCheckpoint(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not readable as json"):
        DDiTCheckpoint(str(tmp_path))


# The network itself


def test_the_network_is_told_time_and_class_only_where_it_should():
    from distillkit.discrete.schedule import LogLinear

    x, t = torch.zeros(2, 5, dtype=torch.long), torch.tensor([0.2, 0.9])
    free = DDiT(3, width=8, depth=1, heads=2)
    assert free.sigma_map is None and free(x, t, {}).shape == (2, 5, 4)
    told = DDiT(3, mask=False, width=8, depth=1, heads=2, schedule=LogLinear(), classes={"label": 10})
    for parameter in told.parameters():
        nn.init.normal_(parameter, std=0.3)
    out = told(x, t, {"label": torch.tensor([1, 1])})
    assert out.shape == (2, 5, 3) and not torch.allclose(out[0], out[1])
    assert not torch.allclose(told(x, t, {"label": torch.tensor([1, 10])})[1], out[1])
    with pytest.raises(ValueError, match="conditioned on 'label'"):
        told(x, t, {})
    with pytest.raises(ValueError, match="without adaln"):
        DDiT(3, adaln=False, classes={"label": 10})
    with pytest.raises(ValueError, match="divisible by 2 x heads"):
        DDiT(3, width=10, heads=4)
