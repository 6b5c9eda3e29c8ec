"""How good a generator is: its images against real ones, as a feature network sees them."""

from pathlib import Path
from typing import Any

import torch

from ..data import ImageDataset
from ..evaluation.pipelines import evaluate_pipeline
from .pipeline_gan import GANPipeline


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

    Args:
        folder: A checkpoint folder.
        dataset: As for `genzoo.evaluation.pipelines.evaluate_pipeline`, as all that follow.
        feature_network: Folder of an image classifier, or "inception".
        split: Which part of the data, if it is not loaded already.
        num_images: How many to generate; None for as many as there are real ones.
        seed: Of latents, classes and the metrics' random choices.
        truncation: See `GANPipeline`.

    Returns:
        Rows for `results.json`.

    Raises:
        FileNotFoundError: If data or checkpoint are not there.
        ValueError: If data, model and feature network do not fit together.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return evaluate_pipeline(
        GANPipeline.from_pretrained(folder, discriminator=None).to(device),
        Path(folder),
        dataset,
        feature_network=feature_network,
        split=split,
        num_images=num_images,
        seed=seed,
        settings={"truncation": truncation},
    )
