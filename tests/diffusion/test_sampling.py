"""Solvers against the exact flow of a Gaussian, in float64; paths and gradients of few steps."""

import pytest
import torch
from helpers import f64, gaussian
from mutations import Mutation, prove

from distillkit.diffusion.process import (
    DiscreteVariancePreserving,
    RectifiedFlow,
    ResShift,
    TrigFlow,
    VarianceExploding,
    VariancePreserving,
)
from distillkit.diffusion.sampling import (
    SOLVERS,
    ancestral,
    dpm_solver_sde,
    few_step,
    network_passes,
    pure_noise,
    renoise,
    resshift,
)
from distillkit.teachers.exact import ExactTeacher, Mixture

PROCESSES = {
    "ve": VarianceExploding(),
    "vp": VariancePreserving(),
    "flow": RectifiedFlow(),
    "trig": TrigFlow(sigma_data=0.6),
}
ORDERS = {"euler": 1, "ddim": 1, "heun": 2, "dpm_solver": 2, "unipc": 3}
MEAN, COVARIANCE = [0.6, -0.3], [[0.64, 0.2], [0.2, 0.09]]


def law(process):
    return ExactTeacher(Mixture([MEAN], [COVARIANCE]), process)


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoise):
        self.denoise, self.times = denoise, []

    def __call__(self, x, t):
        self.times.append(float(t))
        return self.denoise(x, t)


def solver_error(solver, process, num):
    """Largest error at the end of a run over the noise levels 5 .. 0.1."""
    teacher = law(process)
    start, end = process.from_ratio(f64(5.0, 0.1)).tolist()
    x = pure_noise(
        process, torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), f64(start)
    )
    found = SOLVERS[solver](teacher.denoiser, process, x, process.grid(num + 1, start, end))
    return (found - teacher.denoiser(teacher.flow_map(x, start, end), end)).abs().max().item()


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("solver, order", ORDERS.items())
def test_halving_the_step_shows_the_declared_order(solver, order, name):
    coarse, fine = (solver_error(solver, PROCESSES[name], num) for num in (200, 400))
    assert coarse / fine == pytest.approx(2**order, rel=0.05) and fine < (0.01 if order == 1 else 2e-4)


