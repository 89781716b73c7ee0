"""The residual of an average velocity: exact flow maps, its size elsewhere, its gradients.

s, mu: of a Gaussian teacher; b: std of its noised samples; y: a noised sample less its mean. All in
flow coordinates: x = (1 - tau) x_0 + tau eps, whatever the process.
"""

import math

import pytest
import torch
from helpers import PROCESSES, Line, f64, gaussian, sigma_points
from torch import nn

from distillkit.diffusion.flow import difference_quotient, flow_velocity, forward_derivative
from distillkit.diffusion.process import RectifiedFlow, expand
from distillkit.diffusion.sampling import few_step
from distillkit.losses.mdt import pull, residual, unit_tangent
from distillkit.teachers.exact import ExactTeacher, Mixture

MU, S = 0.4, 0.5
FLOW = RectifiedFlow()


def jump(mu, s, process=FLOW):
    """The exact student of N(mu, s^2): `f = mu + (s / b) (x_t - alpha mu)`."""

    def denoise(x_t, t):
        alpha, sigma = (expand(scale(t), x_t) for scale in (process.alpha, process.sigma))
        return mu + s * (alpha**2 * s**2 + sigma**2).rsqrt() * (x_t - alpha * mu)

    return denoise


def teacher_velocity(mu=MU, s=S, process=FLOW):
    return flow_velocity(gaussian(mu, s, process).denoiser, process)


def points(*taus):
    """x on both sides of every mean, and its tau: [N, 1], [N]."""
    x, tau = torch.meshgrid(f64(-1.7, -0.2, 0.9, 2.5), f64(*(taus or (0.15, 0.4, 0.7, 0.9))), indexing="ij")
    return x.reshape(-1, 1), tau.flatten()


def spread(tau, s=S):
    return ((1 - tau) ** 2 * s**2 + tau**2).sqrt()


def found(student, teacher, x, tau, delta=None):
    """R by forward mode, or by a step of length delta."""
    phi, v = student(x, tau), teacher(x, tau)
    rate = forward_derivative(student, x, tau, v) if delta is None else None
    return residual(phi, difference_quotient(student, x, tau, phi, v, delta) if delta else rate, v, tau)


# Zero where the student is exact


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_no_residual_at_the_exact_jump(process):
    student, teacher = flow_velocity(jump(MU, S, process), process), teacher_velocity(process=process)
    assert found(student, teacher, *points()).abs().max() < 1e-10


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_a_hop_leaves_a_residual_of_its_own_length(process):
    """O(delta): half of it at half the step."""
    student, teacher = flow_velocity(jump(MU, S, process), process), teacher_velocity(process=process)
    one, half = (found(student, teacher, *points(), delta).norm() for delta in (1e-3, 5e-4))
    assert 0 < one < 0.02 and (one / half).item() == pytest.approx(2, rel=0.02)


def mixture_jump(means, stds, weights):
    """The exact student of a mixture on a line, by bisection.

    The flow keeps quantiles, so `f = Q_0(C_t(x))`.
    """
    means, stds, weights = f64(*means), f64(*stds), f64(*weights)

    def quantile(x, alpha, sigma):
        std = (alpha**2 * stds**2 + sigma**2).sqrt()
        return (weights * torch.special.ndtr((x - alpha * means) / std)).sum(-1, keepdim=True)

    def denoise(x, tau):
        tau = expand(tau, x)
        share, (low, high) = quantile(x, 1 - tau, tau), (torch.full_like(x, end) for end in (-20.0, 20.0))
        for _ in range(100):
            middle = (low + high) / 2
            below = quantile(middle, 1 - 0 * tau, 0 * tau) < share
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    return denoise


