"""How likely an energy finds images, by annealed importance sampling (Neal, 2001)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .samplers import HMC

Energy = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LogPartition:
    """Where log Z lies.

    Args:
        lower: In expectation at most log Z, in nats.
        upper: In expectation at least log Z if the samples are the energy's own; None without them.
        acceptance_rate: Share of the proposals that were taken on the way.
    """

    lower: float
    upper: float | None
    acceptance_rate: float


def log_partition(
    energy: Energy,
    shape: Sequence[int],
    *,
    samples: Tensor | None = None,
    num_chains: int = 64,
    num_distributions: int = 200,
    step_size: float = 0.2,
    num_leapfrog_steps: int = 5,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> LogPartition:
    """Bounds the logarithm of Z, the integral of exp(-E(x)) over the box [-1, 1]^D.

    Chains go from the uniform density to exp(-E) through exp(-b E), b from 0 to 1. Each change of
    b multiplies the weight of a chain by exp(-db E), and a step of HMC leaves the new density as it
    is; the mean weight is Z over the volume of the box, so its logarithm is too low in expectation
    (Jensen). Going back from samples of exp(-E) gives 1 / Z in the same way, and a bound from above
    (Grosse et al., 2015, https://arxiv.org/abs/1511.02543). The chains have no walls to run into:
    they go through x = tanh(u / 2).

    Args:
        energy: (B, ...) -> (B,), for x in the box.
        shape: Of one x.
        samples: (N, ...) of exp(-E), for the bound from above. It is one as far as they are.
        num_chains: How many go forward.
        num_distributions: Values of b; the more, the nearer the bounds.
        step_size: Of the integrator, for u.
        num_leapfrog_steps: Of a step of HMC.
        generator: The source of random numbers.
        device: Where.

    Raises:
        ValueError: If a sample is outside the box, or a count is below one.
    """
    if num_chains < 1 or num_distributions < 1:
        raise ValueError(
            f"there must be a chain and a distribution, got {num_chains} and {num_distributions}"
        )
    sampler = HMC(step_size, num_leapfrog_steps)
    taken = made = 0.0

    def tempered(beta: float) -> Energy:
        def total(u: Tensor) -> Tensor:
            # Uniform x means logistic u, of the density exp(-u - 2 softplus(-u)).
            prior = (u + 2 * F.softplus(-u)).flatten(1).sum(dim=1)
            return beta * energy(torch.tanh(u / 2)) + prior

        return total

    @torch.no_grad()
    def log_weights(u: Tensor, betas: list[float]) -> Tensor:
        """Of chains from u along the betas, (B,)."""
        nonlocal taken, made
        found = torch.zeros(len(u), dtype=torch.float64, device=u.device)
        for before, after in pairwise(betas):
            found -= (after - before) * energy(torch.tanh(u / 2)).double()
            current = tempered(after)
            state = sampler.step(current, sampler.start(current, u), generator)
            u = state.samples
            taken, made = taken + float(state.num_accepted.sum()), made + len(u)
        return found

    def log_mean_exp(values: Tensor) -> float:
        return float(torch.logsumexp(values, dim=0)) - math.log(len(values))

    betas = [index / num_distributions for index in range(num_distributions + 1)]
    volume = math.prod(shape) * math.log(2)
    chances = torch.rand((num_chains, *shape), generator=generator, device=_home(generator, device))
    start = torch.logit(chances.to(device), eps=1e-6)
    lower = log_mean_exp(log_weights(start, betas)) + volume
    upper = None
    if samples is not None:
        if not samples.abs().max() <= 1:
            raise ValueError(f"samples must be in [-1, 1], got {float(samples.abs().max()):g}")
        inside = samples.to(device).clamp(-1 + 1e-6, 1 - 1e-6)
        back = log_weights(2 * torch.atanh(inside), betas[::-1])
        upper = volume - log_mean_exp(back)
    return LogPartition(lower, upper, taken / made)


def _home(generator: torch.Generator | None, device: torch.device | str) -> torch.device | str:
    return generator.device if generator is not None else device
