"""JoseVectors: neighbors and analogies, new documents, checkpoints, and the files of others."""

import contextlib
import json
import logging
import shutil
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig
from transformers.utils import logging as transformers_logging

import genzoo
from genzoo.jose import JoseConfig, JoseModel, JoseVectors, build_tokenizer
from genzoo.jose.formats import read_word2vec, to_sphere, write_word2vec
from genzoo.jose.naive import _step


def points(count: int, size: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return to_sphere(rows, range(count), "points")


def make_vectors(num_words: int = 60, num_documents: int = 12, size: int = 16, **changes):
    values = {
        "words": [f"w{index}" for index in range(num_words)],
        "word_vectors": points(num_words, size),
        "context_vectors": points(num_words, size, seed=1),
        "document_vectors": points(num_documents, size, seed=2) if num_documents else None,
    }
    return JoseVectors.from_arrays(**(values | changes))


@contextlib.contextmanager
def gensim_imported():
    """Leaves a test out where gensim is not installed, and is deaf to what its import warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pytest.importorskip("gensim")
    yield


@contextlib.contextmanager
def faiss_imported():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)
        pytest.importorskip("faiss")
    yield


# Looking up


def test_vectors_are_found_by_word():
    vectors = make_vectors()
    assert (len(vectors), vectors.words[:2], list(vectors)[:2]) == (60, ["w0", "w1"], ["w0", "w1"])
    assert "w3" in vectors
    for foreign in ("nobody", "[UNK]", 3, None):
        assert foreign not in vectors
    one, two = vectors["w3"], vectors[["w3", "w5"]]
    assert (one.shape, two.shape, one.dtype, two.dtype) == ((16,), (2, 16), np.float32, np.float32)
    assert np.array_equal(two, points(60)[[3, 5]])
    one[:] = 0  # what comes out is the caller's
    assert np.array_equal(vectors["w3"], two[0])
    assert repr(vectors) == "JoseVectors(60 words, 12 documents, 16 dimensions)"


def test_an_unknown_word_is_answered_with_the_closest():
    vectors = make_vectors(words=["coffee", "coffees", "tea", *(f"w{i}" for i in range(57))])
    with pytest.raises(KeyError) as error:
        vectors["cofee"]
    assert str(error.value) == "there is no word 'cofee'; close to it are 'coffee', 'coffees'"
    with pytest.raises(KeyError, match=r"^there is no word 'zzz'$"):
        vectors.most_similar("zzz")
    with pytest.raises(KeyError, match=r"there is no word '\[UNK\]'"):
        vectors[["tea", "[UNK]"]]
    with pytest.raises(ValueError, match="takes a word or a list of words"):
        vectors[[1, 2]]


def test_documents_are_found_by_id():
    plain, named = make_vectors(), make_vectors(document_ids=[*"abcdefghijk", 7])
    assert plain.documents.shape == (12, 16)
    assert np.array_equal(plain.document(3), points(12, seed=2)[3])
    assert np.array_equal(named.document("d"), points(12, seed=2)[3])
    assert np.array_equal(named.document(7), points(12, seed=2)[11])
    for vectors, id in ((plain, 12), (plain, -1), (plain, "a"), (named, "z"), (named, 3)):
        with pytest.raises(KeyError, match="there is no document"):
            vectors.document(id)
    assert make_vectors(num_documents=0).documents is None
    with pytest.raises(KeyError, match="words only"):
        make_vectors(num_documents=0).document(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"document_ids": ["a"]}, "one for each of the 12 documents, got 1"),
        ({"document_ids": [*"abcdefghijka"]}, "two documents have the id 'a'"),
        ({"document_ids": [0.5] * 12}, "a string or a whole number, got 0.5"),
        ({"counts": [1, 2]}, r"counts must be \(60,\), got \(2,\)"),
        ({"counts": [-1] * 60}, "counts must not be negative"),
        ({"words": ["a"] * 60}, "the word 'a' is there twice"),
        ({"words": ["[UNK]"]}, "there must be a word"),
        ({"words": ["a", "b"]}, r"word_embeddings must be \(2, D\), .* got \(60, 16\)"),
        ({"context_vectors": points(60, 8)}, r"context_embeddings must be .* got \(60, 8\)"),
        ({"document_vectors": points(12, 8)}, r"document_embeddings must be .* got \(12, 8\)"),
        (
            {"document_vectors": np.zeros((12, 16))},
            r"document_embeddings: vector 1, of 0, holds only zeros \(12 of 12 do\)",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_vectors(**changes)


def test_model_and_tokenizer_must_know_the_same_words():
    model = JoseModel(JoseConfig(vocab_size=4, embedding_dim=3))
    with pytest.raises(ValueError, match="from 0 to 3, as the model does, and has 3 words"):
        JoseVectors(model, build_tokenizer(["a", "b"]))
    tokenizer = build_tokenizer(["a", "b", "c"])
    tokenizer.unk_token = "c"
    with pytest.raises(ValueError, match=r"word 0 must be the unknown word, and is '\[UNK\]'"):
        JoseVectors(model, tokenizer)
    with pytest.raises(ValueError, match=r"counts must be \(4,\), got \(3,\)"):
        JoseVectors(model, build_tokenizer(["a", "b", "c"]), counts=[1, 2, 3])


def test_rows_of_any_length_are_brought_to_the_sphere_and_the_model_stays():
    model = JoseModel(JoseConfig(vocab_size=4, embedding_dim=3, num_documents=2))
    with torch.no_grad():
        model.word_embeddings.weight *= 3
    before = model.word_embeddings.weight.clone()
    vectors = JoseVectors(model, build_tokenizer(["a", "b", "c"]))
    np.testing.assert_allclose(vectors["b"], before[2].detach().numpy() / 3, rtol=1e-6)
    assert torch.equal(model.word_embeddings.weight, before)
    with torch.no_grad():
        model.word_embeddings.weight[2, 0] = float("nan")
    with pytest.raises(ValueError, match=r"vector 2, of 'b', holds NaN or infinity \(1 of 3 do\)"):
        JoseVectors(model, build_tokenizer(["a", "b", "c"]))


# Neighbors


def naive_neighbors(vectors, query, among, excluded):
    """All names by falling cosine, in float64."""
    rows = {word: vectors[word] for word in vectors.words} if among != "documents" else {}
    if among != "words":
        ids = vectors.document_ids or range(len(vectors.documents))
        rows |= {id: vectors.document(id) for id in ids}
    query = query / np.linalg.norm(query)
    scores = {n: float(row.astype(float) @ query) for n, row in rows.items() if n not in excluded}
    return sorted(scores.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("among", ["words", "documents", "both"])
@pytest.mark.parametrize(
    ("positive", "negative", "weights"),
    [
        ("w3", (), {"w3": 1}),
        (["w3", "w4"], ["w5"], {"w3": 1, "w4": 1, "w5": -1}),
        ([("w3", 2.0), "w4"], [("w5", -0.5)], {"w3": 2, "w4": 1, "w5": -0.5}),
        (2, (), {2: 1}),
        ([np.int64(2), "w3"], "w9", {2: 1, "w3": 1, "w9": -1}),
    ],
)
def test_neighbors_are_those_of_the_definition(positive, negative, weights, among):
    vectors = make_vectors()
    query = sum(
        weight * (vectors[key] if isinstance(key, str) else vectors.document(key)).astype(float)
        for key, weight in weights.items()
    )
    expected = naive_neighbors(vectors, query, among, weights)
    found = vectors.most_similar(positive, negative, topn=7, among=among)
    assert [name for name, _ in found] == [name for name, _ in expected[:7]]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in expected[:7]], atol=1e-6)
    everything = vectors.most_similar(positive, negative, topn=1000, among=among)
    assert len(everything) == len(expected)
    assert all(type(score) is float for _, score in everything)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, lambda v: [np.asarray(v)]])
def test_a_vector_is_a_key_whose_length_does_not_count(kind):
    vectors = make_vectors()
    found = vectors.most_similar(kind(vectors["w3"] * 5), topn=1)
    assert found == [("w3", pytest.approx(1, abs=1e-6))]  # it is no word that was named
    both = vectors.most_similar([vectors["w3"] * 100, "w4"])
    assert [n for n, _ in both if n != "w3"] == [n for n, _ in vectors.most_similar(["w3", "w4"])][
        :9
    ]


def test_documents_are_called_by_their_ids():
    vectors = make_vectors(document_ids=[f"d{row}" for row in range(12)])
    nearest = vectors.most_similar(vectors.document("d5"), among="both", topn=1)
    assert nearest == [("d5", pytest.approx(1, abs=1e-6))]
    found = vectors.most_similar("d5", among="documents", topn=100)  # as it came out, it goes in
    assert "d5" not in dict(found) and len(found) == 11
    with pytest.raises(KeyError, match="there is no document 5"):
        vectors.most_similar(5)


def test_ids_that_are_numbers_are_ids_and_not_rows():
    vectors = make_vectors(document_ids=range(11, -1, -1))
    assert np.array_equal(vectors.document(0), points(12, seed=2)[11])
    found = dict(vectors.most_similar(0, among="documents", topn=100))
    assert found.keys() == {*range(1, 12)}
    assert found[3] == pytest.approx(
        float(points(12, seed=2)[11] @ points(12, seed=2)[8]), abs=1e-5
    )


@pytest.mark.parametrize(
    ("document_ids", "message"),
    [
        (["x"], "1 and the texts are 3"),
        (["a", "b", 40], "must differ"),
        (["a", "b", "b"], "differ"),
    ],
)
def test_partial_fit_with_wrong_ids_leaves_all_as_it_was(document_ids, message):
    vectors = make_vectors(document_ids=[*range(29, 41)])
    before = vectors.documents.copy()
    with pytest.raises(ValueError, match=message):
        vectors.partial_fit(["w1 w2"] * 3, document_ids=document_ids, num_epochs=1)
    assert (len(vectors), len(vectors.document_ids)) == (60, 12)
    assert np.array_equal(vectors.documents, before)
    vectors.partial_fit(["w1 w2"] * 3, num_epochs=1)  # rows 12, 13 and 14 are free to be names
    assert vectors.document_ids[12:] == [12, 13, 14]


def test_the_unknown_word_is_no_neighbor():
    rows = points(60)
    words = [f"w{index}" for index in range(60)]
    words[7], rows[7] = "[UNK]", rows[3]  # as close to w3 as can be
    vectors = make_vectors(words=words, word_vectors=rows, counts=np.arange(100, 160))
    assert len(vectors) == 59
    assert "[UNK]" not in vectors.words
    assert "[UNK]" not in dict(vectors.most_similar("w3", topn=100))
    assert "[UNK]" not in dict(vectors.most_similar_cosmul("w3", topn=100))
    table = vectors.model.word_embeddings.weight.detach().numpy()
    assert np.array_equal(table[0], rows[3])
    assert vectors.counts.tolist() == [107, *range(100, 107), *range(108, 160)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda v: v.most_similar(), ValueError, "needs keys"),
        (lambda v: v.most_similar("w1", "w1"), ValueError, "do not cancel each other"),
        (lambda v: v.most_similar("w1", topn=0), ValueError, "topn must be at least 1, got 0"),
        (lambda v: v.most_similar("w1", among="docs"), ValueError, "among must be 'words', 'doc"),
        (lambda v: v.most_similar("w1", exact=False), ValueError, r"call build_index\(\)"),
        (lambda v: v.most_similar(12), KeyError, "no document 12, only 0 to 11"),
        (lambda v: v.most_similar(np.ones(3)), ValueError, "vector of 16 finite numbers"),
        (lambda v: v.most_similar(np.zeros(16)), ValueError, "not all zero"),
        (lambda v: v.most_similar(np.full(16, np.nan)), ValueError, "16 finite numbers"),
        (lambda v: v.most_similar([None]), ValueError, "a key is a word, .* got None"),
        (lambda v: v.most_similar_cosmul(), ValueError, "needs positive keys"),
        (lambda v: v.most_similar_cosmul([("w1", 2.0)]), ValueError, "knows no weights"),
        (lambda v: v.analogy("w1", "w2", "w3", method="add"), ValueError, "'3cosadd' or '3cosmul'"),
        (lambda v: v.doesnt_match([]), ValueError, "a mean needs keys"),
        (lambda v: v.n_similarity("w1", []), ValueError, "a mean needs keys"),
        (lambda v: v.save_word2vec("x", documents=True) or v, ValueError, "no documents to write"),
    ],
)
def test_wrong_questions_are_answered_with_a_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call(make_vectors(num_documents=0 if "no documents" in message else 12))


def test_there_must_be_documents_to_look_among():
    with pytest.raises(ValueError, match="no documents to look among"):
        make_vectors(num_documents=0).most_similar("w1", among="both")


def test_analogies_are_parallelograms():
    a, b, c = points(3, size=3)
    rows = np.concatenate([points(50, seed=4), np.zeros((4, 16), np.float32)])
    rows[50:, :3] = a, b, c, b - a + c
    words = [*(f"w{index}" for index in range(50)), "man", "king", "woman", "queen"]
    vectors = JoseVectors.from_arrays(words, rows)
    ((word, cosine),) = vectors.analogy("man", "king", "woman")
    assert (word, cosine) == ("queen", pytest.approx(1, abs=1e-6))
    assert vectors.analogy("man", "king", "woman", method="3cosmul", topn=2)[0][0] == "queen"


# As in gensim


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        (["w3"], []),
        (["w3", "w4"], ["w5"]),
        (["w3", "w4", "w8"], ["w5", "w6"]),
        ([("w3", 0.3), ("w4", 2.0)], [("w5", -0.7), "w6"]),
        ([points(1, seed=9)[0], "w4"], ["w5"]),
    ],
)
def test_neighbors_are_those_of_gensim(positive, negative):
    with gensim_imported():
        vectors = make_vectors()
        theirs = vectors.to_gensim()
    expected = theirs.most_similar(positive, negative, topn=15)
    found = vectors.most_similar(positive, negative, topn=15)
    assert [word for word, _ in found] == [word for word, _ in expected]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], atol=1e-6)
    if any(isinstance(key, tuple) for key in positive):
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Call to deprecated `init_sims`", DeprecationWarning)
        expected = theirs.most_similar_cosmul(positive, negative, topn=15)
    found = vectors.most_similar_cosmul(positive, negative, topn=15)
    assert [word for word, _ in found] == [word for word, _ in expected]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], rtol=1e-5)


def test_similarities_are_those_of_gensim():
    with gensim_imported():
        vectors = make_vectors()
        theirs = vectors.to_gensim()
    left, right = ["w1", "w2", "w3"], ["w4", "w5"]
    assert vectors.similarity("w1", "w2") == pytest.approx(theirs.similarity("w1", "w2"), abs=1e-6)
    expected = theirs.n_similarity(left, right)
    assert vectors.n_similarity(left, right) == pytest.approx(expected, abs=1e-6)
    for start in range(50):
        words = vectors.words[start : start + 5]
        assert vectors.doesnt_match(words) == theirs.doesnt_match(words)


def test_vectors_go_to_gensim_and_back():
    with gensim_imported():
        vectors = make_vectors(counts=np.arange(1000, 1060))
        theirs = vectors.to_gensim()
    assert theirs.get_vecattr("w3", "count") == 1003
    assert np.array_equal(theirs["w3"], vectors["w3"])
    back = JoseVectors.from_gensim(theirs)
    assert back.words == vectors.words
    assert np.array_equal(back.counts, vectors.counts)
    assert np.array_equal(back[back.words], vectors[vectors.words])
    theirs.vectors *= 3
    np.testing.assert_allclose(JoseVectors.from_gensim(theirs)["w3"], vectors["w3"], atol=1e-7)


def test_what_gensim_makes_up_is_not_taken_over(tmp_path):
    """It counts the words of a file down from their number."""
    with gensim_imported():
        from gensim.models import KeyedVectors

        make_vectors().save_word2vec(tmp_path / "words.txt")
        theirs = KeyedVectors.load_word2vec_format(tmp_path / "words.txt")
    assert theirs.get_vecattr("w0", "count") == 60
    assert JoseVectors.from_gensim(theirs).counts is None
    tags = KeyedVectors(2)
    tags.add_vectors([0, 1], np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="some keys are no strings"):
        JoseVectors.from_gensim(tags)


@pytest.mark.parametrize(
    ("module", "call", "message"),
    [
        ("gensim.models", lambda v: v.to_gensim(), "needs gensim: pip install 'genzoo"),
        ("faiss", lambda v: v.build_index(), r"pip install 'genzoo\[jose\]'"),
        (
            "sentence_transformers",
            lambda v: v.save_sentence_transformer("x"),
            "needs sentence-transformers 6: pip install 'genzoo",
        ),
    ],
)
def test_a_missing_package_is_named(monkeypatch, module, call, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=message):
        call(make_vectors())


# The index


def test_the_index_finds_nine_of_ten():
    with faiss_imported():
        vectors = make_vectors(num_words=4000, num_documents=1500, size=48)
        vectors.build_index()
    for among, queries in (("words", vectors.words[:100]), ("documents", range(100))):
        hits = 0
        for key in queries:
            exact = vectors.most_similar(key, among=among)
            found = vectors.most_similar(key, among=among, exact=False)
            assert key not in dict(found)
            assert len(found) == 10
            shared = dict(exact).keys() & dict(found).keys()
            assert [dict(exact)[name] for name in shared] == pytest.approx(
                [dict(found)[name] for name in shared], abs=1e-6
            )
            hits += len(shared)
        assert hits / 1000 >= 0.9
    both = vectors.most_similar(["w1", 1], among="both", exact=False)
    assert {type(name) for name, _ in both} == {str, int}
    assert [score for _, score in both] == sorted((score for _, score in both), reverse=True)


def test_the_index_of_few_rows_finds_all():
    with faiss_imported():
        vectors = make_vectors()
        vectors.build_index(num_links=8)
    found = vectors.most_similar("w3", topn=1000, exact=False)
    assert [word for word, _ in found] == [word for word, _ in vectors.most_similar("w3", topn=59)]


# New documents

TEXTS = ["w1 w2 w3 w2", "w9 w8 new w7", "", "w1 w2 w3 w2", "w4", "w5 " * 300]


def test_inferred_rows_have_length_one():
    vectors = make_vectors(counts=np.arange(60, 0, -1) ** 2)
    inferred = vectors.infer(TEXTS)
    assert (inferred.shape, inferred.dtype) == ((6, 16), np.float32)
    np.testing.assert_allclose(np.linalg.norm(inferred, axis=1), 1, atol=1e-6)
    assert vectors.infer([]).shape == (0, 16)


def test_the_vector_of_a_text_depends_on_nothing_else():
    vectors = make_vectors(counts=np.arange(60, 0, -1) ** 2)
    inferred = vectors.infer(TEXTS, num_threads=1)
    assert np.array_equal(inferred, vectors.infer(TEXTS, num_threads=5))
    assert np.array_equal(inferred[::-1], vectors.infer(TEXTS[::-1]))
    assert np.array_equal(inferred[1:2], vectors.infer(TEXTS[1:2]))
    assert np.array_equal(inferred, vectors.infer(text for text in TEXTS))
    assert np.array_equal(inferred[0], inferred[3])
    many = vectors.infer(TEXTS * 900)  # more than are worked on at a time
    assert np.array_equal(many, np.tile(inferred, (900, 1)))
    assert not np.array_equal(inferred, vectors.infer(TEXTS, seed=1))
    assert np.array_equal(vectors.infer(TEXTS, seed=-5), vectors.infer(TEXTS, seed=-5))
    assert not np.array_equal(inferred[0], vectors.infer(["w2 w2 w1 w3"])[0])


def test_unknown_words_are_left_out():
    vectors = make_vectors()
    assert np.array_equal(
        vectors.infer(["what w1 [UNK] is w2 this"]), vectors.infer(["  w1\tw2 \n"])
    )


def test_settings_of_an_earlier_call_of_the_tokenizer_do_not_count():
    vectors = make_vectors()
    expected = vectors.infer(TEXTS)
    vectors.tokenizer(TEXTS, padding=True, truncation=True, max_length=2)
    assert np.array_equal(vectors.infer(TEXTS), expected)


@pytest.mark.parametrize("num_documents", [0, 12])
def test_a_text_without_known_words_is_in_the_middle(num_documents, caplog):
    vectors = make_vectors(num_documents=num_documents)
    table = vectors.documents if num_documents else vectors[vectors.words]
    middle = table.mean(axis=0) / np.linalg.norm(table.mean(axis=0))
    with caplog.at_level(logging.WARNING):
        inferred = vectors.infer(["", "w1", "nobody knows"] * 2000)
    np.testing.assert_allclose(inferred[[0, 2, -1]], [middle] * 3, atol=1e-6)
    kind = "documents" if num_documents else "words"
    assert [record.getMessage() for record in caplog.records] == [
        f"4000 texts have no known word: their vector is the middle of all {kind}"
    ]


def test_without_steps_a_document_is_the_middle_of_its_words():
    """Each word counts as much as it is likely to survive sub-sampling."""
    counts = np.array([10**6, 10**5, *[10**3] * 58])
    vectors = make_vectors(counts=counts)
    share = 1e-3 * counts.sum() / counts
    keep = np.minimum(1, np.sqrt(share) + share)
    expected = keep[0] * vectors["w0"] + 2 * keep[1] * vectors["w1"] + keep[9] * vectors["w9"]
    inferred = vectors.infer(["w1 w0 w9 w1"], learning_rate=0)[0]
    np.testing.assert_allclose(inferred, expected / np.linalg.norm(expected), atol=1e-6)


def test_words_that_cancel_have_a_vector_too():
    rows = points(4)
    rows[1] = -rows[0]
    vectors = JoseVectors.from_arrays([*"abcd"], rows)
    np.testing.assert_allclose(np.linalg.norm(vectors.infer(["a b", "b a a b"]), axis=1), 1, 1e-6)


class Dice:
    """The random words of kernels.py; the state begins as a hash of the text."""

    def __init__(self, tokens: list[int], seed: int, thresholds: np.ndarray, aliases: np.ndarray):
        self.thresholds, self.aliases = thresholds, aliases
        self.state = 14695981039346656037 ^ seed
        for token in tokens:
            self.state = (self.state ^ token) * 1099511628211 % 2**64
        self.roll(), self.roll()

    def roll(self) -> int:
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return self.state

    def word(self) -> int:
        state = self.roll()
        column = ((state >> 32) * len(self.thresholds)) >> 32
        side = np.float32((state >> 8) & 0xFFFFFF) * np.float32(2.0**-24)
        return column if side < self.thresholds[column] else int(self.aliases[column])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_negatives": 3, "margin": 0.4},
        {"step_factors": ["calibrated"] * 3},
        {"step_factors": ["none"] * 3},
        {"loss": "cross_entropy", "loss_scale": 5.0},
        {"variant": "paper"},
    ],
    ids=str,
)
def test_inference_takes_the_steps_of_the_definition(changes):
    """Those of naive.py, whose gradients are autograd's, on a document alone."""
    vectors = make_vectors(counts=np.arange(60, 0, -1) ** 3)
    vectors.model.config = config = JoseConfig(**(vectors.model.config.to_dict() | changes))
    tokens = [3, 0, 7, 3, 12, 0]
    keep, thresholds, aliases = vectors._noise()
    assert keep.min() < 1
    words = torch.tensor(vectors[vectors.words]).double()
    dice = Dice(tokens, 11, thresholds, aliases)
    d = sum(float(keep[token]) * words[token] for token in tokens)
    d = d / d.norm()
    alone = JoseConfig(**(config.to_dict() | {"is_joint": False}))
    for step in range(4 * len(tokens)):
        token = tokens[step % len(tokens)]
        rate = 0.3 * (1 - step / (4 * len(tokens))) * float(keep[token])
        for _ in range(config.num_negatives):
            if (negative := dice.word()) != token:
                _step(words[token].clone(), words[negative].clone(), [d], rate, alone)
    text = " ".join(vectors.words[token] for token in tokens)
    inferred = vectors.infer([text], num_epochs=4, learning_rate=0.3, seed=11)[0]
    np.testing.assert_allclose(inferred, d.numpy(), atol=2e-5)


def topics(num_texts: int, seed: int) -> list[str]:
    """Texts about one of four topics, which share two fifths of their words."""
    source = np.random.default_rng(seed)
    own = source.integers(0, 25, (num_texts, 60))
    return [
        " ".join(
            f"topic{row % 4}word{number}" if number < 15 else f"common{number}"
            for number in numbers
        )
        for row, numbers in enumerate(own)
    ]


# The corpus leaves its temporary file to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file <_io.BufferedRandom:ResourceWarning")
def test_new_documents_lie_where_training_puts_them():
    from genzoo.jose.training import train_jose

    texts = topics(160, seed=0)
    # With the usual margin, a document of so few words stops long before the middle of its topic.
    config = JoseConfig(embedding_dim=24, min_count=1, margin=1.0, variant="reference")
    model, tokenizer = train_jose(texts, config, num_epochs=20, num_threads=1, show_progress=False)
    vectors = JoseVectors(model, tokenizer)
    assert vectors.counts.sum() == 160 * 60
    inferred = vectors.infer(texts)
    means = np.stack([vectors[text.split()].mean(axis=0) for text in texts])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    close = (inferred * vectors.documents).sum(axis=1).mean()
    assert close > (means * vectors.documents).sum(axis=1).mean() + 0.3
    assert close > 0.75

    # Words, old and new documents are on one sphere.
    for row, new in enumerate(vectors.infer(topics(40, seed=1))):
        words = [word for word, _ in vectors.most_similar(new, topn=5)]
        assert all(word.startswith(f"topic{row % 4}") for word in words), words
        documents = vectors.most_similar(new, among="documents", topn=5)
        assert [document % 4 for document, _ in documents] == [row % 4] * 5


@pytest.mark.parametrize("document_ids", [None, ["a", "b", "c"]])
def test_partial_fit_adds_and_moves_nothing(document_ids):
    vectors = make_vectors()
    words, documents = vectors[vectors.words], vectors.documents.copy()
    state = {name: value.clone() for name, value in vectors.model.state_dict().items()}
    texts = ["w1 w2 new w1", "w3 new w4 rare", "w5 w6 new w1"]
    found = vectors.partial_fit(
        texts, document_ids=document_ids, min_count=2, num_epochs=3, num_threads=1
    )
    assert found is vectors
    assert vectors.words == [*(f"w{index}" for index in range(60)), "new"]
    assert len(vectors.documents) == 15 and "rare" not in vectors
    assert np.array_equal(vectors[vectors.words[:60]], words)
    assert np.array_equal(vectors.documents[:12], documents)
    for name, old in state.items():
        if name != "word_counts":
            assert torch.equal(vectors.model.state_dict()[name][: len(old)], old), name
    norms = np.linalg.norm(vectors.documents, axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)
    last = 14 if document_ids is None else "c"
    assert vectors.most_similar(vectors.documents[14], among="documents", topn=1)[0][0] == last


def test_partial_fit_moves_old_rows_when_asked():
    vectors = make_vectors()
    words = vectors[vectors.words]
    vectors.partial_fit(["w1 w2 w3", "w1 w4 w5"], is_frozen=False, num_epochs=2, num_threads=1)
    assert not np.array_equal(vectors[["w1", "w2"]], words[1:3])
    assert np.array_equal(vectors["w50"], words[50]) or vectors.similarity("w50", words[50]) > 0.9


def test_partial_fit_without_contexts_takes_documents_alone():
    vectors = make_vectors(context_vectors=None)
    words = vectors[vectors.words]
    with pytest.raises(ValueError, match="1 new words, such as 'new', cannot be placed"):
        vectors.partial_fit(["w1 new"], min_count=1)
    with pytest.raises(ValueError, match="old words cannot be placed"):
        vectors.partial_fit(["w1 w2"], is_frozen=False)
    with pytest.raises(ValueError, match="the texts have no known words"):
        vectors.partial_fit(["nothing known"])
    vectors.partial_fit(["w1 w2 w1"], num_epochs=5, num_threads=1)
    assert np.array_equal(vectors[vectors.words], words)
    assert vectors.model.context_embeddings is None and len(vectors.documents) == 13


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "w1 w2"}, "infer takes several texts: put one into a list"),
        ({"texts": ["w1", 3]}, "document 1 is a int"),
        ({"texts": ["w1"], "num_epochs": 0}, "num_epochs must be at least 1"),
        ({"texts": ["w1"], "learning_rate": -1.0}, "learning_rate not negative"),
    ],
)
def test_wrong_texts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_vectors().infer(**arguments)


