"""TRELLIS from a local folder: its networks, how they are read, and its teachers."""

import json

import pytest
import torch
from helpers import trainer
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from distillkit.data import DistillData, TensorData
from distillkit.methods.dmd import DMD
from distillkit.methods.sid import SiD
from distillkit.students.base import load_student
from distillkit.teachers.folder import FolderTeacher
from domains.threed.trellis import (
    SLatFlowModel,
    SparseStructureDecoder,
    SparseStructureFlowModel,
    TrellisFeatures,
    TrellisStructure,
    load_decoder,
    occupied,
    rescaled_times,
)
from domains.threed.trellis.sparse import SparseConv3d, Voxels

COMMON = {
    "in_channels": 2,
    "out_channels": 2,
    "model_channels": 28,
    "cond_channels": 5,
    "num_heads": 2,
    "pe_mode": "ape",
}
STRUCTURE = {**COMMON, "resolution": 4, "num_blocks": 2, "patch_size": 1, "qk_rms_norm": True}
FEATURES = {**COMMON, "resolution": 8, "num_blocks": 1, "patch_size": 2, "io_block_channels": [12], "qk_rms_norm": True}
DECODER = {"out_channels": 1, "latent_channels": 2, "num_res_blocks": 1, "channels": [8, 4], "num_res_blocks_middle": 1}
SAMPLER = {
    "name": "FlowEulerGuidanceIntervalSampler",
    "args": {"sigma_min": 1e-5},
    "params": {"steps": 5, "cfg_strength": 5.0, "cfg_interval": [0.5, 1.0], "rescale_t": 3.0},
}
UNITS = {"mean": [1.0, -2.0], "std": [2.0, 0.5]}
MODELS = {
    "sparse_structure_flow_model": ("ss_flow", "SparseStructureFlowModel", SparseStructureFlowModel, STRUCTURE),
    "slat_flow_model": ("slat_flow", "ElasticSLatFlowModel", SLatFlowModel, FEATURES),
    "sparse_structure_decoder": ("ss_dec", "SparseStructureDecoder", SparseStructureDecoder, DECODER),
}


