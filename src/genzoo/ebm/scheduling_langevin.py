"""Langevin dynamics as a diffusers scheduler.

Welling and Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics", ICML 2011; for
energies of images Du and Mordatch, 2019 (https://arxiv.org/abs/1903.08689).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


@dataclass
class LangevinSchedulerOutput(BaseOutput):
    """What a step returns.

    Args:
        prev_sample: (B, ...), the state of the chains after it.
    """

    prev_sample: Tensor


class LangevinScheduler(SchedulerMixin, ConfigMixin):
    """The unadjusted Langevin algorithm, and the tempered forms that papers sample images with.

        x <- x - s/2 * grad E(x) + sqrt(s * T) * xi,    xi standard normal

    With T = 1 and a small step s its stationary density is exp(-E) / Z. With `noise_std` the noise
    has a size of its own, so that T = noise_std^2 / s: papers take it far below one, which is noisy
    descent rather than sampling. A paper that writes x - a * grad E has s = 2a. (`MALA` divides the
    energy by T in the place of this: MALA(s * T, T) proposes what is done here.)

    The states of the chains are at least float32, whatever the network computes in: steps are too
    small for half precision.

    Args:
        step_size: s, the variance of the noise of a step at T = 1.
        temperature: T; 0 is gradient descent.
        noise_std: Standard deviation of the noise, in the place of sqrt(s * T).
        final_step_size: s of the last step; in between it falls geometrically.
        final_noise_std: As `final_step_size`, for `noise_std`.
        gradient_clip: Bound of the gradient, before the step size multiplies it.
        gradient_clip_mode: "element" bounds each element, "norm" the norm over each sample.
        clamp: Least and greatest value that the state is cut to after a step, as [low, high].
        noise_first: Whether the noise of a step comes before its gradient, as in the code of Du
            and Mordatch, so that the last thing that happens to a sample is descent: then a step
            ends with the noise of the next, and the last with none. Otherwise gradient and noise
            are added together.
        num_inference_steps: How many steps a pipeline takes unless it is told.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        step_size: float = 1.0,
        temperature: float = 1.0,
        noise_std: float | None = None,
        final_step_size: float | None = None,
        final_noise_std: float | None = None,
        gradient_clip: float | None = None,
        gradient_clip_mode: str = "element",
        clamp: list[float] | tuple[float, float] | None = None,
        noise_first: bool = False,
        num_inference_steps: int = 60,
    ):
        for name, value in (("step_size", step_size), ("final_step_size", final_step_size)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        for name, value in (
            ("temperature", temperature),
            ("noise_std", noise_std),
            ("final_noise_std", final_noise_std),
        ):
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if final_noise_std is not None and noise_std is None:
            raise ValueError("final_noise_std is where noise_std falls to: give both")
        if noise_std is not None and temperature != 1.0:
            raise ValueError("noise_std and temperature both say how much noise: give one")
        if gradient_clip is not None and not gradient_clip > 0:
            raise ValueError(f"gradient_clip must be positive, got {gradient_clip}")
        if gradient_clip_mode not in ("element", "norm"):
            raise ValueError(
                f"gradient_clip_mode must be 'element' or 'norm', got {gradient_clip_mode!r}"
            )
        if clamp is not None and (len(clamp) != 2 or not clamp[0] < clamp[1]):
            raise ValueError(f"clamp must be [low, high], got {clamp}")
        self.init_noise_sigma = 1.0
        self.timesteps = torch.zeros(0, dtype=torch.int64)
        self._sizes: list[tuple[float, float]] = []

    def set_timesteps(self, num_inference_steps: int, device: object = None) -> None:
        """Decides how many steps a chain takes: `timesteps` counts them from 0.

        Args:
            num_inference_steps: How many.
            device: Not used: the counter stays on the CPU, where reading it waits for nothing.

        Raises:
            ValueError: If there are none.
        """
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        self.timesteps = torch.arange(num_inference_steps)
        self._sizes = [
            self.sizes(index / max(num_inference_steps - 1, 1))
            for index in range(num_inference_steps)
        ]

    def sizes(self, progress: float = 0.0) -> tuple[float, float]:
        """Step size and standard deviation of the noise, at a share of the way from 0 to 1."""
        config = self.config
        step_size = _between(config.step_size, config.final_step_size, progress)
        if config.noise_std is None:
            return step_size, math.sqrt(step_size * config.temperature)
        return step_size, _between(config.noise_std, config.final_noise_std, progress)

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """The sample itself: energies see it as it is."""
        return sample

    def begin(
        self, sample: Tensor, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> Tensor:
        """What the first step starts from: with `noise_first`, the sample and the first noise."""
        sample = full_precision(sample)
        if not self.config.noise_first:
            return sample
        return add_noise(sample, self._sizes_at(0)[1], generator)

    def step(
        self,
        score: Tensor,
        timestep: int | Tensor | None,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> LangevinSchedulerOutput | tuple[Tensor]:
        """One step of all chains.

        Args:
            score: (B, ...), -grad E at `sample`.
            timestep: One of `timesteps`, which decides where annealing stands; None for the start.
            sample: (B, ...), at first from `begin`.
            generator: The source of random numbers: one, or one for each sample.
            return_dict: Whether to return a `LangevinSchedulerOutput` or a tuple.

        Raises:
            ValueError: If score and sample differ in shape, or there is no such timestep.
        """
        if score.shape != sample.shape:
            raise ValueError(
                f"score and sample must have one shape, got {tuple(score.shape)} and "
                f"{tuple(sample.shape)}"
            )
        config, (step_size, noise_std) = self.config, self._sizes_at(timestep)
        score = full_precision(score)
        if config.gradient_clip is not None:
            score = clip(score, config.gradient_clip, config.gradient_clip_mode)
        state = full_precision(sample) + 0.5 * step_size * score
        if not config.noise_first:
            state = add_noise(state, noise_std, generator)
        if config.clamp is not None:
            state = state.clamp(*config.clamp)
        is_last = timestep is not None and int(timestep) + 1 == len(self._sizes)
        if config.noise_first and not is_last:
            following = None if timestep is None else int(timestep) + 1
            state = add_noise(state, self._sizes_at(following)[1], generator)
        return LangevinSchedulerOutput(prev_sample=state) if return_dict else (state,)

    @torch.no_grad()
    def chain(
        self,
        score: Callable[[Tensor], Tensor],
        sample: Tensor,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        hold: Callable[[Tensor], Tensor] | None = None,
        on_step_end: Callable[[int, Tensor], Tensor | None] | None = None,
    ) -> Tensor:
        """Runs chains; nothing in the loop waits for the device.

        (But noise from a generator on the CPU has to get there at every step.) Nothing remembers
        how the chains came to their ends: who wants to differentiate that calls `step`.

        Args:
            score: (B, ...) -> (B, ...), -grad E.
            sample: (B, ...), where they begin.
            num_inference_steps: How many steps.
            generator: The source of random numbers: one, or one for each sample.
            hold: What is done to the states at the start and after each step, to keep a part of
                them as it is.
            on_step_end: Called with the number of the step and the states after it, which hold
                the noise of the next step already where `noise_first` is set; what it returns
                replaces them.

        Returns:
            (B, ...), where they end.
        """
        self.set_timesteps(num_inference_steps)
        x = self.begin(sample, generator)
        x = x if hold is None else hold(x)
        for step in range(num_inference_steps):
            x = self.step(score(x), step, x, generator=generator).prev_sample
            x = x if hold is None else hold(x)
            if on_step_end is not None:
                changed = on_step_end(step, x)
                x = x if changed is None else changed
        return x

    def _sizes_at(self, timestep: int | Tensor | None) -> tuple[float, float]:
        if timestep is None or not self._sizes:
            return self.sizes()
        if not 0 <= int(timestep) < len(self._sizes):
            raise ValueError(
                f"timestep must be one of 0 to {len(self._sizes) - 1}, got {int(timestep)}"
            )
        return self._sizes[int(timestep)]

    def __len__(self) -> int:
        return len(self.timesteps)


def flat(x: Tensor) -> Tensor:
    """(B, ...) as (B, D); (B,) as (B, 1)."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def full_precision(state: Tensor) -> Tensor:
    """As float32 where it is less."""
    return state.to(torch.promote_types(state.dtype, torch.float32))


def add_noise(
    state: Tensor, noise_std: float, generator: torch.Generator | list[torch.Generator] | None
) -> Tensor:
    """State plus normal noise of a standard deviation."""
    if not noise_std:
        return state
    noise = randn_tensor(state.shape, generator=generator, device=state.device, dtype=state.dtype)
    return torch.add(state, noise, alpha=noise_std)


def clip(score: Tensor, bound: float, mode: str) -> Tensor:
    """Bounds each element, or the norm over each sample, of (B, ...)."""
    if mode == "element":
        return score.clamp(-bound, bound)
    norm = torch.linalg.vector_norm(flat(score), dim=1)  # (B,)
    factor = (bound / norm.clamp(min=1e-12)).clamp(max=1)
    return score * factor.view(-1, *[1] * (score.dim() - 1))


def _between(start: float, end: float | None, progress: float) -> float:
    """On the geometric way from one number to another; straight where one of them is 0."""
    if end is None:
        return start
    if not (start and end):
        return start + (end - start) * progress
    return start * (end / start) ** progress