# Checkpoints


def test_a_checkpoint_comes_back_to_the_last_bit(tmp_path):
    ids = [f"документ {row}" for row in range(11)] + [99]
    vectors = make_vectors(document_ids=ids, counts=np.arange(60))
    vectors.save_pretrained(tmp_path)
    back = JoseVectors.from_pretrained(tmp_path)
    assert back.document_ids == ids
    assert np.array_equal(back.counts, vectors.counts)
    assert back.words == vectors.words
    assert np.array_equal(back[back.words], vectors[vectors.words])
    assert np.array_equal(back.documents, vectors.documents)
    assert np.array_equal(back.infer(TEXTS), vectors.infer(TEXTS))
    model = AutoModel.from_pretrained(tmp_path)
    for name, tensor in vectors.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)

    make_vectors().save_pretrained(tmp_path)
    assert JoseVectors.from_pretrained(str(tmp_path)).document_ids is None


def test_a_checkpoint_of_float16_is_read_as_float32(tmp_path):
    vectors = make_vectors()
    vectors.model.half()
    vectors.save_pretrained(tmp_path)
    back = JoseVectors.from_pretrained(tmp_path)
    assert back.model.dtype == torch.float32
    np.testing.assert_allclose(np.linalg.norm(back.documents, axis=1), 1, atol=2e-7)
    np.testing.assert_allclose(back["w3"], points(60)[3], atol=1e-3)


