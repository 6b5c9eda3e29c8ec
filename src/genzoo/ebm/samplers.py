"""Markov chains over any energy: Metropolis-adjusted Langevin, Hamiltonian, parallel tempering.

An energy is any callable (B, ...) -> (B,); its density is exp(-E / T) / Z. Each sampler is a rule
`step(energy, state, generator) -> state`, which leaves that density as it is. (The unadjusted
Langevin algorithm is `LangevinScheduler`, whose step wants no energies.) `sample` runs either.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from .layers import differentiate
from .scheduling_langevin import LangevinScheduler, flat, full_precision

Energy = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ChainState:
    """Where chains are.

    Args:
        samples: (B, ...).
        energies: (B,), of them.
        scores: (B, ...), -dE/dx at them.
        num_accepted: (B,), proposals that each chain took so far.
        num_proposed: How many each was made.
    """

    samples: Tensor
    energies: Tensor
    scores: Tensor
    num_accepted: Tensor
    num_proposed: int = 0

    @property
    def acceptance_rate(self) -> Tensor:
        """Share of the proposals that were taken, a scalar."""
        return self.num_accepted.float().mean() / max(self.num_proposed, 1)


@dataclass(frozen=True)
class SamplerOutput:
    """What `sample` returns.

    Args:
        samples: (B, ...), the last state of each chain.
        energies: (B,), of them.
        acceptance_rate: Share of the proposals that were taken; None where all are.
        swap_rates: (R - 1,), share of the swaps between neighbouring temperatures that were made;
            None without several.
        trajectory: (N, B, ...), the states that were kept, if any. `effective_sample_size` and
            `r_hat` tell how far they can be trusted.
    """

    samples: Tensor
    energies: Tensor
    acceptance_rate: float | None = None
    swap_rates: Tensor | None = None
    trajectory: Tensor | None = None


def check_mode(energy: Energy) -> None:
    """Dies if the energy is a network in training mode, where it changes from call to call."""
    if isinstance(energy, nn.Module) and energy.training:
        raise ValueError("the energy is in training mode: call its eval() first")


def one_for_each(energy: Energy, samples: Tensor) -> Tensor:
    """The energies (B,).

    Raises:
        ValueError: If there is not one for each sample.
    """
    energies = energy(samples)
    found = tuple(energies.shape) if isinstance(energies, Tensor) else repr(energies)
    if found != samples.shape[:1]:
        raise ValueError(
            f"an energy gives one number for each sample: ({len(samples)},), got {found}"
        )
    return energies


def energy_and_score(energy: Energy, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (B,) and -dE/dx (B, ...), in one pass.

    Raises:
        ValueError: If there is not one energy for each sample, or the energy is a network in
            training mode.
    """
    check_mode(energy)
    return differentiate(lambda x: one_for_each(energy, x), samples)


@torch.no_grad()
def _start(energy: Energy, samples: Tensor, bounds: tuple[float, float] | None) -> ChainState:
    if bounds is not None and bool(_outside(samples, bounds).any()):  # pyright: ignore
        raise ValueError(f"chains must begin within the bounds {bounds}")
    energies, scores = energy_and_score(energy, samples)
    return ChainState(samples, energies, scores, torch.zeros_like(energies, dtype=torch.int64))


def _check(step_size: float, temperature: float, bounds: tuple[float, float] | None = None) -> None:
    if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
        raise ValueError(f"bounds must be (low, high), got {bounds}")
    if not step_size > 0:
        raise ValueError(f"step_size must be positive, got {step_size}")
    if not temperature > 0:
        raise ValueError(
            f"temperature must be positive, for at {temperature} there is no density to sample"
        )


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else like.device
    return torch.rand(like.shape, generator=generator, device=device).to(like)


def _rows(values: Any, like: Tensor) -> Any:
    """(B,) as (B, 1, ...); a number as it is."""
    return values.view(-1, *[1] * (like.dim() - 1)) if isinstance(values, Tensor) else values


