"""Draws, shared noise, the loop and its conventions; samples against their exact law."""

import pytest
import torch
from helpers import f64
from torch.utils._python_dispatch import TorchDispatchMode

from distillkit.discrete import denoiser as denoiser_module
from distillkit.discrete.denoiser import DiscreteDenoiser, Guided, Mean, Ratio
from distillkit.discrete.exact import MarkovChain, Table, countdown_chain, mini_countdown, potts
from distillkit.discrete.laws import law
from distillkit.discrete.noise import Noise, draw, fresh, hitting
from distillkit.discrete.process import Absorbing, Uniform
from distillkit.discrete.sampling import DENOISE, SAMPLERS, Independent, network_passes, sample
from distillkit.discrete.schedule import Geometric, LogLinear, MDLMCosine
from distillkit.spec import from_spec, to_spec

ABSORBING_ONLY = ("confidence", "first_hitting")
PAIRS = [(process, name) for process in (Absorbing, Uniform) for name in SAMPLERS]
PAIRS = [pair for pair in PAIRS if pair[0] is Absorbing or pair[1] not in ABSORBING_ONLY]


class Counted(DiscreteDenoiser):
    """A teacher that records the times of its calls."""

    def __init__(self, teacher):
        super().__init__(teacher.process)
        self.teacher, self.times = teacher, []

    def forward(self, x_t, t, cond=None):
        self.times.append(float(t))
        return self.teacher(x_t, t, cond)


def chi_square(found, expected):
    """Statistic over cells that can occur; cells that cannot must be empty."""
    possible = expected > 0
    assert found[~possible].sum() == 0
    return ((found - expected) ** 2 / expected.clamp_min(1e-300))[possible].sum().item(), int(possible.sum()) - 1


@pytest.mark.parametrize("process, name", PAIRS)
def test_samples_have_their_exact_law(process, name):
    teacher, num = Table(potts(3, 3, 1.5), process(3)), 20_000
    noise, times = fresh(0, num, 3), teacher.process.grid(3)
    x = sample(teacher, teacher.process.start(noise(100)), times, noise, SAMPLERS[name])
    found = (x * torch.tensor([9, 3, 1])).sum(1).bincount(minlength=27).double()
    statistic, freedom = chi_square(found, num * law(teacher, 3, times, SAMPLERS[name]).flatten())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("process, name", PAIRS)
@pytest.mark.parametrize("num", [1, 4])
def test_calls_are_counted_and_the_last_one_leaves_no_mask(process, name, num):
    teacher = Counted(Table(potts(3, 4, 1.5), process(3)))
    noise = fresh(0, 16, 4)
    x = sample(teacher, teacher.process.start(noise(100)), teacher.process.grid(num), noise, SAMPLERS[name])
    assert len(teacher.times) == network_passes(SAMPLERS[name], num) and x.shape == (16, 4) and x.max() < 3
    assert teacher.times[0] == 1 and teacher.times[-1] == 1 / num


def test_every_call_has_its_own_noise():
    asked, teacher = [], Table(potts(3, 2, 1.5), Uniform(3))
    draws = fresh(0, 4, 2)
    sample(teacher, torch.zeros(4, 2).long(), Uniform(3).grid(3), lambda i: asked.append(i) or draws(i))
    steps = [SAMPLERS["theta_rk2"], SAMPLERS["euler"]]
    sample(teacher, torch.zeros(4, 2).long(), Uniform(3).grid(3), lambda i: asked.append(i) or draws(i), steps)
    assert asked == [0, 1, 2] + [0, 1, 2, 3]


@pytest.mark.parametrize("process, name", [pair for pair in PAIRS if isinstance(SAMPLERS[pair[1]], Independent)])
def test_kernels_are_probabilities(process, name):
    teacher = Table(mini_countdown(3, 3), process(3))
    x = torch.cartesian_prod(*[torch.arange(teacher.process.num_states)] * 3)
    for t, s in (f64(1, 0.875), f64(0.5, 0.4), f64(0.01, 0.005)):
        kernel = SAMPLERS[name].kernel(teacher, x, t, s)
        assert kernel.min() >= 0 and (kernel.sum(-1) - 1).abs().max() < 1e-12
        own = SAMPLERS[name].kernel(teacher, x, t.expand(len(x)), s.expand(len(x)))  # one time per sample
        assert (own - kernel).abs().max() < 1e-12


