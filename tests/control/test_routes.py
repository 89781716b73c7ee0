"""The ways from noise to samples: gradients in closed form, and samples as the model gives them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers import PROCESSES, Affine, f64, gaussian, neural
from torch import nn

from distillkit.control.noise import NoiseOptimizer
from distillkit.control.routes import DITTO_STEPS, ThroughStudent, ThroughTeacher, of_student, of_teacher
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.guidance import guided
from distillkit.diffusion.learned import LearnedSolver
from distillkit.diffusion.process import VarianceExploding
from distillkit.students.few_step import END, FewStepStudent
from distillkit.students.sampler import SamplerStudent
from domains.discrete.teacher import Countdown

MEAN, STD = 0.7, 0.5
Z = torch.tensor([[-1.3], [0.2], [2.1]], dtype=torch.float64)


def gradient(route, z, cond=None):
    """The samples, and the gradient of their sum."""
    z = z.clone().requires_grad_()
    x = route(z, cond or {})
    return x.detach(), torch.autograd.grad(x.sum(), z)[0]


class Exact(Denoiser):
    """The exact student: `f(x, t) = m + S (x - alpha m) / sqrt(alpha^2 S^2 + sigma^2)`."""

    def __init__(self, process, told=None):
        super().__init__(nn.Linear(1, 1), process, "x0")
        self.told, self.ends = told or {}, []

    def forward(self, x_t, t, cond=None):
        self.ends += [cond[END]] if END in self.told else []
        alpha, sigma = (
            scale[:, None] for scale in (self.process.alpha(t.expand(len(x_t))), self.process.sigma(t.expand(len(x_t))))
        )
        return MEAN + STD * (x_t - alpha * MEAN) * ((alpha * STD) ** 2 + sigma**2).rsqrt()


def shrink(process, t):
    """The slope `S / sqrt(alpha^2 S^2 + sigma^2)` of the exact student at t."""
    return STD * ((process.alpha(t) * STD) ** 2 + process.sigma(t) ** 2).rsqrt()


def drawn(num):
    """The noise of `num` steps, the first Z."""
    later = torch.randn(3, num - 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([Z[:, None], later], 1)


class Reach:
    """(x - y)^2."""

    def __init__(self, target):
        self.target = target

    def loss(self, x, cond):
        return (x - self.target).square().flatten(1).sum(1)


# ---- closed forms


@pytest.mark.parametrize("name", ["ve", "vp", "flow", "trig"])
@pytest.mark.parametrize("steps", [3, DITTO_STEPS])
def test_the_gradient_through_ddim_is_the_product_of_its_hops(name, steps):
    """`PROD cos(theta_k - theta_{k+1})` on angles `atan(sigma / (alpha S))`, down to the datum."""
    teacher = gaussian(MEAN, STD, PROCESSES[name])
    route = ThroughTeacher(teacher, steps=steps)
    alpha, sigma = (scale(route.times) for scale in (teacher.process.alpha, teacher.process.sigma))
    angles = torch.cat([torch.atan2(sigma, alpha * STD), f64(0.0)])
    total = ((alpha[0] * STD) ** 2 + sigma[0] ** 2).sqrt()
    slope = STD * (angles[:-1] - angles[1:]).cos().prod() * sigma[0] / total
    x, grad = gradient(route, Z)
    assert torch.allclose(grad, slope.expand_as(Z), rtol=1e-9, atol=0)
    assert torch.allclose(x[1:] - x[:1], slope * (Z[1:] - Z[:1]), rtol=1e-8)
    assert len(route.times) == steps and route.calls == steps


@pytest.mark.parametrize("name", ["ve", "flow", "trig"])
def test_one_step_of_an_exact_student(name):
    """`z* = (y - f(0)) / s`, s the slope of its one step at the first time, however many it has."""
    process = PROCESSES[name]
    student = FewStepStudent(Exact(process), process.grid(5)[:-1].tolist(), (1,))
    t = torch.tensor(student.times[0], dtype=torch.float64)
    slope = shrink(process, t) * process.sigma(t)
    offset = MEAN - process.alpha(t) * MEAN * shrink(process, t)
    route, z = ThroughStudent(student, one=True), drawn(4)
    x, grad = gradient(route, z)
    assert torch.allclose(x, offset + slope * z[:, 0], atol=1e-12)
    assert torch.allclose(grad[:, 0], slope.expand_as(Z), rtol=1e-12) and not grad[:, 1:].any()
    found = NoiseOptimizer(route, [Reach(1.5)], steps=120, lr=0.1)(z, {}).noise
    assert torch.allclose(found[:, 0], ((1.5 - offset) / slope).expand_as(Z), atol=1e-3)
    assert torch.equal(found[:, 1:], z[:, 1:]) and route.calls == 1 and route.decode_steps == 4


@pytest.mark.parametrize("name", ["ve", "flow", "trig"])
def test_all_steps_of_an_exact_student(name):
    """Noise i counts by `sigma_i s_i PROD_(j > i) alpha_j s_j`, s the slopes of the steps."""
    process = PROCESSES[name]
    student = FewStepStudent(Exact(process), process.grid(5)[:-1].tolist(), (1,))
    times = torch.tensor(student.times, dtype=torch.float64)
    later = (process.alpha(times) * shrink(process, times)).tolist()
    slopes = [float(process.sigma(t) * shrink(process, t)) * math.prod(later[i + 1 :]) for i, t in enumerate(times)]
    route, z = ThroughStudent(student), drawn(4)
    x, grad = gradient(route, z)
    assert torch.allclose(grad[..., 0], f64(*slopes).expand(3, 4), rtol=1e-11, atol=0) and min(slopes) > 0
    assert torch.allclose(x[1:] - x[:1], ((z[1:] - z[:1]) * grad[:1]).sum(1), rtol=1e-10)
    assert torch.equal(route.decode(z, {}), x) and route.calls == route.decode_steps == 4


def test_implied_noise_carries_the_gradient_on():
    """Steps by implied noise are those of DDIM, which an exact student's jumps leave in place."""
    process = VarianceExploding()
    student = FewStepStudent(Exact(process), process.grid(5)[:-1].tolist(), (1,), renoise="implied")
    route, z = ThroughStudent(student), Z[:, None]
    x, grad = gradient(route, z)
    ahead, back = (route(z + h, {}) for h in (1e-3, -1e-3))
    assert torch.allclose(grad[:, 0], (ahead - back) / 2e-3, rtol=1e-9) and (grad > 0).all()
    one = gradient(ThroughStudent(student, one=True), z)[1]
    assert not torch.allclose(grad, one, rtol=1e-2)


