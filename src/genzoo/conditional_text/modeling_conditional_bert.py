"""BERT whose LayerNorms are conditional: text from a class, an image or any vector.

Su (2019), "Conditional text generation based on Conditional Layer Normalization",
https://kexue.fm/archives/7124: each LayerNorm of a pretrained BERT, that of the language model head
too, has its gain and bias shifted by linear maps of the condition. The maps start at zero, so that
nothing changes until they are learned. The attention patterns are those of UniLM (Dong et al.,
2019, https://arxiv.org/abs/1905.03197) as Su (2019), https://kexue.fm/archives/6933, explains them.
"""

import math
import re
from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, DynamicCache, GenerationConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.loss.loss_utils import ForCausalLMLoss, ForMaskedLMLoss
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    SequenceClassifierOutput,
)
from transformers.models.bert.modeling_bert import (
    BertAttention,
    BertEmbeddings,
    BertEncoder,
    BertForSequenceClassification,
    BertLayer,
    BertLMHeadModel,
    BertLMPredictionHead,
    BertModel,
    BertOnlyMLMHead,
    BertOutput,
    BertPredictionHeadTransform,
    BertPreTrainedModel,
    BertSelfAttention,
    BertSelfOutput,
)
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

logger = logging.get_logger(__name__)

ATTENTION_PATTERNS = ("causal", "prefix", "bidirectional")


@strict
class ConditionalBertConfig(BertConfig):
    """Configuration of a conditional BERT: BERT's fields, and what the condition is.

    Args:
        condition_size: Size C of the condition, which all LayerNorms share.
        bottleneck_size: Size H of the hidden vector between condition and maps; each LayerNorm has
            one of its own. None for maps straight from the condition.
        bottleneck_activation: Of that hidden vector, by its name in transformers.
        num_classes: Number K of classes with an embedding that the model owns, by default as many
            as there are names; 0 where the condition is always given as vectors.
        class_names: Name of each class; None for "0", "1", ....
        condition_dropout: Share of the texts that are trained on without a condition, that is, with
            a zero vector; classifier-free guidance needs it.
        condition_initializer_range: Standard deviation of the maps before training. Zero, the
            article's, leaves a pretrained BERT as it is.
        attention_pattern: What a token sees, unless a call says otherwise. "causal": itself and
            what is left of it. "prefix": a token of segment 0 sees the segment, one of segment 1
            also what is left of it (UniLM). "bidirectional": all.
    """

    model_type = "genzoo_conditional_bert"

    condition_size: int = 128
    bottleneck_size: int | None = None
    bottleneck_activation: str = "linear"
    num_classes: int = 0
    class_names: list[str] | None = None
    condition_dropout: float | int = 0.0
    condition_initializer_range: float | int = 0.0
    attention_pattern: str = "causal"
    is_decoder: bool = True

    def __post_init__(self, **kwargs):
        if isinstance(self.class_names, list) and not self.num_classes:
            self.num_classes = len(self.class_names)
        super().__post_init__(**kwargs)

    def validate_condition(self) -> None:
        """Dies for sizes and names that do not fit."""
        for name, least in (("condition_size", 1), ("num_classes", 0), ("bottleneck_size", 1)):
            value: int | None = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(
                f"condition_dropout must be at least 0 and below 1, got {self.condition_dropout}"
            )
        if not self.condition_initializer_range >= 0:
            raise ValueError(
                "condition_initializer_range must not be negative, got "
                f"{self.condition_initializer_range}"
            )
        if self.bottleneck_activation not in ACT2FN:
            raise ValueError(f"there is no activation {self.bottleneck_activation!r}")
        if self.class_names is not None and (
            len(self.class_names) != self.num_classes
            or len({*self.class_names}) != self.num_classes
        ):
            raise ValueError(
                f"class_names must be {self.num_classes} different names, got {self.class_names}"
            )

    def validate_attention(self) -> None:
        """Dies for an unknown attention pattern, and for what only other BERTs have."""
        check_pattern(self.attention_pattern)
        if not self.is_decoder or self.add_cross_attention:
            raise ValueError(
                "a conditional BERT has is_decoder=True and add_cross_attention=False; what a "
                "token sees is up to attention_pattern, and from_bert reads a plain BERT"
            )

    def class_ids(self, labels: int | str | Sequence[int | str] | Tensor) -> Tensor:
        """Classes by number, each given by name or number.

        Args:
            labels: One or several.

        Returns:
            int64, (B,).

        Raises:
            ValueError: If there is no such class; the message names those there are.
        """
        given: Any = labels
        if hasattr(labels, "tolist"):  # a tensor or an array
            given = labels.reshape(-1).tolist()  # pyright: ignore[reportAttributeAccessIssue]
        elif isinstance(labels, str) or not isinstance(labels, Sequence):
            given = [labels]
        names = self.class_names or [str(index) for index in range(self.num_classes)]
        ids = []
        for label in given:
            is_number = isinstance(label, Integral) and not isinstance(label, bool)
            if is_number and 0 <= int(label) < self.num_classes:
                ids.append(int(label))
            elif isinstance(label, str) and label in names:
                ids.append(names.index(label))
            elif not self.num_classes:
                raise ValueError(
                    f"the model has no classes, so there is none called {label!r}: give "
                    "condition_embeds"
                )
            else:
                shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
                raise ValueError(f"there is no class {label!r}; known are {shown}")
        return torch.tensor(ids, dtype=torch.long)


def check_pattern(pattern: str) -> str:
    """An attention pattern, if it is one.

    Raises:
        ValueError: If not.
    """
    if pattern not in ATTENTION_PATTERNS:
        raise ValueError(
            f"attention_pattern must be one of {', '.join(ATTENTION_PATTERNS)}, got {pattern!r}"
        )
    return pattern


class ConditionMap(nn.Linear):
    """A map from the condition to gain or bias, without a bias of its own, at first zero.

    It is a class of its own because transformers shows `_init_weights` no module whose own weights
    were loaded, such as the LayerNorm of a plain BERT around a new map.
    """

    def reset_parameters(self) -> None:
        """Nothing changes until the map is learned."""
        nn.init.zeros_(self.weight)


