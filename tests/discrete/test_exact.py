"""Tables against brute force, chains against tables, named distributions, likelihood bounds."""

import numpy as np
import pytest
import torch
from helpers import f64

from distillkit.discrete.exact import (
    MarkovChain,
    Table,
    chain_table,
    countdown_chain,
    mini_countdown,
    potts,
    potts_chain,
)
from distillkit.discrete.laws import entropy, total_correlation
from distillkit.discrete.noise import fresh
from distillkit.discrete.process import Absorbing, Uniform
from distillkit.discrete.schedule import LogLinear
from distillkit.discrete.worlds import sequences
from distillkit.spec import from_spec, to_spec

both = pytest.mark.parametrize("process", [Absorbing, Uniform])


@pytest.mark.parametrize(
    "table, nats, correlation, support",
    [
        (mini_countdown(4, 5), 3.384508, 3.017765, 49),
        (mini_countdown(4, 4), 2.707606, None, None),
        (potts(3, 5, 1.5), 4.425906, 1.067155, 243),
        (potts(3, 5, 0.7), 5.252722, None, 243),
    ],
)
def test_named_distributions_have_their_entropies(table, nats, correlation, support):
    assert entropy(table).item() == pytest.approx(nats, abs=1e-6) and table.sum().item() == pytest.approx(1)
    assert correlation is None or total_correlation(table).item() == pytest.approx(correlation, abs=1e-6)
    assert support is None or (table > 0).sum() == support


def test_potts_counts_equal_neighbours():
    x = sequences(3, 4)
    weight = (1.5 * (x[:, 1:] == x[:, :-1]).sum(1)).double().exp()
    assert (potts(3, 4, 1.5).flatten() - weight / weight.sum()).abs().max() < 1e-15


def test_long_countdown_has_its_stationary_law_and_entropy_rate():
    chain = MarkovChain(*countdown_chain(32), 256, Absorbing(32))
    stationary = (32 - torch.arange(32).double()) / 528
    assert (stationary @ chain.transitions - stationary).abs().max() < 1e-15
    each = -torch.xlogy(chain.transitions, chain.transitions).sum(-1)
    assert (stationary @ each).item() == pytest.approx(0.210045, abs=1e-6)
    assert (stationary @ torch.arange(32).double()).item() == pytest.approx(10.3333, abs=1e-4)
    assert (chain.marginal(0.0)[-1, :-1] - stationary).abs().max() < 0.01


def brute_force(table, process, x, alpha):
    """`p(x_0^i = y | x_t^{-i})` by summing over every clean sequence."""
    clean, chances = sequences(process.num_tokens, table.ndim), table.flatten()
    likelihood = process.likelihood(x, alpha)
    each = torch.stack([likelihood[:, i, clean[:, i]] for i in range(table.ndim)], 1)  # [B, d, S^d]
    means = []
    for i in range(table.ndim):
        others = torch.cat([each[:, :i], each[:, i + 1 :]], 1).prod(1) * chances
        joint = torch.stack([others[:, clean[:, i] == y].sum(-1) for y in range(process.num_tokens)], -1)
        means.append(joint / joint.sum(-1, keepdim=True))
    return torch.stack(means, 1)


