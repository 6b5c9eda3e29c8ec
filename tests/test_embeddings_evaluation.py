"""Metrics of word and document vectors: closed forms first, then peers, then wrong input."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_rand_score,
    f1_score,
    mutual_info_score,
    normalized_mutual_info_score,
)
from sklearn.neighbors import KNeighborsClassifier

from genzoo.evaluation.embeddings import (
    AnalogyResult,
    CategoryResult,
    SimilarityResult,
    analogy_accuracy,
    kmeans_scores,
    knn_f1,
    load_analogies,
    load_similarity,
    purity,
    similarity_score,
    spherical_kmeans,
)


def points(count: int, size: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, size))


def bundles(count: int = 30, num_bundles: int = 3, noise: float = 0.01) -> tuple:
    """Points near the first axes, and the axis of each."""
    labels = np.arange(count) % num_bundles
    return np.eye(num_bundles + 1)[labels] + noise * points(count, num_bundles + 1), labels


def at_cosine(cosine: float) -> np.ndarray:
    return np.array([cosine, np.sqrt(1 - cosine**2)])


def broken(vectors: np.ndarray, row: int = 2) -> np.ndarray:
    vectors = vectors.copy()
    vectors[row, 1] = np.nan
    return vectors


# Word similarity


def test_load_similarity(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("tiger\tcat\t7.35\n老虎\t老 虎\t4\n\ncat\ttiger\t1\nnot\tlast", "utf-8")
    with pytest.raises(ValueError, match=r"pairs\.tsv, line 5: expected .* got 'not\\tlast'"):
        load_similarity(path)
    path.write_text("tiger\tcat\t7.35\r\n老虎\t老 虎\t4\n\ncat\ttiger\t1e0", "utf-8")
    expected = [("tiger", "cat", 7.35), ("老虎", "老 虎", 4.0), ("cat", "tiger", 1.0)]
    assert load_similarity(path) == expected == load_similarity(str(path))


def test_a_pair_that_is_listed_twice_counts_once_with_its_first_score(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("money\tcash\t9.15\na\tb\t1\nmoney\tcash\t9.08\nMoney\tcash\t2\n")
    expected = [("money", "cash", 9.15), ("a", "b", 1.0), ("Money", "cash", 2.0)]
    assert load_similarity(path) == expected


@pytest.mark.parametrize(
    "line", ["a\tb", "a b 1", "a\tb\tgood", "a\tb\tnan", "a\tb\t1\t2", "a\t\t1", "word1\tword2\tz"]
)
def test_load_similarity_names_the_line(tmp_path, line):
    path = tmp_path / "pairs.tsv"
    path.write_text(f"a\tb\t1\n{line}\n")
    with pytest.raises(ValueError, match=r"pairs\.tsv, line 2: expected two words and a number"):
        load_similarity(path)


def test_load_similarity_refuses_an_empty_file(tmp_path):
    (tmp_path / "pairs.tsv").write_text("\n")
    with pytest.raises(ValueError, match=r"pairs\.tsv holds no pairs"):
        load_similarity(tmp_path / "pairs.tsv")


def test_spearman_of_any_monotone_score_is_one():
    cosines = [-0.9, -0.2, 0.1, 0.5, 0.99]
    vectors = {f"w{i}": (i + 1) * at_cosine(cosine) for i, cosine in enumerate(cosines)}
    vectors["x"] = np.array([3.0, 0.0])
    pairs = [("x", f"w{i}", float(np.exp(9 * cosine))) for i, cosine in enumerate(cosines)]
    assert similarity_score(vectors, pairs) == SimilarityResult(pytest.approx(1.0), 1.0, 5)
    falling = [(first, second, -score) for first, second, score in pairs]
    assert similarity_score(vectors, falling).spearman == pytest.approx(-1)


def test_spearman_agrees_with_scipy_where_scores_tie():
    generator = np.random.default_rng(0)
    vectors = dict(zip("abcdefghij", points(10), strict=True))
    pairs = [(*pair, float(generator.integers(5))) for pair in itertools.product(vectors, vectors)]
    result = similarity_score(vectors, pairs)

    def cosine(x, y):
        return round(x @ y / np.linalg.norm(x) / np.linalg.norm(y), 9)

    cosines = [cosine(vectors[first], vectors[second]) for first, second, _ in pairs]
    expected = spearmanr(cosines, [score for *_, score in pairs]).statistic
    assert result.spearman == pytest.approx(expected, rel=1e-12)
    assert abs(expected) > 0.01


def test_similarity_leaves_out_unknown_words_and_says_so():
    vectors = {"x": at_cosine(1), "near": at_cosine(0.9), "far": at_cosine(0.1), "X": at_cosine(0)}
    pairs = [("X", "Near", 9), ("x", "FAR", 1), ("x", "unknown", 5), ("neither", "nor", 5)]
    assert similarity_score(vectors, pairs) == SimilarityResult(pytest.approx(1.0), 0.5, 2)
    with pytest.raises(ValueError, match="at least 2 pairs of known words, got 0 of 4 pairs"):
        similarity_score(vectors, pairs, lowercase=False)
    cased = [("X", "near", 1), ("x", "near", 9)]
    assert similarity_score(vectors, cased, lowercase=False).spearman == pytest.approx(1)


def test_similarity_takes_tensors_and_read_only_arrays():
    vectors = {"x": at_cosine(1), "y": at_cosine(0.9), "z": at_cosine(0.1)}
    pairs = [("x", "y", 2), ("x", "z", 1), ("y", "z", 3)]
    expected = similarity_score(vectors, pairs)
    for vector in vectors.values():
        vector.flags.writeable = False  # as gensim's are
    assert similarity_score(vectors, pairs) == expected
    halves = {word: torch.tensor(vector).bfloat16() for word, vector in vectors.items()}
    halves["x"].requires_grad_()
    assert similarity_score(halves, pairs) == expected


@pytest.mark.parametrize(
    ("changes", "scores", "message"),
    [
        ({"y": [np.nan, 1.0]}, [1, 2], "hold NaN or infinity at 'y'"),
        ({"y": [0.0, 0.0]}, [1, 2], "must have a direction, but are zero at 'y'"),
        ({"y": [1.0]}, [1, 2], r"one D for all words, got \(2,\) for 'x' and \(1,\) for 'y'"),
        ({"x": [[1.0, 2.0]]}, [1, 2], r"vectors must be \(D,\)"),
        ({}, [1, np.nan], "scores of pairs must be finite"),
        ({}, [1, 1], "needs an order, but the scores of all 2 known pairs are 1"),
        ({"z": [0.0, 4.0]}, [1, 2], "needs an order, but the cosines of all 2 known pairs are 0"),
    ],
)
def test_similarity_refuses_what_has_no_answer(changes, scores, message):
    vectors = {"x": [1.0, 0.0], "y": [0.0, 1.0], "z": [1.0, 1.0]} | changes
    pairs = [("x", "y", scores[0]), ("x", "z", scores[1])]
    with pytest.raises(ValueError, match=message):
        similarity_score({word: np.array(vector) for word, vector in vectors.items()}, pairs)


# Analogies


def test_load_analogies(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text(
        ": capitals\nAthens Greece Oslo Norway\n\n: 家庭 1\n男 女  兄\t妹\n: none\n", "utf-8"
    )
    expected = {
        "capitals": [("Athens", "Greece", "Oslo", "Norway")],
        "家庭 1": [("男", "女", "兄", "妹")],
    }
    assert load_analogies(path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b c d\n", "line 1: expected ': category' first, got 'a b c d'"),
        (": x\na b c\n", "line 2: expected four words or ': category', got 'a b c'"),
        (": x\na b c d e\n", "line 2: expected four words"),
        (":\na b c d\n", "line 1: expected ': category' first, got ':'"),
        (": x\n", "questions.txt holds no questions"),
    ],
)
def test_load_analogies_names_the_line(tmp_path, text, message):
    (tmp_path / "questions.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_analogies(tmp_path / "questions.txt")


# Royal, common, male, female, grown, young: cosines are thirds. Asked for man, woman and king,
# queen gets 2/3 - 1/3 + 2/3 = 1 and 5/6 * 5/6 / (2/3) = 1.04, and the next best, princess, gets
# 1/3 - 0 + 1/3 = 2/3 and 2/3 * 2/3 / (1/2) = 0.89.
KINGDOM = {
    "king": [1, 0, 1, 0, 1, 0],
    "queen": [1, 0, 0, 1, 1, 0],
    "prince": [1, 0, 1, 0, 0, 1],
    "princess": [1, 0, 0, 1, 0, 1],
    "man": [0, 1, 1, 0, 1, 0],
    "woman": [0, 1, 0, 1, 1, 0],
    "boy": [0, 1, 1, 0, 0, 1],
    "girl": [0, 1, 0, 1, 0, 1],
}


@pytest.mark.parametrize("method", ["3cosadd", "3cosmul"])
def test_analogies_by_hand(method):
    words, matrix = list(KINGDOM), list(KINGDOM.values())
    questions = {
        "right": [("man", "woman", "king", "queen"), ("king", "queen", "prince", "princess")],
        "wrong": [("man", "woman", "king", "girl"), ("man", "woman", "king", "king")],
        "mixed": [("King", "Queen", "Prince", "Princess"), ("man", "woman", "king", "emperor")],
        "unknown": [("man", "woman", "tsar", "tsarina")],
    }
    expected = AnalogyResult(
        accuracy=3 / 5,
        coverage=5 / 7,
        num_questions=5,
        by_category={
            "right": CategoryResult(1.0, 2),
            "wrong": CategoryResult(0.0, 2),
            "mixed": CategoryResult(1.0, 1),
        },
    )
    assert analogy_accuracy(words, matrix, questions, method=method) == expected
    assert analogy_accuracy(words, matrix, questions, method=method, batch_size=2) == expected
    # Neither the lengths of vectors nor what holds them matters.
    longer = torch.tensor(matrix) * torch.arange(1.0, 9.0)[:, None]
    longer.requires_grad_()
    assert analogy_accuracy(words, longer, questions, method=method) == expected
    cased = analogy_accuracy(words, matrix, questions, method=method, lowercase=False)
    assert (cased.num_questions, list(cased.by_category)) == (4, ["right", "wrong"])


def test_the_words_of_a_question_are_no_answers():
    # Without the exclusion "king" itself would be the best answer.
    matrix = np.array([[1, 0.0, 0], [1, 0.1, 0], [0, 0, 1], [0, 1, 1]])
    questions = {"x": [("man", "woman", "king", "queen")]}
    result = analogy_accuracy(["man", "woman", "king", "queen"], matrix, questions)
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    assert (unit @ (unit[1] - unit[0] + unit[2])).argmax() == 2
    assert result.accuracy == 1


def test_methods_differ_where_one_cosine_is_great_and_another_small():
    # Cosines with a, b, c are read off the first three axes; with a they are all 0.
    #   one-sided: 0.9 + 0.1 = 1.00, (1.9 / 2) (1.1 / 2) / 0.501 = 1.043
    #   balanced: 0.5 + 0.45 = 0.95, (1.5 / 2) (1.45 / 2) / 0.501 = 1.085
    axes = np.eye(4)
    one_sided = [0, 0.9, 0.1, np.sqrt(1 - 0.81 - 0.01)]
    balanced = [0, 0.5, 0.45, np.sqrt(1 - 0.25 - 0.2025)]
    words = ["a", "b", "c", "one-sided", "balanced"]
    matrix = np.array([*axes[:3], one_sided, balanced])
    for method, answer in (("3cosadd", "one-sided"), ("3cosmul", "balanced")):
        for word in ("one-sided", "balanced"):
            result = analogy_accuracy(words, matrix, {"x": [("a", "b", "c", word)]}, method=method)
            assert result.accuracy == (word == answer)


def test_3cosmul_shifts_cosines():
    # Raw cosines of "opposite" are -0.7 and -0.7: their product would beat 0.6 * 0.6.
    words = ["a", "b", "c", "opposite", "alike"]
    alike = [0, 0.6, 0.6, np.sqrt(1 - 0.72)]
    matrix = np.array([*np.eye(4)[:3], [0, -0.7, -0.7, np.sqrt(0.02)], alike])
    result = analogy_accuracy(words, matrix, {"x": [("a", "b", "c", "alike")]}, method="3cosmul")
    assert result.accuracy == 1


@pytest.mark.parametrize("method", ["3cosadd", "3cosmul"])
def test_analogies_agree_with_the_formula(method):
    matrix, words = points(40, 6), [f"w{i}" for i in range(40)]
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    generator = np.random.default_rng(1)
    triples = [generator.choice(40, 3, replace=False) for _ in range(50)]
    questions = []
    for a, b, c in triples:
        cos_a, cos_b, cos_c = unit @ unit[a], unit @ unit[b], unit @ unit[c]
        if method == "3cosadd":
            scores = cos_b - cos_a + cos_c
        else:
            scores = (cos_b + 1) / 2 * (cos_c + 1) / 2 / ((cos_a + 1) / 2 + 0.001)
        scores[[a, b, c]] = -np.inf
        questions.append(tuple(words[i] for i in (a, b, c, scores.argmax())))
    result = analogy_accuracy(words, matrix, {"x": questions}, method=method, batch_size=7)
    assert result == AnalogyResult(1.0, 1.0, 50, {"x": CategoryResult(1.0, 50)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "3cosdiv"}, "method must be one of 3cosadd, 3cosmul, got '3cosdiv'"),
        ({"words": list("abcb")}, "words must differ, but 'b' is there more than once"),
        ({"words": list("abc")}, "must have one row for each word, got 4 for 3 words"),
        ({"matrix": broken(points(4))}, "hold NaN or infinity at 'c'"),
        ({"matrix": np.zeros((4, 2))}, "must have a direction, but are zero at 'a'"),
        ({"matrix": np.ones(4)}, r"must be \(N, D\) and not empty, got shape \(4,\)"),
        ({"words": [], "matrix": np.ones((0, 3))}, r"not empty, got shape \(0, 3\)"),
        ({"questions": {"x": [tuple("abce")]}}, "none of the 1 questions has all four words"),
        ({"questions": {}}, "none of the 0 questions"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_analogies_refuse_wrong_input(changes, message):
    arguments = {"words": list("abcd"), "matrix": points(4), "questions": {"x": [tuple("abcd")]}}
    with pytest.raises(ValueError, match=message):
        analogy_accuracy(**(arguments | changes))


# Purity


def test_purity():
    assert purity([0, 0, 1, 1], [5, 5, 3, 3]) == 1
    assert purity([0, 0, 1, 1], [7, 7, 7, 7]) == 0.5
    assert purity(list("aabbbc"), [0, 0, 0, 1, 1, 1]) == pytest.approx((2 + 2) / 6)
    assert purity(torch.tensor([0, 1, 2]), np.arange(3)) == 1  # every point on its own


@pytest.mark.parametrize(
    ("labels", "clusters", "message"),
    [
        ([0, 1], [0], "one cluster for each label, got 1 for 2"),
        ([], [], r"labels must be \(N,\) and not empty"),
        ([[0, 1]], [0, 1], r"labels must be \(N,\) and not empty, got shape \(1, 2\)"),
        ([0, np.nan], [0, 1], "labels must be finite"),
    ],
)
def test_purity_refuses_wrong_input(labels, clusters, message):
    with pytest.raises(ValueError, match=message):
        purity(labels, clusters)


# Spherical k-means


def brute_force(vectors: np.ndarray, num_clusters: int) -> float:
    """The greatest objective of all partitions: a cluster is worth the length of its sum."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return max(
        sum(np.linalg.norm(unit[np.array(labels) == k].sum(0)) for k in range(num_clusters))
        for labels in itertools.product(range(num_clusters), repeat=len(vectors))
    ) / len(vectors)


