"""How good a pipeline of images is: what it makes against real images, seen through a network."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from ..data import ImageDataset, load_images
from ..runtime import command, generator_for, hardware, versions
from .images import (
    Features,
    conditional_accuracy,
    evaluate_images,
    extract_features,
    inception_network,
    real_features,
    weights_sha256,
)

# Images in a batch; each batch is seeded apart, so this is part of what a seed means.
BATCH_SIZE = 256


def evaluate_pipeline(
    pipe: Any,
    folder: Path,
    dataset: ImageDataset | str | Path | None,
    *,
    feature_network: str | Path,
    split: str,
    num_images: int | None,
    seed: int,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Measures what a pipeline makes: FID, KID, precision, recall, and classes if it has any.

    Beside the model's rows stand two kinds of reference, marked as such: what training images in
    the place of the generated ones would score (the floor of FID and KID), and the feature
    network's accuracy on the real images.

    Args:
        pipe: A `genzoo.pipelines.ImagePipeline`.
        folder: Its checkpoint.
        dataset: Real images that the model has not seen: loaded already, or a name or path for
            `load_images`; None for the data set that it was trained on.
        feature_network: Folder of an image classifier, or "inception".
        split: Which part of the data, if it is not loaded already.
        num_images: How many to generate; None for as many as there are real ones, since FID depends
            on it.
        seed: Of noise, classes and the metrics' random choices.
        settings: What the pipeline is called with; it stands in each row.
        facts: What else stands in each row.

    Returns:
        Rows for `results.json`.

    Raises:
        FileNotFoundError: If data or checkpoint are not there.
        ValueError: If data, model and feature network do not fit together.
    """
    started = time.monotonic()
    config = pipe.network.config
    device = pipe.network.device
    source = trained_on(folder) if dataset is None else dataset
    shape = {"image_size": config.image_size, "num_channels": config.num_channels}
    real_images = (
        source if isinstance(source, ImageDataset) else load_images(source, split=split, **shape)
    )
    num_images = len(real_images) if num_images is None else num_images
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")

    network, network_name, sha256 = load_network(feature_network)

    def see(dataset: ImageDataset) -> Features:
        return real_features(
            network,
            dataset.images,
            dataset=dataset.name,
            split=dataset.split,
            network_sha256=sha256,
            device=device,
        )

    real = see(real_images)
    labels = None
    if config.num_classes:
        labels = torch.randint(config.num_classes, (num_images,), generator=generator_for(seed, 1))
    images = generate(pipe, num_images, labels, seed=seed, settings=settings)
    generated = extract_features(network, images, device=device)
    judged = judge_labels(config, network, labels)
    rows = evaluate_images(real, generated, labels=judged, seed=seed)

    all_facts = {
        "dataset": real_images.name,
        "split": real_images.split,
        "num_real": len(real_images),
        "num_generated": num_images,
        "feature_network": network_name,
        "feature_network_sha256": sha256,
        "seed": seed,
        "command": command(),
        "hardware": hardware(),
        "versions": versions(),
        "reference": False,
        **settings,
        **(facts or {}),
    }
    rows = [row | all_facts for row in rows]
    unmade = dict.fromkeys([*settings, *(facts or {})])  # says nothing about real images
    is_reference = unmade | {"num_generated": None, "reference": True}
    if not isinstance(source, ImageDataset) and split != "train":
        train = see(load_images(source, split="train", **shape))
        chosen = torch.randperm(len(train), generator=generator_for(seed, 2))[:num_images]
        floor = Features(train.embeddings[chosen], None)
        count = {"num_generated": len(floor)}  # training images in the place of generated ones
        floor_rows = evaluate_images(real, floor, seed=seed)
        rows += [row | all_facts | is_reference | count for row in floor_rows]
    has_same_classes = real_images.label_names == list(config.id2label.values())
    real_judged = judge_labels(config, network, real_images.labels) if has_same_classes else None
    if judged is not None and real.logits is not None and real_judged is not None:
        accuracy = conditional_accuracy(real.logits, real_judged)
        rows.append(
            {"metric": "class_accuracy", "value": accuracy, "std": None} | all_facts | is_reference
        )
    seconds = time.monotonic() - started
    return [row | {"seconds": seconds} for row in rows]


def trained_on(folder: Path) -> str:
    """The name of the data that a checkpoint was trained on.

    Raises:
        FileNotFoundError: If the folder does not say.
    """
    results = folder / "results.json"
    training = json.loads(results.read_text()).get("training") if results.exists() else None
    if training is None:
        raise FileNotFoundError(f"{folder} does not say what it was trained on: pass the data")
    return training["dataset"]


def load_network(feature_network: str | Path) -> tuple[nn.Module, str, str]:
    """The network that metrics look through, its name, and the SHA-256 of its weights."""
    if str(feature_network) == "inception":
        inception = inception_network(is_required=True)
        assert inception is not None
        return inception, "inception", weights_sha256(inception.weights)
    folder = Path(feature_network)
    network = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32)
    results = folder / "results.json"  # it knows the name; a folder in a cache is called otherwise
    name = json.loads(results.read_text())["name"] if results.exists() else folder.resolve().name
    return network, name, weights_sha256(folder)


def generate(
    pipe: Any,
    num_images: int,
    labels: Tensor | None,
    *,
    seed: int,
    settings: Mapping[str, Any],
) -> Iterator[Tensor]:
    """Batches in [-1, 1], each from a generator of its own: none depends on those before it."""
    pipe.set_progress_bar_config(disable=True)
    for first in range(0, num_images, BATCH_SIZE):
        count = min(BATCH_SIZE, num_images - first)
        images: Any = pipe(
            count,
            class_labels=None if labels is None else labels[first : first + count],
            generator=generator_for(seed, 0, first),
            batch_size=BATCH_SIZE,
            output_type="pt",
            **settings,
        ).images
        yield images * 2 - 1


def judge_labels(config: Any, network: nn.Module, labels: Tensor | None) -> Tensor | None:
    """The labels as the feature network numbers them; None where it knows other classes.

    Classes are matched by name.
    """
    known = getattr(getattr(network, "config", None), "label2id", None) or {}
    names = list(config.id2label.values()) if labels is not None else []
    if not names or not all(name in known for name in names):
        return None
    return torch.tensor([known[name] for name in names])[labels]
