"""Forward noising, mean-score conversions, both forms of the exact one-position reversal."""

import pytest
import torch
from helpers import f64

from distillkit.discrete.exact import Table, potts
from distillkit.discrete.noise import fresh
from distillkit.discrete.process import Absorbing, Uniform
from distillkit.discrete.schedule import DuoCosine, Geometric, LogLinear, MDLMCosine
from distillkit.discrete.worlds import sequences
from distillkit.spec import from_spec, to_spec

PROCESSES = {"absorbing": Absorbing(4), "uniform": Uniform(4)}
SCHEDULES = [LogLinear(), Geometric(), MDLMCosine(), DuoCosine()]
both = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
ALPHA_T, ALPHA_S = f64(0.3), f64(0.75)


def states_and_means(process, rows=64):
    """x [B, 6] with every kind of state, and a random log mean [B, 6, S] that fits it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(process.num_states, (rows, 6), generator=generator)
    logits = 2 * torch.randn(rows, 6, process.num_tokens, generator=generator, dtype=torch.float64)
    return x, process.carry_over(logits.log_softmax(-1), x)


def matrix(process, alpha):
    """T [C, C] of one position, row: from, written down independently of the project."""
    size = process.num_tokens
    if isinstance(process, Uniform):
        return alpha * torch.eye(size, dtype=torch.float64) + (1 - alpha) / size
    kept = alpha * torch.eye(size + 1, dtype=torch.float64)
    kept[:, size] += 1 - alpha
    return kept


@both
def test_mean_to_score_and_back(process):
    x, log_mean = states_and_means(process)
    back = process.mean_from_score(process.score_from_mean(log_mean, x, ALPHA_T), x, ALPHA_T)
    assert (back.exp() - log_mean.exp()).abs().max() < 1e-12


@both
def test_the_score_is_the_ratio_of_marginals(process):
    """`s(y) = sum_z pi(z) T(z, y) / sum_z pi(z) T(z, x)`, wherever a move is legal."""
    x, log_mean = states_and_means(process)
    noised = log_mean.exp() @ matrix(process, ALPHA_T)[: process.num_tokens]
    ratio = noised / noised.gather(-1, x[..., None])
    legal = process.jumps(x, torch.float64) > 0
    score = process.score_from_mean(log_mean, x, ALPHA_T).exp()
    assert (score - ratio)[legal].abs().max() < 1e-12
    assert torch.equal(score.gather(-1, x[..., None]), torch.ones(*x.shape, 1).double())
    assert legal.sum() == ((x == process.num_tokens).sum() * 4 if process.num_states == 5 else x.numel() * 3)


def test_an_exact_absorbing_score_sums_to_alpha_over_one_minus_alpha():
    process = PROCESSES["absorbing"]
    x, log_mean = states_and_means(process)
    score = process.score_from_mean(log_mean, x, ALPHA_T).exp()[x == process.mask]
    assert (score[:, :-1].sum(-1) - 0.3 / 0.7).abs().max() < 1e-12 and torch.equal(score[:, -1], torch.ones(len(score)))


def test_any_score_gives_a_normalised_mean():
    x, _ = states_and_means(PROCESSES["absorbing"])
    log_score = torch.randn(*x.shape, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = PROCESSES["absorbing"].mean_from_score(log_score, x, ALPHA_T).exp()
    assert (mean.sum(-1) - 1).abs().max() < 1e-12


@both
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_tweedie_from_the_score_is_ancestral_from_the_mean(process, schedule):
    x, log_mean = states_and_means(process)
    for alpha_t, alpha_s in schedule.alpha(f64(0.95, 0.9, 0.5, 0.4, 0.1, 0.01)).reshape(3, 2):
        score = process.score_from_mean(log_mean, x, alpha_t)
        ancestral = process.ancestral(log_mean, x, alpha_t, alpha_s)
        assert (ancestral - process.tweedie(score, x, alpha_t, alpha_s)).abs().max() < 1e-12
        assert (ancestral.sum(-1) - 1).abs().max() < 1e-12 and ancestral.min() >= 0


@both
def test_the_reversal_is_bayes_rule(process):
    """`p(x_s = y | x_t) ~ sum_z pi(z) T_s(z, y) T_{t|s}(y, x_t)`."""
    x, log_mean = states_and_means(process)
    at_s = log_mean.exp() @ matrix(process, ALPHA_S)[: process.num_tokens]
    joint = at_s * matrix(process, ALPHA_T / ALPHA_S).T[x]
    expected = joint / joint.sum(-1, keepdim=True)
    assert (process.ancestral(log_mean, x, ALPHA_T, ALPHA_S) - expected).abs().max() < 1e-12


@both
def test_impossible_scores_still_give_probabilities(process):
    x, _ = states_and_means(process)
    log_score = 3 * torch.randn(*x.shape, process.num_states, generator=torch.Generator().manual_seed(2)).double()
    kernel = process.tweedie(log_score, x, ALPHA_T, ALPHA_S)
    assert kernel.min() >= 0 and (kernel.sum(-1) - 1).abs().max() < 1e-12


@both
def test_likelihood_is_the_forward_matrix(process):
    x, _ = states_and_means(process)
    expected = matrix(process, ALPHA_T)[: process.num_tokens].T[x]
    assert (process.likelihood(x, ALPHA_T) - expected).abs().max() < 1e-15


@both
def test_noised_tokens_have_the_law_of_the_process(process):
    draws = fresh(0, 40_000, 1)
    t, token = f64(0.6), 2
    noised = process.add_noise(torch.full((40_000, 1), token), t, draws(0))
    found = noised.flatten().bincount(minlength=process.num_states) / 40_000
    expected = matrix(process, process.alpha(t))[token]
    assert ((found - expected).abs() <= 4.5 * (expected * (1 - expected) / 40_000).sqrt()).all()


@both
def test_the_same_noise_touches_more_positions_later(process):
    noise = fresh(1, 200, 8)(0)
    x_0 = torch.randint(4, (200, 8), generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    noised = torch.stack([process.add_noise(x_0, t, noise) for t in times])
    touched = noised != x_0
    assert (touched[1:] | ~touched[:-1]).all() and touched[0].sum() == 0 and touched[-1].double().mean() > 0.7
    assert torch.equal(noised[1:][touched[:-1]], noised[:-1][touched[:-1]])  # to the same state
    each = process.add_noise(x_0, times[5].expand(200), noise)
    assert torch.equal(each, process.add_noise(x_0, times[5], noise))


@both
def test_the_start_is_the_prior(process):
    start = process.start(fresh(0, 5000, 4)(0))
    found = start.flatten().bincount(minlength=process.num_states) / 20_000
    assert start.shape == (5000, 4) and (found - process.prior()).abs().max() < 4.5 * (0.1875 / 20_000) ** 0.5


@both
def test_single_precision_stays_single(process):
    x, log_mean = states_and_means(process)
    single, alpha_t, alpha_s = log_mean.float(), ALPHA_T.float(), ALPHA_S.float()
    score = process.score_from_mean(single, x, alpha_t)
    for found in (score, process.mean_from_score(score, x, alpha_t), process.tweedie(score, x, alpha_t, alpha_s)):
        assert found.dtype == torch.float32
    kernel = process.ancestral(single, x, alpha_t, alpha_s)
    torch.testing.assert_close(kernel, process.ancestral(log_mean, x, ALPHA_T, ALPHA_S).float(), rtol=1e-5, atol=1e-6)


def test_known_values_of_a_pair():
    """potts(3, 2, 1.5): absorbing at t = 0.5, uniform at alpha = 0.5005."""
    absorbing, uniform = (Table(potts(3, 2, 1.5), process(3)) for process in (Absorbing, Uniform))
    x = torch.tensor([[0, 3]])
    assert absorbing(x, 0.5).log_mean().exp()[0, 1].tolist() == pytest.approx([0.691438, 0.154281, 0.154281], abs=1e-6)
    expected = [0.692823, 0.154590, 0.154590, 1]
    assert absorbing(x, 0.5).log_score().exp()[0, 1].tolist() == pytest.approx(expected, abs=1e-6)
    assert uniform.marginal(0.5)[0, :2].tolist() == pytest.approx([0.14101292, 0.09616021], abs=1e-8)
    score = uniform(torch.tensor([[0, 0]]), 0.5).log_score().exp()
    assert score[0, 1].tolist() == pytest.approx([1, 0.681925, 0.681925], abs=1e-6)


@both
def test_a_folder_brings_it_back(process):
    assert from_spec(to_spec(process)) == process != type(process)(5)
    cosine = type(process)(4, MDLMCosine(0.01))
    assert from_spec(to_spec(cosine)) == cosine != process


def test_a_process_needs_two_tokens():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        Absorbing(1)


def test_sequences_run_over_everything():
    assert sequences(3, 2).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]]
