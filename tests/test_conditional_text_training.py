"""Training, evaluation and pipeline of the conditional text models, on a small world of its own."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments

import genzoo
from genzoo.conditional_text import (
    CausalCollator,
    ConditionalBertConfig,
    ConditionalBertLMHeadModel,
    ConditionalTextTrainer,
    MaskedCollator,
    PrefixCollator,
    comparison,
    encode,
    training,
)
from genzoo.conditional_text import recipes as text_recipes
from genzoo.conditional_text.evaluation import FormJudge, evaluate_text
from genzoo.conditional_text.training import MaskedLMTrainer, TextRecipe, load_rows, train_text
from genzoo.evaluation.text import TfidfJudge, token_perplexity

GOOD, BAD = "很好喜欢满意干净", "太差失望难吃肮脏"
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}


def reviews(num_rows: int = 200) -> list[dict[str, str]]:
    """Texts whose class decides which characters they have."""
    source = torch.Generator().manual_seed(0)
    rows = []
    for index in range(num_rows):
        letters = (BAD, GOOD)[index % 2]
        picked = torch.randint(len(letters), (6,), generator=source).tolist()
        rows.append(
            {"text": "这" + "".join(letters[i] for i in picked), "label": ("neg", "pos")[index % 2]}
        )
    return rows


def recipe(**changes) -> TextRecipe:
    values = {
        "name": "reviews",
        "model": ConditionalBertConfig(
            **SIZES,
            num_classes=2,
            class_names=["neg", "pos"],
            condition_size=4,
            condition_dropout=0.1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        "data": ["reviews"],
        "rows": text_recipes.sentences,
        "judges": (TfidfJudge,),
        "min_count": 1,
        "max_length": 16,
        "num_steps": 150,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "condition_learning_rate": 1e-2,
    }
    return TextRecipe(**values | changes)


@pytest.fixture(scope="module")
def writer(tmp_path_factory) -> Path:
    """A checkpoint that has learned the two classes."""
    folder = tmp_path_factory.mktemp("runs") / "writer"
    return train_text(recipe(), reviews()[:150], output_dir=folder)


def test_it_writes_what_it_is_asked_for(writer):
    write = genzoo.pipeline("conditional-text-generation", model=writer)
    texts = write(label=["neg", "pos"] * 20, seed=0)
    letters = [{*text[0]["generated_text"]} - {"这"} for text in texts]
    assert all(found <= {*(BAD, GOOD)[index % 2]} for index, found in enumerate(letters))
    assert len({text[0]["generated_text"] for text in texts}) > 20


def test_it_draws_from_all_tokens_that_make_up_95_percent(writer):
    """Transformers' own default is 50 tokens at most, which makes texts all alike."""
    tokenizer = rows_and_tokenizer(writer)[1]
    tokenizer.add_tokens([f"字{number}" for number in range(200)])
    config = ConditionalBertConfig(
        **SIZES, vocab_size=len(tokenizer), num_classes=1, condition_size=4, eos_token_id=None
    )
    model = ConditionalBertLMHeadModel(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        # All tokens are about as likely, but none just as likely as another.
        model.cls.predictions.bias.copy_(torch.linspace(0, 0.1, len(tokenizer)))
    write = genzoo.pipeline("conditional-text-generation", model=model, tokenizer=tokenizer)
    seen: set[int] = set()
    for text in write(label=0, num_return_sequences=64, max_new_tokens=20, seed=0):
        seen |= {*tokenizer(text["generated_text"], add_special_tokens=False).input_ids}
    assert len(seen) > 150


def test_a_checkpoint_says_how_it_draws(writer):
    model = ConditionalBertLMHeadModel.from_pretrained(writer)
    assert model.config.use_cache  # which the Trainer had turned off
    found = model.generation_config
    assert (found.do_sample, found.top_p, found.top_k) == (True, recipe().top_p, 0)
    write = genzoo.pipeline("conditional-text-generation", model=writer)
    one, other = (write(label=0, do_sample=False, seed=seed) for seed in (0, 1))
    assert one == other


def test_the_shapes_of_what_the_pipeline_returns(writer):
    write = genzoo.pipeline(model=writer)
    one = write(label="pos", num_return_sequences=3, seed=1)
    assert [[*text] for text in one] == [["generated_text"]] * 3
    assert one == write(label=1, num_return_sequences=3, seed=1)
    assert one != write(label="pos", num_return_sequences=3, seed=2)
    several = write(label=["pos", "neg"], num_return_sequences=2)
    assert [len(texts) for texts in several] == [2, 2]
    assert write(label=[]) == []
    begun = write(label="pos", prompt="这很好喜")
    assert begun[0]["generated_text"].startswith("这很好喜")
    both = write(label=["neg", "pos"], prompt=["这太", "这"], seed=0)
    assert both[0][0]["generated_text"].startswith("这太")
    vectors = torch.stack([torch.zeros(4), torch.ones(4)])
    assert len(write(condition=vectors)) == 2 and isinstance(write(condition=vectors[0])[0], dict)


def test_a_prompt_comes_back_as_it_was_given(writer, caplog):
    """Though the model reads none of the capitals, blanks and characters that it does not know."""
    write = genzoo.pipeline(model=writer)
    prompt = "这 ABC🏨很"
    text, other = (one["generated_text"] for one in write("pos", prompt, num_return_sequences=2))
    assert text.startswith(prompt) and other.startswith(prompt)
    assert any("does not know all of a prompt" in record.message for record in caplog.records)
    assert len(text) > len(prompt)


def test_the_attention_pattern_of_a_call(writer):
    """The prefix pattern ends the prompt, and gives the answer alone."""
    write = genzoo.pipeline(model=writer)
    model, tokenizer = write.model, write.tokenizer
    settings = {"attention_pattern": "prefix", "do_sample": False, "max_new_tokens": 6}
    (found,) = write("pos", "这很好", **settings)
    ids = tokenizer("这很好", add_special_tokens=False).input_ids
    prompt = torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])
    tokens = model.generate(prompt, class_labels=torch.tensor([1]), **settings)
    expected = tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True)
    assert found["generated_text"] == expected.replace(" ", "")


