"""Proteina: converted checkpoints in the released layout compute the released equations."""

import json
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from helpers import trainer
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

from distillkit.diffusion.process import RectifiedFlow
from distillkit.diffusion.sampling import pure_noise
from distillkit.methods.sid import SiD
from distillkit.students.base import load_student
from distillkit.teachers.key import samples_key
from domains.protein.convert import convert, main, merge_lora
from domains.protein.data import ProteinData
from domains.protein.folds import IdealFolds
from domains.protein.proteina import FOLDS, Proteina, ProteinaTransformer, sde
from tests.battery.conftest import build

SIZES = (3, 5, 7)  # of the fold tables, none left out
CODES = [{"1": 0, "2": 1, "3": 2}, {"1.10": 0, "1.20": 1, "2.40": 2, "3.30": 3, "3.40": 4}]
CODES += [{f"3.40.{10 * k}": k for k in range(7)}]
PLAIN = {
    "name": "ca_af3",
    "token_dim": 24,
    "nlayers": 4,
    "nheads": 3,
    "residual_mha": True,
    "residual_transition": True,
    "parallel_mha_transition": False,
    "use_attn_pair_bias": True,
    "strict_feats": False,
    "feats_init_seq": ["res_seq_pdb_idx", "x_sc", "chain_break_per_res"],
    "feats_cond_seq": ["time_emb", "fold_emb"],
    "t_emb_dim": 16,
    "dim_cond": 20,
    "idx_emb_dim": 8,
    "fold_emb_dim": 6,
    "cath_code_dir": "${oc.env:DATA_PATH}/pdb_raw/",
    "multilabel_mode": "sample",
    "feats_pair_repr": ["rel_seq_sep", "x_sc_pair_dists", "xt_pair_dists"],
    "feats_pair_cond": ["time_emb"],
    "xt_pair_dist_dim": 12,
    "xt_pair_dist_min": 0.1,
    "xt_pair_dist_max": 3,
    "x_sc_pair_dist_dim": 14,
    "x_sc_pair_dist_min": 0.1,
    "x_sc_pair_dist_max": 3,
    "seq_sep_dim": 9,
    "pair_repr_dim": 10,
    "update_pair_repr": False,
    "update_pair_repr_every_n": 2,
    "use_tri_mult": True,
    "num_registers": 3,
    "use_qkln": True,
    "num_buckets_predict_pair": 6,
}
TRI = {**PLAIN, "update_pair_repr": True}


