"""How good a generator is: its images against real ones, as a feature network sees them."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from ..data import ImageDataset, load_images
from ..evaluation.images import (
    Features,
    conditional_accuracy,
    evaluate_images,
    extract_features,
    inception_network,
    real_features,
    weights_sha256,
)
from ..runtime import command, generator_for, hardware, versions
from .pipeline_gan import GANPipeline

# Images in a batch; each batch is seeded apart, so this is part of what a seed means.
BATCH_SIZE = 256


def evaluate_gan(
    folder: str | Path,
    dataset: ImageDataset | str | Path | None = None,
    *,
    feature_network: str | Path,
    split: str = "test",
    num_images: int | None = None,
    seed: int = 0,
    truncation: float | None = None,
) -> list[dict[str, Any]]:
    """Measures the generator in a folder as it is loaded: float32 numbers from a float16 file.

    Beside the model's rows stand two kinds of reference, marked as such: what training images in
    the place of the generated ones would score (the floor of FID and KID), and the feature
    network's accuracy on the real images.

    Args:
        folder: A checkpoint folder.
        dataset: Real images that the model has not seen: loaded already, or a name or path for
            `load_images`; None for the data set that it was trained on.
        feature_network: Folder of an image classifier, or "inception".
        split: Which part of the data, if it is not loaded already.
        num_images: How many to generate; None for as many as there are real ones, since FID depends
            on it.
        seed: Of latents, classes and the metrics' random choices.
        truncation: See `GANPipeline`.

    Returns:
        Rows for `results.json`.

    Raises:
        FileNotFoundError: If data or checkpoint are not there.
        ValueError: If data, model and feature network do not fit together.
    """
    started = time.monotonic()
    folder = Path(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = GANPipeline.from_pretrained(folder, discriminator=None).to(device)
    config = pipe.gan.config
    source = dataset
    if source is None:
        results = folder / "results.json"
        training = json.loads(results.read_text()).get("training") if results.exists() else None
        if training is None:
            raise FileNotFoundError(f"{folder} does not say what it was trained on: pass the data")
        source = training["dataset"]
    shape = {"image_size": config.image_size, "num_channels": config.num_channels}
    real_images = (
        source if isinstance(source, ImageDataset) else load_images(source, split=split, **shape)
    )
    num_images = num_images or len(real_images)

    network, network_name, sha256 = _load_network(feature_network)

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
    images = _generate(pipe, num_images, labels, seed=seed, truncation=truncation)
    generated = extract_features(network, images, device=device)
    judged = _judge_labels(config, network, labels)
    rows = evaluate_images(real, generated, labels=judged, seed=seed)

    facts = {
        "dataset": real_images.name,
        "split": real_images.split,
        "num_real": len(real_images),
        "num_generated": num_images,
        "feature_network": network_name,
        "feature_network_sha256": sha256,
        "truncation": truncation,
        "seed": seed,
        "command": command(),
        "hardware": hardware(),
        "versions": versions(),
        "reference": False,
    }
    rows = [row | facts for row in rows]
    is_reference = {"num_generated": None, "truncation": None, "reference": True}
    if not isinstance(source, ImageDataset) and split != "train":
        train = see(load_images(source, split="train", **shape))
        chosen = torch.randperm(len(train), generator=generator_for(seed, 2))[:num_images]
        floor = Features(train.embeddings[chosen], None)
        count = {"num_generated": len(floor)}  # training images in the place of generated ones
        floor_rows = evaluate_images(real, floor, seed=seed)
        rows += [row | facts | is_reference | count for row in floor_rows]
    has_same_classes = real_images.label_names == list(config.id2label.values())
    real_judged = _judge_labels(config, network, real_images.labels) if has_same_classes else None
    if judged is not None and real.logits is not None and real_judged is not None:
        accuracy = conditional_accuracy(real.logits, real_judged)
        rows.append(
            {"metric": "class_accuracy", "value": accuracy, "std": None} | facts | is_reference
        )
    seconds = time.monotonic() - started
    return [row | {"seconds": seconds} for row in rows]


def _load_network(feature_network: str | Path) -> tuple[nn.Module, str, str]:
    if str(feature_network) == "inception":
        inception = inception_network(is_required=True)
        assert inception is not None
        return inception, "inception", weights_sha256(inception.weights)
    folder = Path(feature_network)
    network = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32)
    results = folder / "results.json"  # it knows the name; a folder in a cache is called otherwise
    name = json.loads(results.read_text())["name"] if results.exists() else folder.resolve().name
    return network, name, weights_sha256(folder)


def _generate(
    pipe: GANPipeline,
    num_images: int,
    labels: Tensor | None,
    *,
    seed: int,
    truncation: float | None,
) -> Iterator[Tensor]:
    """Batches in [-1, 1], each from a generator of its own: none depends on those before it."""
    pipe.set_progress_bar_config(disable=True)
    for first in range(0, num_images, BATCH_SIZE):
        count = min(BATCH_SIZE, num_images - first)
        images: Any = pipe(
            count,
            class_labels=None if labels is None else labels[first : first + count],
            generator=generator_for(seed, 0, first),
            truncation=truncation,
            batch_size=BATCH_SIZE,
            output_type="pt",
        ).images
        yield images * 2 - 1


def _judge_labels(config: Any, network: nn.Module, labels: Tensor | None) -> Tensor | None:
    """The labels as the feature network numbers them; None where it knows other classes.

    Classes are matched by name.
    """
    known = getattr(getattr(network, "config", None), "label2id", None) or {}
    names = list(config.id2label.values()) if labels is not None else []
    if not names or not all(name in known for name in names):
        return None
    return torch.tensor([known[name] for name in names])[labels]
