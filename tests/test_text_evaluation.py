"""Metrics of generated text: closed forms first, then peers, then wrong input."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from genzoo.evaluation.text import (
    NeuralJudge,
    PerplexityResult,
    TfidfJudge,
    bleu,
    distinct_n,
    rouge,
    self_bleu,
    token_perplexity,
)

# Perplexity


class Table(nn.Module):
    """Logits of the next token that depend on the present one, and dropout that breaks them."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()
        self.was_training = self.had_grad = None

    def forward(self, input_ids):
        logits = self.frozen(self.dropout(self.logits[input_ids]))
        self.was_training, self.had_grad = self.dropout.training, logits.requires_grad
        return SimpleNamespace(logits=logits)


def batch_of(ids: list[list[int]], labels: list[list[int]] | None = None) -> dict:
    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(ids if labels is None else labels),
    }


@pytest.mark.parametrize("vocabulary_size", [2, 7, 1000])
def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(vocabulary_size):
    model = Table(torch.full((vocabulary_size, vocabulary_size), 3.5))
    result = token_perplexity(model, [batch_of([[0, 1, 1], [1, 0, 0]])])
    assert result.perplexity == pytest.approx(vocabulary_size, rel=1e-6)
    assert result.nats_per_token == pytest.approx(math.log(vocabulary_size), rel=1e-6)
    assert result.num_tokens == 4


def test_a_model_that_is_sure_is_not_perplexed():
    cycle = 100 * torch.eye(5).roll(1, dims=1)  # t is followed by t + 1
    result = token_perplexity(Table(cycle), [batch_of([[0, 1, 2, 3, 4, 0, 1]])])
    assert result == PerplexityResult(1.0, 0.0, 6)
    # The same table is wrong of the present token, and where it is wrong p = exp(-100).
    unshifted = token_perplexity(Table(cycle), [batch_of([[0, 1, 2]])], shift=False)
    assert unshifted == PerplexityResult(pytest.approx(math.exp(100)), pytest.approx(100), 3)
    aligned = batch_of([[0, 1, 2]], [[1, 2, 3]])
    assert token_perplexity(Table(cycle), [aligned], shift=False).perplexity == 1


def test_every_token_weighs_the_same():
    # After a 0 comes a 1 with p = 1/4, after a 1 comes a 1 with p = 1/2.
    model = Table(torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log())
    long, short = batch_of([[1, 1, 1, 1, 1, 1]]), batch_of([[0, 1]])
    result = token_perplexity(model, [long, short])
    # Five halves and one quarter: 2^(7/6). The mean of the batches' means would be 2^(3/2).
    assert result.num_tokens == 6
    assert result.perplexity == pytest.approx(2 ** (7 / 6), rel=1e-6)
    joined = batch_of([[1] * 6, [0, 1, 0, 0, 0, 0]], [[1] * 6, [0, 1, -100, -100, -100, -100]])
    assert token_perplexity(model, [joined]).nats_per_token == pytest.approx(result.nats_per_token)
    assert token_perplexity(model, iter([short, long, batch_of([[0]])])).num_tokens == 6


def test_half_precision_is_not_half_as_precise():
    # In bfloat16, log-softmax of 1,000 equal logits is off by 1e-2, and so is a sum of 2,000.
    uniform = lambda input_ids: SimpleNamespace(  # noqa: E731
        logits=torch.zeros(*input_ids.shape, 1000, dtype=torch.bfloat16)
    )
    result = token_perplexity(uniform, [batch_of([[1] * 500] * 4)], shift=False)
    assert result.num_tokens == 2000
    assert result.perplexity == pytest.approx(1000, rel=1e-5)


def test_double_precision_is_kept():
    logits = torch.tensor([[0.0, 1e-9]], dtype=torch.float64)
    nats = token_perplexity(Table(logits), [batch_of([[0]])], shift=False).nats_per_token
    assert nats == pytest.approx(math.log(2) + 0.5e-9, abs=1e-15)


def test_an_impossible_token_is_infinite():
    model = Table(torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]))
    assert token_perplexity(model, [batch_of([[0, 1]])]).perplexity == math.inf
    # exp(1000) is more than a float64 holds.
    model = Table(torch.tensor([[0.0, -1000.0], [0.0, 0.0]]))
    result = token_perplexity(model, [batch_of([[0, 1]])])
    assert result == PerplexityResult(math.inf, 1000.0, 1)


