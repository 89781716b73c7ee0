"""Tiny random checkpoints in the layout of LiDiff's releases."""

import torch

WIDTHS = (8, 8, 12, 16, 20, 20, 16, 12, 10)
GATES = {"stage1": (4, 0), "stage2": (4, 1), "stage3": (4, 2), "stage4": (4, 3)}
GATES |= {"up1": (4, 4), "up2": (5, 5), "up3": (6, 6), "up4": (7, 7)}
SETTINGS = {
    "experiment": {"id": "tiny"},
    "data": {"resolution": 0.05, "num_points": 240, "max_range": 50.0},
    "train": {"uncond_prob": 0.1, "uncond_w": 6.0},
    "diff": {"beta_start": 3.5e-5, "beta_end": 0.007, "beta_func": "linear", "t_steps": 1000, "s_steps": 50},
    "model": {"out_dim": 96},
}


def layout(kind: str, widths=WIDTHS, factor=6) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released weights of an `encoder`, a `denoiser` or a `refinement`."""
    c, found = widths, {}

    def norm(name, width):
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.bn.{part}"] = (width,)
        found[f"{name}.bn.num_batches_tracked"] = ()

    def conv(name, number, volume, inp, out):
        found[f"{name}.{number}.kernel"] = (volume, inp, out) if volume > 1 else (inp, out)
        norm(f"{name}.{number + 1}", out)

    def residual(name, inp, out):
        conv(f"{name}.net", 0, 27, inp, out)
        conv(f"{name}.net", 3, 27, out, out)
        if inp != out:
            conv(f"{name}.downsample", 0, 1, inp, out)

    def mlp(name, inp, inner, out):
        for number, (i, o) in ((0, (inp, inner)), (2, (inner, out))):
            found[f"{name}.{number}.weight"], found[f"{name}.{number}.bias"] = (o, i), (o,)

    conv("stem", 0, 27, 3, c[0])
    conv("stem", 3, 27, c[0], c[0])
    for i in range(1, 5):
        conv(f"stage{i}.0.net", 0, 8, c[i - 1], c[i - 1])
        residual(f"stage{i}.1", c[i - 1], c[i])
        residual(f"stage{i}.2", c[i], c[i])
    if kind == "encoder":
        return found
    for i in range(1, 5):
        conv(f"up{i}.0.net", 0, 8, c[3 + i], c[4 + i])
        residual(f"up{i}.1.0", c[4 + i] + c[4 - i], c[4 + i])
        residual(f"up{i}.1.1", c[4 + i], c[4 + i])
    mlp("last", c[8], 20, 3 if kind == "denoiser" else 3 * factor)
    if kind == "denoiser":
        for name, (inner, out) in GATES.items():
            mlp(f"latent_{name}", c[4], c[4], c[4])
            mlp(f"{name}_temp", c[8], c[8], c[4])
            mlp(f"latemp_{name}", 2 * c[4], c[inner], c[out])
    return found


def weights(shapes, seed=0):
    """Random weights with activations of order one; nothing is zero or one."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            state[name] = 0.5 + value.abs()
        elif name.endswith("kernel"):
            state[name] = value / (6 * shape[-2]) ** 0.5
        else:
            state[name] = value / (shape[-1] ** 0.5 if len(shape) > 1 else 4)
    return state


def denoiser(widths=WIDTHS, seed=0):
    """The state of a denoiser with its encoder, by the names of the checkpoint."""
    shapes = {f"partial_enc.{name}": shape for name, shape in layout("encoder", widths).items()}
    shapes |= {f"model.{name}": shape for name, shape in layout("denoiser", widths).items()}
    return weights(shapes, seed)


def refinement(widths=WIDTHS, factor=6, seed=1):
    """The state of a refinement network."""
    return weights({f"model_refine.{name}": s for name, s in layout("refinement", widths, factor).items()}, seed)


def write(path, state, **more):
    """Writes a checkpoint as Lightning does."""
    held = {"epoch": 19, "global_step": 5, "pytorch-lightning_version": "1.5.10", "state_dict": state}
    held |= {"callbacks": {}, "optimizer_states": [{"state": {}, "param_groups": []}], "lr_schedulers": []}
    torch.save({**held, "hparams_name": "hparams", "hyper_parameters": SETTINGS, **more}, path)
    return path