def unmask_probabilities(schedule, name):
    process = Absorbing(3, schedule)
    teacher, grid = Table(potts(3, 2, 1.0), process), [*process.grid(8), f64(0)[0]]
    x = torch.tensor([[3, 3]])
    return [1 - SAMPLERS[name].kernel(teacher, x, t, s)[0, 0, 3].item() for t, s in zip(grid, grid[1:], strict=False)]


def test_log_linear_unmasks_dt_over_t():
    for eps in (1e-3, 0.2):
        for name in ("euler", "tweedie", "ancestral"):
            found = unmask_probabilities(LogLinear(eps), name)
            assert found == pytest.approx([1 / (8 - k) for k in range(8)], abs=1e-12)


def test_other_schedules_do_not():
    exact, euler = (unmask_probabilities(MDLMCosine(), name) for name in ("ancestral", "euler"))
    assert [exact[0], exact[6]] == pytest.approx([0.1951, 0.7476], abs=5e-5)
    assert [euler[0], euler[6]] == pytest.approx([0.1963, 0.9871], abs=5e-5)
    exact, euler = (unmask_probabilities(Geometric(), name) for name in ("tweedie", "euler"))
    assert exact[:4] == pytest.approx([0.0129, 0.3804, 0.6961, 0.7647], abs=5e-5)
    assert euler[:4] == pytest.approx([0.0000, 0.0868, 0.9163, 1.0], abs=5e-5)  # 1.3742 is cut to a sure move


def test_the_first_euler_step_of_uniform_noise_redraws_everything():
    teacher = Table(potts(3, 2, 1.0), Uniform(3))
    x = torch.tensor([[0, 1]])
    kernel = SAMPLERS["euler"].kernel(teacher, x, f64(1)[0], f64(0.875)[0])
    assert kernel.gather(-1, x[..., None]).abs().max() < 1e-12 and (kernel[0, 0, 1:] - 0.5).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rare_tokens_keep_their_share(dtype):
    """Steps of 1/1024, half of the mass in 500 tokens of 1e-3: a floor of 1e-6 leaves a quarter."""
    num, leave = 20_000, 1 / 1024
    kernel = torch.full((502,), leave * 1e-3, dtype=torch.float64)
    kernel[0], kernel[501] = leave / 2, 1 - leave
    noise = fresh(0, num, 1)(0)
    late = Noise(1 - leave * (1 - noise.move), noise.place)  # the part of the draws in which the position leaves
    at_mask = torch.full((num, 1), 501)
    found = draw(kernel.to(dtype).expand(num, 1, -1), at_mask, late)
    assert (found != 501).double().mean() > 0.9999
    assert ((found > 0) & (found < 501)).double().mean().item() == pytest.approx(0.5, abs=0.01)
    stayed = draw(kernel.to(dtype).expand(num, 1, -1), at_mask, noise) == 501
    assert (~stayed).sum().item() == pytest.approx(num * leave, abs=4.5 * (num * leave) ** 0.5)


def test_the_same_noise_draws_the_same():
    one, two = fresh(3, 5, 4), fresh(3, 5, 4)
    two(0)
    assert torch.equal(one(2).place, two(2).place) and torch.equal(one(2).move, two(2).move)
    assert not torch.equal(one(2).move, one(1).move) and not torch.equal(one(2).move, fresh(4, 5, 4)(2).move)


def masks_of_a_run(teacher, num, shared, step):
    """The masked positions at each time of a run under hitting-time coupling, and its result."""
    times = teacher.process.grid(num)
    fractions = (1 - teacher.process.alpha(times)) / (1 - teacher.process.alpha(times[:1]))
    seen, noise = [], hitting(shared, fractions)
    x = teacher.process.start(shared(0))
    for k in range(num):
        seen.append(x == teacher.process.mask)
        rule = step if k < num - 1 else DENOISE
        x = rule(teacher, x, times[k], times[min(k + 1, num - 1)], noise(k))
    return torch.stack(seen), x


