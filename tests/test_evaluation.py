"""Metrics of generated images: closed forms first, then wrong input, then the cache."""

import hashlib
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from genzoo.evaluation import images as metrics
from genzoo.evaluation.images import (
    Features,
    conditional_accuracy,
    evaluate_images,
    extract_features,
    frechet_distance,
    inception_network,
    inception_score,
    kernel_distance,
    precision_recall,
    real_features,
    weights_sha256,
)


def points(count: int, size: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


class TinyNetwork(nn.Module):
    """Mean and greatest pixel as embedding, both and their difference as scores."""

    def __init__(self, has_logits: bool = True):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.5)
        self.has_logits = has_logits
        self.num_calls = 0

    def forward(self, pixel_values: torch.Tensor) -> types.SimpleNamespace:
        self.num_calls += 1
        pixels = self.dropout(pixel_values.flatten(1)) * self.scale
        embeddings = torch.stack([pixels.mean(dim=1), pixels.amax(dim=1)], dim=1)
        logits = torch.cat([embeddings, embeddings.diff(dim=1)], dim=1) if self.has_logits else None
        return types.SimpleNamespace(embeddings=embeddings, logits=logits)


def random_images(count: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 1, 6, 6), dtype=torch.uint8, generator=generator)


# FID


def test_frechet_distance_of_two_gaussians_on_an_axis():
    # Diagonal covariances: |m|^2 + sum of (s_r - s_g)^2 with the sample's own moments.
    real, generated = points(500, 1).double(), 3 * points(400, 1, seed=1).double() + 2
    expected = (real.mean() - generated.mean()) ** 2 + (real.std() - generated.std()) ** 2
    assert frechet_distance(real, generated) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_distance_agrees_with_the_formula():
    real, generated = points(300, 6), points(200, 6, seed=1) @ points(6, 6, seed=2) + 1
    r, g = real.double().numpy(), generated.double().numpy()
    cov_r, cov_g = np.cov(r, rowvar=False), np.cov(g, rowvar=False)
    values, vectors = np.linalg.eigh(cov_r)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    # trace (S_r S_g)^(1/2) by a route that torchmetrics does not take: a symmetric product.
    trace = np.sqrt(np.linalg.eigvalsh(root @ cov_g @ root)).sum()
    mean_term = np.square(r.mean(0) - g.mean(0)).sum()
    expected = mean_term + np.trace(cov_r) + np.trace(cov_g) - 2 * trace
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_a_set_to_itself_is_zero():
    assert 0 <= frechet_distance(points(100), points(100)) < 1e-9


def test_frechet_distance_of_a_shift_is_its_square():
    assert frechet_distance(points(50), points(50) + 2) == pytest.approx(4 * 4, rel=1e-6)


def test_frechet_distance_warns_when_covariances_are_singular(caplog):
    assert np.isfinite(frechet_distance(points(4, 8), points(4, 8, seed=1)))
    assert "4 images in 8 dimensions" in caplog.text


# KID


def test_kernel_distance_agrees_with_the_formula():
    real, generated = points(40, 5), points(30, 5, seed=1) + 0.5
    generator = torch.Generator().manual_seed(7)

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    estimates = []
    for _ in range(3):
        x = real[torch.randperm(40, generator=generator)[:20]].double().numpy()
        y = generated[torch.randperm(30, generator=generator)[:20]].double().numpy()
        within = sum((kernel(z, z).sum() - np.trace(kernel(z, z))) / (20 * 19) for z in (x, y))
        estimates.append(within - 2 * kernel(x, y).mean())
    mean, std = kernel_distance(real, generated, subset_size=20, num_subsets=3, seed=7)
    assert mean == pytest.approx(np.mean(estimates), rel=1e-9)
    assert std == pytest.approx(np.std(estimates), rel=1e-9)


def test_kernel_distance_grows_with_the_distance():
    near, _ = kernel_distance(points(200), points(200, seed=1), subset_size=100)
    far, _ = kernel_distance(points(200), points(200, seed=1) + 1, subset_size=100)
    assert abs(near) < 0.05 < far


