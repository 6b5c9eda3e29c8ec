"""Text under a condition: a class, or any vector.

| class | article, paper | file | what is new in it |
| --- | --- | --- | --- |
| ConditionalLayerNorm | Su, 2019 (7124) | modeling_conditional_bert.py | LayerNorm and condition |
| ConditionalBertLMHeadModel | Su, 2019 (7124) | modeling_conditional_bert.py | a BERT that writes |
| `attention_pattern` | Su, 2019 (6933); UniLM | modeling_conditional_bert.py | text to text |
| PermutedCollator, ReversedCollator | Su, 2019 (6933) | collation.py | other orders of writing |

Articles are at https://kexue.fm/archives/NUMBER. Importing the room registers its models with the
Auto classes: `AutoModelForCausalLM` finds those that write.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from .modeling_conditional_bert import (
    ConditionalBertConfig,
    ConditionalBertForSequenceClassification,
    ConditionalBertLMHeadModel,
    ConditionalBertModel,
    ConditionalLayerNorm,
)

if TYPE_CHECKING:
    from .collation import (
        CausalCollator,
        MaskedCollator,
        PermutedCollator,
        PrefixCollator,
        ReversedCollator,
        class_names_of,
        encode,
    )
    from .pipeline_conditional_text_generation import ConditionalTextGenerationPipeline
    from .tokenization import build_tokenizer, tokens_in, trim_tokenizer, with_ends
    from .training import ConditionalTextTrainer

AutoConfig.register(ConditionalBertConfig.model_type, ConditionalBertConfig, exist_ok=True)
for _auto_class, _model in (
    (AutoModel, ConditionalBertModel),
    (AutoModelForCausalLM, ConditionalBertLMHeadModel),
    (AutoModelForSequenceClassification, ConditionalBertForSequenceClassification),
):
    _auto_class.register(ConditionalBertConfig, _model, exist_ok=True)

__all__ = [
    "CausalCollator",
    "ConditionalBertConfig",
    "ConditionalBertForSequenceClassification",
    "ConditionalBertLMHeadModel",
    "ConditionalBertModel",
    "ConditionalLayerNorm",
    "ConditionalTextGenerationPipeline",
    "ConditionalTextTrainer",
    "MaskedCollator",
    "PermutedCollator",
    "PrefixCollator",
    "ReversedCollator",
    "build_tokenizer",
    "class_names_of",
    "encode",
    "tokens_in",
    "trim_tokenizer",
    "with_ends",
]

# What needs more than torch and transformers is imported when it is first asked for.
_LAZY = {
    "CausalCollator": ".collation",
    "ConditionalTextGenerationPipeline": ".pipeline_conditional_text_generation",
    "ConditionalTextTrainer": ".training",
    "MaskedCollator": ".collation",
    "PermutedCollator": ".collation",
    "PrefixCollator": ".collation",
    "ReversedCollator": ".collation",
    "build_tokenizer": ".tokenization",
    "class_names_of": ".collation",
    "encode": ".collation",
    "tokens_in": ".tokenization",
    "trim_tokenizer": ".tokenization",
    "with_ends": ".tokenization",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
