"""Energy models of images: the residual networks of IGEBM.

Du and Mordatch, "Implicit Generation and Modeling with Energy-Based Models", NeurIPS 2019
(https://arxiv.org/abs/1903.08689), as explained by Su (2019), https://kexue.fm/archives/6612. The
density of an image is p(x) = exp(-E(x)) / Z; Z is not known.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from .layers import differentiate

# name: (channels of the stem and after each block, which blocks halve the image, size of the
# convolution beside a block). The first is for 28 pixels and a CPU; the others are the paper's, of
# 32 pixels and of 128.
BACKBONES = {
    "small": ([32, 32, 64, 64], [True, True, False], 1),
    "resnet32": ([128, 128, 128, 256, 256, 256, 256], [True, False, True, False, True, False], 3),
    "large": (
        [128, 128, 128, 128, 256, 256, 256, 512, 512, 512],
        [True, False, False, True, False, False, True, False, False],
        3,
    ),
    "wider": (
        [128, 256, 256, 256, 512, 512, 512, 1024, 1024, 1024],
        [True, False, False, True, False, False, True, False, False],
        3,
    ),
    "resnet128": ([64, 64, 128, 256, 512, 512, 512], [True, True, True, True, True, False], 3),
}


def leaky_relu(h: Tensor) -> Tensor:
    """Of slope 0.2 below zero."""
    return F.leaky_relu(h, 0.2)


ACTIVATIONS = {"leaky_relu": leaky_relu, "swish": F.silu}


@strict
class EBMConfig(PreTrainedConfig):
    """Configuration of an energy model.

    Args:
        image_size: Height and width of the (square) images, in pixels.
        num_channels: 1 for gray images, 3 for color.
        num_classes: Number K of classes of a conditional energy E(x, c); 0 means unconditional.
            Their names are `id2label`.
        backbone: Where `channels`, `downsamples` and `shortcut_kernel_size` come from, if they are
            not given: "small" (for 28 pixels), or the paper's "resnet32", "large", "wider" and
            "resnet128"; "custom" where they are others.
        channels: Channels after the first convolution and after each residual block.
        downsamples: For each block whether it halves the image.
        shortcut_kernel_size: Of the convolution beside a block. 3, the paper's, stands where the
            number of channels changes; 1, igebm-pytorch's, also where the image is halved, and
            costs little. Channels that are given come with 1.
        activation: "leaky_relu", of slope 0.2 below zero, or "swish", which is smooth.
        use_spectral_norm: Whether all weights but those of the last layer are divided by their
            spectral norm.
        attention_after: After which block, counted from 0, self-attention stands; None means
            nowhere.
        dropout: Probability between the convolutions of a block.
        sees_unit_range: Whether the first convolution gets pixels in [0, 1], as in the paper. They
            are rescaled inside; only converted checkpoints want it, whose zero padding is black.
    """

    model_type = "genzoo_ebm"

    image_size: int = 32
    num_channels: int = 3
    num_classes: int = 0
    backbone: str = "resnet32"
    channels: list[int] | None = None
    downsamples: list[bool] | None = None
    shortcut_kernel_size: int | None = None
    activation: str = "leaky_relu"
    use_spectral_norm: bool = True
    attention_after: int | None = None
    dropout: float | int = 0.0
    sees_unit_range: bool = False

    def __post_init__(self, **kwargs):
        if self.backbone in BACKBONES:
            channels, downsamples, kernel_size = BACKBONES[self.backbone]
            if self.shortcut_kernel_size is None:
                self.shortcut_kernel_size = 1 if self.channels else kernel_size
            self.channels = self.channels or list(channels)
            self.downsamples = self.downsamples or list(downsamples)
            if self.channels != channels or self.downsamples != downsamples:
                self.backbone = "custom"
        elif self.shortcut_kernel_size is None:
            self.shortcut_kernel_size = 1
        if self.id2label is None and self.num_classes > 0:
            kwargs.setdefault("num_labels", self.num_classes)
        super().__post_init__(**kwargs)
        if self.num_classes > 0:
            self.label2id = {name: index for index, name in self.id2label.items()}

    def validate_sizes(self) -> None:
        """Dies for sizes below one."""
        for name, least in (("image_size", 1), ("num_channels", 1), ("num_classes", 0)):
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

    def validate_architecture(self) -> None:
        """Dies unless the blocks fit each other and the image."""
        if self.channels is None or self.downsamples is None:
            raise ValueError(
                f"there is no backbone {self.backbone!r} (there are {', '.join(BACKBONES)}): "
                "give channels and downsamples"
            )
        if len(self.channels) != len(self.downsamples) + 1 or not self.downsamples:
            raise ValueError(
                "channels has one entry for the stem and one for each block, downsamples one for "
                f"each block: got {self.channels} and {self.downsamples}"
            )
        if min(self.channels) < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")
        if self.shortcut_kernel_size not in (1, 3):
            raise ValueError(
                f"shortcut_kernel_size must be 1 or 3, got {self.shortcut_kernel_size}"
            )
        if self.image_size >> sum(self.downsamples) < 1:
            raise ValueError(
                f"an image of {self.image_size} pixels cannot be halved "
                f"{sum(self.downsamples)} times"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.attention_after is not None and not (
            0 <= self.attention_after < len(self.downsamples)
        ):
            raise ValueError(
                f"attention_after must be a block, 0 to {len(self.downsamples) - 1}, "
                f"got {self.attention_after}"
            )


class EBMConv2d(nn.Conv2d):
    """A convolution whose weight is divided by its largest singular value, if it is wanted.

    The singular value is estimated as by Miyato et al., 2018, Algorithm 1: `u` is the left singular
    vector as found so far, and `power_iteration` improves it. A forward pass does not, so that the
    energy stays the same along a chain, and can be differentiated by torch.func.

    Args:
        has_spectral_norm: Whether it is divided.
        is_bounded: Whether only to make a norm above one smaller. A weight that starts near zero,
            as the second of a residual block does, would be blown up otherwise.
    """

    u: Tensor

    def __init__(self, *args, has_spectral_norm: bool, is_bounded: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.has_spectral_norm, self.is_bounded = has_spectral_norm, is_bounded
        if has_spectral_norm:
            self.register_buffer("u", F.normalize(torch.randn(self.out_channels), dim=0))

    @torch.no_grad()
    def power_iteration(self) -> None:
        """Moves `u` nearer to the singular vector of the weight as it is now."""
        if self.has_spectral_norm:
            weight = self.weight.float().flatten(1)
            v = F.normalize(weight.T @ self.u.float(), dim=0)
            self.u.copy_(F.normalize(weight @ v, dim=0))

    def normalized_weight(self) -> Tensor:
        """The weight over its spectral norm; the norm is estimated in float32."""
        if not self.has_spectral_norm:
            return self.weight
        with torch.autocast(self.weight.device.type, enabled=False):
            weight = self.weight.float().flatten(1)
            # A copy, since a later power iteration changes the buffer in place.
            u = self.u.float().clone()
            with torch.no_grad():
                v = F.normalize(weight.T @ u, dim=0)
            sigma = u @ (weight @ v)
            factor = sigma.clamp(max=1) / (sigma + 1e-6) if self.is_bounded else 1 / sigma
        return self.weight * factor.to(self.weight.dtype)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self._conv_forward(h, self.normalized_weight(), self.bias)


class ResidualConv2d(EBMConv2d):
    """The second convolution of a block; a class of its own because it starts near zero."""


class ClassGain(nn.Embedding):
    """Gain and bias of each class for the maps of one convolution; they start at one and zero."""

    def __init__(self, num_classes: int, num_features: int):
        super().__init__(num_classes, 2 * num_features)

    def modulate(self, h: Tensor, class_labels: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, C, H, W)."""
        gain, bias = self(class_labels)[:, :, None, None].chunk(2, dim=1)
        return gain * h + bias