@pytest.mark.parametrize(("num_clusters", "seed"), [(1, 0), (2, 1), (3, 2), (3, 3)])
def test_spherical_kmeans_finds_the_best_partition(num_clusters, seed):
    vectors = points(7, 3, seed)
    runs = [spherical_kmeans(vectors, num_clusters, seed=run).objective for run in range(30)]
    assert max(runs) == pytest.approx(brute_force(vectors, num_clusters), rel=1e-12)


def test_spherical_kmeans_never_loses():
    vectors = points(300, 5)
    end = spherical_kmeans(vectors, 12, seed=4)
    assert end.num_iterations > 5
    objectives = [
        spherical_kmeans(vectors, 12, seed=4, max_iter=rounds).objective
        for rounds in range(1, end.num_iterations + 1)
    ]
    assert np.diff(objectives).min() > -1e-12
    assert objectives[-1] == end.objective > objectives[0]


def test_spherical_kmeans_result_is_what_it_says():
    vectors = points(200, 6)
    result = spherical_kmeans(vectors, 8, seed=1)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert result.labels.shape == (200,) and result.centers.shape == (8, 6)
    assert np.allclose(np.linalg.norm(result.centers, axis=1), 1)
    assert result.objective == pytest.approx((unit * result.centers[result.labels]).sum(1).mean())
    # At the end every point is with its nearest center, and every center is its points' direction.
    assert np.array_equal((unit @ result.centers.T).argmax(axis=1), result.labels)
    for cluster in range(8):
        total = unit[result.labels == cluster].sum(axis=0)
        assert np.allclose(result.centers[cluster], total / np.linalg.norm(total))