def layout(nn: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that the released code has for a configuration `model.nn`."""
    d, c, p, found = nn["token_dim"], nn["dim_cond"], nn["pair_repr_dim"], {}

    def linear(name, inp, out, bias=True):
        found[f"{name}.weight"] = (out, inp)
        if bias:
            found[f"{name}.bias"] = (out,)

    def norm(name, width):
        found[f"{name}.weight"], found[f"{name}.bias"] = (width,), (width,)

    def transition(name, width, times):
        linear(f"{name}.swish_linear.0", width, 2 * times * width, False)
        linear(f"{name}.linear_out", times * width, width, False)

    def adaptive(name, width):
        norm(f"{name}.norm_cond", c)
        linear(f"{name}.to_gamma.0", c, width)
        linear(f"{name}.to_beta", c, width, False)

    found["registers"] = (nn["num_registers"], d)
    linear("linear_3d_embed", 3, d, False)
    linear("init_repr_factory.linear_out", nn["idx_emb_dim"] + 3 + 1, d, False)
    for level, size in zip("CAT", SIZES, strict=True):
        found[f"cond_factory.feat_creators.1.embedding_{level}.weight"] = (size + 1, nn["fold_emb_dim"])
    linear("cond_factory.linear_out", nn["t_emb_dim"] + 3 * nn["fold_emb_dim"], c, False)
    transition("transition_c_1", c, 2)
    transition("transition_c_2", c, 2)
    pairs = nn["seq_sep_dim"] + nn["x_sc_pair_dist_dim"] + nn["xt_pair_dist_dim"]
    linear("pair_repr_builder.init_repr_factory.linear_out", pairs, p, False)
    norm("pair_repr_builder.init_repr_factory.ln_out", p)
    linear("pair_repr_builder.cond_factory.linear_out", nn["t_emb_dim"], c, False)
    norm("pair_repr_builder.cond_factory.ln_out", c)
    adaptive("pair_repr_builder.adaln", p)
    for i in range(nn["nlayers"]):
        own = f"transformer_layers.{i}"
        adaptive(f"{own}.mhba.adaln", d)
        linear(f"{own}.mhba.mha.to_qkv", d, 3 * d)
        linear(f"{own}.mhba.mha.to_g", d, d)
        linear(f"{own}.mhba.mha.to_out_node", d, d)
        for name, width in (("node_norm", d), ("q_layer_norm", d), ("k_layer_norm", d), ("pair_norm", p)):
            norm(f"{own}.mhba.mha.{name}", width)
        linear(f"{own}.mhba.mha.to_bias", p, nn["nheads"], False)
        linear(f"{own}.mhba.scale_output.to_adaln_zero_gamma.0", c, d)
        adaptive(f"{own}.transition.adaln", d)
        transition(f"{own}.transition.transition", d, 4)
        linear(f"{own}.transition.scale_output.to_adaln_zero_gamma.0", c, d)
    if nn["update_pair_repr"]:
        for i in range(0, nn["nlayers"] - 1, nn["update_pair_repr_every_n"]):
            own = f"pair_update_layers.{i}"
            norm(f"{own}.layer_norm_in", d)
            linear(f"{own}.linear_x", d, 2 * p, False)
            for name in ("tri_mult_out", "tri_mult_in"):
                for part in ("a_p", "a_g", "b_p", "b_g", "g", "z"):
                    linear(f"{own}.{name}.linear_{part}", p, p)
                norm(f"{own}.{name}.layer_norm_in", p)
                norm(f"{own}.{name}.layer_norm_out", p)
            norm(f"{own}.transition_out.layer_norm", p)
            linear(f"{own}.transition_out.linear_1", p, 2 * p)
            linear(f"{own}.transition_out.linear_2", 2 * p, p)
        norm("pair_head_prediction.0", p)
        linear("pair_head_prediction.1", p, nn["num_buckets_predict_pair"])
    norm("coors_3d_decoder.0", d)
    linear("coors_3d_decoder.1", d, 3, False)
    return found


def weights(nn: dict) -> dict[str, Tensor]:
    """Random weights: none zero, none one, so that a forgotten term is noticed."""
    g, found = torch.Generator().manual_seed(0), {}
    for name, shape in layout(nn).items():
        value = torch.randn(shape, generator=g)
        found[name] = value / shape[1] ** 0.5 if len(shape) == 2 and "embedding" not in name else value / 2 + 0.3
    return found


def write(path, nn=PLAIN, state=None, target="v", config=None, **more):
    """A Lightning checkpoint as the released training writes it.

    OmegaConf in its hyper-parameters, weights under `nn.`.
    """
    state = weights(nn) if state is None else state
    config = config or {"model": {"nn": nn, "target_pred": target}, "training": {"self_cond": True, "fold_cond": True}}
    held = {
        "epoch": 3,
        "global_step": 10,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {f"nn.{name}": value for name, value in state.items()},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]}],
        "hyper_parameters": {"cfg_exp": OmegaConf.create(config), "store_dir": "./tmp"},
        "nflops": 0,
    }
    torch.save(held | more, path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Both kinds, converted."""
    root, made = tmp_path_factory.mktemp("proteina"), {}
    torch.save(dict(zip("CAT", CODES, strict=True)), root / "cath_label_mapping.pt")
    for name, nn in (("plain", PLAIN), ("tri", TRI)):
        made[name] = convert(write(root / f"{name}.ckpt", nn), root / name, root / "cath_label_mapping.pt", longest=16)
    return SimpleNamespace(**made, root=root)


def chains(lengths=(13, 9, 16), size=16, seed=1) -> tuple[Tensor, Tensor]:
    mask = torch.arange(size) < torch.tensor(lengths)[:, None]
    x = torch.randn(len(lengths), size, 3, generator=torch.Generator().manual_seed(seed))
    return x * mask[..., None], mask


# ---- the equations once more, for one chain without padding, one-hot and in float64


def stated(w, nn, x, tau, x_sc=None, fold=SIZES):
    w = {name: value.double() for name, value in w.items()}
    n, width = len(x), nn["t_emb_dim"]

    def lin(name, v):
        return v @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(v, name=None):
        v = (v - v.mean(-1, keepdim=True)) / (v.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return v * w[f"{name}.weight"] + w[f"{name}.bias"] if name else v

    def swiglu(name, v):
        a, b = lin(f"{name}.swish_linear.0", v).chunk(2, -1)
        return lin(f"{name}.linear_out", a * b * torch.sigmoid(b))

    def adaptive(name, v, c):
        c = norm(c, f"{name}.norm_cond")
        return norm(v) * torch.sigmoid(lin(f"{name}.to_gamma.0", c)) + lin(f"{name}.to_beta", c)

    def gate(name, c):
        return torch.sigmoid(lin(f"{name}.scale_output.to_adaln_zero_gamma.0", c))

    def one_hot(v, low, high, bins):
        place = sum((v > edge).long() for edge in torch.linspace(low, high, bins - 1, dtype=torch.float32).tolist())
        return F.one_hot(place, bins).double()

    k = torch.arange(width // 2).double()
    when = 2000 * tau * torch.exp(-k * math.log(2000) / (width // 2 - 1))
    when = torch.cat([when.sin(), when.cos()])
    k = torch.arange(nn["idx_emb_dim"] // 2).double()
    index = torch.arange(1, n + 1)[:, None] * math.pi / 2056 ** (2 * k / nn["idx_emb_dim"])
    index = torch.cat([index.sin(), index.cos()], -1)
    tables = [w[f"cond_factory.feat_creators.1.embedding_{level}.weight"] for level in "CAT"]
    c = lin("cond_factory.linear_out", torch.cat([when, *(t[i] for t, i in zip(tables, fold, strict=True))]))
    c = swiglu("transition_c_2", swiglu("transition_c_1", c)).expand(n, -1)
    seen = torch.zeros(n, 3).double() if x_sc is None else x_sc
    h = lin("linear_3d_embed", x) + lin("init_repr_factory.linear_out", torch.cat([index, seen, seen[:, :1] * 0], -1))

    half = nn["seq_sep_dim"] // 2
    apart = (torch.arange(n)[:, None] - torch.arange(n)).clamp(-half, half) + half
    sizes = (nn["x_sc_pair_dist_dim"], nn["xt_pair_dist_dim"])
    known = [F.one_hot(apart, nn["seq_sep_dim"]).double()]
    known += [torch.zeros(n, n, sizes[0])] if x_sc is None else [one_hot(torch.cdist(x_sc, x_sc), 0.1, 3, sizes[0])]
    known += [one_hot(torch.cdist(x, x), 0.1, 3, sizes[1])]
    builder = "pair_repr_builder"
    pair = norm(
        lin(f"{builder}.init_repr_factory.linear_out", torch.cat(known, -1)), f"{builder}.init_repr_factory.ln_out"
    )
    pair_c = norm(lin(f"{builder}.cond_factory.linear_out", when), f"{builder}.cond_factory.ln_out")
    pair = adaptive(f"{builder}.adaln", pair, pair_c)

    r = nn["num_registers"]
    h, c = torch.cat([w["registers"], h]), torch.cat([torch.zeros(r, c.shape[-1]).double(), c])
    whole = torch.zeros(r + n, r + n, pair.shape[-1]).double()
    whole[r:, r:] = pair
    pair = whole
    heads = nn["nheads"]
    for i in range(nn["nlayers"]):
        own, mha = f"transformer_layers.{i}", f"transformer_layers.{i}.mhba.mha"
        v = norm(adaptive(f"{own}.mhba.adaln", h, c), f"{mha}.node_norm")
        q, key, value = lin(f"{mha}.to_qkv", v).chunk(3, -1)
        q, key = norm(q, f"{mha}.q_layer_norm"), norm(key, f"{mha}.k_layer_norm")
        bias, out = lin(f"{mha}.to_bias", norm(pair, f"{mha}.pair_norm")), []
        for head, (a, b, e) in enumerate(zip(*(z.chunk(heads, -1) for z in (q, key, value)), strict=True)):
            out.append(torch.softmax(a @ b.T / a.shape[-1] ** 0.5 + bias[..., head], -1) @ e)
        v = lin(f"{mha}.to_out_node", torch.sigmoid(lin(f"{mha}.to_g", v)) * torch.cat(out, -1))
        h = h + v * gate(f"{own}.mhba", c)
        h = h + swiglu(f"{own}.transition.transition", adaptive(f"{own}.transition.adaln", h, c)) * gate(
            f"{own}.transition", c
        )
        if nn["update_pair_repr"] and i < nn["nlayers"] - 1 and i % nn["update_pair_repr_every_n"] == 0:
            own = f"pair_update_layers.{i}"
            to, come = lin(f"{own}.linear_x", norm(h, f"{own}.layer_norm_in")).chunk(2, -1)
            pair = pair + to[None] + come[:, None]
            for name in ("tri_mult_out", "tri_mult_in"):
                z = norm(pair, f"{own}.{name}.layer_norm_in")
                a, b = (
                    lin(f"{own}.{name}.linear_{s}_p", z) * torch.sigmoid(lin(f"{own}.{name}.linear_{s}_g", z))
                    for s in "ab"
                )
                if name == "tri_mult_in":
                    a, b = a.transpose(0, 1), b.transpose(0, 1)
                z_out = torch.stack([(a[i_][None] * b).sum(1) for i_ in range(len(a))])  # sum over k of a_ik b_jk
                z_out = lin(f"{own}.{name}.linear_z", norm(z_out, f"{own}.{name}.layer_norm_out"))
                pair = pair + z_out * torch.sigmoid(lin(f"{own}.{name}.linear_g", z))
            z = norm(pair, f"{own}.transition_out.layer_norm")
            pair = pair + lin(f"{own}.transition_out.linear_2", lin(f"{own}.transition_out.linear_1", z).relu())
    return lin("coors_3d_decoder.1", norm(h[r:], "coors_3d_decoder.0"))


# ---- what the checkpoints compute


def centred(x):
    return x - x.mean(0, keepdim=True)


@pytest.mark.parametrize("name, nn", [("plain", PLAIN), ("tri", TRI)])
@pytest.mark.parametrize("x_sc", [False, True])
@pytest.mark.parametrize("folds", [False, True])
def test_a_padded_batch_computes_what_the_equations_say_of_each_chain(folders, name, nn, x_sc, folds):
    teacher = Proteina(str(getattr(folders, name)), folds=folds).double()
    (x, mask), t = chains(), torch.tensor([0.9, 0.4, 0.03]).double()
    x = x.double()
    cond = {"mask": mask}
    if folds:
        cond |= teacher.fold(["3.40.20", "2", "x"])
    if x_sc:
        cond["x_sc"] = chains(seed=2)[0].double()
    found, w = teacher.denoiser(x, t, cond), weights(nn)
    for i, length in enumerate(mask.sum(1).tolist()):
        fold = [int(cond[key][i]) for key in FOLDS] if folds else SIZES
        own, seen = centred(x[i, :length]), cond["x_sc"][i, :length] if x_sc else None
        v = stated(w, nn, own, 1 - float(t[i]), seen, fold)
        torch.testing.assert_close(found[i, :length], own + float(t[i]) * centred(v), rtol=0, atol=1e-5)
        torch.testing.assert_close(
            teacher.denoiser.velocity(x, t, cond)[i, :length],
            -centred(v) + (x[i, :length] - own) / float(t[i]),
            rtol=0,
            atol=1e-4,
        )
    assert (found[~mask] == 0).all()


def test_a_checkpoint_that_predicts_positions_is_read_as_that(tmp_path):
    path = convert(write(tmp_path / "x.ckpt", target="x_1"), tmp_path / "out", longest=16)
    (x, mask), t = chains((16,)), torch.tensor([0.7])
    found = Proteina(str(path)).denoiser(x, t, {"mask": mask})
    expected = centred(stated(weights(PLAIN), PLAIN, centred(x[0].double()), 0.3))
    torch.testing.assert_close(found[0].double(), expected, rtol=0, atol=1e-4)


def test_a_checkpoint_without_omegaconf_is_read_as_well(folders, tmp_path):
    """Settings saved as plain dicts, as the refusal of other classes asks for, are read."""
    write(tmp_path / "a.ckpt", hyper_parameters={"cfg_exp": CONFIG})
    again = Proteina(str(convert(tmp_path / "a.ckpt", tmp_path / "out", longest=16)))
    assert again.denoiser.state_dict().keys() == Proteina(str(folders.plain)).denoiser.state_dict().keys()


RELEASED = {  # token_dim, nlayers, nheads, pair_repr_dim, pair updates after every so many layers; millions of weights
    "60M": ((512, 10, 8, 256, 0), 60, 0),
    "200M": ((768, 15, 12, 512, 0), 200, 0),
    "200M with triangles": ((768, 15, 12, 512, 3), 200, 15),
    "400M with triangles": ((1024, 18, 16, 512, 5), 400, 15),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_configurations_have_the_published_sizes(name):
    (d, layers, heads, pair, every), trunk, triangles = RELEASED[name]
    features = {key: value for key, value in PLAIN.items() if key.startswith("feats_")}
    sizes = {"token_dim": d, "nlayers": layers, "nheads": heads, "pair_repr_dim": pair, "dim_cond": 512}
    update = {"update_pair_repr": bool(every), "update_pair_repr_every_n": every or 1, "use_tri_mult": True}
    with torch.device("meta"):
        network = ProteinaTransformer(**sizes, **features, **update, num_registers=10, use_qkln=True)
    count = {of: sum(p.numel() for n, p in network.named_parameters() if ("update" in n) == of) for of in (False, True)}
    assert count[False] / 1e6 == pytest.approx(trunk, rel=0.1) and count[True] / 1e6 == pytest.approx(
        triangles, rel=0.15
    )


@pytest.mark.parametrize("name", ["plain", "tri"])
def test_padding_changes_nothing_bit_for_bit(folders, name):
    teacher = Proteina(str(getattr(folders, name)))
    (x, mask), t = chains(), torch.tensor([0.9, 0.4, 0.03])
    cond = {"mask": mask, "x_sc": chains(seed=2)[0]}
    found = teacher.denoiser(x, t, cond), teacher.denoiser.features(x, t, cond)
    for garbage in (1e6, torch.nan):
        dirty = [torch.where(mask[..., None], value, garbage) for value in (x, cond["x_sc"])]
        again = {"mask": mask, "x_sc": dirty[1]}
        assert torch.equal(teacher.denoiser(dirty[0], t, again), found[0])
        assert torch.equal(teacher.denoiser.features(dirty[0], t, again), found[1])
    wider = {key: F.pad(value, (0, 0) * (value.ndim - 2) + (0, 5)) for key, value in cond.items()}
    more = teacher.denoiser(F.pad(x, (0, 0, 0, 5)), t, wider)
    torch.testing.assert_close(more[:, :16], found[0], rtol=0, atol=1e-5)
    assert (more[:, 16:] == 0).all()


def test_gradients_flow_to_the_positions_and_stay_out_of_the_padding(folders):
    teacher = Proteina(str(folders.tri))
    x, mask = chains()
    x.requires_grad_()
    teacher.denoiser(x, torch.tensor(0.5), {"mask": mask}).square().sum().backward()
    assert (x.grad[mask].abs().sum(-1) > 0).all() and (x.grad[~mask] == 0).all()


# ---- the teacher


def test_the_folder_says_what_the_checkpoint_said(folders):
    teacher = Proteina(str(folders.plain))
    assert teacher.id == "plain" and teacher.event_shape == (16, 3) and teacher.context == ("mask",)
    assert teacher.classes == {} and not teacher.guidable and teacher.self_conditioning
    assert teacher.best == {"solver": "sde", "steps": 400, "noise_scale": 0.45, "self_conditioning": True}
    assert Proteina(str(folders.plain), event_shape=[40, 3]).event_shape == (40, 3)
    folds = Proteina(str(folders.plain), folds=True)
    assert folds.classes == dict(zip(FOLDS, SIZES, strict=True)) and folds.guidable
    held = {name.removeprefix("network."): value for name, value in teacher.denoiser.state_dict().items()}
    expected = weights(PLAIN)
    assert held.keys() == expected.keys() and all(torch.equal(held[name], expected[name]) for name in held)


def test_its_samples_have_a_key_that_knows_the_settings_of_its_sampler(folders):
    def key(**settings):
        teacher = Proteina(str(folders.plain), **settings)
        return json.dumps(samples_key(teacher, 2, {}, 0, "sde", teacher.grid(2), 1.0, 2))

    assert key() == key() and str(folders.plain) not in key()
    assert (
        len({key(), key(noise_scale=0.6), key(self_conditioning=False), key(folds=True), key(event_shape=[9, 3])}) == 5
    )


def test_folds_have_codes_and_none_is_the_null_condition(folders):
    teacher = Proteina(str(folders.plain), folds=True)
    cond = teacher.fold(["3.40.30.720", "3.40.x.x", "2", "x.x.x.x"])
    assert [cond[name].tolist() for name in FOLDS] == [[2, 2, 1, 3], [4, 4, 5, 5], [3, 7, 7, 7]]
    (x, mask), t = chains((9, 9, 9, 9)), torch.tensor(0.5)
    null = teacher.null_condition(cond | {"mask": mask})
    plain = Proteina(str(folders.plain)).denoiser(x, t, {"mask": mask})
    assert torch.equal(teacher.denoiser(x, t, null), plain)
    assert not torch.allclose(teacher.denoiser(x, t, cond | {"mask": mask})[:3], plain[:3])
    with pytest.raises(ValueError, match="Proteina knows no '9'"):
        teacher.fold(["9.10.10"])


@pytest.mark.parametrize("w", [1.0, 2.5])
@pytest.mark.parametrize("self_conditioning", [True, False])
def test_sampling_is_the_released_sde_with_its_grid_its_guidance_and_its_memory(folders, w, self_conditioning):
    teacher = Proteina(str(folders.plain), folds=True, self_conditioning=self_conditioning).double()
    (noise, mask), steps = chains((9, 9), 9), 6
    noise, cond = noise.double(), {"mask": mask, **teacher.fold(["3.40.30", "1"])}
    draws = [torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(10 + i)).double() for i in range(steps + 1)]
    grid = 1 - torch.logspace(-2, 0, steps + 1, dtype=torch.float64).flip(0)
    grid = (grid - grid.min()) / (grid - grid.min()).max()
    expected = []
    for row in range(2):  # in Proteina's time, centred after every step
        x, fold, seen = centred(noise[row]), [int(cond[name][row]) for name in FOLDS], None
        for i in range(steps):
            tau, dt = float(grid[i]), float(grid[i + 1] - grid[i])
            x_1 = [x + (1 - tau) * stated(weights(PLAIN), PLAIN, x, tau, seen, f) for f in (fold, SIZES)]
            x_1 = centred(w * x_1[0] + (1 - w) * x_1[1])
            seen = x_1 if self_conditioning else None
            v = (x_1 - x) / (1 - tau)
            g = 1 / (tau + 0.01)
            if tau > 0.99:
                x = x + v * dt
            else:
                score = (tau * v - x) / (1 - tau)
                x = x + (v + g * score) * dt + math.sqrt(2 * g * 0.45 * dt) * draws[i + 1][row]
            x = centred(x)
        expected.append(x)
    # the released sampler ends with an Euler step to tau = 1; where it still has noise by then,
    # ours has not
    found = teacher.sample(noise, cond, steps, "sde", kappa=w, draw=lambda i: draws[i])
    each = teacher.sample(noise, cond, steps, "sde", kappa=torch.tensor([w, 0.0]), draw=lambda i: draws[i])
    torch.testing.assert_close(each[0], found[0], rtol=0, atol=1e-6)
    last = float(grid[-2])
    assert last < 0.99  # with 400 steps it is above, and both end in the same way
    x_end = torch.stack(expected)
    g, dt = 1 / (last + 0.01), 1 - last
    # x_end = found + g score dt + noise, centred
    extra = torch.stack([centred(d) for d in draws[steps]]) * math.sqrt(2 * g * 0.45 * dt)
    before = teacher_before_last(teacher, noise, cond, steps, w, draws)
    score = (last * (found - before) / dt - before) / dt
    torch.testing.assert_close(x_end, found + g * score * dt + extra, rtol=0, atol=1e-3)


def teacher_before_last(teacher, noise, cond, steps, w, draws):
    """Where its sampler stands before the last call of the denoiser, centred."""
    seen = []

    def spy(denoise, process, x, times, noise):
        def watched(x, t):
            seen.append(x)
            return denoise(x, t)

        return teacher.solvers["sde"](watched, process, x, times, noise)

    times = teacher.grid(steps)
    teacher.solve(noise, cond, spy, times, w, lambda i: draws[i])
    return torch.stack([centred(x) for x in seen[-1]])


def test_the_grid_is_the_released_one(folders):
    grid = Proteina(str(folders.plain)).grid(400)
    assert grid[0] == 1 and (grid.diff() < 0).all() and float(grid[-1]) < 0.01
    assert float(1 - grid[1]) == pytest.approx(0.0116, abs=1e-4) and float(grid[-1]) == pytest.approx(1.2e-4, rel=0.05)


def test_the_sde_keeps_a_gaussian_that_it_should():
    """With the true score of N(0, s^2) and gamma 1 many steps leave N(0, s^2); gamma 0 less."""
    s, process, g = 0.5, RectifiedFlow(), torch.Generator().manual_seed(0)

    def denoise(x, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha * s**2 / (alpha**2 * s**2 + sigma**2) * x

    grid = (10 ** (-2 * torch.arange(400, dtype=torch.float64) / 400) - 0.01) / 0.99
    eps = torch.randn(20000, generator=g, dtype=torch.float64)
    spread = {}
    for gamma in (1.0, 0.0):
        x = sde(
            denoise,
            process,
            pure_noise(process, eps, grid[0]),
            grid,
            lambda i: torch.randn(20000, generator=g, dtype=torch.float64),
            gamma,
        )
        spread[gamma] = float(x.std())
    assert spread[1.0] == pytest.approx(s, rel=0.05) and spread[0.0] < 0.5 * s


# ---- refusals


class Foreign:
    def __reduce__(self):
        return (print, ("this ran",))


def drop(name):
    state = weights(PLAIN)
    del state[name]
    return state


CONFIG = {"model": {"nn": PLAIN, "target_pred": "v"}, "training": {"self_cond": True}}
REFUSALS = {
    "it would run code": (
        lambda p: write(p, datamodule_hyper_parameters=Foreign()),
        "asks for (builtins.)?print, which",
    ),
    "it is no checkpoint": (lambda p: p.write_bytes(b"nothing"), "cannot be read as plain tensors"),
    "it is a pickle of its own": (lambda p: p.write_bytes(pickle.dumps(Foreign())), "cannot be read|asks for"),
    "it is another model's": (lambda p: torch.save({"state_dict": {}}, p), "lacks state_dict or hyper_parameters"),
    "its settings are none": (lambda p: write(p, config={"model": {"nn": None, "target_pred": "v"}}), "of other types"),
    "its weights are none": (lambda p: write(p, state={"registers": 3}), "of other types"),
    "a weight is missing": (
        lambda p: write(p, state=drop("coors_3d_decoder.1.weight")),
        r"1 weights are missing \['coors_3d_decoder.1.weight'\], 0 unknown",
    ),
    "a weight is unknown": (
        lambda p: write(p, state=weights(PLAIN) | {"extra.weight": torch.ones(1)}),
        r"1 unknown \['extra.weight'\]",
    ),
    "a weight has another shape": (
        lambda p: write(p, state=weights(PLAIN) | {"registers": torch.ones(4, 24)}),
        r"registers is \[4, 24\] instead of \[3, 24\]",
    ),
    "a feature is unknown": (
        lambda p: write(p, {**PLAIN, "feats_pair_repr": ["motif_structure_mask"]}, weights(PLAIN)),
        "feature 'motif_structure_mask' is not known here",
    ),
    "its layers are parallel": (
        lambda p: write(p, {**PLAIN, "parallel_mha_transition": True}, weights(PLAIN)),
        "parallel_mha_transition = True; only False",
    ),
    "its target is unknown": (lambda p: write(p, target="eps"), "target_pred must be v or x_1, got 'eps'"),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("case", REFUSALS)
def test_a_checkpoint_is_refused_in_one_sentence_when(tmp_path, capsys, case):
    make, sentence = REFUSALS[case]
    make(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=sentence) as error:
        convert(tmp_path / "a.ckpt", tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    assert "this ran" not in capsys.readouterr().out


def test_tables_of_codes_must_be_the_checkpoints(folders, tmp_path):
    torch.save({"C": CODES[0], "A": CODES[1], "T": {"3.40.10": 0}}, tmp_path / "cath.pt")
    with pytest.raises(ValueError, match=r"numbers \[3, 5, 1\].*the checkpoint \[3, 5, 7\]"):
        convert(folders.root / "plain.ckpt", tmp_path / "out", tmp_path / "cath.pt")
    torch.save([1], tmp_path / "cath.pt")
    with pytest.raises(ValueError, match="does not hold the tables"):
        convert(folders.root / "plain.ckpt", tmp_path / "out", tmp_path / "cath.pt")
    path = convert(folders.root / "plain.ckpt", tmp_path / "out")
    with pytest.raises(ValueError, match="convert with --cath"):
        Proteina(str(path)).fold(["1"])
    with pytest.raises(ValueError, match="holds a teacher already"):
        convert(folders.root / "plain.ckpt", path)


def test_low_rank_changes_are_added_to_their_weights(tmp_path):
    g = torch.Generator().manual_seed(3)
    linear, table = "transition_c_1.linear_out", "cond_factory.feat_creators.1.embedding_T"
    state = weights(PLAIN)
    changed = dict(state)
    for stem in (linear, table):
        rows, columns = state[f"{stem}.weight"].shape
        rows, columns = (columns, rows) if stem == table else (rows, columns)  # loralib turns tables around
        changed[f"{stem}.lora_A"] = torch.randn(2, columns, generator=g)
        changed[f"{stem}.lora_B"] = torch.randn(rows, 2, generator=g)
    merged = merge_lora(changed, {"r": 2, "lora_alpha": 8.0})
    assert merged.keys() == state.keys()
    x = torch.randn(4, state[f"{linear}.weight"].shape[1], generator=g)
    a, b = changed[f"{linear}.lora_A"], changed[f"{linear}.lora_B"]
    torch.testing.assert_close(x @ merged[f"{linear}.weight"].T, x @ state[f"{linear}.weight"].T + 4 * x @ a.T @ b.T)
    a, b = changed[f"{table}.lora_A"], changed[f"{table}.lora_B"]
    torch.testing.assert_close(merged[f"{table}.weight"][5], state[f"{table}.weight"][5] + 4 * a[:, 5] @ b.T)
    with pytest.raises(ValueError, match="is changed by LoRA, but"):
        merge_lora(changed, {})
    config = {**CONFIG, "lora": {"r": 2, "lora_alpha": 8.0}}
    convert(write(tmp_path / "lora.ckpt", state=changed, config=config), tmp_path / "out")


# ---- from the command line to a student


def test_the_command_line_converts_and_refuses(folders, tmp_path, capsys):
    assert main([str(folders.root / "plain.ckpt"), str(tmp_path / "out"), "--longest", "16"]) == 0
    assert "teacher=proteina teacher.path=" in capsys.readouterr().out
    assert main([str(tmp_path / "none.ckpt"), str(tmp_path / "more")]) == 1
    assert capsys.readouterr().err.startswith("error: ") and main([]) == 2
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0 and "cath_label_mapping.pt" in capsys.readouterr().out


def test_it_is_distilled_by_its_words_and_the_student_comes_back(folders, tmp_path):
    """Several steps, each matched: its fake score can be told which."""
    words = (
        "data.chains.train=24",
        "data.chains.val=3",
        "data.chains.test=3",
        "data.batch_size=2",
        "model.num_steps=2",
        "model.times=null",
    )
    own = build("domain=protein", "method=sid", "teacher=proteina", f"teacher.path={folders.tri}", *words)
    own.data.setup()
    own.model.require(own.data)
    own.model.check(own.data)
    assert isinstance(own.model, SiD) and isinstance(own.model.teacher, Proteina) and own.model.tells_steps
    before = own.model.teacher.fingerprint()
    trainer(max_steps=4).fit(own.model, own.data)
    assert own.model.teacher.fingerprint() == before and not own.model.bad_steps.any()
    own.model.export(tmp_path / "student")
    cond = {"mask": own.data.conditions(3)["mask"]}
    samples = load_student(tmp_path / "student").sample(3, cond)
    assert torch.equal(samples, own.model.sample(cond, 3, 0)) and (samples[~cond["mask"]] == 0).all()


def test_data_of_other_folds_are_refused(folders):
    data = ProteinData(IdealFolds(6, 3, 3))
    model = SiD(Proteina(str(folders.plain), event_shape=(64, 3), folds=True), num_steps=1)
    with pytest.raises(ValueError, match="the teacher knows 3 classes of 'cath_c', the data have none"):
        model.check_classes(data)
