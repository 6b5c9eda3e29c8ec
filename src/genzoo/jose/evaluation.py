"""How good word and document vectors are, as a checkpoint's folder holds them."""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data import load_texts, mirror
from ..evaluation.embeddings import (
    analogy_accuracy,
    kmeans_scores,
    knn_f1,
    load_analogies,
    load_similarity,
    similarity_score,
)
from ..runtime import command, hardware, versions
from .tokenization import segment_chinese
from .vectors import JoseVectors

_LOWEST_COVERAGE = 0.5
"""Word lists of which less is known are not about this vocabulary."""


def evaluate_jose(
    folder: str | Path, dataset: str | None = None, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Measures the embeddings in a folder as they are loaded, rounding to float16 included.

    - Similarity and analogies on the lists of the mirror `word_eval`, where at least half of a
      list's items are known.
    - If the documents of the training are there, and their data set has labels: kNN (k = 3, train
      split to test split) and k-means of all of them, plain and spherical, 10 runs each.
    - Else kNN on documents which `JoseVectors.infer` places, for each labelled data set.

    Args:
        folder: A checkpoint folder.
        dataset: A data set with the columns "text" and "label", for kNN, in the place of those of
            the training.
        seed: Of k-means.

    Returns:
        Rows for `results.json`.

    Raises:
        FileNotFoundError: If a data set is not there.
        ValueError: If nothing can be measured.
    """
    started = time.monotonic()
    vectors = JoseVectors.from_pretrained(folder)
    results = Path(folder) / "results.json"
    training = json.loads(results.read_text()).get("training", {}) if results.is_file() else {}
    rows = []
    names = [dataset] if dataset else training.get("dataset", "").split(" + ")
    for name in names:
        if dataset is None and vectors.documents is not None and len(names) == 1:
            rows += document_rows(vectors, name, training, seed)
        else:
            rows += inferred_rows(vectors, name, seed)
    # What a checkpoint is known by comes first: its documents if it has them, else its words.
    has_documents = vectors.documents is not None
    rows = [*rows, *word_rows(vectors)] if has_documents else [*word_rows(vectors), *rows]
    if not rows:
        raise ValueError(f"{folder}: there is no list of words and no data set to measure it on")
    common = {
        "std": None,
        "seed": seed,
        "command": command(),
        "hardware": hardware(),
        "seconds": time.monotonic() - started,
        "versions": versions(),
        "reference": False,
    }
    return [common | row for row in rows]


def word_rows(vectors: JoseVectors) -> list[dict[str, Any]]:
    """Spearman on the lists of pairs, and the share of right analogies, of a word table."""
    rows, folder = [], mirror("word_eval")
    # The list that everybody knows comes first: it speaks for the checkpoint in `genzoo list`.
    for path in sorted(folder.glob("*.tsv"), key=lambda path: ("wordsim" not in path.stem, path)):
        pairs = load_similarity(path)
        known = sum(a.lower() in vectors and b.lower() in vectors for a, b, _ in pairs)
        if known < _LOWEST_COVERAGE * len(pairs):
            continue
        found = similarity_score(vectors, pairs)
        rows.append(
            {
                "metric": "spearman",
                "value": found.spearman,
                "dataset": f"word_eval/{path.stem}",
                "split": "test",
                "num_items": found.num_pairs,
                "coverage": found.coverage,
            }
        )
    for path in sorted(folder.glob("[a-z]*.txt")):
        questions = load_analogies(path)
        items = [item for part in questions.values() for item in part]
        known = sum(all(word.lower() in vectors for word in item) for item in items)
        if known < _LOWEST_COVERAGE * len(items):
            continue
        found = analogy_accuracy(vectors.words, vectors[vectors.words], questions)
        rows.append(
            {
                "metric": "analogy_accuracy",
                "value": found.accuracy,
                "dataset": f"word_eval/{path.stem}",
                "split": "test",
                "num_items": found.num_questions,
                "coverage": found.coverage,
            }
        )
    return rows


def document_rows(
    vectors: JoseVectors, name: str, training: Mapping[str, Any], seed: int
) -> list[dict[str, Any]]:
    """KNN and clusters of the documents of the training, whose splits follow each other."""
    try:
        parts = [load_texts(name, split=split) for split in training["split"].split("+")]
    except FileNotFoundError:  # it was a file, or strings
        return []
    if not all("label" in part.column_names for part in parts):
        return []
    labels = [np.asarray(part["label"][:]) for part in parts]
    documents = vectors.documents
    assert documents is not None
    rows = []
    if len(parts) == 2:
        size = len(labels[0])
        scores = knn_f1(documents[:size], labels[0], documents[size:], labels[1])
        rows += [
            {"metric": f"knn_{metric}", "value": value, "num_items": len(labels[1])}
            for metric, value in scores.items()
        ]
    for prefix, is_spherical in (("kmeans", False), ("skmeans", True)):
        scores = kmeans_scores(documents, np.concatenate(labels), seed=seed, spherical=is_spherical)
        rows += [
            {
                "metric": f"{prefix}_{'mi' if metric == 'mutual_information' else metric}",
                "value": mean,
                "std": std,
                "num_items": len(documents),
                "num_repeats": 10,
            }
            for metric, (mean, std) in scores.items()
        ]
    return [{"dataset": name, "split": training["split"]} | row for row in rows]


def inferred_rows(vectors: JoseVectors, name: str, seed: int) -> list[dict[str, Any]]:
    """KNN of documents that were placed among frozen words."""
    try:
        parts = [load_texts(name, split=split) for split in ("train", "test")]
    except FileNotFoundError:  # it has no test split
        return []
    columns = [column for column in ("label", "category") if column in parts[0].column_names]
    if not columns:
        return []
    texts: list[Iterable[str]] = [part["text"] for part in parts]
    if sum("\u4e00" <= word[0] <= "\u9fff" for word in vectors.words) > len(vectors) / 2:
        texts = [map(segment_chinese, part) for part in texts]  # Chinese words want cut texts
    embedded = [vectors.infer(list(part), seed=seed) for part in texts]
    rows = []
    for column in columns:
        labels = [np.asarray(part[column][:]) for part in parts]
        scores = knn_f1(embedded[0], labels[0], embedded[1], labels[1])
        rows += [
            {
                "metric": f"knn_{metric}",
                "value": value,
                "num_items": len(labels[1]),
                "dataset": name if column == "label" else f"{name}/{column}",
                "split": "test",
            }
            for metric, value in scores.items()
        ]
    return rows
