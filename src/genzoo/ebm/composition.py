"""Energies made of energies, and what else the energy of an image tells."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from torch import Tensor

from .modeling_ebm import EnergyModel
from .samplers import check_mode

Energy = Callable[[Tensor], Tensor]


def compose(
    energies: Sequence[tuple[Energy, float]],
    *,
    mode: str = "product",
    data: Tensor | None = None,
) -> Energy:
    """One energy of several: all of them at once, or one of them (Du et al., 2020, Section 3).

    product: E(x) = sum of w_i E_i(x), the density of what every energy finds likely. A negative
    weight is a negation: what that energy finds unlikely. It has no least energy by itself, so
    chains over it want bounds, and others beside it.

    mixture: E(x) = -log sum of w_i exp(-E_i(x)), the density of what any energy finds likely.

    A chain over the result takes one noise for all, which samples the product. (Du and Mordatch's
    code takes a step and a noise for each energy by turns, which samples something else.)

    Args:
        energies: Pairs of an energy, (B, ...) -> (B,), and its weight. A class of a conditional one
            is `of_class(model, label)`.
        mode: "product" or "mixture".
        data: (N, ...), on which every energy is given the mean 0 and the standard deviation 1.
            Energies of networks that were trained apart have no common scale otherwise, and those
            of a mixture no common zero. The sizes of the chains' steps are those for such energies
            then.

    Raises:
        ValueError: If there are none, a weight does not fit the mode, an energy is the same for
            all data, or a network in training mode.
    """
    if not energies:
        raise ValueError("there is nothing to compose")
    for energy, _ in energies:
        check_mode(energy)
    if mode not in ("product", "mixture"):
        raise ValueError(f"mode must be 'product' or 'mixture', got {mode!r}")
    weights = [weight for _, weight in energies]
    if not all(map(math.isfinite, weights)):
        raise ValueError(f"weights are finite numbers, got {weights}")
    if mode == "mixture" and not min(weights) > 0:
        raise ValueError(f"the weights of a mixture are positive, got {weights}")
    zeros, scales = [0.0] * len(energies), [1.0] * len(energies)
    if data is not None:
        with torch.no_grad():
            found = [energy(data).double() for energy, _ in energies]
        zeros = [float(values.mean()) for values in found]
        scales = [float(values.std()) for values in found]
        if not all(scale > 0 and math.isfinite(scale) for scale in scales):
            raise ValueError(
                f"energies must differ between data, and be finite: they spread by {scales}"
            )

    def total(x: Tensor) -> Tensor:
        # Plain numbers, so that nothing has to come to the device at every step.
        found = [
            (energy(x) - zero) / scale
            for (energy, _), zero, scale in zip(energies, zeros, scales, strict=True)
        ]
        if mode == "product":
            return torch.stack(
                [weight * values for weight, values in zip(weights, found, strict=True)]
            ).sum(dim=0)
        terms = [math.log(weight) - values for weight, values in zip(weights, found, strict=True)]
        return -torch.logsumexp(torch.stack(terms), dim=0)

    return total


def of_class(model: EnergyModel, label: int | Tensor) -> Energy:
    """The energy under a class of a conditional model, as a function of images alone.

    Args:
        model: In evaluation mode.
        label: One class for all images, or (B,), one for each of as many images; where there are
            several times as many, as `ParallelTempering` has, the classes come again and again.

    Raises:
        ValueError: If the model has no classes or not this one, or is in training mode.
    """
    check_mode(model)
    num_classes = model.config.num_classes
    if not num_classes:
        raise ValueError("this energy is unconditional: it has no classes, and is one as it is")
    is_number = isinstance(label, Integral) or (
        isinstance(label, Tensor) and not label.is_floating_point() and label.dim() < 2
    )
    if not is_number:
        raise ValueError(f"a class is an integer, or a tensor (B,) of them; got {label!r}")
    labels = torch.as_tensor(label, device=model.device).reshape(-1)
    if not (len(labels) and 0 <= int(labels.min()) and int(labels.max()) < num_classes):
        raise ValueError(f"there is no class {label} of {num_classes}")

    def energy(x: Tensor) -> Tensor:
        if len(x) % len(labels):
            raise ValueError(f"{len(labels)} classes do not fit {len(x)} images")
        return model(x, labels.repeat(len(x) // len(labels)))

    return energy


@torch.no_grad()
def class_energies(model: EnergyModel, images: Tensor, batch_size: int = 256) -> Tensor:
    """The energy of each image under each class, (B, K); without classes (B, 1).

    The class of an image is the one of the lowest energy where all classes have one Z, as those of
    a density of images and classes do: p(c | x) is proportional to exp(-E(x, c)). How much an image
    is like the data at all is said by the lowest: the higher, the further out of distribution.

    Args:
        model: An energy in evaluation mode.
        images: (B, C, H, W) in [-1, 1].
        batch_size: How many images are looked at at once.

    Raises:
        ValueError: If there are no images, a batch has none, pixels are out of range, or these or
            energies no numbers, or the model is in training mode.
    """
    check_mode(model)
    if not len(images) or batch_size < 1:
        raise ValueError(
            f"there must be an image and a batch_size, got {len(images)} and {batch_size}"
        )
    if not images.is_floating_point():
        raise ValueError(f"pixels must be floating-point numbers in [-1, 1], got {images.dtype}")
    if not (images.min() >= -1 and images.max() <= 1):
        raise ValueError(
            f"pixels must be in [-1, 1], got {float(images.min()):g} to {float(images.max()):g}"
        )
    energies: list[Energy] = [
        of_class(model, label) for label in range(model.config.num_classes)
    ] or [model]
    rows = [
        torch.stack([energy(batch.to(model.device)).cpu() for energy in energies], dim=1)
        for batch in images.split(batch_size)
    ]
    found = torch.cat(rows)
    if num_bad := int((~found.isfinite()).any(dim=1).sum()):
        raise ValueError(f"the energies of {num_bad} of {len(found)} images are not finite")
    return found