def _squared(x: Tensor) -> Tensor:
    """Squared norm of each sample, (B,)."""
    return flat(x).square().sum(dim=1)


def _outside(samples: Tensor, bounds: tuple[float, float] | None) -> Tensor | bool:
    if bounds is None:
        return False
    pixels = flat(samples)
    return (pixels.amin(dim=1) < bounds[0]) | (pixels.amax(dim=1) > bounds[1])


def _take(state: ChainState, proposal: ChainState, log_ratio: Tensor, chance: Tensor) -> ChainState:
    """The proposal where it is accepted; a ratio that is no number never is."""
    is_taken = chance.log() < log_ratio
    rows = _rows(is_taken, state.samples)
    return ChainState(
        samples=torch.where(rows, proposal.samples, state.samples),
        energies=torch.where(is_taken, proposal.energies, state.energies),
        scores=torch.where(rows, proposal.scores, state.scores),
        num_accepted=state.num_accepted + is_taken,
        num_proposed=state.num_proposed + 1,
    )


@dataclass(frozen=True)
class MALA:
    """The Metropolis-adjusted Langevin algorithm (Roberts and Tweedie, 1996).

    It proposes what `LangevinScheduler(step_size)` does at T = 1,

        x' = x - s/2 * grad U(x) + sqrt(s) * xi,    U = E / T,

    and takes it with the probability min(1, exp(U(x) - U(x')) q(x | x') / q(x' | x)), where

        log q(x' | x) = -|x' - x + s/2 * grad U(x)|^2 / (2s).

    (Su, 2019, kexue.fm/archives/6331, writes q without the half; the chain would not keep the
    density.) At another T than 1, it is `LangevinScheduler(s / T, T)` that proposes the same.

    Args:
        step_size: s.
        temperature: T.
        bounds: (low, high), outside of which the density is zero.
    """

    step_size: float
    temperature: float = 1.0
    bounds: tuple[float, float] | None = None

    def __post_init__(self):
        _check(self.step_size, self.temperature, self.bounds)

    def start(self, energy: Energy, samples: Tensor) -> ChainState:
        """The state of chains that begin at `samples`."""
        return _start(energy, samples, self.bounds)

    @torch.no_grad()
    def step(
        self, energy: Energy, state: ChainState, generator: torch.Generator | None = None
    ) -> ChainState:
        """One proposal for each chain, taken or not."""
        return _mala_step(energy, state, self.step_size, self.temperature, self.bounds, generator)


def _mala_step(
    energy: Energy,
    state: ChainState,
    step_size: float | Tensor,
    temperature: float | Tensor,
    bounds: tuple[float, float] | None,
    generator: torch.Generator | None,
) -> ChainState:
    """With a step size and a temperature of all chains, or one for each, (B,)."""
    x = state.samples
    rows, heat = _rows(step_size, x), _rows(temperature, x)
    noise = randn_tensor(tuple(x.shape), generator=generator, device=x.device, dtype=x.dtype)
    y = x + rows / 2 * state.scores / heat + rows**0.5 * noise
    energies, scores = energy_and_score(energy, y)
    back = -_squared(x - y - rows / 2 * scores / heat) / (2 * step_size)
    log_ratio = (state.energies - energies) / temperature + back + _squared(noise) / 2
    log_ratio = torch.where(_as_mask(_outside(y, bounds), log_ratio), -math.inf, log_ratio)
    proposal = ChainState(y, energies, scores, state.num_accepted)
    return _take(state, proposal, log_ratio, _uniform(log_ratio, generator))


def _as_mask(mask: Tensor | bool, like: Tensor) -> Tensor:
    return mask if isinstance(mask, Tensor) else torch.full_like(like, mask, dtype=torch.bool)


