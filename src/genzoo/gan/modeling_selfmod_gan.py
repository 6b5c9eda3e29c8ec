"""Self-modulated GAN: an SNGAN ResNet whose generator's batch norms listen to the latent vector.

Chen, Lucic, Houlsby and Gelly, "On Self Modulation for Generative Adversarial Networks", ICLR 2019
(https://arxiv.org/abs/1810.01365), as explained by Su (2019), https://kexue.fm/archives/6549. The
backbone is that of Miyato et al., "Spectral Normalization for Generative Adversarial Networks",
ICLR 2018 (https://arxiv.org/abs/1802.05957); the projection head that of Miyato and Koyama, "cGANs
with Projection Discriminator", ICLR 2018 (https://arxiv.org/abs/1802.05637).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from .layers import (
    DiscriminatorOutput,
    GANConfig,
    GANPreTrainedModel,
    GeneratorOutput,
    SpectralNorm,
    SpectralNormConv2d,
    SpectralNormEmbedding,
    SpectralNormLinear,
    num_doublings,
)

# image_size: (generator channels from the start to the last block, discriminator channels, how many
# blocks halve). 32, 48, 64 and 128 are SNGAN's; 16 and 28 follow the pattern of 32.
BACKBONES = {
    16: ([256, 256, 256], [128, 128, 128, 128], 2),
    28: ([256, 256, 256], [128, 128, 128, 128], 2),
    32: ([256, 256, 256, 256], [128, 128, 128, 128], 2),
    48: ([512, 256, 128, 64], [64, 128, 256, 512, 1024], 4),
    64: ([1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024], 5),
    128: ([1024, 1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024, 1024], 5),
}


@strict
class SelfModGANConfig(GANConfig):
    """Configuration of a self-modulated GAN; generator and discriminator share one.

    Args:
        generator_channels: Channels of the start and after each block (each doubles the image);
            None takes the paper's for `image_size`.
        discriminator_channels: Channels after each block; None takes the paper's.
        num_downsamples: How many of the discriminator's first blocks halve the image; 0 takes the
            paper's.
        modulation_size: Width of the hidden layer of each gamma- and beta-net; 0 makes them linear
            in z.
        use_projection_head: Whether a conditional discriminator adds <E(c), h> to its score;
            without it the discriminator does not see the labels.
    """

    model_type = "genzoo_selfmod_gan"

    generator_channels: list[int] | None = None
    discriminator_channels: list[int] | None = None
    num_downsamples: int = 0
    modulation_size: int = 32
    use_projection_head: bool = True

    def __post_init__(self, **kwargs):
        if self.image_size in BACKBONES:
            generator_channels, discriminator_channels, num_downsamples = BACKBONES[self.image_size]
            self.generator_channels = self.generator_channels or list(generator_channels)
            self.discriminator_channels = self.discriminator_channels or list(
                discriminator_channels
            )
            self.num_downsamples = self.num_downsamples or num_downsamples
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Dies unless the channel lists fit the image size."""
        blocks = num_doublings(self.image_size)
        if not (self.generator_channels and self.discriminator_channels and self.num_downsamples):
            raise ValueError(
                f"the paper has no backbone for image_size {self.image_size} "
                f"(it has {list(BACKBONES)}): "
                "give generator_channels, discriminator_channels and num_downsamples"
            )
        if len(self.generator_channels) != blocks + 1:
            raise ValueError(
                f"image_size {self.image_size} takes {blocks} doublings, so generator_channels "
                f"needs {blocks + 1} entries, got {self.generator_channels}"
            )
        if (
            min(*self.generator_channels, *self.discriminator_channels) < 1
            or self.modulation_size < 0
        ):
            raise ValueError("channels must be at least 1 and modulation_size at least 0")
        most = min(len(self.discriminator_channels), self.image_size.bit_length() - 1)
        if not 1 <= self.num_downsamples <= most:
            raise ValueError(
                f"num_downsamples must be 1 to {most} here, got {self.num_downsamples}"
            )