def test_the_model_is_left_as_it_was():
    model = Table(torch.randn(4, 4)).train()
    model.frozen.eval()
    first, second = (token_perplexity(model, [batch_of([[0, 1, 2, 3]])]) for _ in range(2))
    assert first == second  # no dropout
    assert model.was_training is False and model.had_grad is False
    assert model.training and model.dropout.training and not model.frozen.training
    with pytest.raises(ValueError, match="there is none"):
        token_perplexity(model, [])
    with pytest.raises(IndexError):
        token_perplexity(model, [batch_of([[9, 9]])])
    assert model.training and model.dropout.training and not model.frozen.training
    token_perplexity(model.eval(), [batch_of([[0, 1]])])
    assert not model.training


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "needs a token that counts, but there is none"),
        ([batch_of([[0]])], "needs a token that counts"),
        ([batch_of([[0, 1]], [[1, -100]])], "needs a token that counts"),
        ([{"input_ids": torch.zeros(1, 2).long()}], "batch 0 must hold labels, got input_ids"),
        (
            [batch_of([[0, 1]]), batch_of([[0, 1]], [[0, 1, 1]])],
            r"batch 1 must have labels \(B, T\) and .* got \(1, 3\) and \(1, 2, 2\)",
        ),
    ],
)
def test_perplexity_refuses_wrong_input(batches, message):
    with pytest.raises(ValueError, match=message):
        token_perplexity(Table(torch.zeros(2, 2)), batches)


# Judges


def quick(analyzer: str = "char", **settings) -> NeuralJudge:
    small = {"embedding_size": 16, "num_filters": 16, "num_epochs": 10, "min_steps": 100}
    return NeuralJudge(analyzer, **(small | settings))


JUDGES = [TfidfJudge, quick]


def ordered_pairs(count: int, seed: int, pair: str = "xy", filler: str = "abcdef") -> tuple:
    """Texts that hold the pair (class 7) or its reverse (class 3) among other letters."""
    generator = np.random.default_rng(seed)
    labels = generator.choice([3, 7], count)
    texts = []
    for label in labels:
        tokens = list(generator.choice(list(filler), generator.integers(2, 9)))
        place = generator.integers(len(tokens) + 1)
        tokens[place:place] = pair if label == 7 else pair[::-1]
        texts.append(tokens)
    return texts, labels


@pytest.mark.parametrize("judge_of", JUDGES)
@pytest.mark.parametrize(("analyzer", "blank"), [("char", ""), ("word", " ")])
def test_judges_see_order_and_not_case(judge_of, analyzer, blank):
    texts, labels = ordered_pairs(600, seed=0)
    held_out, truth = ordered_pairs(200, seed=1)
    judge = judge_of(analyzer).fit([blank.join(text) for text in texts], labels)
    upper = [blank.join(text).upper() for text in held_out]
    predicted = judge.predict(upper)
    assert predicted.dtype == np.int64 and predicted.shape == (200,)
    assert judge.accuracy(upper, truth) == (predicted == truth).mean() > 0.95
    assert judge.accuracy(upper, torch.tensor(10 - truth)) < 0.05  # 3 and 7 exchanged
    assert judge.accuracy(upper, np.full(200, 5)) == 0  # a class that nobody knows


@pytest.mark.parametrize("judge_of", JUDGES)
def test_words_are_short_ones_and_marks_too(judge_of):
    texts = [f"{word} so {mark}" for word in "ab" for mark in "?!"] * 50
    marks, letters = [0, 1, 0, 1] * 50, [0, 0, 1, 1] * 50
    for labels in (marks, letters):
        assert judge_of("word").fit(texts, labels).accuracy(texts, labels) == 1
    # A mark that touches a word is not a part of it.
    judge = judge_of("word").fit(texts, marks)
    assert judge.predict(["so? ", "so!", "(so!)"]).tolist() == [0, 1, 1]


@pytest.mark.parametrize("judge_of", JUDGES)
def test_judges_read_chinese(judge_of):
    lines = {0: ["春眠不觉晓", "处处闻啼鸟"], 1: ["大江东去浪淘尽", "千古风流人物"]}
    texts = [line for line_list in lines.values() for line in line_list] * 20
    judge = judge_of("char").fit(texts, [0, 0, 1, 1] * 20)
    assert judge.predict(["不觉晓", "闻啼鸟", "浪淘尽", "风流人物"]).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("judge_of", JUDGES)