def test_batches_do_not_change_what_is_most_probable(writer):
    write = genzoo.pipeline(model=writer)
    labels, prompts = ["neg", "pos", "pos"], ["这", "", "这很好"]
    settings = {"do_sample": False, "max_new_tokens": 6}
    at_once = write(label=labels, prompt=prompts, **settings)
    assert at_once == write(label=labels, prompt=prompts, batch_size=1, **settings)
    one_by_one = [
        write(label=a, prompt=b, **settings) for a, b in zip(labels, prompts, strict=True)
    ]
    assert at_once == one_by_one


def test_ends_of_an_interpolation_are_the_classes(writer):
    write = genzoo.pipeline(model=writer)
    line = write.interpolate("neg", "pos", 3, do_sample=False, max_new_tokens=7)
    assert [point["weight"] for point in line] == [0.0, 0.5, 1.0]
    for point, label in ((line[0], "neg"), (line[-1], "pos")):
        (text,) = write(label=label, do_sample=False, max_new_tokens=7)
        assert point["generated_text"] == text["generated_text"]


def test_guidance_makes_the_class_plainer(writer):
    _, tokenizer = rows_and_tokenizer(writer)
    model = ConditionalBertLMHeadModel.from_pretrained(writer)
    # Between the classes, where there is room: a condition that is mostly none.
    tokens = torch.tensor([[tokenizer.cls_token_id, *tokenizer.convert_tokens_to_ids(["这"])]])
    condition = 0.1 * model.bert.class_embeddings.weight[1:].detach()
    plain, guided = (
        F.softmax(model(tokens, condition_embeds=condition, guidance=scale).logits[0, -1], -1)
        for scale in (1.0, 3.0)
    )
    good = tokenizer.convert_tokens_to_ids([*GOOD])
    assert plain[good].sum() < 0.95
    assert guided[good].sum() > plain[good].sum() + 0.02


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"label": "good"}, "there is no class 'good'; known are neg, pos"),
        ({"label": 2}, "there is no class 2; known are neg, pos"),
        ({"label": -1}, "there is no class -1; known are neg, pos"),
        ({"label": True}, "there is no class True; known are neg, pos"),
        ({}, "give a label, one of neg, pos, or a condition"),
        ({"label": "pos", "condition": torch.zeros(4)}, "either a label or a condition"),
        ({"condition": torch.zeros(1, 5)}, "with C = 4, got"),
        ({"label": "pos", "prompt": "好" * 40}, "the prompt has 41 tokens"),
        ({"label": "pos", "prompt": "好" * 20, "max_new_tokens": 20}, "positions, too few for"),
        ({"label": ["pos", "neg"], "prompt": ["a"] * 3}, "2 conditions for 3 texts"),
        ({"label": "pos", "prompt": 3}, "prompt must be a string"),
        ({"condition": [[[0.0]]]}, r"a condition is \(C,\) or \(B, C\), got \(1, 1, 1\)"),
        ({"condition": 1.0}, r"a condition is \(C,\) or \(B, C\)"),
        ({"label": "pos", "guidance_scale": "2"}, "guidance_scale must be a number, got '2'"),
        ({"label": "pos", "num_return_sequences": 0}, "must be at least 1"),
    ],
)
def test_what_the_pipeline_refuses(writer, call, message):
    write = genzoo.pipeline(model=writer)
    with pytest.raises(ValueError, match=message):
        write(**call)