def test_spherical_kmeans_does_not_see_lengths():
    vectors = points(100, 5)
    # Powers of two, so that unit vectors are equal to the last bit.
    lengths = 2.0 ** np.random.default_rng(1).integers(-9, 9, size=(100, 1))
    expected, result = spherical_kmeans(vectors, 6), spherical_kmeans(lengths * vectors, 6)
    assert np.array_equal(result.labels, expected.labels)
    assert result.objective == expected.objective
    any_lengths = spherical_kmeans(np.exp(points(100, 1)) * vectors, 6)
    assert np.array_equal(any_lengths.labels, expected.labels)


def test_spherical_kmeans_is_seeded():
    vectors = points(200, 5)
    runs = [spherical_kmeans(vectors, 10, seed=seed).objective for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_spherical_kmeans_fills_every_cluster():
    # Two directions, five clusters: three of the first centers are copies and lose their points.
    vectors = np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)
    result = spherical_kmeans(vectors, 5)
    assert sorted(set(result.labels)) == [0, 1, 2, 3, 4]
    assert set(result.labels[:4]).isdisjoint(result.labels[4:])
    assert result.objective == 1
    assert result.num_iterations < 10


def test_an_empty_cluster_gets_the_farthest_point(monkeypatch):
    # Two centers are the same: the second loses all points and gets the one that fits worst.
    vectors = np.array([at_cosine(cosine) for cosine in (1, 0.99, 0.98, 0.6, 0.9)])
    monkeypatch.setattr(
        "genzoo.evaluation.embeddings.kmeans_plusplus",
        lambda *_, **__: (np.array([[1.0, 0.0], [1.0, 0.0]]), None),
    )
    assert spherical_kmeans(vectors, 2, max_iter=1).labels.tolist() == [0, 0, 0, 1, 0]
    assert spherical_kmeans(vectors, 2).labels.tolist() == [0, 0, 0, 1, 0]