def test_judges_of_random_labels_are_at_chance(judge_of):
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list("abcdefgh"), 12)) for _ in range(800)]
    labels = generator.integers(0, 4, 800)
    judge = judge_of().fit(texts[:400], labels[:400])
    # 0.25 with a standard deviation of 0.022
    assert 0.17 < judge.accuracy(texts[400:], labels[400:]) < 0.33
    assert judge.accuracy(texts[:400], labels[:400]) > 0.33  # it did learn them by heart


@pytest.mark.parametrize("judge_of", JUDGES)
def test_judges_are_deterministic_and_forget(judge_of):
    texts, labels = ordered_pairs(200, seed=0)
    texts = ["".join(text) for text in texts]
    probe = ["".join(text) for text in ordered_pairs(100, seed=1, pair="xa")[0]]
    first = judge_of().fit(texts, labels)
    again = judge_of().fit(["qq", "zz"] * 20, [0, 1] * 20).fit(texts, labels)
    assert np.array_equal(first.predict(probe), again.predict(probe))
    assert set(again.predict(probe)) == {3, 7}


def weights_of(judge: NeuralJudge) -> torch.Tensor:
    return nn.utils.parameters_to_vector(judge._network.parameters())


def test_neural_judge_is_a_function_of_seed_and_texts():
    texts, labels = ordered_pairs(100, seed=0)
    texts = ["".join(text) for text in texts]
    state = torch.get_rng_state()
    first = weights_of(quick(num_epochs=5, min_steps=1).fit(texts, labels))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    with torch.no_grad():  # as in an evaluation
        assert torch.equal(weights_of(quick(num_epochs=5, min_steps=1).fit(texts, labels)), first)
    assert not torch.equal(
        weights_of(quick(num_epochs=5, min_steps=1, seed=1).fit(texts, labels)), first
    )


def test_neural_judge_computes_on_one_thread_and_gives_the_others_back(monkeypatch):
    seen = []
    forward = nn.Embedding.forward
    monkeypatch.setattr(
        nn.Embedding,
        "forward",
        lambda self, ids: seen.append(torch.get_num_threads()) or forward(self, ids),
    )
    torch.set_num_threads(2)
    try:
        quick(num_epochs=1, min_steps=2).fit(["a", "b"], [0, 1]).predict(["a"])
        assert torch.get_num_threads() == 2
        texts, labels = ["".join(text) for text in ordered_pairs(64, 0)[0]], [0, 1] * 32
        threaded = weights_of(NeuralJudge(min_steps=5).fit(texts, labels))
    finally:
        torch.set_num_threads(1)
    assert set(seen) == {1}
    assert torch.equal(weights_of(NeuralJudge(min_steps=5).fit(texts, labels)), threaded)


def test_small_sets_are_learnt_by_default():
    texts, labels = ["not bad", "bad", "not good", "good"], [1, 0, 0, 1]
    judge = NeuralJudge("word", min_count=1, embedding_size=16, num_filters=16)
    assert judge.fit(texts, labels).accuracy(texts, labels) == 1


def test_neural_judge_does_not_see_padding():
    judge = quick(min_count=1).fit(["ab", "cd", "abcdabcd"] * 10, [0, 1, 0] * 10)
    with torch.no_grad():
        for conv in judge._network.convs:
            conv.bias.add_(0.3)  # so that what pads is the largest of many features
        for ids in judge._ids(["", "a", "dc", "abcd", "ccccc"]):
            alone = judge._network(ids[None])
            padded = judge._network(nn.functional.pad(ids, (0, 9))[None])
            assert torch.allclose(alone, padded, atol=1e-6)


def test_neural_judge_reads_batches_in_the_order_of_texts():
    texts, labels = ordered_pairs(280, seed=0)
    texts = ["".join(text) for text in texts]
    judge = quick().fit(texts, labels)
    # More than one batch, of lengths that are in no order.
    assert judge.predict(texts).tolist() == [int(judge.predict([text])[0]) for text in texts]