def test_no_residual_at_the_exact_jump_of_a_mixture():
    """Two modes that part on the way: zero everywhere, and the jump has the mixture's spread."""
    means, stds, weights = (-1.5, 1.0), (0.4, 0.3), (0.3, 0.7)
    exact = mixture_jump(means, stds, weights)
    law = Mixture([[m] for m in means], [[[s**2]] for s in stds], weights)
    teacher = flow_velocity(ExactTeacher(law, FLOW).denoiser, FLOW)
    student = flow_velocity(exact, FLOW)
    x, tau = points(0.3, 0.6, 0.9)
    sizes = [found(student, teacher, x, tau, delta).abs().max() for delta in (2e-4, 1e-4)]
    assert sizes[1] < 5e-3 and (sizes[0] / sizes[1]).item() == pytest.approx(2, rel=0.05)
    share = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    samples = exact(torch.special.ndtri(share)[:, None], f64(1.0).expand(20_000))
    assert samples.std().item() == pytest.approx(law.covariance.sqrt().item(), rel=1e-3)
    assert (samples > -0.25).double().mean().item() == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("kappa", [1.0, 41.0])
def test_a_guided_teacher_is_answered_by_the_shifted_jump(kappa):
    """Equal widths: kappa moves the mean to m_0 + kappa (m_c - m_0), far beyond m_c."""
    m_c, m_0 = 1.0, 0.8
    conditional, unconditional = teacher_velocity(m_c), teacher_velocity(m_0)
    teacher = lambda x, tau: unconditional(x, tau) + kappa * (conditional(x, tau) - unconditional(x, tau))  # noqa: E731
    right, off_by_one = (flow_velocity(jump(m_0 + k * (m_c - m_0), S), FLOW) for k in (kappa, kappa + 1))
    assert (
        found(right, teacher, *points()).abs().max() < 1e-10 < 1e-2 < found(off_by_one, teacher, *points()).abs().min()
    )


# Its size elsewhere


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_where_the_student_starts(process):
    """phi = v: `R = tau dv/dtau = tau s^2 / b^4 y`, away from the mean: a collapsed step opens."""
    teacher = teacher_velocity(process=process)
    x, tau = points()
    y = x - (1 - tau)[:, None] * MU
    expected = (tau * S**2 / spread(tau) ** 4)[:, None] * y
    torch.testing.assert_close(found(teacher, teacher, x, tau), expected, rtol=1e-8, atol=1e-8)


def test_it_is_the_jumps_slope_times_the_difference_of_velocities():
    """A student exact for another Gaussian with velocity u: `R = (df/dx) (u - v)`."""
    other = (-0.3, 0.9)
    x, tau = points()
    slope = (other[1] / spread(tau, other[1]))[:, None]
    expected = slope * (teacher_velocity(*other)(x, tau) - teacher_velocity()(x, tau))
    torch.testing.assert_close(
        found(flow_velocity(jump(*other), FLOW), teacher_velocity(), x, tau), expected, rtol=1e-10, atol=1e-10
    )


PROBES = {
    "offset": lambda x, tau, mu: torch.ones_like(x),
    "scale": lambda x, tau, mu: x - (1 - tau)[:, None] * mu,
    "scale growing": lambda x, tau, mu: tau[:, None] * (x - (1 - tau)[:, None] * mu),
}
MIDDLES = 0.02 + 0.98 * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000  # tau uniform in (0.02, 1)


def slope_of_the_loss(probe, s, mu=MU, sign=1.0):
    """d loss / d a at a = 0.1 for a student that is exact but for a probe: phi + a probe."""
    tau = MIDDLES.repeat(2)
    y = torch.cat([spread(MIDDLES, s), -spread(MIDDLES, s)])[:, None]  # both sides: exact for quadratic functions of y
    x = (1 - tau)[:, None] * mu + y
    a = f64(0.1)[0].requires_grad_()
    exact = flow_velocity(jump(mu, s), FLOW)
    student = lambda x, tau: exact(x, tau) + a * PROBES[probe](x, tau, mu)  # noqa: E731
    v = teacher_velocity(mu, s)(x, tau)
    phi = student(x, tau)
    with torch.no_grad():
        R = residual(phi, sign * forward_derivative(student, x, tau, v), v, tau)
    return torch.autograd.grad(pull(phi, R), a)[0].item()


