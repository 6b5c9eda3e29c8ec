"""How every feature network of the room is trained: one plain loop on accelerate."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from ..data import ImageBatches, ImageDataset, load_images
from ..runtime import (
    Progress,
    Run,
    command,
    generator_for,
    half_precision,
    hardware,
    make_accelerator,
    move_atomically,
    training_of,
    update_results,
    versions,
)
from .image_processing_feature_net import FeatureNetImageProcessor
from .modeling_feature_net import FeatureNetConfig, FeatureNetForImageClassification

logger = logging.get_logger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureNetRecipe:
    """All that decides how a checkpoint comes out.

    Args:
        name: The checkpoint's name.
        model: Architecture. The training data's labels decide about its classes.
        data: Hub id of the training data.
        num_steps: Steps.
        batch_size: Images in a batch, over all processes together.
        learning_rate: Of AdamW, at its highest: it rises linearly, then falls linearly to zero.
        warmup_steps: Steps of the rise.
        weight_decay: Of AdamW.
        label_smoothing: Share of the target that is spread over all classes. It helps accuracy a
            little but draws each class together to a point, so that the features see less
            (Kornblith et al., 2021, https://arxiv.org/abs/2010.16402); a judge does without.
        max_shift: Each image is moved by up to so many pixels, each way; its rim fills the gap.
        random_flip: Whether images are mirrored, left to right, half of the time.
        seed: Of the weights, the order of the images and how they are changed.
        log_every: Steps between entries of the log.
        save_every: Steps between checkpoints.
    """

    name: str
    model: FeatureNetConfig
    data: str
    num_steps: int
    batch_size: int = 128
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    max_shift: int = 2
    random_flip: bool = False
    seed: int = 0
    log_every: int = 50
    save_every: int = 250

    def __post_init__(self):
        for name in ("num_steps", "batch_size", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def smoke(self) -> "FeatureNetRecipe":
        """The same recipe, two steps long."""
        return dataclasses.replace(self, num_steps=2, batch_size=2, warmup_steps=1, save_every=1)

    def identity(self) -> dict[str, Any]:
        """All fields as JSON-able data."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return values | {"model": self.model.to_diff_dict()}


def train_feature_net(
    recipe: FeatureNetRecipe,
    dataset: ImageDataset | str | Path | None = None,
    init: str | Path | None = None,
    *,
    output_dir: str | Path,
    resume: bool = False,
    tracker: str | None = None,
) -> Path:
    """Trains a classifier and leaves a folder that `AutoModelForImageClassification` opens.

    The state of the run lies in `output_dir/run`; all else in the folder is what can be published.
    A batch and how its images are changed depend on seed and step alone, so a resumed run equals
    an uninterrupted one.

    Args:
        recipe: How.
        dataset: Images in the place of the recipe's: loaded already, or a name or path for
            `load_images`.
        init: A checkpoint (folder or Hub id) to start from; its architecture replaces the recipe's.
        output_dir: The folder.
        resume: Whether to continue a run that the folder holds.
        tracker: Where the losses go: None for JSON lines, or a tracker of accelerate such as
            "tensorboard".

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder holds something and `resume` is not set.
        ValueError: If the folder holds another run, or the images do not fit the model or have no
            labels.
        FloatingPointError: If a loss is no longer finite; the checkpoints from before stay.
        OSError: If a checkpoint cannot be written.
    """
    output_dir = Path(output_dir)
    accelerator = make_accelerator(tracker, output_dir / "run")
    if recipe.batch_size % accelerator.num_processes:
        raise ValueError(
            f"batch_size {recipe.batch_size} cannot be split over "
            f"{accelerator.num_processes} processes"
        )
    source = dataset.name if isinstance(dataset, ImageDataset) else str(dataset or recipe.data)
    identity = recipe.identity() | {"data": source, "init": None if init is None else str(init)}
    is_by_the_book = source == recipe.data and init is None
    run = Run(output_dir, identity, resume=resume, is_main=accelerator.is_main_process)

    start_from = None
    if init is not None:
        start_from = FeatureNetForImageClassification.from_pretrained(init, dtype=torch.float32)
    config = start_from.config if start_from else recipe.model
    if not isinstance(dataset, ImageDataset):
        dataset = load_images(
            source, image_size=config.image_size, num_channels=config.num_channels
        )
    model = build(recipe, dataset, start_from)
    run.begin()
    accelerator.wait_for_everyone()

    device = accelerator.device
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    batches = ImageBatches(
        dataset,
        recipe.batch_size,
        seed=recipe.seed,
        random_flip=recipe.random_flip,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        device=device,
    )

    model = model.train().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    parts = {"model": model, "optimizer": optimizer}
    state = run.load() or {"step": 0, "seconds": 0.0, "total": torch.zeros(())}
    for name in parts.keys() & state.keys():
        parts[name].load_state_dict(state[name])
    run.forget_log_after(state["step"])

    plain_model = model
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.init_trackers(recipe.name)
    progress = Progress(
        samples=state["step"] * recipe.batch_size,
        total=recipe.num_steps * recipe.batch_size,
        seconds=state["seconds"],
        enabled=accelerator.is_main_process,
    )
    total, first_bad_step = state["total"].to(device), torch.tensor(-1, device=device)

    for step in range(state["step"], recipe.num_steps):
        rise = (step + 1) / recipe.warmup_steps if recipe.warmup_steps else 1.0
        fall = (recipe.num_steps - step) / max(recipe.num_steps - recipe.warmup_steps, 1)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(rise, fall, 1.0)

        batch = batches[step]
        assert batch.labels is not None  # build refuses data without labels
        source = generator_for(recipe.seed, step, 2)
        offsets = torch.randint(
            -recipe.max_shift, recipe.max_shift + 1, (recipe.batch_size, 2), generator=source
        )
        images = shift(batch.images, offsets[mine].to(device), recipe.max_shift)
        logits = model(images.contiguous(memory_format=torch.channels_last)).logits
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()

        # Nothing here waits for the device: the first step with a bad loss is remembered there.
        is_bad = (first_bad_step < 0) & ~loss.detach().isfinite()
        first_bad_step = torch.where(is_bad, step, first_bad_step)
        total += loss.detach()
        progress.update(recipe.batch_size)

        done = step + 1
        log_is_due = done % recipe.log_every == 0
        save_is_due = done % recipe.save_every == 0 or done == recipe.num_steps
        if (log_is_due or save_is_due) and first_bad_step >= 0:
            raise FloatingPointError(
                f"the loss was not finite at step {int(first_bad_step)}; "
                f"the checkpoints before it are in {run.folder}"
            )
        if save_is_due and not all(bool(w.isfinite().all()) for w in plain_model.parameters()):
            raise FloatingPointError(
                f"a weight was not finite after step {step}; "
                f"the checkpoints before it are in {run.folder}"
            )
        if log_is_due:
            mean = cast(Tensor, accelerator.reduce(total, reduction="mean")).item()
            mean /= recipe.log_every
            total.zero_()
            values = {"loss": mean, "seconds": progress.seconds}
            accelerator.log(values | {"images_per_second": progress.samples_per_second}, step=done)
            progress.show({"loss": mean})
        if save_is_due:
            states = {name: part.state_dict() for name, part in parts.items()}
            run.save(done, {"step": done, "seconds": progress.seconds, "total": total, **states})

    progress.close()
    if accelerator.is_main_process:
        export(plain_model, run.folder, output_dir)
        update_results(
            output_dir,
            # Other data or another start make another checkpoint, which is called as its folder.
            name=recipe.name if is_by_the_book else output_dir.resolve().name,
            recipe=recipe.name,
            task="image-classification",
            training={
                "command": command(),
                "dataset": dataset.name,
                "split": dataset.split,
                "num_steps": recipe.num_steps,
                "num_images": recipe.num_steps * recipe.batch_size,
                "batch_size": recipe.batch_size,
                "seed": recipe.seed,
                "num_processes": accelerator.num_processes,
                "seconds": progress.seconds,
                "hardware": hardware(),
                "versions": versions(),
                "init": training_of(init),
            },
            **({"evaluation": []} if state["step"] < recipe.num_steps else {}),
        )
    accelerator.wait_for_everyone()
    # The last to hold the process group must not be a wrapper: it would end the group with Python's
    # lock in its hand, which the group's own thread may be waiting for.
    model, optimizer = accelerator.free_memory(model, optimizer)
    accelerator.end_training()
    return output_dir


def build(
    recipe: FeatureNetRecipe,
    dataset: ImageDataset,
    start_from: FeatureNetForImageClassification | None,
) -> FeatureNetForImageClassification:
    """The network at the start of a run, with the classes of the data.

    From a checkpoint everything is taken over that fits; what does not (the last layer, for other
    classes) starts anew, and a warning names it.
    """
    config = start_from.config if start_from else recipe.model
    size = (config.num_channels, config.image_size, config.image_size)
    if dataset.images.shape[1:] != size:
        raise ValueError(
            f"the model wants images {size}, {dataset.name} has {tuple(dataset.images.shape[1:])}"
        )
    if dataset.labels is None:
        raise ValueError(f"a classifier learns from labels, and {dataset.name} has none")
    classes = {"id2label": dict(enumerate(dataset.label_names)), "label2id": None}
    config = type(config).from_dict(config.to_dict() | classes)

    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = FeatureNetForImageClassification(config)
    if start_from is not None:
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        fits = {
            key: value
            for key, value in start_from.state_dict().items()
            if shapes.get(key) == value.shape
        }
        fresh = model.load_state_dict(fits, strict=False).missing_keys
        if fresh:
            logger.warning(f"{', '.join(fresh)} do not fit the data and start anew")
    return model


def shift(images: Tensor, offsets: Tensor, max_shift: int) -> Tensor:
    """Moves each image down and right; the pixels of its rim are repeated into the gap.

    Args:
        images: (B, C, H, W).
        offsets: (B, 2), whole pixels down and right, between -max_shift and max_shift.
        max_shift: The farthest that an image may move.
    """
    _, _, height, width = images.shape
    batch, device = torch.arange(len(images), device=images.device), images.device
    rows = torch.arange(height, device=device) - offsets[:, :1]  # (B, H)
    columns = torch.arange(width, device=device) - offsets[:, 1:]  # (B, W)
    padded = F.pad(images, [max_shift] * 4, mode="replicate").permute(0, 2, 3, 1)
    moved = padded[
        batch[:, None, None], (rows + max_shift)[:, :, None], (columns + max_shift)[:, None, :]
    ]  # (B, H, W, C)
    return moved.permute(0, 3, 1, 2)


def export(model: FeatureNetForImageClassification, run_folder: Path, output_dir: Path) -> None:
    """Puts a finished network into `output_dir`; `config.json` comes last, when all else is there.

    Raises:
        ValueError: If a weight is beyond the range of float16.
    """
    partial = run_folder / "export"
    shutil.rmtree(partial, ignore_errors=True)
    model.eval().save_pretrained(partial, state_dict=half_precision(model))
    config = model.config
    FeatureNetImageProcessor(
        image_size=config.image_size, num_channels=config.num_channels
    ).save_pretrained(partial)
    for name in ("model.safetensors", "preprocessor_config.json", "config.json"):
        move_atomically(partial / name, output_dir / name)
    partial.rmdir()
