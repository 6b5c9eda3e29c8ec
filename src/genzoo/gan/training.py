"""How every GAN of the room is trained: one plain loop on accelerate."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from transformers import AutoModel, AutoModelForPreTraining, PreTrainedModel
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
    moving_average,
    training_of,
    update_results,
    versions,
)
from .layers import GANConfig
from .pipeline_gan import GANPipeline

logger = logging.get_logger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GANRecipe:
    """All that decides how a checkpoint comes out.

    Args:
        name: The checkpoint's name.
        model: Architecture. Where it has classes, the training data's labels decide which.
        data: Hub id of the training data.
        feature_network: Name of the checkpoint through which the metrics look.
        d_loss: Objective of the discriminator, from losses.py.
        g_loss: Objective of the generator.
        d_penalty: Penalty of the discriminator, or None.
        penalty_weight: Its factor.
        num_steps: Generator steps.
        num_d_steps: Discriminator steps before each generator step.
        batch_size: Images in a batch, over all processes together.
        d_learning_rate: Of Adam, for the discriminator.
        g_learning_rate: Of Adam, for the generator.
        betas: Of Adam, for both.
        linear_decay: Whether the learning rates fall linearly to zero.
        ema_decay: Of the moving average of the generator's weights, which is what is published.
        standing_batches: Batches over which the batch statistics of the averaged generator are
            estimated at the end.
        random_flip: Whether training images are mirrored half of the time; for photographs.
        use_compile: Whether to compile the generator, which is the larger network.
        seed: Of the weights, the order of the images and all noise.
        log_every: Steps between entries of the log.
        save_every: Steps between checkpoints.
        sample_every: Steps between sample grids; 0 means none.
    """

    name: str
    model: GANConfig
    data: str
    feature_network: str
    d_loss: Callable[..., Tensor]
    g_loss: Callable[..., Tensor]
    d_penalty: Callable[..., Tensor] | None = None
    penalty_weight: float = 0.0
    num_steps: int
    num_d_steps: int = 1
    batch_size: int = 64
    d_learning_rate: float = 4e-4
    g_learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.0, 0.9)
    linear_decay: bool = True
    ema_decay: float = 0.999
    standing_batches: int = 100
    random_flip: bool = False
    use_compile: bool = False
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    sample_every: int = 1000

    def __post_init__(self):
        at_least_one = ("num_steps", "num_d_steps", "batch_size", "standing_batches")
        for name in (*at_least_one, "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.sample_every < 0:
            raise ValueError(f"sample_every must be at least 0, got {self.sample_every}")

    def smoke(self) -> "GANRecipe":
        """The same recipe, two steps long."""
        return dataclasses.replace(
            self, num_steps=2, batch_size=2, standing_batches=1, save_every=1, sample_every=2
        )

    def identity(self) -> dict[str, Any]:
        """All fields as JSON-able data."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= {key: value.__name__ for key, value in values.items() if callable(value)}
        return values | {"model": self.model.to_diff_dict()}


