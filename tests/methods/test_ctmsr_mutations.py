"""Tests of the tests of CTMSR: each fault must be noticed."""

# ruff: noqa: E501 (a fault is a row of a table)

from functools import partial

import pytest
from losses import test_consistency
from methods import test_ctmsr
from mutations import Mutation, prove

from distillkit.losses.consistency import charbonnier
from distillkit.methods.ctmsr import CTMSR, lower_levels

rests = [partial(test_ctmsr.test_a_student_of_the_known_law_is_not_pulled, "flow", hop) for hop in range(3)]
pulled = partial(test_ctmsr.test_any_other_student_is_pulled_back_at_the_far_end_alone, 1, 1.0)
datum, lpips = (
    test_ctmsr.test_the_first_hop_begins_at_the_datum_itself,
    test_ctmsr.test_half_of_the_distance_is_lpips_of_decoded_samples,
)
drawn, along = (
    test_ctmsr.test_matching_draws_samples_to_their_data_whatever_the_noise,
    test_ctmsr.test_matching_with_lpips_moves_along_its_gradient_towards_the_same_target,
)
copy, joins = (
    test_ctmsr.test_matching_takes_the_copy_and_not_the_student,
    test_ctmsr.test_matching_joins_at_its_share_of_the_run_with_its_weight,
)
fewer, more = (
    partial(test_ctmsr.test_the_number_of_hops_moves_in_equal_parts_of_the_run, *case)
    for case in (([4, 3], 8, [4, 4, 4, 4, 3, 3, 3, 3]), ([1, 4], 8, [1, 1, 2, 2, 3, 3, 4, 4]))
)
FAULTS = [
    (CTMSR.ends, "the hop's edges one further", "levels[hop + 1]", "levels[(hop + 2).clamp_max(len(levels) - 1)]", rests[0]),
    (CTMSR.ends, "no hop", "near, far = levels[hop]", "near, far = levels[hop + 1]", pulled),
    (CTMSR.ends, "other noise at the near end", "add_noise(x_0, eps, near)", 'add_noise(x_0, self.randn(x_0.shape, "near"), near)', rests[1]),
    (CTMSR.ends, "the near end's sample for the datum", "torch.where(expand(hop == 0, x_0), x_0, target)", "target", datum),
    (CTMSR.ends, "the datum for every near end", "hop == 0", "hop >= 0", rests[2]),
    (CTMSR.ends, "the datum one hop late", "hop == 0", "hop == 1", rests[1]),
    (CTMSR.ends, "the average for the near end", "target = self.student(", "target = self.ema(", rests[1]),
    (CTMSR.ends, "the near end not stopped", "torch.no_grad()", "torch.enable_grad()", lpips),
    (CTMSR.ends, "the far end stopped", "return out,", "return 0 * out + out.detach(),", pulled),
    (CTMSR.distance, "the difference twice", "0.5 * charbonnier", "charbonnier", lpips),
    (CTMSR.distance, "LPIPS twice", "0.5 * self.lpips", "self.lpips", lpips),
    (CTMSR.distance, "LPIPS of what is not decoded", "self.decoded(cond, out, target)", "(out, target)", lpips),
    (CTMSR.distance, "its own eps", "self.eps", "1e-12", test_ctmsr.test_the_distance_knows_its_eps_and_where_a_set_ends),
    (CTMSR.distance, "the mask not handed on", 'cond.get("mask")', "None", test_ctmsr.test_the_distance_knows_its_eps_and_where_a_set_ends),
    (charbonnier, "the target not stopped", "y.detach()", "y", test_consistency.test_its_gradient_is_a_sign_and_reaches_the_student_alone),
    (charbonnier, "a square", ".sqrt()", "", test_consistency.test_it_is_the_absolute_difference),
    (charbonnier, "the mask not handed on", ", mask)", ")", test_consistency.test_padding_counts_nowhere),
    (CTMSR.draw, "never the last hop", "* len(among)", "* (len(among) - 1)", test_ctmsr.test_every_hop_is_drawn_alike),
    (CTMSR.draw, "the range's start left out", "among.start + drawn", "drawn", test_ctmsr.test_every_hop_is_drawn_alike),
    (CTMSR.hops_now.fget, "the last number at the very end alone", "parts * self", "(parts - 1) * self", fewer),
    (CTMSR.hops_now.fget, "the wrong way", "last > first", "last < first", more),
    (CTMSR.levels, "from noise to data", ".flip(0)", "", test_ctmsr.test_levels_are_those_of_the_process_from_noise_down_to_the_datum),
    (CTMSR.levels, "a hop short", "hops + 1", "hops", test_ctmsr.test_levels_are_those_of_the_process_from_noise_down_to_the_datum),
    (CTMSR.matching, "samples and data swapped", "(out, x_0))", "(x_0, out))", drawn),
    (CTMSR.matching, "noise of their own", "eps, t), t, cond) for", "torch.randn_like(eps), t), t, cond) for", drawn),
    (CTMSR.matching, "not over the way", "still, scale, mask", "still, None, mask", drawn),
    (CTMSR.matching, "the batch's way", '"sample", mask', '"batch", mask', drawn),
    (CTMSR.matching, "the student for its copy", "(self.frozen(", "(self.student(", copy),
    (CTMSR.matching, "away from the data with LPIPS", "out.detach() - (moved", "out.detach() + (moved", along),
    (CTMSR.matching, "the target not stopped with LPIPS", "out.detach() - (moved", "out - (moved", along),
    (CTMSR.matching, "not over the way with LPIPS", "(distance / scale.flatten())", "distance", along),
    (CTMSR.matching, "twice as strong with LPIPS", "0.5 * (distance", "(distance", along),
    (CTMSR.matching, "the weight not of LPIPS's own sample", "scale.flatten()", "scale.flatten().flip(0)", along),
    (CTMSR.student_loss, "the weight left out", "self.dtm * ", "", joins),
    (CTMSR.student_loss, "the weight squared", "self.dtm * ", "self.dtm**2 * ", joins),
    (CTMSR.matches.fget, "a step late", ">= self", "> self", joins),
    (lower_levels, "the datum's own level", "max(1, num // 10)", "num // 10", partial(test_ctmsr.test_samples_are_matched_at_low_levels, 4, [1])),
    (lower_levels, "all levels", "num // 2)", "num)", partial(test_ctmsr.test_samples_are_matched_at_low_levels, 41, [*range(4, 20)])),
]  # fmt: skip


@pytest.mark.parametrize("mutation", [Mutation(says, function, *rest) for function, says, *rest in FAULTS], ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)


@pytest.mark.parametrize(
    "old, new",
    [("since % self.refresh == 0", "since == 0"), ("since % self.refresh == 0", "True")],
    ids=["never", "always"],
)
def test_a_copy_that_is_never_or_always_renewed_is_noticed(old, new, tmp_path):
    check = partial(test_ctmsr.test_the_copy_is_renewed_by_the_step_and_resumes_with_the_run, tmp_path)
    prove(Mutation("the copy", CTMSR.matching, old, new, check))
