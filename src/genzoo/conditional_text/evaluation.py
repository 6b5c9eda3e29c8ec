"""How good the text models are, as a checkpoint's folder holds them."""

import time
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from ..evaluation.text import (
    NeuralJudge,
    TfidfJudge,
    bleu,
    distinct_n,
    rouge,
    self_bleu,
    token_perplexity,
)
from ..runtime import command, generator_for, hardware, versions
from .collation import IGNORED, CausalCollator, MaskedCollator, PrefixCollator, encode
from .corpus import line_lengths
from .pipeline_conditional_text_generation import TASK, ConditionalTextGenerationPipeline
from .training import TextRecipe, load_rows, words_of

GUIDANCE = (1.0, 1.5, 2.0, 3.0)
"""The scales of guidance that control and diversity are measured at."""


class FormJudge:
    """Tells whether a poem has the lines of its form, by the poems that it has seen.

    A text is of every form that at least 2 % of whose poems have lines of the same lengths in the
    same order; forms that share a pattern are not told apart.
    """

    name = "form"

    def fit(self, texts: Sequence[str], labels: Sequence[int]) -> "FormJudge":
        """Learns the patterns of each form."""
        self.patterns: dict[int, set[tuple[int, ...]]] = {}
        for form in {*labels}:
            found = Counter(
                tuple(line_lengths(text))
                for text, label in zip(texts, labels, strict=True)
                if label == form
            )
            least = 0.02 * sum(found.values())
            self.patterns[int(form)] = {lines for lines, count in found.items() if count >= least}
        return self

    def accuracy(self, texts: Sequence[str], labels: Sequence[int]) -> float:
        """The share of texts whose lines are a pattern of their form."""
        return float(
            np.mean(
                [
                    tuple(line_lengths(text)) in self.patterns[int(label)]
                    for text, label in zip(texts, labels, strict=True)
                ]
            )
        )