@dataclass(frozen=True)
class HMC:
    """Hamiltonian Monte Carlo with a unit mass (Neal, 2011, Section 2).

    Each step draws a momentum, follows the leapfrog integrator, and takes the end with the
    probability min(1, exp(-change of U + |p|^2 / 2)). One leapfrog step of size e is a step of MALA
    with s = e^2.

    Args:
        step_size: Of the integrator, e.
        num_leapfrog_steps: How many.
        temperature: T.
        bounds: (low, high), outside of which the density is zero.
    """

    step_size: float
    num_leapfrog_steps: int = 10
    temperature: float = 1.0
    bounds: tuple[float, float] | None = None

    def __post_init__(self):
        _check(self.step_size, self.temperature, self.bounds)
        if self.num_leapfrog_steps < 1:
            raise ValueError(
                f"num_leapfrog_steps must be at least 1, got {self.num_leapfrog_steps}"
            )

    def start(self, energy: Energy, samples: Tensor) -> ChainState:
        """The state of chains that begin at `samples`."""
        return _start(energy, samples, self.bounds)

    @torch.no_grad()
    def step(
        self, energy: Energy, state: ChainState, generator: torch.Generator | None = None
    ) -> ChainState:
        """One proposal for each chain, taken or not."""
        x, scores, energies = state.samples, state.scores, state.energies
        momentum = randn_tensor(tuple(x.shape), generator=generator, device=x.device, dtype=x.dtype)
        before = state.energies / self.temperature + _squared(momentum) / 2
        half = self.step_size / 2 / self.temperature
        is_outside = torch.zeros_like(energies, dtype=torch.bool)
        for _ in range(self.num_leapfrog_steps):
            momentum = momentum + half * scores
            x = x + self.step_size * momentum
            energies, scores = energy_and_score(energy, x)
            momentum = momentum + half * scores
            is_outside = is_outside | _outside(x, self.bounds)
        after = energies / self.temperature + _squared(momentum) / 2
        log_ratio = torch.where(is_outside, -math.inf, before - after)
        proposal = ChainState(x, energies, scores, state.num_accepted)
        return _take(state, proposal, log_ratio, _uniform(log_ratio, generator))


