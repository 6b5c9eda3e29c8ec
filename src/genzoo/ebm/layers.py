"""What networks, pipelines and samplers of energies share: how an energy is differentiated."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def differentiate(energy: Callable[[Tensor], Tensor], samples: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (B,) and the gradient of the log density, -dE/dx (B, ...), in one pass.

    It can be compiled, and differentiated once more in both modes. `torch.func.grad` always keeps
    what that takes; under `torch.no_grad`, as chains are, nothing is kept.

    Args:
        energy: (B, ...) -> (B,).
        samples: (B, ...).
    """

    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        energies = energy(x)
        return energies.sum(), energies

    # Forward derivatives are taken under no_grad too, by whatever the energy depends on, which no
    # look at the samples tells.
    is_followed = torch.is_grad_enabled() or forward_ad._current_level >= 0
    if is_followed or torch.compiler.is_compiling():
        gradient, energies = torch.func.grad(total, has_aux=True)(samples)
        return energies, -gradient
    pulled: Any = torch.func.vjp(energy, samples)
    energies, pull = pulled
    (score,) = pull(-torch.ones_like(energies), retain_graph=False, create_graph=False)
    return energies, score
