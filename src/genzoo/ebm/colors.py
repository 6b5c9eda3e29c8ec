"""Digits in colors: images of two factors, for energies that are composed."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

COLORS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "magenta": (1, 0, 1),
    "cyan": (0, 1, 1),
}


def digits_in_colors(dataset: Any) -> Any:
    """White digits on black to colored ones, labeled by digit as before.

    The color of an image depends on its place in the data set alone, and not on its digit.

    Args:
        dataset: A `genzoo.data.ImageDataset` of images (N, 3, H, W), gray.

    Raises:
        ValueError: If the images have no three channels.
    """
    if dataset.images.shape[1] != 3:
        raise ValueError(
            f"colors want images of three channels, {dataset.name} has {dataset.images.shape[1]}"
        )
    tones = torch.tensor([*COLORS.values()], dtype=torch.uint8)[_drawn(len(dataset))]  # (N, 3)
    return dataclasses.replace(dataset, images=dataset.images * tones[:, :, None, None])


def colors_of_digits(dataset: Any) -> Any:
    """The same images as of `digits_in_colors`, labeled by color."""
    colored = digits_in_colors(dataset)
    return dataclasses.replace(colored, labels=_drawn(len(dataset)), label_names=[*COLORS])


def _drawn(num_images: int) -> Tensor:
    source = torch.Generator().manual_seed(0)
    return torch.randint(len(COLORS), (num_images,), generator=source)


def gray(images: Tensor) -> Tensor:
    """The shape without its color: (B, 3, H, W) to (B, 1, H, W), the brightest channel."""
    return images.amax(dim=1, keepdim=True)


def color_of(images: Tensor) -> Tensor:
    """The number of the color that images have, (B,): the nearest in direction to their mean.

    Args:
        images: (B, 3, H, W) in [0, 1].
    """
    tones = torch.nn.functional.normalize(
        torch.tensor([*COLORS.values()], dtype=images.dtype, device=images.device), dim=1
    )
    weights = gray(images)  # what is dark has no color
    mean = (images * weights).sum(dim=(2, 3))  # (B, 3)
    return (mean @ tones.T).argmax(dim=1)