def evaluate_text(
    folder: str | Path,
    dataset: str | None = None,
    *,
    recipe: TextRecipe,
    num_texts: int = 1_000,
    split: str = "test",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Measures the text model in a folder as it is loaded, rounding to float16 included.

    - Perplexity of each token of held-out texts, under their own condition and under none.
    - Of texts that it writes, for the classes of as many held-out human texts, at several scales of
      guidance: how often judges see the class that was asked for, and how varied the texts are.
      The judges have learned from the train split. The human texts are references.
    - For a text that answers to another: BLEU and ROUGE of its most probable answers, by
      characters or words.
    - For a masked model: how often it guesses the hidden word.

    Args:
        folder: A checkpoint folder.
        dataset: In the place of the recipe's.
        recipe: Which trained it.
        num_texts: How many texts are written, for each scale, and how many are answered.
        split: Held-out texts.
        seed: Of what is drawn.

    Returns:
        Rows for `results.json`.

    Raises:
        FileNotFoundError: If a data set is not there.
        ValueError: If nothing can be measured.
    """
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = load_rows(recipe, dataset, split=split)
    name = dataset or " + ".join(dict.fromkeys(recipe.data))
    if "target" not in held_out.column_names and "label" not in held_out.column_names:
        rows = masked_rows(folder, tokenizer, held_out, seed)
    else:
        model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        texts = encode(
            held_out,
            tokenizer,
            class_names=model.config.class_names,
            target="target" if "target" in held_out.column_names else None,
            max_length=min(recipe.max_length, model.config.max_position_embeddings),
        )
        rows = perplexity_rows(model, tokenizer, texts)
        if "target" in held_out.column_names:
            rows += answer_rows(model, tokenizer, held_out, num_texts, seed)
        else:
            human = load_rows(recipe, dataset)
            if dataset is not None:  # the recipe's own data lack them already
                seen = {words_of(row) for row in held_out.to_list()}
                kept = [
                    index for index, row in enumerate(human.to_list()) if words_of(row) not in seen
                ]
                if not kept:
                    raise ValueError(
                        f"{dataset} has no texts for a judge beside those of the split {split}"
                    )
                human = human.select(kept)
            rows += control_rows(recipe, model, tokenizer, human, held_out, num_texts, seed)
    common = {
        "std": None,
        "dataset": name,
        "split": split,
        "seed": seed,
        "command": command(),
        "hardware": hardware(),
        "seconds": time.monotonic() - started,
        "versions": versions(),
        "reference": False,
        "guidance_scale": None,
        "judge": None,
    }
    return [common | row for row in rows]


def batches_of(
    texts: datasets.Dataset, collator: CausalCollator, batch_size: int = 64
) -> list[dict[str, Tensor]]:
    """Batches of texts of about the same length."""
    order = np.argsort(texts["length"], kind="stable")
    return [
        collator([texts[int(row)] for row in order[first : first + batch_size]])
        for first in range(0, len(order), batch_size)
    ]


def perplexity_rows(model: Any, tokenizer: Any, texts: datasets.Dataset) -> list[dict[str, Any]]:
    """Perplexity of texts under their own condition, and under the zero vector."""
    has_targets = "token_type_ids" in texts.column_names
    collator = (PrefixCollator if has_targets else CausalCollator)(tokenizer)
    batches = batches_of(texts, collator)
    found = token_perplexity(model, batches)
    rows = [{"metric": "perplexity", "value": found.perplexity, "num_items": found.num_tokens}]
    if model.config.condition_dropout:
        for batch in batches:
            size = len(batch.pop("class_labels"))
            batch["condition_embeds"] = torch.zeros(size, model.config.condition_size)
        found = token_perplexity(model, batches)
        rows.append(
            {
                "metric": "perplexity_unconditioned",
                "value": found.perplexity,
                "num_items": found.num_tokens,
            }
        )
    return rows


def control_rows(
    recipe: TextRecipe,
    model: Any,
    tokenizer: Any,
    human: datasets.Dataset,
    held_out: datasets.Dataset,
    num_texts: int,
    seed: int,
) -> list[dict[str, Any]]:
    """How often judges see the class that was asked for, and how varied the texts are."""
    ids = {name: index for index, name in enumerate(model.config.class_names)}
    judges: dict[str, Any] = {}
    train_texts, train_labels = [*human["text"]], [ids[name] for name in human["label"]]
    for judge in recipe.judges:
        fitted = judge().fit(train_texts, train_labels)
        judges[getattr(fitted, "name", type(fitted).__name__)] = fitted
    real = [*held_out["text"]]
    real_labels = [ids[name] for name in held_out["label"]]
    rows: list[dict[str, Any]] = [
        {
            "metric": "class_accuracy",
            "value": judge.accuracy(real, real_labels),
            "num_items": len(real),
            "judge": name,
            "reference": True,
        }
        for name, judge in judges.items()
    ]
    written = {}
    generate: Any = ConditionalTextGenerationPipeline(model=model, tokenizer=tokenizer, task=TASK)
    # For each human text one of the same class.
    chosen = np.random.default_rng(seed).permutation(len(real))[:num_texts]
    labels = [real_labels[row] for row in chosen]
    for scale in GUIDANCE if model.config.condition_dropout else (1.0,):
        groups = generate(label=labels, guidance_scale=scale, seed=seed)
        written[scale] = texts = [group[0]["generated_text"] for group in groups]
        rows += [
            {
                "metric": "class_accuracy",
                "value": judge.accuracy(texts, labels),
                "num_items": len(texts),
                "judge": name,
                "guidance_scale": scale,
            }
            for name, judge in judges.items()
        ]

    # As varied as human texts: of as many, and at an equal number of n-grams.
    cut = {scale: tokens_of(tokenizer, texts) for scale, texts in written.items()}
    cut_real = tokens_of(tokenizer, [real[row] for row in chosen])
    sets = {None: cut_real} | cut
    for n in (1, 2, 3):
        least = min(sum(max(len(text) - n + 1, 0) for text in texts) for texts in sets.values())
        for scale, texts in sets.items():
            rows.append(
                {
                    "metric": f"distinct_{n}",
                    "value": distinct_n(texts, n, num_ngrams=least, seed=seed),
                    "num_items": len(texts),
                    "guidance_scale": scale,
                    "reference": scale is None,
                }
            )
    for scale, texts in sets.items():
        rows.append(
            {
                "metric": "self_bleu",
                "value": self_bleu([text for text in texts if text], seed=seed),
                "num_items": len(texts),
                "guidance_scale": scale,
                "reference": scale is None,
            }
        )
    return rows


def tokens_of(tokenizer: Any, texts: Sequence[str]) -> list[list[str]]:
    """Texts as words and characters, without those that the vocabulary does not have."""
    return [
        [token for token in tokenizer.tokenize(text) if token != tokenizer.unk_token]
        for text in texts
    ]


def answer_rows(
    model: Any, tokenizer: Any, held_out: datasets.Dataset, num_texts: int, seed: int
) -> list[dict[str, Any]]:
    """BLEU and ROUGE of the most probable answers, and how many are as long as the reference."""
    chosen = np.random.default_rng(seed).permutation(len(held_out))[:num_texts]
    table = held_out.select(sorted(chosen))
    generate: Any = ConditionalTextGenerationPipeline(model=model, tokenizer=tokenizer, task=TASK)
    groups = generate(
        label=[*table["label"]], prompt=[*table["text"]], do_sample=False, num_beams=4
    )
    answers = [group[0]["generated_text"] for group in groups]
    candidates = tokens_of(tokenizer, answers)
    references = tokens_of(tokenizer, [*table["target"]])
    scores = {"bleu": bleu(candidates, [[reference] for reference in references])}
    scores |= {
        f"rouge_{name.removeprefix('rouge').lower()}": value
        for name, value in rouge(candidates, references).items()
    }
    same = [len(a) == len(b) for a, b in zip(candidates, references, strict=True)]
    scores["equal_length"] = float(np.mean(same))
    return [
        {"metric": name, "value": value, "num_items": len(answers)}
        for name, value in scores.items()
    ]


def masked_rows(
    folder: str | Path, tokenizer: Any, held_out: datasets.Dataset, seed: int
) -> list[dict[str, Any]]:
    """Perplexity and accuracy of the hidden words, 15 % of all, as in the training."""
    model: Any = AutoModelForMaskedLM.from_pretrained(folder).eval()
    texts = encode(held_out, tokenizer, max_length=model.config.max_position_embeddings)
    generators = (generator_for(seed, index) for index in count())
    batches = batches_of(texts, MaskedCollator(tokenizer, generators=generators))
    found = token_perplexity(model, batches, shift=False)
    num_right = 0
    with torch.no_grad():
        for batch in batches:
            labels = batch.pop("labels")
            guesses = model(**batch).logits.argmax(-1)
            num_right += int((guesses == labels)[labels != IGNORED].sum())
    return [
        {
            "metric": "masked_accuracy",
            "value": num_right / found.num_tokens,
            "num_items": found.num_tokens,
        },
        {
            "metric": "masked_perplexity",
            "value": found.perplexity,
            "num_items": found.num_tokens,
        },
    ]


__all__ = ["FormJudge", "NeuralJudge", "TfidfJudge", "evaluate_text"]  # for the recipes
