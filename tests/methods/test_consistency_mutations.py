"""Tests of the tests of hop consistency: each fault must be noticed."""

# ruff: noqa: E501 (a fault is a row of a table)

from functools import partial

import pytest
from diffusion import test_hops
from losses import test_consistency as distances
from methods import test_consistency as proofs
from mutations import Mutation, prove

from distillkit.diffusion.hops import Grid, Shrinking, edge_below, hop
from distillkit.diffusion.process import Process
from distillkit.diffusion.sampling import jump_steps
from distillkit.losses.consistency import distance
from distillkit.methods.consistency import Consistency

law, data_law = (
    partial(proofs.test_the_fixed_point_has_the_law_of_the_hops, "flow", kind) for kind in ("ddim", "data")
)
four = partial(proofs.test_any_number_of_segments_has_one_law, 4)
anywhere = partial(proofs.test_a_jump_to_any_level_has_the_law_of_the_hops_between, 2)
pulled = partial(proofs.test_any_other_student_is_pulled_back, 3, 1, 1.0)
chain = partial(test_hops.test_a_chain_of_hops_is_the_sampler, "flow", "heun")
gammas = partial(test_hops.test_jumps_of_an_exact_student_keep_the_law, "flow", 0.3)
told, routed, tops = (
    proofs.test_a_student_that_is_told_kappa_learns_the_guided_mean_of_each,
    proofs.test_the_student_learns_at_the_far_end_alone,
    proofs.test_tops_are_the_levels_above_the_segments,
)
marginal = proofs.test_ends_are_noised_to_levels_of_their_segment_and_keep_the_marginal
doubled = partial(
    test_hops.test_the_number_of_hops_moves_in_equal_parts_of_the_run, (4, 32, True), [4, 4, 8, 8, 16, 16, 32, 32]
)