class SelfModulatedBatchNorm2d(nn.Module):
    """Batch norm whose gain and bias are small networks of z (Chen et al., 2019, Eq. 2 and 3).

        y = (1 + gamma(z)) * (x - mean) / std + beta(z)
        gamma(z), beta(z) = W_2 max(0, W_1 z + b_1) + b_2

    Each has a hidden layer of its own, as in the paper; where both put out zero, this is plain
    batch norm.

    Args:
        num_features: Channels C of the normalized maps.
        latent_dim: Size Z of the latent vectors.
        modulation_size: Width of the hidden layers; 0 leaves them out.
    """

    def __init__(self, num_features: int, latent_dim: int, modulation_size: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(num_features, affine=False)
        self.gamma = self._net(latent_dim, modulation_size, num_features)
        self.beta = self._net(latent_dim, modulation_size, num_features)

    @staticmethod
    def _net(latent_dim: int, modulation_size: int, num_features: int) -> nn.Sequential:
        if not modulation_size:
            return nn.Sequential(nn.Linear(latent_dim, num_features))
        hidden = nn.Linear(latent_dim, modulation_size)
        return nn.Sequential(hidden, nn.ReLU(), nn.Linear(modulation_size, num_features))

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """(B, C, H, W), (B, Z) -> (B, C, H, W)."""
        return torch.addcmul(
            self.beta(z)[..., None, None], self.norm(h), 1 + self.gamma(z)[..., None, None]
        )


class ResidualConv2d(nn.Conv2d):
    """A 3x3 convolution inside a residual block; a class of its own for its larger initial gain."""


class SpectralNormResidualConv2d(SpectralNormConv2d):
    """The same under spectral normalization."""


class LatentShift(nn.Embedding):
    """E(c) of z' = z + E(c) + E'(c) * z: starts as far apart as the latents.

    So the classes differ from step one.
    """


class LatentScale(nn.Embedding):
    """E'(c) of z' = z + E(c) + E'(c) * z: starts at zero."""


class GeneratorBlock(nn.Module):
    """Norm, ReLU, double, conv, norm, ReLU, conv; beside it a 1x1 convolution.

    The block is that of Miyato et al., 2018, Appendix B.
    """

    def __init__(self, in_channels: int, out_channels: int, config: SelfModGANConfig):
        super().__init__()
        self.norm1 = SelfModulatedBatchNorm2d(
            in_channels, config.latent_dim, config.modulation_size
        )
        self.conv1 = ResidualConv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = SelfModulatedBatchNorm2d(
            out_channels, config.latent_dim, config.modulation_size
        )
        self.conv2 = ResidualConv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """(B, C, H, W), (B, Z) -> (B, C', 2H, 2W)."""
        h = F.relu(self.norm1(x, z))
        h = self.conv1(F.interpolate(h, scale_factor=2.0))
        h = self.conv2(F.relu(self.norm2(h, z)))
        # A 1x1 convolution and nearest-neighbor doubling commute, and this order costs a quarter.
        return h + F.interpolate(self.shortcut(x), scale_factor=2.0)


class DiscriminatorBlock(nn.Module):
    """ReLU, conv, ReLU, conv, halve; beside it a 1x1 convolution.

    The first block begins without the ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, downsample: bool, is_first: bool):
        super().__init__()
        hidden_channels = out_channels if is_first else in_channels
        self.is_first = is_first
        self.downsample = downsample
        self.conv1 = SpectralNormResidualConv2d(in_channels, hidden_channels, 3, padding=1)
        self.conv2 = SpectralNormResidualConv2d(hidden_channels, out_channels, 3, padding=1)
        has_shortcut = downsample or in_channels != out_channels
        self.shortcut = (
            SpectralNormConv2d(in_channels, out_channels, 1) if has_shortcut else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/2, W/2), or (B, C', H, W) without halving."""
        h = x if self.is_first else F.relu(x)
        h = self.conv2(F.relu(self.conv1(h)))
        if self.downsample:
            # Averaging and a 1x1 convolution commute, and this order costs a quarter.
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + self.shortcut(x)


class SelfModGANPreTrainedModel(GANPreTrainedModel):
    """What generator and discriminator share: the config and the initial weights."""

    config: SelfModGANConfig
    config_class = SelfModGANConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # batch statistics, and zero biases
        if isinstance(module, SpectralNormEmbedding):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, ResidualConv2d | SpectralNormResidualConv2d):
            init.xavier_uniform_(module.weight, gain=2**0.5)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, LatentShift):
            init.normal_(module.weight, std=1.0)
        elif isinstance(module, LatentScale):
            init.zeros_(module.weight)
        if isinstance(module, SpectralNorm):
            module.init_singular_vector()