def test_each_text_is_in_one_batch_of_like_ones():
    judge = quick(batch_size=8)
    lengths = torch.randint(1, 50, (250,))
    batches = judge._batches(lengths)
    assert sorted(torch.cat(batches).tolist()) == list(range(250))
    assert sorted(len(batch) for batch in batches) == [2] + [8] * 31
    spread = [int(lengths[batch].max() - lengths[batch].min()) for batch in batches]
    assert np.mean(spread) < 5  # about 38 in random batches
    means = [float(lengths[batch].float().mean()) for batch in batches]
    assert means != sorted(means)  # not from short to long in every round
    assert [len(batch) for batch in judge._batches(torch.ones(5))] == [5]


def test_neural_judge_keeps_to_its_limits():
    texts = ["aabbx", "aabby"] * 30 + ["rare"]
    labels = [0, 1] * 30 + [0]
    assert quick().fit(texts, labels).accuracy(texts, labels) == 1
    short = quick(max_length=4).fit(texts, labels)
    assert len(set(short.predict(["aabbx", "aabby"]))) == 1
    small = quick(vocabulary_size=2, num_epochs=1, min_steps=1).fit(texts, labels)
    assert set(small._id_of) == {"a", "b"}
    common = quick(min_count=2, num_epochs=1, min_steps=1).fit(texts, labels)
    assert set(common._id_of) == set("abxy") | {"r"}  # e is there once, r twice
    logits = [common._network(ids[None]) for ids in common._ids(["axe", "axq", "axr"])]
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("judge_of", JUDGES)
@pytest.mark.parametrize("analyzer", ["char", "word"])
def test_an_empty_text_has_a_class(judge_of, analyzer):
    judge = judge_of(analyzer).fit(["a b", "", "c d", "  "] * 5, [0, 1, 1, 0] * 5)
    assert set(judge.predict(["", "   ", "a", "\n", "😀"])) <= {0, 1}
    assert judge.predict([""]).shape == (1,)


@pytest.mark.parametrize("judge_of", JUDGES)
@pytest.mark.parametrize(
    ("texts", "labels", "error", "message"),
    [
        ([], [], ValueError, "texts must not be empty"),
        (["a", "b"], [0], ValueError, r"one for each text, got shape \(1,\) for 2 texts"),
        (["a", "b"], [[0], [1]], ValueError, r"one for each text, got shape \(2, 1\) for 2"),
        (["a", "b"], torch.tensor([0, 1, 1]), ValueError, r"got shape \(3,\) for 2 texts"),
        (["a", "b"], [0.0, 1.0], ValueError, "labels must be integers, got float64"),
        (["a", "b"], ["x", "y"], ValueError, "labels must be integers, got <U1"),
        (["a", "b"], [4, 4], ValueError, "at least 2 classes, but all labels are 4"),
        (["", " "], [0, 1], ValueError, "needs texts to learn from, but all are blank"),
        (["a", None], [0, 1], TypeError, "texts must be strings, got NoneType at 1"),
        ([["a"], ["b"]], [0, 1], TypeError, "texts must be strings, got list at 0"),
        ("ab", [0, 1], TypeError, "must be a list of strings, got one string"),
    ],
)
def test_judges_refuse_wrong_training_sets(judge_of, texts, labels, error, message):
    with pytest.raises(error, match=message):
        judge_of().fit(texts, labels)


@pytest.mark.parametrize("judge_of", JUDGES)
def test_judges_refuse_wrong_questions(judge_of):
    with pytest.raises(ValueError, match="analyzer must be char or word, got 'byte'"):
        judge_of("byte")
    judge = judge_of()
    for ask in (lambda: judge.predict(["a"]), lambda: judge.accuracy(["a"], [0])):
        with pytest.raises(RuntimeError, match="knows nothing yet: call fit before predict"):
            ask()
    judge.fit(["a", "b"], [0, 1])
    for ask in (lambda texts: judge.predict(texts), lambda texts: judge.accuracy(texts, [0])):
        with pytest.raises(ValueError, match="texts must not be empty"):
            ask([])
        with pytest.raises(TypeError, match="texts must be strings, got int at 1"):
            ask(["a", 1])
        with pytest.raises(TypeError, match="got one string"):
            ask("a")
    with pytest.raises(ValueError, match=r"one for each text, got shape \(2,\) for 1 texts"):
        judge.accuracy(["a"], [0, 1])


# Distinct n-grams


def test_distinct_by_hand():
    texts = [list("abab"), list("abc"), ["a"]]  # abab abc a
    assert distinct_n(texts, 1) == 3 / 8
    assert distinct_n(texts, 2) == 3 / 5  # ab ba ab, ab bc; none over the end of a text
    assert distinct_n(texts, 3) == 3 / 3  # aba bab, abc
    assert distinct_n([[1, 2, 1], (2, 1)], 2) == 2 / 3  # ids; 12 21, 21
    assert distinct_n([["我", "爱", "我", "爱"]], 2) == 2 / 3


