"""How good word and document vectors are, by the measures that embeddings are compared with.

Words: `similarity_score` against human judgement, `analogy_accuracy` on "a is to b as c is to ?".
Documents: `kmeans_scores` of clusters against classes, `knn_f1` of a nearest-neighbor classifier,
both as the JoSE repository measures them (https://github.com/yumeng5/Spherical-Text-Embedding).

Vectors are rows of an array or of a tensor on any device; the numbers are computed on the CPU, in
float64 unless said otherwise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.metrics import (
    adjusted_rand_score,
    f1_score,
    mutual_info_score,
    normalized_mutual_info_score,
)
from sklearn.metrics.cluster import contingency_matrix
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor


def load_similarity(path: str | Path) -> list[tuple[str, str, float]]:
    """Reads pairs of words and how alike people find them.

    Each line holds two words and a score between tabs; there is no header. A pair that is listed
    twice counts once, with its first score (WordSim-353 has money and cash at 9.15 and at 9.08).
    The same two words the other way round are another pair, as in the JoSE repository.

    Args:
        path: A text file in UTF-8.

    Returns:
        Rows (word, word, score), in the order of the file.

    Raises:
        ValueError: If a line is something else, or if there is none.
    """
    scores: dict[tuple[str, str], float] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                first, second, score = (field.strip() for field in line.split("\t"))
                if not (first and second and math.isfinite(float(score))):
                    raise ValueError
            except ValueError:
                raise ValueError(
                    f"{path}, line {number}: expected two words and a number between tabs, "
                    f"got {line.rstrip()!r}"
                ) from None
            scores.setdefault((first, second), float(score))
    if not scores:
        raise ValueError(f"{path} holds no pairs of words")
    return [(first, second, score) for (first, second), score in scores.items()]


class WordVectors(Protocol):
    """What knows some words: a dict, gensim's KeyedVectors, or a model of this zoo."""

    def __contains__(self, word: Any, /) -> bool:
        """Whether there is a vector for the word."""
        ...

    def __getitem__(self, word: Any, /) -> Any:
        """The vector (D,) of a word."""
        ...


@dataclass(frozen=True)
class SimilarityResult:
    """What `similarity_score` found.

    Args:
        spearman: Rank correlation of cosine and human score, between -1 and 1.
        coverage: Share of the pairs of which both words are known.
        num_pairs: Count of those, which the correlation is taken over.
    """

    spearman: float
    coverage: float
    num_pairs: int


