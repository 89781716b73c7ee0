"""Tiny random checkpoints in the layout of ResShift's releases."""

import torch
import yaml

from distillkit.diffusion.process import ResShift
from domains.super_resolution.resshift import UNetModelSwin, VQModelTorch

NETWORK = {
    "image_size": 16,
    "in_channels": 3,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 2],
    "attention_resolutions": [16, 8],
    "num_head_channels": 16,
    "swin_depth": 2,
    "swin_embed_dim": 32,
    "window_size": 4,
    "mlp_ratio": 2,
    "lq_size": 16,
}
CONSTANT = {"use_scale_shift_norm": True, "resblock_updown": False, "conv_resample": True, "cond_lq": True, "dims": 2}
AUTOENCODER = {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "z_channels": 3}
DIFFUSION = {
    "sf": 4,
    "schedule_name": "exponential",
    "schedule_kwargs": {"power": 0.3},
    "etas_end": 0.99,
    "steps": 4,
    "min_noise_level": 0.2,
    "kappa": 2.0,
    "predict_type": "xstart",
    "normalize_input": True,
    "latent_flag": True,
    "scale_factor": 1.0,
}


def rand(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def awake(network):
    """Nothing zero, nothing one, nothing that a forgotten term would leave unnoticed."""
    for i, p in enumerate(network.parameters()):
        p.data = rand(*p.shape, seed=i) / (p[0].numel() ** 0.5 if p.ndim > 1 else 4)
        if p.ndim == 1:
            p.data += 0.5
    return network.requires_grad_(False).eval()


def release(folder, prefix="", wrapped=False, **sizes):
    """Writes network, autoencoder and yaml as a release has them, windows' indices and masks too.

    Returns the teacher's arguments, the network and the autoencoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = awake(UNetModelSwin(ResShift(), 4, None, **NETWORK | sizes))
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    tables = [name for name in state if name.endswith("relative_position_bias_table")]
    for name in tables:
        state[name.replace("bias_table", "index")] = torch.zeros(16, 16, dtype=torch.long)
        if ".blocks.1." in name:
            state[name.replace("attn.relative_position_bias_table", "attn_mask")] = torch.zeros(4, 16, 16)
    torch.save({"state_dict": state, "iters_start": 3} if wrapped else state, folder / "resshift_tiny_s4.pth")
    vq = awake(VQModelTorch(embed_dim=3, n_embed=64, **AUTOENCODER))
    torch.save(vq.state_dict(), folder / "autoencoder_tiny.pth")
    ddconfig = {
        **AUTOENCODER,
        "double_z": False,
        "attn_resolutions": [],
        "in_channels": 3,
        "out_ch": 3,
        "resolution": 64,
    }
    parts = {
        "model": {"params": {**NETWORK, **CONSTANT, **sizes, "out_channels": "${autoencoder.params.embed_dim}"}},
        "diffusion": {"params": DIFFUSION},
        "autoencoder": {"params": {"embed_dim": 3, "n_embed": 64, "ddconfig": ddconfig}},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(parts))
    names = {"path": "resshift_tiny_s4.pth", "autoencoder": "autoencoder_tiny.pth", "config": "tiny.yaml"}
    return {key: str(folder / name) for key, name in names.items()}, network, vq