def test_a_model_without_a_condition_does_not_fit_the_pipeline():
    with pytest.raises(ValueError, match="cannot do conditional-text-generation"):
        genzoo.pipeline("conditional-text-generation", model="jose-zh-reviews")


def test_the_task_has_a_default(writer, monkeypatch):
    asked = []
    monkeypatch.setattr("genzoo.loading.locate", lambda name: asked.append(name) or writer)
    assert genzoo.pipeline("conditional-text-generation")(label="pos")
    assert asked == ["conditional-bert-zh-sentiment"]


def test_transformers_own_pipeline_takes_the_class(writer):
    write = genzoo.pipeline("text-generation", model=writer)
    (text,) = write("这", class_labels=torch.tensor([1]), max_new_tokens=6, do_sample=False)
    assert {*text["generated_text"]} <= {*GOOD, "这"}


# Evaluation


def test_evaluation_measures_what_it_says(writer, monkeypatch):
    rows = [dict(row) for row in reviews()]
    monkeypatch.setattr(
        "genzoo.conditional_text.evaluation.load_rows",
        lambda recipe, dataset, split="train": Dataset.from_list(
            rows[:150] if split == "train" else rows[150:]
        ),
    )
    found = evaluate_text(writer, recipe=recipe(), num_texts=40)
    table = {
        (row["metric"], row["judge"], row["guidance_scale"], row["reference"]): row["value"]
        for row in found
    }
    assert table["class_accuracy", "TfidfJudge", None, True] == 1.0
    assert table["class_accuracy", "TfidfJudge", 1.0, False] == 1.0
    # Of eight tokens, six are one of eight characters at random, and two are certain.
    assert 8 ** (6 / 8) < table["perplexity", None, None, False] < 1.2 * 8 ** (6 / 8)
    # Without the class, the first of them is one of sixteen: a factor of 2 ** (1 / 8) at least.
    without = table["perplexity_unconditioned", None, None, False]
    assert without > 1.05 * table["perplexity", None, None, False]
    for metric in ("distinct_1", "distinct_2", "distinct_3", "self_bleu"):
        assert 0 < table[metric, None, None, True] <= 1 and 0 < table[metric, None, 2.0, False] <= 1


def test_the_judge_of_forms():
    poems = ["一二三四五，六七八九十。" * 2, "一二三四五六七，一二三四五六七。"] * 30
    judge = FormJudge().fit(poems, [0, 1] * 30)
    assert judge.accuracy(poems[:2], [0, 1]) == 1.0
    assert judge.accuracy(poems[:2], [1, 0]) == 0.0
    assert judge.accuracy(["一二三四五，六七八九。" * 2], [0]) == 0.0


# Trainer