def test_a_student_of_jumps_jumps_to_the_datum():
    process = VarianceExploding()
    denoiser = Exact(process, {END: {"range": [0, 1]}})
    student = FewStepStudent(denoiser, [80.0, 5.0], (1,), gamma=0.0)
    x, grad = gradient(ThroughStudent(student, one=True), Z[:, None])
    assert len(denoiser.ends) == 1 and (denoiser.ends[0] == 0).all()  # the flow time of the datum
    assert torch.allclose(grad[:, 0], torch.full_like(Z, STD * 80 / (STD**2 + 80**2) ** 0.5), rtol=1e-12)


# ---- what the network's calls keep


@pytest.mark.parametrize("kappa", [1.0, 3.0])
def test_repeated_calls_give_equal_gradients(kappa):
    teacher, z, cond = (
        neural(),
        torch.randn(4, 2, generator=torch.Generator().manual_seed(0)),
        {"label": torch.arange(4) % 2},
    )
    repeated, kept = (ThroughTeacher(teacher, kappa=kappa, checkpointing=given) for given in (True, False))
    counted = []
    teacher.denoiser.register_forward_hook(lambda module, inputs, output: counted.append(len(output)))
    found = []
    for route in (repeated, kept):
        counted.clear()
        found.append(gradient(route, z, cond))
        assert sum(counted) == 4 * route.calls == 4 * DITTO_STEPS * (2 if kappa != 1 else 1)  # repetitions stop early
    assert torch.equal(found[0][0], found[1][0]) and torch.allclose(found[0][1], found[1][1], atol=1e-5, rtol=0)
    assert found[0][1].abs().max() > 1e-2
    assert torch.equal(found[0][0], teacher.sample(z, cond, DITTO_STEPS, "ddim", kappa))


def test_a_step_that_sees_the_one_before_is_repeated_as_it_was():
    """Self-conditioning: the repeated call of a step must not see the last step's prediction."""

    class Remembering(type(neural())):
        def stepper(self, cond, kappa):
            last = [0.0]

            def denoise(x, t):
                last[0] = guided(self.denoiser, x + 0.3 * last[0], t, cond, cond, 1.0).detach()
                return guided(self.denoiser, x + 0.3 * last[0], t, cond, cond, 1.0)

            return denoise

    own = neural()
    teacher = Remembering(own.denoiser, own.event_shape, own.classes)
    z, cond = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), {"label": torch.arange(3) % 2}
    found = [gradient(ThroughTeacher(teacher, steps=4, checkpointing=given), z, cond)[1] for given in (True, False)]
    assert torch.allclose(*found, atol=1e-6)


def test_guidance_reaches_the_gradient():
    teacher, z, cond = (
        neural(),
        torch.randn(4, 2, generator=torch.Generator().manual_seed(0)),
        {"label": torch.arange(4) % 2},
    )
    with_class, without, guided_3 = (
        gradient(ThroughTeacher(teacher, steps=1, kappa=k), z, cond)[1] for k in (1.0, 0.0, 3.0)
    )
    assert torch.allclose(guided_3, without + 3 * (with_class - without), atol=1e-5)
    assert (guided_3 - with_class).abs().max() > 1e-3


