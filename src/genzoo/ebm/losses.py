"""The objectives of the room: pure functions that return a scalar.

Three families:

    loss(positive, negative)                  energies of data and of the model's samples, (B,) each
    loss(score, samples, ..., generator=...)  score matching; `score` maps samples to -dE/dx
    loss(..., log densities)                  against noise of a known density

What the samples of the model are is not the loss's business: chains that start from data make it
contrastive divergence (Hinton, 2002), chains that go on from step to step persistent contrastive
divergence (Tieleman, 2008), chains that start from noise short-run learning (Nijkamp et al., 2019).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_divergence(positive: Tensor, negative: Tensor) -> Tensor:
    """E(x+) - E(x-): its gradient is that of the negative log likelihood (Su, 2019, 6612).

    Its value says nothing about how well the model fits.
    """
    return positive.mean() - negative.mean()


def igebm(positive: Tensor, negative: Tensor, l2_weight: float = 1.0) -> Tensor:
    """Contrastive divergence and both energies squared (Du and Mordatch, 2019, Algorithm 1).

    The squares keep energies near zero. Both have a plus sign, in the paper and in its code; the
    article's formula has a minus sign for the samples, which would reward energies without bound.
    """
    penalty = (positive.square() + negative.square()).mean()
    return contrastive_divergence(positive, negative) + l2_weight * penalty


def log_sum_exp(positive: Tensor, negative: Tensor) -> Tensor:
    """E(x+) + log mean exp(-E(x-)): samples of low energy count more (Du and Mordatch's code)."""
    return positive.mean() + torch.logsumexp(-negative, dim=0) - math.log(len(negative))


def softplus(positive: Tensor, negative: Tensor) -> Tensor:
    """log(1 + exp(E(x+) - E(x-))), pair by pair: "most stable", says Du and Mordatch's code."""
    return F.softplus(positive - negative).mean()


def denoising_score_matching(
    score: Callable[[Tensor], Tensor],
    samples: Tensor,
    *,
    noise_std: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Half the squared error of sigma times the score of noisy samples (Vincent, 2011, Eq. 9).

    The score that it has its minimum at is that of the data's density smeared by the noise.

    Args:
        score: (B, ...) -> (B, ...), -dE/dx.
        samples: (B, ...).
        noise_std: sigma.
        generator: The source of random numbers, on the CPU.
    """
    noise = _like(samples, generator)
    error = noise_std * score(samples + noise_std * noise) + noise
    return 0.5 * error.flatten(1).square().sum(dim=1).mean()


def sliced_score_matching(
    score: Callable[[Tensor], Tensor],
    samples: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The slope of the score, v . ds/dx v + |s|^2 / 2 along random v (Song et al., 2019, Eq. 8).

    Args:
        score: (B, ...) -> (B, ...), -dE/dx, which can be differentiated.
        samples: (B, ...).
        generator: The source of random numbers, on the CPU.
    """
    direction = _like(samples, generator)
    pulled: Any = torch.func.vjp(score, samples)
    found, (change,) = pulled[0], pulled[1](direction)
    slope = (direction * change).flatten(1).sum(dim=1)
    return (slope + 0.5 * found.flatten(1).square().sum(dim=1)).mean()


def noise_contrastive_estimation(
    data_log_density: Tensor,
    data_log_noise: Tensor,
    noise_log_density: Tensor,
    noise_log_noise: Tensor,
) -> Tensor:
    """Logistic regression between data and noise (Gutmann and Hyvärinen, 2010, Eq. 8).

    At its minimum the model's density, with its learned constant, is that of the data.

    Args:
        data_log_density: (B,), log density of data under the model: -E(x) - log Z.
        data_log_noise: (B,), that of data under the noise.
        noise_log_density: (B',), that of noise under the model.
        noise_log_noise: (B',), that of noise under the noise.
    """
    real = F.softplus(data_log_noise - data_log_density).mean()
    fake = F.softplus(noise_log_density - noise_log_noise).mean()
    return real + fake


def _like(samples: Tensor, generator: torch.Generator | None) -> Tensor:
    noise = torch.randn(samples.shape, generator=generator, dtype=samples.dtype)
    return noise.to(samples.device)