def test_distinct_of_all_is_distinct_at_their_number():
    texts = [list("abab"), list("abc"), ["a"]]
    for n, total in ((1, 8), (2, 5)):
        assert distinct_n(texts, n, num_ngrams=total) == distinct_n(texts, n)
    assert distinct_n(texts, 1, num_ngrams=1) == 1


def test_distinct_draws_without_replacement():
    # 60 tokens of 20 kinds, three of each: a kind is missed in 15 draws with 57!/... below.
    texts = [[kind] for kind in range(20)] * 3
    missed = math.comb(57, 15) / math.comb(60, 15)
    result = distinct_n(texts, 1, num_ngrams=15, num_draws=2000)
    assert result == pytest.approx(20 * (1 - missed) / 15, abs=0.004)  # six standard errors
    assert distinct_n(texts, 1) == 1 / 3


def test_distinct_draws_whole_texts():
    # Each text repeats itself and nobody else: ten n-grams are one text, or parts of two.
    texts = [[index] * 10 for index in range(100)]
    assert distinct_n(texts, 1, num_ngrams=10) == 1 / 10
    assert distinct_n(texts, 1, num_ngrams=25) == 3 / 25


def test_distinct_does_not_take_the_first_texts():
    texts = [["same"]] * 500 + [[index] for index in range(500)]
    assert 0.4 < distinct_n(texts, 1, num_ngrams=200) < 0.6
    assert distinct_n(texts, 1, num_ngrams=200) == pytest.approx(
        distinct_n(texts[::-1], 1, num_ngrams=200), abs=0.05
    )


def test_distinct_is_seeded():
    texts = [[index % 7] for index in range(100)]
    draws = [distinct_n(texts, 1, num_ngrams=9, num_draws=1, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 1
    mean = distinct_n(texts, 1, num_ngrams=9, num_draws=500)
    assert mean != distinct_n(texts, 1, num_ngrams=9, num_draws=1)
    assert mean == pytest.approx(np.mean(draws), abs=0.15)


def test_distinct_at_one_number_does_not_depend_on_the_size_of_the_set():
    def texts(count, seed):
        return np.random.default_rng(seed).zipf(1.5, (count, 20)).tolist()

    small, large = texts(50, 0), texts(1000, 1)
    assert distinct_n(small, 1) > 1.8 * distinct_n(large, 1)
    assert distinct_n(large, 1, num_ngrams=1000) == pytest.approx(distinct_n(small, 1), rel=0.1)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n": 0}, ValueError, "at least 1, got 0 and 10"),
        ({"num_draws": 0}, ValueError, "at least 1, got 1 and 0"),
        ({"n": 5}, ValueError, "no text of at least 5 tokens among 2"),
        ({"texts": []}, ValueError, "no text of at least 1 tokens among 0"),
        ({"num_ngrams": 6}, ValueError, "between 1 and the number of n-grams, 5, got 6"),
        ({"num_ngrams": 0}, ValueError, "between 1 and the number of n-grams, 5, got 0"),
        ({"texts": "abc"}, TypeError, "texts must be lists of tokens, got str at 0: split"),
        ({"texts": [["a"], "a b"]}, TypeError, "must be lists of tokens, got str at 1"),
        ({"texts": torch.ones(2, 3)}, TypeError, "must be lists of tokens, got Tensor at 0"),
    ],
)
def test_distinct_refuses_wrong_input(changes, error, message):
    with pytest.raises(error, match=message):
        distinct_n(**({"texts": [["a", "b", "c"], ["a", "b"]], "n": 1} | changes))


# Self-BLEU


def slow_bleu(candidate: list, references: list[list], max_n: int) -> float:
    """BLEU with method 1 by its definition, each n-gram sought in each reference."""
    if not set(candidate) & {token for reference in references for token in reference}:
        return 0.0
    product = 1.0
    for n in range(1, max_n + 1):
        grams = [tuple(candidate[i : i + n]) for i in range(len(candidate) - n + 1)]
        clipped = 0
        for gram in set(grams):
            in_references = [
                sum(tuple(other[i : i + n]) == gram for i in range(len(other)))
                for other in references
            ]
            clipped += min(grams.count(gram), max(in_references))
        product *= (clipped or 0.1) / (len(grams) or 1)
    lengths = sorted(len(reference) for reference in references)
    closest = min(lengths, key=lambda length: abs(length - len(candidate)))
    return min(1, math.exp(1 - closest / len(candidate))) * product ** (1 / max_n)


