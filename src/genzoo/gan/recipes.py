"""The GANs that are published: one function for each checkpoint."""

# `evaluate` and `train` are what the command line calls.
from .evaluation import evaluate_gan as evaluate  # noqa: F401
from .losses import hinge_d, hinge_g, non_saturating_d, non_saturating_g
from .modeling_dcgan import DCGANConfig
from .modeling_selfmod_gan import SelfModGANConfig
from .training import GANRecipe
from .training import train_gan as train  # noqa: F401


def selfmod_gan_digits() -> GANRecipe:
    """Self-modulated GAN on scikit-learn's digits, 16 pixels, by class: a few CPU minutes."""
    return GANRecipe(
        name="selfmod-gan-digits",
        model=SelfModGANConfig(
            image_size=16,
            num_channels=1,
            num_classes=10,
            latent_dim=32,
            generator_channels=[64, 48, 32],
            discriminator_channels=[32, 64, 64],
            num_downsamples=2,
        ),
        data="sklearn/digits",
        feature_network="feature-net-digits",
        d_loss=hinge_d,
        g_loss=hinge_g,
        num_steps=2000,
        batch_size=24,
        d_learning_rate=2e-3,
        g_learning_rate=8e-4,
        betas=(0.5, 0.9),
        ema_decay=0.99,
        sample_every=500,
    )


def selfmod_gan_fashion_mnist() -> GANRecipe:
    """Self-modulated GAN on Fashion-MNIST, by class: an hour and a half of one CPU core."""
    return GANRecipe(
        name="selfmod-gan-fashion-mnist",
        model=SelfModGANConfig(
            image_size=28,
            num_channels=1,
            num_classes=10,
            latent_dim=64,
            generator_channels=[128, 64, 32],
            discriminator_channels=[32, 64, 128],
            num_downsamples=2,
        ),
        data="zalando-datasets/fashion_mnist",
        feature_network="feature-net-fashion-mnist",
        d_loss=hinge_d,
        g_loss=hinge_g,
        num_steps=4000,
        num_d_steps=2,
        g_learning_rate=4e-4,
        betas=(0.5, 0.9),
        save_every=250,
        sample_every=500,
    )


def dcgan_fashion_mnist() -> GANRecipe:
    """DCGAN on Fashion-MNIST, the baseline: about an hour of one CPU core."""
    return GANRecipe(
        name="dcgan-fashion-mnist",
        model=DCGANConfig(image_size=28, num_channels=1, latent_dim=64, channels=64),
        data="zalando-datasets/fashion_mnist",
        feature_network="feature-net-fashion-mnist",
        d_loss=non_saturating_d,
        g_loss=non_saturating_g,
        num_steps=9000,
        d_learning_rate=2e-4,
        betas=(0.5, 0.999),
        sample_every=2000,
    )


def selfmod_gan_cifar10() -> GANRecipe:
    """Self-modulated GAN on CIFAR-10 with the backbone of the paper, unconditional."""
    return GANRecipe(
        name="selfmod-gan-cifar10",
        model=SelfModGANConfig(image_size=32),
        data="uoft-cs/cifar10",
        feature_network="inception",
        d_loss=hinge_d,
        g_loss=hinge_g,
        num_steps=100_000,
        ema_decay=0.9999,
        random_flip=True,
        use_compile=True,
    )
