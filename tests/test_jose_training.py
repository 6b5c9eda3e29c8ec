"""How JoSE is trained: corpora of all kinds, bad input, the engines, transformers' Trainer."""

import json
import logging
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from transformers import AutoTokenizer, Trainer, TrainingArguments

from genzoo import runtime
from genzoo.jose import (
    JoseConfig,
    JoseModel,
    SphericalSGD,
    comparison,
    naive,
    train_jose,
    training,
)
from genzoo.jose.corpus import (
    Corpus,
    Splitter,
    Texts,
    alias_table,
    count_words,
    keep_probabilities,
)
from genzoo.jose.kernels import sample_pairs
from genzoo.jose.training import prepare

NUM_TOPICS = 4


def topical_texts(count: int, length: int = 40, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Documents of one topic each: every second word is of the topic, the others are of all."""
    source = np.random.default_rng(seed)
    topics = source.integers(0, NUM_TOPICS, count)
    texts = []
    for topic in topics:
        own = source.integers(0, 30, length)
        common = source.integers(0, 60, length)
        is_own = source.random(length) < 0.5
        texts.append(
            " ".join(
                f"{'abcd'[topic]}{o}" if mine else f"all{c}"
                for o, c, mine in zip(own, common, is_own, strict=True)
            )
        )
    return texts, topics


def train(corpus, config: dict | None = None, **settings):
    """`train_jose` with small settings, one thread, and no progress bar."""
    values = {"embedding_dim": 16, "min_count": 1, "subsample_threshold": 0.0}
    defaults = {"num_epochs": 2, "num_threads": 1, "show_progress": False}
    return train_jose(corpus, JoseConfig(**(values | (config or {}))), **(defaults | settings))


def check_same(one: JoseModel, other: JoseModel) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def check_unit_rows(model: JoseModel) -> None:
    for name, table in model.named_parameters():
        assert (table.detach().double().norm(dim=-1) - 1).abs().max() < 1e-6, name


@pytest.fixture(scope="module")
def trained():
    """A model of 300 documents of four topics, with its tokenizer, texts and topics."""
    texts, topics = topical_texts(300)
    model, tokenizer = train(texts, num_epochs=10)
    return model, tokenizer, texts, topics


# Corpora of all kinds

LINES = ["b a c a b", "", "a c ", "\u4e2d\u6587 a b", "zzz", "c b a \u4e2d\u6587"]


class Again:
    """Strings that can be read again and again."""

    def __iter__(self):
        return iter(LINES)


@pytest.fixture(scope="module")
def from_list():
    return train(LINES, {"min_count": 2})


def write(folder: Path, *contents: bytes) -> list[Path]:
    paths = [folder / f"{index}.txt" for index in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def stream():
    for line in LINES:
        yield {"text": line}


CORPORA = {
    "str": lambda folder: str(write(folder, "\n".join(LINES).encode())[0]),
    "path": lambda folder: write(folder, "\n".join([*LINES, ""]).encode())[0],
    "crlf": lambda folder: write(folder, "\r\n".join(LINES).encode())[0],
    "paths": lambda folder: write(
        folder, "\n".join(LINES[:2]).encode() + b"\n", b"", "\n".join(LINES[2:]).encode()
    ),
    "two paths": lambda folder: tuple(
        write(folder, b"b a c a b\n\na c ", "\n".join(LINES[3:]).encode())  # no newline between
    ),
    "tuple of strings": lambda _: tuple(LINES),
    "bytes": lambda _: [line.encode() for line in LINES],
    "again": lambda _: Again(),
    "array": lambda _: np.array(LINES),
    "generator": lambda _: (line for line in LINES),
    "generator of bytes": lambda _: (line.encode() + b"\n" for line in LINES),
    "map": lambda _: map(str.strip, LINES),
    "Dataset": lambda _: datasets.Dataset.from_dict({"n": [0] * 6, "text": LINES}),
    "Column": lambda _: datasets.Dataset.from_dict({"text": LINES})["text"],
    "IterableDataset": lambda _: datasets.Dataset.from_dict({"text": LINES}).to_iterable_dataset(),
    "stream": lambda _: datasets.IterableDataset.from_generator(stream),
}


@pytest.mark.parametrize("kind", CORPORA)
def test_all_corpora_give_the_same_bits(kind, tmp_path, from_list, caplog):
    model, tokenizer = train(CORPORA[kind](tmp_path), {"min_count": 2})
    check_same(model, from_list[0])
    assert tokenizer.get_vocab() == from_list[1].get_vocab()
    assert "2 of 6 documents have no known words: their vectors stay random" in caplog.text


def test_another_column_of_a_data_set():
    data = datasets.Dataset.from_dict({"text": ["x"] * 6, "body": LINES})
    model, tokenizer = train(data, {"min_count": 2}, text_column="body")
    check_same(model, train(LINES, {"min_count": 2})[0])
    assert "x" not in tokenizer.get_vocab()


def test_a_generator_is_read_once():
    read = []

    def generator():
        for line in ["a b", "c\nd", "e \ud800f", "", "g"]:
            read.append(line)
            yield line

    texts = Texts(generator())
    assert [text for text, _ in zip(texts, range(2), strict=False)] == ["a b", "c d"]
    once, num_damaged = [*texts], texts.num_damaged
    assert once == ["a b", "c d", "e \ufffd\ufffd\ufffdf", "", "g"]
    assert [*texts] == once
    assert texts.num_damaged == num_damaged == 1
    assert len(read) == 5


def numbered(corpus, **changes) -> tuple[list[str], Corpus]:
    words, found, _ = prepare(corpus, JoseConfig(**({"min_count": 1} | changes)), 0)
    return words, found


def documents(corpus: Corpus, words: list[str]) -> list[list[str]]:
    """The known words of each document, as the corpus has numbered them."""
    tokens, starts, ids = corpus.gather(np.array([[0, corpus.num_words]]))
    found = [[] for _ in range(len(corpus))]
    for index, row in enumerate(ids):
        found[row] = [words[n - 1] for n in tokens[starts[index] : starts[index + 1]]]
    return found


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a b\nc", ["a b", "c"]),
        (b"a b\nc\n", ["a b", "c"]),
        (b"\na b\n\n\nc\n\n", ["", "a b", "", "", "c", ""]),
        (b"a b\r\n\r\nc\r\n", ["a b", "", "c"]),
        (b"a\rb\x0bc\n\x0c\n", ["a b c", ""]),  # a new line begins after \n alone
        ("a\u2028b\x85c\nd".encode(), ["a b c", "d"]),
        (b"a\xffb \xc3\nc", ["a\ufffdb \ufffd", "c"]),
        (b"a\x00b\nc", ["a\x00b", "c"]),
    ],
)
def test_each_line_is_one_document(tmp_path, content, expected):
    (path,) = write(tmp_path, content)
    words, corpus = numbered(path)
    assert documents(corpus, words) == [line.split() for line in expected]


def test_words_that_are_unknown_are_left_out():
    words, corpus = numbered(["a x b", "y", "b a a"], min_count=2)
    assert words == ["a", "b"]
    assert documents(corpus, words) == [["a", "b"], [], ["b", "a", "a"]]


def test_the_unknown_word_may_be_in_a_corpus():
    words, corpus = numbered(["a [UNK] b", "[UNK] [UNK]", "a"])
    assert words == ["a", "b"]
    assert documents(corpus, words) == [["a", "b"], [], ["a"]]
    _, tokenizer = train(["a [UNK] b", "[UNK] [UNK]", "a"])
    assert tokenizer("a [UNK] b").input_ids == [1, 0, 2]


def test_a_line_of_ten_megabytes(tmp_path):
    source = np.random.default_rng(0)
    line = " ".join(f"w{n}" for n in source.zipf(1.3, 2_000_000).clip(max=5000).tolist()).encode()
    assert len(line) > 5_000_000
    (path,) = write(tmp_path, b"first one\n" + line + b" " + b"x" * 5_000_000 + b"\nlast one")
    words, corpus = numbered(path)
    assert len(corpus) == 3
    assert np.diff(corpus.starts).tolist() == [2, 2_000_001, 2]
    assert words[0] == "w1" and "x" * 5_000_000 in words
    blocks = corpus.blocks()
    assert blocks[0, 0] == 0 and blocks[-1, 1] == corpus.num_words == 2_000_005
    assert np.array_equal(blocks[1:, 0], blocks[:-1, 1])
    assert (np.diff(blocks) < 1.5 * 2**14).all()


def test_blocks_are_the_corpus_in_pieces():
    source = np.random.default_rng(0)
    lengths = source.integers(0, 50, 200)  # less than half a block
    lengths[[0, 7, 199]] = 0, 900, 0
    texts = [" ".join(f"w{n}" for n in source.integers(0, 50, length)) for length in lengths]
    words, corpus = numbered(texts)
    blocks = corpus.blocks(size=100)
    assert (np.diff(blocks) > 0).all() and (np.diff(blocks) <= 150).all()
    # Only the long document is cut.
    inner = blocks[1:, 0]
    is_cut = ~np.isin(inner, corpus.starts)
    low, high = corpus.starts[7:9]
    assert 7 <= is_cut.sum() <= 9 and ((inner > low) & (inner < high))[is_cut].all()
    # In any order, every document gets its own words.
    found = [[] for _ in texts]
    order = source.permutation(len(blocks))
    tokens, starts, ids = corpus.gather(blocks[order])
    assert len(tokens) == starts[-1] == corpus.num_words and len(ids) == len(starts) - 1
    for index, row in enumerate(ids):
        found[row] += [words[n - 1] for n in tokens[starts[index] : starts[index + 1]]]
    assert [Counter(document) for document in found] == [Counter(t.split()) for t in texts]
    tokens, starts, ids = corpus.gather(blocks[:0])
    assert (len(tokens), starts.tolist(), len(ids)) == (0, [0], 0)


def test_memory_for_counting_is_bounded(caplog):
    source = np.random.default_rng(0)
    rare = (f"rare{n}" for n in range(20_000))
    texts = [
        " ".join([*(next(rare) for _ in range(20)), *source.choice(["the", "of", "cat"], 20)])
        for _ in range(1000)
    ]
    split = Splitter()
    assert all(len(count_words(texts[:n], split, max_counted=500)) <= 500 for n in range(0, 300, 7))
    caplog.clear()
    counts = count_words(texts, split, max_counted=500)
    exact = Counter(word for text in texts for word in text.split())
    assert all(counts[word] == exact[word] for word in ("the", "of", "cat"))
    (record,) = caplog.records
    assert "more than 500 different words: those that had occurred up to" in record.message
    caplog.clear()
    assert count_words(texts, split) == exact
    assert not caplog.records


def test_memory_for_counting_is_bounded_within_a_text():
    text = " ".join(f"rare{n}" for n in range(200_000))
    assert len(count_words([text, "a"], Splitter(), max_counted=1000)) < 60_000


# Bad input


def missing_column():
    yield {"body": "a"}


@pytest.mark.parametrize(
    ("corpus", "error", "message"),
    [
        ("no/such/file.txt", FileNotFoundError, "there is no corpus 'no/such/file.txt'"),
        ("a text and no path " * 30, FileNotFoundError, "there is no corpus 'a text and no path"),
        ("a\0b", FileNotFoundError, "there is no corpus"),
        (".", FileNotFoundError, r"there is no corpus '\.'"),
        ([Path("no.txt")], FileNotFoundError, r"there is no corpus 'no\.txt'"),
        ([], ValueError, "the corpus is empty: there is no word in it"),
        (["", " \n "], ValueError, "the corpus is empty: there is no word in it"),
        (iter([]), ValueError, "the corpus is empty"),
        (["a b", "b"], ValueError, "no word occurs min_count = 5 times: .* 'b', does 2 times"),
        (["a", 3], ValueError, "document 1 is a int, not a string"),
        (["a", None], ValueError, "document 1 is a NoneType, not a string"),
        ([["a", "b"]], ValueError, "document 0 is a list, not a string"),
        (iter(["a", 3.0]), ValueError, "document 1 is a float, not a string"),
        (
            datasets.Dataset.from_dict({"text": ["a"]}).to_pandas(),
            ValueError,
            "the corpus is a table: pass a column of it",
        ),
        (7, ValueError, "a corpus is a path, strings or a data set, not 7"),
        ({"a": 1, "b": 2}, ValueError, "the corpus is a dict of a, b: pass one of its parts"),
        (
            datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"]})),
            ValueError,
            "the corpus is a DatasetDict of train: pass one of its parts",
        ),
        (
            datasets.Dataset.from_dict({"body": ["a"]}),
            ValueError,
            r"the data set has no column 'text', only \['body'\]",
        ),
        (
            datasets.IterableDataset.from_generator(missing_column),
            ValueError,
            r"the data set has no column 'text', only \['body'\]",
        ),
        (
            datasets.Dataset.from_dict({"text": ["a", None]}),
            ValueError,
            "document 1 is a NoneType, not a string",
        ),
    ],
)
def test_what_is_no_corpus_is_refused(corpus, error, message):
    with pytest.raises(error, match=message):
        train(corpus, {"min_count": 5})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"words_per_round": 0}, "words_per_round must be at least 1"),
        ({"num_threads": 0}, "num_threads must be at least 1, got 0"),
        ({"save_every": 0}, "save_every must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive"),
        ({"config": {"has_context_embeddings": False}}, "training needs a table of contexts"),
        ({"word_pattern": "(a|b)+"}, "word_pattern has groups"),
        ({"word_pattern": "(a"}, r"word_pattern '\(a' is wrong: missing \), unterminated"),
        ({"word_pattern": "a*"}, r"word_pattern must not match nothing: a\*"),
        ({"word_pattern": r"\Z"}, "word_pattern"),
        ({"word_pattern": "q"}, "the corpus is empty: there is no word in it"),
        ({"device": "cuda:1"}, "there is no device 'cuda:1' here"),
        ({"device": "gpu"}, "there is no device 'gpu' here"),
        (
            {"device": "cpu", "config": {"use_retraction": False}},
            "on a device, rows return to length 1",
        ),
    ],
)
def test_wrong_settings_are_refused(settings, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        train(LINES, **settings)


def test_a_setting_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="num_epoch"):
        train(LINES, num_epoch=3)


@pytest.mark.parametrize("kind", ["file", "strings", "generator"])
def test_damaged_texts_are_replaced_and_counted(tmp_path, caplog, kind):
    damaged = [b"a \xff b", b"fine a b", b"a \xed\xa0\x80 \xc3", b"\xf0\x9f\x98\x80 a"]
    if kind == "file":
        (corpus,) = write(tmp_path, b"\n".join(damaged))
    else:
        corpus = [text.decode(errors="surrogateescape") for text in damaged]
        corpus[2] = "a \ud800 \udcc3"
        corpus = corpus if kind == "strings" else iter(corpus)
    model, tokenizer = train(corpus)
    assert model.document_embeddings.weight.shape == (4, 16)
    (record,) = [record for record in caplog.records if "UTF-8" in record.message]
    assert record.levelno == logging.WARNING
    assert record.message.startswith("2 documents were not valid UTF-8")
    words = tokenizer.get_vocab()
    assert words.keys() >= {"a", "b", "fine", "\U0001f600"}
    assert all(word.encode() for word in words)  # no half of a pair is left
    counts = model.word_counts
    assert counts[words["a"]] == 4 and counts[words["b"]] == 2


def test_a_mark_of_the_encoding_is_no_part_of_the_first_word(tmp_path):
    texts = [b"\xef\xbb\xbfcat dog cat", b"dog cat dog"]
    _, tokenizer = train(write(tmp_path, b"\n".join(texts * 3).replace(b"\n\xef\xbb\xbf", b"\n")))
    assert tokenizer.get_vocab().keys() - {"[UNK]"} == {"cat", "dog"}


def test_a_margin_may_be_a_whole_number():
    config = JoseConfig(margin=1)
    assert config.margin == 1.0 and isinstance(config.margin, float)


def test_a_recipe_cuts_each_text_once_and_counts_the_damaged_ones(tmp_path, caplog):
    seen = []

    def segment(text: str) -> str:
        seen.append(text)
        return " ".join(text)

    (path,) = write(tmp_path, b"abc\nab\xff\n\nb")
    recipe = training.JoseRecipe(
        name="jose-letters",
        model=JoseConfig(embedding_dim=4, min_count=1),
        data=["letters"],
        segmenter=segment,
        num_epochs=1,
        num_threads=1,
    )
    training.train_recipe(recipe, path, output_dir=tmp_path / "out")
    assert seen == ["abc", "ab\ufffd", "", "b"]
    assert caplog.text.count("1 documents were not valid UTF-8") == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.get_vocab().keys() == {"[UNK]", *"abc\ufffd"}


def start(corpus, seed: int = 0) -> JoseModel:
    """The tables before training."""
    config = JoseConfig(embedding_dim=16, min_count=2, subsample_threshold=0.0)
    return prepare(corpus, config, seed)[2]


@pytest.mark.parametrize("variant", ["genzoo", "reference", "paper"])
def test_an_empty_line_trains_nothing(variant):
    """The reference program trains its document with the word that it has read last."""
    texts, _ = topical_texts(20)
    empty = [3, 9, 20, 21]
    for row, line in zip(empty, ["", "unknown", "", "  "], strict=True):
        texts.insert(row, line)
    model, _ = train(texts, {"min_count": 2, "variant": variant})
    before, after = start(texts).document_embeddings.weight, model.document_embeddings.weight
    change = (after - before).norm(dim=-1)
    assert (change[empty] < 1e-6).all()
    others = [row for row in range(len(texts)) if row not in empty]
    assert (change[others] > 0.1).all()
    # Words, and the documents that have some, are as if the others were not there.
    without = [texts[row] for row in others]
    beside, rows = start(without), torch.tensor(others)
    state = start(texts).state_dict()
    beside.load_state_dict(state | {"document_embeddings.weight": before[rows]})
    split, words = Splitter(), prepare(texts, JoseConfig(min_count=2), 0)[0]
    corpus = Corpus(without, split, {word: index + 1 for index, word in enumerate(words)})
    beside.config = model.config
    settings = training.FitSettings(num_epochs=2, num_threads=1)
    training.fit(beside, corpus, settings, show_progress=False)
    assert torch.equal(beside.word_embeddings.weight, model.word_embeddings.weight)
    assert torch.equal(beside.context_embeddings.weight, model.context_embeddings.weight)
    assert torch.equal(beside.document_embeddings.weight, after[rows])


def test_the_last_line_without_newline_is_a_document_of_its_own(tmp_path):
    """The reference program gives its words to the document before."""
    texts = [" ".join(["a b c d"] * 8)] * 10 + [" ".join(["e f g h"] * 8)]
    models = []
    for content in ("\n".join(texts), "\n".join(texts) + "\n"):
        (path,) = write(tmp_path, content.encode())
        model, tokenizer = train(path, num_epochs=60, learning_rate=0.1)
        models.append(model)
    check_same(*models)
    ids = tokenizer.convert_tokens_to_ids(["a", "b", "c", "d", "e", "f", "g", "h"])
    cosines = model.document_embeddings.weight @ model.word_embeddings.weight[ids].mT
    first, second = cosines[:, :4].mean(dim=1), cosines[:, 4:].mean(dim=1)
    assert (first[:10] > second[:10] + 0.1).all()
    assert second[10] > first[10] + 0.1


# Training


def test_a_trained_model_is_what_was_promised(trained):
    model, tokenizer, texts, _ = trained
    counts = Counter(word for text in texts for word in text.split())
    size = len(counts) + 1
    assert model.word_embeddings.weight.shape == (size, 16)
    assert model.context_embeddings.weight.shape == (size, 16)
    assert model.document_embeddings.weight.shape == (300, 16)
    assert (model.config.vocab_size, model.config.num_documents) == (size, 300)
    check_unit_rows(model)
    assert not model.training
    vocabulary = tokenizer.get_vocab()
    assert vocabulary.keys() == counts.keys() | {"[UNK]"}
    assert {word: int(model.word_counts[n]) for word, n in vocabulary.items() if n} == counts
    assert model.word_counts[0] == 0
    assert (model.word_counts[1:].diff() <= 0).all()  # most frequent first
    # Documents are in the order of the corpus: each lies close to its own words.
    output = model(**tokenizer(texts, return_tensors="pt"))
    cosines = model.document_embeddings.weight @ output.pooler_output.mT
    rank = (cosines > cosines.diag()[:, None]).sum(dim=1)
    assert rank.float().mean() < 30


def test_the_contract_of_the_issue():
    texts, _ = topical_texts(60)
    model, tokenizer = train_jose(
        texts,
        JoseConfig(
            embedding_dim=100,
            window_size=5,
            num_negatives=2,
            margin=0.15,
            min_count=5,
            subsample_threshold=1e-3,
            variant="reference",
        ),
        num_epochs=2,
        learning_rate=0.04,
        num_threads=2,
        seed=0,
    )
    check_unit_rows(model)
    assert model.word_embeddings.weight.shape == (len(tokenizer.get_vocab()), 100)
    assert model.document_embeddings.weight.shape == (60, 100)


def purity(model: JoseModel, topics: np.ndarray) -> float:
    """How well clusters of the documents agree with their topics."""
    rows = model.document_embeddings.weight.detach().numpy()
    found = KMeans(NUM_TOPICS, n_init=4, random_state=0).fit_predict(rows)
    return normalized_mutual_info_score(topics, found)


def history(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


ENGINES = {
    "threads": {},
    "two threads": {"num_threads": 2},
    "batches": {"device": "cpu", "batch_size": 512},
    "joint": {"config": {"variant": "paper"}},
    "joint batches": {"config": {"variant": "paper"}, "device": "cpu", "batch_size": 512},
    "gpu": {"device": "cuda", "batch_size": 512},
}


@pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=[pytest.mark.gpu] * (name == "gpu")) for name in ENGINES]
)
def test_every_engine_learns_the_topics(engine, tmp_path):
    texts, topics = topical_texts(600)
    settings = {"num_epochs": 8, "words_per_round": 12_000} | ENGINES[engine]
    model, _ = train(texts, output_dir=tmp_path, **settings)
    check_unit_rows(model)
    assert purity(model, topics) > 0.95
    log = history(tmp_path)
    assert [line["step"] for line in log] == [*range(1, 17)]
    names = ("loss",) if "joint" in engine else ("word_loss", "document_loss")
    for name in names:
        first, last = log[0][name], np.mean([line[name] for line in log[-2:]])
        assert 0 < last < 0.95 * first
    rates = [line["rate"] for line in log]
    assert rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(
        1e-4 * settings.get("learning_rate", 0.04)
    )


RANK = """
import sys
import torch
torch.set_num_threads(1)
from genzoo.jose import JoseConfig, train_jose
config = JoseConfig(embedding_dim=16, min_count=1, subsample_threshold=0.0)
model, _ = train_jose(
    sys.argv[1], config, num_epochs=8, num_threads=1, words_per_round=12_000, show_progress=False
)
torch.save(model.state_dict(), sys.argv[2])
"""


@pytest.mark.slow
def test_processes_come_to_one_model_that_knows_the_topics(tmp_path):
    """Each goes through a part of every round; then they have the same tables."""
    texts, topics = topical_texts(1200)
    (path,) = write(tmp_path, "\n".join(texts).encode())
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(path), str(tmp_path / f"{rank}.pt")],
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            | {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert not [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]
    model, _ = train(texts, num_epochs=1)
    model.load_state_dict(states[0])
    check_unit_rows(model)
    assert purity(model, topics) > 0.95


def test_batches_come_to_the_loss_of_threads(tmp_path):
    texts, _ = topical_texts(300)
    last = []
    for engine in ("joint", "joint batches"):
        train(texts, num_epochs=8, output_dir=tmp_path / engine, **ENGINES[engine])
        last.append(history(tmp_path / engine)[-1]["loss"])
    assert last[1] == pytest.approx(last[0], rel=0.1)


def test_one_thread_and_a_seed_give_the_same_bits(trained, tmp_path):
    texts, _ = topical_texts(30)
    model, _ = train(texts)
    check_same(model, train(texts)[0])
    other = train(texts, seed=1)[0]
    for name in ("word_embeddings", "context_embeddings", "document_embeddings"):
        rows, others = getattr(model, name).weight, getattr(other, name).weight
        assert not (rows == others).all(dim=-1).any()
    # Neither the global generator nor the one who trains matters.
    torch.manual_seed(5)
    state = torch.get_rng_state()
    check_same(model, train(texts, output_dir=tmp_path)[0])
    assert torch.equal(state, torch.get_rng_state())
    batches = {"device": "cpu", "batch_size": 100}
    check_same(train(texts, **batches)[0], train(texts, **batches)[0])


def test_every_epoch_has_an_order_of_its_own(monkeypatch):
    """A corpus that is sorted by subject would otherwise be learnt and forgotten again."""
    texts = [f"{'ab'[row // 500]}{row} " + "x " * 99 for row in range(1000)]
    seen = []
    engine = training._Work._thread

    def watched(work, piece, *arguments):
        seen.append(piece[2].tolist())
        return engine(work, piece, *arguments)

    monkeypatch.setattr(training._Work, "_thread", watched)
    train(texts, {"window_size": 1}, num_epochs=2, words_per_round=50_000)
    assert len(seen) == 4
    for epoch in (seen[:2], seen[2:]):
        assert sorted({row for piece in epoch for row in piece}) == [*range(1000)]
    assert seen[0] != seen[2]
    assert {row // 500 for row in seen[0]} == {0, 1}
    seen.clear()
    train(texts, {"window_size": 1}, num_epochs=2, words_per_round=50_000, shuffle=False)
    assert seen[:2] == seen[2:]
    assert seen[0] + seen[1] == [*range(1000)]


@pytest.mark.parametrize("variant", ["genzoo", "reference", "paper"])
def test_training_takes_the_steps_of_the_definition(variant, monkeypatch):
    """All that train_jose passes to the kernel is what its configuration says."""
    config = JoseConfig(
        embedding_dim=7,
        variant=variant,
        window_size=2,
        num_negatives=3,
        margin=0.4,
        num_document_updates=2,
        subsample_threshold=0.1,
        noise_exponent=0.5,
        min_count=2,
    )
    texts, _ = topical_texts(4)
    counts = Counter(word for text in texts for word in text.split())
    kept = [count for _, count in counts.most_common() if count >= 2]
    kernel, rates = training.train_piece, []

    def checked(*arguments):
        keep, thresholds, aliases = arguments[6:9]
        np.testing.assert_array_equal(keep, keep_probabilities(np.array([0, *kept]), 0.1))
        expected = alias_table(np.array([0, *kept]) ** 0.5)
        np.testing.assert_array_equal(thresholds, expected[0])
        np.testing.assert_array_equal(aliases, expected[1])
        first_rate, last_rate, first_word, first_document, seed = arguments[-5:]
        assert (first_word, first_document) == (0, 0)
        rates.extend([first_rate, last_rate])
        tables = [torch.tensor(table, dtype=torch.float64) for table in arguments[3:6]]
        losses = kernel(*arguments)
        naive.naive_piece(
            *arguments[:3], *tables, *arguments[6:9], config, first_rate, last_rate, int(seed)
        )
        for found, expected in zip(arguments[3:6], tables, strict=True):
            np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)
        return losses

    monkeypatch.setattr(training, "train_piece", checked)
    train_jose(texts, config, num_epochs=2, learning_rate=0.2, num_threads=1, show_progress=False)
    expected = [0.2, 0.1, 0.1, 0.2e-4]
    assert rates == pytest.approx(expected)


def test_lower_case_and_patterns_reach_the_tokenizer():
    texts = ["The cat, the DOG", "a CAT the-dog 12"]
    model, tokenizer = train(texts, lowercase=True, word_pattern="[a-z]+")
    assert tokenizer.get_vocab().keys() == {"[UNK]", "the", "cat", "dog", "a"}
    found = Counter(id for text in texts for id in tokenizer(text).input_ids)
    assert {n: int(count) for n, count in enumerate(model.word_counts) if count} == found


def test_a_pattern_must_mean_the_same_to_python_and_to_tokenizers():
    """For instance, combining marks are letters to Oniguruma alone."""
    texts = ["plain words", "re\u0301sume\u0301"]
    _, tokenizer = train(texts[:1], word_pattern=r"\w+")
    assert tokenizer.get_vocab().keys() == {"[UNK]", "plain", "words"}
    with pytest.raises(ValueError, match="word_pattern means 're' in training and 're\u0301sume"):
        train(texts, word_pattern=r"\w+")


def test_a_corpus_of_one_word_is_trained_without_a_loss():
    """Nothing can be another word than it."""
    model, tokenizer = train(["a a a", "a"])
    assert tokenizer.get_vocab() == {"[UNK]": 0, "a": 1}
    check_unit_rows(model)


def test_a_run_is_resumed_over_the_same_corpus_alone(tmp_path, monkeypatch):
    texts, _ = topical_texts(30)
    settings = {"output_dir": tmp_path, "num_epochs": 3}
    expected = train(texts, num_epochs=3)[0]
    save = training.Run.save

    def save_and_die(run, step, state):
        save(run, step, state)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Run, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(texts, **settings)
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(texts, **settings)
    with pytest.raises(ValueError, match=r"another run: learning_rate is 0\.04 there, 0\.05"):
        train(texts, **settings, learning_rate=0.05, resume=True)
    longer = [*texts[:-1], texts[-1] + " a1"]
    with pytest.raises(ValueError, match="another run"):
        train(longer, **settings, resume=True)
    with pytest.raises(ValueError, match="another run"):
        train(texts[::-1], **settings, resume=True)
    check_same(train(texts, **settings, resume=True)[0], expected)


def test_a_loss_that_is_no_number_ends_the_training(monkeypatch):
    monkeypatch.setattr(training, "train_piece", lambda *_: (float("nan"), 1, 0.0, 0))
    with pytest.raises(FloatingPointError, match="the loss was not finite in round 0"):
        train(LINES)


def test_the_trainer_of_transformers_trains_it(tmp_path):
    """With the optimizer of the room: the loss falls, and rows stay on the sphere."""
    texts, _ = topical_texts(200)
    config = JoseConfig(embedding_dim=16, min_count=1, variant="paper")
    _, corpus, model = prepare(texts, config, seed=0)
    draws = (
        keep_probabilities(model.word_counts.numpy(), 0),
        *alias_table(model.word_counts.numpy() ** 0.75),
    )
    pairs, negatives, _, _ = sample_pairs(
        *corpus.gather(corpus.blocks()), *draws, 2, 2, np.uint64(0)
    )
    columns = dict(zip(("word_ids", "context_ids", "document_ids"), pairs, strict=True))
    data = datasets.Dataset.from_dict(columns | {"negative_ids": negatives}).with_format("torch")
    optimizer = SphericalSGD(model.parameters(), lr=30.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, total_iters=120)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=512,
        max_steps=120,
        logging_steps=20,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        max_grad_norm=0.0,
        seed=0,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=data, optimizers=(optimizer, schedule)
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 6 and losses[-1] < 0.5 * losses[0]
    check_unit_rows(model)
    evaluated = trainer.evaluate(data.select(range(256)))
    assert evaluated["eval_loss"] == pytest.approx(losses[-1], rel=0.3)
    trainer.save_model()
    check_same(JoseModel.from_pretrained(tmp_path), model)


# Memory

MEMORY = """
import json, sys
import torch
torch.set_num_threads(1)
from genzoo.jose import JoseConfig, train_jose
def peak():  # of this process, not of the one that started it, as in getrusage
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
model, tokenizer = train_jose(
    sys.argv[1], JoseConfig(min_count=5), num_epochs=1, num_threads=1, show_progress=False
)
tables = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps([peak() - before, tables, len(tokenizer.get_vocab()), model.config.num_documents]))
"""


@pytest.mark.slow
def test_memory_grows_by_the_tables_and_little_else(tmp_path):
    """60 MB of text, 600,000 documents whose table alone is 240 MB, many words that are rare."""
    source = np.random.default_rng(0)
    path = tmp_path / "corpus.txt"
    with path.open("w") as file:
        for _ in range(60):
            words = source.zipf(1.15, (10_000, 22)) % 3_000_000
            file.writelines(" ".join(f"w{n:x}" for n in row) + "\n" for row in words.tolist())
    assert path.stat().st_size > 50_000_000
    process = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True
    )
    growth, tables, num_words, num_documents = json.loads(process.stdout.splitlines()[-1])
    assert num_documents == 600_000 and num_words > 20_000
    assert tables > 250_000_000
    assert growth < tables + 200_000_000, f"{(growth - tables) / 1e6:.0f} MB beside the tables"


def test_the_comparison_collects_what_is_done(tmp_path):
    """Of two settings the one that places held-out posts better, once both are measured."""
    values = dict.fromkeys(comparison.METRICS, 0.5)
    tried = comparison.METHODS["Doc2Vec"]
    for settings, held_out in zip(tried, (0.7, 0.8), strict=True):
        assert not (tmp_path / "results.json").exists() or "Doc2Vec" not in _methods(tmp_path)
        result = {"held_out": held_out, "values": values}
        runtime.keep_run(tmp_path / "state", "Doc2Vec", settings, 0, lambda result=result: result)
        comparison.collect(tmp_path / "state", tmp_path)
    assert _methods(tmp_path) == {"Doc2Vec": tried[1]}
    again = runtime.keep_run(tmp_path / "state", "Doc2Vec", tried[0], 0, dict)
    assert again["held_out"] == 0.7


def _methods(folder: Path) -> dict:
    tables = json.loads((folder / "results.json").read_text())["comparison"]
    return {row["name"]: row["settings"] for table in tables for row in table["rows"]}