def test_hitting_noise_couples_masks_on_nested_grids():
    teacher, rows = Table(potts(3, 4, 1.5), Absorbing(3)), 6000
    shared = fresh(0, rows, 4)
    coarse, x = masks_of_a_run(teacher, 4, shared, SAMPLERS["euler"])
    fine, better = masks_of_a_run(teacher, 16, shared, SAMPLERS["tweedie"])
    assert torch.equal(coarse, fine[::4]) and coarse[1].double().mean().item() == pytest.approx(0.75, abs=0.02)
    assert x.max() < 3 and 0.5 < (x == better).double().mean() < 1
    # each run alone still has its own law
    found = (x * 3 ** torch.arange(3, -1, -1)).sum(1).bincount(minlength=81).double()
    statistic, freedom = chi_square(found, rows * law(teacher, 4, Absorbing(3).grid(4), SAMPLERS["euler"]).flatten())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def states(teacher, rows=50):
    """States of the teacher's process at 0.6, [rows, length]."""
    x_0 = teacher.draw(rows, torch.Generator().manual_seed(1))
    return teacher.process.add_noise(x_0, f64(0.6)[0], fresh(5, rows, teacher.length)(0))


@pytest.mark.parametrize("process, name", [pair for pair in PAIRS if isinstance(SAMPLERS[pair[1]], Independent)])
def test_a_step_draws_from_its_whole_kernel(process, name):
    """Read and drawn where a position may move, it gives the very states."""
    teacher, noise = Table(potts(3, 4, 1.5), process(3)), fresh(0, 50, 4)(0)
    x, (t, s) = states(teacher), f64(0.6, 0.3)
    assert torch.equal(SAMPLERS[name](teacher, x, t, s, noise), draw(SAMPLERS[name].kernel(teacher, x, t, s), x, noise))


@pytest.mark.parametrize("process, name", PAIRS)
def test_a_sequence_does_not_depend_on_its_batch_nor_on_how_it_is_read(process, name, monkeypatch):
    teacher, step = Table(potts(3, 4, 1.5), process(3)), SAMPLERS[name]
    x, times = states(teacher), f64(0.6, 0.4, 0.2)
    whole = sample(teacher, x, times, fresh(0, 50, 4), step)
    monkeypatch.setattr(denoiser_module, "CELLS", 12)  # three positions or four
    assert torch.equal(sample(teacher, x, times, fresh(0, 50, 4), step), whole)
    assert torch.equal(sample(teacher, x[13:20], times, fresh(0, 7, 4, first=13), step), whole[13:20])


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that is made, the given one and its views left out."""

    def __init__(self, apart):
        super().__init__()
        self.apart, self.size = apart.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != self.apart:
                self.size = max(self.size, tensor.numel())
        return out


@pytest.mark.parametrize(
    "process, name, kind",
    [(*pair, Mean) for pair in PAIRS] + [(Absorbing, "tweedie", Ratio), (Uniform, "theta_rk2", "guided")],
)
def test_nothing_is_as_large_as_the_network_s_output(process, name, kind, monkeypatch):
    process, step, length = process(400), SAMPLERS[name], 24
    monkeypatch.setattr(denoiser_module, "CELLS", 1200)  # two or three positions
    logits = torch.randn(1, length, process.num_states, generator=torch.Generator().manual_seed(0))
    model = (Mean if kind == "guided" else kind)(Logits(logits), process)
    model = Guided(model, lambda cond: cond, 2.0) if kind == "guided" else model
    draws = fresh(0, 1, length)
    x = process.add_noise(process.start(draws(9)) % 400, f64(0.6)[0], draws(10))
    with Largest(logits) as largest:
        sample(model, x, f64(0.6, 0.5), draws, step)
    assert largest.size <= 1300


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_shown_token_stays(name):
    teacher, noise = Table(potts(3, 4, 1.5), Absorbing(3)), fresh(0, 64, 4)
    start = torch.tensor([3, 1, 3, 2]).expand(64, 4)
    x = sample(teacher, start, Absorbing(3).grid(4), noise, SAMPLERS[name])
    assert torch.equal(x[:, [1, 3]], start[:, [1, 3]]) and x.max() < 3


@pytest.mark.parametrize("name", ABSORBING_ONLY)
def test_unmasking_needs_masks(name):
    noise = fresh(0, 4, 2)
    with pytest.raises(ValueError, match="needs an Absorbing process, got Uniform"):
        sample(Table(potts(3, 2, 1.5), Uniform(3)), torch.zeros(4, 2).long(), f64(1, 0.5), noise, SAMPLERS[name])


def test_steps_must_be_as_many_as_intervals():
    with pytest.raises(ValueError, match="shorter|longer"):
        sample(Table(potts(3, 2, 1.5), Uniform(3)), torch.zeros(4, 2).long(), f64(1, 0.5), fresh(0, 4, 2), [])


@pytest.mark.parametrize("step", SAMPLERS.values(), ids=SAMPLERS)
def test_a_folder_brings_a_step_back(step):
    back = from_spec(to_spec(step))
    assert type(back) is type(step) and to_spec(back) == to_spec(step)


@pytest.mark.parametrize("name", ["theta_trapezoidal", "theta_rk2"])
def test_theta_is_a_place_in_the_step(name):
    with pytest.raises(ValueError, match="theta must lie in"):
        type(SAMPLERS[name])(0.0)


class Logits(torch.nn.Module):
    """A network with fixed outputs."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x, t, cond):
        return self.logits


