"""What networks, pipelines and samplers of energies share: how an energy is differentiated."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def differentiate(energy: Callable[[Tensor], Tensor], samples: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (B,) and the gradient of the log density, -dE/dx (B, ...), in one pass.

    It can be compiled, and differentiated once more in both modes. Where nobody can ask for that,
    under `torch.no_grad`, as chains are, nothing is kept for it: `torch.func.grad` would keep it
    all the same, which takes a sixth of its time.

    Args:
        energy: (B, ...) -> (B,).
        samples: (B, ...).
    """
    pulled: Any = torch.func.vjp(energy, samples)
    energies, pull = pulled
    is_followed = (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()  # which keeps what it needs
        or forward_ad.unpack_dual(samples).tangent is not None
    )
    (score,) = pull(-torch.ones_like(energies), retain_graph=is_followed, create_graph=is_followed)
    return energies, score
