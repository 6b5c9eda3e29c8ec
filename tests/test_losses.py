"""The objectives of the GAN room: numbers by hand, limits, and the dynamics of the Dirac-GAN."""

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from genzoo.gan import losses
from genzoo.gan.losses import hinge_d, hinge_g, non_saturating_d, non_saturating_g, r1_penalty

D_LOSSES = [hinge_d, non_saturating_d]
G_LOSSES = [hinge_g, non_saturating_g]
PENALTIES = [r1_penalty]


# Signatures


def test_no_objective_is_forgotten_here():
    public = {
        function
        for name, function in inspect.getmembers(losses, inspect.isfunction)
        if function.__module__ == losses.__name__ and not name.startswith("_")
    }
    assert public == {*D_LOSSES, *G_LOSSES, *PENALTIES}
    assert all(function.__doc__ for function in public)


def parameters(function: Callable) -> list[tuple[str, str, object]]:
    signature = inspect.signature(function)
    assert signature.return_annotation is Tensor
    return [(p.name, p.kind.name, p.default) for p in signature.parameters.values()]


@pytest.mark.parametrize("loss", D_LOSSES + G_LOSSES)
def test_signatures_of_losses(loss):
    assert parameters(loss) == [
        ("real_logits", "POSITIONAL_OR_KEYWORD", inspect.Parameter.empty),
        ("fake_logits", "POSITIONAL_OR_KEYWORD", inspect.Parameter.empty),
        ("real_images", "KEYWORD_ONLY", None),
        ("fake_images", "KEYWORD_ONLY", None),
    ]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_signatures_of_penalties(penalty):
    assert parameters(penalty) == [
        ("discriminator", "POSITIONAL_OR_KEYWORD", inspect.Parameter.empty),
        ("real_images", "POSITIONAL_OR_KEYWORD", inspect.Parameter.empty),
        ("fake_images", "POSITIONAL_OR_KEYWORD", inspect.Parameter.empty),
        ("generator", "KEYWORD_ONLY", None),
    ]


# Values


REAL = torch.tensor([[0.5], [2.0], [-1.0]])
FAKE = torch.tensor([[-0.25], [-3.0], [1.0]])


def test_hinge_by_hand():
    # max(0, 1 - x) = 0.5, 0, 2 and max(0, 1 + x) = 0.75, 0, 2
    assert hinge_d(REAL, FAKE).item() == pytest.approx(2.5 / 3 + 2.75 / 3)
    assert hinge_g(REAL, FAKE).item() == pytest.approx(2.25 / 3)


def test_non_saturating_by_hand():
    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    real, fake = REAL.flatten().tolist(), FAKE.flatten().tolist()
    expected = sum(softplus(-x) for x in real) / 3 + sum(softplus(x) for x in fake) / 3
    assert non_saturating_d(REAL, FAKE).item() == pytest.approx(expected)
    assert non_saturating_g(REAL, FAKE).item() == pytest.approx(sum(softplus(-x) for x in fake) / 3)


@pytest.mark.parametrize("loss", D_LOSSES + G_LOSSES)
def test_several_scores_are_averaged(loss):
    real, fake = torch.randn(2, 4, 3)
    by_score = [loss(real[:, n : n + 1], fake[:, n : n + 1]) for n in range(3)]
    torch.testing.assert_close(loss(real, fake), torch.stack(by_score).mean())
    assert loss(real, fake).shape == ()


@pytest.mark.parametrize("loss", D_LOSSES)
def test_batches_of_unequal_size_have_equal_weight(loss):
    real, fake = torch.randn(2, 1), torch.randn(6, 1)
    torch.testing.assert_close(loss(real, fake), loss(real.repeat(3, 1), fake))


@pytest.mark.parametrize("loss", G_LOSSES)
def test_generator_losses_look_at_fakes_only(loss):
    assert torch.equal(
        loss(None, FAKE), loss(REAL, FAKE, real_images=torch.ones(1), fake_images=torch.ones(1))
    )


def test_values_at_the_equilibrium():
    zero = torch.zeros(5, 1)
    assert non_saturating_d(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert non_saturating_g(zero, zero).item() == pytest.approx(math.log(2))
    assert hinge_d(zero, zero).item() == 2
    assert hinge_g(zero, zero).item() == 0


def test_the_optimal_discriminator_of_two_densities():
    """Least at log p/q, where it is 2 log 2 - 2 JS(p, q) (Goodfellow et al., 2014, Theorem 1)."""
    p, q = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], dtype=torch.float64)

    def expected(
        scores: Tensor,
    ) -> Tensor:  # the loss in expectation, from 100 samples that follow p and q exactly
        real = scores.repeat_interleave((p * 100).round().long())
        fake = scores.repeat_interleave((q * 100).round().long())
        return non_saturating_d(real[:, None], fake[:, None])

    best = (p / q).log().requires_grad_()
    value = expected(best)
    (gradient,) = torch.autograd.grad(value, best)
    torch.testing.assert_close(gradient, torch.zeros(3).double(), rtol=0, atol=1e-12)
    middle = (p + q) / 2
    divergence = (p * (p / middle).log()).sum() / 2 + (q * (q / middle).log()).sum() / 2
    torch.testing.assert_close(value.detach(), 2 * math.log(2) - 2 * divergence)