def similarity_score(
    vectors: WordVectors, pairs: Sequence[tuple[str, str, float]], *, lowercase: bool = True
) -> SimilarityResult:
    """Spearman's correlation of the cosine of two words with what people say.

    Pairs with an unknown word are left out: compare only at equal coverage.

    Args:
        vectors: Word -> vector (D,).
        pairs: What `load_similarity` returns.
        lowercase: Whether words are looked up in lower case; False for a vocabulary with capitals.

    Raises:
        ValueError: If fewer than two pairs are known, if a vector is zero or not finite, or if all
            cosines or all scores are equal, so that there is no order to compare.
    """
    if lowercase:
        pairs = [(first.lower(), second.lower(), score) for first, second, score in pairs]
    known = [pair for pair in pairs if pair[0] in vectors and pair[1] in vectors]
    if len(known) < 2:
        raise ValueError(
            "a rank correlation needs at least 2 pairs of known words, "
            f"got {len(known)} of {len(pairs)} pairs"
        )
    words = list(dict.fromkeys(word for first, second, _ in known for word in (first, second)))
    table = [_array(vectors[word], np.float64) for word in words]
    for word, vector in zip(words, table, strict=True):
        if vector.ndim != 1 or vector.shape != table[0].shape:
            raise ValueError(
                f"vectors must be (D,) with one D for all words, got {table[0].shape} for "
                f"{words[0]!r} and {vector.shape} for {word!r}"
            )
    rows = dict(zip(words, _unit_rows(np.stack(table), "vectors", words), strict=True))
    # Rounded, so that two pairs of equal words tie at 1 whatever the last bit of their cosines.
    cosines = np.array([rows[first] @ rows[second] for first, second, _ in known]).round(12)
    scores = np.array([score for _, _, score in known], dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("scores of pairs must be finite, but hold NaN or infinity")
    for name, values in (("cosines", cosines), ("scores", scores)):
        if values.min() == values.max():
            raise ValueError(
                f"a rank correlation needs an order, but the {name} of all {len(known)} known "
                f"pairs are {values[0]:.4g}"
            )
    spearman = np.corrcoef(_ranks(cosines), _ranks(scores))[0, 1]
    return SimilarityResult(float(spearman), len(known) / len(pairs), len(known))


def _ranks(values: NDArray[Any]) -> NDArray[Any]:
    """Places in ascending order, equal values sharing the mean of theirs: (N,) -> (N,)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _array(values: ArrayLike | Tensor, dtype: type[np.floating] | None = None) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        if values.is_floating_point():  # NumPy has no bfloat16
            values = values.to(torch.promote_types(values.dtype, torch.float32))
        values = values.numpy()
    return np.asarray(values, dtype=dtype)


def _finite_rows(
    vectors: ArrayLike | Tensor,
    name: str,
    words: Sequence[str] | None = None,
    dtype: type[np.floating] = np.float64,
) -> NDArray[Any]:
    """Vectors as an array (N, D) of finite numbers; `words` name the rows where one is wrong."""
    rows = _array(vectors, dtype)
    if rows.ndim != 2 or rows.size == 0:
        raise ValueError(f"{name} must be (N, D) and not empty, got shape {rows.shape}")
    if words is not None and len(words) != len(rows):
        raise ValueError(
            f"{name} must have one row for each word, got {len(rows)} for {len(words)} words"
        )
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(broken):
        place = f"row {broken[0]}" if words is None else repr(words[broken[0]])
        raise ValueError(
            f"{name} must be finite, but hold NaN or infinity at {place} "
            f"({len(broken)} of {len(rows)} rows do)"
        )
    return rows


def _unit_rows(
    vectors: ArrayLike | Tensor,
    name: str,
    words: Sequence[str] | None = None,
    dtype: type[np.floating] = np.float64,
) -> NDArray[Any]:
    """Rows divided by their lengths: (N, D) -> (N, D)."""
    rows = _finite_rows(vectors, name, words, dtype)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)  # (N, 1)
    zeros = np.flatnonzero(lengths == 0)
    if len(zeros):
        place = f"row {zeros[0]}" if words is None else repr(words[zeros[0]])
        raise ValueError(
            f"{name} must have a direction, but are zero at {place} "
            f"({len(zeros)} of {len(rows)} rows are)"
        )
    return rows / lengths


Analogy = tuple[str, str, str, str]
"""Four words: the first is to the second as the third is to the fourth."""


def load_analogies(path: str | Path) -> dict[str, list[Analogy]]:
    """Reads analogies in the format of word2vec's questions-words.txt.

    A line ": category" begins a category; the others hold four words between blanks. Questions
    that are listed twice count twice, as in word2vec.

    Args:
        path: A text file in UTF-8.

    Returns:
        Category -> its questions, in the order of the file.

    Raises:
        ValueError: If a line is something else, or if there is no question.
    """
    questions: dict[str, list[Analogy]] = {}
    category = None
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            words = line.split()
            if line.startswith(":") and line[1:].strip():
                category = line[1:].strip()
            elif len(words) == 4 and category is not None:
                questions.setdefault(category, []).append((words[0], words[1], words[2], words[3]))
            elif words:
                expected = (
                    "': category' first" if category is None else "four words or ': category'"
                )
                raise ValueError(
                    f"{path}, line {number}: expected {expected}, got {line.rstrip()!r}"
                )
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


@dataclass(frozen=True)
class CategoryResult:
    """One category of `analogy_accuracy`.

    Args:
        accuracy: Share of its known questions that are answered rightly.
        num_questions: Count of its known questions, at least one.
    """

    accuracy: float
    num_questions: int


@dataclass(frozen=True)
class AnalogyResult:
    """What `analogy_accuracy` found.

    Args:
        accuracy: Share of the known questions that are answered rightly.
        coverage: Share of the questions of which all four words are known.
        num_questions: Count of those, which the accuracy is taken over.
        by_category: Category -> the same of it, without categories that have no known question.
    """

    accuracy: float
    coverage: float
    num_questions: int
    by_category: dict[str, CategoryResult]


def _cos_add(a: Tensor, b: Tensor, c: Tensor, table: Tensor) -> Tensor:
    """3CosAdd, cos(x, b) - cos(x, a) + cos(x, c): (B, D) three times and (V, D) -> (B, V)."""
    return (b - a + c) @ table.T


def _cos_mul(a: Tensor, b: Tensor, c: Tensor, table: Tensor) -> Tensor:
    """3CosMul, cos(x, b) cos(x, c) / (cos(x, a) + 0.001), with shapes as above.

    Each cosine is moved from [-1, 1] to [0, 1] first: a product of two negative ones says nothing.
    """

    def shifted(words: Tensor) -> Tensor:
        return (words @ table.T).add_(1).div_(2)

    return shifted(b).mul_(shifted(c)).div_(shifted(a).add_(1e-3))


_ANALOGY_METHODS = {"3cosadd": _cos_add, "3cosmul": _cos_mul}


def analogy_accuracy(
    words: Sequence[str],
    matrix: ArrayLike | Tensor,
    questions: Mapping[str, Sequence[Analogy]],
    *,
    method: Literal["3cosadd", "3cosmul"] = "3cosadd",
    lowercase: bool = True,
    batch_size: int = 256,
) -> AnalogyResult:
    """Share of analogies whose fourth word is the best of all words but the three of the question.

    Both methods are those of Levy and Goldberg, 2014 (https://aclanthology.org/W14-1618): 3CosAdd
    adds cosines (Mikolov et al., 2013), 3CosMul multiplies them, so that one great cosine cannot
    make up for a small one. Questions with an unknown word are left out: compare only at equal
    coverage. A question whose answer is one of its own words counts as wrong. Cosines are float32.

    Args:
        words: V words, each once.
        matrix: Their vectors (V, D), of any length.
        questions: What `load_analogies` returns.
        method: How three cosines become one score.
        lowercase: Whether the questions are lower-cased; False for a vocabulary with capitals.
        batch_size: Questions at a time; memory is 8 bytes for each of them and each word.

    Raises:
        ValueError: If words repeat or do not fit the matrix, if a vector is zero or not finite, or
            if no question is known.
    """
    if method not in _ANALOGY_METHODS:
        raise ValueError(f"method must be one of {', '.join(_ANALOGY_METHODS)}, got {method!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    row_of = {word: row for row, word in enumerate(words)}
    if len(row_of) != len(words):
        repeated = next(word for row, word in enumerate(words) if row_of[word] != row)
        raise ValueError(f"words must differ, but {repeated!r} is there more than once")
    table = torch.from_numpy(_unit_rows(matrix, "rows of matrix", words, np.float32))  # (V, D)

    categories: list[str] = []
    rows: list[list[int]] = []
    for category, analogies in questions.items():
        for analogy in analogies:
            spelt = [word.lower() for word in analogy] if lowercase else analogy
            if all(word in row_of for word in spelt):
                categories.append(category)
                rows.append([row_of[word] for word in spelt])
    total = sum(len(analogies) for analogies in questions.values())
    if not rows:
        raise ValueError(f"none of the {total} questions has all four words in the vocabulary")

    verdicts = []
    for batch in torch.tensor(rows).split(batch_size):  # (B, 4)
        asked, answer = batch[:, :3], batch[:, 3]
        a, b, c = table[asked].unbind(dim=1)  # (B, D) each
        scores = _ANALOGY_METHODS[method](a, b, c, table)  # (B, V)
        scores.scatter_(1, asked, -torch.inf)
        verdicts.append(scores.argmax(dim=1) == answer)
    is_right = torch.cat(verdicts).numpy()  # (Q,)

    places: dict[str, list[int]] = {}
    for place, category in enumerate(categories):
        places.setdefault(category, []).append(place)
    by_category = {
        category: CategoryResult(float(is_right[chosen].mean()), len(chosen))
        for category, chosen in places.items()
    }
    return AnalogyResult(float(is_right.mean()), len(rows) / total, len(rows), by_category)


def purity(labels: ArrayLike | Tensor, clusters: ArrayLike | Tensor) -> float:
    """Share of points that are of the most frequent class of their cluster.

    It rises with the number of clusters, to 1 where each point is one: compare at equal numbers.

    Args:
        labels: (N,), classes, as numbers or strings.
        clusters: (N,), where each point was put.

    Raises:
        ValueError: If there is none, or not one cluster for each label.
    """
    labels = _checked_labels(labels, "labels")
    clusters = _checked_labels(clusters, "clusters")
    if len(labels) != len(clusters):
        raise ValueError(
            f"there must be one cluster for each label, got {len(clusters)} for {len(labels)}"
        )
    counts = np.asarray(contingency_matrix(labels, clusters))  # (K, clusters)
    return float(counts.max(axis=0).sum() / len(labels))


def _checked_labels(
    labels: ArrayLike | Tensor, name: str, count: int | None = None
) -> NDArray[Any]:
    """Labels as an array (N,), of numbers or strings."""
    values = _array(labels)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name} must be (N,) and not empty, got shape {values.shape}")
    if count is not None and len(values) != count:
        raise ValueError(f"{name} must be one for each vector, got {len(values)} for {count}")
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, but hold NaN or infinity")
    return values


@dataclass(frozen=True)
class SphericalKMeansResult:
    """What `spherical_kmeans` found.

    Args:
        labels: (N,), the number of each point's cluster; every cluster has a point.
        centers: (K, D), of length one.
        objective: Mean cosine of points with the centers of their clusters, at most 1.
        num_iterations: Rounds, with the last one, which changed nothing.
    """

    labels: NDArray[Any]
    centers: NDArray[Any]
    objective: float
    num_iterations: int


def spherical_kmeans(
    vectors: ArrayLike | Tensor, num_clusters: int, *, seed: int = 0, max_iter: int = 300
) -> SphericalKMeansResult:
    """K-means by direction (Dhillon and Modha, 2001, https://doi.org/10.1023/A:1007612920971).

    Each round gives every point to the center with the greatest cosine, then makes each center the
    direction of the sum of its points. Neither step lowers the objective, and a cluster that has
    lost all points gets the one that is farthest from its own center, which does not either.

    Args:
        vectors: (N, D), of any length but zero.
        num_clusters: Number of clusters K.
        seed: Of the first centers.
        max_iter: Rounds at most; it stops before when no point moves.

    Raises:
        ValueError: If there are fewer points than clusters, or a vector is zero or not finite.
    """
    points = _unit_rows(vectors, "vectors")  # (N, D)
    _check_clusters(num_clusters, len(points))
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    # |x - y|^2 = 2 (1 - cos(x, y)) on the sphere, so this is k-means++ by cosine.
    centers, _ = kmeans_plusplus(points, num_clusters, random_state=seed)  # (K, D)
    labels, num_iterations = np.full(len(points), -1), 0
    while num_iterations < max_iter:
        num_iterations += 1
        cosines = (centers @ points.T).T  # (N, K); twice as fast as in the other order
        nearest = _fill_empty_clusters(cosines.argmax(axis=1), cosines)  # (N,)
        if np.array_equal(nearest, labels):
            break
        labels = nearest
        sums = np.eye(num_clusters)[labels].T @ points  # (K, D)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)  # (K, 1)
        # Points that cancel out are as near to any center: the old one stays.
        np.divide(sums, lengths, out=centers, where=lengths > 0)
    objective = np.einsum("nd,nd->n", points, centers[labels]).mean()
    return SphericalKMeansResult(labels, centers, float(objective), num_iterations)


def _check_clusters(num_clusters: int, num_points: int) -> None:
    if not 1 <= num_clusters <= num_points:
        raise ValueError(
            f"num_clusters must be between 1 and the number of points, {num_points}, "
            f"got {num_clusters}"
        )


def _fill_empty_clusters(labels: NDArray[Any], cosines: NDArray[Any]) -> NDArray[Any]:
    """Moves the farthest points into clusters that have none: (N,) and (N, K) -> (N,)."""
    num_points, num_clusters = cosines.shape
    counts = np.bincount(labels, minlength=num_clusters)  # (K,)
    if counts.all():
        return labels
    labels = labels.copy()
    closeness = cosines[np.arange(num_points), labels]  # (N,)
    for cluster in np.flatnonzero(counts == 0):
        # A point that is alone stays, else its own cluster would be the next empty one.
        farthest = np.where(counts[labels] > 1, closeness, np.inf).argmin()
        counts[labels[farthest]] -= 1
        counts[cluster] += 1
        labels[farthest] = cluster
    return labels


def kmeans_scores(
    vectors: ArrayLike | Tensor,
    labels: ArrayLike | Tensor,
    *,
    num_clusters: int | None = None,
    num_repeats: int = 10,
    seed: int = 0,
    spherical: bool = False,
) -> dict[str, tuple[float, float]]:
    """How well clusters of document vectors agree with the documents' classes.

    Each repeat is one run of k-means from one draw of first centers, as in the JoSE repository;
    the spread over repeats is large, so report it.

    Args:
        vectors: (N, D).
        labels: (N,), classes, as numbers or strings.
        num_clusters: Number of clusters; None for the number of classes.
        num_repeats: Number of runs R, with the seeds `seed` to `seed + R - 1`.
        seed: Of the first run.
        spherical: Whether by `spherical_kmeans` instead of Euclidean k-means.

    Returns:
        Mean and standard deviation (of the runs themselves, 0 for one run) of
        "mutual_information" in nats, at most the logarithm of the number of classes; "nmi", which
        divides it by the arithmetic mean of both entropies; "ari", the adjusted Rand index, 0 in
        expectation for random clusters; and "purity". All are 1 at best except the first.

    Raises:
        ValueError: If vectors are not finite, or zero where directions are asked for, if there is
            not one label for each, or if there are fewer points than clusters.
    """
    points = _finite_rows(vectors, "vectors")  # (N, D)
    labels = _checked_labels(labels, "labels", len(points))
    if num_clusters is None:
        num_clusters = len(np.unique(labels))
    _check_clusters(num_clusters, len(points))
    if num_repeats < 1:
        raise ValueError(f"num_repeats must be at least 1, got {num_repeats}")
    runs: dict[str, list[float]] = {}
    for run_seed in range(seed, seed + num_repeats):
        if spherical:
            clusters = spherical_kmeans(points, num_clusters, seed=run_seed).labels
        else:
            # pyright knows no types of scikit-learn and guesses that of n_init from its default.
            kmeans = KMeans(num_clusters, n_init=1, random_state=run_seed)  # pyright: ignore[reportArgumentType]
            clusters = kmeans.fit_predict(points)
        scores = {
            "mutual_information": mutual_info_score(labels, clusters),
            "nmi": normalized_mutual_info_score(labels, clusters),
            "ari": adjusted_rand_score(labels, clusters),
            "purity": purity(labels, clusters),
        }
        for metric, value in scores.items():
            runs.setdefault(metric, []).append(float(value))
    return {
        metric: (float(np.mean(values)), float(np.std(values))) for metric, values in runs.items()
    }


def knn_f1(
    train_vectors: ArrayLike | Tensor,
    train_labels: ArrayLike | Tensor,
    test_vectors: ArrayLike | Tensor,
    test_labels: ArrayLike | Tensor,
    *,
    num_neighbors: int = 3,
) -> dict[str, float]:
    """F1 of a classifier that asks the nearest training vectors, as in the JoSE repository.

    Neighbors are the nearest by Euclidean distance, each with one vote; among classes with equally
    many votes the first in sorted order wins, as in scikit-learn's KNeighborsClassifier.

    Args:
        train_vectors: (N, D).
        train_labels: (N,), classes, as numbers or strings.
        test_vectors: (M, D).
        test_labels: (M,).
        num_neighbors: Number of neighbors that vote.

    Returns:
        "f1_macro", the mean over classes, and "f1_micro", which here is the accuracy.

    Raises:
        ValueError: If vectors are not finite or differ in D, if there is not one label for each,
            or if there are fewer training vectors than neighbors.
    """
    train = _finite_rows(train_vectors, "train_vectors")
    test = _finite_rows(test_vectors, "test_vectors")
    train_labels = _checked_labels(train_labels, "train_labels", len(train))
    test_labels = _checked_labels(test_labels, "test_labels", len(test))
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            "train_vectors and test_vectors must come from one model, but they have "
            f"{train.shape[1]} and {test.shape[1]} dimensions"
        )
    if not 1 <= num_neighbors <= len(train):
        raise ValueError(
            f"num_neighbors must be between 1 and the number of training vectors, {len(train)}, "
            f"got {num_neighbors}"
        )
    # Trees are slower than a matrix product from some twenty dimensions on.
    classifier = KNeighborsClassifier(num_neighbors, algorithm="brute", metric="euclidean")
    predicted = classifier.fit(train, train_labels).predict(test)  # (M,)
    return {
        f"f1_{average}": float(f1_score(test_labels, predicted, average=average))
        for average in ("macro", "micro")
    }