def test_kernel_distance_needs_enough_images():
    with pytest.raises(ValueError, match="at least 50 real and 50 generated images, got 60 and 40"):
        kernel_distance(points(60), points(40), subset_size=50)
    with pytest.raises(ValueError, match="subset_size must be at least 2, got 1"):
        kernel_distance(points(60), points(40), subset_size=1)


# Inception score


def test_inception_score_between_one_and_the_number_of_classes():
    sure = 100 * torch.eye(5).repeat(20, 1)
    assert inception_score(sure, num_splits=1)[0] == pytest.approx(5)
    assert inception_score(torch.zeros(100, 5))[0] == pytest.approx(1)
    assert inception_score(sure[:1].repeat(100, 1))[0] == pytest.approx(1)  # one class only


def test_inception_score_agrees_with_the_formula():
    logits = 3 * points(60, 4)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    probabilities = logits[order].double().softmax(dim=1).numpy()
    scores = []
    for group in np.split(probabilities, 6):
        scores.append(np.exp((group * np.log(group / group.mean(0))).sum(1).mean()))
    mean, std = inception_score(logits, num_splits=6, seed=3)
    assert mean == pytest.approx(np.mean(scores), rel=1e-9)
    assert std == pytest.approx(np.std(scores, ddof=1), rel=1e-9)


def test_inception_score_of_few_images_has_no_deviation():
    mean, std = inception_score(points(1, 4))
    assert (mean, std) == (pytest.approx(1), None)


# Precision and recall


def test_precision_recall_of_equal_sets_is_one():
    assert precision_recall(points(50), points(50)) == (1, 1)


def test_precision_recall_of_far_sets_is_zero():
    assert precision_recall(points(50), points(50, seed=1) + 1000) == (0, 0)


def test_precision_recall_of_a_dropped_mode():
    modes = torch.cat([points(50), points(50, seed=1) + 1000])
    precision, recall = precision_recall(modes, points(50))  # the first mode only
    assert (precision, recall) == (1, 0.5)


def test_precision_recall_of_an_invented_mode():
    modes = torch.cat([points(50), points(50, seed=1) + 1000])
    assert precision_recall(points(50), modes) == (0.5, 1)


def test_precision_recall_on_a_line_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0]])  # radii 1, 1, 2 for k = 1: balls span -1 to 5
    generated = torch.tensor([[5.0], [5.5], [10.0]])  # radii 0.5, 0.5, 4.5: balls 4.5 to 14.5
    precision, recall = precision_recall(real, generated, k=1)
    assert precision == pytest.approx(1 / 3)  # 5.0 lies on the rim of the ball of 3
    assert recall == 0


def test_precision_recall_of_copies_is_exact():
    # All neighbors are copies, so that balls have radius 0 and only exact distances find them.
    real = points(6, 64).repeat_interleave(5, dim=0)
    assert precision_recall(real, real[:10]) == (1, 10 / 30)


@pytest.mark.parametrize("chunk_size", [1, 7, 64])
def test_precision_recall_does_not_depend_on_the_chunk(chunk_size):
    real, generated = points(60, 16), 1.2 * points(45, 16, seed=1)
    expected = precision_recall(real, generated)
    assert 0 < expected.precision < 1 and 0 < expected.recall < 1
    assert precision_recall(real, generated, chunk_size=chunk_size) == expected


def test_precision_recall_needs_neighbors():
    with pytest.raises(ValueError, match="at least 4 real and 4 generated images, got 10 and 3"):
        precision_recall(points(10), points(3))
    with pytest.raises(ValueError, match="k must be at least 1"):
        precision_recall(points(10), points(10), k=0)


# Class accuracy


def test_conditional_accuracy():
    logits = torch.eye(3)[[0, 1, 2, 2]]
    assert conditional_accuracy(logits, torch.tensor([0, 1, 2, 0])) == 0.75


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"labels must be \(3,\), got \(2,\)"),
        ([0, 1, 3], "labels must be between 0 and 2, got 0 to 3"),
    ],
)
def test_conditional_accuracy_rejects_foreign_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        conditional_accuracy(torch.eye(3), torch.tensor(labels))


