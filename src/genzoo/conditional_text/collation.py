"""From rows of a table to batches: one collator for each attention pattern.

The patterns are those of Su (2019), https://kexue.fm/archives/6933. What differs between them is
what a token may see, which the model's mask decides, and the order of the tokens, which is decided
here: a permuted language model is a left-to-right one over permuted pairs of token and position.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

IGNORED = -100
"""The label of a place that counts for nothing."""


def class_names_of(table: datasets.Dataset, label: str = "label") -> list[str]:
    """The classes of a table: those that the column names, else its different values in order.

    Raises:
        ValueError: If there is no such column, or only one class.
    """
    _check_column(table, label)
    feature = table.features[label]
    values = [value for value in table.unique(label) if value is not None]
    names = getattr(feature, "names", None) or [str(value) for value in sorted(values)]
    if len(names) < 2:
        raise ValueError(f"the column {label!r} has {len(names)} class, and two are the least")
    return names


def encode(
    table: datasets.Dataset,
    tokenizer: PreTrainedTokenizerFast,
    *,
    class_names: Sequence[str] | None = None,
    text: str = "text",
    target: str | None = None,
    label: str = "label",
    condition: str | None = None,
    max_length: int = 128,
) -> datasets.Dataset:
    """Makes what the collators take of a table with texts.

    A text becomes [CLS] text [SEP]. With a target it becomes [CLS] text [SEP] target [SEP], and the
    target is segment 1.

    Args:
        table: With a column of texts, and, unless nothing conditions them, one of classes or one of
            vectors.
        tokenizer: A BERT's.
        class_names: Of the model, which decide about the classes' numbers; None where there are no
            classes.
        text: The column of texts.
        target: The column of what a text is answered with.
        label: The column of classes, by name or, where the table says what the numbers mean or
            they have no names, by number.
        condition: The column of vectors of C numbers, in the place of classes.
        max_length: Tokens at most; longer texts lose their end, and the last token stays [SEP].

    Returns:
        A table with the columns input_ids and length; token_type_ids if there are targets;
        class_labels or condition_embeds.

    Raises:
        ValueError: If a column is missing, a text is empty, or a class is not among the names; the
            message names the row.
    """
    if condition is not None:
        class_names = None
    for column in (text, target, condition, label if class_names is not None else None):
        if column is not None:
            _check_column(table, column)
    numbers = {name: index for index, name in enumerate(class_names or [])}
    known = getattr(table.features.get(label), "names", None)
    begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    if max_length < 3 or (target is not None and max_length < 5):
        raise ValueError(f"max_length {max_length} has no room for a text")

    def tokens_of(batch: Mapping[str, list], column: str, rows: Sequence[int]) -> list[list[int]]:
        values = batch[column]
        texts = [value if isinstance(value, str) else "" for value in values]
        found = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for row, value, tokens in zip(rows, values, found, strict=True):
            if not tokens:
                raise ValueError(f"row {row} has no {column}: it is {value!r}")
        return found

    def convert(batch: Mapping[str, list], rows: Sequence[int]) -> dict[str, list]:
        columns: dict[str, list] = {"input_ids": []}
        firsts = tokens_of(batch, text, rows)
        if target is None:
            columns["input_ids"] = [[begin, *first[: max_length - 2], end] for first in firsts]
        else:
            columns["token_type_ids"] = []
            for first, second in zip(firsts, tokens_of(batch, target, rows), strict=True):
                second = second[: max_length - 4]
                first = first[: max_length - 3 - len(second)]
                columns["input_ids"].append([begin, *first, end, *second, end])
                columns["token_type_ids"].append([0] * (len(first) + 2) + [1] * (len(second) + 1))
        columns["length"] = [len(tokens) for tokens in columns["input_ids"]]
        if condition is not None:
            columns["condition_embeds"] = batch[condition]
        elif class_names is not None:
            columns["class_labels"] = []
            for row, value in zip(rows, batch[label], strict=True):
                if known is not None and isinstance(value, int) and 0 <= value < len(known):
                    value = known[value]
                name = str(value)
                if value is None or name not in numbers:
                    raise ValueError(
                        f"row {row} is of class {name!r}; known are {', '.join(numbers)}"
                    )
                columns["class_labels"].append(numbers[name])
        return columns

    return table.map(
        convert,
        batched=True,
        with_indices=True,
        remove_columns=table.column_names,
        desc="Tokenizing",
    )


def _check_column(table: datasets.Dataset, column: str) -> None:
    if column not in table.column_names:
        raise ValueError(
            f"the table has no column {column!r}, only {', '.join(table.column_names)}"
        )


class CausalCollator:
    """Batches for a left-to-right language model.

    Args:
        tokenizer: Whose padding is used.

    Attributes:
        attention_pattern: That a model must have to learn from the batches.
    """

    attention_pattern = "causal"

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.pad: Any = tokenizer.pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """What `encode` made -> what the model takes: (B, T), labels included.

        Args:
            rows: With input_ids, and token_type_ids, class_labels or condition_embeds where there
                are some.
        """
        texts = [self.arrange(torch.as_tensor(row["input_ids"])) for row in rows]
        length = max(len(tokens) for tokens, _ in texts)
        input_ids = torch.full((len(rows), length), self.pad)
        labels = torch.full((len(rows), length), IGNORED)
        attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
        position_ids = torch.arange(length).repeat(len(rows), 1)
        for index, (tokens, positions) in enumerate(texts):
            input_ids[index, : len(tokens)] = labels[index, : len(tokens)] = tokens
            attention_mask[index, : len(tokens)] = 1
            if positions is not None:
                position_ids[index, : len(tokens)] = positions
        labels[:, 0] = IGNORED  # nothing predicts it, so that it must not be counted
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        if texts[0][1] is not None:
            batch["position_ids"] = position_ids
        for name, kind in (("class_labels", torch.long), ("condition_embeds", torch.float32)):
            if name in rows[0]:
                batch[name] = torch.stack([torch.as_tensor(row[name], dtype=kind) for row in rows])
        return batch

    def arrange(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tokens of a text in the order of the training; their positions unless in order."""
        return tokens, None