class ConditionalLayerNorm(nn.LayerNorm):
    """LayerNorm whose gain and bias depend on a condition (Su, 2019, kexue.fm/archives/7124).

        y = (x - mean) / sqrt(var + eps) * (weight + W_scale h(c)) + (bias + W_shift h(c))

    `W_scale` and `W_shift` start at zero, and it is plain LayerNorm until they are learned. h(c) is
    c, or activation(W_h c) with a bottleneck; W_h does not start at zero, for then no gradient
    would ever reach any of them. Diffusion papers call the layer AdaLN.

    Args:
        hidden_size: Size D of the vectors that are normalized.
        condition_size: Size C of the condition.
        eps: Added to the variance.
        bottleneck_size: Size H of h(c); None for no bottleneck.
        bottleneck_activation: Of h(c), by its name in transformers.
    """

    def __init__(
        self,
        hidden_size: int,
        condition_size: int,
        eps: float = 1e-12,
        bottleneck_size: int | None = None,
        bottleneck_activation: str = "linear",
    ):
        super().__init__(hidden_size, eps=eps)
        self.condition_size = condition_size
        self.bottleneck = None
        if bottleneck_size is not None:
            self.bottleneck = nn.Linear(condition_size, bottleneck_size, bias=False)
            self.activation = ACT2FN[bottleneck_activation]
        self.scale = ConditionMap(bottleneck_size or condition_size, hidden_size, bias=False)
        self.shift = ConditionMap(bottleneck_size or condition_size, hidden_size, bias=False)

    def forward(self, x: Tensor | None, condition: Tensor | None = None) -> Tensor:
        """Normalizes.

        Args:
            x: (B, ..., D). None for no more than what the condition makes: gain and bias,
                (B, 1, 2, D) of a condition (B, C) and (B, T, 2, D) of one (B, T, C).
            condition: (B, C), one for each sample, or (B, T, C), one for each token of an x of
                (B, T, D); or gain and bias themselves, as above. None for plain LayerNorm.

        Raises:
            ValueError: If the shapes do not fit.
        """
        if condition is None:
            return super().forward(x)  # pyright: ignore[reportArgumentType]
        if x is None:
            return self.modulation(condition)
        if condition.dim() == 4 and condition.shape[-2:] == (2, *self.normalized_shape):
            return self.modulate(x, condition)
        check_condition(condition, self.condition_size, x.shape[0])
        if condition.dim() == 3 and condition.shape[:2] != x.shape[:-1]:
            raise ValueError(
                f"a condition for each token of {tuple(x.shape)} must be "
                f"{(*x.shape[:-1], self.condition_size)}, got {tuple(condition.shape)}"
            )
        modulation = self.modulation(condition)  # (B, T, 2, D), T = 1 for (B, C)
        if condition.dim() == 2:
            modulation = modulation.view(len(x), *[1] * (x.dim() - 2), 2, -1)
        return self.modulate(x, modulation)

    def modulation(self, condition: Tensor) -> Tensor:
        """Gain and bias under a condition: (B, C) -> (B, 1, 2, D), (B, T, C) -> (B, T, 2, D)."""
        hidden = condition.to(self.weight.dtype)
        hidden = hidden[:, None] if hidden.dim() == 2 else hidden
        if self.bottleneck is not None:
            hidden = self.activation(self.bottleneck(hidden))
        gain, bias = self.weight + self.scale(hidden), self.bias + self.shift(hidden)
        return torch.stack([gain, bias], dim=-2)

    def modulate(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Normalizes with a gain and a bias that broadcast to x: (B, T, D), (B, T | 1, 2, D)."""
        # In float32 at least, as fused kernels do; in float32 the result is that of nn.LayerNorm.
        dtype = torch.promote_types(x.dtype, torch.float32)
        normal = F.layer_norm(x.to(dtype), self.normalized_shape, None, None, self.eps)
        gain, bias = modulation.to(dtype).unbind(-2)
        return torch.addcmul(bias, normal, gain).to(x.dtype)


def check_condition(condition: Tensor, condition_size: int, batch_size: int) -> None:
    """Dies unless a condition is (B, C) or (B, T, C).

    Raises:
        ValueError: If it is not.
    """
    if condition.dim() not in (2, 3) or condition.shape[-1] != condition_size:
        raise ValueError(
            f"a condition must be (B, C) or (B, T, C) with C = {condition_size}, got "
            f"{tuple(condition.shape)}"
        )
    if len(condition) != batch_size:
        raise ValueError(
            f"{batch_size} texts need {batch_size} rows of condition, got {len(condition)}: "
            "repeat one that all share"
        )


def check_modulations(
    modulations: Tensor,
    condition_size: int,
    num_sites: int,
    batch_size: int,
    class_labels: Tensor | None,
    condition_embeds: Tensor | None,
) -> Tensor:
    """Dies unless modulations, or a condition in their place, fit model and texts, and are alone.

    Raises:
        ValueError: If they do not, or are not.
    """
    if class_labels is not None or condition_embeds is not None:
        raise ValueError("modulations stand in the place of class_labels and condition_embeds")
    if modulations.dim() < 5:
        check_condition(modulations, condition_size, batch_size)
    elif modulations.dim() > 5 or modulations.shape[:2] != (batch_size, num_sites):
        raise ValueError(
            f"modulations must be ({batch_size}, {num_sites}, 1 | T, 2, D), "
            f"got {tuple(modulations.shape)}"
        )
    return modulations


def conditional_layer_norm(config: ConditionalBertConfig) -> ConditionalLayerNorm:
    """The LayerNorm of one place in the network."""
    return ConditionalLayerNorm(
        config.hidden_size,
        config.condition_size,
        config.layer_norm_eps,
        config.bottleneck_size,
        config.bottleneck_activation,
    )


class ConditionalBertEmbeddings(BertEmbeddings):
    """BERT's embeddings, the LayerNorm conditional."""

    def __init__(self, config: ConditionalBertConfig):
        super().__init__(config)
        self.LayerNorm = conditional_layer_norm(config)

    def forward(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        past_length: int,
        condition: Tensor,  # as for ConditionalLayerNorm
    ) -> Tensor:  # (B, T, D)
        """Words, segments and positions to hidden states: (B, T) -> (B, T, D)."""
        x = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = self.position_ids[:, past_length : past_length + x.shape[1]]
        if token_type_ids is None:
            token_type_ids = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        # Added in BERT's order, for the last bit's sake.
        x = x + self.token_type_embeddings(token_type_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(x, condition))


class ConditionalBertSelfOutput(BertSelfOutput):
    """What comes behind attention, the LayerNorm conditional."""

    def __init__(self, config: ConditionalBertConfig):
        super().__init__(config)
        self.LayerNorm = conditional_layer_norm(config)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor, condition: Tensor) -> Tensor:
        """(B, T, D), twice, and a condition as for the LayerNorm -> (B, T, D)."""
        hidden_states = self.dropout(self.dense(hidden_states))
        return self.LayerNorm(hidden_states + input_tensor, condition)


