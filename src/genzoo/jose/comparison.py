"""Methods beside each other, on 20 Newsgroups: `python -m genzoo.jose.comparison FOLDER`.

Two tables. "methods": this room, and gensim's Doc2Vec and Word2Vec, each with the better of two
settings, which is chosen by the training posts alone. "questions": what the article asks (Su, 2019,
https://kexue.fm/archives/7063), one change at a time. Posts are shuffled: the archive has them
sorted by group, and what is trained at the same time comes out a little alike.

A run is one method, setting and seed; it is kept as soon as it is done, so the command can be
stopped and started again, and several can share the work, each with a table or a method of its own.
What is done is put into the folder's results.json.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..data import load_texts, mirror
from ..evaluation.embeddings import kmeans_scores, knn_f1, load_similarity, similarity_score
from ..runtime import keep_run, kept_run, update_results, versions
from .corpus import Splitter
from .modeling_jose import JoseConfig
from .tokenization import ENGLISH_WORDS
from .training import train_jose
from .vectors import JoseVectors

DATA = "newsgroups20"
SEEDS = (0, 1, 2)
QUESTION_SEEDS = (0, 1)
NUM_EPOCHS = 5
METRICS = (
    "knn_f1_macro",
    "knn_f1_micro",
    "kmeans_nmi",
    "kmeans_ari",
    "kmeans_purity",
    "spearman/men3000",
    "words_per_cpu_second",
)

_PLAIN = {"step_factors": ["none"] * 3}
_CALIBRATED = {"step_factors": ["calibrated"] * 3}
_JOSE = {"window_size": 10, "num_epochs": 2 * NUM_EPOCHS}  # still faster than the others
_GENSIM = {"vector_size": 100, "window": 10, "negative": 5, "min_count": 5, "epochs": NUM_EPOCHS}
METHODS: dict[str, list[dict[str, Any]]] = {
    "JoSE": [
        {**_JOSE, "margin": 0.5},
        {**_JOSE, "loss": "cross_entropy", **_PLAIN},
    ],
    "JoSE, the reference's settings": [_JOSE],
    "Doc2Vec": [{**_GENSIM, "alpha": 0.025}, {**_GENSIM, "alpha": 0.05}],
    "Word2Vec, mean of a post's words": [{**_GENSIM, "alpha": 0.025}, {**_GENSIM, "alpha": 0.05}],
}
QUESTIONS: dict[str, dict[str, Any]] = {
    "reference: two hinges, its factors (2h)": {"variant": "reference"},
    "its factors, but 1 + h": {"step_factors": ["reference", "calibrated", "reference"]},
    "two hinges, factor 1 - cos": _CALIBRATED,
    "two hinges, no factor": _PLAIN,
    "two hinges, no factor, through x/|x|": {**_PLAIN, "use_retraction": False},
    "cross-entropy, factor 1 - cos": {"loss": "cross_entropy", **_CALIBRATED},
    "cross-entropy, no factor": {"loss": "cross_entropy", **_PLAIN},
    "paper: joint hinge, factor 1 - cos": {"variant": "paper"},
    "joint hinge, no factor": {"variant": "paper", **_PLAIN},
}


def main(arguments: list[str] | None = None) -> None:
    """Runs what is not done yet, and puts the tables into results.json."""
    parser = argparse.ArgumentParser(prog="python -m genzoo.jose.comparison")
    parser.add_argument("folder", type=Path, help="the card's folder")
    parser.add_argument("--table", choices=("methods", "questions"), help="(default: both)")
    parser.add_argument("--method", choices=tuple(METHODS), help="of the table methods, this alone")
    parser.add_argument("--state", type=Path, default=Path("outputs/jose-comparison"))
    options = parser.parse_args(arguments)
    posts = _Posts()
    if options.table in (None, "questions"):
        for seed in QUESTION_SEEDS:
            for settings in QUESTIONS.values():
                run(options.state, posts, "JoSE", settings, seed)
                collect(options.state, options.folder)
    if options.table in (None, "methods"):
        for method, tried in METHODS.items():
            if options.method in (None, method):
                for settings in tried:
                    run(options.state, posts, method, settings, SEEDS[0])
                for seed in SEEDS[1:]:
                    run(options.state, posts, method, chosen(options.state, method), seed)
                collect(options.state, options.folder)


class _Posts:
    """20 Newsgroups as words, and what group each post is of."""

    def __init__(self):
        parts = [load_texts(DATA, split=split) for split in ("train", "test")]
        split = Splitter(lowercase=True, word_pattern=ENGLISH_WORDS)
        texts = [
            " ".join(word for words in split(text) for word in words)
            for part in parts
            for text in part["text"]
        ]
        self.order = np.random.default_rng(0).permutation(len(texts))
        self.texts = [texts[row] for row in self.order]
        self.labels = np.concatenate([np.asarray(part["label"][:]) for part in parts])
        self.num_train = len(parts[0])
        self.pairs = load_similarity(mirror("word_eval") / "men3000.tsv")

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)


def run(
    state: Path, posts: _Posts, method: str, settings: dict[str, Any], seed: int
) -> dict[str, Any]:
    """One run's numbers: from its file, or measured now."""
    return keep_run(state, method, settings, seed, lambda: _measure(posts, method, settings, seed))