@pytest.mark.parametrize(
    "probe, s, expected",
    [
        ("offset", 0.5, 0.2000),
        ("scale", 0.5, 0.1429),
        ("scale growing", 0.5, 0.1227),
        ("offset", 1.0, 0.2000),
        ("scale", 1.0, 0.1662),
        ("scale growing", 1.0, 0.1259),
    ],
)
def test_gradient_back_to_the_exact_jump(probe, s, expected):
    """`2 a E[h (h + tau dh/dtau)] > 0` for a probe a h.

    `expected` was found independently, by sampling (1 %).
    """
    tau, b = MIDDLES, spread(MIDDLES, s)
    growth = tau * (tau - (1 - tau) * s**2) / b**2  # tau dy/dtau = growth y
    closed = {"offset": 1 + 0 * tau, "scale": b**2 * (1 + growth), "scale growing": tau**2 * b**2 * (2 + growth)}
    found = slope_of_the_loss(probe, s)
    assert found == pytest.approx(0.2 * closed[probe].mean().item(), rel=1e-9)
    assert found == pytest.approx(expected, rel=0.01)


def test_an_offset_cannot_see_the_sign_of_the_derivative_but_a_scale_can():
    """The sign of tau dphi/dtau is flipped."""
    assert slope_of_the_loss("offset", 0.5, sign=-1.0) == pytest.approx(0.2, abs=0.01)
    assert slope_of_the_loss("scale", 0.5, sign=-1.0) < -1


# Equivalent forms


def bumpy(seed=0):
    """A smooth random student."""
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return network, lambda x, tau: network(torch.cat([x, tau[:, None]], dim=1))


def gradient(loss, network):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


def test_it_is_consistency_distillation_up_to_a_weight_of_time():
    """Gradient of `|f(x, tau) - sg f(x', tau')|^2 / (tau delta)`, f = x - tau phi.

    x' is one Euler step of the teacher away.
    """
    delta, generator = 1e-3, torch.Generator().manual_seed(1)
    network, student = bumpy()
    x = torch.randn(256, 2, generator=generator, dtype=torch.float64)
    tau = 0.05 + 0.95 * torch.rand(256, generator=generator, dtype=torch.float64)
    law = ExactTeacher(Mixture([[0.4, -0.2]], [[[0.25, 0.1], [0.1, 0.5]]]), FLOW)
    v = flow_velocity(law.denoiser, FLOW)(x, tau)
    phi = student(x, tau)
    with torch.no_grad():
        R = residual(phi, difference_quotient(student, x, tau, phi, v, delta), v, tau)
        before = (x - delta * v) - (tau - delta)[:, None] * student(x - delta * v, tau - delta)
    ours = gradient(pull(phi, R), network)
    distance = (x - tau[:, None] * student(x, tau) - before).square() / (tau * delta)[:, None]
    theirs = gradient(distance.mean(), network)
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.9999
    assert (ours.norm() / theirs.norm()).item() == pytest.approx(1, abs=1e-3)
    # stopping phi(x', tau') alone would be the same direction, 1 + tau / delta times as long
    phi = student(x, tau)
    rate = (phi - student(x - delta * v, tau - delta).detach()) / delta
    naive = gradient(residual(phi, rate, v, tau).square().mean(), network)
    assert naive.norm() > 100 * ours.norm()


TABLE = {  # hop: spread of one step over the law's, for s = 0.3, 0.5, 1, 2
    0.1: (1.1259, 1.0434, 0.9699, 0.9070),
    0.02: (1.0275, 1.0100, 0.9942, 0.9806),
    0.01: (1.0139, 1.0051, 0.9971, 0.9902),
}


@pytest.mark.parametrize("delta", TABLE)
def test_the_fixed_point_of_a_hop_is_the_published_one(delta):
    """Affine students on a grid of steps, each solved for R = 0 given the one below; four laws."""
    s = f64(0.3, 0.5, 1.0, 2.0)
    gain, ones = torch.full((4,), -1.0, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)
    for k in range(1, round(1 / delta) + 1):
        tau = torch.full((4,), k * delta, dtype=torch.float64)
        v = ((tau - (1 - tau) * s**2) / spread(tau, s) ** 2)[:, None]
        below = lambda x, tau, gain=gain: gain[:, None] * x  # noqa: E731
        zero, one = (
            residual(A * ones, difference_quotient(below, ones, tau, A * ones, v, delta), v, tau) for A in (0.0, 1.0)
        )
        gain = (zero / (zero - one))[:, 0]
    assert ((1 - gain) / s).tolist() == pytest.approx(TABLE[delta], abs=6e-5)


