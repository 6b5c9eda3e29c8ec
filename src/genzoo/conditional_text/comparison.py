"""Where the class enters: `python -m genzoo.conditional_text.comparison FOLDER --base BERT`.

Conditional LayerNorm, with and without a bottleneck and with maps that start at zero or not, beside
a class that is added to the input embeddings (Su, 2019, kexue.fm/archives/7124, answers a reader
that this works, too), a class that is the first token (as in CTRL, Keskar et al., 2019,
arXiv:1909.05858), and no class at all. All start from the same BERT and learn from the same batches
for the same number of steps.

A run is one method and seed; it is kept as soon as it is done, so the command can be stopped and
started again. What is done is put into the folder's results.json.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertLMHeadModel, PrinterCallback, TrainingArguments

from ..evaluation.text import TfidfJudge, distinct_n, token_perplexity
from ..runtime import keep_run, kept_run, update_results, versions
from .collation import CausalCollator, encode
from .evaluation import batches_of, tokens_of
from .modeling_conditional_bert import unwanted_tokens
from .recipes import conditional_bert_zh_sentiment
from .training import ConditionalTextTrainer, build, load_rows

SEEDS = (0, 1, 2)
NUM_STEPS = 400
NUM_TEXTS = 500
NUM_NGRAMS = 10_000
METRICS = ("perplexity", "class_accuracy", "distinct_3")
METHODS: dict[str, dict[str, Any]] = {
    "conditional LayerNorm": {},
    "conditional LayerNorm, maps start random": {"condition_initializer_range": 0.02},
    "conditional LayerNorm, bottleneck of 8": {
        "bottleneck_size": 8,
        "bottleneck_activation": "swish",
    },
    "class added to the input embeddings": {"place": "embedding"},
    "class as the first token": {"place": "token"},
    "no class": {"place": "nowhere"},
}


def main(arguments: list[str] | None = None) -> None:
    """Runs what is not done yet, and puts the table into results.json."""
    parser = argparse.ArgumentParser(prog="python -m genzoo.conditional_text.comparison")
    parser.add_argument("folder", type=Path, help="the card's folder")
    parser.add_argument("--base", type=Path, required=True, help="the folder of a BERT")
    parser.add_argument("--state", type=Path, default=Path("outputs/text-comparison"))
    options = parser.parse_args(arguments)
    reviews = _Reviews(options.base)
    for seed in SEEDS:
        for method, settings in METHODS.items():
            keep_run(
                options.state,
                method,
                settings | options_of(options.base),
                seed,
                lambda settings=settings, seed=seed: _measure(reviews, settings, seed),
            )
            collect(options.state, options.folder, options.base)


class _Reviews:
    """The reviews of the recipe, the BERT that all start from, and the judge."""

    def __init__(self, base: Path):
        self.recipe, self.base = conditional_bert_zh_sentiment(), base
        self.names = self.recipe.model.class_names
        self.train, self.test = (load_rows(self.recipe, split=s) for s in ("train", "validation"))
        ids = {name: index for index, name in enumerate(self.names)}
        self.judge = TfidfJudge().fit(
            [*self.train["text"]], [ids[name] for name in self.train["label"]]
        )


class _Placed(CausalCollator):
    """The class of each text put where a plain BERT can see it."""

    def __init__(self, tokenizer: Any, place: str):
        super().__init__(tokenizer)
        self.place, self.num_tokens = place, len(tokenizer)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = super().__call__(rows)
        return batch | self.inputs(batch["input_ids"], batch.pop("class_labels"))

    def inputs(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What becomes of texts (B, T) and their classes (B,)."""
        if self.place == "token":  # in the place of [CLS]
            input_ids = torch.cat([self.num_tokens + labels[:, None], input_ids[:, 1:]], dim=1)
        if self.place == "embedding":
            return {"token_type_ids": labels[:, None].expand_as(input_ids)}
        return {"input_ids": input_ids}


