"""Tokenizers of the room: BERT's WordPiece, made from a corpus or cut down to what it uses."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}

# A blank beside one of these is the tokenizer's and not the text's.
_CJK = r"[\x{2e80}-\x{303f}\x{3400}-\x{9fff}\x{f900}-\x{faff}\x{ff00}-\x{ffef}\x{20000}-\x{323af}]"


def build_tokenizer(
    texts: Iterable[str],
    *,
    max_tokens: int,
    min_count: int = 2,
    lowercase: bool = True,
    adds_end: bool = False,
) -> PreTrainedTokenizerFast:
    """Makes a WordPiece tokenizer whose tokens are the characters and the commonest words.

    Chinese characters are words of their own, as in BERT. A word that is not common enough is
    written in the characters that it has, of which all but the first begin with "##".

    Args:
        texts: The corpus.
        max_tokens: Size V of the vocabulary, five special tokens included; the commonest stay.
        min_count: What occurs less often is no token.
        lowercase: Whether capitals become small letters, and letters lose their accents.
        adds_end: Whether a text also gets the token that ends it (see `with_ends`).

    Raises:
        ValueError: If the texts hold nothing, or there is no room for a single token.
    """
    before = _tokenizer({}, lowercase=lowercase)
    words: Counter[str] = Counter()
    for text in texts:
        normal = before.normalizer.normalize_str(text)
        words.update(word for word, _ in before.pre_tokenizer.pre_tokenize_str(normal))
    counts = Counter(words)
    for word, count in words.items():
        if len(word) > 1:
            counts.update({piece: count for piece in {word[0], *(f"##{c}" for c in word[1:])}})
    common = [token for token, count in counts.items() if count >= min_count]
    common.sort(key=lambda token: (-counts[token], token))
    room = max_tokens - len(SPECIAL_TOKENS)
    if room < 1 or not common:
        raise ValueError(
            f"a vocabulary of {max_tokens} tokens that occur {min_count} times has no token of "
            f"{sum(words.values())} words"
        )
    tokens = [*SPECIAL_TOKENS.values(), *sorted(common[:room])]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return _wrap(_tokenizer(vocabulary, lowercase=lowercase), adds_end)


def tokens_in(
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[str],
    *,
    max_tokens: int | None = None,
    min_count: int = 1,
) -> list[int]:
    """The tokens that a corpus uses: what `keep_tokens` takes, and `trim_tokenizer`.

    Args:
        tokenizer: BERT's, or one like it.
        texts: The corpus.
        max_tokens: The commonest so many, special tokens included.
        min_count: What occurs less often is left out.

    Returns:
        Numbers of tokens in ascending order; the special tokens are always among them.
    """
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(
            tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        )
    special = [*dict.fromkeys(tokenizer.all_special_ids)]
    common = [
        token for token, count in counts.items() if count >= min_count and token not in special
    ]
    common.sort(key=lambda token: (-counts[token], token))
    room = None if max_tokens is None else max(max_tokens - len(special), 0)
    return sorted([*special, *common[:room]])


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerFast, keep_tokens: Sequence[int], *, adds_end: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer that knows only some of the tokens, in their new order.

    Args:
        tokenizer: BERT's, or one like it.
        keep_tokens: Numbers of the tokens that stay (see `tokens_in`).
        adds_end: As for `build_tokenizer`.

    Raises:
        ValueError: If it is no WordPiece tokenizer, if a special token is not kept, or if a number
            is not in the vocabulary or named twice.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if content["model"]["type"] != "WordPiece":
        raise ValueError(f"a WordPiece tokenizer is wanted, got {content['model']['type']}")
    known = {index: token for token, index in tokenizer.get_vocab().items()}
    if len({*keep_tokens}) < len(keep_tokens) or not all(token in known for token in keep_tokens):
        raise ValueError("keep_tokens must be different numbers of the vocabulary")
    kept = [known[token] for token in keep_tokens]
    special = {name: getattr(tokenizer, name) for name in SPECIAL_TOKENS}
    if special["mask_token"] is None:  # a vocabulary that was cut down for writing may lack it
        del special["mask_token"]
    for name, token in special.items():
        if token not in kept:
            raise ValueError(f"keep_tokens must have {token}, the {name}")
    vocabulary = {token: index for index, token in enumerate(kept)}
    content["model"]["vocab"] = vocabulary
    content["added_tokens"] = [
        token | {"id": vocabulary[token["content"]]}
        for token in content["added_tokens"]
        if token["content"] in vocabulary
    ]
    smaller: Any = Tokenizer.from_str(json.dumps(content))  # texts are cut as before
    smaller.decoder = _decoder()
    return _wrap(smaller, adds_end, special)


def with_ends(tokenizer: PreTrainedTokenizerFast, *, adds_end: bool) -> PreTrainedTokenizerFast:
    """The same tokenizer, with or without the token that ends a text.

    A text that a language model shall go on with begins with [CLS] and does not end; BERT's
    tokenizers would put [SEP] behind it. In a pair, and for all other uses, texts end.
    """
    return trim_tokenizer(tokenizer, range(len(tokenizer)), adds_end=adds_end)


def _tokenizer(vocabulary: dict[str, int], *, lowercase: bool) -> Any:
    tokenizer: Any = Tokenizer(WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = _decoder()
    return tokenizer


def _decoder() -> Any:
    """BERT's, without blanks beside Chinese characters."""
    return decoders.Sequence(
        [
            decoders.WordPiece(cleanup=True),
            decoders.Fuse(),
            decoders.Replace(Regex(rf"(?<={_CJK}) | (?={_CJK})"), ""),
        ]
    )


def _wrap(
    tokenizer: Any, adds_end: bool, special: dict[str, str] = SPECIAL_TOKENS
) -> PreTrainedTokenizerFast:
    begin, end = special["cls_token"], special["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}" if adds_end else f"{begin} $A",
        pair=f"{begin} $A {end} $B:1 {end}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (begin, end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **special,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