class ConditionalBertOutput(BertOutput):
    """The end of a layer, the LayerNorm conditional."""

    def __init__(self, config: ConditionalBertConfig):
        super().__init__(config)
        self.LayerNorm = conditional_layer_norm(config)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor, condition: Tensor) -> Tensor:
        """(B, T, F) and (B, T, D), and a condition as for the LayerNorm -> (B, T, D)."""
        hidden_states = self.dropout(self.dense(hidden_states))
        return self.LayerNorm(hidden_states + input_tensor, condition)


class ConditionalBertAttention(BertAttention):
    """BERT's attention, which hands a condition on to its LayerNorm."""

    def __init__(self, config: ConditionalBertConfig, layer_idx: int):
        super().__init__(config, is_causal=True, layer_idx=layer_idx)
        self.output = ConditionalBertSelfOutput(config)

    def forward(self, hidden_states: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """(B, T, D) and a condition as for the LayerNorm -> (B, T, D)."""
        attended, _ = self.self(hidden_states, **kwargs)
        return self.output(attended, hidden_states, condition)


class ConditionalBertLayer(BertLayer):
    """BERT's layer with two conditional LayerNorms."""

    def __init__(self, config: ConditionalBertConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.attention = ConditionalBertAttention(config, layer_idx)
        self.output = ConditionalBertOutput(config)

    def forward(self, hidden_states: Tensor, conditions: Tensor, **kwargs: Any) -> Tensor:
        """(B, T, D) and a condition, or the modulations of both (B, 2, T | 1, 2, D)."""
        attended = self.attention(hidden_states, at_site(conditions, 0), **kwargs)
        return self.output(self.intermediate(attended), attended, at_site(conditions, 1))


def at_site(conditions: Tensor, sites: int | slice) -> Tensor:
    """What a LayerNorm gets: the condition of all, or its own of the modulations (B, S, ...)."""
    return conditions if conditions.dim() < 5 else conditions[:, sites]


class ConditionalBertEncoder(BertEncoder):
    """BERT's layers, each with the condition, or with what it makes of its own two LayerNorms."""

    def __init__(self, config: ConditionalBertConfig):
        nn.Module.__init__(self)
        self.config = config
        self.layer = nn.ModuleList(
            ConditionalBertLayer(config, index) for index in range(config.num_hidden_layers)
        )

    def forward(self, hidden_states: Tensor, conditions: Tensor, **kwargs: Any) -> Tensor:
        """(B, T, D) and a condition, or modulations (B, 2 L, T | 1, 2, D), L layers."""
        for index, layer in enumerate(self.layer):
            hidden_states = layer(
                hidden_states,  # in its place, for gradient checkpointing
                at_site(conditions, slice(2 * index, 2 * index + 2)),
                **kwargs,
            )
        return hidden_states


class ConditionalBertPredictionHeadTransform(BertPredictionHeadTransform):
    """The language model head up to the vocabulary, the LayerNorm conditional."""

    def __init__(self, config: ConditionalBertConfig):
        super().__init__(config)
        self.LayerNorm = conditional_layer_norm(config)

    def forward(self, hidden_states: Tensor, condition: Tensor) -> Tensor:
        """(B, T, D) and a condition as for the LayerNorm -> (B, T, D)."""
        hidden_states = self.transform_act_fn(self.dense(hidden_states))
        return self.LayerNorm(hidden_states, condition)


class ConditionalBertLMPredictionHead(BertLMPredictionHead):
    """The language model head."""

    def __init__(self, config: ConditionalBertConfig):
        super().__init__(config)
        self.transform = ConditionalBertPredictionHeadTransform(config)

    def forward(self, hidden_states: Tensor, condition: Tensor) -> Tensor:
        """(B, T, D) and a condition as for the LayerNorm -> scores (B, T, V)."""
        return self.decoder(self.transform(hidden_states, condition))


class ConditionalBertOnlyMLMHead(BertOnlyMLMHead):
    """The language model head under the name that BERT's checkpoints have for it."""

    def __init__(self, config: ConditionalBertConfig):
        nn.Module.__init__(self)
        self.predictions = ConditionalBertLMPredictionHead(config)

    def forward(self, sequence_output: Tensor, condition: Tensor) -> Tensor:
        """(B, T, D) and a condition as for the LayerNorm -> scores (B, T, V)."""
        return self.predictions(sequence_output, condition)


class ClassEmbedding(nn.Embedding):
    """The condition of each class; standard normal at first, the zero vector being no class."""


# What a checkpoint of a plain BERT cannot have.
NEW_WEIGHTS = re.compile(
    r"\.LayerNorm\.(scale|shift|bottleneck)\.weight$|(^|\.)class_embeddings\.weight$"
)
# What one may have that is not wanted here.
_UNUSED = re.compile(r"(^|\.)pooler\.|^cls\.seq_relationship\.|position_ids$|token_type_ids$")


class ConditionalBertPreTrainedModel(BertPreTrainedModel):
    """What all conditional BERTs share: the initial weights, and the door for plain ones."""

    config: ConditionalBertConfig
    config_class = ConditionalBertConfig
    _can_compile_fullgraph = True
    _no_split_modules = ["ConditionalBertEmbeddings", "ConditionalBertLayer"]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012 - the name and the type are transformers'
        "hidden_states": ConditionalBertLayer,
        "attentions": BertSelfAttention,
    }

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """A few inputs of this network, the same ones on every call: what it is tried with."""
        ids = torch.arange(12).view(3, 4) * 7 % self.config.vocab_size
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.config.num_classes:
            return inputs | {"class_labels": torch.arange(3) % self.config.num_classes}
        source = torch.Generator().manual_seed(0)
        condition = torch.randn(3, self.config.condition_size, generator=source)
        return inputs | {"condition_embeds": condition}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ConditionMap):
            if self.config.condition_initializer_range:
                init.normal_(module.weight, std=self.config.condition_initializer_range)
            else:
                init.zeros_(module.weight)
        elif isinstance(module, ClassEmbedding):
            init.normal_(module.weight)

    @classmethod
    def from_bert(
        cls,
        checkpoint: str,
        *,
        num_classes: int = 0,
        class_names: list[str] | None = None,
        new_head: bool = False,
        keep_tokens: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Makes a conditional BERT of a plain one, unchanged until it is trained.

        Or of a conditional one: then what fits stays, and classes of another number begin anew.

        Args:
            checkpoint: A folder or a Hub id with a BERT of any kind.
            num_classes: As in the config; by default, as many as there are class names.
            class_names: As in the config; by default those of the checkpoint.
            new_head: Whether to begin a new head where the checkpoint has none. The language model
                head belongs to BertForMaskedLM and the like; a classifier's is new unless one of
                its size is there.
            keep_tokens: Numbers of the tokens that stay in the vocabulary, in their new order; all
                by default.
            kwargs: Other fields of the config, such as `condition_size` and `bottleneck_size`, and
                options of `from_pretrained`.

        Raises:
            ValueError: If it is no BERT, if it lacks weights, or has weights of something else, or
                if a token that BERT needs is not kept.
        """
        config_class: Any = cls.config_class
        options = {key: kwargs.pop(key) for key in [*kwargs] if not hasattr(config_class, key)}
        found, _ = BertConfig.get_config_dict(checkpoint, **options)
        kind = found.get("model_type", "bert")  # the oldest do not say
        if kind not in ("bert", config_class.model_type):
            raise ValueError(f"{checkpoint} holds a {kind}, which is no BERT")
        # As every from_pretrained: the file may hold float16 where the model is of float32.
        said = found.get("dtype") or found.get("torch_dtype") or "float32"
        options["dtype"] = kwargs.pop("dtype", said)
        before = found
        # A plain BERT may say of itself that it is no decoder, which a conditional one must be.
        found = found | {"is_decoder": True, "add_cross_attention": False}
        fields = config_class.from_dict(found).to_dict()
        for name in ("model_type", "architectures", "transformers_version", "dtype"):
            fields.pop(name, None)
        old_names = before.get("class_names")
        if num_classes or class_names is not None:
            num_classes = num_classes or len(class_names or [])
            if class_names is None and old_names and len(old_names) == num_classes:
                class_names = old_names
            fields |= {"num_classes": num_classes, "class_names": class_names}
        tokens, unwanted = _special_tokens(checkpoint, fields["vocab_size"], options)
        config = config_class(**fields | tokens | kwargs)

        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # what is missing is looked at below
        try:
            loaded: Any = cls.from_pretrained(
                checkpoint,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
        finally:
            logging.set_verbosity(verbosity)
        model, info = loaded
        model._audit(checkpoint, before, info, new_head)
        names = config.class_names
        if old_names and names not in (None, old_names) and len(names) == len(old_names):
            model._begin_anew(old_names, names)
        if model.can_generate():
            model.generation_config = GenerationConfig(
                **{name: getattr(config, name) for name in _SPECIAL},
                suppress_tokens=unwanted,
            )
        if keep_tokens is not None:
            model.keep_tokens(keep_tokens)
        return model

    @torch.no_grad()
    def _begin_anew(self, old_names: list[str], names: list[str]) -> None:
        """Moves the embeddings of classes that are still there; the others are drawn again."""
        weight: Any = self.get_submodule(
            next(name for name, part in self.named_modules() if isinstance(part, ClassEmbedding))
        ).weight
        old = weight.clone()
        for row, name in enumerate(names):
            if name in old_names:
                weight[row] = old[old_names.index(name)]
            else:
                nn.init.normal_(weight[row])

    def _audit(
        self, checkpoint: str, before: dict[str, Any], info: dict[str, Any], new_head: bool
    ) -> None:
        """Refuses a checkpoint that did not fill this model, or holds what it has no place for.

        Args:
            checkpoint: Its name.
            before: Its config.
            info: What from_pretrained found out about its weights.
            new_head: Whether it may lack the head.

        Raises:
            ValueError: If it lacks weights, or has weights of something else.
        """
        other_size = {key for key, *_ in info["mismatched_keys"]}
        is_plain = before.get("model_type", "bert") == "bert"
        # A plain BERT has no maps; a conditional one lacks only what it never had.
        never_had = {
            "bottleneck": before.get("bottleneck_size") is None,
            "class_embeddings": not before.get("num_classes"),
        }

        def is_new(key: str) -> bool:
            if not NEW_WEIGHTS.search(key):
                return False
            return is_plain or key in other_size or never_had.get(key.split(".")[-2], False)

        missing = {key for key in {*info["missing_keys"], *other_size} if not is_new(key)}
        tied = self.all_tied_weights_keys.keys()
        for prefix, head in self._heads.items():
            wanted = {key for key in self.state_dict() if key.startswith(prefix)}
            own = {key for key in wanted - tied if not NEW_WEIGHTS.search(key)}
            if own <= missing:  # all of it
                missing -= wanted
                if not (new_head or self._has_new_head):
                    raise ValueError(f"{checkpoint} has no {head}; new_head=True begins a new one")
        unexpected = {
            key
            for key in info["unexpected_keys"]
            if not _UNUSED.search(key)
            and not key.startswith(("cls.", "classifier.", "qa_outputs."))
        }
        if missing or unexpected:
            raise ValueError(
                f"{checkpoint} does not fit a BERT of its configuration: "
                + "; ".join(
                    f"{len(keys)} weights {what}, such as {min(keys)}"
                    for keys, what in (
                        (missing, "are missing or of another size"),
                        (unexpected, "are unknown"),
                    )
                    if keys
                )
            )

    _heads: ClassVar[dict[str, str]] = {}  # what a checkpoint may lack, by the start of its keys
    _has_new_head = False  # whether the head is one that no pretrained BERT has

    def keep_tokens(self, tokens: Sequence[int]) -> None:
        """Makes the vocabulary smaller, and leaves the scores of what stays as they are.

        Args:
            tokens: Numbers of the tokens that stay, in their new order.

        Raises:
            ValueError: If one is not in the vocabulary or named twice, or if one that the config
                names, such as padding, is not among them.
        """
        tokens = [int(token) for token in tokens]
        if len({*tokens}) < len(tokens) or not all(
            0 <= token < self.config.vocab_size for token in tokens
        ):
            raise ValueError(
                f"keep_tokens must be different numbers below {self.config.vocab_size}"
            )
        place = {token: index for index, token in enumerate(tokens)}
        configs: list[Any] = [self.config]
        if getattr(self, "generation_config", None) is not None:
            configs.append(self.generation_config)
        new: list[tuple[Any, str, Any]] = []
        for config in configs:
            for name in ("pad_token_id", "bos_token_id", "eos_token_id", "suppress_tokens"):
                value = getattr(config, name, None)
                wanted = value if isinstance(value, list) else [] if value is None else [value]
                if name == "suppress_tokens":
                    wanted = [token for token in wanted if token in place]
                for token in wanted:
                    if token not in place:
                        raise ValueError(
                            f"keep_tokens must have token {token}, which is the {name}"
                        )
                moved = [place[token] for token in wanted]
                if value is not None:
                    new.append((config, name, moved if isinstance(value, list) else moved[0]))
        for config, name, value in new:
            setattr(config, name, value)

        with torch.no_grad():
            rows = torch.tensor(tokens, device=self.device)
            words: Any = self.get_input_embeddings()
            words.weight = nn.Parameter(words.weight[rows].clone())
            words.num_embeddings = len(tokens)
            words.padding_idx = self.config.pad_token_id
            if (decoder := self.get_output_embeddings()) is not None:
                head: Any = self.cls.predictions
                head.bias = nn.Parameter(head.bias[rows].clone())
                if not self.config.tie_word_embeddings:  # where they are tied, see below
                    decoder.weight = nn.Parameter(decoder.weight[rows].clone())
                    decoder.bias = nn.Parameter(decoder.bias[rows].clone())
                decoder.out_features = len(tokens)
        self.config.vocab_size = len(tokens)
        self.tie_weights()


_SPECIAL = {"pad_token_id": "pad", "bos_token_id": "cls", "eos_token_id": "sep"}
"""The special tokens that the config names, and what BERT's tokenizers call them."""


def _special_tokens(
    checkpoint: str, vocab_size: int, options: dict[str, Any]
) -> tuple[dict[str, int], list[int] | None]:
    """What begins, ends and pads a text, and what no text has, if the tokenizer is there to say."""
    allowed = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
    options = {key: value for key, value in options.items() if key in allowed}
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, **options)
    except (OSError, ValueError):
        return {}, None
    ids = {name: getattr(tokenizer, f"{token}_token_id") for name, token in _SPECIAL.items()}
    # Where there are no files of a tokenizer, transformers makes one up that knows five tokens.
    if len(tokenizer) <= 5 or len(tokenizer) > vocab_size or None in ids.values():
        return {}, None
    return ids, unwanted_tokens(tokenizer)


