"""The embeddings that are published: one function for each checkpoint."""

from .evaluation import evaluate_jose as evaluate  # noqa: F401 - for the command line
from .modeling_jose import JoseConfig
from .tokenization import ENGLISH_WORDS, segment_chinese
from .training import JoseRecipe
from .training import train_recipe as train  # noqa: F401 - for the command line


def jose_20news() -> JoseRecipe:
    """JoSE on 20 Newsgroups, words and all 18,846 posts: minutes on two CPU cores."""
    return JoseRecipe(
        name="jose-20news",
        model=JoseConfig(window_size=10),
        data=["newsgroups20"],
        split="train+test",
        lowercase=True,
        word_pattern=ENGLISH_WORDS,
        num_epochs=20,
        max_words=8_000,
        has_documents=True,
    )


def jose_english() -> JoseRecipe:
    """JoSE on small English corpora of many kinds and film reviews: minutes on two CPU cores."""
    return JoseRecipe(
        name="jose-english",
        # Similar words were closer with the factor 1 - cos in the runs that this was picked from.
        model=JoseConfig(window_size=10, step_factors=["calibrated"] * 3),
        data=["english_corpora", "stanfordnlp/imdb"],
        split="train",
        lowercase=True,
        word_pattern=ENGLISH_WORDS,
        num_epochs=6,
        max_words=10_000,
    )


def jose_zh_reviews() -> JoseRecipe:
    """JoSE on 73,000 Chinese reviews, cut into words by jieba: minutes on two CPU cores."""
    return JoseRecipe(
        name="jose-zh-reviews",
        model=JoseConfig(window_size=10),
        data=["chinese_reviews"],
        split="train",
        segmenter=segment_chinese,
        num_epochs=10,
        max_words=10_000,
    )