# Velocity distillation


@pytest.mark.parametrize(
    "m, s, mean, scale",
    [(0.3, 0.4, 0, -0.117), (0.3, 0.6, 0, 0.158), (0.1, 0.5, -0.412, 0), (0.6, 0.5, 0.618, 0), (0.3, 0.5, 0, 0)],
)
def test_distillation_pulls_samples_back(m, s, mean, scale):
    """A student exact for N(m, s^2), a teacher N(0.3, 0.5^2): signs of (m - 0.3) and (s - 0.5).

    The sizes were found independently, by sampling (1 %).

    Without the factor 1 - tau; tau uniform in (0.02, 0.98), the one step from pure noise.
    """
    middles = 0.02 + 0.96 * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    z, eps = (point.repeat(len(middles), 1) for point in sigma_points())
    tau = middles.repeat_interleave(4)
    line = Line(m, s)
    x_1 = line(z)
    with torch.no_grad():
        x = (1 - tau)[:, None] * x_1 + tau[:, None] * eps
        R = found(flow_velocity(jump(m, s), FLOW), teacher_velocity(0.3, 0.5), x, tau)
    assert line.gradient(pull(x_1, -R)) == pytest.approx([mean, scale], rel=0.01, abs=1e-9)


# Stop-gradients and masks


def test_pull_moves_y_alone():
    """Value mean push^2, gradient 2 push over the number of elements, nothing into push."""
    y, push = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    y.requires_grad_(), push.requires_grad_()
    loss = pull(y, 0 * y + push)
    (into_y, into_push) = torch.autograd.grad(loss, [y, push], allow_unused=True)
    torch.testing.assert_close(into_y, 2 * push.detach() / 15)
    assert into_push is None and loss.item() == pytest.approx(push.square().mean().item())


def test_padding_counts_nowhere():
    """Two sets of different sizes: loss and norm are those of each set alone."""
    generator = torch.Generator().manual_seed(0)
    y, push, rate = torch.randn(3, 2, 6, 3, generator=generator, dtype=torch.float64).unbind()
    mask = torch.arange(6)[None] < torch.tensor([[5], [2]])
    alone = torch.stack([pull(y[i, :n], push[i, :n]) for i, n in enumerate((5, 2))])
    filled = torch.where(mask[..., None], push, math.nan)
    assert pull(y, filled, mask).item() == pytest.approx(alone.mean().item())
    for i, n in enumerate((5, 2)):
        torch.testing.assert_close(
            unit_tangent(torch.where(mask[..., None], rate, math.nan), mask)[i, :n],
            unit_tangent(rate[i : i + 1, :n])[0],
        )


# Known failures of the released code and of the sampler


@pytest.mark.parametrize("dims", [4, 64, 1024])
def test_the_released_norm_moves_the_fixed_point_to_collapse(dims):
    """The exact jump has a residual with dphi/dtau over its norm; collapsed phi = v has none."""
    generator = torch.Generator().manual_seed(0)
    tau = torch.full((64,), 0.8, dtype=torch.float64)
    x = spread(tau, 1.0)[:, None] * torch.randn(64, dims, generator=generator, dtype=torch.float64)
    teacher = flow_velocity(jump_free(dims), FLOW)
    exact = flow_velocity(jump(0.0, 1.0), FLOW)
    sizes = []
    for student in (exact, teacher):
        v = teacher(x, tau)
        rate = unit_tangent(forward_derivative(student, x, tau, v))
        sizes.append(residual(student(x, tau), rate, v, tau).square().mean().sqrt().item())
    assert sizes[0] > 0.3 and sizes[1] == pytest.approx(0.8 / math.sqrt(dims), rel=0.1)
    one_step = x - teacher(torch.zeros_like(x), tau)  # the collapsed step: at tau = 1, z - v(z) is the mean
    assert one_step.shape == x.shape


