"""How likely an energy finds images, by annealed importance sampling (Neal, 2001)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .samplers import HMC, check_mode, one_for_each
from .scheduling_langevin import flat

Energy = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LogPartition:
    """Where log Z lies.

    Args:
        lower: In expectation at most log Z, in nats.
        upper: In expectation at least log Z, if the samples are the energy's own.
        acceptance_rate: Share of the proposals that were taken on the way.
    """

    lower: float
    upper: float
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
        samples: (N, ...) of exp(-E), for the bound from above, which is one as far as they are. By
            default the chains that have arrived go on there, for as many steps again.
        num_chains: How many go forward.
        num_distributions: Values of b; the more, the nearer the bounds.
        step_size: Of the integrator, for u.
        num_leapfrog_steps: Of a step of HMC.
        generator: The source of random numbers.
        device: Where.

    Raises:
        ValueError: If samples are not of this shape or outside the box, a count is below one, the
            energy is a network in training mode, or energies are not one finite number for each x.
    """
    check_mode(energy)
    if num_chains < 1 or num_distributions < 1:
        raise ValueError(
            f"there must be a chain and a distribution, got {num_chains} and {num_distributions}"
        )
    sampler = HMC(step_size, num_leapfrog_steps)
    taken: Any = 0.0
    made = 0

    def tempered(beta: float) -> Energy:
        def total(u: Tensor) -> Tensor:
            # Uniform x means logistic u, of the density exp(-u - 2 softplus(-u)).
            prior = flat(u + 2 * F.softplus(-u)).sum(dim=1)
            return beta * one_for_each(energy, torch.tanh(u / 2)) + prior

        return total

    @torch.no_grad()
    def log_weights(u: Tensor, betas: list[float]) -> tuple[Tensor, Tensor]:
        """Of chains from u along the betas, (B,), and where they end."""
        nonlocal taken, made
        found = torch.zeros(len(u), dtype=torch.float64, device=u.device)
        for before, after in pairwise(betas):
            found -= (after - before) * one_for_each(energy, torch.tanh(u / 2)).double()
            current = tempered(after)
            state = sampler.step(current, sampler.start(current, u), generator)
            u = state.samples
            taken, made = taken + state.num_accepted.sum(), made + len(u)
        return found, u

    def log_mean_exp(values: Tensor) -> float:
        return float(torch.logsumexp(values, dim=0)) - math.log(len(values))

    betas = [index / num_distributions for index in range(num_distributions + 1)]
    volume = math.prod(shape) * math.log(2)
    chances = torch.rand((num_chains, *shape), generator=generator, device=_home(generator, device))
    start = torch.logit(chances.to(device), eps=1e-6)
    forward, ends = log_weights(start, betas)
    if samples is None:
        _, ends = log_weights(ends, [1.0] * len(betas))
    else:
        if samples.shape[1:] != torch.Size(shape) or not len(samples):
            raise ValueError(
                f"samples must be (B, {', '.join(map(str, shape))}), got {tuple(samples.shape)}"
            )
        if not samples.abs().max() <= 1:
            raise ValueError("samples must be in [-1, 1]")
        ends = 2 * torch.atanh(samples.to(device).clamp(-1 + 1e-6, 1 - 1e-6))
    backward, _ = log_weights(ends, betas[::-1])
    found = LogPartition(
        volume + log_mean_exp(forward), volume - log_mean_exp(backward), float(taken / made)
    )
    if not (math.isfinite(found.lower) and math.isfinite(found.upper)):
        raise ValueError(f"the energies are not finite: log Z came out as {found}")
    return found


def _home(generator: torch.Generator | None, device: torch.device | str) -> torch.device | str:
    return generator.device if generator is not None else device
