"""How good a trained feature network is, on images that it has not seen."""

import time
from pathlib import Path
from typing import Any

import torch

from ..data import ImageDataset, load_images
from ..evaluation.images import conditional_accuracy, extract_features
from ..evaluation.pipelines import trained_on
from ..runtime import command, hardware, versions
from .modeling_feature_net import FeatureNetForImageClassification


def evaluate_feature_net(
    folder: str | Path,
    dataset: ImageDataset | str | Path | None = None,
    *,
    split: str = "test",
    batch_size: int = 256,
) -> list[dict[str, Any]]:
    """Measures the network in a folder as it is loaded: float32 numbers from a float16 file.

    Args:
        folder: A checkpoint folder.
        dataset: Images with labels: loaded already, or a name or path for `load_images`; None for
            the data set that the network was trained on. Classes are matched by name.
        split: Which part of the data, if it is not loaded already.
        batch_size: Images at a time.

    Returns:
        Rows for `results.json`: one, with the metric "accuracy".

    Raises:
        FileNotFoundError: If there is no such data, or the folder does not say what it was trained
            on.
        ValueError: If the images have no labels, or labels that the network does not know.
    """
    started = time.monotonic()
    folder = Path(folder)
    model = FeatureNetForImageClassification.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    if dataset is None:
        dataset = trained_on(folder)
    if not isinstance(dataset, ImageDataset):
        dataset = load_images(
            str(dataset),
            split=split,
            image_size=config.image_size,
            num_channels=config.num_channels,
        )
    if dataset.labels is None:
        raise ValueError(f"accuracy is measured against labels, and {dataset.name} has none")
    known = config.label2id or {}
    unknown = [name for name in dataset.label_names if name not in known]
    if unknown:
        raise ValueError(
            f"{dataset.name} has classes that the network does not know: {', '.join(unknown)}"
        )
    classes = torch.tensor([known[name] for name in dataset.label_names])

    device = "cuda" if torch.cuda.is_available() else "cpu"
    features = extract_features(model, dataset.images, batch_size=batch_size, device=device)
    assert features.logits is not None
    accuracy = conditional_accuracy(features.logits, classes[dataset.labels])
    row = {
        "metric": "accuracy",
        "value": accuracy,
        "std": None,
        "dataset": dataset.name,
        "split": dataset.split,
        "num_real": len(dataset),
        "num_generated": None,
        "feature_network": None,
        "feature_network_sha256": None,
        "truncation": None,
        "seed": 0,
        "command": command(),
        "hardware": hardware(),
        "seconds": time.monotonic() - started,
        "versions": versions(),
        "reference": False,
    }
    return [row]