def unwanted_tokens(tokenizer: Any) -> list[int]:
    """What no text has: the special tokens but for the one that ends it."""
    return sorted({*tokenizer.all_special_ids} - {tokenizer.sep_token_id})


class GuidedCache(DynamicCache):
    """Keys and values of twice the batch: the texts, and the same without their condition.

    Beam search moves rows; their counterparts move along.
    """

    def reorder_cache(self, beam_idx: Any) -> None:
        """Takes the named rows of both halves."""
        half = self.layers[0].keys.shape[0] // 2
        both: Any = torch.cat([beam_idx, beam_idx + half])
        super().reorder_cache(both)


class ConditionalBertModel(ConditionalBertPreTrainedModel, BertModel):
    """BERT with conditional LayerNorms, without a head."""

    _heads = {"pooler.": "pooler"}  # noqa: RUF012 - as in the parent

    def __init__(self, config: ConditionalBertConfig, add_pooling_layer: bool = True):
        super().__init__(config, add_pooling_layer)  # a plain BERT, two parts of which are replaced
        self.embeddings = ConditionalBertEmbeddings(config)
        self.encoder = ConditionalBertEncoder(config)
        if config.num_classes:
            self.class_embeddings = ClassEmbedding(config.num_classes, config.condition_size)
        self.post_init()

    def condition(
        self,
        class_labels: Tensor | None = None,
        condition_embeds: Tensor | None = None,
        *,
        batch_size: int,
    ) -> Tensor:
        """The condition of each text.

        Args:
            class_labels: (B,), the classes' numbers.
            condition_embeds: (B, C) or (B, T, C), in the place of classes.
            batch_size: B.

        Returns:
            (B, C) or (B, T, C). While training, `condition_dropout` of the rows are zero.

        Raises:
            ValueError: If both are given, or neither, or if one does not fit.
        """
        if (class_labels is None) == (condition_embeds is None):
            given = "got both" if class_labels is not None else "got neither"
            names = self.config.class_names
            known = f" (the classes are {', '.join(names[:10])})" if names else ""
            raise ValueError(
                f"a conditional BERT needs either class_labels or condition_embeds{known}, {given}"
            )
        if class_labels is not None:
            if not self.config.num_classes:
                raise ValueError(
                    "the model has no classes (num_classes is 0): give condition_embeds"
                )
            if class_labels.shape != (batch_size,) or class_labels.is_floating_point():
                raise ValueError(
                    f"class_labels must be {batch_size} whole numbers, one for each text, got "
                    f"{class_labels.dtype} of shape {tuple(class_labels.shape)}"
                )
            if not torch.compiler.is_compiling() and class_labels.device.type == "cpu":
                self.config.class_ids(class_labels)
            condition_embeds = self.class_embeddings(class_labels)
        condition: Any = condition_embeds
        check_condition(condition, self.config.condition_size, batch_size)
        if self.training and self.config.condition_dropout:
            is_kept = torch.rand(batch_size, device=condition.device) >= (
                self.config.condition_dropout
            )
            condition = condition * is_kept.view(-1, *[1] * (condition.dim() - 1))
        return condition

    @property
    def num_sites(self) -> int:
        """How many conditional LayerNorms there are."""
        return 1 + 2 * self.config.num_hidden_layers

    def layer_norms(self) -> list[ConditionalLayerNorm]:
        """The conditional LayerNorms, in the order in which a text passes them."""
        norms: list[Any] = [self.embeddings.LayerNorm]
        for layer in self.encoder.layer:
            norms += [layer.attention.output.LayerNorm, layer.output.LayerNorm]
        return norms

    def modulations(self, condition: Tensor) -> Tensor:
        """Gain and bias of every LayerNorm under a condition.

        They do not depend on the text, so that generation needs them once.

        Args:
            condition: (B, C) or (B, T, C).

        Returns:
            (B, S, 1, 2, D) or (B, S, T, 2, D), for S LayerNorms.
        """
        # Called as a module, so that what accelerate hooks to it happens.
        found = [norm(None, condition).to(condition.device) for norm in self.layer_norms()]
        return torch.stack(found, dim=1)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        class_labels: Tensor | None = None,
        condition_embeds: Tensor | None = None,
        attention_pattern: str | None = None,
        modulations: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Hidden states of texts under their conditions.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 0 where there is only padding.
            token_type_ids: (B, T), the segments.
            position_ids: (B, T).
            inputs_embeds: (B, T, D), in the place of `input_ids`.
            class_labels: (B,), the classes.
            condition_embeds: (B, C) or (B, T, C), in the place of classes.
            attention_pattern: As in the config, whose value is the default.
            modulations: What `modulations` returns, or what `condition` does, in the place of
                classes and condition.
            past_key_values: Keys and values of the tokens to the left.
            use_cache: Whether to return them.
            kwargs: Those that transformers' BERT takes.

        Raises:
            ValueError: If something does not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        text: Any = input_ids if input_ids is not None else inputs_embeds
        batch_size, length = text.shape[:2]
        pattern = check_pattern(attention_pattern or self.config.attention_pattern)
        use_cache = bool(use_cache) and pattern != "bidirectional"
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past_length: Any = 0 if past_key_values is None else past_key_values.get_seq_length()
        limit = self.config.max_position_embeddings
        if position_ids is None and isinstance(past_length, int) and past_length + length > limit:
            raise ValueError(
                f"the model has {limit} positions, too few for {past_length + length} tokens"
            )
        if modulations is not None:
            conditions = check_modulations(
                modulations,
                self.config.condition_size,
                self.num_sites,
                batch_size,
                class_labels,
                condition_embeds,
            )
        else:
            conditions = self.condition(class_labels, condition_embeds, batch_size=batch_size)
        # (B, C), (B, T, C) or (B, S, 1 | T, 2, D)
        num_rows = {2: 1, 3: conditions.shape[1]}.get(conditions.dim()) or conditions.shape[2]
        if num_rows not in (1, length):
            raise ValueError(
                f"{length} tokens need {length} rows of condition each, got {num_rows}"
            )

        hidden_states = self.embeddings(
            input_ids,
            token_type_ids,
            position_ids,
            inputs_embeds,
            past_length,
            at_site(conditions, 0),
        )
        mask = self.attention_mask(
            pattern, hidden_states, attention_mask, token_type_ids, past_key_values
        )
        hidden_states = self.encoder(
            hidden_states,
            at_site(conditions, slice(1, None)),
            attention_mask=mask,
            past_key_values=past_key_values,
            is_causal=pattern != "bidirectional",
            **kwargs,
        )
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden_states,
            pooler_output=None if self.pooler is None else self.pooler(hidden_states),
            past_key_values=past_key_values if use_cache else None,
        )

    def attention_mask(
        self,
        pattern: str,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        past_key_values: Cache | None,
    ) -> Any:
        """What the attention of the config takes as its mask, for a pattern.

        Raises:
            ValueError: If it cannot have the pattern.
        """
        common = {
            "config": self.config,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
        }
        if pattern == "bidirectional":
            if past_key_values is not None:
                raise ValueError(
                    "bidirectional attention has no past: past_key_values must be None"
                )
            return create_bidirectional_mask(**common)
        blocks = None
        if pattern == "prefix" and not (attention_mask is not None and attention_mask.dim() == 4):
            if "flash" in (self.config._attn_implementation or ""):
                raise ValueError("flash attention has no prefix pattern: use sdpa, flex or eager")
            if token_type_ids is None:
                token_type_ids = torch.zeros(
                    inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device
                )
            # i sees j where a_j <= a_i, a being the running sum of the segments (Su, 2019,
            # kexue.fm/archives/6933). Equal sums are a block that sees itself.
            blocks = token_type_ids.cumsum(-1)
            past_length = 0 if past_key_values is None else int(past_key_values.get_seq_length())
            blocks = F.pad(blocks, (past_length, 0), value=-1)
        return create_causal_mask(
            **common, past_key_values=past_key_values, block_sequence_ids=blocks
        )