FAULTS = [
    (Consistency.hop_ends, "the near end not stopped", "torch.no_grad()", "torch.enable_grad()", routed),
    (Consistency.hop_ends, "the far end stopped", "return Ends(far,", "return Ends(0 * far + far.detach(),", pulled),
    (
        Consistency.hop_ends,
        "the student's own jump at an edge",
        "expand(s == end, x_s)",
        "expand(s == end, x_s) & False",
        four,
    ),
    (Consistency.hop_ends, "the jump from the hop's other level", "x_s, inside, end", "x_s, t, end", law),
    (Consistency.hop_ends, "the teacher at another kappa", "s, cond, kappa)", "s, cond, kappa + 1)", told),
    (
        Consistency.hop_ends,
        "always the average",
        "self.student if self.target is None else self.target",
        "self.ema",
        law,
    ),
    (Consistency.hop_ends, "the end above the segment", "- 1], told", "], told", tops),
    (
        Consistency.weights,
        "the weight's inverse",
        "return 1 / (sigma_t",
        "return 1 * (sigma_t",
        proofs.test_a_weight_is_one_over_the_length_of_the_hop,
    ),
    (
        Consistency.weights,
        "a distance weighed as a square",
        "weight.sqrt()",
        "weight",
        partial(proofs.test_the_network_s_weight_counts_differences_of_its_outputs, "huber", 0.5),
    ),
    (
        Consistency.weights,
        "a square weighed as a distance",
        "return weight if",
        "return weight.sqrt() if",
        partial(proofs.test_the_network_s_weight_counts_differences_of_its_outputs, "square", 1.0),
    ),
    (Consistency.between, "never the nearest level", "(last - first + 1)", "(last - first)", anywhere),
    (Consistency.neighbour, "new noise at the near end", "sigma * eps", "sigma * eps.flip(0)", data_law),
    (Consistency.jump, "a jump to the datum alone", "t, end)", "t, 0 * end - 1)", four),
    (Consistency.jump, "the end not told", "told_end(process, end, x)", "told_end(process, 0 * end - 1, x)", anywhere),
    (Consistency.logits, "noise of the wrong level", "travel(x, ends.end, t,", "travel(x, 0 * t - 1, t,", marginal),
    (Consistency.logits, "one level alone", "* self.rand(len(x)", "* 0 * self.rand(len(x)", marginal),
    (
        edge_below,
        "a level on an edge in the segment above",
        "rising, t.contiguous())",
        "rising, t.contiguous(), right=True)",
        test_hops.test_a_segment_ends_at_the_largest_edge_below,
    ),
    (edge_below, "an edge further down", "- 1]", "- 2]", test_hops.test_a_segment_ends_at_the_largest_edge_below),
    (
        Grid.__call__,
        "a hop of two levels",
        "levels[hop + 1]",
        "levels[(hop + 2).clamp_max(num)]",
        test_hops.test_every_hop_of_a_grid_is_as_likely,
    ),
    (Grid.__call__, "never the last hop", "u * num", "u * (num - 1)", test_hops.test_every_hop_of_a_grid_is_as_likely),
    (
        Grid.__call__,
        "the hop above a drawn level",
        "clamp(1, num)",
        "add(1).clamp(1, num)",
        test_hops.test_hops_may_pass_levels_of_a_law,
    ),
    (
        Grid.levels,
        "a hop short",
        "self.now(done) + 1",
        "self.now(done)",
        test_hops.test_levels_are_a_sampler_s_times_and_the_datum,
    ),
    (Grid.now, "twice as fast", "self.num * 2**part", "self.num * 4**part", doubled),
    (
        Grid.edges,
        "edges one further",
        "[self.num // segments :: ",
        "[self.num // segments - 1 :: ",
        test_hops.test_a_segment_ends_at_the_largest_edge_below,
    ),
    (Shrinking.__call__, "a stage ahead", "(stage + 1.0)", "(stage + 2.0)", test_hops.test_hops_shrink_from_the_datum),
    (Shrinking.__call__, "the sign of b", "-self.b", "self.b", test_hops.test_hops_shrink_from_the_datum),
    (
        hop,
        "Heun's first slope alone",
        "denoise(ahead, inside), inside)) / 2",
        "denoise(ahead, inside), inside) * 0) / 1",
        chain,
    ),
    (
        hop,
        "Heun to the datum",
        "torch.where(expand(s < 0, x_t), first,",
        "torch.where(expand(s < -2, x_t), first,",
        chain,
    ),
    (Process.jump, "the noise kept", "sigma_s / sigma_t", "sigma_s / sigma_s.clamp_min(1e-9)", law),
    (Process.jump, "the sign of the signal", "alpha_s - keep", "alpha_s + keep", law),
    (
        Process.scales,
        "no datum",
        "torch.where(clean, 0, ",
        "torch.where(clean, self.sigma(inside), ",
        partial(test_hops.test_the_datum_is_a_level, "ddpm"),
    ),
    (
        distance,
        "the target not stopped",
        "y.detach()",
        "y",
        partial(distances.test_every_distance_moves_the_student_alone, "huber"),
    ),
    (
        distance,
        "a sum for the mean",
        "square if kind",
        "2 * square if kind",
        partial(distances.test_distances_of_samples, "square"),
    ),
    (
        distance,
        "no c",
        "+ c**2).sqrt() - c\n",
        "+ 0 * c**2).sqrt()\n",
        partial(distances.test_distances_of_samples, "huber"),
    ),
    (
        jump_steps,
        "all noise new",
        "(1 - gamma**2) ** 0.5",
        "(1 - gamma) ** 0.5",
        test_hops.test_a_gamma_jumps_below_the_next_level,
    ),
    (jump_steps, "the new noise left out", "noise_scale * noise(i + 1)", "0 * noise(i + 1)", gammas),
    (
        jump_steps,
        "a jump past the next time",
        "process.jump(x, denoise(x, t, end), t, end)",
        "process.jump(x, denoise(x, t, end), t, s)",
        gammas,
    ),
]


@pytest.mark.parametrize(
    "fault", [Mutation(says, *(function, old, new, check)) for function, says, old, new, check in FAULTS], ids=str
)
def test_faults_are_noticed(fault):
    prove(fault)
