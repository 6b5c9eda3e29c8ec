"""The energies that are published: one function for each checkpoint."""

from dataclasses import replace

from .colors import COLORS, colors_of_digits, digits_in_colors
from .evaluation import evaluate_energy as evaluate  # noqa: F401 - for the command line
from .modeling_ebm import EBMConfig
from .scheduling_langevin import LangevinScheduler
from .training import EBMRecipe
from .training import train_ebm as train  # noqa: F401 - for the command line

MNIST, FASHION_MNIST = "ylecun/mnist", "zalando-datasets/fashion_mnist"


def _chains(num_inference_steps: int, step_size: float = 80.0) -> LangevinScheduler:
    """The paper's constants for pixels in [-1, 1], or those of longer steps.

    The gradient moves no pixel by more than .2 in a step; the noise comes on top.
    """
    return LangevinScheduler(
        step_size=step_size,
        noise_std=0.01,
        gradient_clip=0.4 / step_size,
        clamp=[-1.0, 1.0],
        noise_first=True,
        num_inference_steps=num_inference_steps,
    )


def _small(num_channels: int, num_classes: int = 10) -> EBMConfig:
    return EBMConfig(
        image_size=28,
        num_channels=num_channels,
        num_classes=num_classes,
        channels=[8, 16, 32, 64],
        downsamples=[True, True, True],
    )


def igebm_mnist() -> EBMRecipe:
    """An energy of handwritten digits, by class, for two CPU cores."""
    return EBMRecipe(
        name="igebm-mnist",
        model=_small(1),
        data=MNIST,
        outlier_data=FASHION_MNIST,
        feature_network="feature-net-mnist",
        # With the paper's steps and a buffer of 10,000, chains from noise did not arrive at
        # digits in the time that two cores have.
        scheduler=_chains(300, step_size=320.0),
        num_steps=1_250,
        num_chain_steps=20,
        buffer_size=1_000,
        # In half of the places chains turn images into those of another class; in half they stay.
        relabel_share=0.5,
        learning_rate=1e-3,
        ema_decay=0.99,
    )


def igebm_fashion_mnist() -> EBMRecipe:
    """An energy of clothes, by class, for two CPU cores."""
    return replace(
        igebm_mnist(),
        name="igebm-fashion-mnist",
        data=FASHION_MNIST,
        outlier_data=MNIST,
        feature_network="feature-net-fashion-mnist",
    )


def igebm_colour_digits() -> EBMRecipe:
    """An energy of digits in colors, by digit; it is composed with one by color."""
    return replace(
        igebm_mnist(),
        name="igebm-colour-digits",
        model=_small(3),
        prepare=digits_in_colors,
        companion="igebm-digit-colours",
        outlier_data=None,
        # Three times the pixels, so the slope at each is a third of that of gray digits.
        scheduler=_chains(300, step_size=960.0),
        # With fewer, chains keep the digit that they have, which is harder to learn than a color.
        relabel_share=1.0,
        num_steps=2_000,
    )


def igebm_digit_colours() -> EBMRecipe:
    """An energy of digits in colors, by color; it is composed with one by digit."""
    return replace(
        igebm_colour_digits(),
        name="igebm-digit-colours",
        model=_small(3, len(COLORS)),
        prepare=colors_of_digits,
        companion="igebm-colour-digits",
        relabel_share=0.5,
        num_steps=1_000,
    )


def igebm_cifar10() -> EBMRecipe:
    """IGEBM on CIFAR-10 as in the paper, unconditional, for one GPU."""
    return EBMRecipe(
        name="igebm-cifar10",
        model=EBMConfig(backbone="large", dropout=0.5),
        data="uoft-cs/cifar10",
        feature_network="inception",
        scheduler=_chains(2_000),
        num_steps=120_000,
        batch_size=128,
        learning_rate=3e-4,
        random_flip=True,
        save_every=1_000,
        sample_every=2_000,
    )


def igebm_cifar10_conditional() -> EBMRecipe:
    """IGEBM on CIFAR-10 as in the paper, by class, for one GPU."""
    return replace(
        igebm_cifar10(),
        name="igebm-cifar10-conditional",
        model=EBMConfig(backbone="resnet32", num_classes=10),
        relabel_share=1.0,
        num_steps=75_000,
    )
