"""The tokenizer of a JoSE model: a list of words, and a rule for what a word is."""

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

UNKNOWN = "[UNK]"
"""The word that stands for all that a model does not know. It is word 0, and pads, too."""

ENGLISH_WORDS = r"[a-z][a-z0-9_'-]*[a-z0-9]|[a-z]|[.,!?;]"
"""A `word_pattern`: words and signs of sentences in lower case, as JoSE's authors cut theirs."""

_WORD = r"\S+"


def build_tokenizer(
    words: Iterable[str], *, lowercase: bool = False, word_pattern: str | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer that knows these words and no others.

    Args:
        words: Without `UNKNOWN`; they get the numbers 1, 2, 3, ...
        lowercase: Whether texts are put into lower case first.
        word_pattern: Regular expression of a word; what lies between is left out. Without one,
            words are what spaces separate: Chinese has to be cut into words before.

    Raises:
        ValueError: If a word is there twice or is `UNKNOWN`, or if the pattern is none that
            tokenizers take: they use Oniguruma's.
    """
    vocabulary = {UNKNOWN: 0}
    for word in words:
        if word in vocabulary:
            raise ValueError(f"the word {word!r} is there twice")
        vocabulary[word] = len(vocabulary)
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    # These four are spaces to Python, which splits the texts of the training, and not to Rust.
    steps: list[normalizers.Normalizer] = [normalizers.Replace(Regex(r"[\x1c-\x1f]"), " ")]
    tokenizer.normalizer = normalizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [*steps, normalizers.Lowercase()] if lowercase else steps
    )
    try:
        pattern = Regex(word_pattern or _WORD)
    except Exception as error:  # it has no class of its own
        raise ValueError(f"tokenizers refuse word_pattern {word_pattern!r}: {error}") from error
    tokenizer.pre_tokenizer = pre_tokenizers.Split(  # pyright: ignore[reportAttributeAccessIssue]
        pattern, behavior="removed", invert=True
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=UNKNOWN,
        split_special_tokens=True,  # `UNKNOWN` within a text is a word like others, unknown
        model_max_length=10**9,
    )


def words_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    """The words that a tokenizer finds in a text, known or not."""
    backend = tokenizer.backend_tokenizer
    normalized = backend.normalizer.normalize_str(text)
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)]


def rule_of(tokenizer: PreTrainedTokenizerFast) -> tuple[bool, str | None]:
    """The `lowercase` and `word_pattern` that a tokenizer was built with.

    Raises:
        ValueError: If `build_tokenizer` did not build it.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    try:
        steps = [step["type"] for step in parts["normalizer"]["normalizers"]]
        pattern = parts["pre_tokenizer"]["pattern"]["Regex"]
    except (KeyError, TypeError) as error:
        raise ValueError("the tokenizer is none of build_tokenizer's") from error
    return "Lowercase" in steps, None if pattern == _WORD else pattern


def segment_chinese(text: str) -> str:
    """Puts spaces between the words of a Chinese text, as jieba finds them.

    Raises:
        ModuleNotFoundError: If jieba is not installed; it is in the extra `jose`.
    """
    try:
        import jieba
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Chinese texts are cut into words by jieba: pip install 'genzoo[jose]'"
        ) from error
    return " ".join(jieba.cut(text))
