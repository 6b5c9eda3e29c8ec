"""FeatureNet: a small residual classifier; metrics look through the layer before its last.

The residual network of He et al., "Deep Residual Learning for Image Recognition", CVPR 2016
(https://arxiv.org/abs/1512.03385), at a size that fits in a card folder: one 3x3 convolution,
stages of residual blocks of which every one after the first halves the image, the mean over space,
one linear map. The mean over space is the embedding.
"""

import difflib
from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple, logging

logger = logging.get_logger(__name__)


@strict
class FeatureNetConfig(PreTrainedConfig):
    """Configuration of a FeatureNet.

    The number of classes and their names are transformers' `num_labels` and `id2label`. A misspelt
    field is not an error in transformers; here it gives a warning that names the nearest one.

    Args:
        image_size: Height and width of the (square) images, in pixels.
        num_channels: 1 for grey images, 3 for color.
        hidden_sizes: Channels C of each stage; the last is the size D of the embedding.
        num_blocks: Residual blocks of each stage.
        stem_stride: Pixels that the first convolution steps over: 1 keeps the size, 2 halves it.
    """

    model_type = "genzoo_feature_net"

    image_size: int = 28
    num_channels: int = 1
    hidden_sizes: list[int] = field(default_factory=lambda: [32, 64, 128])
    num_blocks: list[int] = field(default_factory=lambda: [1, 1, 1])
    stem_stride: int = 1

    def __post_init__(self, **kwargs):
        known = ["num_labels", *(known_field.name for known_field in fields(self))]
        for key in sorted(kwargs.keys() - known):
            if near := difflib.get_close_matches(key, known, n=1, cutoff=0.75):
                logger.warning(
                    f"{type(self).__name__} has no field {key!r}; did you mean {near[0]!r}?"
                )
        super().__post_init__(**kwargs)
        self.label2id = {name: index for index, name in (self.id2label or {}).items()}

    def validate_architecture(self) -> None:
        """Dies unless the stages are described once each and leave at least one pixel."""
        if len(self.hidden_sizes) != len(self.num_blocks) or not self.hidden_sizes:
            raise ValueError(
                "hidden_sizes and num_blocks must have one entry for each stage, got "
                f"{self.hidden_sizes} and {self.num_blocks}"
            )
        if min(self.hidden_sizes + self.num_blocks + [self.num_channels, self.stem_stride]) < 1:
            raise ValueError(
                "hidden_sizes, num_blocks, num_channels and stem_stride must be positive"
            )
        reduction = self.stem_stride * 2 ** (len(self.hidden_sizes) - 1)
        if self.image_size < reduction:
            raise ValueError(
                f"image_size must be at least {reduction} for {len(self.hidden_sizes)} stages "
                f"behind a stem_stride of {self.stem_stride}, got {self.image_size}"
            )
        ids = sorted(int(index) for index in self.id2label or {})
        if not ids or ids != list(range(len(ids))):
            raise ValueError(f"id2label must name the classes 0, 1, 2, ..., got {self.id2label}")


class FeatureNetBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: y = relu(x + f(x)) (He et al., 2016, Eq. 1).

    Where the shape changes, the shortcut is a mean over 2x2 pixels and a 1x1 convolution, so that
    no pixel is skipped (ResNet-D of He et al., 2019, https://arxiv.org/abs/1812.01187, Section
    4.2).

    Args:
        in_channels: Channels C of the input.
        out_channels: Channels C of the output.
        stride: 1 keeps the size of the image, 2 halves it (rounded up).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(h)))))
        return F.relu(self.shortcut(h) + residual)


@dataclass
class FeatureNetOutput(ModelOutput):
    """What a FeatureNet returns.

    Args:
        loss: Mean cross-entropy, when labels were passed.
        logits: (B, K), one score for each class.
        embeddings: (B, D), the features before the last layer, not negative.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    embeddings: Tensor | None = None


class FeatureNetForImageClassification(PreTrainedModel):
    """Images to class scores and embeddings."""

    config: FeatureNetConfig
    config_class = FeatureNetConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Four inputs of this network, the same ones on every call: what it is tried with."""
        size = (self.config.num_channels, self.config.image_size, self.config.image_size)
        source = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(4, *size, generator=source).clamp(-1, 1)}

    def __init__(self, config: FeatureNetConfig):
        super().__init__(config)
        sizes = config.hidden_sizes
        self.stem = nn.Conv2d(
            config.num_channels, sizes[0], 3, stride=config.stem_stride, padding=1, bias=False
        )
        self.norm = nn.BatchNorm2d(sizes[0])
        blocks = []
        for stage, (size, count) in enumerate(zip(sizes, config.num_blocks, strict=True)):
            for index in range(count):
                halves = stage > 0 and index == 0
                in_size = sizes[stage - 1] if halves else size
                blocks.append(FeatureNetBlock(in_size, size, stride=2 if halves else 1))
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(sizes[-1], len(config.id2label or {}))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # batch norm: gain 1, bias 0, mean 0, variance 1
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> FeatureNetOutput:
        """Embeds and classifies.

        Args:
            pixel_values: (B, C, H, W) in [-1, 1], of any floating dtype.
            labels: (B,), the right classes, for the loss.

        Raises:
            ValueError: If shapes do not fit the config.
        """
        size = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if pixel_values.dim() != 4 or pixel_values.shape[1:] != size:
            raise ValueError(
                f"pixel_values must be (B, {', '.join(map(str, size))}), "
                f"got {tuple(pixel_values.shape)}"
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values must be floating point in [-1, 1], got {pixel_values.dtype}"
            )
        if labels is not None and labels.shape != pixel_values.shape[:1]:
            raise ValueError(f"labels must be ({len(pixel_values)},), got {tuple(labels.shape)}")

        h = F.relu(self.norm(self.stem(pixel_values.to(self.stem.weight.dtype))))
        embeddings = self.blocks(h).mean(dim=(2, 3))  # (B, C, H, W) -> (B, D)
        logits = self.classifier(embeddings)  # (B, D) -> (B, K)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return FeatureNetOutput(loss=loss, logits=logits, embeddings=embeddings)