def test_code_of_a_checkpoint_is_not_run(tmp_path):
    make_vectors().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "trap.Trap", "AutoConfig": "trap.Trap"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": [None, "trap.Trap"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "trap.py").write_text("raise SystemExit('it was run')")
    assert len(JoseVectors.from_pretrained(tmp_path)) == 60


def broken(name, change):
    def break_it(folder: Path) -> None:
        path = folder / name
        content = change(path.read_bytes() if path.exists() else b"")
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)

    return break_it


def without_words(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["word_embeddings.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def of_another_size(folder: Path) -> None:
    make_vectors(num_words=7).model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (broken("config.json", lambda old: None), OSError, r"there is no .*config\.json"),
        (broken("config.json", lambda old: old[:-9]), ValueError, r"config\.json is not JSON"),
        (broken("config.json", lambda old: b"[]"), ValueError, "holds a list, not a dict"),
        (broken("config.json", lambda old: b"{}"), ValueError, "model of the type None, not 'genz"),
        (lambda f: BertConfig().save_pretrained(f), ValueError, "the type 'bert', not 'genzoo_j"),
        (broken("model.safetensors", lambda old: None), OSError, "cannot be read: "),
        (broken("model.safetensors", lambda old: old[:-9]), OSError, "cannot be read: "),
        (broken("model.safetensors", lambda old: b""), OSError, "cannot be read: "),
        (without_words, OSError, r"lacks word_embeddings\.weight$"),
        (of_another_size, ValueError, "does not fit together: the tokenizer must number its words"),
        (broken("tokenizer.json", lambda old: None), OSError, r"there is no .*tokenizer\.json"),
        (broken("tokenizer.json", lambda old: old[:-9]), OSError, "cannot be read: "),
        (broken("documents.json", lambda old: b'{"a": 1}'), ValueError, "holds a dict, not a list"),
        (broken("documents.json", lambda old: b'["a"'), ValueError, r"documents\.json is not JSON"),
        (broken("documents.json", lambda old: b"\xff"), ValueError, r"documents\.json is not JSON"),
        (broken("documents.json", lambda old: b'["a"]'), ValueError, "does not fit .* got 1"),
        (broken("documents.json", lambda old: b"[null]"), ValueError, "a string or a whole number"),
    ],
)  # fmt: skip
def test_damaged_folders_are_refused_with_one_sentence(tmp_path, damage, error, message):
    make_vectors().save_pretrained(tmp_path)
    damage(tmp_path)
    transformers_logging.set_verbosity_error()  # which reports missing keys before we do
    try:
        with pytest.raises(error, match=message) as raised:
            JoseVectors.from_pretrained(tmp_path)
    finally:
        transformers_logging.set_verbosity_warning()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "jose-20news",
            ValueError,
            "'jose-20news' is neither a folder here nor a Hub id (owner/name); for a name of the "
            "zoo write JoseVectors.from_pretrained(genzoo.locate('jose-20news'))",
        ),
        ("./nowhere", OSError, "there is no folder ./nowhere"),
        ("a/b/c", OSError, "there is no folder a/b/c"),
        ("owner/na me", ValueError, "'owner/na me' is neither a folder here nor a Hub id"),
        ("owner/name", OSError, "owner/name could not be fetched: "),
    ],
)
def test_names_that_lead_nowhere_are_refused(name, error, message):
    with pytest.raises(error) as raised:
        JoseVectors.from_pretrained(name)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_the_zoo_says_where_its_checkpoints_are():
    assert callable(genzoo.locate)  # what the message of from_pretrained advises