def test_spherical_kmeans_of_points_that_cancel_out():
    result = spherical_kmeans([[1.0, 0.0], [-1.0, 0.0]], 1)
    assert result.objective == 0
    assert np.allclose(np.linalg.norm(result.centers), 1)
    assert spherical_kmeans([[1.0, 0.0], [-2.0, 0.0]], 2).objective == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_clusters": 6}, "between 1 and the number of points, 5, got 6"),
        ({"num_clusters": 0}, "between 1 and the number of points, 5, got 0"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
        ({"vectors": broken(points(5))}, "hold NaN or infinity at row 2 "),
        ({"vectors": np.zeros((5, 2))}, "must have a direction, but are zero at row 0 "),
        ({"vectors": np.ones((0, 2))}, r"not empty, got shape \(0, 2\)"),
    ],
)
def test_spherical_kmeans_refuses_wrong_input(changes, message):
    with pytest.raises(ValueError, match=message):
        spherical_kmeans(**({"vectors": points(5), "num_clusters": 2} | changes))


# Clusters against classes


@pytest.mark.parametrize("spherical", [False, True])
def test_perfect_clusters(spherical):
    vectors, labels = bundles()
    names = np.array(["talk", "sci", "rec"])[labels]
    expected = {
        "mutual_information": (pytest.approx(np.log(3)), pytest.approx(0, abs=1e-12)),
        "nmi": (pytest.approx(1), pytest.approx(0, abs=1e-12)),
        "ari": (pytest.approx(1), pytest.approx(0, abs=1e-12)),
        "purity": (pytest.approx(1), pytest.approx(0, abs=1e-12)),
    }
    assert kmeans_scores(vectors, names, spherical=spherical) == expected
    tensors = torch.tensor(vectors, requires_grad=True), torch.tensor(labels)
    assert kmeans_scores(*tensors, spherical=spherical, num_repeats=2) == expected