def test_hinge_is_least_where_it_says_one_and_minus_one():
    real, fake = torch.tensor([[1.0], [7.0]]), torch.tensor([[-1.0], [-7.0]])
    assert hinge_d(real, fake).item() == 0


@pytest.mark.parametrize("loss", D_LOSSES)
def test_the_discriminator_s_gradient_parts_real_from_fake(loss):
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    loss(real, fake).backward()
    assert (real.grad <= 0).all()
    assert (fake.grad >= 0).all()
    assert real.grad.any()
    assert fake.grad.any()


@pytest.mark.parametrize("loss", G_LOSSES)
@pytest.mark.parametrize("score", [-1e4, -50.0, -1.0, 0.0, 1.0])
def test_the_generator_s_gradient_raises_the_score_even_where_the_discriminator_is_sure(
    loss, score
):
    fake = torch.full((4, 1), score, requires_grad=True)
    loss(None, fake).backward()
    assert (fake.grad < 0).all()
    if score < -10:
        torch.testing.assert_close(fake.grad, torch.full((4, 1), -0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("loss", D_LOSSES + G_LOSSES)
def test_large_scores_do_not_overflow(loss, dtype):
    for real, fake in ((1e4, -1e4), (-1e4, 1e4), (1e4, 1e4), (-1e4, -1e4)):
        logits = torch.tensor([[real], [fake]], dtype=dtype, requires_grad=True)
        value = loss(logits[:1], logits[1:])
        assert value.isfinite()
        value.backward()
        assert logits.grad.isfinite().all()


def test_limits_of_the_non_saturating_loss():
    large = torch.tensor([[1e4]])
    assert non_saturating_d(large, -large).item() == 0
    assert non_saturating_d(-large, large).item() == 2e4
    assert non_saturating_g(None, -large).item() == 1e4
    assert non_saturating_g(None, large).item() == 0


# R1


def test_r1_of_a_linear_discriminator():
    w = torch.randn(3 * 4 * 4).double()
    images = torch.randn(5, 3, 4, 4).double()
    value = r1_penalty(lambda x: (x.flatten(1) @ w)[:, None] + 7, images, images)
    torch.testing.assert_close(value, w.square().sum())


def test_r1_of_a_quadratic_discriminator():
    """D(x) = x'Ax / 2 + b'x has the gradient Ax + b for a symmetric A."""
    a, b = torch.randn(12, 12).double(), torch.randn(12).double()
    a = a + a.T
    images = torch.randn(5, 3, 2, 2).double()

    def discriminator(images: Tensor) -> Tensor:
        x = images.flatten(1)
        return ((x @ a) * x).sum(dim=1, keepdim=True) / 2 + (x @ b)[:, None]

    expected = (images.flatten(1) @ a + b).square().sum(dim=1).mean()
    torch.testing.assert_close(r1_penalty(discriminator, images, torch.zeros(5, 3, 2, 2)), expected)


def test_r1_can_be_differentiated_by_the_weights():
    w = torch.randn(12, requires_grad=True)
    images = torch.randn(5, 3, 2, 2)
    r1_penalty(lambda x: (x.flatten(1) @ w)[:, None], images, images).backward()
    torch.testing.assert_close(w.grad, 2 * w.detach())


def test_r1_leaves_images_and_weights_alone():
    layer = torch.nn.Linear(12, 1)
    for images in (torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2, requires_grad=True)):
        before, wanted = images.detach().clone(), images.requires_grad
        r1_penalty(lambda x: layer(x.flatten(1)), images, images)
        assert images.requires_grad == wanted
        assert images.grad is None
        assert layer.weight.grad is None
        assert layer.bias.grad is None
        assert torch.equal(images, before)
    leaf = torch.randn(5, 3, 2, 2, requires_grad=True)
    r1_penalty(lambda x: layer(x.flatten(1)), leaf * 2, leaf).backward()
    assert leaf.grad is None, "the penalty must not reach what made the images"


def test_r1_looks_at_real_images_only_and_draws_nothing():
    def discriminator(images: Tensor) -> Tensor:
        return images.square().sum(dim=(1, 2, 3))[:, None]

    real, state = torch.randn(4, 1, 2, 2), torch.get_rng_state()
    value = r1_penalty(discriminator, real, torch.randn(4, 1, 2, 2), generator=None)
    torch.set_rng_state(state)
    assert torch.equal(value, r1_penalty(discriminator, real, torch.empty(0)))
    assert torch.equal(torch.get_rng_state(), state)


def test_r1_takes_each_image_s_own_gradient():
    """The mean of squares, not the square of a mean; each image alone gives its own part."""

    def discriminator(images: Tensor) -> Tensor:
        return images.square().sum(dim=(1, 2, 3))[:, None]

    images = torch.randn(4, 1, 2, 2).double()
    alone = [r1_penalty(discriminator, image[None], image[None]) for image in images]
    torch.testing.assert_close(r1_penalty(discriminator, images, images), torch.stack(alone).mean())


# The Dirac-GAN in the plane: real data are the point 0, fakes the point theta, D(x) = <x, phi>
# (Mescheder et al., 2018, Definition 2.1; Su, 2019, https://kexue.fm/archives/6583).


def field(state: Tensor, d_loss: Callable, g_loss: Callable, gamma: float = 0.0) -> Tensor:
    """The velocity (-d L_D / d phi, -d L_G / d theta) at (phi, theta), with R1 times gamma / 2."""
    phi, theta = state.detach().reshape(2, 2).unbind()
    phi, theta = phi.requires_grad_(), theta.requires_grad_()

    def discriminator(images: Tensor) -> Tensor:
        return (images.flatten(1) @ phi)[:, None]

    real, fake = torch.zeros(1, 2, 1, 1, dtype=state.dtype), theta.reshape(1, 2, 1, 1)
    loss = d_loss(discriminator(real), discriminator(fake.detach()))
    if gamma:
        loss = loss + gamma / 2 * r1_penalty(discriminator, real, fake.detach())
    (d_phi,) = torch.autograd.grad(loss, phi)
    (d_theta,) = torch.autograd.grad(g_loss(None, discriminator(fake)), theta)
    return -torch.cat([d_phi, d_theta])


START = torch.tensor([0.1, 0.2, 0.2, 0.1], dtype=torch.float64)  # phi, theta


def integrate(velocity: Callable[[Tensor], Tensor], time: float, step: float) -> Tensor:
    """The state after `time`, by the classical Runge-Kutta method."""
    state = START
    for _ in range(round(time / step)):
        k1 = velocity(state)
        k2 = velocity(state + step / 2 * k1)
        k3 = velocity(state + step / 2 * k2)
        k4 = velocity(state + step * k3)
        state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


def test_the_field_of_the_non_saturating_gan():
    for _ in range(5):
        state = torch.randn(4).double()
        phi, theta = state.reshape(2, 2)
        s = torch.sigmoid(theta @ phi)
        expected = torch.cat([-s * theta, (1 - s) * phi])
        torch.testing.assert_close(field(state, non_saturating_d, non_saturating_g), expected)
        # so that theta x phi is conserved, and |phi|^2 + |theta|^2 never grows
        d_phi, d_theta = expected.reshape(2, 2)
        assert (
            d_theta[0] * phi[1] + theta[0] * d_phi[1] - d_theta[1] * phi[0] - theta[1] * d_phi[0]
        ).abs() < 1e-12
        product = theta @ phi
        torch.testing.assert_close(
            phi @ d_phi + theta @ d_theta, -product * torch.tanh(product / 2)
        )


def test_the_field_of_hinge_is_linear_near_the_equilibrium():
    phi, theta = START.reshape(2, 2)
    torch.testing.assert_close(field(START, hinge_d, hinge_g), torch.cat([-theta, phi]))
    expected = torch.cat([-theta - 0.2 * phi, phi])
    torch.testing.assert_close(field(START, hinge_d, hinge_g, gamma=0.2), expected)


def test_without_a_penalty_the_dirac_gan_orbits():
    end = integrate(
        lambda state: field(state, hinge_d, hinge_g), time=4 * math.pi, step=math.pi / 25
    )
    torch.testing.assert_close(end, START, rtol=1e-3, atol=1e-3)  # two whole turns
    end = integrate(
        lambda state: field(state, non_saturating_d, non_saturating_g), time=40, step=0.2
    )
    phi, theta = end.reshape(2, 2)
    torch.testing.assert_close(theta[0] * phi[1] - theta[1] * phi[0], torch.tensor(0.03).double())
    assert end.reshape(2, 2).norm(dim=1).max() > 0.17


def test_r1_makes_the_dirac_gan_converge():
    """0.1 times |phi|^2 is gamma = 0.2: exp(-0.1 t) times a turn, so 0.00241 at t = 40."""
    end = integrate(lambda state: field(state, hinge_d, hinge_g, gamma=0.2), time=40, step=0.2)
    assert end[2:].norm().item() == pytest.approx(0.00241, abs=5e-6)
    matrix = torch.kron(torch.tensor([[-0.2, -1.0], [1.0, 0.0]]).double(), torch.eye(2).double())
    torch.testing.assert_close(end, torch.linalg.matrix_exp(40 * matrix) @ START, rtol=0, atol=5e-6)


def test_r1_makes_the_non_saturating_dirac_gan_converge():
    end = integrate(
        lambda state: field(state, non_saturating_d, non_saturating_g, gamma=0.2),
        time=100,
        step=0.5,
    )
    assert end[2:].norm().item() < 2e-5