class EBMBlock(nn.Module):
    """Conv, act, conv, beside it another convolution or nothing; then halve, and act.

    With classes, gains and biases follow each convolution. (The authors' code adds the first bias
    before the convolution and has no first gain; this is the later PyTorch version's block.)
    """

    def __init__(self, config: EBMConfig, in_channels: int, out_channels: int, downsample: bool):
        super().__init__()
        self.activation, self.dropout = ACTIVATIONS[config.activation], config.dropout
        self.downsample = downsample
        has_classes, norm = config.num_classes > 0, config.use_spectral_norm
        options = {"padding": 1, "bias": not has_classes, "has_spectral_norm": norm}
        self.conv1 = EBMConv2d(in_channels, out_channels, 3, **options)
        self.conv2 = ResidualConv2d(out_channels, out_channels, 3, is_bounded=True, **options)
        if has_classes:
            self.gain1 = ClassGain(config.num_classes, out_channels)
            self.gain2 = ClassGain(config.num_classes, out_channels)
        size = config.shortcut_kernel_size or 1
        has_shortcut = in_channels != out_channels or (downsample and size == 1)
        self.shortcut: nn.Module = nn.Identity()
        if has_shortcut:
            self.shortcut = EBMConv2d(
                in_channels,
                out_channels,
                size,
                padding=size // 2,
                bias=False,
                has_spectral_norm=norm,
            )
        self.pools_first = size == 1

    def forward(self, x: Tensor, class_labels: Tensor | None) -> Tensor:
        """(B, C, H, W), (B,) -> (B, C', H/2, W/2), or (B, C', H, W) without halving."""
        h = self.conv1(x)
        if class_labels is not None:
            h = self.gain1.modulate(h, class_labels)
        h = F.dropout(h, self.dropout, self.training)
        h = self.conv2(self.activation(h))
        if class_labels is not None:
            h = self.gain2.modulate(h, class_labels)
        if self.downsample and self.pools_first:
            # Averaging and a 1x1 convolution commute, and this order costs a quarter.
            return self.activation(F.avg_pool2d(h, 2) + self.shortcut(F.avg_pool2d(x, 2)))
        h = h + self.shortcut(x)
        return self.activation(F.avg_pool2d(h, 2) if self.downsample else h)


