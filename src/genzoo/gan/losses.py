"""The objectives of the room: pure functions that return a scalar.

Losses are functions of scores; penalties call the discriminator themselves:

    d_loss(real_logits, fake_logits, *, real_images=None, fake_images=None)
    g_loss(real_logits, fake_logits, *, real_images=None, fake_images=None)
    penalty(discriminator, real_images, fake_images, *, generator=None)

Logits are (B, N), N scores for each image (N = 1 for a plain head). `discriminator` maps images to
logits, and `generator` is the source of random numbers. The generator's step does not score the
real images again: `g_loss` gets None for `real_logits`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def hinge_d(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    real_images: Tensor | None = None,
    fake_images: Tensor | None = None,
) -> Tensor:
    """Hinge loss of the discriminator (Lim and Ye, 2017; Miyato et al., 2018, Eq. 16)."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def hinge_g(
    real_logits: Tensor | None,
    fake_logits: Tensor,
    *,
    real_images: Tensor | None = None,
    fake_images: Tensor | None = None,
) -> Tensor:
    """Hinge loss of the generator, linear in the score (Miyato et al., 2018, Eq. 17)."""
    return -fake_logits.mean()


def non_saturating_d(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    real_images: Tensor | None = None,
    fake_images: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the discriminator (Goodfellow et al., 2014, Eq. 1)."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def non_saturating_g(
    real_logits: Tensor | None,
    fake_logits: Tensor,
    *,
    real_images: Tensor | None = None,
    fake_images: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the generator, -log D(G(z)) (Goodfellow et al., 2014, Section 3).

    The minimax form has no gradient where D is sure.
    """
    return F.softplus(-fake_logits).mean()


def r1_penalty(
    discriminator: Callable[[Tensor], Tensor],
    real_images: Tensor,
    fake_images: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Squared gradient on real images, without gamma / 2 (Mescheder et al., 2018, Eq. 9)."""
    images = real_images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()
