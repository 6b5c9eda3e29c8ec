"""How good an energy is: what its chains make, fill in and compose, and what it tells by itself."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ..data import ImageDataset, load_images
from ..evaluation.images import conditional_accuracy
from ..evaluation.pipelines import evaluate_pipeline, judge_labels, load_network, trained_on
from ..runtime import command, generator_for, hardware, versions
from .buffer import dequantize
from .colors import color_of, gray
from .composition import class_energies, compose, of_class
from .likelihood import log_partition
from .modeling_ebm import EnergyModel
from .pipeline_ebm import EBMInpaintPipeline, EBMPipeline
from .samplers import sample
from .scheduling_langevin import LangevinScheduler
from .training import EBMRecipe

NUM_IMAGES = 2_000
NUM_INPAINTED, NUM_COMPLETIONS = 400, 16
NUM_COMPOSED = 600
NUM_JUDGED = 2_000
NUM_ANNEALED, NUM_DISTRIBUTIONS = 8, 50  # chains of a class, steps of annealed importance sampling
BATCH_SIZE = 256


def evaluate_energy(
    folder: str | Path,
    dataset: ImageDataset | str | Path | None = None,
    *,
    recipe: EBMRecipe,
    feature_network: str | Path,
    companion: str | Path | None = None,
    split: str = "test",
    num_images: int | None = None,
    seed: int = 0,
    num_inference_steps: int | None = None,
) -> list[dict[str, Any]]:
    """Measures the energy in a folder as it is loaded: float32 numbers from a float16 file.

    - What chains from fresh noise make, against real images. For an energy that has a companion:
      what chains over the sum of both make, of every pair of classes.
    - The lower half of images that it has not seen, filled in: the mean of 16 completions against
      the truth, beside those of the nearest training image of the same class, of the nearest of
      all, and of the mean of the class's.
    - The class of the lowest energy, and how well the energy tells other images from the data.
    - Bounds of the log-likelihood at temperature one.

    Args:
        folder: A checkpoint folder.
        dataset: In the place of the data that it was trained on.
        recipe: Which trained it.
        feature_network: Folder of an image classifier, or "inception".
        companion: Folder of the energy that it is composed with, where the recipe names one.
        split: Held-out images.
        num_images: How many to generate; 2,000 unless given.
        seed: Of all that is drawn.
        num_inference_steps: Of a chain; the checkpoint's own unless given.

    Returns:
        Rows for `results.json`.

    Raises:
        FileNotFoundError: If data or checkpoint are not there.
        ValueError: If data, model and feature network do not fit together.
    """
    folder = Path(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = EBMPipeline.from_pretrained(folder).to(device)
    pipe.set_progress_bar_config(disable=True)
    steps = num_inference_steps
    steps = pipe.scheduler.config.num_inference_steps if steps is None else steps
    if recipe.companion is not None and companion is None:
        raise ValueError(f"{recipe.name} is measured together with {recipe.companion}: give it")
    model, source = pipe.ebm, trained_on(folder) if dataset is None else dataset

    def load(split: str, source: ImageDataset | str | Path = source) -> ImageDataset:
        if isinstance(source, ImageDataset):
            return source
        config = model.config
        found = load_images(
            source, split=split, image_size=config.image_size, num_channels=config.num_channels
        )
        return found if recipe.prepare is None else recipe.prepare(found)

    real = load(split)
    network, network_name, sha256 = load_network(feature_network)
    network = network.to(device).eval()
    rows: list[dict[str, Any]] = []

    def add(started: float, values: dict[str, float], **facts: Any) -> None:
        for metric, value in values.items():
            row = {
                "metric": metric,
                "value": value,
                "std": None,
                "dataset": real.name,
                "split": real.split,
                "num_real": None,
                "num_generated": None,
                "feature_network": None,
                "feature_network_sha256": None,
                "truncation": None,
                "seed": seed,
                "command": command(),
                "hardware": hardware(),
                "versions": versions(),
                "reference": False,
                "seconds": time.monotonic() - started,
            }
            rows.append(row | facts)

    judge = {"feature_network": network_name, "feature_network_sha256": sha256}
    chains = {"num_inference_steps": steps, "chain_start": "noise"}

    started = time.monotonic()
    if companion is None:
        rows += evaluate_pipeline(
            pipe,
            folder,
            dataset,
            feature_network=feature_network,
            split=split,
            num_images=NUM_IMAGES if num_images is None else num_images,
            seed=seed,
            settings={"num_inference_steps": steps},
            facts={"truncation": None, "chain_start": "noise"},
        )
    else:
        other = EBMPipeline.from_pretrained(companion).to(device).ebm
        count = NUM_COMPOSED if num_images is None else num_images
        if count < 1:
            raise ValueError(f"num_images must be at least 1, got {count}")
        found = right_of_composed(model, other, pipe.scheduler, network, count, steps, seed)
        of_color = {"color_accuracy": found.pop("color_accuracy")}  # which no network looks at
        add(started, found, num_generated=count, **judge, **chains)
        add(started, of_color, num_generated=count, **chains)

    started = time.monotonic()
    classes = judge_labels(model.config, network, real.labels)
    if classes is not None and companion is None:
        count = min(NUM_INPAINTED, len(real))
        chosen = torch.randperm(len(real), generator=generator_for(seed, 3))[:count]
        assert real.labels is not None
        images, labels = real.images[chosen], real.labels[chosen]
        completed = completions(pipe, images, labels, steps, seed)  # (N, M, C, H, W)
        truth = images.float() / 255
        errors = errors_below(completed.mean(dim=1), truth)  # (N,)
        with torch.no_grad():
            logits = network(completed[:, 0].to(device) * 2 - 1).logits.cpu()
        facts = {"num_real": count, "num_generated": NUM_COMPLETIONS * count}
        add(started, {"inpainting_mse": float(errors.mean())}, **facts, **chains)
        if not isinstance(source, ImageDataset):  # which has no other images to be near
            train = load("train")
            nearest = errors_below(nearest_images(images, labels, train) / 255, truth)
            references = {
                "inpainting_mse": nearest,
                "inpainting_mse_of_any": errors_below(
                    nearest_images(images, None, train) / 255, truth
                ),
                "inpainting_mse_of_mean": errors_below(mean_images(labels, train) / 255, truth),
            }
            found = {metric: float(each.mean()) for metric, each in references.items()}
            add(started, found, num_real=count, reference=True)
            saved = nearest - errors
            spread = {"std": float(saved.std() / math.sqrt(count))}  # of the mean of pairs
            found = {"inpainting_advantage": float(saved.mean())}
            add(started, found, **facts, **chains, **spread)
        accuracy = conditional_accuracy(logits, classes[chosen])
        facts |= {"num_generated": count}
        add(started, {"inpainting_accuracy": accuracy}, **facts, **judge, **chains)

    started = time.monotonic()
    some = torch.randperm(len(real), generator=generator_for(seed, 4))[:NUM_JUDGED]
    inside = class_energies(model, centered(real.images[some]))  # (N, K)
    if model.config.num_classes and real.labels is not None:
        accuracy = float((inside.argmin(dim=1) == real.labels[some]).double().mean())
        add(started, {"energy_accuracy": accuracy}, num_real=len(some))
    noise = torch.rand(inside.shape[:1] + real.images.shape[1:], generator=generator_for(seed, 5))
    outside = class_energies(model, noise * 2 - 1)
    add(started, {"auroc_noise": auroc(inside, outside)}, num_real=len(some))
    if recipe.outlier_data is not None:
        others = load(split, recipe.outlier_data)
        outside = class_energies(model, centered(others.images[: len(some)]))
        name = f"{real.name} + {others.name}"
        add(started, {"auroc": auroc(inside, outside)}, num_real=len(some), dataset=name)

    started = time.monotonic()
    bounds = log_likelihood_bounds(model, real, seed)
    annealed = {
        "num_generated": NUM_ANNEALED * inside.shape[1],
        "num_inference_steps": NUM_DISTRIBUTIONS,
        "chain_start": "noise",
    }
    add(started, bounds, num_real=min(NUM_JUDGED, len(real)), **annealed)
    return rows


def completions(
    pipe: EBMPipeline, images: Tensor, labels: Tensor | None, steps: int, seed: int
) -> Tensor:
    """The lower halves filled in, (N, M, C, H, W) in [0, 1].

    Args:
        pipe: Of an energy.
        images: (N, C, H, W), uint8.
        labels: (N,), their classes.
        steps: Of a chain.
        seed: Of the noise.
    """
    fill = EBMInpaintPipeline(**pipe.components)
    fill.set_progress_bar_config(disable=True)
    mask = torch.zeros(images.shape[-2:], dtype=torch.bool)
    mask[images.shape[-2] // 2 :] = True
    found: Any = fill(
        images.float() / 255,
        mask,
        class_labels=labels,
        num_completions=NUM_COMPLETIONS,
        num_inference_steps=steps,
        generator=generator_for(seed, 6),
        output_type="pt",
    )
    return found.images.cpu().unflatten(0, (len(images), NUM_COMPLETIONS))


def nearest_images(images: Tensor, labels: Tensor | None, train: ImageDataset) -> Tensor:
    """For each image the training image whose upper half is nearest to its own, (N, C, H, W).

    Args:
        images: (N, C, H, W), uint8.
        labels: (N,); a training image must have the same, where there are labels.
        train: Images to choose from.
    """
    half = images.shape[-2] // 2
    known = images[..., :half, :].flatten(1).float()
    pool = train.images[..., :half, :].flatten(1).float()
    distances = torch.cdist(known, pool)  # (N, M)
    if labels is not None and train.labels is not None:
        distances[labels[:, None] != train.labels] = math.inf
    return train.images[distances.argmin(dim=1)]


def mean_images(labels: Tensor, train: ImageDataset) -> Tensor:
    """For each label the mean of its training images, (N, C, H, W) in [0, 255].

    Args:
        labels: (N,); a training image must have each.
        train: Labeled images.
    """
    assert train.labels is not None
    kinds = [train.images[train.labels == each].float().mean(dim=0) for each in labels.unique()]
    return torch.stack(kinds)[torch.searchsorted(labels.unique(), labels)]


def errors_below(images: Tensor, truth: Tensor) -> Tensor:
    """Squared errors in the lower halves of images (N, C, H, W), each the mean of its pixels."""
    half = truth.shape[-2] // 2
    return (images - truth)[..., half:, :].square().flatten(1).mean(dim=1)


def right_of_composed(
    model: EnergyModel,
    other: EnergyModel,
    scheduler: LangevinScheduler,
    network: nn.Module,
    num_images: int,
    steps: int,
    seed: int,
) -> dict[str, float]:
    """How often samples of the product of two energies have the digit and the color asked for.

    Args:
        model: An energy of digits in colors, by digit or by color.
        other: The other of the two.
        scheduler: How the chains go.
        network: A classifier of gray digits.
        num_images: How many samples; the pairs of classes take turns.
        steps: Of a chain.
        seed: Of the noise.
    """
    by_digit, by_color = sorted(
        (model, other), key=lambda each: "red" in (each.config.label2id or {})
    )
    device = model.device
    digits = torch.arange(num_images, device=device) % by_digit.config.num_classes
    colors = torch.arange(num_images, device=device) // by_digit.config.num_classes
    colors = colors % by_color.config.num_classes
    right = {"both_accuracy": 0.0, "digit_accuracy": 0.0, "color_accuracy": 0.0}
    for first in range(0, num_images, BATCH_SIZE):
        rows = slice(first, first + BATCH_SIZE)
        digit, color = digits[rows], colors[rows]
        energy = compose([(of_class(by_digit, digit), 0.5), (of_class(by_color, color), 0.5)])
        config = model.config
        size = (len(digit), config.num_channels, config.image_size, config.image_size)
        start = torch.rand(size, generator=generator_for(seed, 7, first)).to(device) * 2 - 1
        found = sample(energy, start, scheduler, steps, generator_for(seed, 8, first)).samples
        with torch.no_grad():
            seen = network(gray(found)).logits
        named = judge_labels(by_digit.config, network, digit.cpu())
        if named is None:
            raise ValueError("the feature network does not know the digits")
        is_digit = seen.argmax(dim=1).cpu() == named
        is_color = color_of(found / 2 + 0.5) == color
        is_color = is_color.cpu()
        for name, hits in (
            ("both_accuracy", is_digit & is_color),
            ("digit_accuracy", is_digit),
            ("color_accuracy", is_color),
        ):
            right[name] += float(hits.sum()) / num_images
    return right


def auroc(inside: Tensor, outside: Tensor) -> float:
    """How well the lowest energy over classes tells what is outside: 1 is always, .5 is chance.

    Args:
        inside: (N, K), energies of data under each class.
        outside: (M, K), of something else.
    """
    scores = torch.cat([inside.amin(dim=1), outside.amin(dim=1)])
    is_outside = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))])
    return float(roc_auc_score(is_outside.numpy(), scores.numpy()))


def centered(images: Tensor) -> Tensor:
    """Bytes to the middles of the parts of [-1, 1] that training shows energies."""
    return dequantize(images, torch.full((1,), 0.5))


def log_likelihood_bounds(model: EnergyModel, real: ImageDataset, seed: int) -> dict[str, float]:
    """Bounds of the mean of log p(x), or of log p(x | c), in nats of an image in [-1, 1].

    At temperature one, which is not the one that the chains of IGEBM have. The lower one is a bound
    as far as the chains that came forward have mixed, see `log_partition`.
    """
    config = model.config
    shape = (config.num_channels, config.image_size, config.image_size)
    images = centered(real.images[:NUM_JUDGED])
    energies = class_energies(model, images)  # (N, K)
    num_kinds = energies.shape[1]
    kinds = real.labels[:NUM_JUDGED] if config.num_classes and real.labels is not None else None
    kinds = torch.zeros(len(images), dtype=torch.int64) if kinds is None else kinds
    lower, upper = torch.zeros(num_kinds), torch.zeros(num_kinds)
    for kind in range(num_kinds):
        found = log_partition(
            of_class(model, kind) if config.num_classes else model,
            shape,
            num_chains=NUM_ANNEALED,
            num_distributions=NUM_DISTRIBUTIONS,
            generator=generator_for(seed, 10, kind),
            device=model.device,
        )
        lower[kind], upper[kind] = found.lower, found.upper
    own = energies[torch.arange(len(kinds)), kinds]
    return {
        "log_likelihood_lower": float((-own - upper[kinds]).mean()),
        "log_likelihood_upper": float((-own - lower[kinds]).mean()),
    }