def test_random_labels_share_nothing_with_clusters():
    labels = np.random.default_rng(0).integers(0, 5, 2000)
    scores = kmeans_scores(points(2000), labels, num_repeats=3)
    assert abs(scores["ari"][0]) < 0.005
    assert scores["nmi"][0] < 0.01
    assert 0.2 < scores["purity"][0] < 0.25


def test_one_cluster_knows_nothing():
    vectors, labels = bundles()
    scores = kmeans_scores(vectors, labels, num_clusters=1, num_repeats=1)
    expected = {"mutual_information": 0, "nmi": 0, "ari": 0, "purity": 1 / 3}
    assert scores == {name: (pytest.approx(value), 0) for name, value in expected.items()}


@pytest.mark.parametrize("spherical", [False, True])
def test_scores_are_those_of_single_runs(spherical):
    vectors, labels = bundles(120, noise=0.6)

    def clusters(seed):
        if spherical:
            return spherical_kmeans(vectors, 4, seed=seed).labels
        return KMeans(4, n_init=1, random_state=seed).fit(vectors).labels_

    runs = [clusters(seed) for seed in (7, 8, 9)]
    metrics = {
        "mutual_information": mutual_info_score,
        "nmi": normalized_mutual_info_score,
        "ari": adjusted_rand_score,
        "purity": purity,
    }
    arguments = {"num_clusters": 4, "num_repeats": 3, "seed": 7, "spherical": spherical}
    scores = kmeans_scores(vectors, labels, **arguments)
    assert list(scores) == list(metrics)
    for name, metric in metrics.items():
        values = [metric(labels, run) for run in runs]
        assert scores[name] == pytest.approx((np.mean(values), np.std(values)))
    assert scores["ari"][1] > 0