def _measure(reviews: _Reviews, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    recipe, place = reviews.recipe, settings.get("place")
    for name, value in settings.items():
        if name != "place":
            setattr(recipe.model, name, value)
    recipe.model.condition_dropout = 0.0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any
        tokenizer: Any
        model, tokenizer = build(recipe, reviews.train, reviews.base)
    for name in ("condition_initializer_range", "bottleneck_size", "bottleneck_activation"):
        setattr(recipe.model, name, getattr(type(recipe.model)(), name))
    collator: CausalCollator = CausalCollator(tokenizer)
    if place is not None:
        collator, model = _Placed(tokenizer, place), plain(model, len(reviews.names))
    train, test = (
        encode(table, tokenizer, class_names=reviews.names, max_length=recipe.max_length)
        for table in (reviews.train, reviews.test)
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=NUM_STEPS,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            warmup_steps=recipe.warmup_ratio,
            weight_decay=recipe.weight_decay,
            train_sampling_strategy="group_by_length",
            seed=seed,
            save_strategy="no",
            remove_unused_columns=False,  # a plain BERT knows no class_labels
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = ConditionalTextTrainer(
            model, arguments, train_dataset=train, data_collator=collator
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    found = token_perplexity(model.eval(), batches_of(test, collator))
    labels = torch.arange(NUM_TEXTS) % len(reviews.names)
    begin = torch.full((NUM_TEXTS, 1), tokenizer.cls_token_id)
    inputs = {"class_labels": labels}
    if isinstance(collator, _Placed):
        inputs = {"input_ids": begin} | collator.inputs(begin, labels)
    # What no text has: special tokens, and the tokens that stand for classes.
    unwanted = [*unwanted_tokens(tokenizer), *range(len(tokenizer), model.config.vocab_size)]
    torch.manual_seed(seed)
    tokens = model.generate(
        **inputs,
        do_sample=True,
        top_p=0.95,
        top_k=0,  # transformers draws from the 50 likeliest otherwise
        max_new_tokens=recipe.max_length - 1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id,
        suppress_tokens=unwanted,
    )
    texts = tokenizer.batch_decode(tokens[:, 1:], skip_special_tokens=True)
    return {
        "values": {
            "perplexity": found.perplexity,
            "class_accuracy": reviews.judge.accuracy(texts, labels.tolist()),
            "distinct_3": distinct_n(tokens_of(tokenizer, texts), 3, num_ngrams=NUM_NGRAMS),
        }
    }


def plain(model: Any, num_classes: int) -> BertLMHeadModel:
    """The same BERT with plain LayerNorms, and room for a class among segments and tokens."""
    config = BertConfig(
        **{
            name: getattr(model.config, name)
            for name in BertConfig().to_dict()
            if name
            in (
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
                "hidden_act",
                "max_position_embeddings",
                "layer_norm_eps",
                "pad_token_id",
            )
        },
        vocab_size=model.config.vocab_size + num_classes,
        type_vocab_size=max(model.config.type_vocab_size, num_classes),
        is_decoder=True,
    )
    new = BertLMHeadModel(config)
    state, own = model.state_dict(), new.state_dict()
    with torch.no_grad():
        for name, tensor in own.items():
            if name.endswith("decoder.weight"):  # the words' own
                continue
            old = state[name]
            tensor[: len(old)] = old
            if name.endswith("word_embeddings.weight"):
                tensor[len(old) :] = old[model.config.bos_token_id]
            elif name.endswith("token_type_embeddings.weight"):
                tensor[:] = old[0]
            elif name.endswith("bias") and len(tensor) > len(old):  # classes are never written
                tensor[len(old) :] = -10.0
    nn.Module.load_state_dict(new, own)
    new.tie_weights()
    return new


def options_of(base: Path) -> dict[str, Any]:
    """What a run depends on beside method and seed."""
    return {"base": base.resolve().name, "num_steps": NUM_STEPS, "num_texts": NUM_TEXTS}


def collect(state: Path, folder: Path, base: Path) -> None:
    """Puts the table, as far as it is done, into a folder's results.json."""
    rows, machines = [], set()
    for method, settings in METHODS.items():
        key = settings | options_of(base)
        files = [kept_run(state, method, key, seed) for seed in SEEDS]
        done = [json.loads(file.read_text()) for file in files if file.is_file()]
        machines |= {result["hardware"] for result in done}
        if done:
            rows.append(
                {
                    "name": method,
                    "settings": settings,
                    "values": {
                        metric: [result["values"][metric] for result in done] for metric in METRICS
                    },
                    "seconds": [result["seconds"] for result in done],
                    "command": "python -m genzoo.conditional_text.comparison "
                    f"model_cards/conditional-bert-zh-sentiment --base {base.resolve().name}",
                }
            )
    update_results(
        folder,
        comparison=[
            {
                "title": "Where the class enters",
                "about": f"{NUM_STEPS} steps each from {base.resolve().name}, no guidance; the "
                f"judge is the linear one, on {NUM_TEXTS} texts.",
                "metrics": list(METRICS),
                "rows": rows,
                "hardware": " and ".join(sorted(machines)),
                "versions": versions(),
                "dataset": "chinese_sentiment",
                "split": "validation",
            }
        ],
    )


if __name__ == "__main__":
    main()
