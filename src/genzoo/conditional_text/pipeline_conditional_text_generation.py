"""Text from a class or any vector, as a pipeline of transformers."""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging

logger = logging.get_logger(__name__)

TASK = "conditional-text-generation"

_CHINESE = "[\u2e80-\u303f\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U000323af]"
_BESIDE_CHINESE = re.compile(f"(?<={_CHINESE}) | (?={_CHINESE})")


class ConditionalTextGenerationPipeline(Pipeline):
    """Writes texts of a class, or under any condition.

        generate = genzoo.pipeline("conditional-text-generation")
        generate(label="pos", num_return_sequences=5)  # [{"generated_text": ...}, ...]
        generate(label=["pos", "neg"], prompt="这家酒店")  # a list for each label

    It samples from the tokens that make up 95 % of the probability (top-p) unless told otherwise.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _pipeline_calls_generate = True
    # Without top_k=0, transformers would draw from the 50 likeliest tokens at most.
    _default_generation_config = GenerationConfig(do_sample=True, top_p=0.95, top_k=0)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model.config, "condition_size"):
            raise ValueError(
                f"{self.task} needs a model with a condition, and {type(self.model).__name__} "
                "has none"
            )

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        label: int | str | Sequence[int | str] | None = None,
        prompt: str | Sequence[str] = "",
        *,
        condition: Tensor | None = None,
        num_return_sequences: int = 1,
        seed: int | None = None,
        batch_size: int = 64,
        **kwargs: Any,
    ) -> Any:
        """Generates texts.

        Args:
            label: A class by name or number, or several.
            prompt: What the text begins with, or, for a model of the prefix pattern, what it
                answers to; one, or one for each label.
            condition: (C,) or (B, C), in the place of labels.
            num_return_sequences: How many texts for each label.
            seed: With one, the same call gives the same texts again on the same machine.
            batch_size: How many texts are written at once.
            kwargs: Those of transformers' `generate`, such as `guidance_scale`, `num_beams`,
                `top_p` and `max_new_tokens`; by default the texts of a batch may fill the model's
                positions, as far as the longest prompt leaves room.

        Returns:
            For one label, a list of dicts with the key "generated_text"; for a list of labels,
            prompts or conditions, a list of such lists. The text begins with the prompt, or, in the
            prefix pattern, is the answer alone.

        Raises:
            ValueError: If there is no such label (the message names those there are), or if
                something does not fit.
        """
        labels = self._labels(label)
        if condition is not None:
            condition = torch.as_tensor(condition)
            if condition.dim() not in (1, 2):
                raise ValueError(f"a condition is (C,) or (B, C), got {tuple(condition.shape)}")
        is_one = isinstance(prompt, str) and (
            isinstance(label, Integral | str)
            or (label is None and (condition is None or condition.dim() == 1))
        )
        if label is not None and condition is not None:
            raise ValueError("give either a label or a condition, not both")
        if label is None and condition is None and self.model.config.num_classes:
            names = ", ".join((self.model.config.class_names or ["0", "1", "..."])[:20])
            raise ValueError(f"give a label, one of {names}, or a condition")
        if condition is not None and condition.dim() == 1:
            condition = condition[None]
        if num_return_sequences < 1 or batch_size < 1:
            raise ValueError("num_return_sequences and batch_size must be at least 1")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, Sequence) or not all(isinstance(p, str) for p in prompts):
            raise ValueError(f"a prompt must be a string, or a list of strings, got {prompt!r:.50}")
        prompts = [*prompts]
        given = labels if labels is not None else condition
        num_texts = len(prompts) if given is None else max(len(prompts), len(given))
        if given is not None and not len(given):
            return []
        for name, values in (("prompts", prompts), ("conditions", given)):
            if values is not None and len(values) not in (1, num_texts):
                raise ValueError(f"there are {len(values)} {name} for {num_texts} texts")
        if not num_texts:
            return []
        prompts = prompts * num_texts if len(prompts) == 1 else prompts

        inputs: dict[str, Any] = {"prompts": prompts}
        if labels is not None:
            inputs["class_labels"] = labels.expand(num_texts) if len(labels) == 1 else labels
        elif condition is not None:
            inputs["condition_embeds"] = condition.expand(num_texts, -1)
        rows = max(batch_size // num_return_sequences, 1)
        texts: list[str] = []
        with torch.random.fork_rng() if seed is not None else nullcontext():
            if seed is not None:
                torch.manual_seed(seed)
            for first in range(0, num_texts, rows):
                part = {name: values[first : first + rows] for name, values in inputs.items()}
                written: Any = super().__call__(
                    part, num_return_sequences=num_return_sequences, **kwargs
                )
                texts += written
        groups = [
            [{"generated_text": text} for text in texts[first : first + num_return_sequences]]
            for first in range(0, len(texts), num_return_sequences)
        ]
        return groups[0] if is_one else groups

    def interpolate(
        self, start: int | str, end: int | str, num_texts: int = 5, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Generates a text at each of several points between two classes.

        Args:
            start: A class.
            end: Another.
            num_texts: How many points, the two ends included.
            kwargs: As for a call.

        Returns:
            Dicts with the keys "generated_text" and "weight", the share of `end`.

        Raises:
            ValueError: If there are fewer than two texts, or no such class.
        """
        if num_texts < 2:
            raise ValueError(f"between two ends there are at least 2 texts, got {num_texts}")
        labels = self._labels([start, end])
        model: Any = self.model
        ends = model.bert.class_embeddings.weight[labels].detach()
        weights = torch.linspace(0, 1, num_texts, device=ends.device, dtype=ends.dtype)
        condition = torch.lerp(ends[0], ends[1], weights[:, None])  # (B, C)
        groups = self(condition=condition, **kwargs)
        return [
            {"weight": round(weight, 6), **text}
            for weight, group in zip(weights.tolist(), groups, strict=True)
            for text in group
        ]

    def _labels(self, label: Any) -> Any:
        return None if label is None else self.model.config.class_ids(label)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        own = {name: kwargs[name] for name in ("attention_pattern",) if name in kwargs}
        return own, kwargs, own

    def _is_prefix(self, attention_pattern: str | None) -> bool:
        return (attention_pattern or self.model.config.attention_pattern) == "prefix"

    def preprocess(
        self, input_: Any, attention_pattern: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Prompts and conditions to tensors, padded on the left."""
        tokenizer: Any = self.tokenizer
        is_prefix = self._is_prefix(attention_pattern)
        tokens = tokenizer(input_["prompts"], add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        end = [tokenizer.sep_token_id] if is_prefix else []
        if any(tokenizer.unk_token_id in row for row in tokens):
            logger.warning(
                "the vocabulary does not know all of a prompt: the model reads it as "
                f"{tokenizer.batch_decode(tokens)[:3]}"
            )
        tokens = [[tokenizer.cls_token_id, *row, *end] for row in tokens]
        batch = dict(tokenizer.pad({"input_ids": tokens}, padding_side="left", return_tensors="pt"))
        return batch | dict(input_)

    def _forward(self, input_tensors: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        prompts = input_tensors.pop("prompts")
        length = input_tensors["input_ids"].shape[1]
        room = self.model.config.max_position_embeddings - length + 1
        if room < 1:
            raise ValueError(
                f"the prompt has {length} tokens, and the model "
                f"{self.model.config.max_position_embeddings} positions"
            )
        usual = self.model.generation_config
        has_length = usual.max_new_tokens is not None or usual.max_length is not None
        if not has_length and "max_length" not in kwargs and "generation_config" not in kwargs:
            kwargs.setdefault("max_new_tokens", room)
        model: Any = self.model
        tokens = model.generate(**input_tensors, **self._prepare_generate_kwargs(kwargs))
        prompts = [prompt for prompt in prompts for _ in range(len(tokens) // len(prompts))]
        return {"tokens": tokens, "length": length, "prompts": prompts}

    def postprocess(
        self, model_outputs: dict[str, Any], attention_pattern: str | None = None, **kwargs: Any
    ) -> list[str]:
        """Tokens to texts."""
        tokens, length = model_outputs["tokens"], model_outputs["length"]
        if self._is_prefix(attention_pattern):
            return self._texts(tokens[:, length:])
        # The prompt as it was given: what comes of its tokens lacks capitals, blanks and what the
        # vocabulary does not know.
        return [
            prompt + text[len(head) :] if text.startswith(head) else text
            for prompt, head, text in zip(
                model_outputs["prompts"],
                self._texts(tokens[:, :length]),
                self._texts(tokens),
                strict=True,
            )
        ]

    def _texts(self, tokens: Tensor) -> list[str]:
        # BERT's own tokenizers put blanks between Chinese characters.
        return [
            _BESIDE_CHINESE.sub("", text)
            for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)  # pyright: ignore
        ]


if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        TASK,
        pipeline_class=ConditionalTextGenerationPipeline,
        pt_model=AutoModelForCausalLM,
        type="text",
    )