@pytest.mark.parametrize("solver, order", ORDERS.items())
def test_from_pure_noise_to_the_law(solver, order):
    """The whole range of a flow, whose first level has no signal: mean and covariance arrive."""
    process = PROCESSES["flow"]
    z = (
        torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64) * 2**0.5
    )  # has the moments of unit noise
    found = SOLVERS[solver](law(process).denoiser, process, z, process.grid(300))
    torch.testing.assert_close(found.mean(0), f64(*MEAN), rtol=0, atol=1e-6)
    tolerance = 6e-3 if order == 1 else 2e-4
    # four points weigh a quarter each, so their second moments are those of the (affine) map
    torch.testing.assert_close(
        torch.cov(found.T, correction=0), torch.tensor(COVARIANCE).double(), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_one_time_is_one_call(solver, name):
    process, x = PROCESSES[name], torch.randn(3, 2).double()
    denoise = Counted(law(process).denoiser)
    t = f64(process.t_max)
    found = SOLVERS[solver](denoise, process, x, t)
    assert torch.equal(found, law(process).denoiser(x, t[0])) and len(denoise.times) == 1


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_passes_are_counted_right(solver, steps):
    process = PROCESSES["ve"]
    denoise = Counted(law(process).denoiser)
    SOLVERS[solver](denoise, process, torch.randn(3, 2).double(), process.grid(steps), lambda i: torch.zeros(3, 2))
    assert len(denoise.times) == network_passes(solver, steps)
    assert sorted(set(denoise.times), reverse=True) == pytest.approx(process.grid(steps).tolist())


@pytest.mark.parametrize("solver", SOLVERS)
def test_precision_is_that_of_the_sample(solver):
    process = PROCESSES["vp"]
    found = SOLVERS[solver](
        law(process).denoiser, process, torch.randn(3, 2), process.grid(4), lambda i: torch.randn(3, 2)
    )
    assert found.dtype == torch.float32


@pytest.mark.parametrize("name", PROCESSES)
def test_renoise_takes_the_steps_of_a_student(name):
    process = PROCESSES[name]
    denoise, times = law(process).denoiser, process.grid(5)
    draws = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = renoise(denoise, process, pure_noise(process, draws[0], times[0]), times, lambda i: draws[i])
    assert torch.equal(found, few_step(denoise, process, times, lambda i: draws[i])[0])


def ancestral_moments(process, num):
    """Exact mean and std of the ancestral sampler for a 1-D Gaussian.

    The map is affine in its start and its draws, so rows with one of them set to one, minus the row
    with none, are its coefficients.
    """
    teacher, times = gaussian(0.6, 0.8, process), process.grid(num)
    draws = torch.eye(num + 1, dtype=torch.float64)[:, :, None]  # row 0: nothing; row i: draw i - 1
    draws = torch.cat([torch.zeros(1, num, 1).double(), draws[:num, :num]])
    start = pure_noise(process, draws[:, 0], times[0])
    asked = []

    def noise(i):
        asked.append(i)
        return draws[:, i]

    found = ancestral(teacher.denoiser, process, start, times, noise)[:, 0]
    assert asked == list(range(1, num))
    return found[0].item(), (found[1:] - found[0]).square().sum().sqrt().item()


@pytest.mark.parametrize("name", PROCESSES)
def test_ancestral_sampling_reaches_the_law(name):
    process = PROCESSES[name]
    mean, std = ancestral_moments(process, 400)
    coarse = ancestral_moments(process, 200)[1]
    limit = (0.8**2 / (0.8**2 + float(process.ratio(f64(process.t_min))) ** 2)) ** 0.5  # of E[x_0 | x_t]
    assert mean == pytest.approx(0.6, abs=5e-3) and std == pytest.approx(0.8, rel=0.02)
    assert abs(std - 0.8 * limit) < 0.65 * abs(coarse - 0.8 * limit)


def test_ancestral_step_is_the_posterior():
    """Every step on a point mass gives N(alpha_s x_0, sigma_s^2) from the law at t."""
    process, point = PROCESSES["vp"], 0.7
    times = f64(0.8, 0.3)
    (alpha, alpha_s), (sigma, sigma_s) = process.alpha(times), process.sigma(times)
    reached = []

    def denoise(x, t):
        reached.append(x)
        return torch.full_like(x, point)

    x = alpha * point + sigma * f64(0, 1, 0)[:, None]
    ancestral(denoise, process, x, times, lambda i: f64(0, 0, 1)[:, None])
    at_s = reached[1][:, 0]
    assert at_s[0].item() == pytest.approx(float(alpha_s) * point)
    assert (at_s[1:] - at_s[0]).square().sum().item() == pytest.approx(float(sigma_s) ** 2)
    b = (alpha / alpha_s * sigma_s**2 / sigma**2).item()
    assert (at_s[1] - at_s[0]).item() == pytest.approx(b * float(sigma))


# SDE-DPM-Solver++(2M)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_multistep_sde_is_ancestral_on_a_point(name):
    """Where the denoised sample is constant both are the exact SDE, whatever the steps."""
    process = PROCESSES[name]
    z = torch.randn(6, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x, times, reached = 5 * z[0], process.from_ratio(f64(20, 4, 1.5, 0.3, 0.1)), []

    def denoise(x_t, t):
        reached.append(x_t)
        return torch.full_like(x_t, 0.7)

    for solver in (ancestral, dpm_solver_sde):
        solver(denoise, process, x, times, lambda i: z[i])
    torch.testing.assert_close(reached[:5], reached[5:], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_multistep_sde_is_of_second_order(name):
    """The law of N(0.6, 0.8^2) on steps that are equal in log ratio: exact mean, std off by O(h^2).

    On the exact SDE the denoised sample is a martingale, so its mean never moves.
    """
    process, spread = PROCESSES[name], 0.64 / (0.64 + 0.1**2) ** 0.5  # of E[x_0 | x_t] at a ratio of 0.1
    denoise = gaussian(0.6, 0.8, process).denoiser

    def moments(num):
        times = process.from_ratio(5.0 * 0.02 ** torch.linspace(0, 1, num + 1, dtype=torch.float64))
        draws = torch.eye(num + 2, num + 1, dtype=torch.float64)[:, :, None].roll(1, 0)  # row 0: nothing
        alpha, sigma = process.alpha(times[0]), process.sigma(times[0])
        start = alpha * 0.6 + (0.64 * alpha**2 + sigma**2).sqrt() * draws[:, 0]
        found = dpm_solver_sde(denoise, process, start, times, lambda i: draws[:, i])[:, 0]
        return found[0].item(), (found[1:] - found[0]).square().sum().sqrt().item()

    (mean, coarse), (_, fine) = moments(100), moments(200)
    assert mean == pytest.approx(0.6, abs=1e-9)
    assert (coarse - spread) / (fine - spread) == pytest.approx(4, rel=0.05) and abs(fine - spread) < 1e-4


def test_the_multistep_sde_is_that_of_diffusers():
    """DPMSolverMultistepScheduler with `sde-dpmsolver++`, on LiDiff's table and times."""
    diffusers = pytest.importorskip("diffusers")
    betas = {"beta_start": 3.5e-5, "beta_end": 0.007}
    theirs = diffusers.DPMSolverMultistepScheduler(
        1000, **betas, beta_schedule="linear", algorithm_type="sde-dpmsolver++", solver_order=2
    )
    theirs.set_timesteps(8)
    process = DiscreteVariancePreserving(1000, **betas)
    times = theirs.timesteps.double()
    assert times.tolist() == [999, 874, 749, 624, 500, 375, 250, 125]
    z = torch.randn(9, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    denoise = law(process).denoiser
    ours, x = dpm_solver_sde(denoise, process, z[0], times, lambda i: z[i]), z[0]
    for i, t in enumerate(theirs.timesteps, start=1):
        x = theirs.step(denoise.eps(x, t.double()), t, x, variance_noise=z[i]).prev_sample
    assert (ours - x).abs().max() < 1e-4 < ours.std()


def check_second_order():
    process, z = PROCESSES["vp"], torch.randn(7, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    denoise, times, x = law(process).denoiser, process.grid(6), z[0]
    lam = -process.ratio(times).log()
    seen = []
    for i in range(5):
        seen.append(denoise(x, times[i]))
        h = lam[i + 1] - lam[i]
        d = seen[i] if i == 0 else seen[i] + h / (lam[i] - lam[i - 1]) / 2 * (seen[i] - seen[i - 1])
        (a, s), s_t = (process.alpha(times[i + 1]), process.sigma(times[i + 1])), process.sigma(times[i])
        share = 1 - (-2 * h).exp()
        x = s / s_t * (-h).exp() * x + a * share * d + s * share.sqrt() * z[i + 1]
    found = dpm_solver_sde(denoise, process, z[0], process.grid(6), lambda i: z[i])
    assert (found - denoise(x, times[5])).abs().max() < 1e-10


@pytest.mark.parametrize(
    "old, new",
    [
        ("x_0 + (h", "x_0 - (h"),
        ("2 * h_before", "h_before"),
        ("share.sqrt()", "share"),
        ("keep * x +", "x +"),
        ("noise(i + 1)", "noise(i)"),
    ],
)
def test_faults_of_the_multistep_sde_are_noticed(old, new):
    prove(Mutation("", dpm_solver_sde, old, new, check_second_order))


def test_resshifts_step_is_the_published_one():
    """`c x_t + (1 - c) x_0 + kappa sqrt(c (eta_t - eta_s)) z` with `c = eta_s / eta_t`."""
    process, times = ResShift(kappa=1.7), f64(0.8, 0.3)
    x, x_0, z = torch.randn(3, 6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reached = []

    def denoise(x_t, t):
        reached.append(x_t)
        return x_0

    resshift(denoise, process, x, times, lambda i: z)
    eta_t, eta_s = (times**2).tolist()
    share = eta_s / eta_t
    published = share * x + (1 - share) * x_0 + 1.7 * (share * (eta_t - eta_s)) ** 0.5 * z
    torch.testing.assert_close(reached[1], published, rtol=0, atol=1e-14)


def test_resshifts_step_keeps_the_marginal():
    """On a point mass its mean and variance are those of q(x_s | x_0); shown by draws."""
    process, times, point = ResShift(), f64(0.9, 0.4), 0.7
    generator, num = torch.Generator().manual_seed(1), 20_000
    eps, z = torch.randn(2, num, 1, dtype=torch.float64, generator=generator)
    reached = []

    def denoise(x_t, t):
        reached.append(x_t)
        return torch.full_like(x_t, point)

    resshift(denoise, process, process.alpha(times[0]) * point + process.sigma(times[0]) * eps, times, lambda i: z)
    assert reached[1].mean().item() == pytest.approx(float(process.alpha(times[1])) * point, abs=0.02)
    assert reached[1].var().item() == pytest.approx(float(process.sigma(times[1])) ** 2, rel=0.02)


def test_resshifts_step_is_ancestral_where_the_signal_stays():
    process, x = PROCESSES["ve"], torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    z, times = torch.randn(9, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), process.grid(8)
    both = [solver(law(process).denoiser, process, 80 * x, times, lambda i: z[i]) for solver in (ancestral, resshift)]
    torch.testing.assert_close(*both, rtol=0, atol=1e-12)


# The few-step sampler


def noises(num, rows=6):
    generator = torch.Generator().manual_seed(3)
    draws = torch.randn(num, rows, 2, generator=generator, dtype=torch.float64)
    return draws, lambda i: draws[i]


@pytest.mark.parametrize("name", PROCESSES)
def test_first_input_is_noise_of_the_first_level(name):
    process = PROCESSES[name]
    draws, noise = noises(1, rows=20_000)
    t = process.from_ratio(f64(2.5))
    _, x_t = few_step(law(process).denoiser, process, t, noise)
    assert torch.equal(x_t, process.sigma(t[0]) * draws[0])
    assert x_t.std().item() == pytest.approx(float(process.sigma(t)), rel=0.02)


def test_one_step_is_one_call_bit_for_bit():
    process = PROCESSES["ve"]
    draws, noise = noises(3)
    denoise, times = law(process).denoiser, f64(80, 5, 0.4)
    alone = denoise(80 * draws[0], times[0])
    for found, _ in (few_step(denoise, process, times[:1], noise), few_step(denoise, process, times, noise, stop=0)):
        assert torch.equal(found, alone)


@pytest.mark.parametrize("name", PROCESSES)
def test_renoising_uses_fresh_noise_of_the_next_level(name):
    process = PROCESSES[name]
    draws, noise = noises(3)
    denoise = Counted(law(process).denoiser)
    times = process.from_ratio(f64(20, 2, 0.3))
    found, x_t = few_step(denoise, process, times, noise)
    first = denoise.denoise(process.sigma(times[0]) * draws[0], times[0])
    second = denoise.denoise(process.alpha(times[1]) * first + process.sigma(times[1]) * draws[1], times[1])
    third_input = process.alpha(times[2]) * second + process.sigma(times[2]) * draws[2]
    torch.testing.assert_close(x_t, third_input)
    torch.testing.assert_close(found, denoise.denoise(third_input, times[2]))
    assert denoise.times == times.tolist()
    stopped, before = few_step(denoise, process, times, noise, stop=1)
    torch.testing.assert_close(stopped, second)


@pytest.mark.parametrize("name", PROCESSES)
def test_deterministic_mode_is_ddim(name):
    process = PROCESSES[name]
    draws, noise = noises(1)
    denoise, times = law(process).denoiser, process.from_ratio(f64(20, 2, 0.3))
    asked = []
    found, _ = few_step(denoise, process, times, lambda i: asked.append(i) or noise(i), renoise="implied")
    torch.testing.assert_close(found, SOLVERS["ddim"](denoise, process, process.sigma(times[0]) * draws[0], times))
    assert asked == [0]


@pytest.mark.parametrize("renoise", ["fresh", "implied", "first"])
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_only_the_last_step_has_gradient(renoise, stop):
    process, (_, noise), used = PROCESSES["ve"], noises(3), []
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)  # one weight for every step

    def denoise(x, t):
        used.append(torch.is_grad_enabled())
        return weights[len(used) - 1] * 0.5 * x

    x_0, x_t = few_step(denoise, process, f64(80, 5, 0.4), noise, renoise, stop)
    (gradient,) = torch.autograd.grad(x_0.sum(), weights)
    assert gradient[stop].item() == pytest.approx(0.5 * x_t.sum().item()) and not x_t.requires_grad
    assert gradient.nonzero().flatten().tolist() == [stop]
    assert used == [False] * stop + [True] and torch.is_grad_enabled()


def test_no_gradient_where_it_is_off():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        x_0, _ = few_step(lambda x, t: weight * x, PROCESSES["ve"], f64(80, 5), noises(2)[1])
    assert not x_0.requires_grad


def test_a_given_start_replaces_pure_noise():
    draws, noise = noises(2)
    _, x_t = few_step(lambda x, t: x, PROCESSES["ve"], f64(80), noise, start=lambda eps, t: 1 + t / 40 * eps)
    assert torch.equal(x_t, 1 + 2 * draws[0])


@pytest.mark.parametrize("scale", [0.0, 0.45, 1.0])
@pytest.mark.parametrize("name", PROCESSES)
def test_noise_scale_multiplies_every_draw_and_nothing_else(name, scale):
    """Every step is linear on a centred Gaussian: samples and inputs are scaled, nothing else."""
    process = PROCESSES[name]
    _, noise = noises(3)
    denoise = Counted(gaussian(0.0, 0.7, process).denoiser)
    times = process.from_ratio(f64(20, 2, 0.3))
    one = lambda i: noise(i)[:, :1]  # noqa: E731
    full, input_full = few_step(denoise, process, times, one)
    denoise.times.clear()
    found, input_found = few_step(denoise, process, times, one, noise_scale=scale)
    torch.testing.assert_close(found, scale * full)
    torch.testing.assert_close(input_found, scale * input_full)
    assert denoise.times == times.tolist()  # the student's times stay


def test_variance_of_modulated_samples_in_closed_form():
    """N(0, s^2), two steps: var = c_2^2 (alpha_2^2 c_1^2 g^2 sigma_1^2 + g^2 sigma_2^2).

    c is the slope of the posterior mean.
    """
    process, s, g, times = PROCESSES["flow"], 0.9, 0.45, f64(0.7, 0.2)
    denoise = gaussian(0.0, s, process).denoiser
    alpha, sigma = process.alpha(times), process.sigma(times)
    c = alpha * s**2 / (alpha**2 * s**2 + sigma**2)
    unit = [
        f64(2.0, 0.0)[:, None],
        f64(0.0, 2.0)[:, None],
    ]  # of two draws each alone, so squares add up to the variance
    found, _ = few_step(denoise, process, times, lambda i: unit[i], noise_scale=g)
    expected = c[1] ** 2 * (alpha[1] ** 2 * c[0] ** 2 * g**2 * sigma[0] ** 2 + g**2 * sigma[1] ** 2)
    assert found.square().sum().item() / 4 == pytest.approx(expected.item(), rel=1e-10)


def test_a_deterministic_student_draws_once_and_so_is_scaled_once():
    process, (_, noise) = PROCESSES["flow"], noises(1)
    denoise, times = law(process).denoiser, f64(0.9, 0.4, 0.1)
    found, _ = few_step(denoise, process, times, noise, renoise="implied", noise_scale=0.5)
    expected, _ = few_step(denoise, process, times, noise, renoise="implied", start=lambda eps, t: 0.5 * t * eps)
    torch.testing.assert_close(found, expected)
