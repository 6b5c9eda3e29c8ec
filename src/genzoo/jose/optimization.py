"""Steps on the unit sphere, as an optimizer of torch."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class SphericalSGD(torch.optim.Optimizer):
    """Riemannian gradient descent on the unit sphere (Meng et al., 2019, Section 5).

    Each row x of a parameter (its last dimension) is a point of the sphere, and g the gradient of
    the loss there. A step goes against the part of g that is tangent to the sphere and comes back
    to the sphere:

        x <- y / |y|,   y = x - lr (1 + x.g / |g|) (g - (x.g) x)

    The factor is 1 - cos(x, -g): x moves little where it points the right way already, and twice as
    far where it points the wrong way, although the tangent is the same (Su, 2019,
    https://kexue.fm/archives/7063).

    Rows without a gradient stay as they are to the last bit. Sparse gradients (of
    `nn.Embedding(sparse=True)`) touch only the rows that they hold; a row that occurs several times
    in a batch takes one step along the sum.

    Args:
        params: Parameters, or groups of them, as for every optimizer.
        lr: Learning rate.
        is_calibrated: Whether the factor 1 - cos is there; without it, it is 1.

    Raises:
        ValueError: If `lr` is negative.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.04,
        *,
        is_calibrated: bool = True,
    ):
        if not lr >= 0:
            raise ValueError(f"lr must not be negative, got {lr}")
        super().__init__(params, {"lr": lr, "is_calibrated": is_calibrated})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore
        """Takes one step with all parameters that have a gradient.

        Args:
            closure: Takes the loss again and returns it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    gradient = parameter.grad.coalesce()
                    rows = gradient.indices()[0]
                    x = _stepped(parameter[rows], gradient.values(), group)
                    parameter.index_copy_(0, rows, x)
                else:
                    parameter.copy_(_stepped(parameter, parameter.grad, group))
        return loss


def _stepped(x: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
    # 16 bits are too few to stay on the sphere.
    kind, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
    x, gradient = x.to(wide), gradient.to(wide)
    along = (x * gradient).sum(dim=-1, keepdim=True)  # x.g
    length = gradient.norm(dim=-1, keepdim=True)
    factor = 1 + along / length.clamp_min(1e-12) if group["is_calibrated"] else 1.0
    y = x - group["lr"] * factor * (gradient - along * x)
    y = y / y.norm(dim=-1, keepdim=True)
    return torch.where(length == 0, x, y).to(kind)