# All of them


def test_evaluate_images_returns_rows():
    features = Features(points(40), points(40, 3))
    rows = evaluate_images(features, features, labels=features.logits.argmax(dim=1))
    values = {row["metric"]: row["value"] for row in rows}
    names = ["fid", "kid", "inception_score", "precision", "recall", "class_accuracy"]
    assert list(values) == names
    assert all(set(row) == {"metric", "value", "std"} for row in rows)
    assert all(isinstance(row["value"], float) for row in rows)
    assert values["fid"] < 1e-9
    assert values["precision"] == values["recall"] == values["class_accuracy"] == 1


def test_evaluate_images_without_a_classifier():
    features = Features(points(40))
    rows = evaluate_images(features, features)
    assert [row["metric"] for row in rows] == ["fid", "kid", "precision", "recall"]
    with pytest.raises(ValueError, match="needs a network with logits"):
        evaluate_images(features, features, labels=torch.zeros(40, dtype=torch.int64))


def test_evaluate_images_is_seeded_and_leaves_the_global_generator_alone():
    real = Features(points(40), points(40, 3))
    generated = Features(points(30, seed=1), points(30, 3))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = evaluate_images(real, generated, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert evaluate_images(real, generated, seed=1) == first
    assert evaluate_images(real, generated, seed=2) != first


def test_evaluate_images_refuses_two_networks_and_too_few_images():
    with pytest.raises(ValueError, match="come from one network, but they have 4 and 5 dimensions"):
        evaluate_images(Features(points(40, 4)), Features(points(40, 5)))
    with pytest.raises(ValueError, match="at least 4 real and 4 generated images, got 40 and 2"):
        evaluate_images(Features(points(40)), Features(points(2)))


def test_features_that_are_not_numbers_are_refused():
    broken = points(5)
    broken[3, 1] = float("nan")
    with pytest.raises(ValueError, match="embeddings of image 3 hold NaN or infinity"):
        Features(broken)
    with pytest.raises(ValueError, match="logits must be one row for each image"):
        Features(points(5), points(4))


# Features of images


def test_extract_features_in_order_whatever_the_batch():
    network, images = TinyNetwork(), random_images()
    features = extract_features(network, images)
    pixels = (images.float() / 127.5 - 1).flatten(1)
    assert torch.allclose(features.embeddings[:, 0], pixels.mean(dim=1))
    assert torch.equal(features.embeddings[:, 1], pixels.amax(dim=1))
    assert features.logits.shape == (10, 3)
    batched = extract_features(network, images, batch_size=3)
    assert torch.allclose(batched.embeddings, features.embeddings, atol=1e-6)


def test_extract_features_of_pictures_equals_that_of_their_floats():
    network, images = TinyNetwork(), random_images()
    floats = images.float() / 127.5 - 1 + 0.003 * points(360, 1).clamp(-1, 1).view(images.shape)
    features = extract_features(network, iter(floats.clamp(-1, 1).split(4)))
    assert torch.allclose(features.embeddings, extract_features(network, images).embeddings)


def test_extract_features_leaves_the_network_as_it_was():
    network = TinyNetwork().train()
    images = random_images()
    assert torch.equal(
        extract_features(network, images).embeddings, extract_features(network, images).embeddings
    )
    assert network.training


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([torch.full((1, 1, 2, 2), float("nan"))], "batch 0 of the images holds NaN"),
        ([torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 255.0)], "batch 1 reaches from 255"),
        ([torch.zeros(1, 2, 2)], r"batch 0 must be \(B, C, H, W\)"),
        (torch.zeros(1, 1, 2, 2), r"images must be \(N, C, H, W\) of uint8"),
        ([], "there are no images"),
    ],
)
def test_extract_features_refuses_wrong_images(images, message):
    with pytest.raises(ValueError, match=message):
        extract_features(TinyNetwork(), images)