# Files of word2vec


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_a_file_comes_back_to_the_last_bit(tmp_path, binary, told):
    words = ["the", "ünï", "猫", "</s>", "0", *(f"w{index}" for index in range(55))]
    vectors = make_vectors(words=words)
    vectors.save_word2vec(tmp_path / "words", binary=binary)
    back = JoseVectors.load_word2vec(tmp_path / "words", binary=binary if told else None)
    assert back.words == words
    assert np.array_equal(back[words], vectors[words])
    assert (back.documents, back.model.context_embeddings, back.counts) == (None, None, None)
    assert list(tmp_path.iterdir()) == [tmp_path / "words"]


@pytest.mark.parametrize("binary", [False, True])
def test_documents_are_written_with_their_rows(tmp_path, binary):
    vectors = make_vectors(document_ids=[f"d{row}" for row in range(12)])
    vectors.save_word2vec(tmp_path / "d", binary=binary, documents=True)
    words, rows = read_word2vec(tmp_path / "d")
    assert words == [str(row) for row in range(12)]
    assert np.array_equal(rows, vectors.documents)


@pytest.mark.parametrize("binary", [False, True])
def test_files_are_those_of_gensim(tmp_path, binary):
    with gensim_imported():
        from gensim.models import KeyedVectors

        vectors = make_vectors()
        vectors.save_word2vec(tmp_path / "ours", binary=binary)
        theirs = KeyedVectors.load_word2vec_format(tmp_path / "ours", binary=binary)
    assert theirs.index_to_key == vectors.words
    assert np.array_equal(theirs.vectors, vectors[vectors.words])
    theirs.save_word2vec_format(tmp_path / "theirs", binary=binary)
    words, rows = read_word2vec(tmp_path / "theirs")
    assert words == vectors.words
    assert np.array_equal(rows, theirs.vectors)