def random_texts(count: int, shortest: int, longest: int, seed: int = 0) -> list[list[str]]:
    generator = np.random.default_rng(seed)
    chances = 1 / np.arange(1, 13)
    return [
        generator.choice(list("abcdefghijkl"), size, p=chances / chances.sum()).tolist()
        for size in generator.integers(shortest, longest + 1, count)
    ]


def test_self_bleu_of_copies_is_one():
    assert self_bleu([list("abcde")] * 7) == 1
    assert self_bleu([list("abab"), list("cdcd")] * 2) == 1
    assert self_bleu([["a"], ["a"]], max_n=1) == 1
    # Too short for n-grams of 4, whose precision then is 0.1 of 1.
    assert self_bleu([list("abc")] * 3) == pytest.approx(0.1 ** (1 / 4))


def test_self_bleu_of_strangers_is_zero():
    assert self_bleu([list("abcd"), list("efgh"), list("ijkl")]) == 0
    assert self_bleu([[], []]) == 0


def test_self_bleu_by_hand():
    # abac against ab: a twice but one allowed, b: 2 of 4; ab: 1 of 3; longer, no penalty.
    # ab against abac: 2 of 2, 1 of 1; exp(1 - 4 / 2).
    expected = (math.sqrt(2 / 4 * 1 / 3) + math.exp(-1)) / 2
    assert self_bleu([list("abac"), list("ab")], max_n=2) == pytest.approx(expected, rel=1e-12)
    # Nothing of length 2 in common: 0.1 of 1 pair.
    assert self_bleu([list("ab"), list("ba")], max_n=2) == pytest.approx(math.sqrt(0.1))


@pytest.mark.parametrize("max_n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("shortest", "longest"), [(8, 14), (0, 6)])
def test_self_bleu_is_its_definition(max_n, shortest, longest):
    texts = random_texts(30, shortest, longest)
    texts += texts[:3]  # the largest count is there twice
    scores = [
        slow_bleu(text, texts[:index] + texts[index + 1 :], max_n) if text else 0.0
        for index, text in enumerate(texts)
    ]
    assert 0.1 < np.mean(scores) < 1
    assert self_bleu(texts, max_n=max_n) == pytest.approx(np.mean(scores), rel=1e-12)


def test_self_bleu_takes_the_closest_length():
    # Three a's against one and five: both are two away, the shorter costs nothing.
    # One against three costs exp(1 - 3); of five, three are matched.
    expected = (1 + math.exp(-2) + 3 / 5) / 3
    assert self_bleu([["a"] * 3, ["a"], ["a"] * 5], max_n=1) == pytest.approx(expected)


def test_self_bleu_scores_some_against_all():
    texts = random_texts(20, 5, 9)
    scores = [slow_bleu(text, texts[:i] + texts[i + 1 :], 3) for i, text in enumerate(texts)]
    ones = [self_bleu(texts, max_n=3, num_candidates=1, seed=seed) for seed in range(200)]
    assert {round(score, 9) for score in ones} == {round(score, 9) for score in scores}
    assert ones[0] == self_bleu(texts, max_n=3, num_candidates=1)
    assert self_bleu(texts, max_n=3, num_candidates=20) == pytest.approx(np.mean(scores))
    # Without replacement: each pair's mean is that of two different texts.
    doubles = {round(2 * self_bleu(texts, max_n=3, num_candidates=2, seed=s), 9) for s in range(50)}
    sums = {round(a + b, 9) for i, a in enumerate(scores) for b in scores[:i]}
    assert doubles <= sums and len(doubles) > 10


def test_self_bleu_agrees_with_nltk():
    # nltk 3.10.4: the mean of sentence_bleu(others, text, [1 / n] * n,
    # smoothing_function=SmoothingFunction().method1), as Texygen takes it.
    expected = {2: 0.32161389927403317, 3: 0.26281342370360583, 4: 0.21745312553466226}
    for max_n, value in expected.items():
        assert self_bleu(TEXTS, max_n=max_n) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"texts": [["a"]]}, ValueError, "at least 2 texts, got 1"),
        ({"max_n": 0}, ValueError, "max_n must be at least 1, got 0"),
        ({"num_candidates": 3}, ValueError, "between 1 and the number of texts, 2, got 3"),
        ({"num_candidates": 0}, ValueError, "between 1 and the number of texts, 2, got 0"),
        ({"texts": ["a b", "a c"]}, TypeError, "texts must be lists of tokens, got str at 0"),
        ({"texts": torch.ones(2, 3)}, TypeError, "must be lists of tokens, got Tensor at 0"),
    ],
)
def test_self_bleu_refuses_wrong_input(changes, error, message):
    with pytest.raises(error, match=message):
        self_bleu(**({"texts": [["a"], ["b"]]} | changes))


