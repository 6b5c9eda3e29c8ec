"""What the GANs of this room share.

The config's common fields, the outputs, the doors, and spectral normalization.
"""

import difflib
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

logger = logging.get_logger(__name__)


class GANConfig(PreTrainedConfig):
    """The fields that every GAN of the room has; an architecture adds its own.

    A misspelled field is not an error in transformers; here it at least gives a warning that
    names the nearest one.

    Args:
        image_size: Height and width of the (square) images, in pixels.
        num_channels: 1 for gray images, 3 for color.
        latent_dim: Size Z of the latent vectors, standard normal.
        num_classes: Number K of classes of a conditional model; 0 means unconditional. Their names
            are `id2label`.
    """

    image_size: int = 32
    num_channels: int = 3
    latent_dim: int = 128
    num_classes: int = 0

    def __post_init__(self, **kwargs):
        known = [field.name for field in fields(self)]
        for key in kwargs:
            if near := difflib.get_close_matches(key, known, n=1, cutoff=0.75):
                logger.warning(
                    f"{type(self).__name__} has no field {key!r}; did you mean {near[0]!r}?"
                )
        if self.id2label is None and self.num_classes > 0:
            kwargs.setdefault("num_labels", self.num_classes)
        super().__post_init__(**kwargs)
        if self.num_classes > 0:
            self.label2id = {name: index for index, name in self.id2label.items()}

    def validate_sizes(self) -> None:
        """Dies for sizes below one."""
        for name, least in (
            ("image_size", 1),
            ("num_channels", 1),
            ("latent_dim", 1),
            ("num_classes", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def validate_classes(self) -> None:
        """Dies unless each class has one name, and each name one class."""
        if self.num_classes <= 0:
            return
        names = self.id2label or {}
        if sorted(names) != list(range(self.num_classes)):
            raise ValueError(
                f"num_classes is {self.num_classes}, but id2label names the classes {list(names)}"
            )
        if len(set(names.values())) != self.num_classes:
            raise ValueError(
                f"id2label gives several classes the same name: {list(names.values())}"
            )


def num_doublings(image_size: int) -> int:
    """How often an image is halved until 4 to 7 pixels are left, where these networks begin.

    Raises:
        ValueError: If `image_size` is not 4, 5, 6 or 7 times a power of two.
    """
    size, doublings = image_size, 0
    while size > 7 and size % 2 == 0:
        size, doublings = size // 2, doublings + 1
    if not 4 <= size <= 7 or doublings == 0:
        raise ValueError(f"image_size must be 4, 5, 6 or 7 times a power of two, got {image_size}")
    return doublings


@dataclass
class GeneratorOutput(ModelOutput):
    """What a generator returns.

    Args:
        images: (B, C, H, W) in [-1, 1].
    """

    images: Tensor | None = None


@dataclass
class DiscriminatorOutput(ModelOutput):
    """What a discriminator returns.

    Args:
        logits: (B, N), N scores for each image, high for real ones; N = 1 for a plain head.
    """

    logits: Tensor | None = None


class GANPreTrainedModel(PreTrainedModel):
    """The doors of all networks of the room: wrong input dies here with a sentence."""

    base_model_prefix = ""
    _supports_sdpa = False

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Four inputs of this network, the same ones on every call: what it is tried with."""
        config, source = self.config, torch.Generator().manual_seed(0)
        image = (config.num_channels, config.image_size, config.image_size)
        shape = (config.latent_dim,) if self.main_input_name == "latents" else image
        inputs = {self.main_input_name: torch.randn(4, *shape, generator=source).clamp(-1, 1)}
        if config.num_classes:
            inputs["class_labels"] = torch.arange(4) % config.num_classes
        return inputs

    def check_latents(self, latents: Tensor, class_labels: Tensor | None) -> None:
        """Dies unless `latents` is (B, Z) and the labels fit the model, one for each latent."""
        if latents.dim() != 2 or latents.shape[1] != self.config.latent_dim:
            raise ValueError(
                f"latents must be (B, {self.config.latent_dim}), got {tuple(latents.shape)}"
            )
        self._check_labels(latents, class_labels)

    def check_images(self, images: Tensor, class_labels: Tensor | None) -> None:
        """Dies unless `images` is (B, C, H, W) as configured and the labels fit the model."""
        size = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if images.dim() != 4 or images.shape[1:] != size:
            raise ValueError(
                f"images must be (B, {', '.join(map(str, size))}), got {tuple(images.shape)}"
            )
        self._check_labels(images, class_labels)

    def _check_labels(self, batch: Tensor, class_labels: Tensor | None) -> None:
        name, num_classes = type(self).__name__, self.config.num_classes
        if class_labels is None:
            if num_classes:
                raise ValueError(f"this {name} has {num_classes} classes: pass class_labels")
            return
        if not num_classes:
            raise ValueError(f"this {name} is unconditional and takes no class_labels")
        if not isinstance(class_labels, Tensor) or class_labels.is_floating_point():
            raise ValueError("class_labels must be a tensor of integers")
        if class_labels.shape != batch.shape[:1]:
            raise ValueError(
                f"class_labels must be ({len(batch)},), got {tuple(class_labels.shape)}"
            )


class SpectralNorm:
    """Mixin for a layer with a `weight`: divides it by its largest singular value.

    The method is Algorithm 1 of Miyato et al., 2018, with one power iteration for each forward pass
    in training mode and none in evaluation. `u` is the left singular vector as estimated so far;
    the right one follows from it. Linear and convolutional weights are seen as (outputs, everything
    else).
    """

    def add_singular_vector(self) -> None:
        """Creates the buffer `u`; a subclass calls it once its weight exists."""
        self.register_buffer("u", F.normalize(torch.randn(self.weight.shape[0]), dim=0))

    def normalized_weight(self) -> Tensor:
        """The weight over its spectral norm, in its own dtype; the norm is estimated in float32."""
        with torch.autocast(self.weight.device.type, enabled=False):
            weight = self.weight.float().flatten(1)
            with torch.no_grad():
                # A copy, since a later pass in training mode changes the buffer in place.
                u = self.u.float().clone()
                v = F.normalize(weight.T @ u, dim=0)
                if self.training:
                    u = F.normalize(weight @ v, dim=0)
                    self.u.copy_(u)
            # u and v are constants here, so the gradient is that of Eq. 11 to 13 of the paper.
            sigma = u @ (weight @ v)
        return self.weight / sigma.to(self.weight.dtype)

    @torch.no_grad()
    def init_singular_vector(self) -> None:
        """A random start for `u`, unless a checkpoint brought one."""
        init.copy_(self.u, F.normalize(torch.randn_like(self.u, dtype=torch.float32), dim=0))


class SpectralNormConv2d(SpectralNorm, nn.Conv2d):
    """A convolution with a spectrally normalized weight."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_singular_vector()

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self._conv_forward(h, self.normalized_weight(), self.bias)


class SpectralNormLinear(SpectralNorm, nn.Linear):
    """A linear map with a spectrally normalized weight."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_singular_vector()

    def forward(self, h: Tensor) -> Tensor:
        """(B, D) -> (B, D')."""
        return F.linear(h, self.normalized_weight(), self.bias)


class SpectralNormEmbedding(SpectralNorm, nn.Embedding):
    """A table of vectors with a spectrally normalized weight."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_singular_vector()

    def forward(self, indices: Tensor) -> Tensor:
        """(B,) -> (B, D)."""
        return F.embedding(indices, self.normalized_weight())