@both
def test_table_is_brute_force(process):
    table = torch.rand(3, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = Table(table, process(3))
    x = sequences(model.process.num_states, 4)
    expected = brute_force(table / table.sum(), model.process, x, model.process.alpha(f64(0.4))[0])
    found = model(x, 0.4).log_mean().exp()
    hidden = x == 3 if process is Absorbing else torch.ones_like(x, dtype=torch.bool)
    assert (found - expected)[hidden].abs().max() < 1e-13
    if process is Absorbing:
        assert torch.equal(found[~hidden].argmax(-1), x[~hidden]) and torch.equal(
            found[~hidden].amax(-1).unique(), f64(1)
        )


@both
def test_the_score_is_the_ratio_of_the_tables_marginals(process):
    model = Table(potts(3, 4, 1.5), process(3))
    x, p_t, t = sequences(model.process.num_states, 4), model.marginal(0.35), 0.35
    assert p_t.sum().item() == pytest.approx(1)
    score, legal = model(x, t).log_score().exp(), model.process.jumps(x, torch.float64) > 0
    for i in range(4):
        for y in range(3):
            moved = x.clone()
            moved[:, i] = y
            ratio = p_t[moved.unbind(1)] / p_t[x.unbind(1)]
            assert (score[:, i, y] - ratio)[legal[:, i, y]].abs().max() < 1e-12


@both
@pytest.mark.parametrize("chain", [countdown_chain(3), potts_chain(3, 1.5)], ids=["countdown", "potts"])
def test_messages_agree_with_the_table(process, chain):
    process = process(3)
    table, model = Table(chain_table(*chain, 5), process), MarkovChain(*chain, 5, process, smoothing=0)
    x = process.add_noise(table.draw(300, torch.Generator().manual_seed(0)), f64(0.6), _noise(300, 5, process))
    for t in (0.1, 0.6, 0.999):
        assert (model(x, t).log_mean().exp() - table(x, t).log_mean().exp()).abs().max() < 1e-12
    assert model.entropy().item() == pytest.approx(table.entropy().item(), abs=1e-12)
    assert (model.marginal(0.3)[2] - table.marginal(0.3).sum((0, 1, 3, 4))).abs().max() < 1e-14
    clean = table.draw(50)
    assert (model.log_prob(clean) - table.log_prob(clean)).abs().max() < 1e-12


def _noise(num, length, process):
    return fresh(0, num, length)(0)


def test_smoothing_keeps_impossible_contexts_finite_and_possible_ones_right():
    chain, process = countdown_chain(4), Absorbing(4)
    smooth, table = MarkovChain(*chain, 5, process), Table(mini_countdown(4, 5), process)
    possible, impossible = torch.tensor([[3, 4, 4, 0, 4]]), torch.tensor([[3, 4, 3, 4, 4]])
    assert (smooth(possible, 0.5).log_mean().exp() - table(possible, 0.5).log_mean().exp()).abs().max() < 1e-5
    assert smooth(impossible, 0.5).log_mean().exp()[0, 1].sum().item() == pytest.approx(1)
    assert torch.equal(table(impossible, 0.5).log_mean().exp()[0, 1], torch.full((4,), 0.25).double())
    assert smooth.entropy().item() == pytest.approx(3.384508, abs=1e-6)


def test_long_chains_do_not_underflow():
    process = Absorbing(32)
    model = MarkovChain(*countdown_chain(32), 256, process)
    x = process.add_noise(model.draw(4, torch.Generator().manual_seed(0)), f64(0.9), _noise(4, 256, process))
    for found in (
        model(x, 0.9).log_mean().exp(),
        MarkovChain(*countdown_chain(32), 256, Uniform(32))(x % 32, 0.9).log_mean().exp(),
    ):
        assert found.isfinite().all() and (found.sum(-1) - 1).abs().max() < 1e-9


@both
def test_each_sample_may_have_its_own_time(process):
    for model in (Table(potts(3, 4, 1.5), process(3)), MarkovChain(*potts_chain(3, 1.5), 4, process(3))):
        x, t = sequences(3, 4)[:5], torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
        for rule in ("log_mean", "log_score", "rates"):
            together = getattr(model(x, t), rule)()
            for i in range(5):
                torch.testing.assert_close(
                    together[i], getattr(model(x[i : i + 1], t[i]), rule)()[0], rtol=1e-12, atol=0
                )


def test_samples_have_the_probabilities_of_the_table():
    chain = potts_chain(3, 1.5)
    for model in (Table(potts(3, 3, 1.5), Uniform(3)), MarkovChain(*chain, 3, Uniform(3))):
        x = model.draw(20_000, torch.Generator().manual_seed(0))
        found = (x * torch.tensor([9, 3, 1])).sum(1).bincount(minlength=27)
        expected = 20_000 * model.log_prob(sequences(3, 3)).exp()
        assert ((found - expected) ** 2 / expected).sum() < 26 + 5 * 52**0.5  # chi-square with 26 degrees of freedom


@both
def test_folders_bring_models_back(process):
    x = torch.tensor([[0, 2, 1]])
    for model in (Table(potts(3, 3, 1.5), process(3)), MarkovChain(*potts_chain(3, 1.5), 3, process(3))):
        back = from_spec(to_spec(model))
        assert back.process == model.process and torch.equal(back(x, 0.5).log_mean(), model(x, 0.5).log_mean())


def test_half_precision_does_not_reach_an_exact_model():
    model = Table(potts(3, 3, 1.5), Uniform(3)).bfloat16()
    assert (
        model.probabilities.dtype == torch.float64
        and model(torch.tensor([[0, 1, 2]]), 0.5).log_mean().dtype == torch.float64
    )


def test_tables_and_chains_must_fit_their_process():
    with pytest.raises(ValueError, match=r"a table for 4 tokens needs axes of that length .* got shape \(3, 3\)"):
        Table(potts(3, 2, 1.0), Absorbing(4))
    with pytest.raises(ValueError, match=r"initial \[4\] and transitions \[4, 4\], got \[?\(3,\)"):
        MarkovChain(*potts_chain(3, 1.0), 5, Absorbing(4))


# The oracles: with an exact denoiser the bound on the likelihood is the entropy of the data.


def quadrature(num):
    nodes, weights = np.polynomial.legendre.leggauss(num)
    return (torch.tensor(nodes) + 1) / 2, torch.tensor(weights) / 2


@pytest.mark.parametrize("table, nats", [(mini_countdown(4, 5), 3.384508), (potts(3, 5, 1.5), 4.425906)])
def test_absorbing_bound_is_the_entropy(table, nats):
    """`int sigma' alpha / (1 - alpha) E sum over masked of -log P(x_0) dt`.

    The integrand is a polynomial of degree d - 1.
    """
    model = Table(table, Absorbing(table.shape[0], LogLinear(1e-9)))
    x, process = sequences(model.process.num_states, 5), model.process
    log_mean = model(x, 0.5).log_mean()
    each = (entropy_of_rows(log_mean) * (x == process.mask)).sum(-1)
    bound = 0
    for t, weight in zip(*quadrature(6), strict=True):
        per_mask = process.rate(t) * process.alpha(t) / (1 - process.alpha(t))
        bound += weight * per_mask * (model.marginal(t.item()).flatten() @ each)
    assert bound.item() == pytest.approx(nats, abs=1e-6) == model.entropy().item()


def entropy_of_rows(log_mean):
    return -torch.xlogy(log_mean.exp(), log_mean.exp()).sum(-1)


def test_uniform_score_entropy_is_the_entropy():
    """`int sigma' E sum Q(y, x) [s - r log s + r (log r - 1)] dt` plus the prior's divergence.

    r = q(y | x_0) / q(x | x_0).
    """
    model = Table(potts(3, 5, 1.5), Uniform(3))
    x, process, bound = sequences(3, 5), model.process, 0
    tokens = torch.arange(3).expand(1, 3)
    for u, weight in zip(*quadrature(48), strict=True):
        t = u**4  # the integrand has a logarithmic end at t = 0
        alpha = process.alpha(t)
        forward = process.likelihood(tokens, alpha)[0]  # symmetric
        clean = process.ancestral(
            model(x, t).log_mean(), x, alpha, torch.ones(()).double()
        )  # p(x_0^i | x_t), [n, d, S]
        r = forward[:, None, :] / forward[:, :, None]  # [z, x, y]
        r = r.transpose(0, 1)[x]  # [n, d, z, y]
        s = model(x, t).log_score().exp()[:, :, None, :]
        inside = s - r * s.log() + r * (r.log() - 1)
        expected = torch.einsum("ndz,ndzy,ndy->n", clean, inside, process.jumps(x, torch.float64))
        bound += weight * 4 * u**3 * process.rate(t) * (model.marginal(t.item()).flatten() @ expected)
    last = process.likelihood(tokens, process.alpha(f64(1)))[0, 0]
    prior = 5 * (last * (3 * last).log()).sum()
    assert prior.item() == pytest.approx(4.998e-6, rel=1e-3)
    assert (bound + prior).item() == pytest.approx(4.425906, abs=1e-6)