# BLEU

TEXTS = [
    line.split()
    for line in (
        "the cat is on the mat",
        "the dog is on the mat today",
        "there is a cat on a mat",
        "it is raining cats and dogs today",
        "a dog sat",
    )
]
REFERENCES = [
    ["the cat sat on the mat".split(), "a cat is on the mat now".split()],
    ["today the dog is on the mat".split()],
    ["there is a cat on the mat here".split(), "there is a cat".split(), "a mat".split()],
    ["it is raining cats and dogs".split(), "it rains a lot today and it pours".split()],
    ["the dog sat down".split(), "a dog".split()],
]


def test_bleu_of_a_copy_is_one():
    assert bleu(TEXTS, [[text] for text in TEXTS]) == 1
    assert bleu(TEXTS, [[list("xyz"), text] for text in TEXTS]) == 1
    assert bleu([list("我爱自然语言")], [[list("我爱自然语言")]]) == 1
    assert bleu([[5, 6, 7, 8]], [[(5, 6, 7, 8)]]) == 1


def test_bleu_of_papineni():
    # Papineni et al., 2002, Section 2.1: "the" counts twice at most, 2 of 7.
    candidate = ["the"] * 7
    references = ["the cat is on the mat".split(), "there is a cat on the mat".split()]
    assert bleu([candidate], [references], max_n=1) == pytest.approx(2 / 7)
    assert bleu([candidate], [references], max_n=2) == 0


def test_bleu_by_hand():
    # abcd against abd and bcda. Tokens: a b c d, 4 of 4. Pairs: ab of the first, bc and cd of the
    # second, 3 of 3. Triples: bcd, 1 of 2 (abc is in neither).
    # ab against abxyz: 2 of 2 and 1 of 1, no triples.
    candidates, references = (
        [list("abcd"), list("ab")],
        [
            [list("abd"), list("bcda")],
            [list("abxyz")],
        ],
    )
    # Lengths: 4 + 2 = 6 against 4 (as near as can be) + 5 = 9.
    penalty = math.exp(1 - 9 / 6)
    for max_n, product in ((1, 6 / 6), (2, 4 / 4), (3, 1 / 2)):
        expected = penalty * product ** (1 / max_n)
        assert bleu(candidates, references, max_n=max_n) == pytest.approx(expected, rel=1e-12)
    assert bleu(candidates, references) == 0  # no match of four


def test_bleu_takes_the_shorter_of_two_equally_near_references():
    references = [list("abcd"), list("abcdef")]
    for order in (references, references[::-1]):
        assert bleu([list("abcde")], [order], max_n=2) == 1
    assert bleu([list("abc")], [[list("ab"), list("abcdefg")]], max_n=2) == 1
    assert bleu([list("abc")], [[list("a"), list("abcd")]], max_n=2) == math.exp(1 - 4 / 3)


def test_bleu_is_of_the_corpus():
    # 4 of 4 and 0 of 4 tokens: 1/2; lengths are added, so one short text costs what a long one won.
    assert bleu([list("abcd"), list("xxxx")], [[list("abcd")]] * 2, max_n=1) == 0.5
    pair = [list("ab"), list("abcd")], [[list("abc")], [list("abc")]]
    assert bleu(*pair, max_n=1) == pytest.approx(5 / 6)


def test_bleu_of_nothing_is_zero():
    assert bleu([[]], [[["a"]]]) == 0
    assert bleu([[], list("abcd")], [[[]], [list("abcd")]]) == 1  # nothing for nothing