class EBMAttention(nn.Module):
    """Self-attention over all pixels, its share learned from zero (Zhang et al., 2019, Eq. 1-3)."""

    def __init__(self, config: EBMConfig, channels: int):
        super().__init__()
        norm, inner = config.use_spectral_norm, max(channels // 8, 1)
        self.query = EBMConv2d(channels, inner, 1, has_spectral_norm=norm)
        self.key = EBMConv2d(channels, inner, 1, has_spectral_norm=norm)
        self.value = EBMConv2d(channels, channels, 1, has_spectral_norm=norm)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        query, key, value = (part(h).flatten(2) for part in (self.query, self.key, self.value))
        weights = (query.transpose(1, 2) @ key).softmax(dim=-1)  # (B, HW, HW)
        return h + self.gamma * (value @ weights.transpose(1, 2)).view_as(h)


class EnergyHead(nn.Linear):
    """Features to one number, which is as precise as they are: weights may be of half precision."""

    def forward(self, h: Tensor) -> Tensor:
        """(B, D) -> (B,)."""
        return (h * self.weight[0]).sum(dim=1) + self.bias


class EnergyModel(PreTrainedModel):
    """Images (and classes) to energies: low where the data are.

    Pixels are in [-1, 1] here and in [0, 1] in the paper. With x' = 2x - 1 a step of Langevin
    dynamics on this model equals one of the paper's if its step size is 4 times theirs, the scale
    of its noise twice, and the bound of a gradient's elements half.

    The last activation, before the sum over pixels, is the paper's ReLU beside "leaky_relu"; beside
    "swish" it is swish too, so that the energy is smooth.
    """

    config: EBMConfig
    config_class = EBMConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _supports_sdpa = False

    def __init__(self, config: EBMConfig):
        super().__init__(config)
        channels, downsamples = config.channels, config.downsamples
        assert (
            channels is not None and downsamples is not None
        )  # the config has put in a backbone's
        self.activation = ACTIVATIONS[config.activation]
        self.last_activation = F.relu if config.activation == "leaky_relu" else F.silu
        self.stem = EBMConv2d(
            config.num_channels,
            channels[0],
            3,
            padding=1,
            has_spectral_norm=config.use_spectral_norm,
        )
        self.blocks = nn.ModuleList(
            EBMBlock(config, c_in, c_out, downsample)
            for (c_in, c_out), downsample in zip(pairwise(channels), downsamples, strict=True)
        )
        if config.attention_after is not None:
            self.attention = EBMAttention(config, channels[config.attention_after + 1])
        self.head = EnergyHead(channels[-1], 1)
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Four inputs of this network, the same ones on every call: what it is tried with."""
        config, source = self.config, torch.Generator().manual_seed(0)
        size = (4, config.num_channels, config.image_size, config.image_size)
        inputs = {"pixel_values": torch.randn(size, generator=source).clamp(-1, 1)}
        if config.num_classes:
            inputs["class_labels"] = torch.arange(4) % config.num_classes
        return inputs

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, EBMConv2d):
            fan_in = module.weight[0].numel()
            # Under spectral norm only its direction counts; without, that of He et al. (2015).
            std = 1.0 if module.has_spectral_norm else math.sqrt(2 / fan_in)
            init.normal_(module.weight, std=1e-10 if isinstance(module, ResidualConv2d) else std)
            if module.bias is not None:
                init.zeros_(module.bias)
            if module.has_spectral_norm:
                start = torch.randn_like(module.u, dtype=torch.float32)
                init.copy_(module.u, F.normalize(start, dim=0))
        elif isinstance(module, ClassGain):
            half = module.embedding_dim // 2
            start = torch.ones_like(module.weight)
            start[:, half:] = 0
            init.copy_(module.weight, start)
        elif isinstance(module, EBMAttention):
            init.zeros_(module.gamma)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)

    def forward(self, pixel_values: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The energies; in training mode after one power iteration of all spectral norms.

        Args:
            pixel_values: (B, C, H, W) in [-1, 1]. Chains overstep it by their noise, so nothing is
                said of what is outside.
            class_labels: (B,), integers below `num_classes`; conditional models demand them.

        Returns:
            (B,), at least float32.

        Raises:
            ValueError: If shapes or labels do not fit the config.
        """
        if self.training:
            self.power_iteration()
        return self._energies(pixel_values, class_labels)

    def _energies(self, pixel_values: Tensor, class_labels: Tensor | None) -> Tensor:
        self.check_inputs(pixel_values, class_labels)
        x = pixel_values / 2 + 0.5 if self.config.sees_unit_range else pixel_values
        h = self.activation(self.stem(x))
        for index, block in enumerate(self.blocks):
            h = block(h, class_labels)
            if index == self.config.attention_after:
                h = self.attention(h)
        # At least float32 from here on, under autocast too, which leaves these operations alone.
        h = self.last_activation(h.to(torch.promote_types(h.dtype, torch.float32)))
        return self.head(h.sum(dim=(2, 3)))  # (B, D, H, W) -> (B, D) -> (B,)

    def score(self, pixel_values: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The gradient of the log density, -dE/dx, (B, C, H, W).

        It can be compiled, and differentiated once more. Chains run under `torch.no_grad`, where
        the weights take no part in it.

        Args:
            pixel_values: As for a call.
            class_labels: As for a call.
        """
        return differentiate(lambda x: self._energies(x, class_labels), pixel_values)[1]

    def power_iteration(self) -> None:
        """One power iteration of all spectral norms.

        A call in training mode does it by itself; `score` does not, so that training which sees
        nothing but scores calls this once a step.
        """
        for module in self.modules():
            if isinstance(module, EBMConv2d):
                module.power_iteration()

    def check_inputs(self, pixel_values: Tensor, class_labels: Tensor | None) -> None:
        """Dies unless images are (B, C, H, W) as configured and the labels fit the model."""
        config = self.config
        size = (config.num_channels, config.image_size, config.image_size)
        if pixel_values.dim() != 4 or pixel_values.shape[1:] != size:
            raise ValueError(
                f"pixel_values must be (B, {', '.join(map(str, size))}), "
                f"got {tuple(pixel_values.shape)}"
            )
        if class_labels is None:
            if config.num_classes:
                raise ValueError(f"this energy has {config.num_classes} classes: pass class_labels")
            return
        if not config.num_classes:
            raise ValueError("this energy is unconditional and takes no class_labels")
        if not isinstance(class_labels, Tensor) or class_labels.is_floating_point():
            raise ValueError("class_labels must be a tensor of integers")
        if class_labels.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"class_labels must be int64 or int32, got {class_labels.dtype}")
        if class_labels.shape != pixel_values.shape[:1]:
            raise ValueError(
                f"class_labels must be ({len(pixel_values)},), got {tuple(class_labels.shape)}"
            )
        # Looked at where it costs no wait; a device would die of a wrong one.
        is_here = class_labels.device.type == "cpu" and not torch.compiler.is_compiling()
        if (
            is_here
            and len(class_labels)
            and not 0 <= int(class_labels.min()) <= int(class_labels.max()) < (config.num_classes)
        ):
            raise ValueError(
                f"class_labels must be below {config.num_classes} and at least 0, got "
                f"{int(class_labels.min())} to {int(class_labels.max())}"
            )