def train_gan(
    recipe: GANRecipe,
    dataset: ImageDataset | str | Path | None = None,
    init: str | Path | None = None,
    *,
    output_dir: str | Path,
    resume: bool = False,
    tracker: str | None = None,
) -> Path:
    """Trains a generator against a discriminator and leaves a checkpoint folder.

    `GANPipeline.from_pretrained` opens it. The state of the run lies in `output_dir/run`; all else
    in the folder is what can be published. A batch, its noise and its flips depend on seed and step
    alone, so a resumed run equals an uninterrupted one.

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
        ValueError: If the folder holds another run, or the images do not fit the model.
        FloatingPointError: If a loss is no longer finite; the checkpoints from before stay.
        OSError: If a checkpoint cannot be written.
    """
    output_dir = Path(output_dir)
    accelerator = make_accelerator(tracker, output_dir / "run")
    if recipe.batch_size % accelerator.num_processes:
        raise ValueError(
            f"batch_size {recipe.batch_size} cannot be split "
            f"over {accelerator.num_processes} processes"
        )
    source = dataset.name if isinstance(dataset, ImageDataset) else str(dataset or recipe.data)
    identity = recipe.identity() | {"data": source, "init": None if init is None else str(init)}
    is_by_the_book = source == recipe.data and init is None
    run = Run(output_dir, identity, resume=resume, is_main=accelerator.is_main_process)

    start_from = GANPipeline.from_pretrained(init) if init is not None else None
    config = start_from.gan.config if start_from else recipe.model
    if not isinstance(dataset, ImageDataset):
        dataset = load_images(
            source, image_size=config.image_size, num_channels=config.num_channels
        )
    generator, discriminator = build(recipe, dataset, start_from)
    config = generator.config
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

    def draw(*position: int) -> tuple[Tensor, Tensor | None]:
        """This process's latents (B, Z) and labels (B,), a function of seed and position."""
        source = generator_for(recipe.seed, *position)
        latents = torch.randn(recipe.batch_size, config.latent_dim, generator=source)[mine]
        if not config.num_classes:
            return latents.to(device), None
        labels = torch.randint(config.num_classes, (recipe.batch_size,), generator=source)[mine]
        return latents.to(device), labels.to(device)

    generator = generator.train().to(device, memory_format=torch.channels_last)
    discriminator = discriminator.train().to(device, memory_format=torch.channels_last)
    ema = (
        AveragedModel(generator, multi_avg_fn=moving_average(recipe.ema_decay))
        .eval()
        .requires_grad_(False)
    )
    d_optimizer = torch.optim.Adam(discriminator.parameters(), recipe.d_learning_rate, recipe.betas)
    g_optimizer = torch.optim.Adam(generator.parameters(), recipe.g_learning_rate, recipe.betas)
    parts = {
        "generator": generator,
        "discriminator": discriminator,
        "ema": ema,
        "d_optimizer": d_optimizer,
        "g_optimizer": g_optimizer,
    }
    state = run.load() or {"step": 0, "seconds": 0.0, "totals": torch.zeros(2)}
    for name in parts.keys() & state.keys():
        parts[name].load_state_dict(state[name])
    if recipe.use_compile:
        # Not the discriminator: penalties want second derivatives, which a compiled network lacks,
        # and spectral norm writes to its buffer between two forward passes and their backward pass.
        generator.compile()
    run.forget_log_after(state["step"])

    # The plain modules stay at hand: the discriminator's step needs no gradient of the generator,
    # nor the generator's step one of the discriminator, so there the wrapper that averages
    # gradients has no business.
    plain_generator, plain_discriminator = generator, discriminator
    generator, discriminator, d_optimizer, g_optimizer = accelerator.prepare(
        generator, discriminator, d_optimizer, g_optimizer
    )
    accelerator.init_trackers(recipe.name)
    progress = Progress(
        samples=state["step"] * recipe.batch_size,
        total=recipe.num_steps * recipe.batch_size,
        seconds=state["seconds"],
        enabled=accelerator.is_main_process,
    )
    averaged: Any = ema.module
    preview = GANPipeline(averaged)
    preview.set_progress_bar_config(disable=True)
    totals, first_bad_step = state["totals"].to(device), torch.tensor(-1, device=device)

    for step in range(state["step"], recipe.num_steps):
        decay = 1 - step / recipe.num_steps if recipe.linear_decay else 1.0
        d_optimizer.param_groups[0]["lr"] = recipe.d_learning_rate * decay
        g_optimizer.param_groups[0]["lr"] = recipe.g_learning_rate * decay

        plain_discriminator.requires_grad_(True)
        for d_step in range(recipe.num_d_steps):
            batch = batches[step * recipe.num_d_steps + d_step]
            latents, _ = draw(step, 2 + d_step)
            labels = batch.labels if config.num_classes else None
            with torch.no_grad():
                fake_images = plain_generator(latents, labels).images
            d_loss = recipe.d_loss(
                discriminator(batch.images, labels).logits,
                discriminator(fake_images, labels).logits,
                real_images=batch.images,
                fake_images=fake_images,
            )
            if recipe.d_penalty is not None:
                d_loss = d_loss + recipe.penalty_weight * recipe.d_penalty(
                    lambda images, labels=labels: discriminator(images, labels).logits,
                    batch.images,
                    fake_images,
                    generator=generator_for(recipe.seed, step, 1, d_step),
                )
            d_optimizer.zero_grad()
            accelerator.backward(d_loss)
            d_optimizer.step()

        plain_discriminator.requires_grad_(False)
        latents, labels = draw(step, 0)
        fake_images = generator(latents, labels).images
        fake_logits = plain_discriminator(fake_images, labels).logits
        g_loss = recipe.g_loss(None, fake_logits, real_images=batch.images, fake_images=fake_images)
        g_optimizer.zero_grad()
        accelerator.backward(g_loss)
        g_optimizer.step()
        ema.update_parameters(plain_generator)

        # Nothing here waits for the device, which itself remembers the first step whose losses are
        # not finite.
        losses = torch.stack([d_loss.detach(), g_loss.detach()])
        is_bad = (first_bad_step < 0) & ~losses.isfinite().all()
        first_bad_step = torch.where(is_bad, step, first_bad_step)
        totals += losses
        progress.update(recipe.batch_size)

        done = step + 1
        is_last = done == recipe.num_steps
        log_is_due = done % recipe.log_every == 0
        save_is_due = done % recipe.save_every == 0 or is_last
        sample_is_due = recipe.sample_every and done % recipe.sample_every == 0
        if (log_is_due or save_is_due or sample_is_due) and first_bad_step >= 0:
            raise FloatingPointError(
                f"a loss was not finite at step {int(first_bad_step)}; "
                f"the checkpoints before it are in {run.folder}"
            )
        if save_is_due and not is_finite(plain_generator, plain_discriminator):
            raise FloatingPointError(
                f"a weight was not finite after step {step}; "
                f"the checkpoints before it are in {run.folder}"
            )
        if log_is_due:
            means: Any = accelerator.reduce(totals / recipe.log_every, reduction="mean")
            d_mean, g_mean = means.tolist()
            totals.zero_()
            values = {"d_loss": d_mean, "g_loss": g_mean, "seconds": progress.seconds}
            accelerator.log(values | {"images_per_second": progress.samples_per_second}, step=done)
            progress.show({"d_loss": d_mean, "g_loss": g_mean})
        if sample_is_due and accelerator.is_main_process:
            samples = run.folder / "samples" / f"step-{done:08d}.png"
            samples.parent.mkdir(parents=True, exist_ok=True)
            preview.grid(80, 10, generator=generator_for(recipe.seed)).save(samples)
        if save_is_due:
            states = {name: part.state_dict() for name, part in parts.items()}
            run.save(done, {"step": done, "seconds": progress.seconds, "totals": totals, **states})

    progress.close()
    if accelerator.is_main_process:
        estimate_batch_statistics(averaged, recipe.standing_batches, recipe.batch_size, recipe.seed)
        export(averaged, plain_discriminator, run.folder, output_dir)
        update_results(
            output_dir,
            # Other data or another start make another checkpoint, which is called as its folder.
            name=recipe.name if is_by_the_book else output_dir.resolve().name,
            recipe=recipe.name,
            task="class-to-image" if config.num_classes else "unconditional-image-generation",
            training={
                "command": command(),
                "dataset": dataset.name,
                "split": dataset.split,
                "num_steps": recipe.num_steps,
                "num_images": recipe.num_steps * recipe.num_d_steps * recipe.batch_size,
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
    generator, discriminator, d_optimizer, g_optimizer = accelerator.free_memory(
        generator, discriminator, d_optimizer, g_optimizer
    )
    accelerator.end_training()
    return output_dir


def build(
    recipe: GANRecipe, dataset: ImageDataset, start_from: GANPipeline | None
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The two networks at the start of a run, with the classes of the data.

    From a checkpoint everything is taken over that fits; what does not (embeddings of other
    classes) starts anew, and a warning names it.
    """
    config = start_from.gan.config if start_from else recipe.model
    size = (config.num_channels, config.image_size, config.image_size)
    if dataset.images.shape[1:] != size:
        raise ValueError(
            f"the model wants images {size}, {dataset.name} has {tuple(dataset.images.shape[1:])}"
        )
    names = dataset.label_names if config.num_classes and dataset.labels is not None else []
    if config.num_classes and not names:
        logger.warning(f"{dataset.name} has no labels, so the model will be unconditional")
    classes = {
        "num_classes": len(names),
        "id2label": dict(enumerate(names)) or None,
        "label2id": None,
    }
    config = type(config).from_dict(config.to_dict() | classes)

    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        generator = AutoModel.from_config(config)
        discriminator = AutoModelForPreTraining.from_config(config)
    for model, old in (
        (generator, start_from and start_from.gan),
        (discriminator, start_from and start_from.discriminator),
    ):
        if old is not None:
            new_shapes = {key: value.shape for key, value in model.state_dict().items()}
            fits = {
                key: value
                for key, value in old.state_dict().items()
                if new_shapes.get(key) == value.shape
            }
            fresh = model.load_state_dict(fits, strict=False).missing_keys
            dropped = sorted(old.state_dict().keys() - fits.keys() - set(fresh))
            if dropped:
                logger.warning(f"{type(model).__name__}: {', '.join(dropped)} are left out")
            if fresh:
                logger.warning(
                    f"{type(model).__name__}: {', '.join(fresh)} do not fit the data and start anew"
                )
        elif start_from is not None:
            logger.warning(
                f"the checkpoint has no discriminator; a {type(model).__name__} starts anew"
            )
    return generator, discriminator


def is_finite(*models: torch.nn.Module) -> bool:
    """Whether all weights are finite."""
    weights = (weight for model in models for weight in model.parameters())
    return all(bool(weight.isfinite().all()) for weight in weights)


@torch.no_grad()
def estimate_batch_statistics(
    generator: PreTrainedModel, num_batches: int, batch_size: int, seed: int
) -> None:
    """Gives a generator the batch statistics that its own weights have.

    The running statistics of training lag behind and belong to the weights before averaging. Here
    they are the plain mean over fresh batches of latents and classes ("standing statistics", Brock
    et al., 2019).
    """
    norms = [module for module in generator.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's sign for a cumulative average
    generator.train()
    config, device = generator.config, generator.device
    for index in range(num_batches):
        source = generator_for(seed, index, 3)
        latents = torch.randn(batch_size, config.latent_dim, generator=source).to(device)
        labels = (
            torch.randint(config.num_classes, (batch_size,), generator=source)
            if config.num_classes
            else None
        )
        generator(latents, class_labels=None if labels is None else labels.to(device))
    generator.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def export(
    generator: PreTrainedModel, discriminator: PreTrainedModel, run_folder: Path, output_dir: Path
) -> None:
    """Puts a finished pipeline into `output_dir`, its weights in float16.

    `model_index.json` comes last, when all else is there.

    Raises:
        ValueError: If a weight is beyond the range of float16.
    """
    partial = run_folder / "export"
    shutil.rmtree(partial, ignore_errors=True)
    pipe = GANPipeline(generator, discriminator)
    pipe.save_pretrained(partial)
    for name, model in pipe.components.items():
        model.save_pretrained(partial / name, state_dict=half_precision(model))
    pipe = GANPipeline.from_pretrained(partial)
    pipe.set_progress_bar_config(disable=True)
    (partial / "samples").mkdir()
    pipe.grid(80, 10, generator=generator_for(0)).save(partial / "samples" / "grid.png")
    for name in ("gan", "discriminator", "samples", "model_index.json"):
        move_atomically(partial / name, output_dir / name)
    partial.rmdir()
