"""How far generated images are from real ones, seen through a feature network.

The order in which the data moves: images -> `extract_features` (or `real_features`, which
remembers them on disk) -> `evaluate_images` -> one row for each metric. A number means something
only together with the network that it was measured through: record `weights_sha256` beside it.

A feature network is any module that maps (B, C, H, W) in [-1, 1] to an object with `embeddings`
(B, D) and `logits` (B, K) or None, such as FeatureNetForImageClassification, or what
`inception_network()` returns.
"""

import hashlib
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """What a feature network saw in N images.

    Args:
        embeddings: (N, D), float32.
        logits: (N, K), float32, or None for a network that does not classify.

    Raises:
        ValueError: If shapes do not agree, or a number is not finite.
    """

    embeddings: Tensor
    logits: Tensor | None = None

    def __post_init__(self):
        for name, values in (("embeddings", self.embeddings), ("logits", self.logits)):
            if values is None:
                continue
            if values.dim() != 2 or len(values) != len(self.embeddings):
                raise ValueError(
                    f"{name} must be one row for each image, got {tuple(values.shape)} "
                    f"beside embeddings of {tuple(self.embeddings.shape)}"
                )
            broken = (~values.isfinite()).any(dim=1).nonzero()
            if len(broken):
                raise ValueError(
                    f"{name} of image {int(broken[0])} hold NaN or infinity "
                    f"({len(broken)} of {len(values)} images do)"
                )

    def __len__(self) -> int:
        return len(self.embeddings)