@pytest.mark.parametrize(
    "content",
    [
        b"2 3\na 0.600000 0.800000 0.000000 \nb 0.000000 0.000000 -1.000000 \n",  # jose.c
        b"2 3\na 0.6 0.8 0\nb 0 0 -1",
        b"2 3\r\na 0.6 0.8 0\r\nb 0 0 -1\r\n",
        b"2\t3\na\t0.6\t0.8\t0\nb\t0\t0\t-1\n\n",
        b"2 3\na 3 4 0\nb 0 0 -1e-3\n",
    ],
)
def test_text_may_be_spaced_in_many_ways_and_comes_to_the_sphere(tmp_path, content):
    (tmp_path / "words").write_bytes(content)
    words, rows = read_word2vec(tmp_path / "words")
    assert words == ["a", "b"]
    np.testing.assert_allclose(rows, [[0.6, 0.8, 0], [0, 0, -1]], atol=1e-7)


def test_words_may_hold_what_is_a_space_elsewhere(tmp_path):
    words = ["\x0c", "a\x0bb", "x\u00a0y", "\u3000"]
    for binary in (False, True):
        write_word2vec(tmp_path / "words", words, points(4), binary=binary)
        assert read_word2vec(tmp_path / "words")[0] == words


NUMBERS = struct.pack("<3f", 0, 0.6, 0.8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no word2vec file: its first line must be two numbers"),
        (b"hello world\n", r"and is b'hello world\\n'"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is no word2vec file"),
        (b"the 0.1 0.2 0.3\nof 0.1 0.2 0.3\n", "is no word2vec file"),
        (b"0 3\n", "is no word2vec file"),
        (b"2 3\na 0 0 1\nb 0 1\n", "line 3: a line must be a word and 3 numbers, .* has 2 values"),
        (b"2 3\na 0 0 1\nb c 0 1 0\n", "line 3: .* this one has 4 values behind 'b'"),
        (b"2 3\na 0 0 1\n 0 0 1\n", "line 3: .* has 3 values behind ''"),
        (b"2 3\na 0 0 1\nb 0 x 1\n", "line 3: behind 'b' stand other things than numbers"),
        (b"3 3\na 0 0 1\nb 0 1 0\n", "has 2 vectors, and its first line promises 3"),
        (b"999999999 3\na 0 0 1\nb 0 1 0\n", "has 2 vectors, and its first line promises 9999"),
        (b"1 3\na 0 0 1\nb 0 1 0\n", "line 3: there are more vectors than the 1 that"),
        (b"2 3\na 0 0 1\nb 0 nan 0\n", r"vector 2, of 'b', holds NaN or infinity \(1 of 2 do\)"),
        (b"2 3\na 0 0 1\nb 0 -inf 0\n", "vector 2, of 'b', holds NaN or infinity"),
        (b"2 3\na 0 0 1\nb 0 1e99 0\n", "vector 2, of 'b', holds NaN or infinity"),
        (b"2 3\na 0 0 0\nb 0 1 0\n", r"vector 1, of 'a', holds only zeros"),
        (b"2 3\na " + NUMBERS + b"b " + NUMBERS[:-2], "ends within word 2 of the 2 .*binary"),
        (b"2 3\na " + NUMBERS + b"\n", "ends within word 2 of the 2"),
        (b"999999999 3\na " + NUMBERS + b"\n", "ends within word 2 of the 999999999"),
        (b"1 3\na " + NUMBERS + b"b " + NUMBERS, "goes on behind the 1 vectors"),
        (b"2 3\na " + NUMBERS + b" " + NUMBERS, r"word 2 is empty \(binary\)"),
        (b"1 3\na " + struct.pack("<3f", 0, float("nan"), 1), "vector 1, of 'a', holds NaN"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_with_one_sentence(tmp_path, content, message):
    (tmp_path / "words").write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        JoseVectors.load_word2vec(tmp_path / "words")
    assert str(tmp_path / "words") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        JoseVectors.load_word2vec(tmp_path / "words")


@pytest.mark.parametrize("binary", [False, True])
def test_repeated_and_damaged_words_are_counted(tmp_path, caplog, binary):
    words = [b"a", b"b\xff", b"a", b"c", b"a", b"b\xfe"]
    rows = points(6, size=3)
    with (tmp_path / "words").open("wb") as file:
        file.write(b"6 3\n")
        for word, row in zip(words, rows, strict=True):
            numbers = row.tobytes() if binary else b"%.9g %.9g %.9g" % tuple(row.tolist())
            file.write(word + b" " + numbers + b"\n")
    with caplog.at_level(logging.WARNING):
        found, vectors = read_word2vec(tmp_path / "words")
    assert found == ["a", "b\ufffd", "c"]
    assert np.array_equal(vectors, rows[[0, 1, 3]])
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'words'}: 2 words are not UTF-8; what is not was replaced",
        f"{tmp_path / 'words'}: 3 lines repeat a word; the first of each was kept",
    ]


@pytest.mark.parametrize("word", ["", "a b", "a\n", "\t"])
def test_words_with_spaces_are_not_written(tmp_path, word):
    with pytest.raises(ValueError, match="has no place in a word2vec file"):
        write_word2vec(tmp_path / "words", ["a", word], points(2))
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    write_word2vec(tmp_path / "words", ["a", "b"], points(2))
    before = (tmp_path / "words").read_bytes()
    with pytest.raises(ValueError):  # three words and two rows
        write_word2vec(tmp_path / "words", ["c", "d", "e"], points(2))
    assert (tmp_path / "words").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "words"]


