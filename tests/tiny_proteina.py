"""A tiny random RFD4ProteinaPipeline, and prepared designs as the released ones are."""

import torch
from safetensors.torch import save_file
from tiny_pipelines import wake

from domains.protein.pipelines.residues import ATOMS, BACKBONE, SIDES

CLASSES = 24  # of residues: none yet, the twenty backwards, two modified ones, a nucleotide
FEATURES = ("hbond", "pistack", "pication", "saltbridge", "hydrophobic", "metal-coord")
SCHEDULERS = {
    "bb_ca_scheduler": {"schedule_mode": "log", "noise_mode": "1/t", "tsr_k": 1.6, "tsr_sigma": 1.2},
    "local_latents_scheduler": {"schedule_mode": "power", "noise_mode": "tan", "tsr_k": 1.3, "tsr_sigma": 0.7},
}


def vocabulary():
    """The atoms of each class, and the classes of each type of token."""
    sets = [f"{BACKBONE} {side}".split() for side in reversed(SIDES.values())]
    sets = [[], *sets, sets[0], [*sets[1], "SG"], ["N", "CA", "C"]]
    allowed = [[0 < i <= 20 or i == 22 for i in range(CLASSES)], *[[i == 23 for i in range(CLASSES)]] * 6]
    return [[name in atoms for name in ATOMS] for atoms in sets], allowed


def proteina(folder, depths=(3, 2, 2, 1, 1, 1), seed=0, **scheduler):
    """A tiny pipeline in `folder`, with latents of 4 numbers and two finer steps at the end."""
    import diffusers

    torch.manual_seed(seed)
    atoms, allowed = vocabulary()
    sizes = {"nheads": 2, "dim_cond": 8, "latent_dim": 4, "token_type_emb_dim": 4, "token_dim": 16}
    transformer = diffusers.RFD4ProteinaTransformer(
        nlayers=2, pair_repr_dim=8, cath_emb_dim=4, t_emb_dim=16, seq_sep_dim=8, xt_pair_dist_dim=8, tri_mult_c=8,
        num_sequence_classes=CLASSES, recycle_conditioning_dim=2, **sizes,
    )  # fmt: skip
    vae = diffusers.RFD4ProteinaAutoencoder(
        atoms, allowed, nlayers=1, n_residue_types=CLASSES, pair_repr_dim=8, **sizes
    )
    tail = {"tail_steps": 2, **scheduler}
    made = {name: diffusers.RFD4ProteinaScheduler(**own, **tail) for name, own in SCHEDULERS.items()}
    pipeline = diffusers.RFD4ProteinaPipeline(wake(transformer), wake(vae), **made, recycle_depths=list(depths))
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def design(file, tokens=12, given=0, bare=0, seed=0, **more):
    """A prepared design in `file`: two chains of a protein.

    Args:
        tokens: their number.
        given: of them, the last ones, which are context.
        bare: of them, the first ones, which have no latent.
        more: further features.
    """
    generator = torch.Generator().manual_seed(seed)
    place = torch.arange(tokens)[None]
    apart = (place[..., None] - place[:, None]).abs()
    made = {
        "padding_mask": torch.ones(1, tokens, dtype=torch.bool),
        "is_in_context_conditioning": place >= tokens - given,
        "supports_local_latent": place >= bare,
        "token_type": torch.zeros(1, tokens, dtype=torch.int64),
        "atom37_mask": torch.rand(1, tokens, 37, generator=generator) < 0.5,
        "condition_sequence_1_residue": torch.where(place % 3 == 1, 1 + place % 20, 0),
        "molecule_iid": (place >= tokens // 2).long(),
        "molecule_entity_id": torch.zeros(1, tokens, dtype=torch.int64),
        "condition_index-group_1_token": place.clone(),
        "token_bond_path_length": apart,
        "bond_mask": apart == 1,
        "bond_order": (apart == 1).long(),
        "coords_nm": torch.randn(1, tokens, 37, 3, generator=generator),
        # what the encoder looks at
        "chain_iid": (place >= tokens // 2).long(),
        "incident_bond_type_counts": torch.randint(0, 2, (1, tokens, 37, 10), generator=generator),
        "ground_truth_element": torch.full((1, tokens, 37), 6),
        "charge": torch.zeros(1, tokens, 37, dtype=torch.int64),
        "element": torch.full((1, tokens, 37), 6),
    }
    for name in FEATURES:
        made[f"condition_{name}_1_atom"] = torch.randint(0, 2, (1, tokens, 37), generator=generator)
    place = 10 * torch.randn(1, tokens, 37, 3, generator=generator)
    place[:, : tokens - given] = torch.nan  # as the coordinates of what is not given are
    made |= {"condition_coordinate_1_atom": place, **more}
    save_file({name: value.contiguous() for name, value in made.items()}, str(file))
    return made
