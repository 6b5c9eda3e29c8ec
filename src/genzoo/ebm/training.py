"""How every energy of the room is trained: one plain loop on accelerate."""

import copy
import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
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
from .buffer import POLICIES, SampleBuffer, dequantize
from .losses import igebm
from .modeling_ebm import EBMConfig, EnergyModel
from .pipeline_ebm import EBMPipeline
from .scheduling_langevin import LangevinScheduler

logger = logging.get_logger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EBMRecipe:
    """All that decides how a checkpoint comes out.

    Args:
        name: The checkpoint's name.
        model: Architecture. Where it has classes, the training data's labels decide which.
        data: Hub id of the training data.
        prepare: What is done to the data first, if anything.
        outlier_data: Hub id of data that the energy is to tell from its own, when it is measured.
        companion: Name of the checkpoint that it is composed with, when it is measured.
        feature_network: Name of the checkpoint through which the metrics look.
        scheduler: How chains go, in training and in the pipeline that is published.
        loss: Objective, from losses.py: of the energies of data and of the ends of chains. With
            other constants as a `functools.partial`.
        num_steps: Steps.
        num_chain_steps: Steps K of a chain in a step of training.
        chain_start: Where chains begin: "buffer" (persistent contrastive divergence), "data"
            (contrastive divergence) or "noise" (short runs).
        buffer_size: Samples that the buffers of all processes hold together.
        reinit_probability: Share of the samples from the buffer that begin anew.
        relabel_share: Share of the buffer's places whose samples go on under labels of the batch,
            see `SampleBuffer`; it has no meaning without classes or with another `chain_start`.
        buffer_policy: See `SampleBuffer`.
        batch_size: Images in a batch, over all processes together; as many chains.
        learning_rate: Of Adam; halved after each restart.
        betas: Of Adam. The first is zero, since samples answer to each step and momentum makes
            both swing.
        ema_decay: Of the moving average of the weights, which is what is published.
        max_energy: The absolute energy above which the training counts as exploded; the log warns
            where the mean of a batch's largest is more than half of it.
        max_energy_gap: The difference between the energies of data and samples, on the average and
            without its sign, above which the log warns: below, samples leave the data behind or do
            not come near.
        max_gradient_norm: The norm of the gradients above which the log warns.
        min_displacement: How far a pixel is moved by a chain, on the average, below which the log
            warns that chains have frozen.
        max_restarts: How often an exploded training goes back to its last checkpoint, with other
            noise and half the rate, before it gives up.
        random_flip: Whether training images are mirrored half of the time; for photographs.
        seed: Of the weights, the order of the images and all noise.
        log_every: Steps between entries of the log, where the alarms are looked at.
        save_every: Steps between checkpoints.
        sample_every: Steps between pictures of what chains make of noise; 0 means none.
        num_columns: Images in a row of a picture; it has as many rows, or one for each class.
    """

    name: str
    model: EBMConfig
    data: str
    prepare: Callable[[ImageDataset], ImageDataset] | None = None
    outlier_data: str | None = None
    companion: str | None = None
    feature_network: str
    scheduler: LangevinScheduler
    loss: Callable[[Tensor, Tensor], Tensor] = igebm
    num_steps: int
    num_chain_steps: int = 60
    chain_start: str = "buffer"
    buffer_size: int = 10_000
    reinit_probability: float = 0.05
    relabel_share: float = 0.0
    buffer_policy: str = "slots"
    batch_size: int = 64
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.0, 0.999)
    ema_decay: float = 0.999
    max_energy: float = 100.0
    max_energy_gap: float = 10.0
    max_gradient_norm: float = 1e4
    min_displacement: float = 1e-4
    max_restarts: int = 3
    random_flip: bool = False
    seed: int = 0
    log_every: int = 50
    save_every: int = 250
    sample_every: int = 500
    num_columns: int = 8

    def __post_init__(self):
        at_least_one = ("num_steps", "num_chain_steps", "batch_size", "log_every", "save_every")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_restarts", "sample_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.chain_start not in ("buffer", "data", "noise"):
            raise ValueError(
                f"chain_start must be 'buffer', 'data' or 'noise', got {self.chain_start!r}"
            )
        for name in ("reinit_probability", "relabel_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.buffer_policy not in POLICIES:
            raise ValueError(
                f"buffer_policy must be one of {', '.join(POLICIES)}, got {self.buffer_policy!r}"
            )
        if self.chain_start == "buffer" and self.buffer_size < self.batch_size:
            raise ValueError(
                f"a buffer of {self.buffer_size} samples has no batch of {self.batch_size}"
            )

    def smoke(self) -> "EBMRecipe":
        """The same recipe, two steps long."""
        return dataclasses.replace(
            self,
            scheduler=LangevinScheduler.from_config(self.scheduler.config, num_inference_steps=2),
            num_steps=2,
            num_chain_steps=2,
            batch_size=2,
            buffer_size=8,
            save_every=1,
            sample_every=2,
            num_columns=1,
        )

    def identity(self) -> dict[str, Any]:
        """All fields as JSON-able data."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        chains = {k: v for k, v in self.scheduler.config.items() if not k.startswith("_")}
        values |= {"model": self.model.to_diff_dict(), "scheduler": chains}
        prepare = None if self.prepare is None else self.prepare.__name__
        return values | {"loss": _name(self.loss), "prepare": prepare}


def _name(loss: Callable) -> str:
    """What tells objectives apart: the name, and the constants that were put in."""
    if isinstance(loss, functools.partial):
        constants = [f"{name}={value!r}" for name, value in sorted(loss.keywords.items())]
        return f"{_name(loss.func)}({', '.join([*map(repr, loss.args), *constants])})"
    return loss.__name__


def train_ebm(
    recipe: EBMRecipe,
    dataset: ImageDataset | str | Path | None = None,
    init: str | Path | None = None,
    *,
    output_dir: str | Path,
    resume: bool = False,
    tracker: str | None = None,
) -> Path:
    """Trains an energy on images and leaves a checkpoint folder.

    `EBMPipeline.from_pretrained` opens it. The state of the run lies in `output_dir/run`; all else
    in the folder is what can be published. A batch and all noise depend on seed and step alone, and
    the buffers are kept with the run, so a resumed run equals an uninterrupted one.

    Where the training explodes (an energy that is not finite or too large), it goes back to its
    last checkpoint with other noise and half the rate, and says so.

    Args:
        recipe: How.
        dataset: Images in the place of the recipe's: loaded already, or a name or path for
            `load_images`.
        init: A checkpoint (folder or Hub id) to start from; its architecture replaces the recipe's.
        output_dir: The folder.
        resume: Whether to continue a run that the folder holds.
        tracker: Where the numbers go: None for JSON lines, or a tracker of accelerate such as
            "tensorboard".

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder holds something and `resume` is not set.
        ValueError: If the folder holds another run, or the images do not fit the model.
        FloatingPointError: If it explodes more often than `max_restarts`; the checkpoints from
            before stay.
        OSError: If a checkpoint cannot be written.
    """
    output_dir = Path(output_dir)
    accelerator = make_accelerator(tracker, output_dir / "run")
    num_processes, rank = accelerator.num_processes, accelerator.process_index
    for name in ("batch_size", "buffer_size"):
        if getattr(recipe, name) % num_processes:
            raise ValueError(
                f"{name} {getattr(recipe, name)} cannot be split over {num_processes} processes"
            )
    source = dataset.name if isinstance(dataset, ImageDataset) else str(dataset or recipe.data)
    identity = recipe.identity() | {"data": source, "init": None if init is None else str(init)}
    is_by_the_book = source == recipe.data and init is None
    run = Run(output_dir, identity, resume=resume, is_main=accelerator.is_main_process)

    start_from = EBMPipeline.from_pretrained(init).ebm if init is not None else None
    config = start_from.config if start_from is not None else recipe.model
    if not isinstance(dataset, ImageDataset):
        dataset = load_images(
            source, image_size=config.image_size, num_channels=config.num_channels
        )
    if recipe.prepare is not None:
        dataset = recipe.prepare(dataset)
    model = build(recipe, dataset, start_from)
    config = model.config
    run.begin()
    accelerator.wait_for_everyone()

    device = accelerator.device
    batches = ImageBatches(
        dataset,
        recipe.batch_size,
        seed=recipe.seed,
        random_flip=recipe.random_flip,
        process_index=rank,
        num_processes=num_processes,
        device=device,
    )
    buffer = SampleBuffer(
        recipe.buffer_size // num_processes,
        (config.num_channels, config.image_size, config.image_size),
        num_classes=config.num_classes,
        reinit_probability=recipe.reinit_probability,
        relabel_share=recipe.relabel_share,
        policy=recipe.buffer_policy,
        device=device,
        generator=generator_for(recipe.seed, 5, rank),
    )
    model = model.train().to(device, memory_format=torch.channels_last)
    ema = (
        AveragedModel(model, multi_avg_fn=moving_average(recipe.ema_decay))
        .eval()
        .requires_grad_(False)
    )
    averaged: Any = ema.module
    optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate, recipe.betas)
    parts = {"model": model, "ema": ema, "optimizer": optimizer}
    names = ("loss", "energy_gap", "energy_size", "gradient_norm", "displacement")

    def snapshot(step: int, seconds: float, totals: Tensor, num_restarts: int) -> dict[str, Any]:
        """All that a run goes on from; the buffers of all processes behind each other."""
        buffers = {
            name: None if value is None else accelerator.gather(value).cpu()  # pyright: ignore
            for name, value in (("bytes", buffer.bytes), ("labels", buffer.labels))
        }
        facts = {"step": step, "seconds": seconds, "totals": totals, "num_restarts": num_restarts}
        kept = {name: part.state_dict() for name, part in parts.items()}
        return kept | facts | {"buffers": buffers | {"num_seen": buffer.num_seen}}

    def load(first: dict[str, Any]) -> dict[str, Any]:
        """Puts everything where the newest checkpoint has it, or where it was at first."""
        state = run.load() or first
        for name, part in parts.items():
            part.load_state_dict(state[name])
        mine = slice(rank * len(buffer), (rank + 1) * len(buffer))
        kept = state["buffers"]
        labels = None if kept["labels"] is None else kept["labels"][mine]
        buffer.load_state_dict(kept | {"bytes": kept["bytes"][mine], "labels": labels})
        run.forget_log_after(state["step"])
        return state

    first = copy.deepcopy(snapshot(0, 0.0, torch.zeros(len(names)), 0))
    accelerator.wait_for_everyone()
    state = load(first)
    began = state["step"]

    plain_model = model
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.init_trackers(recipe.name)
    progress = Progress(
        samples=began * recipe.batch_size,
        total=recipe.num_steps * recipe.batch_size,
        seconds=state["seconds"],
        enabled=accelerator.is_main_process,
    )
    # A copy, since it is added to in place.
    totals = state["totals"].to(device, copy=True)
    step, num_restarts = began, state["num_restarts"]
    is_bad = torch.zeros((), dtype=torch.bool, device=device)

    while step < recipe.num_steps:
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * 0.5**num_restarts
        # On the device, since a chain draws much; another one for each process and restart.
        draws = torch.Generator(device)
        draws.manual_seed(generator_for(recipe.seed, step, 3, rank, num_restarts).initial_seed())
        choices = generator_for(recipe.seed, step, 4, rank, num_restarts)

        batch = batches[step]
        labels = batch.labels if config.num_classes else None
        bytes_ = ((batch.images + 1) * 127.5).round()
        offsets = torch.rand(bytes_.shape, generator=draws, device=device)
        positive = dequantize(bytes_, offsets)

        # The ends of chains over the energy as it is now.
        places, negative_labels = None, labels
        if recipe.chain_start == "buffer":
            start, negative_labels, places = buffer.draw(len(positive), choices, labels)
        elif recipe.chain_start == "data":
            start = positive
        else:
            start = torch.rand(positive.shape, generator=draws, device=device) * 2 - 1
        with accelerator.autocast():
            negative = ends_of_chains(
                plain_model, recipe.scheduler, start, negative_labels, recipe.num_chain_steps, draws
            )

        both = None if labels is None else torch.cat([labels, negative_labels])  # pyright: ignore
        if config.dropout:  # it draws from the global source
            torch.manual_seed(
                generator_for(recipe.seed, step, 6, rank, num_restarts).initial_seed()
            )
        energies = model(torch.cat([positive, negative]), both)
        positive_energies, negative_energies = energies.chunk(2)
        loss = recipe.loss(positive_energies, negative_energies)
        optimizer.zero_grad()
        accelerator.backward(loss)
        norm = clip_by_second_moment(optimizer)
        optimizer.step()
        ema.update_parameters(plain_model)
        if places is not None:
            buffer.store(negative, negative_labels, places, choices)

        # Nothing here waits for the device.
        size = energies.detach().abs().max()
        gap = (positive_energies - negative_energies).detach().mean()
        moved = (negative - start).abs().mean()
        values = torch.stack([loss.detach(), gap, size, norm, moved])
        is_bad |= ~values.isfinite().all() | (size > recipe.max_energy)
        totals += values
        progress.update(recipe.batch_size)

        step += 1
        is_last = step == recipe.num_steps
        log_is_due = step % recipe.log_every == 0
        save_is_due = step % recipe.save_every == 0 or is_last
        sample_is_due = recipe.sample_every and step % recipe.sample_every == 0
        if (log_is_due or save_is_due) and bool(accelerator.reduce(is_bad.float()) > 0):  # pyright: ignore
            num_restarts += 1
            if num_restarts > recipe.max_restarts:
                raise FloatingPointError(
                    f"the energies exploded before step {step}, after {recipe.max_restarts} "
                    f"restarts; the checkpoints before it are in {run.folder}"
                )
            state = load(first)
            logger.warning(
                f"the energies exploded before step {step}: back to step {state['step']}, with "
                f"other noise and the rate {recipe.learning_rate * 0.5**num_restarts:g}"
            )
            progress.update((state["step"] - step) * recipe.batch_size)
            step, totals = state["step"], state["totals"].to(device, copy=True)
            is_bad.zero_()
            continue
        if log_is_due:
            means: Any = accelerator.reduce(totals / recipe.log_every, reduction="mean")
            found = dict(zip(names, means.tolist(), strict=True))
            totals.zero_()
            accelerator.log(
                found
                | {
                    "num_restarts": num_restarts,
                    "seconds": progress.seconds,
                    "images_per_second": progress.samples_per_second,
                },
                step=step,
            )
            progress.show({name: found[name] for name in ("loss", "energy_gap")})
            for alarm in alarms(recipe, found):
                logger.warning(f"before step {step}, {alarm}")
        if sample_is_due and accelerator.is_main_process:
            path = run.folder / "samples" / f"step-{step:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            preview(averaged, recipe).save(path)
        if save_is_due:
            run.save(step, snapshot(step, progress.seconds, totals, num_restarts))

    progress.close()
    if accelerator.is_main_process:
        settle(averaged)
        export(averaged, recipe, run.folder, output_dir)
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
                "num_images": recipe.num_steps * recipe.batch_size,
                "batch_size": recipe.batch_size,
                "seed": recipe.seed,
                "num_processes": accelerator.num_processes,
                "seconds": progress.seconds,
                "hardware": hardware(),
                "versions": versions(),
                "init": training_of(init),
            },
            **({"evaluation": []} if began < recipe.num_steps else {}),
        )
    accelerator.wait_for_everyone()
    # The last to hold the process group must not be a wrapper: it would end the group with Python's
    # lock in its hand, which the group's own thread may be waiting for.
    model, optimizer = accelerator.free_memory(model, optimizer)
    accelerator.end_training()
    return output_dir


@torch.no_grad()
def ends_of_chains(
    model: EnergyModel,
    scheduler: LangevinScheduler,
    start: Tensor,
    labels: Tensor | None,
    num_steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Where chains over the energy as it is now come to, (B, C, H, W).

    The weights are frozen meanwhile, so that the gradient of no weight is computed, and the network
    is in evaluation mode, so that the energy stays the same.
    """
    model.eval().requires_grad_(False)
    try:
        return scheduler.chain(lambda x: model.score(x, labels), start, num_steps, generator)
    finally:
        model.train().requires_grad_(True)


def alarms(recipe: EBMRecipe, found: Mapping[Any, float]) -> list[str]:
    """What is wrong with the means of the last steps, as sentences without their beginning."""
    checks = (
        (
            abs(found["energy_gap"]) > recipe.max_energy_gap,
            "the energies of data and samples are far from each other",
        ),
        (
            found["energy_size"] > recipe.max_energy / 2,
            "energies are nearly as large as those of an explosion",
        ),
        (found["gradient_norm"] > recipe.max_gradient_norm, "the gradients are large"),
        (found["displacement"] < recipe.min_displacement, "the chains hardly move"),
    )
    return [sentence for is_so, sentence in checks if is_so]


def build(recipe: EBMRecipe, dataset: ImageDataset, start_from: EnergyModel | None) -> EnergyModel:
    """The network at the start of a run, with the classes of the data.

    From a checkpoint everything is taken over that fits; what does not (gains of other classes)
    starts anew, and a warning names it.
    """
    config = start_from.config if start_from is not None else recipe.model
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
        model = EnergyModel(config)
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


@torch.no_grad()
def clip_by_second_moment(optimizer: Any) -> Tensor:
    """Bounds each element of the gradients by 3 sqrt(v) + 0.1, v as Adam knows it so far.

    Du and Mordatch's code does so; the first step is not bounded.

    Returns:
        The norm of the gradients before it, a scalar.
    """
    norms = []
    for group in optimizer.param_groups:
        decay = group["betas"][1]
        for weight in group["params"]:
            if weight.grad is None:
                continue
            norms.append(torch.linalg.vector_norm(weight.grad))
            state = optimizer.state.get(weight, {})
            if "exp_avg_sq" in state:
                # The count of steps is on the CPU, which is a number to what is elsewhere.
                mean = state["exp_avg_sq"] / (1 - decay ** state["step"])
                bound = 3 * mean.sqrt() + 0.1
                weight.grad.copy_(torch.minimum(torch.maximum(weight.grad, -bound), bound))
    return torch.linalg.vector_norm(torch.stack(norms))


def settle(model: EnergyModel, num_iterations: int = 50) -> None:
    """Gives averaged weights the spectral norms that are their own."""
    for _ in range(num_iterations):
        model.power_iteration()


def preview(model: EnergyModel, recipe: EBMRecipe) -> Any:
    """A picture of what chains of the averaged weights make of noise, as long as in training."""
    settle(model)
    pipe = EBMPipeline(model, recipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe.grid(
        recipe.num_columns**2,
        recipe.num_columns,
        generator=generator_for(recipe.seed),
        num_inference_steps=recipe.num_chain_steps,
    )


def export(model: EnergyModel, recipe: EBMRecipe, run_folder: Path, output_dir: Path) -> None:
    """Puts a finished pipeline into `output_dir`, its weights in float16.

    `model_index.json` comes last, when all else is there.

    Raises:
        ValueError: If a weight is beyond the range of float16.
    """
    partial = run_folder / "export"
    shutil.rmtree(partial, ignore_errors=True)
    EBMPipeline(model, recipe.scheduler).save_pretrained(partial)
    model.save_pretrained(partial / "ebm", state_dict=half_precision(model))
    pipe = EBMPipeline.from_pretrained(partial)
    pipe.set_progress_bar_config(disable=True)
    (partial / "samples").mkdir()
    picture = pipe.grid(recipe.num_columns**2, recipe.num_columns, generator=generator_for(0))
    picture.save(partial / "samples" / "grid.png")
    for name in ("ebm", "scheduler", "samples", "model_index.json"):
        move_atomically(partial / name, output_dir / name)
    partial.rmdir()