def test_bleu_agrees_with_its_peers():
    # sacrebleu 2.6.0: corpus_bleu(..., tokenize="none", smooth_method="none") / 100.
    assert bleu(TEXTS, REFERENCES) == pytest.approx(0.793764275696025, rel=1e-12)
    # nltk 3.10.4, corpus_bleu; without the last text, which is shorter than four tokens.
    assert bleu(TEXTS[:4], REFERENCES[:4]) == pytest.approx(0.800845481908149, rel=1e-12)
    assert bleu(TEXTS[:4], REFERENCES[:4], max_n=2) == pytest.approx(0.9150732747865951, rel=1e-12)


@pytest.mark.parametrize(
    ("candidates", "references", "error", "message"),
    [
        ([], [], ValueError, "candidates must not be empty"),
        ([["a"]], [[["a"]], [["b"]]], ValueError, "one for each candidate, got 2 for 1"),
        ([["a"], ["b"]], [[["a"]], []], ValueError, "candidate 1 has no references"),
        (["a b"], [[["a"]]], TypeError, "candidates must be lists of tokens, got str at 0"),
        ([["a"]], [["a"]], TypeError, "references of candidate 0 must be .* got str at 0"),
        ([[1]], [[1]], TypeError, "references of candidate 0 must be .* got int at 0"),
    ],
)
def test_bleu_refuses_wrong_input(candidates, references, error, message):
    with pytest.raises(error, match=message):
        bleu(candidates, references)


def test_bleu_refuses_no_ngrams():
    with pytest.raises(ValueError, match="max_n must be at least 1, got 0"):
        bleu([["a"]], [[["a"]]], max_n=0)


# ROUGE


def scores(rouge1: float, rouge2: float, rouge_l: float) -> dict:
    values = {"rouge1": rouge1, "rouge2": rouge2, "rougeL": rouge_l}
    return {key: pytest.approx(value, abs=1e-6) for key, value in values.items()}


def test_rouge_of_copies_and_strangers():
    assert rouge(TEXTS, TEXTS) == scores(1, 1, 1)
    assert rouge([list("abc")], [list("def")]) == scores(0, 0, 0)
    assert rouge([[]], [[]]) == scores(0, 0, 0)
    assert rouge([list("ab"), []], [list("ab"), list("ab")]) == scores(0.5, 0.5, 0.5)


@pytest.mark.parametrize("alphabet", ["abcd", "我爱自然", [3, 1, 4, 15], ["A", "a", "a b", ""]])
def test_rouge_by_hand(alphabet):
    a, b, c, d = alphabet
    # a b c a d against a c b a, 5 and 4 tokens, 4 and 3 pairs.
    # Tokens a b c a are common: 2 * 4 / 9. No pair but "b ..": ab bc ca ad against ac cb ba: none.
    # Longest common subsequence: a b a, or a c a: 2 * 3 / 9.
    assert rouge([[a, b, c, a, d]], [[a, c, b, a]]) == scores(8 / 9, 0, 6 / 9)
    # a a a against a a b, clipped at two: 2 * 2 / 6; aa aa against aa ab: 2 * 1 / 4;
    # longest common subsequence a a: 2 * 2 / 6.
    assert rouge([[a, a, a]], [[a, a, b]]) == scores(2 / 3, 1 / 2, 2 / 3)
    # The mean over both, not one fraction of sums.
    both = rouge([[a, b, c, a, d], [a, a, a]], [[a, c, b, a], [a, a, b]])
    assert both == scores((8 / 9 + 2 / 3) / 2, 1 / 4, 2 / 3)


def test_rouge_agrees_with_its_peer():
    # rouge-score 0.1.2: means of RougeScorer(["rouge1", "rouge2", "rougeL"]).score's F1.
    assert rouge(TEXTS, [references[0] for references in REFERENCES]) == scores(
        0.82556777, 0.67156177, 0.79699634
    )


@pytest.mark.parametrize(
    ("candidates", "references", "error", "message"),
    [
        ([], [], ValueError, "candidates must not be empty"),
        ([["a"]], [["a"], ["b"]], ValueError, "one for each candidate, got 2 for 1"),
        (["a b"], [["a"]], TypeError, "candidates must be lists of tokens, got str at 0"),
        ([["a"], ["b"]], [["a"], "b"], TypeError, "references must be .* got str at 1"),
    ],
)
def test_rouge_refuses_wrong_input(candidates, references, error, message):
    with pytest.raises(error, match=message):
        rouge(candidates, references)