def test_only_spherical_scores_do_not_see_lengths():
    vectors, labels = bundles()
    vectors *= np.exp(3 * points(len(vectors), 1))
    assert kmeans_scores(vectors, labels, spherical=True)["ari"][0] == pytest.approx(1)
    assert kmeans_scores(vectors, labels)["ari"][0] < 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1, 0]}, "labels must be one for each vector, got 3 for 5"),
        ({"vectors": broken(points(5))}, "hold NaN or infinity at row 2 "),
        ({"vectors": points(5)[0]}, r"vectors must be \(N, D\)"),
        ({"num_clusters": 6}, "between 1 and the number of points, 5, got 6"),
        ({"num_repeats": 0}, "num_repeats must be at least 1"),
        ({"vectors": np.zeros((5, 2)), "spherical": True}, "must have a direction"),
    ],
)
def test_kmeans_scores_refuse_wrong_input(changes, message):
    with pytest.raises(ValueError, match=message):
        kmeans_scores(**({"vectors": points(5), "labels": [0, 1, 0, 1, 1]} | changes))


# Nearest neighbors


def test_knn_by_hand():
    train = [[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]]
    labels = ["a", "a", "b", "b", "b", "c"]
    test = [[0.4], [2.1], [11.2], [100.0]]  # neighbors 0 1 2; 2 1 0; 4 3 5; 5 4 3
    # Predicted a, a, b, b. With the truth a, b, b, c: F1 of a is 2/3, of b 2/4, of c 0.
    result = knn_f1(train, labels, test, ["a", "b", "b", "c"])
    assert result == {"f1_macro": pytest.approx((2 / 3 + 1 / 2) / 3), "f1_micro": 0.5}
    # One neighbor: a, b, b, c.
    assert knn_f1(train, labels, test, ["a", "b", "b", "c"], num_neighbors=1)["f1_macro"] == 1


