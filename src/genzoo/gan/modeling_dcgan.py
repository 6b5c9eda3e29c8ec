"""DCGAN: strided convolutions down, transposed convolutions up, batch norm in between.

Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks", ICLR 2016 (https://arxiv.org/abs/1511.06434), in the form of Su (2019),
https://kexue.fm/archives/6549: 4x4 kernels, normal(0, 0.02) weights, no pooling, no hidden layer
behind the convolutions.
"""

from itertools import pairwise

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers.utils import can_return_tuple

from .layers import (
    DiscriminatorOutput,
    GANConfig,
    GANPreTrainedModel,
    GeneratorOutput,
    SpectralNorm,
    SpectralNormConv2d,
    SpectralNormLinear,
    num_doublings,
)


@strict
class DCGANConfig(GANConfig):
    """Configuration of a DCGAN, an unconditional GAN; generator and discriminator share one.

    Args:
        channels: Channels C of the largest hidden maps, those of half the image's size; each
            further halving doubles them.
        use_spectral_norm: Whether the discriminator has spectral normalization in the place of
            batch norm.
    """

    model_type = "genzoo_dcgan"

    channels: int = 64
    use_spectral_norm: bool = False
    initializer_range: float = 0.02

    def validate_architecture(self) -> None:
        """Dies unless the image can be halved down to 4 to 7 pixels, and for classes."""
        num_doublings(self.image_size)
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")
        if self.num_classes:
            raise ValueError(
                f"DCGAN is unconditional, got num_classes {self.num_classes}; see SelfModGANConfig"
            )


class DCGANPreTrainedModel(GANPreTrainedModel):
    """What generator and discriminator share: the config and the initial weights."""

    config: DCGANConfig
    config_class = DCGANConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # normal(0, initializer_range), zero biases, plain batch norm
        if isinstance(module, SpectralNorm):
            module.init_singular_vector()


class DCGANGenerator(DCGANPreTrainedModel):
    """Latent vectors to images: a linear map, then transposed convolutions that double.

    The linear map makes the first 4 to 7 pixels of each side.
    """

    main_input_name = "latents"

    def __init__(self, config: DCGANConfig):
        super().__init__(config)
        doublings = num_doublings(config.image_size)
        channels = [config.channels << step for step in reversed(range(doublings))]
        self.start_size = config.image_size >> doublings
        self.project = nn.Linear(config.latent_dim, channels[0] * self.start_size**2, bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(channels[0]), nn.ReLU()]
        for in_channels, out_channels in pairwise(channels):
            layers += [
                nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers)
        self.to_image = nn.ConvTranspose2d(
            channels[-1], config.num_channels, 4, stride=2, padding=1
        )
        self.post_init()

    @can_return_tuple
    def forward(self, latents: Tensor, class_labels: Tensor | None = None) -> GeneratorOutput:
        """Generates.

        Args:
            latents: (B, Z), standard normal.
            class_labels: None; the generators of this room share one signature.

        Raises:
            ValueError: If shapes do not fit the config, or for labels.
        """
        self.check_latents(latents, class_labels)
        # (B, Z) -> (B, C, H, W)
        h = self.project(latents).unflatten(1, (-1, self.start_size, self.start_size))
        return GeneratorOutput(images=torch.tanh(self.to_image(self.layers(h))))


class DCGANDiscriminator(DCGANPreTrainedModel):
    """Images to one score each: strided convolutions that halve, then one linear map."""

    main_input_name = "images"

    def __init__(self, config: DCGANConfig):
        super().__init__(config)
        doublings = num_doublings(config.image_size)
        channels = [config.channels << step for step in range(doublings)]
        conv = SpectralNormConv2d if config.use_spectral_norm else nn.Conv2d
        layers: list[nn.Module] = [
            conv(config.num_channels, channels[0], 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for in_channels, out_channels in pairwise(channels):
            bias = config.use_spectral_norm
            layers.append(conv(in_channels, out_channels, 4, stride=2, padding=1, bias=bias))
            layers += [] if config.use_spectral_norm else [nn.BatchNorm2d(out_channels)]
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers)
        linear = SpectralNormLinear if config.use_spectral_norm else nn.Linear
        self.head = linear(channels[-1] * (config.image_size >> doublings) ** 2, 1)
        self.post_init()

    @can_return_tuple
    def forward(self, images: Tensor, class_labels: Tensor | None = None) -> DiscriminatorOutput:
        """Scores.

        Args:
            images: (B, C, H, W) in [-1, 1].
            class_labels: None; the discriminators of this room share one signature.

        Raises:
            ValueError: If shapes do not fit the config, or for labels.
        """
        self.check_images(images, class_labels)
        h = self.layers(images).flatten(1)  # (B, C, H, W) -> (B, D)
        return DiscriminatorOutput(logits=self.head(h))  # (B, D) -> (B, N)