class SelfModGANGenerator(SelfModGANPreTrainedModel):
    """Latent vectors (and classes) to images.

    The modulations see a class c through z' = z + E(c) + E'(c) * z (Chen et al., 2019, Section 2);
    the first layer sees z alone.
    """

    main_input_name = "latents"

    def __init__(self, config: SelfModGANConfig):
        super().__init__(config)
        channels = config.generator_channels
        assert channels is not None  # the config has put in the paper's
        if config.num_classes:
            self.class_shift = LatentShift(config.num_classes, config.latent_dim)
            self.class_scale = LatentScale(config.num_classes, config.latent_dim)
        self.start_size = config.image_size >> num_doublings(config.image_size)
        self.project = nn.Linear(config.latent_dim, channels[0] * self.start_size**2)
        self.blocks = nn.ModuleList(
            GeneratorBlock(c_in, c_out, config) for c_in, c_out in pairwise(channels)
        )
        self.norm = SelfModulatedBatchNorm2d(
            channels[-1], config.latent_dim, config.modulation_size
        )
        self.to_image = nn.Conv2d(channels[-1], config.num_channels, 3, padding=1)
        self.post_init()

    @can_return_tuple
    def forward(self, latents: Tensor, class_labels: Tensor | None = None) -> GeneratorOutput:
        """Generates.

        Args:
            latents: (B, Z), standard normal.
            class_labels: (B,), integers below `num_classes`; conditional models demand them.

        Raises:
            ValueError: If shapes or labels do not fit the config.
        """
        self.check_latents(latents, class_labels)
        z = latents
        if class_labels is not None:
            z = z + self.class_shift(class_labels) + self.class_scale(class_labels) * z

        # (B, Z) -> (B, C, H, W)
        h = self.project(latents).unflatten(1, (-1, self.start_size, self.start_size))
        for block in self.blocks:
            h = block(h, z)
        h = F.relu(self.norm(h, z))
        return GeneratorOutput(images=torch.tanh(self.to_image(h)))


class SelfModGANDiscriminator(SelfModGANPreTrainedModel):
    """Images (and classes) to one score each: a spectrally normalized ResNet and a linear head.

    The head sees h, the features summed over all pixels. With classes and `use_projection_head`,
    the score is <w, h> + b + <E(c), h>.
    """

    main_input_name = "images"

    def __init__(self, config: SelfModGANConfig):
        super().__init__(config)
        assert config.discriminator_channels is not None  # the config has put in the paper's
        channels = [config.num_channels, *config.discriminator_channels]
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(c_in, c_out, index < config.num_downsamples, is_first=index == 0)
            for index, (c_in, c_out) in enumerate(pairwise(channels))
        )
        self.head = SpectralNormLinear(channels[-1], 1)
        if config.num_classes and config.use_projection_head:
            self.class_embedding = SpectralNormEmbedding(config.num_classes, channels[-1])
        self.post_init()

    @can_return_tuple
    def forward(self, images: Tensor, class_labels: Tensor | None = None) -> DiscriminatorOutput:
        """Scores.

        Args:
            images: (B, C, H, W) in [-1, 1].
            class_labels: (B,), integers below `num_classes`; conditional models demand them.

        Raises:
            ValueError: If shapes or labels do not fit the config.
        """
        self.check_images(images, class_labels)
        h = images
        for block in self.blocks:
            h = block(h)
        h = F.relu(h).sum(dim=(2, 3))  # (B, D, H, W) -> (B, D)
        logits = self.head(h)  # (B, D) -> (B, N)
        if class_labels is not None and self.config.use_projection_head:
            logits = logits + (self.class_embedding(class_labels) * h).sum(dim=1, keepdim=True)
        return DiscriminatorOutput(logits=logits)
