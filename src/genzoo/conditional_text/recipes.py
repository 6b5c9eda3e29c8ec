"""The text models that are published: one function for each checkpoint."""

from functools import partial
from typing import Any

from transformers import BertConfig

from .corpus import CI, OTHER_SHI, SHI, couplets, plain, poems, reviews, sentences
from .evaluation import FormJudge, NeuralJudge, TfidfJudge
from .evaluation import evaluate_text as evaluate  # noqa: F401 - for the command line
from .modeling_conditional_bert import ConditionalBertConfig
from .training import TextRecipe
from .training import train_text as train  # noqa: F401 - for the command line

# The data decide about the vocabulary.
_OPEN: dict[str, Any] = {"vocab_size": 2}

_MINI: dict[str, Any] = _OPEN | {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "max_position_embeddings": 128,
}


def bert_zh_mini() -> TextRecipe:
    """A small masked BERT on Chinese reviews and poems, for two CPU cores."""
    return TextRecipe(
        name="bert-zh-mini",
        # So little is seen of so much text that nothing is learned by heart: no dropout.
        model=BertConfig(**_MINI, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        data=["chinese_reviews", "chinese_sentiment", "chinese_poetry", "chinese_poetry"],
        subsets=[None, None, "tang_shi", "song_ci"],
        rows=plain,
        max_tokens=6_500,
        num_steps=16_000,
        batch_size=32,
        learning_rate=1e-3,
        save_every=1_000,
    )


def conditional_bert_zh_sentiment() -> TextRecipe:
    """Chinese reviews, good or bad, as in Su (2019), for two CPU cores."""
    return TextRecipe(
        name="conditional-bert-zh-sentiment",
        model=ConditionalBertConfig(
            **_OPEN,
            num_classes=2,
            class_names=["neg", "pos"],
            condition_size=32,
            condition_dropout=0.1,
        ),
        data=["chinese_sentiment"],
        rows=reviews,
        judges=(TfidfJudge, NeuralJudge),
        base="bert-zh-mini",
        # On the validation split .95 is too wild for one judge, and .9 less varied than people are.
        top_p=0.93,
        max_tokens=3_500,
        min_count=3,
        num_steps=5_000,
        batch_size=32,
        learning_rate=5e-4,
        condition_learning_rate=2e-3,
    )


def conditional_bert_poetry() -> TextRecipe:
    """Chinese poems of twenty forms, the form their condition, for two CPU cores."""
    return TextRecipe(
        name="conditional-bert-poetry",
        model=ConditionalBertConfig(
            **_OPEN,
            num_classes=20,
            class_names=[*SHI.values(), *CI],
            condition_size=32,
            condition_dropout=0.1,
        ),
        data=["chinese_poetry", "chinese_poetry"],
        subsets=["tang_shi", "song_ci"],
        rows=poems,
        judges=(FormJudge,),
        base="bert-zh-mini",
        # Of poems of the training split's forms, .95 leaves more without the lines of theirs; these
        # are still nearly as varied as people's.
        top_p=0.65,
        max_tokens=4_500,
        num_steps=6_000,
        batch_size=32,
        learning_rate=5e-4,
        condition_learning_rate=2e-3,
    )


def unilm_bert_couplets() -> TextRecipe:
    """The second line of a couplet of a Tang poem from its first, for two CPU cores."""
    return TextRecipe(
        name="unilm-bert-couplets",
        model=ConditionalBertConfig(
            **_OPEN,
            attention_pattern="prefix",
            num_classes=5,
            class_names=[*SHI.values(), OTHER_SHI],
            condition_size=32,
        ),
        data=["chinese_poetry"],
        subsets=["tang_shi"],
        rows=couplets,
        base="bert-zh-mini",
        max_tokens=4_500,
        max_length=24,
        num_steps=4_000,
        batch_size=128,
        learning_rate=1e-3,
    )


def conditional_bert_rotten_tomatoes() -> TextRecipe:
    """English opinions of films, from a distilled BERT, for two CPU cores."""
    return TextRecipe(
        name="conditional-bert-rotten-tomatoes",
        model=ConditionalBertConfig(
            **_OPEN,
            num_classes=2,
            class_names=["neg", "pos"],
            condition_size=64,
            condition_dropout=0.1,
        ),
        data=["cornell-movie-review-data/rotten_tomatoes"],
        rows=sentences,
        judges=(partial(TfidfJudge, "word"), partial(NeuralJudge, "word")),
        base="sentence-transformers/all-MiniLM-L6-v2",
        max_tokens=8_000,
        min_count=2,
        max_length=64,
        num_steps=1_500,
        batch_size=32,
        learning_rate=2e-4,
        condition_learning_rate=1e-3,
    )