class ConditionalBertLMHeadModel(ConditionalBertPreTrainedModel, BertLMHeadModel):
    """A language model under a condition: text from a class, an image or any vector.

        names = ["neg", "pos"]
        model = ConditionalBertLMHeadModel.from_bert("bert-base-chinese", class_names=names)
        model.generate(class_labels=torch.tensor([1, 1, 0]), max_new_tokens=64, do_sample=True)

    Left to right by default; the attention patterns "prefix" (text to text) and "bidirectional"
    (masked words) are up to the config and to each call.
    """

    _heads = {"cls.predictions.": "language model head"}  # noqa: RUF012 - as in the parent

    def __init__(self, config: ConditionalBertConfig):
        super().__init__(config)  # a plain BERT, both parts of which are replaced
        if config.attention_pattern != "bidirectional":
            self.loss_type = "ForCausalLM"  # by which the Trainer counts the tokens
        self.bert = ConditionalBertModel(config, add_pooling_layer=False)
        self.cls = ConditionalBertOnlyMLMHead(config)
        self.post_init()

    def modulations(
        self,
        class_labels: Tensor | None = None,
        condition_embeds: Tensor | None = None,
        *,
        batch_size: int,
    ) -> Tensor:
        """Gain and bias of every LayerNorm, the head's last: (B, S, 1 | T, 2, D)."""
        condition = self.bert.condition(class_labels, condition_embeds, batch_size=batch_size)
        return self._modulations(condition)

    def _modulations(self, condition: Tensor) -> Tensor:
        head = self.cls.predictions.transform.LayerNorm(None, condition).to(condition.device)
        return torch.cat([self.bert.modulations(condition), head[:, None]], dim=1)

    def _null_modulations(self, like: Tensor) -> Tensor:
        nothing = like.new_zeros(1, self.config.condition_size)
        return self._modulations(nothing).expand(like.shape)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        class_labels: Tensor | None = None,
        condition_embeds: Tensor | None = None,
        attention_pattern: str | None = None,
        modulations: Tensor | None = None,
        null_modulations: Tensor | None = None,
        guidance: float | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """Scores of the next token, or, in the bidirectional pattern, of each.

        Args:
            input_ids: As for `ConditionalBertModel`, and so are those that are not named here.
            attention_mask: See there.
            token_type_ids: See there.
            position_ids: See there.
            inputs_embeds: See there.
            class_labels: See there.
            condition_embeds: See there.
            attention_pattern: See there.
            modulations: See there; here with those of the head behind.
            null_modulations: Those of no condition, for guidance; found unless given.
            guidance: Scale g of classifier-free guidance (Ho and Salimans, 2022,
                https://arxiv.org/abs/2207.12598): the scores are those without a condition plus g
                times what the condition adds. None and 1 are the plain scores. `generate` calls it
                `guidance_scale`.
            labels: (B, T), tokens; -100 counts for nothing. In the bidirectional pattern each is
                the target of its own place, in the others of the place to the left.
            past_key_values: See there; with guidance a `GuidedCache`.
            use_cache: See there.
            logits_to_keep: Number of places, from the right, whose scores are wanted, or the places
                themselves; 0 for all.
            kwargs: See there.

        Raises:
            ValueError: If something does not fit.
        """
        text: Any = input_ids if input_ids is not None else inputs_embeds
        if text is None:
            raise ValueError("give either input_ids or inputs_embeds")
        is_guided = guidance is not None and guidance != 1
        if modulations is None:
            conditions = self.bert.condition(class_labels, condition_embeds, batch_size=len(text))
        else:
            conditions = check_modulations(
                modulations,
                self.config.condition_size,
                self.bert.num_sites + 1,
                len(text),
                class_labels,
                condition_embeds,
            )
        pattern = check_pattern(attention_pattern or self.config.attention_pattern)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        use_cache = use_cache and labels is None and pattern != "bidirectional"
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if is_guided:
            if use_cache and past_key_values is None:
                past_key_values = GuidedCache(config=self.config)
            if past_key_values is not None and not isinstance(past_key_values, GuidedCache):
                raise ValueError("guidance needs a GuidedCache as past_key_values")
            # In one batch, so that both branches see the whole prefix and share every step.
            inputs = {
                name: value if value is None or len(value) != len(text) else torch.cat([value] * 2)
                for name, value in inputs.items()
            }
            if conditions.dim() < 5:
                without = torch.zeros_like(conditions)
            elif null_modulations is None:
                without = self._null_modulations(conditions)
            else:
                without = null_modulations
            conditions = torch.cat([conditions, without])

        outputs = self.bert(
            **inputs,
            modulations=at_site(conditions, slice(None, -1)),
            attention_pattern=pattern,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        head = at_site(conditions, -1)  # (B, T | 1, 2, D), or the condition (B, C) or (B, T, C)
        head = head[:, keep] if head.dim() > 2 and head.shape[1] > 1 else head
        logits = self.cls(outputs.last_hidden_state[:, keep], head)  # (B, T, V)
        hidden_states, attentions = outputs.hidden_states, outputs.attentions
        if is_guided:
            logits, without = logits.chunk(2)
            hidden_states, attentions = (
                found and tuple(each.chunk(2)[0] for each in found)
                for found in (hidden_states, attentions)
            )
            logits = torch.lerp(without, logits, float(guidance))  # pyright: ignore[reportArgumentType]

        loss = None
        if labels is not None:
            function = ForMaskedLMLoss if pattern == "bidirectional" else ForCausalLMLoss
            loss = function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=hidden_states,
            attentions=attentions,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        input_ids: Tensor | None = None,
        class_labels: Tensor | Sequence[int | str] | None = None,
        condition_embeds: Tensor | None = None,
        guidance_scale: float | None = None,
        attention_pattern: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generates text under conditions.

        Args:
            inputs: (B, T), what the texts begin with, or, in the prefix pattern, what they answer
                to; by default the token that begins a text, for each condition.
            generation_config: As for transformers' `generate`.
            input_ids: The same as `inputs`.
            class_labels: (B,), the classes; or their names or numbers.
            condition_embeds: (B, C), in the place of classes. Between two conditions lie others:
                `torch.lerp(a, b, weight)` of rows of `bert.class_embeddings.weight`.
            guidance_scale: Of classifier-free guidance over the condition, for a model that was
                trained with `condition_dropout`. 1 is off.
            attention_pattern: As in the config, whose value is the default.
            kwargs: Those of transformers' `generate`.

        Raises:
            ValueError: If something does not fit, or if the model has too few positions.
        """
        inputs = input_ids if inputs is None else inputs
        if generation_config is not None:
            kwargs["generation_config"] = generation_config
        # Where the words are looked up: of weights that come when they are wanted, accelerate's
        # hook says where to.
        hook = getattr(self.get_input_embeddings(), "_hf_hook", None)
        home = getattr(hook, "execution_device", None) or self.device
        # Looked at here once, wherever they are, since a device would die of a wrong one.
        if class_labels is not None:
            is_tensor = isinstance(class_labels, Tensor)
            # Of a tensor of another kind, or for a model without classes, `condition` says it all.
            if not is_tensor or (self.config.num_classes and not class_labels.is_floating_point()):
                numbers = self.config.class_ids(class_labels)
                class_labels = class_labels if is_tensor else numbers
            class_labels = class_labels.to(home)  # pyright: ignore
        if condition_embeds is not None:
            condition_embeds = condition_embeds.to(home)
        embeds = kwargs.get("inputs_embeds")
        condition: Any = class_labels if class_labels is not None else condition_embeds

        def setting(name: str) -> Any:
            """The call's own, that of the configuration given to it, or the model's."""
            given = kwargs.get(name, getattr(kwargs.get("generation_config"), name, None))
            is_given = name in kwargs or given is not None
            return given if is_given else getattr(self.generation_config, name, None)

        if inputs is None and embeds is None:
            begin = setting("bos_token_id")
            if begin is None or condition is None:
                missing = "input_ids" if begin is None else "class_labels or condition_embeds"
                raise ValueError(f"there is nothing to begin with: give {missing}")
            inputs = torch.full((len(condition), 1), begin, device=home)
            kwargs.setdefault("attention_mask", torch.ones_like(inputs))
        text: Any = inputs if inputs is not None else embeds
        if condition is not None and condition is condition_embeds and condition.dim() != 2:
            raise ValueError(
                f"generate needs one condition for each text, (B, C), got {tuple(condition.shape)}"
            )
        pattern = check_pattern(attention_pattern or self.config.attention_pattern)
        if pattern == "bidirectional":
            raise ValueError(
                "text comes from left to right: give attention_pattern 'causal' or 'prefix'"
            )
        self._check_length(text.shape[1], setting("max_new_tokens"), setting("max_length"))
        if pattern == "prefix" and kwargs.get("token_type_ids") is None:
            kwargs["token_type_ids"] = torch.zeros(
                text.shape[:2], dtype=torch.long, device=text.device
            )

        guidance = setting("guidance_scale") if guidance_scale is None else guidance_scale
        if guidance is not None:  # transformers' own would drop the prefix: it is told of none
            kwargs["guidance_scale"] = 1.0
        if guidance is not None and guidance != 1:
            if not isinstance(guidance, int | float) or not math.isfinite(guidance):
                raise ValueError(f"guidance_scale must be a number, got {guidance!r}")
            if setting("cache_implementation") not in (None, "dynamic", "dynamic_full"):
                raise ValueError("guidance has a cache of its own: leave cache_implementation out")
            if not self.config.condition_dropout:
                logger.warning_once(
                    "guidance for a model that was trained without condition_dropout: it has not "
                    "learned what a text without a condition is"
                )
            kwargs |= {"guidance": float(guidance), "cache_implementation": None}
            if setting("use_cache") is not False and kwargs.get("past_key_values") is None:
                kwargs["past_key_values"] = GuidedCache(config=self.config)
        in_training = [module for module in self.modules() if module.training]
        self.eval()  # as transformers does not: no dropout, and none of the condition
        try:
            modulations = self.modulations(class_labels, condition_embeds, batch_size=len(text))
            if "guidance" in kwargs:
                kwargs["null_modulations"] = self._null_modulations(modulations)
            return super().generate(
                inputs,
                modulations=modulations,
                attention_pattern=pattern,
                **kwargs,
            )
        finally:
            for module in in_training:
                module.training = True

    def _check_length(self, length: int, num_new: int | None, total: int | None) -> None:
        if num_new is None:
            num_new = 1 if total is None else total - length
        num_new = max(num_new, 1)
        # The last token is put out and not read.
        if length + num_new - 1 > self.config.max_position_embeddings:
            raise ValueError(
                f"the model has {self.config.max_position_embeddings} positions, too few for "
                f"{length} tokens and {num_new} new ones"
            )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_pattern: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The inputs of the next step."""
        is_first = kwargs.get("is_first_iteration", False)
        if (
            attention_pattern == "prefix"
            and is_first
            and past_key_values is not None
            and getattr(past_key_values, "is_compileable", False)
        ):
            # transformers would prepare a causal mask for such a cache.
            length = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
            attention_mask = self.bert.attention_mask(
                attention_pattern,
                torch.empty(len(input_ids), length, 0, dtype=self.dtype, device=input_ids.device),
                attention_mask,
                token_type_ids,
                past_key_values,
            )
        return super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            attention_pattern=attention_pattern,
            **kwargs,
        )

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        old = model_kwargs.get("token_type_ids")
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        if old is not None and model_kwargs.get("attention_pattern") == "prefix":
            # transformers repeats the last segment; what is generated belongs to the second.
            new = model_kwargs["token_type_ids"][:, old.shape[1] :]
            model_kwargs["token_type_ids"] = torch.cat([old, torch.ones_like(new)], dim=1)
        return model_kwargs