def rows_and_tokenizer(writer: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(writer)
    return encode(Dataset.from_list(reviews(32)), tokenizer, class_names=["neg", "pos"]), tokenizer


def arguments(folder: Path, **changes) -> TrainingArguments:
    values = {"max_steps": 1, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    return TrainingArguments(str(folder), **values | changes)


def test_label_smoothing_looks_at_the_next_token(writer, tmp_path):
    """As by hand; transformers' own does not shift the labels of a class that it does not know."""
    texts, tokenizer = rows_and_tokenizer(writer)
    model = ConditionalBertLMHeadModel.from_pretrained(writer)
    model.config.condition_dropout = 0.0
    batch = CausalCollator(tokenizer)([texts[i] for i in range(8)])
    model.train()
    logits = model(**batch).logits[:, :-1].flatten(0, 1)
    wanted = F.cross_entropy(logits, batch["labels"][:, 1:].flatten(), label_smoothing=0.3)
    settings = arguments(tmp_path, label_smoothing_factor=0.3)
    trainer = ConditionalTextTrainer(model, settings, data_collator=CausalCollator(tokenizer))
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), wanted)
    stock = Trainer(model, settings, data_collator=CausalCollator(tokenizer))
    assert abs(stock.compute_loss(model, dict(batch)) - wanted) > 0.1
    model.eval()
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), model(**batch).loss)


def test_new_weights_learn_at_a_rate_of_their_own(writer, tmp_path):
    texts, tokenizer = rows_and_tokenizer(writer)
    model = ConditionalBertLMHeadModel.from_pretrained(writer)
    trainer = ConditionalTextTrainer(
        model,
        arguments(tmp_path, learning_rate=1e-4),
        train_dataset=texts,
        data_collator=CausalCollator(tokenizer),
        condition_learning_rate=1e-2,
    )
    optimizer = trainer.create_optimizer()
    names = {id(weight): name for name, weight in model.named_parameters()}
    rates = {
        names[id(weight)]: group["lr"]
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    assert rates.keys() == {*names.values()}
    new = {name for name, rate in rates.items() if rate == 1e-2}
    assert new == {name for name in rates if "scale" in name or "shift" in name or "class_" in name}
    trainer.optimizer = None
    trainer.train()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_rate_of_their_own_under_peft(writer, tmp_path):
    peft = pytest.importorskip("peft")
    model = ConditionalBertLMHeadModel.from_pretrained(writer)
    config = peft.LoraConfig(
        r=2, target_modules=["query", "scale"], modules_to_save=["shift", "class_embeddings"]
    )
    trainer = ConditionalTextTrainer(
        peft.get_peft_model(model, config), arguments(tmp_path), condition_learning_rate=1e-2
    )
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    for group in trainer.create_optimizer().param_groups:
        for weight in group["params"]:
            name = names[id(weight)]
            is_new = "scale" in name or "shift" in name or "class_" in name
            assert (group["lr"] == 1e-2) == is_new, name
    plain = BertForMaskedLM(BertConfig(**SIZES, vocab_size=9))
    trainer = ConditionalTextTrainer(plain, arguments(tmp_path), condition_learning_rate=1e-2)
    with pytest.raises(ValueError, match="there are no new weights to learn"):
        trainer.create_optimizer()


def test_a_rate_of_their_own_is_the_bottleneck_s_too(tmp_path):
    config = ConditionalBertConfig(**SIZES, vocab_size=9, condition_size=3, bottleneck_size=2)
    model = ConditionalBertLMHeadModel(config)
    trainer = ConditionalTextTrainer(model, arguments(tmp_path), condition_learning_rate=1e-2)
    groups = trainer.create_optimizer().param_groups
    rates = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    assert rates[id(model.bert.embeddings.LayerNorm.bottleneck.weight)] == 1e-2
    given = torch.optim.SGD(model.parameters())
    trainer = ConditionalTextTrainer(
        model, arguments(tmp_path), condition_learning_rate=1e-2, optimizers=(given, None)
    )
    with pytest.raises(ValueError, match="for an optimizer that is made here"):
        trainer.create_optimizer()


def test_vectors_in_the_place_of_classes_can_be_evaluated(tmp_path, writer):
    _, tokenizer = rows_and_tokenizer(writer)
    table = Dataset.from_list(
        [{"text": row["text"], "vector": [float(row["label"] == "pos")]} for row in reviews(16)]
    )
    texts = encode(table, tokenizer, condition="vector")
    config = ConditionalBertConfig(**SIZES, vocab_size=len(tokenizer), condition_size=1)
    trainer = ConditionalTextTrainer(
        ConditionalBertLMHeadModel(config),
        arguments(tmp_path),
        train_dataset=texts,
        eval_dataset=texts,
        data_collator=CausalCollator(tokenizer),
    )
    trainer.train()
    batches = [trainer.data_collator([texts[row] for row in range(16)])]
    found = token_perplexity(trainer.model.eval(), batches)
    # In batches of their own sizes, of which the Trainer takes a plain mean.
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(found.perplexity), rel=0.02)