def rand(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_weights(network: nn.Module) -> nn.Module:
    """Nothing zero, nothing one, nothing that a forgotten term would leave unnoticed."""
    for i, p in enumerate(network.parameters()):
        p.data = rand(*p.shape, seed=i) / (p[0].numel() ** 0.5 if p.ndim > 1 else 2)
    return network


@pytest.fixture
def folder(tmp_path):
    return release(tmp_path)


def release(folder):
    """A release in small, in half precision, written into a folder."""
    (folder / "ckpts").mkdir()
    for stem, name, kind, args in MODELS.values():
        network = random_weights(kind(**args)).half()
        (folder / f"ckpts/{stem}.json").write_text(json.dumps({"name": name, "args": args | {"use_fp16": True}}))
        save_file(network.state_dict(), folder / f"ckpts/{stem}.safetensors")
    models = {role: f"ckpts/{stem}" for role, (stem, *_) in MODELS.items()}
    args = {"models": models, "sparse_structure_sampler": SAMPLER, "slat_sampler": SAMPLER, "slat_normalization": UNITS}
    (folder / "pipeline.json").write_text(json.dumps({"name": "TrellisImageTo3DPipeline", "args": args}))
    return folder


def edit(file, change):
    """Rewrite a json file."""
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


# What the networks compute, written out with the released names


def attention(w, name, x, context=None, heads=2, rms=False):
    if context is None:
        q, k, v = F.linear(x, w[f"{name}.to_qkv.weight"], w[f"{name}.to_qkv.bias"]).chunk(3, -1)
    else:
        q = F.linear(x, w[f"{name}.to_q.weight"], w[f"{name}.to_q.bias"])
        k, v = F.linear(context, w[f"{name}.to_kv.weight"], w[f"{name}.to_kv.bias"]).chunk(2, -1)
    out = []
    for i in range(heads):  # one head, one matrix at a time
        d = q.shape[-1] // heads
        qi, ki, vi = (m[..., i * d : (i + 1) * d] for m in (q, k, v))
        if rms:
            qi = qi / qi.square().mean(-1, keepdim=True).sqrt() * w[f"{name}.q_rms_norm.gamma"][i]
            ki = ki / ki.square().mean(-1, keepdim=True).sqrt() * w[f"{name}.k_rms_norm.gamma"][i]
        out.append((qi @ ki.mT / d**0.5).softmax(-1) @ vi)
    return F.linear(torch.cat(out, -1), w[f"{name}.to_out.weight"], w[f"{name}.to_out.bias"])


def norm(x, eps=1e-6):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def mlp(w, name, x, act):
    return F.linear(
        act(F.linear(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"])), w[f"{name}.2.weight"], w[f"{name}.2.bias"]
    )


EARLY = torch.tensor([0.002, 0.009], dtype=torch.float64)  # rates are float32: at small angles their rounding is small


def time_embedding(w, t):
    rates = torch.tensor([10000 ** (-i / 128) for i in range(128)], dtype=torch.float64)
    angles = 1000 * t[:, None] * rates
    return mlp(w, "t_embedder.mlp", torch.cat([angles.cos(), angles.sin()], -1), F.silu)


def blocks(w, x, emb, context, num, rms=True, rms_cross=False):
    for i in range(num):
        b = {k.removeprefix(f"blocks.{i}."): v for k, v in w.items() if k.startswith(f"blocks.{i}.")}
        last = b if "adaLN_modulation.1.weight" in b else w
        six = F.linear(F.silu(emb), last["adaLN_modulation.1.weight"], last["adaLN_modulation.1.bias"])
        s0, c0, g0, s1, c1, g1 = six[:, None].chunk(6, -1)
        x = x + g0 * attention(b, "self_attn", norm(x) * (1 + c0) + s0, rms=rms)
        x = x + attention(b, "cross_attn", norm(x) * b["norm2.weight"] + b["norm2.bias"], context, rms=rms_cross)
        x = x + g1 * mlp(b, "mlp.mlp", norm(x) * (1 + c1) + s1, lambda h: F.gelu(h, approximate="tanh"))
    return x


def places(side, width):
    """Embedding of the places of a full grid, row by row."""
    rows = []
    for place in torch.cartesian_prod(*[torch.arange(side)] * 3).tolist():
        row = []
        for u in place:
            angles = u * torch.tensor([10000 ** (-i / (width // 6)) for i in range(width // 6)])
            row += [angles.sin(), angles.cos()]
        rows.append(torch.cat([*row, torch.zeros(width - width // 6 * 6, dtype=torch.float64)]))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "more", [{}, {"patch_size": 2}, {"share_mod": True}, {"qk_rms_norm": False, "qk_rms_norm_cross": True}]
)
def test_the_structure_flow_is_what_its_formulas_say(more):
    args = STRUCTURE | more
    network = random_weights(SparseStructureFlowModel(**args)).double()
    x, t, cond = rand(2, 2, 4, 4, 4).double(), EARLY, rand(2, 3, 5).double()
    w, p = network.state_dict(), args["patch_size"]
    side = 4 // p
    patches = x.unfold(2, p, p).unfold(3, p, p).unfold(4, p, p)  # b c x y z p q r
    tokens = patches.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(2, side**3, -1)
    h = F.linear(tokens, w["input_layer.weight"], w["input_layer.bias"]) + places(side, 28)
    h = blocks(w, h, time_embedding(w, t), cond, 2, args["qk_rms_norm"], args.get("qk_rms_norm_cross", False))
    h = F.linear(norm(h, 1e-5), w["out_layer.weight"], w["out_layer.bias"])
    by_hand = torch.zeros_like(x)
    for i, (a, b, c) in enumerate(torch.cartesian_prod(*[torch.arange(side)] * 3).tolist()):
        by_hand[:, :, a * p : (a + 1) * p, b * p : (b + 1) * p, c * p : (c + 1) * p] = h[:, i].reshape(2, 2, p, p, p)
    torch.testing.assert_close(network(x, t, {"cond": cond}), by_hand, rtol=0, atol=1e-5)  # positions are float32
    assert network.features(x, t, {"cond": cond}).shape == (2, network.feature_channels, side**3)


def res_block(w, name, x, emb, move=None):
    """Dense convolutions, plain averages (with the extra zero) and plain repeats.

    On a full grid, [B, side, side, side, C].
    """
    b = {k.removeprefix(f"{name}."): v for k, v in w.items() if k.startswith(f"{name}.")}

    def conv(layer, h):
        weight = b[f"{layer}.conv.weight"].permute(0, 4, 1, 2, 3)
        return F.conv3d(h.movedim(-1, 1), weight, b[f"{layer}.conv.bias"], padding=1).movedim(1, -1)

    if move == "down":
        x = 8 / 9 * F.avg_pool3d(x.movedim(-1, 1), 2).movedim(1, -1)
    if move == "up":
        x = F.interpolate(x.movedim(-1, 1), scale_factor=2).movedim(1, -1)
    six = F.linear(F.silu(emb), b["emb_layers.1.weight"], b["emb_layers.1.bias"])[:, None, None, None]
    scale, shift = six.chunk(2, -1)
    h = conv("conv1", F.silu(norm(x) * b["norm1.weight"] + b["norm1.bias"]))
    h = conv("conv2", F.silu(norm(h) * (1 + scale) + shift))
    skip = "skip_connection.weight" in b
    return h + (F.linear(x, b["skip_connection.weight"], b["skip_connection.bias"]) if skip else x)


def test_the_feature_flow_on_a_full_grid_is_a_dense_network():
    network = random_weights(SLatFlowModel(**FEATURES | {"resolution": 4})).double()
    x, t, context = rand(2, 64, 2).double(), EARLY, rand(2, 3, 5).double()
    coords = torch.cartesian_prod(*[torch.arange(4)] * 3).expand(2, -1, -1)
    w = network.state_dict()
    emb = time_embedding(w, t)
    h = F.linear(x, w["input_layer.weight"], w["input_layer.bias"]).reshape(2, 4, 4, 4, 12)
    fine = res_block(w, "input_blocks.0", h, emb)
    coarse = res_block(w, "input_blocks.1", fine, emb, "down")
    h = blocks(w, coarse.reshape(2, 8, 28) + places(2, 28), emb, context, 1).reshape(2, 2, 2, 2, 28)
    h = res_block(w, "out_blocks.0", torch.cat([h, coarse], -1), emb, "up")
    h = res_block(w, "out_blocks.1", torch.cat([h, fine], -1), emb)
    by_hand = F.linear(norm(h.reshape(2, 64, 12), 1e-5), w["out_layer.weight"], w["out_layer.bias"])
    out = network(x, t, {"coords": coords, "mask": torch.ones(2, 64, dtype=bool), "cond": context})
    torch.testing.assert_close(out, by_hand, rtol=0, atol=1e-5)


def test_a_sparse_convolution_is_a_dense_one_read_where_there_is_something():
    there = torch.rand(2, 5, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.4
    there[1, 0, 0, 0] = there[1, 4, 4, 4] = True  # the corners touch the border
    feats, index = rand(int(there.sum()), 3), there.nonzero()
    conv = random_weights(SparseConv3d(3, 4))
    grid = torch.zeros(2, 5, 5, 5, 3).index_put(tuple(index.T), feats)
    dense = F.conv3d(grid.movedim(-1, 1), conv.conv["weight"].permute(0, 4, 1, 2, 3), conv.conv["bias"], padding=1)
    out = conv(feats, Voxels(index[:, 0], index[:, 1:], 2, 5))
    torch.testing.assert_close(out, dense.movedim(1, -1)[there], rtol=0, atol=1e-5)


def test_the_decoder_is_what_its_formulas_say():
    network, x = random_weights(SparseStructureDecoder(**DECODER)).double(), rand(2, 2, 4, 4, 4).double()
    w = network.state_dict()

    def conv(name, h):
        return F.conv3d(h, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)

    def activate(name, h):
        return F.silu((norm(h.movedim(1, -1), 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]).movedim(-1, 1))

    def res(name, h):
        return h + conv(f"{name}.conv2", activate(f"{name}.norm2", conv(f"{name}.conv1", activate(f"{name}.norm1", h))))

    h = conv("blocks.1.conv", res("blocks.0", res("middle_block.0", conv("input_layer", x))))
    fine = torch.zeros(2, 4, 8, 8, 8, dtype=torch.float64)
    for p, q, r in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():  # eight channels become eight children
        fine[:, :, p::2, q::2, r::2] = h[:, 4 * p + 2 * q + r :: 8]
    by_hand = conv("out_layer.2", activate("out_layer.0", res("blocks.2", fine)))
    torch.testing.assert_close(network(x), by_hand)


SIZES = {  # bytes of the files of TRELLIS-image-large, and what in them is in half precision
    1130770840: (SparseStructureFlowModel, {"resolution": 16, "patch_size": 1}, ("blocks",)),
    1203755136: (
        SLatFlowModel,
        {"resolution": 64, "patch_size": 2, "num_io_res_blocks": 2, "io_block_channels": [128]},
        ("blocks", "input_blocks", "out_blocks"),
    ),
    147591972: (
        SparseStructureDecoder,
        {"out_channels": 1, "latent_channels": 8, "num_res_blocks": 2, "channels": [512, 128, 32]},
        ("blocks", "middle_block"),
    ),
}


@pytest.mark.parametrize("size", SIZES)
def test_keys_shapes_and_precisions_fill_the_released_files_to_the_byte(size):
    kind, args, half = SIZES[size]
    if kind is not SparseStructureDecoder:
        args = args | {"in_channels": 8, "out_channels": 8, "model_channels": 1024, "cond_channels": 1024}
        args = args | {"num_blocks": 24, "num_heads": 16, "qk_rms_norm": True}
    with torch.device("meta"):
        network = kind(**args)
    rounded = {
        f"{prefix}.{name}"
        for prefix, module in network.named_modules()
        if prefix.split(".")[0] in half and isinstance(module, (nn.Linear, nn.Conv3d, nn.ParameterDict))
        for name, _ in module.named_parameters()
    }
    header, end = {}, 0
    state = network.state_dict()
    for name in sorted(state, key=lambda name: (name in rounded, name)):  # safetensors: wider types first, then by name
        start, end = end, end + state[name].numel() * (2 if name in rounded else 4)
        kept = "F16" if name in rounded else "F32"
        header[name] = {"dtype": kept, "shape": list(state[name].shape), "data_offsets": [start, end]}
    written = len(json.dumps(header, separators=(",", ":")))
    assert 8 + -(-written // 8) * 8 + end == size


# Sets


def sets(network, cond, x):
    return network(x, torch.tensor([0.3, 0.8]), cond)


def some_voxels(sizes=(9, 5), side=8, seed=3):
    generator = torch.Generator().manual_seed(seed)
    coords = torch.zeros(len(sizes), max(sizes), 3, dtype=torch.int64)
    for i, size in enumerate(sizes):
        code = torch.randperm(side**3, generator=generator)[:size]
        coords[i, :size] = torch.stack([code // side**2, code // side % side, code % side], 1)
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    return {"coords": coords, "mask": mask, "cond": rand(len(sizes), 3, 5)}


def test_features_depend_neither_on_the_order_of_voxels_nor_on_padding_nor_on_the_other_samples():
    network, cond, x = random_weights(SLatFlowModel(**FEATURES)), some_voxels(), rand(2, 9, 2)
    out = sets(network, cond, x)
    assert (out[~cond["mask"]] == 0).all() and (out[cond["mask"]] != 0).all()
    order = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(i)) for i in range(2)])

    def shuffle(v):
        return v.gather(1, order.reshape(2, 9, *[1] * (v.ndim - 2)).expand_as(v))

    moved = {"coords": shuffle(cond["coords"]), "mask": shuffle(cond["mask"]), "cond": cond["cond"]}
    torch.testing.assert_close(sets(network, moved, shuffle(x)), shuffle(out), rtol=0, atol=1e-4)
    hostile = {**cond, "coords": torch.where(cond["mask"][..., None], cond["coords"], -99)}
    assert torch.equal(sets(network, hostile, torch.where(cond["mask"][..., None], x, torch.nan)), out)
    alone = {name: value[1:, :5] if name != "cond" else value[1:] for name, value in cond.items()}
    one = network(x[1:, :5], torch.tensor([0.8]), alone)
    torch.testing.assert_close(one, out[1:, :5], rtol=0, atol=1e-4)


def test_an_empty_sample_gives_no_nan_to_anybody():
    network, cond = random_weights(SLatFlowModel(**FEATURES)), some_voxels()
    cond["mask"][1] = False
    out = sets(network, cond, rand(2, 9, 2))
    out.square().sum().backward()
    assert out[0].isfinite().all() and (out[1] == 0).all()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_voxels_outside_the_grid_are_refused():
    network, cond = SLatFlowModel(**FEATURES), some_voxels()
    cond["coords"][0, 0, 1] = 8
    with pytest.raises(ValueError, match=r"voxels lie in 0 \.\. 7, but coords reach from \d to 8"):
        sets(network, cond, rand(2, 9, 2))


def test_occupied_voxels_are_those_with_a_positive_logit_row_by_row():
    logits = torch.full((2, 1, 3, 3, 3), -1.0)
    for place in ((0, 0, 2, 1, 0), (0, 0, 0, 1, 2), (1, 0, 1, 1, 1)):
        logits[place] = 0.5
    logits[1, 0, 0, 0, 0] = 0.0
    cond = occupied(logits, size=4)
    assert cond["mask"].tolist() == [[True, True, False, False], [True, False, False, False]]
    assert cond["coords"][cond["mask"]].tolist() == [[0, 1, 2], [2, 1, 0], [1, 1, 1]]
    with pytest.raises(ValueError, match="a structure has 2 voxels, but sets hold 1"):
        occupied(logits, size=1)


# Teachers


def test_weights_are_read_as_they_are_and_computed_with_in_float32(folder):
    teacher, decoder = TrellisStructure(str(folder)), load_decoder(str(folder))
    expected = random_weights(SparseStructureFlowModel(**STRUCTURE)).half()
    for name, value in teacher.denoiser.network.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, expected.state_dict()[name].float()), name
    single = TrellisStructure(str(folder / "ckpts/ss_flow.json"))
    assert single.fingerprint() == teacher.fingerprint()
    assert teacher.event_shape == (2, 4, 4, 4) and teacher.context == ("cond",)
    assert not any(p.requires_grad for module in (teacher, decoder) for p in module.parameters())


def test_the_network_predicts_the_velocity_from_data_to_noise(folder):
    teacher, t = TrellisStructure(str(folder)), torch.tensor([0.3, 1.0])
    x, cond = rand(2, 2, 4, 4, 4), {"cond": rand(2, 3, 5)}
    v = teacher.denoiser.network(x, t, cond)
    torch.testing.assert_close(teacher.denoiser(x, t, cond), x - t.reshape(-1, 1, 1, 1, 1) * v, rtol=0, atol=1e-5)
    torch.testing.assert_close(teacher.denoiser.velocity(x, t, cond), v, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "w, rescale, interval", [(0, 1, (0, 1)), (5, 3, (0.5, 1)), (3, 1, (0, 1)), (7.5, 3, (0.5, 0.95))]
)
def test_sampling_is_trellis_own_euler_with_its_grid_and_guidance(folder, w, rescale, interval):
    teacher = TrellisStructure(str(folder)).double()
    network, steps = teacher.denoiser.network, 5
    noise, cond = rand(2, 2, 4, 4, 4).double(), {"cond": rand(2, 3, 5).double()}
    x, null = noise, {"cond": torch.zeros_like(cond["cond"])}
    grid = [rescale * u / (1 + (rescale - 1) * u) for u in (1 - i / steps for i in range(steps + 1))]
    for t, t_next in zip(grid, grid[1:], strict=False):
        times = torch.full((2,), t, dtype=torch.float64)
        v = network(x, times, cond)
        if interval[0] <= t <= interval[1]:
            v = (1 + w) * v - w * network(x, times, null)
        x = x - (t - t_next) * v
    teacher.interval, teacher.rescale_t = interval, rescale
    ours = teacher.sample(noise, cond, steps, kappa=1 + w)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-6)
    each = teacher.sample(noise, cond, steps, kappa=torch.tensor([1.0 + w, 3.0]))
    other = teacher.sample(noise, cond, steps, kappa=3.0)
    torch.testing.assert_close(each, torch.stack([ours[0], other[1]]), rtol=0, atol=1e-6)


def test_the_released_sampler_is_read_from_the_pipeline(folder):
    teacher, plain = TrellisStructure(str(folder)), TrellisStructure(str(folder / "ckpts/ss_flow.safetensors"))
    assert teacher.kappa == 6.0 and teacher.interval == (0.5, 1.0)
    assert teacher.best == {"solver": "euler", "steps": 5}
    noise, cond = rand(1, 2, 4, 4, 4), {"cond": rand(1, 3, 5)}
    assert plain.kappa == 1 and plain.interval == (0.0, 1.0)
    everywhere = plain.sample(noise, cond, kappa=6.0, times=rescaled_times(5, 3.0))
    plain.interval = (0.5, 1.0)
    explicit = plain.sample(noise, cond, kappa=6.0, times=rescaled_times(5, 3.0))
    assert torch.equal(teacher.sample(noise, cond, kappa=teacher.kappa), explicit)
    assert not torch.allclose(everywhere, explicit)  # outside the interval guidance is off


def test_text_models_are_guided_against_the_empty_prompt_and_image_models_against_zeros(folder):
    cond = {"cond": rand(2, 3, 5)}
    assert (TrellisStructure(str(folder)).null_condition(cond)["cond"] == 0).all()
    edit(folder / "pipeline.json", lambda data: data.update(name="TrellisTextTo3DPipeline"))
    with pytest.raises(ValueError, match="needs teacher.empty_prompt=FILE.safetensors"):
        TrellisStructure(str(folder))
    file, empty = str(folder / "empty.safetensors"), rand(3, 5, seed=9)
    save_file({"cond": empty}, file)
    teacher = TrellisStructure(str(folder), empty_prompt=file)
    assert torch.equal(teacher.null_condition(cond)["cond"], empty.expand(2, 3, 5))
    with pytest.raises(ValueError, match=r"conditions are \[4, 5\], those of the empty prompt \[3, 5\]"):
        teacher.null_condition({"cond": rand(2, 4, 5)})
    save_file({"cond": rand(3, 6)}, file)
    with pytest.raises(ValueError, match=r"must hold `cond`.*\[tokens, 5\]"):
        TrellisStructure(str(folder), empty_prompt=file)


def test_noise_becomes_a_structure_becomes_voxels_becomes_features_in_the_decoders_units(folder):
    structure, decoder, features = TrellisStructure(str(folder)), load_decoder(str(folder)), None
    cond = {"cond": rand(2, 3, 5)}
    logits = decoder(structure.sample(rand(2, 2, 4, 4, 4), cond, kappa=structure.kappa))
    assert logits.shape == (2, 1, 8, 8, 8)
    features = TrellisFeatures(str(folder), max_voxels=512)
    assert features.event_shape == (512, 2) and features.context == ("coords", "mask", "cond")
    cond = cond | occupied(logits, size=512)
    mask = cond["mask"]
    assert 0 < mask.sum() < mask.numel()
    samples = features.sample(rand(*features.shape(2, cond)), cond, kappa=features.kappa)
    decoded = features.denormalise(samples, mask)
    by_hand = samples[mask] * torch.tensor(UNITS["std"]) + torch.tensor(UNITS["mean"])
    torch.testing.assert_close(decoded[mask], by_hand)
    assert samples.isfinite().all() and (decoded[~mask] == 0).all()
    torch.testing.assert_close(features.normalise(decoded, mask), samples, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="the units of the features stand in pipeline.json"):
        TrellisFeatures(str(folder / "ckpts/slat_flow.json")).denormalise(samples, mask)


# Refusals


def damage_weights(change):
    def damage(folder):
        file = folder / "ckpts/ss_flow.safetensors"
        state = load_file(file)
        change(state)
        save_file(state, file)

    return damage


def to_pickle(folder):
    file = folder / "ckpts/ss_flow.safetensors"
    torch.save({}, file.with_suffix(".pt"))
    file.unlink()


def config(**args):
    return lambda folder: edit(folder / "ckpts/ss_flow.json", lambda data: data["args"].update(args))


REFUSALS = {
    "there is no pipeline": (lambda f: (f / "pipeline.json").unlink(), "pipeline.json does not exist: give a folder"),
    "it is no json": (lambda f: (f / "pipeline.json").write_text("{"), "pipeline.json is not readable as json"),
    "it says nothing": (lambda f: (f / "pipeline.json").write_text("[]"), "damaged: it should hold a name and args"),
    "it names no such model": (
        lambda f: edit(f / "pipeline.json", lambda d: d["args"]["models"].pop("sparse_structure_flow_model")),
        "names no sparse_structure_flow_model; it names slat_flow_model, sparse_structure_decoder",
    ),
    "a model lies outside": (
        lambda f: edit(
            f / "pipeline.json", lambda d: d["args"]["models"].update(sparse_structure_flow_model="../flow")
        ),
        r"looks for its sparse_structure_flow_model outside of itself \(../flow\)",
    ),
    "it is absurdly deep": (config(num_blocks=10**9), "far larger than the weights it brings"),
    "the model was not copied": (lambda f: (f / "ckpts/ss_flow.json").unlink(), "lacks ckpts/ss_flow.json"),
    "it is another model": (
        lambda f: edit(f / "ckpts/ss_flow.json", lambda d: d.update(name="SLatMeshDecoder")),
        "describes a SLatMeshDecoder, but what is needed here is a SparseStructureFlowModel",
    ),
    "an argument is unknown": (config(colour="red"), "does not fit a SparseStructureFlowModel.*colour"),
    "positions are rotary": (config(pe_mode="rope"), "pe_mode 'ape', got 'rope'"),
    "weights are missing": (
        lambda f: (f / "ckpts/ss_flow.safetensors").unlink(),
        "ss_flow.safetensors does not exist: copy",
    ),
    "weights are a pickle": (to_pickle, "ss_flow.pt is a pickle, which is never opened"),
    "weights are damaged": (
        lambda f: (f / "ckpts/ss_flow.safetensors").write_bytes(b"\x80\x04."),
        "not a whole safetensors file",
    ),
    "a weight is missing": (
        damage_weights(lambda s: s.pop("pos_emb")),
        r"1 weights are missing \['pos_emb'\], 0 unknown",
    ),
    "a weight is unknown": (damage_weights(lambda s: s.update(extra=torch.ones(1))), r"1 unknown \['extra'\]"),
    "a weight has another shape": (
        damage_weights(lambda s: s.update({"out_layer.bias": torch.ones(7)})),
        r"out_layer.bias is \[7\] instead of \[2\]",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_folder_is_refused_in_one_sentence_when(folder, case):
    damage, sentence = REFUSALS[case]
    damage(folder)
    with pytest.raises(ValueError, match=sentence) as error:
        TrellisStructure(str(folder))
    assert "\n" not in str(error.value)


def test_a_path_is_refused_when_it_leads_nowhere_or_to_a_pickle(folder):
    with pytest.raises(ValueError, match="nowhere.json does not exist"):
        TrellisStructure(str(folder / "nowhere"))
    with pytest.raises(ValueError, match="x.ckpt is a pickle, which is never opened"):
        TrellisStructure(str(folder / "x.ckpt"))
    edit(folder / "pipeline.json", lambda data: data["args"]["slat_normalization"].update(mean=[0.0]))
    with pytest.raises(ValueError, match="mean must be 2 numbers"):
        TrellisFeatures(str(folder))
    with pytest.raises(ValueError, match="1 io_block_channels need patch_size 2, got 4"):
        SLatFlowModel(**FEATURES | {"patch_size": 4})
    with pytest.raises(ValueError, match="share_mod does not go with io_block_channels"):
        SLatFlowModel(**FEATURES, share_mod=True)


# In distillkit


class Assets(DistillData):
    """Noise with conditions, for either stage."""

    classes: dict[str, int] = {}
    build_evaluator = media = None

    def __init__(self, teacher):
        super().__init__(batch_size=2)
        self.event_shape, self.context = teacher.event_shape, teacher.context

    def load(self):
        made = {"data": rand(8, *self.event_shape), "cond": rand(8, 3, 5)}
        if "mask" in self.context:
            made |= some_voxels((9, 5) * 4)
        data = TensorData(made)
        return data, data, data


def stage(folder, name):
    return TrellisStructure(str(folder)) if name == "structure" else TrellisFeatures(str(folder), max_voxels=9)


@pytest.mark.parametrize("name", ["structure", "features"])
@pytest.mark.parametrize("method, settings", [(DMD, {}), (SiD, {"kappa": 4.0})])
def test_both_stages_are_distilled_and_the_student_comes_back_from_its_folder(folder, name, method, settings):
    teacher = stage(folder, name)
    before = teacher.fingerprint()
    model, data = method(teacher, num_steps=1, **settings), Assets(teacher)
    trainer(6 if method is DMD else 4).fit(model, datamodule=data)
    start, end = (m.state_dict()["network.out_layer.weight"] for m in (teacher.denoiser, model.student))
    assert teacher.fingerprint() == before and end.isfinite().all() and not torch.equal(start, end)
    model.export(folder / "student")
    cond = teacher.condition(data.test[torch.arange(4)])
    samples = load_student(folder / "student").sample(4, cond)
    assert torch.equal(samples, model.sample(cond, 4, 0)) and samples.shape == (4, *teacher.event_shape)


@pytest.mark.parametrize("name", ["structure", "features"])
def test_a_teacher_comes_back_from_a_distillkit_folder(folder, name):
    teacher = stage(folder, name)
    again = FolderTeacher(str(teacher.save(folder / "teacher", id="small")))
    assert (again.event_shape, again.context, again.best) == (teacher.event_shape, teacher.context, teacher.best)
    cond = teacher.condition(Assets(teacher).load()[0][torch.arange(2)])
    noise = rand(*teacher.shape(2, cond))
    assert torch.equal(again.denoiser(noise, torch.tensor(0.7), cond), teacher.denoiser(noise, torch.tensor(0.7), cond))