# ---- samples as the model gives them


def few(num=3, **settings):
    network = neural().denoiser
    times = network.process.grid(num + 1)[:-1].tolist()
    return FewStepStudent(network, times, (2,), {"label": 2}, codec=Affine(), **settings).eval()


@pytest.mark.parametrize("renoise", ["fresh", "implied", "first"])
def test_noise_that_was_not_changed_gives_the_students_samples(renoise):
    student, cond = few(renoise=renoise), {"label": torch.arange(5) % 2}
    route = of_student(student)
    made = route.decode(route.noise(5, cond, 7), cond)
    assert torch.equal(made, student.sample(5, cond, 7, decode=False))
    assert torch.equal(route.codec.decode(made, cond), student.sample(5, cond, 7))
    assert torch.allclose(route(route.noise(5, cond, 7), cond), made, atol=1e-6)
    assert route.decode_steps == route.calls == student.num_steps == 3
    one = of_student(student, one=True)
    assert torch.equal(one.decode(one.noise(5, cond, 7), cond), made) and one.calls == 1


def test_another_number_of_steps_is_spread_as_in_training():
    student = few(4)
    assert student.with_steps(4) is student
    for num in (1, 2, 7):
        other = student.with_steps(num)
        grid = student.denoiser.process.grid(num + 1, student.times[0])[:-1].tolist()
        assert other.times == grid and other.times[0] == student.times[0]
        assert other.denoiser is student.denoiser and student.num_steps == 4
    route = of_student(student, 2)
    cond = {"label": torch.zeros(2, dtype=torch.int64)}
    assert torch.equal(
        route.decode(route.noise(2, cond, 1), cond), student.with_steps(2).sample(2, cond, 1, decode=False)
    )


def test_a_learned_sampler_is_gone_through_as_a_whole():
    teacher = neural()
    sampler = LearnedSolver(teacher.process, teacher.grid(4).tolist())
    nn.init.normal_(sampler.change, std=0.1, generator=torch.Generator().manual_seed(0))
    student = SamplerStudent(teacher, sampler.requires_grad_(False), kappa=2.0)
    route, cond = of_student(student), {"label": torch.arange(5) % 2}
    z = route.noise(5, cond, 3)
    expected = student.sample(5, cond, 3, decode=False)
    x, grad = gradient(route, z, cond)
    assert torch.equal(route.decode(z, cond), expected) and torch.allclose(x, expected, atol=1e-6)
    assert grad.isfinite().all() and (grad != 0).all() and route.decode_steps == 4
    with pytest.raises(ValueError, match="4 learned steps"):
        of_student(student, 2)
    with pytest.raises(ValueError, match="no step of which makes a sample"):
        of_student(student, one=True)


def test_a_teachers_samples_are_those_that_gradients_go_through():
    teacher, cond = neural(), {"label": torch.arange(5) % 2}
    route = of_teacher(teacher, 2.0)
    z = route.noise(5, cond, 3)
    assert torch.equal(z, teacher.noise(5, cond, 3))
    assert torch.allclose(route.decode(z, cond), route(z, cond), atol=1e-6)


def test_what_draws_noise_or_tokens_is_refused():
    with pytest.raises(ValueError, match="ancestral draws noise"):
        ThroughTeacher(neural(), "ancestral")
    with pytest.raises(ValueError, match="tokens, which have no gradients"):
        of_teacher(Countdown())


# ---- kinds of networks


def test_a_network_in_bfloat16_gives_the_noise_a_gradient_in_float32():
    student = few(2)
    half = copy.deepcopy(student)
    half.denoiser.network.to(torch.bfloat16)
    z, cond = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(0)), {"label": torch.arange(6) % 2}
    (x, grad), (x_16, grad_16) = (gradient(of_student(each), z, cond) for each in (student, half))
    assert grad_16.dtype == x_16.dtype == torch.float32
    assert (grad_16 - grad).norm() < 0.1 * grad.norm() and (x_16 - x).norm() < 0.1 * x.norm()


def test_a_student_that_was_told_its_guidance_needs_it():
    student = few(2)
    student.denoiser.tell("kappa", range=[1, 4])
    with torch.no_grad():
        for parameter in student.denoiser.network.embed.parameters():
            parameter += 0.1
    z = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0))
    cond = [student.checked_condition(2, {"label": torch.tensor([0, 1])}, kappa) for kappa in (1.0, 4.0)]
    low, high = (gradient(of_student(student), z, each) for each in cond)
    assert not torch.allclose(low[0], high[0]) and low[1].isfinite().all()