# Real features, remembered


def remembered(network: nn.Module, folder, **changes) -> Features:
    arguments = {"images": random_images(), "dataset": "toy", "split": "test"}
    arguments |= {"network_sha256": "0"} | changes
    return real_features(network, cache_dir=folder, **arguments)


@pytest.mark.parametrize("has_logits", [True, False])
def test_real_features_are_computed_once(tmp_path, has_logits):
    network = TinyNetwork(has_logits)
    first = remembered(network, tmp_path)
    second = remembered(network, tmp_path)
    assert network.num_calls == 1
    assert torch.equal(first.embeddings, second.embeddings)
    assert (first.logits is None) == (second.logits is None) == (not has_logits)
    if has_logits:
        assert torch.equal(first.logits, second.logits)


def test_real_features_know_what_they_belong_to(tmp_path):
    network, other_images = TinyNetwork(), random_images()
    other_images[0, 0, 0, 0] ^= 1
    remembered(network, tmp_path)
    changes = [
        {"dataset": "other"},
        {"split": "train"},
        {"network_sha256": "1"},
        {"images": random_images()[:5]},
        {"images": other_images},
    ]
    for change in changes:
        remembered(network, tmp_path, **change)
    assert network.num_calls == 1 + len(changes) == len(list(tmp_path.iterdir()))


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty", "flipped"])
def test_damaged_real_features_are_made_again(tmp_path, damage, caplog):
    network = TinyNetwork()
    expected = remembered(network, tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "foreign":
        save_file({"weight": torch.zeros(2)}, path)
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        path.write_bytes({"truncated": content[:-9], "empty": b"", "flipped": flipped}[damage])
    assert torch.equal(remembered(network, tmp_path).embeddings, expected.embeddings)
    assert "is damaged and is made again" in caplog.text
    assert network.num_calls == 2
    remembered(network, tmp_path)
    assert network.num_calls == 2


def test_a_full_disk_costs_only_the_cache(tmp_path, monkeypatch, caplog):
    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metrics.os, "replace", fail)
    assert len(remembered(TinyNetwork(), tmp_path)) == 10
    assert "No space left on device" in caplog.text
    assert not list(tmp_path.iterdir())


def test_real_features_are_kept_in_the_hugging_face_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.constants, "HF_HOME", str(tmp_path))
    remembered(TinyNetwork(), None)
    assert len(list((tmp_path / "genzoo").glob("features-test-10-*.safetensors"))) == 1


# Weights


def test_weights_sha256_is_that_of_the_file(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.arange(3.0)}, file)
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert weights_sha256(tmp_path) == weights_sha256(file) == expected
    save_file({"weight": torch.arange(1, 4.0)}, file)
    assert weights_sha256(tmp_path) != expected
    assert torch.equal(load_file(file)["weight"], torch.arange(1, 4.0))


def test_weights_sha256_of_shards(tmp_path):
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in reversed(names):
        save_file({name: torch.zeros(1)}, tmp_path / name)
    content = b"".join((tmp_path / name).read_bytes() for name in names)
    assert weights_sha256(tmp_path) == hashlib.sha256(content).hexdigest()


def test_weights_sha256_of_nothing(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="there are no weights in"):
            weights_sha256(path)


# Inception


def test_inception_network_is_none_without_weights(tmp_path, monkeypatch):
    monkeypatch.delenv("GENZOO_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert inception_network() is None
    with pytest.raises(FileNotFoundError, match="GENZOO_INCEPTION_WEIGHTS"):
        inception_network(is_required=True)


def test_inception_network_says_which_package_is_missing(tmp_path, monkeypatch):
    weights = tmp_path / "weights.pth"
    monkeypatch.setenv("GENZOO_INCEPTION_WEIGHTS", str(weights))
    with pytest.raises(FileNotFoundError, match=r"weights\.pth are not there"):
        inception_network()
    weights.touch()
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    assert inception_network() is None
    with pytest.raises(ModuleNotFoundError, match="pip install torch-fidelity"):
        inception_network(is_required=True)