def test_knn_ties_go_to_the_first_class():
    train, labels = [[0.0], [1.0]], ["z", "a"]
    assert knn_f1(train, labels, [[0.1]], ["a"], num_neighbors=2)["f1_micro"] == 1


def test_knn_measures_distance_not_direction():
    assert knn_f1([[10.0, 0], [0, 1]], [0, 1], [[1.0, 0.9]], [1], num_neighbors=1)["f1_micro"] == 1


def test_knn_agrees_with_scikit_learn_by_another_algorithm():
    train, test = points(300, 5), points(200, 5, seed=1)
    labels, test_labels = (np.digitize(x[:, 0], [-0.5, 0.5]) for x in (train, test))
    classifier = KNeighborsClassifier(3, algorithm="kd_tree").fit(train, labels)
    predicted = classifier.predict(test)
    assert knn_f1(train, labels, torch.tensor(test), torch.tensor(test_labels)) == {
        "f1_macro": pytest.approx(f1_score(test_labels, predicted, average="macro")),
        "f1_micro": pytest.approx((predicted == test_labels).mean()),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": [0]}, "train_labels must be one for each vector, got 1 for 5"),
        ({"test_labels": [0]}, "test_labels must be one for each vector, got 1 for 4"),
        ({"train_vectors": broken(points(5))}, "train_vectors must be finite, .* at row 2 "),
        ({"test_vectors": broken(points(4))}, "test_vectors must be finite, .* at row 2 "),
        ({"test_vectors": points(4, 3)}, "but they have 4 and 3 dimensions"),
        ({"test_vectors": []}, r"test_vectors must be \(N, D\) and not empty"),
        ({"num_neighbors": 6}, "between 1 and the number of training vectors, 5, got 6"),
        ({"num_neighbors": 0}, "between 1 and the number of training vectors, 5, got 0"),
    ],
)
def test_knn_refuses_wrong_input(changes, message):
    arguments = {"train_vectors": points(5), "train_labels": [0, 1, 0, 1, 1]}
    arguments |= {"test_vectors": points(4, seed=1), "test_labels": [0, 1, 0, 1]}
    with pytest.raises(ValueError, match=message):
        knn_f1(**(arguments | changes))