def test_the_sphere_is_reached_and_then_kept_to_the_last_bit():
    rows = points(1000, size=7, seed=3)
    assert to_sphere(rows, range(1000), "rows") is rows
    longer = rows * np.float32(1.001)
    again = to_sphere(longer, range(1000), "rows")
    np.testing.assert_allclose(again, rows, atol=2e-7)
    assert to_sphere(again, range(1000), "rows") is again
    assert to_sphere(longer, range(1000), "rows", out=longer) is longer
    assert np.array_equal(longer, again)
    huge = np.full((1, 4), 3e38, np.float32)
    np.testing.assert_allclose(to_sphere(huge, "a", "rows"), 0.5, rtol=1e-6)


# sentence-transformers


def test_a_sentence_transformer_gives_the_pooled_words(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import warns of what it uses itself
        transformer_class = pytest.importorskip("sentence_transformers").SentenceTransformer
        vectors = make_vectors()
        vectors.save_sentence_transformer(tmp_path)
        transformer = transformer_class(str(tmp_path), device="cpu")
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".py", ".bin", ".pkl")]
    texts = ["w1 w2 w2", "w3", "new w5 words w6", "nobody knows", ""]
    inputs = vectors.tokenizer(texts, return_tensors="pt", padding=True)
    expected = vectors.model(**inputs).pooler_output.detach().numpy()
    found = transformer.encode(texts)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not found[3:].any()
    np.testing.assert_allclose(np.linalg.norm(found[:3], axis=1), 1, atol=1e-6)
    assert vectors.model.word_embeddings.weight[0].any()  # the model is as it was
    shutil.rmtree(tmp_path)