def test_the_loss_is_that_of_each_token(tmp_path, writer):
    """Gradients of two small batches are those of one: every predicted token counts the same."""
    texts, tokenizer = rows_and_tokenizer(writer)
    collator = CausalCollator(tokenizer)
    rows = [texts[row] for row in range(8)]
    for smoothing in (0.0, 0.2):
        model = ConditionalBertLMHeadModel.from_pretrained(writer)
        trainer = ConditionalTextTrainer(
            model,
            arguments(tmp_path, label_smoothing_factor=smoothing),
            train_dataset=texts,
            data_collator=collator,
        )
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        model.config.condition_dropout = 0.0
        halves = [collator(rows[:3]), collator(rows[3:])]
        _, count = trainer.get_batch_samples(iter(halves), 2, torch.device("cpu"))
        whole = collator(rows)
        assert count == (whole["labels"][:, 1:] != -100).sum()
        losses = [
            trainer.compute_loss(model.train(), dict(batch), num_items_in_batch=count)
            for batch in halves
        ]
        inputs = {key: value for key, value in whole.items() if key != "labels"}
        expected = F.cross_entropy(
            model(**inputs).logits[:, :-1].flatten(0, 1),
            whole["labels"][:, 1:].flatten(),
            label_smoothing=smoothing,
        )
        torch.testing.assert_close(sum(losses), expected)


@pytest.mark.parametrize("collator", [PrefixCollator, MaskedCollator])
def test_a_collator_of_another_pattern_is_refused(tmp_path, writer, collator):
    texts, tokenizer = rows_and_tokenizer(writer)
    model = ConditionalBertLMHeadModel.from_pretrained(writer)
    with pytest.raises(
        ValueError, match=r"is for attention_pattern .*, and the model has 'causal'"
    ):
        ConditionalTextTrainer(
            model, arguments(tmp_path), train_dataset=texts, data_collator=collator(tokenizer)
        )


def test_scores_where_a_word_is_hidden_are_enough(writer, tmp_path):
    texts, tokenizer = rows_and_tokenizer(writer)
    model = BertForMaskedLM(BertConfig(**SIZES, vocab_size=len(tokenizer), hidden_dropout_prob=0.0))
    collator = MaskedCollator(tokenizer)
    batch = collator([texts[i] for i in range(8)])
    batch.pop("class_labels")
    trainer = MaskedLMTrainer(model, arguments(tmp_path), data_collator=collator)
    model.eval()
    wanted = model(**batch).loss
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), wanted)


class _Stop(Exception):
    pass


def test_a_run_resumes_to_the_same_bits_in_a_later_epoch(tmp_path, monkeypatch):
    """Six steps an epoch: stopped in the second and in the third, behind a checkpoint."""
    rows = [row | {"text": row["text"] + "好" * (i % 5)} for i, row in enumerate(reviews(96))]
    whole = recipe(num_steps=20, save_every=4, log_every=1)
    left = train_text(whole, rows, output_dir=tmp_path / "whole")
    original = training._Log.on_step_end
    for stop in (9, 16):

        def on_step_end(self, args, state, control, stop=stop, **kwargs):
            original(self, args, state, control, **kwargs)
            if state.global_step == stop:
                raise _Stop

        monkeypatch.setattr(training._Log, "on_step_end", on_step_end)
        with pytest.raises(_Stop):
            train_text(whole, rows, output_dir=tmp_path / "stopped", resume=True)
    monkeypatch.setattr(training._Log, "on_step_end", original)
    right = train_text(whole, rows, output_dir=tmp_path / "stopped", resume=True)
    for name in ("model.safetensors", "config.json"):
        assert (left / name).read_bytes() == (right / name).read_bytes()