def _measure(posts: _Posts, method: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    train: Callable[..., Any] = _jose if method.startswith("JoSE") else _gensim
    started, wall = time.process_time(), time.monotonic()
    shuffled, words, num_words = train(posts, method, settings, seed)
    speed = num_words / (time.process_time() - started)
    seconds = time.monotonic() - wall
    documents = np.empty_like(shuffled)
    documents[posts.order] = shuffled
    size, labels = posts.num_train, posts.labels
    scores = {
        f"knn_{name}": value
        for name, value in knn_f1(
            documents[:size], labels[:size], documents[size:], labels[size:]
        ).items()
    }
    clusters = kmeans_scores(documents, labels, seed=seed)
    scores |= {f"kmeans_{name}": clusters[name][0] for name in ("nmi", "ari", "purity")}
    # Every other post of the training split, by the rest: what settings are chosen by.
    held_out = knn_f1(documents[:size:2], labels[:size:2], documents[1:size:2], labels[1:size:2])
    return {
        "held_out": held_out["f1_macro"],
        "seconds": seconds,
        "values": scores
        | {
            "spearman/men3000": similarity_score(words, posts.pairs).spearman,
            "words_per_cpu_second": speed,
        },
    }


def chosen(state: Path, method: str) -> dict[str, Any]:
    """The settings of a method that place the held-out posts of the training split best."""
    done = [
        json.loads(file.read_text())
        for settings in METHODS[method]
        if (file := kept_run(state, method, settings, SEEDS[0])).is_file()
    ]
    return max(done, key=lambda result: result["held_out"])["settings"]


def _jose(posts: _Posts, method: str, settings: dict[str, Any], seed: int) -> tuple:
    settings = {"variant": "reference", "window_size": 10, "num_epochs": NUM_EPOCHS} | settings
    num_epochs = settings.pop("num_epochs")
    model, tokenizer = train_jose(
        posts,
        JoseConfig(**settings),
        num_epochs=num_epochs,
        num_threads=1,
        seed=seed,
        show_progress=False,
    )
    vectors = JoseVectors(model, tokenizer)
    return vectors.documents, vectors, num_epochs * int(model.word_counts.sum())


def _gensim(posts: _Posts, method: str, settings: dict[str, Any], seed: int) -> tuple:
    from gensim.models.doc2vec import Doc2Vec, TaggedDocument
    from gensim.models.word2vec import Word2Vec

    texts = [text.split() for text in posts]
    common = {"sample": 1e-3, "workers": 1, "seed": seed, **settings}
    if method == "Doc2Vec":
        tagged = [TaggedDocument(text, [index]) for index, text in enumerate(texts)]
        model = Doc2Vec(tagged, dm=0, dbow_words=1, **common)
        documents = model.dv.vectors
    else:
        model = Word2Vec(texts, sg=1, **common)
        rows = model.wv.get_normed_vectors()
        index: Any = model.wv.key_to_index
        documents = np.stack(
            [
                rows[[index[word] for word in text if word in index] or [0]].mean(axis=0)
                for text in texts
            ]
        )
    documents = documents / np.linalg.norm(documents, axis=1, keepdims=True)
    num_words = sum(model.wv.get_vecattr(word, "count") for word in model.wv.index_to_key)
    return documents, model.wv, settings["epochs"] * int(num_words)


def collect(state: Path, folder: Path) -> None:
    """Puts the tables, as far as they are done, into a folder's results.json."""

    def row(name: str, method: str, settings: dict[str, Any]) -> dict[str, Any]:
        files = [kept_run(state, method, settings, seed) for seed in SEEDS]
        done = [json.loads(file.read_text()) for file in files if file.is_file()]
        return {
            "name": name,
            "settings": settings,
            "values": {metric: [result["values"][metric] for result in done] for metric in METRICS},
            "seconds": [result["seconds"] for result in done],
            "command": "python -m genzoo.jose.comparison model_cards/jose-20news",
        }

    questions = [row(name, "JoSE", settings) for name, settings in QUESTIONS.items()]
    methods = []
    for method, tried in METHODS.items():
        if all(kept_run(state, method, settings, SEEDS[0]).is_file() for settings in tried):
            methods.append(row(method, method, chosen(state, method)))
    tables = [
        (
            "Methods",
            "Each with the better of two settings, chosen on the training posts; JoSE has "
            "twice the epochs, in less time.",
            methods,
        ),
        (
            "What the article asks",
            "Five epochs, window 10, 2 negative words, margin 0.15, learning rate 0.04; one "
            "change at a time.",
            questions,
        ),
    ]
    # Of the runs, not of the process that puts them together.
    machines = {json.loads(file.read_text())["hardware"] for file in sorted(state.glob("*.json"))}
    common = {
        "metrics": list(METRICS),
        "hardware": " and ".join(sorted(machines)),
        "versions": versions(),
        "dataset": DATA,
        "split": "train+test",
    }
    update_results(
        folder,
        comparison=[
            {"title": title, "about": about, "rows": rows} | common
            for title, about, found in tables
            if (rows := [one for one in found if one["seconds"]])
        ],
    )


if __name__ == "__main__":
    main()