class ReversedCollator(CausalCollator):
    """Batches for a right-to-left language model: a text from its last token to its first."""

    def arrange(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Backwards, each token at its own position."""
        return tokens.flip(0), torch.arange(len(tokens)).flip(0)


class PermutedCollator(CausalCollator):
    """Batches for a permuted language model (XLNet's, Yang et al., 2019, arXiv:1906.08237).

    The first token stays first; the others come in a new order every time, each at its own
    position. As in kexue.fm/archives/6933, the position of the token that is to be predicted is not
    known to the one that predicts it; XLNet's second stream, which would say it, is not here.
    """

    def arrange(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """In random order, from torch's own generator."""
        order = torch.cat([torch.zeros(1, dtype=torch.long), torch.randperm(len(tokens) - 1) + 1])
        return tokens[order], order


class PrefixCollator(CausalCollator):
    """Batches for UniLM's pattern: the target is learned, segment 1, and the source only read."""

    attention_pattern = "prefix"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """As for `CausalCollator`, with token_type_ids (B, T).

        Raises:
            ValueError: If the rows have no segments.
        """
        if "token_type_ids" not in rows[0]:
            raise ValueError("the prefix pattern needs targets: give encode their column")
        batch = super().__call__(rows)
        segments = torch.zeros_like(batch["input_ids"])
        for index, row in enumerate(rows):
            segments[index, : len(row["token_type_ids"])] = torch.as_tensor(row["token_type_ids"])
        batch["token_type_ids"] = segments
        batch["labels"] = batch["labels"].where(segments == 1, IGNORED)
        return batch


class MaskedCollator(CausalCollator):
    """Batches for a masked language model (Devlin et al., 2019, Section 3.1).

    Of the tokens that say something, 15 % are to be guessed; of those, 80 % are hidden, 10 % are
    replaced by a random token and 10 % stay.

    Args:
        tokenizer: Whose padding and mask are used.
        probability: Share of the tokens that are to be guessed.
        generators: The source of random numbers of each batch; torch's own unless given. Trainers
            ask for batches ahead of time, so that with torch's own a resumed run is another one.
    """

    attention_pattern = "bidirectional"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        probability: float = 0.15,
        generators: Iterator[torch.Generator] | None = None,
    ):
        super().__init__(tokenizer)
        self.probability, self.generators = probability, generators
        self.mask: Any = tokenizer.mask_token_id
        self.num_tokens = len(tokenizer)
        self.special = torch.tensor(sorted({*tokenizer.all_special_ids}))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """As for `CausalCollator`, with a target for each place that is to be guessed."""
        batch = super().__call__(rows)
        tokens = batch["input_ids"]
        generator = None if self.generators is None else next(self.generators)
        chance = torch.rand(tokens.shape, generator=generator)
        is_target = (chance < self.probability) & ~torch.isin(tokens, self.special)
        if not is_target.any():  # a batch of very short texts would have no loss
            is_target = ~torch.isin(tokens, self.special)
        batch["labels"] = tokens.where(is_target, IGNORED)
        fate = torch.rand(tokens.shape, generator=generator)
        tokens = tokens.masked_fill(is_target & (fate < 0.8), self.mask)
        random = torch.randint(self.num_tokens, tokens.shape, generator=generator)
        batch["input_ids"] = tokens.where(~(is_target & (fate >= 0.9)), random)
        return batch