def test_an_order_depends_on_the_epoch_alone():
    order = training.LengthOrder([5, 9, 2, 7] * 6, batch_size=4, seed=0)
    epochs = []
    for epoch in range(3):
        order.set_epoch(epoch)
        epochs.append([*order])
        assert sorted(epochs[-1]) == [*range(24)] and [*order] == epochs[-1]
    assert epochs[0] != epochs[1] != epochs[2]


def test_texts_that_are_held_out_are_not_trained_on(monkeypatch):
    splits = {
        "train": ["很 好", "太差", "满意", "失望"],
        "validation": ["太差"],
        "test": ["很好", "很好", "干净"],
    }

    def load_texts(name, *, split, subset=None):
        return Dataset.from_list([{"text": text, "label": "pos"} for text in splits[split]])

    monkeypatch.setattr(training, "load_texts", load_texts)
    assert load_rows(recipe())["text"][:] == ["满意", "失望"]
    assert load_rows(recipe(), split="test")["text"][:] == ["很好", "干净"]


def test_a_checkpoint_in_half_precision_is_a_base_in_full(writer):
    """The files of the zoo hold float16, and a model that learned in it would break."""
    model = ConditionalBertLMHeadModel.from_bert(str(writer), class_names=["a", "b"])
    assert model.dtype == torch.float32
    assert load_file(writer / "model.safetensors")["cls.predictions.bias"].dtype == torch.float16


def test_tied_weights_are_saved_once(writer):
    model = ConditionalBertLMHeadModel.from_pretrained(writer)
    assert model.config.tie_word_embeddings
    saved = load_file(writer / "model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == model.num_parameters()


def test_the_comparison_fills_its_table_and_goes_on_where_it_stopped(writer, tmp_path, monkeypatch):
    tokenizer = rows_and_tokenizer(writer)[1]
    base = BertForMaskedLM(
        BertConfig(**SIZES, vocab_size=len(tokenizer), bos_token_id=2, eos_token_id=3)
    )
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    small = recipe(batch_size=4, max_length=12)
    monkeypatch.setattr(comparison, "conditional_bert_zh_sentiment", lambda: small)
    monkeypatch.setattr(
        comparison, "load_rows", lambda recipe, split: Dataset.from_list(reviews(24))
    )
    for name, value in (("NUM_STEPS", 2), ("NUM_TEXTS", 6), ("NUM_NGRAMS", 5), ("SEEDS", (0,))):
        monkeypatch.setattr(comparison, name, value)
    words = [str(tmp_path), "--base", str(tmp_path / "base"), "--state", str(tmp_path / "state")]
    comparison.main(words)
    (table,) = json.loads((tmp_path / "results.json").read_text())["comparison"]
    assert [row["name"] for row in table["rows"]] == list(comparison.METHODS)
    for row in table["rows"]:
        assert row["values"].keys() == {*comparison.METRICS}
        assert row["values"]["perplexity"][0] > 1
    monkeypatch.setattr(comparison, "_measure", None)  # all is done
    comparison.main(words)


def test_the_arms_of_the_comparison_start_from_the_same_network(writer):
    """A plain BERT with room for a class scores as the conditional one that has not learned."""
    model = ConditionalBertLMHeadModel(
        ConditionalBertConfig(
            **SIZES, vocab_size=20, num_classes=2, condition_size=4, bos_token_id=2
        )
    ).eval()
    plain = comparison.plain(model, 2).eval()
    ids = torch.randint(5, 20, (3, 7))
    wanted = model(ids, class_labels=torch.tensor([0, 1, 0])).logits
    words = plain.bert.embeddings.word_embeddings.weight
    assert torch.equal(words[20], words[2]) and torch.equal(words[21], words[2])
    for segment in (0, 1):
        segments = torch.full_like(ids, segment)
        found = plain(ids, token_type_ids=segments).logits
        torch.testing.assert_close(found[..., :20], wanted)
        assert found[..., 20:].max() < -1


# Recipes and rows


def test_a_base_keeps_its_weights_and_loses_unused_tokens(writer, tmp_path):
    base = BertForMaskedLM(
        BertConfig(**SIZES, vocab_size=_tokens(writer), bos_token_id=2, eos_token_id=3)
    )
    base.save_pretrained(tmp_path / "base")
    rows_and_tokenizer(writer)[1].save_pretrained(tmp_path / "base")
    rows = [row for row in reviews() if row["label"] == "pos"]
    rows[0]["label"] = "neg"
    folder = train_text(
        recipe(num_steps=1, learning_rate=1e-9, condition_learning_rate=1e-9, max_tokens=9),
        rows,
        tmp_path / "base",
        output_dir=tmp_path / "tuned",
    )
    tuned = ConditionalBertLMHeadModel.from_pretrained(folder)
    assert tuned.config.vocab_size == 9
    assert tuned.generation_config.eos_token_id == tuned.config.eos_token_id
    new = tuned.bert.encoder.layer[0].intermediate.dense.weight
    torch.testing.assert_close(
        new, base.bert.encoder.layer[0].intermediate.dense.weight, atol=1e-4, rtol=1e-3
    )


def _tokens(writer: Path) -> int:
    return len(json.loads((writer / "tokenizer.json").read_text())["model"]["vocab"])


def test_a_run_that_diverges_says_so(tmp_path):
    with pytest.raises(FloatingPointError, match="not finite before step"):
        train_text(
            recipe(num_steps=40, learning_rate=1e18, log_every=1),
            reviews(40),
            output_dir=tmp_path / "run",
        )


def test_data_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="row 0 is of class 'good'; known are neg, pos"):
        train_text(recipe(), [{"text": "a", "label": "good"}], output_dir=tmp_path / "a")
    with pytest.raises(ValueError, match="no column 'label', only text"):
        train_text(recipe(), ["很好"], output_dir=tmp_path / "b")
    with pytest.raises(ValueError, match="there is no text"):
        train_text(recipe(), [], output_dir=tmp_path / "c")
    assert not any(tmp_path.iterdir())