def jump_free(dims):
    """The denoiser of a unit Gaussian in many dimensions."""
    return lambda x_t, t: expand((1 - t) / ((1 - t) ** 2 + t**2), x_t) * x_t


@pytest.mark.parametrize("s", [0.3, 0.6, 1.0])
def test_keeping_the_implied_noise_widens_even_the_exact_student(s):
    """Two steps 1, 1/2: `(1 + s) / sqrt(1 + s^2)`, up to sqrt(2); fresh noise is exact."""
    z, fresh = sigma_points()
    student = jump(0.0, s)

    def ratio(times, renoise):
        samples, _ = few_step(
            lambda x, t: student(x, t.expand(len(x))), FLOW, f64(*times), lambda i: (z, fresh)[i], renoise
        )
        return samples.std(correction=0).item() / s / z.std(correction=0).item()

    assert ratio([1.0], "implied") == pytest.approx(1, abs=1e-9)
    assert ratio([1.0, 0.5], "implied") == pytest.approx((1 + s) / math.sqrt(1 + s**2), abs=1e-9)
    assert ratio([1.0, 0.5], "fresh") == pytest.approx(1, abs=1e-9)


# Training


class Corrected(nn.Module):
    """A student that starts as the teacher: its velocity plus an MLP that is zero at first."""

    def __init__(self, teacher, dims):
        super().__init__()
        torch.manual_seed(0)
        sizes = [dims + 1, 96, 96, dims]
        layers = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), nn.SiLU())][:-1]
        nn.init.zeros_(layers[-1].weight), nn.init.zeros_(layers[-1].bias)
        self.teacher, self.network = teacher, nn.Sequential(*layers)

    def forward(self, x, tau):
        return self.teacher(x, tau) + self.network(torch.cat([x, 2 * tau[:, None] - 1], dim=1))


def trained(steps, sign=1.0, norm=False):
    """`(std of one step over the law's, RMS error of its map)` after matching in 8 dimensions."""
    mu, s, delta = torch.linspace(-1, 1, 8), 0.5, 0.01
    generator = torch.Generator().manual_seed(0)

    def teacher(x, tau):
        tau = tau[:, None]
        return -mu + (tau - (1 - tau) * s**2) / spread(tau, s) ** 2 * (x - (1 - tau) * mu)

    student = Corrected(teacher, 8)
    adam = torch.optim.Adam(student.network.parameters(), lr=1e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=2e-5)
    for _ in range(steps):
        tau = delta + (1 - delta) * torch.sigmoid(torch.randn(512, generator=generator) - 0.5)
        x_0, eps = mu + s * torch.randn(512, 8, generator=generator), torch.randn(512, 8, generator=generator)
        x = torch.lerp(x_0, eps, tau[:, None])
        v, phi = teacher(x, tau), student(x, tau)
        with torch.no_grad():
            rate = forward_derivative(student, x, tau, v)
            R = residual(phi, sign * (unit_tangent(rate) if norm else rate), v, tau)
        adam.zero_grad()
        pull(phi, R).backward()
        nn.utils.clip_grad_norm_(student.network.parameters(), 1.0)
        adam.step(), schedule.step()
    z = torch.randn(4000, 8, generator=generator)
    with torch.no_grad():
        samples = z - student(z, torch.ones(4000))
    exact = mu + s * z
    ratio = (samples - samples.mean(0)).square().mean().sqrt() / s
    return ratio.item(), (samples - exact).square().mean().sqrt().item()


@pytest.mark.slow
def test_matching_learns_the_map_of_a_gaussian():
    """Spread and map, point by point: the mean alone is right from the start."""
    ratio, error = trained(3000)
    assert 0.95 < ratio < 1.06 and error < 0.07


@pytest.mark.slow
def test_a_flipped_sign_and_the_released_norm_do_not():
    ratio, error = trained(1000, sign=-1.0)
    assert not (0.5 < ratio < 2 and error < 1)
    ratio, error = trained(1000, norm=True)
    assert ratio < 0.8 and error > 0.15