@torch.no_grad()
def extract_features(
    network: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Features:
    """Looks at images through a network, in evaluation mode.

    Generated images are rounded to 8 bits first, as they are when saved: the numbers are those of
    the pictures that a user gets, and real and generated images lie on one grid (Parmar et al.,
    2022, https://arxiv.org/abs/2104.11222).

    Args:
        network: A feature network, see the head of this file.
        images: (N, C, H, W), uint8; or batches (B, C, H, W) of floats in [-1, 1].
        batch_size: Images at a time, if `images` is one tensor.
        device: Where to compute; None for where the network is.

    Returns:
        Features of all images in their order, on the CPU.

    Raises:
        ValueError: If there are no images, or if they are not what is said above.
    """
    home = next(network.parameters()).device
    device = home if device is None else torch.device(device)
    was_training = network.training
    network.to(device).eval()
    embeddings, logits = [], []
    try:
        for batch in _batches(images, batch_size):
            output = network(batch.to(device) / 127.5 - 1)  # (B, C, H, W)
            embeddings.append(output.embeddings.float().cpu())  # (B, D)
            if output.logits is not None:
                logits.append(output.logits.float().cpu())  # (B, K)
    finally:
        network.to(home).train(was_training)
    if not embeddings:
        raise ValueError("there are no images to look at")
    return Features(torch.cat(embeddings), torch.cat(logits) if logits else None)


def _batches(images: Tensor | Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Batches on the 8-bit grid 0, 1, ... 255, as float32."""
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(
                f"images must be (N, C, H, W) of uint8, got {tuple(images.shape)} of "
                f"{images.dtype}; floats in [-1, 1] come as an iterable of batches"
            )
        yield from (batch.float() for batch in images.split(batch_size))
        return
    for index, batch in enumerate(images):
        if not batch.is_floating_point() or batch.dim() != 4:
            raise ValueError(
                f"batch {index} must be (B, C, H, W) of floats, "
                f"got {tuple(batch.shape)} of {batch.dtype}"
            )
        if not batch.isfinite().all():
            raise ValueError(f"batch {index} of the images holds NaN or infinity")
        if batch.abs().amax() > 1.001:  # room for the rounding of bfloat16 and of tanh
            raise ValueError(
                f"images must be in [-1, 1], but batch {index} reaches "
                f"from {batch.amin():.4g} to {batch.amax():.4g}"
            )
        yield ((batch.float().clamp(-1, 1) + 1) * 127.5).round()


class _Identity(nn.Module):
    """Hands torchmetrics features that are already there, in float64, where its sums are safe."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features.double()


@contextmanager
def _quiet_and_seeded(seed: int) -> Iterator[None]:
    """Seeds torch's CPU generator, which torchmetrics draws from, and puts it back afterwards."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features in buffer")
        warnings.filterwarnings("ignore", message=".*degrees of freedom")  # of a single split
        torch.default_generator.manual_seed(seed)
        yield


def _check_pair(real: Tensor, generated: Tensor, minimum: int) -> None:
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"real and generated embeddings must come from one network, but they have "
            f"{real.shape[1]} and {generated.shape[1]} dimensions"
        )
    if min(len(real), len(generated)) < minimum:
        raise ValueError(
            f"this needs at least {minimum} real and {minimum} generated images, "
            f"got {len(real)} and {len(generated)}"
        )


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """FID: squared Frechet distance of two Gaussians (Heusel et al., 2017, Eq. 6).

        |m_r - m_g|^2 + trace(S_r + S_g - 2 (S_r S_g)^(1/2))

    It falls as samples are added, because covariances of few samples are too small in most
    directions: compare only at equal counts.

    Args:
        real: Embeddings (N, D).
        generated: Embeddings (M, D).

    Raises:
        ValueError: If one side has fewer than two images or another D.
    """
    _check_pair(real, generated, minimum=2)
    count, size = min(len(real), len(generated)), real.shape[1]
    if count <= size:
        logger.warning(
            f"FID of {count} images in {size} dimensions: "
            "the covariances are singular, and the number is rough"
        )
    metric = FrechetInceptionDistance(feature=_Identity(size), sync_on_compute=False)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return max(metric.compute().item(), 0.0)  # equal sets give a rounding error of either sign


def kernel_distance(
    real: Tensor,
    generated: Tensor,
    *,
    subset_size: int = 1000,
    num_subsets: int = 100,
    seed: int = 0,
) -> tuple[float, float]:
    """KID: squared maximum mean discrepancy (Binkowski et al., 2018, Eq. 4).

    The kernel is (x.y / D + 1)^3 (Section 4 there). Unlike FID it is unbiased, so that it may be
    negative, and its mean does not depend on the counts.

    Args:
        real: Embeddings (N, D).
        generated: Embeddings (M, D).
        subset_size: Images of each side in one estimate.
        num_subsets: Estimates, each from random images of both sides.
        seed: Of the choice of subsets.

    Returns:
        Mean and standard deviation of the estimates.

    Raises:
        ValueError: If one side has fewer than `subset_size` images or another D.
    """
    if subset_size < 2:
        raise ValueError(f"subset_size must be at least 2, got {subset_size}")
    _check_pair(real, generated, minimum=subset_size)
    with _quiet_and_seeded(seed):
        metric = KernelInceptionDistance(
            feature=_Identity(real.shape[1]),
            subsets=num_subsets,
            subset_size=subset_size,
            sync_on_compute=False,
        )
        metric.update(real, real=True)
        metric.update(generated, real=False)
        mean, std = metric.compute()
    return mean.item(), std.item()


def inception_score(
    logits: Tensor, *, num_splits: int = 10, seed: int = 0
) -> tuple[float, float | None]:
    """The inception score, exp(E KL(p(y | x), p(y))) (Salimans et al., 2016), of any classifier.

    It lies between 1 and the number of classes K, and comparing is fair only within one classifier.

    Args:
        logits: (N, K).
        num_splits: Groups of images that are scored apart; never more than there are images.
        seed: Of the split.

    Returns:
        Mean and standard deviation over the splits; None for the latter if there is only one.
    """
    with _quiet_and_seeded(seed):
        metric = InceptionScore(
            feature=_Identity(logits.shape[1]),
            splits=min(num_splits, len(logits)),
            sync_on_compute=False,
        )
        metric.update(logits)
        mean, std = metric.compute()
    return mean.item(), std.item() if std.isfinite() else None


class PrecisionRecall(NamedTuple):
    """Both numbers of `precision_recall`, each a share between 0 and 1."""

    precision: float
    recall: float


def precision_recall(
    real: Tensor, generated: Tensor, *, k: int = 3, chunk_size: int = 1024
) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., 2019, https://arxiv.org/abs/1904.06991).

    A set of points spans the union of balls around them, each as wide as the distance to the k-th
    nearest other point of that set (Eq. 1). Precision is the share of generated images inside the
    span of the real ones, recall the share of real images inside the span of the generated (Eq. 2).

    Args:
        real: Embeddings (N, D).
        generated: Embeddings (M, D).
        k: Which neighbor sets the width of a ball.
        chunk_size: Rows of the distance matrices that are in memory at a time; without effect on
            the result.

    Raises:
        ValueError: If one side has no k-th neighbor or another D.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    _check_pair(real, generated, minimum=k + 1)
    center = real.double().mean(dim=0)
    real, generated = real.double() - center, generated.double() - center
    # Far more than float64 rounds, far less than points differ: copies are at distance 0, and a
    # point on the rim of a ball is in it.
    slack = 1e-12 * torch.cat([real, generated]).square().sum(dim=1).max()
    real_radii = _neighbor_distances(real, k, chunk_size) + slack  # (N,)
    generated_radii = _neighbor_distances(generated, k, chunk_size) + slack  # (M,)
    covered = 0
    reached = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for points, radii in zip(
        generated.split(chunk_size), generated_radii.split(chunk_size), strict=True
    ):
        distances = _squared_distances(points, real)  # (chunk, N)
        covered += int((distances <= real_radii).any(dim=1).sum())
        reached |= (distances <= radii[:, None]).any(dim=0)
    return PrecisionRecall(covered / len(generated), reached.double().mean().item())


def _neighbor_distances(points: Tensor, k: int, chunk_size: int) -> Tensor:
    """Squared distance of each point to its k-th nearest other point: (N, D) -> (N,)."""
    # A point is at distance 0 from itself, so its k-th neighbor is the last of k + 1.
    nearest = [
        _squared_distances(chunk, points).topk(k + 1, dim=1, largest=False).values[:, -1]
        for chunk in points.split(chunk_size)
    ]
    return torch.cat(nearest)


def _squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """|x - y|^2 as |x|^2 - 2 x.y + |y|^2: (N, D) and (M, D), float64 -> (N, M)."""
    squares = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)
    return torch.addmm(squares, left, right.T, alpha=-2)


def conditional_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images that a classifier takes for the class that was asked for.

    Args:
        logits: (N, K).
        labels: (N,), class numbers.

    Raises:
        ValueError: If there is not one label for each image, or a label is not a class.
    """
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels must be ({len(logits)},), got {tuple(labels.shape)}")
    if len(labels) == 0:
        raise ValueError("there are no images to judge")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels must be between 0 and {logits.shape[1] - 1}, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )
    return (logits.argmax(dim=1).cpu() == labels.cpu()).double().mean().item()


def evaluate_images(
    real: Features,
    generated: Features,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
    subset_size: int | None = None,
    k: int = 3,
) -> list[dict]:
    """All metrics of this file that the features allow.

    Args:
        real: Features of real images.
        generated: Features of generated images, through the same network.
        labels: (M,), the classes that were asked for, of a class-conditional generator.
        seed: Of KID's subsets and the inception score's split.
        subset_size: Images in one estimate of KID; None for 1000, or for half of the smaller set
            where that is less, since subsets as large as the set are all the same.
        k: Which neighbor sets the width of a ball in precision and recall.

    Returns:
        Rows with the keys "metric", "value" and "std" (None where there is no spread): "fid",
        "kid", "inception_score" (with logits), "precision", "recall", "class_accuracy" (with
        labels).

    Raises:
        ValueError: If there are too few images, or the two sides do not fit together.
    """
    if labels is not None and generated.logits is None:
        raise ValueError("class accuracy needs a network with logits, and this one has none")
    _check_pair(real.embeddings, generated.embeddings, minimum=max(4, k + 1))
    if subset_size is None:
        subset_size = min(1000, len(real) // 2, len(generated) // 2)

    fid = frechet_distance(real.embeddings, generated.embeddings)
    kid = kernel_distance(real.embeddings, generated.embeddings, subset_size=subset_size, seed=seed)
    precision, recall = precision_recall(real.embeddings, generated.embeddings, k=k)
    rows = [("fid", fid, None), ("kid", *kid)]
    if generated.logits is not None:
        rows.append(("inception_score", *inception_score(generated.logits, seed=seed)))
    rows += [("precision", precision, None), ("recall", recall, None)]
    if generated.logits is not None and labels is not None:
        rows.append(("class_accuracy", conditional_accuracy(generated.logits, labels), None))
    return [{"metric": metric, "value": value, "std": std} for metric, value, std in rows]


def weights_sha256(path: str | Path) -> str:
    """Which network that was: sha256 of its weights, as `sha256sum` prints it.

    Args:
        path: A file, or a checkpoint folder; shards of one checkpoint are hashed one after another
            in the order of their names.

    Raises:
        FileNotFoundError: If there is no such file, or no safetensors in the folder.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        whole = path / "model.safetensors"
        files = [whole] if whole.is_file() else sorted(path.glob("*.safetensors"))
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"there are no weights in {path}: expected model.safetensors")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def real_features(
    network: nn.Module,
    images: Tensor,
    *,
    dataset: str,
    split: str,
    network_sha256: str,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    cache_dir: str | Path | None = None,
) -> Features:
    """Features of real images, remembered on disk.

    What is remembered is found by the images themselves (their sha256, so that other data under an
    old name is new data), the data set's name and split, the count, and the network's sha256.
    A damaged file is made again; a folder that cannot be written costs time, nothing else.

    Args:
        network: A feature network.
        images: (N, C, H, W), uint8.
        dataset: Name of the data set.
        split: Which part of it.
        network_sha256: `weights_sha256` of the network.
        batch_size: Images at a time.
        device: Where to compute; None for where the network is.
        cache_dir: Folder of the files; None for "genzoo" in the folder of the Hugging Face caches
            (environment variable HF_HOME).
    """
    folder = Path(constants.HF_HOME) / "genzoo" if cache_dir is None else Path(cache_dir)
    identity = {
        "format": 1,
        "dataset": dataset,
        "split": split,
        "count": len(images),
        "images": _fingerprint(images),
        "network": network_sha256,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    path = folder / f"features-{split}-{len(images)}-{key[:16]}.safetensors"
    if path.is_file():
        try:
            return _read_features(path, key)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            logger.warning(f"{path} is damaged and is made again ({error})")
    features = extract_features(network, images, batch_size=batch_size, device=device)
    try:
        _write_features(path, key, features)
    except OSError as error:
        logger.warning(
            f"the features of real images are not kept, {path} cannot be written ({error})"
        )
    return features


def _fingerprint(*tensors: Tensor | None) -> str:
    """sha256 of the types, shapes and values of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is None:
            continue
        array = tensor.cpu().numpy()
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read_features(path: Path, key: str) -> Features:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    embeddings, logits = tensors["embeddings"], tensors.get("logits")
    if metadata.get("key") != key or metadata.get("sha256") != _fingerprint(embeddings, logits):
        raise ValueError("its checksum does not match")
    return Features(embeddings, logits)


def _write_features(path: Path, key: str, features: Features) -> None:
    """Writes beside the target, then renames: a reader sees the whole file or none."""
    tensors = {"embeddings": features.embeddings}
    if features.logits is not None:
        tensors["logits"] = features.logits
    checksum = _fingerprint(features.embeddings, features.logits)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(save(tensors, metadata={"key": key, "sha256": checksum}))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class InceptionOutput(NamedTuple):
    """What the Inception network returns.

    Args:
        embeddings: (B, 2048), the last pooling layer, what FID and KID are defined on.
        logits: (B, 1008), without the bias, as the inception score has them.
    """

    embeddings: Tensor
    logits: Tensor


class InceptionNetwork(nn.Module):
    """The network that the literature's FID is measured through, behind this file's interface.

    Args:
        network: torchmetrics' Inception with the features "2048" and "logits_unbiased".
        weights: The file that its weights were read from.
    """

    network: NoTrainInceptionV3

    def __init__(self, network: NoTrainInceptionV3, weights: Path):
        super().__init__()
        self.network = network
        self.weights = weights

    def forward(self, pixel_values: Tensor) -> InceptionOutput:
        """(B, C, H, W) in [-1, 1], grey or color -> embeddings and logits."""
        images = ((pixel_values + 1) * 127.5).round().to(torch.uint8)
        images = images.expand(-1, 3, -1, -1)  # grey becomes color
        return InceptionOutput(*self.network._torch_fidelity_forward(images))


def inception_network(*, is_required: bool = False) -> InceptionNetwork | None:
    """The standard Inception network, if it is to be had without a download.

    Its code is the package torch-fidelity. Its weights are the file named by the environment
    variable GENZOO_INCEPTION_WEIGHTS, else the one that torch-fidelity left in torch's hub folder.

    Args:
        is_required: Whether to die with a sentence that says what is missing, instead of None.

    Raises:
        ModuleNotFoundError: If required and torch-fidelity is not installed.
        FileNotFoundError: If required and the weights are not there, or if
            GENZOO_INCEPTION_WEIGHTS names a file that does not exist.
    """
    named = os.environ.get("GENZOO_INCEPTION_WEIGHTS")
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    weights = Path(named or checkpoints / "weights-inception-2015-12-05-6726825d.pth")
    if not weights.is_file() and (named or is_required):
        raise FileNotFoundError(
            f"the Inception weights {weights} are not there: put torch-fidelity's file in that "
            "place or name another in GENZOO_INCEPTION_WEIGHTS"
        )
    if importlib.util.find_spec("torch_fidelity") is None:
        if is_required:
            raise ModuleNotFoundError(
                "the Inception network needs the package torch-fidelity: pip install torch-fidelity"
            )
        return None
    if not weights.is_file():
        return None
    network = NoTrainInceptionV3(
        name="inception-v3-compat",
        features_list=["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(weights),
    )
    return InceptionNetwork(network, weights)