class ConditionalBertForSequenceClassification(
    ConditionalBertPreTrainedModel, BertForSequenceClassification
):
    """A classifier of texts with side information: what is known beside the text is the condition.

    Su (2019), kexue.fm/archives/7124, names this as the other use. Attention is bidirectional
    unless a call says otherwise. `num_labels` and `id2label` are about what is predicted,
    `num_classes` and `class_names` about the condition.
    """

    _heads = {"classifier.": "classifier", "bert.pooler.": "pooler"}  # noqa: RUF012
    _has_new_head = True

    def __init__(self, config: ConditionalBertConfig):
        super().__init__(config)
        self.bert = ConditionalBertModel(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        class_labels: Tensor | None = None,
        condition_embeds: Tensor | None = None,
        attention_pattern: str | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Scores of the labels, from the first token.

        Args:
            input_ids: As for `ConditionalBertModel`, and so are those that are not named here.
            attention_mask: See there.
            token_type_ids: See there.
            position_ids: See there.
            inputs_embeds: See there.
            class_labels: See there.
            condition_embeds: See there.
            attention_pattern: See there; "bidirectional" by default.
            labels: What is to be predicted: (B,) numbers of labels; (B,) or (B, N) floats for a
                regression or several labels at once, as for transformers' classifiers.
            kwargs: See there.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            class_labels=class_labels,
            condition_embeds=condition_embeds,
            attention_pattern=attention_pattern or "bidirectional",
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))  # (B, N)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