def test_networks_of_either_kind_become_denoisers():
    process, x = Absorbing(3), torch.tensor([[3, 1]])
    exact = Table(potts(3, 2, 1.5), process)
    mean = Mean(Logits((exact(x, 0.5).log_mean().clamp_min(-50) + 7).float()), process)
    assert (mean(x, 0.5).log_mean().exp() - exact(x, 0.5).log_mean().exp()).abs().max() < 1e-6 and mean(
        x, 0.5
    ).log_mean().dtype == torch.float32
    with_mask = torch.cat([exact(x, 0.5).log_mean().clamp_min(-50), torch.full((1, 2, 1), 9.0).double()], -1)
    assert (
        Mean(Logits(with_mask), process)(x, 0.5).log_mean().exp() - exact(x, 0.5).log_mean().exp()
    ).abs().max() < 1e-12
    raw = exact(x, 0.5).log_score().clone()
    raw[0, 0, 3] = 5.0  # the network's value at the current state does not count
    ratio = Ratio(Logits(raw), process)
    assert (ratio(x, 0.5).log_mean().exp() - exact(x, 0.5).log_mean().exp()).abs().max() < 1e-12
    assert (ratio(x, 0.5).rates() - exact(x, 0.5).rates()).abs().max() < 1e-12
    doubled = Ratio(
        Logits(raw + torch.tensor(2.0).log()), process
    )  # not a distribution's score: Euler moves twice as fast
    assert (doubled(x, 0.5).rates() - 2 * ratio(x, 0.5).rates()).abs().max() < 1e-6
    assert (doubled(x, 0.5).log_mean().exp() - exact(x, 0.5).log_mean().exp()).abs().max() < 1e-12


def violations(x):
    """Fraction of adjacent pairs that break the countdown."""
    return ((x[:, :-1] > 0) & (x[:, 1:] != x[:, :-1] - 1)).double().mean().item()


@pytest.mark.parametrize(
    "num, pair",
    [pytest.param(k, p, marks=() if k < 3 else pytest.mark.slow) for k, p in ((1, 0.9023), (2, 0.4732), (8, 0.0964))],
)
def test_long_countdown_breaks_as_often_as_published(num, pair):
    """256 tokens out of 32, exact teacher; the tolerance is that of 512 samples, or of one."""
    rows = 64 if num < 3 else 512
    teacher, noise = MarkovChain(*countdown_chain(32), 256, Absorbing(32)), fresh(0, rows, 256)
    x = sample(teacher, teacher.process.start(noise(100)), teacher.process.grid(num), noise)
    assert violations(x) == pytest.approx(pair, rel=0.08)