@dataclass(frozen=True)
class TemperedState(ChainState):
    """Where the coldest chains are, and what lies behind them.

    Args:
        replicas: The chains of all temperatures, (R * B, ...), the coldest first.
        num_swapped: (R - 1,), swaps between neighbours so far, the mean over chains.
        heat: (R * B,), the temperature of each.
    """

    replicas: ChainState | None = None
    num_swapped: Tensor | None = None
    heat: Tensor | None = None

    @property
    def swap_rates(self) -> Tensor:
        """(R - 1,), share of the swaps between neighbours that were made."""
        assert self.num_swapped is not None
        # Odd pairs are asked first, and then by turns.
        asked = torch.arange(len(self.num_swapped), device=self.num_swapped.device) % 2
        return self.num_swapped / ((self.num_proposed + asked) // 2).clamp(min=1)


@dataclass(frozen=True)
class ParallelTempering:
    """MALA at several temperatures, whose states are swapped (Geyer, 1991).

    The hot chains cross barriers; the first temperature is that of the samples. Neighbours i and j
    are swapped with the probability min(1, exp((1/T_i - 1/T_j) (E_i - E_j))), even and odd pairs by
    turns.

    Args:
        step_size: s of MALA at the first temperature; it grows with the temperature.
        temperatures: Rising.
        bounds: (low, high), outside of which the density is zero.
    """

    step_size: float
    temperatures: Sequence[float] = (1.0, 2.0, 4.0, 8.0)
    bounds: tuple[float, float] | None = None

    def __post_init__(self):
        _check(self.step_size, min(self.temperatures, default=1.0), self.bounds)
        if len(self.temperatures) < 2 or sorted({*self.temperatures}) != [*self.temperatures]:
            raise ValueError(f"temperatures must be two at least, and rise: {self.temperatures}")

    def start(self, energy: Energy, samples: Tensor) -> TemperedState:
        """The state of chains that begin at `samples`, at every temperature."""
        copies = samples.repeat(len(self.temperatures), *[1] * (samples.dim() - 1))
        swaps = torch.zeros(len(self.temperatures) - 1, device=samples.device)
        heat = torch.tensor(self.temperatures).to(samples).repeat_interleave(len(samples))
        return self._seen(_start(energy, copies, self.bounds), swaps, heat)

    @torch.no_grad()
    def step(
        self, energy: Energy, state: ChainState, generator: torch.Generator | None = None
    ) -> TemperedState:
        """One proposal for each chain, and one swap for every other pair."""
        assert isinstance(state, TemperedState)
        assert state.replicas is not None and state.num_swapped is not None
        assert state.heat is not None
        replicas, num_rungs = state.replicas, len(self.temperatures)
        size = len(replicas.samples) // num_rungs
        heat = state.heat.to(replicas.energies.dtype)
        step_size = self.step_size * heat / self.temperatures[0]
        replicas = _mala_step(energy, replicas, step_size, heat, self.bounds, generator)

        # The lower rungs of this turn's pairs: 0, 2, ... or 1, 3, ...
        lower = torch.arange(replicas.num_proposed % 2, num_rungs - 1, 2, device=heat.device)
        chains = torch.arange(size, device=heat.device)
        low = (lower[:, None] * size + chains).flatten()
        high = low + size
        cold = 1 / heat
        log_ratio = (cold[low] - cold[high]) * (replicas.energies[low] - replicas.energies[high])
        is_swapped = _uniform(log_ratio, generator).log() < log_ratio
        order = torch.arange(len(heat), device=heat.device)
        order[low], order[high] = (
            torch.where(is_swapped, high, low),
            torch.where(is_swapped, low, high),
        )
        swaps = state.num_swapped.index_add(
            0, lower, is_swapped.view(-1, size).to(state.num_swapped).mean(dim=1)
        )
        replicas = replace(
            replicas,
            samples=replicas.samples[order],
            energies=replicas.energies[order],
            scores=replicas.scores[order],
        )
        return self._seen(replicas, swaps, state.heat)

    def _seen(self, replicas: ChainState, swaps: Tensor, heat: Tensor) -> TemperedState:
        size = len(replicas.samples) // len(self.temperatures)
        return TemperedState(
            samples=replicas.samples[:size],
            energies=replicas.energies[:size],
            scores=replicas.scores[:size],
            num_accepted=replicas.num_accepted[:size],
            num_proposed=replicas.num_proposed,
            replicas=replicas,
            num_swapped=swaps,
            heat=heat,
        )


@torch.no_grad()
def sample(
    energy: Energy,
    x0: Tensor,
    sampler: Any,
    num_steps: int,
    generator: torch.Generator | list[torch.Generator] | None = None,
    *,
    keep_every: int | None = None,
) -> SamplerOutput:
    """Runs chains.

    Nothing in the loop waits for the device, if the generator is there too, and the memory that it
    takes does not grow with the number of steps, unless states are kept.

    Args:
        energy: (B, ...) -> (B,), such as an `EnergyModel`.
        x0: (B, ...), where the chains begin.
        sampler: A `LangevinScheduler`, or `MALA`, `HMC`, `ParallelTempering`.
        num_steps: How many.
        generator: The source of random numbers; for a `LangevinScheduler` also one for each chain.
        keep_every: Keeps the state after every so many steps.

    Raises:
        ValueError: If there are no steps, if a sampler that takes one generator gets several, if
            chains begin out of bounds, if the energy is a network in training mode, or if energies
            are not one finite number for each sample, at the start or at the end.
    """
    check_mode(energy)
    if isinstance(sampler, type) or not hasattr(sampler, "step"):
        raise ValueError(
            f"sampler must be one of this module's, such as MALA(1.0); got {sampler!r}"
        )
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if keep_every is not None and not 1 <= keep_every <= num_steps:
        raise ValueError(f"keep_every must be in 1 .. {num_steps}, got {keep_every}")
    if isinstance(generator, list) and not isinstance(sampler, LangevinScheduler):
        raise ValueError("only a LangevinScheduler takes a list of generators")
    x, kept, swap_rates = full_precision(x0), [], None
    if isinstance(sampler, LangevinScheduler):

        def keep(step: int, state: Tensor) -> None:
            if keep_every and (step + 1) % keep_every == 0:
                kept.append(state)

        if sampler.config.clamp is not None and bool(_outside(x, sampler.config.clamp).any()):  # pyright: ignore
            raise ValueError(f"chains must begin within the bounds {sampler.config.clamp}")
        _check_finite(one_for_each(energy, x), "at the start")
        x = sampler.chain(
            lambda state: energy_and_score(energy, state)[1],
            x,
            num_steps,
            generator,
            on_step_end=keep,
        )
        energies, rate = energy(x), None
    else:
        state = sampler.start(energy, x)
        _check_finite(state.energies, "at the start")
        for step in range(num_steps):
            state = sampler.step(energy, state, generator)
            if keep_every and (step + 1) % keep_every == 0:
                kept.append(state.samples)
        x, energies, rate = state.samples, state.energies, float(state.acceptance_rate)
        swap_rates = state.swap_rates if isinstance(state, TemperedState) else None
    _check_finite(energies, f"after {num_steps} steps; try smaller ones")
    return SamplerOutput(x, energies, rate, swap_rates, torch.stack(kept) if kept else None)


def _check_finite(energies: Tensor, when: str) -> None:
    num_bad = int((~energies.isfinite()).sum())
    if num_bad:
        raise ValueError(f"{num_bad} of {len(energies)} energies are not finite {when}")


def effective_sample_size(trajectory: Tensor) -> Tensor:
    """How many independent draws the states of all chains are worth (Vehtari et al., 2021, Eq. 10).

    Autocorrelations are summed up to where pairs of them are no longer positive, and made to fall
    (Geyer, 1992).

    Args:
        trajectory: (N, B, ...), N states of B chains.

    Returns:
        (...): one for each coordinate; NaN for one that never changes, or is no number somewhere.
    """
    chains = trajectory.double()
    length, num_chains = chains.shape[:2]
    if length < 4:
        raise ValueError(f"4 states are the least, got {length}")
    centered = chains - chains.mean(dim=0)
    spectrum = torch.fft.rfft(centered, n=2 * length, dim=0).abs().square()
    covariance = torch.fft.irfft(spectrum, n=2 * length, dim=0)[:length] / length  # (N, B, ...)
    within = (covariance[0] * length / (length - 1)).mean(dim=0)
    total = within * (length - 1) / length
    if num_chains > 1:
        total = total + chains.mean(dim=0).var(dim=0)
    correlation = 1 - (within - covariance.mean(dim=1)) / total  # (N, ...)
    correlation[0] = 1
    pairs = correlation[: length // 2 * 2].unflatten(0, (-1, 2)).sum(dim=1)  # (N/2, ...)
    pairs = torch.where((pairs > 0).cumprod(dim=0).bool(), pairs, 0.0)
    pairs = pairs.cummin(dim=0).values
    time = (-1 + 2 * pairs.sum(dim=0)).clamp(min=1 / math.log10(length * num_chains))
    changes = (chains != chains[0, 0]).flatten(0, 1).any(dim=0)
    is_number = chains.isfinite().flatten(0, 1).all(dim=0)
    return torch.where(changes & is_number, length * num_chains / time, math.nan)


def r_hat(trajectory: Tensor) -> Tensor:
    """How far chains disagree with each other and with their own past: 1 where they do not.

    The split form of Gelman et al. (Vehtari et al., 2021, Eq. 4); above 1.01 chains have not mixed.

    Args:
        trajectory: (N, B, ...), N states of B chains.

    Returns:
        (...): one for each coordinate; NaN for one that never changes, infinity where only chains
        differ.
    """
    length = len(trajectory) // 2
    if length < 2:
        raise ValueError(f"4 states are the least, got {len(trajectory)}")
    halves = torch.cat([trajectory[:length], trajectory[-length:]], dim=1).double()
    within = halves.var(dim=0).mean(dim=0)
    between = halves.mean(dim=0).var(dim=0)
    return ((length - 1) / length + between / within).sqrt()