# datasets 5.0 leaves a CSV file open until it is collected.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("text,note\na,b\n", "x.csv has no column 'label', only text, note"),
        ("text,label\na,pos\n,neg\n", "row 1 of .*x.csv has no text: it is None"),
        ('text,label\n" ",pos\n', "row 0 of .*x.csv has no text: it is ' '"),
        ("text,label\na,\n", "row 0 of .*x.csv has no label"),
        ("text,label\na,good\n", "row 0 is of class 'good'; known are neg, pos"),
    ],
)
def test_files_that_do_not_fit(tmp_path, lines, message):
    (tmp_path / "x.csv").write_text(lines)
    with pytest.raises(ValueError, match=message):
        train_text(recipe(), tmp_path / "x.csv", output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["poems", "couplets", "reviews", "plain"])
def test_rows_of_the_recipes_are_texts(name):
    rows = {
        "poems": {"text": "一二三四五，六七八九十。\n一二三四五，六七八九十。", "form": "tang_shi"},
        "couplets": {"text": "一二三四五，六七八九十。", "form": "tang_shi"},
        "reviews": {"text": "好。" * 100, "label": 1},
        "plain": {"text": "好。" * 100},
    }
    found = [*getattr(text_recipes, name)(rows[name])]
    assert found and all(0 < len(row["text"]) <= 126 for row in found)


def test_labels_by_number_get_their_names(tmp_path, monkeypatch):
    from datasets import ClassLabel, Features, Value

    table = Dataset.from_list(
        [{"text": "很好", "label": 1}, {"text": "太差", "label": 0}],
        features=Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])}),
    )

    def load_texts(name, *, split, subset=None):
        if split != "train":
            raise FileNotFoundError
        return table

    monkeypatch.setattr(training, "load_texts", load_texts)
    assert load_rows(recipe())["label"] == ["pos", "neg"]
    assert dataclasses.replace(recipe()).identity()["rows"] == "sentences"
