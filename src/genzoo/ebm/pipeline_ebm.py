"""Diffusers pipelines over an energy: images from noise, and what is missing in an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from ..pipelines import ImagePipeline
from .layers import differentiate
from .scheduling_langevin import LangevinScheduler

Generators = torch.Generator | list[torch.Generator] | None
OnStepEnd = Callable[[Any, int, int, dict[str, Any]], dict[str, Any] | None]


@dataclass
class EBMPipelineOutput(ImagePipelineOutput):
    """What a call returns.

    Args:
        images: As `output_type` says.
        energies: (B,), of them.
        trajectory: (N, B, C, H, W) in [0, 1], the states of the chains that were kept, if any. With
            a scheduler of `noise_first`, all but the last hold the noise of the next step.
    """

    energies: Tensor | None = None
    trajectory: Tensor | None = None


class EBMPipeline(ImagePipeline):
    """Makes images by Langevin dynamics over an energy.

    Args:
        ebm: An energy: `ebm(pixel_values, class_labels=None)` is (B,), of pixels in [-1, 1].
        scheduler: How the chains go.
    """

    auto_classes: ClassVar[dict[str, Any]] = {"ebm": AutoModel, "scheduler": LangevinScheduler}
    model_cpu_offload_seq = "ebm"

    def __init__(self, ebm: PreTrainedModel, scheduler: LangevinScheduler):
        super().__init__()
        self.register_modules(ebm=ebm, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        num_images: int | None = None,
        class_labels: int | str | list[int | str] | Tensor | None = None,
        images: Tensor | Image.Image | Sequence[Image.Image] | None = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        keep_every: int | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("samples",),
        batch_size: int = 64,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> EBMPipelineOutput | tuple:
        """Makes images.

        Args:
            num_images: How many; by default as many as there are images or class labels, else one.
            class_labels: One class for all images or one for each, by name (`ebm.config.id2label`)
                or number. A labeled model without them draws each class with the same probability.
            images: Where the chains begin, in the place of uniform noise, such as data; (B, C, H,
                W) in [0, 1], (B, H, W, C) as an array, or pictures. The samples of a `SampleBuffer`
                are in [-1, 1]: pass `samples / 2 + 0.5`.
            num_inference_steps: Steps of a chain; the scheduler's own number unless given.
            generator: The source of random numbers: one, or one for each image.
            keep_every: Keeps the states after every so many steps, for `trajectory`.
            callback_on_step_end: Called as `callback(pipe, step, timestep, tensors)` after every
                step; what it returns replaces the samples. Each batch counts from 0.
            callback_on_step_end_tensor_inputs: Which tensors it gets: "samples", (B, C, H, W) in
                [-1, 1], and beyond by the noise of the next step where the scheduler has
                `noise_first`.
            batch_size: How many chains go on at once. With one generator for all, the images depend
                on it.
            output_type: "pil", "np" (B, H, W, C) or "pt" (B, C, H, W); arrays are float in [0, 1].
            return_dict: Whether to return an `EBMPipelineOutput` or a tuple with the images.

        Raises:
            ValueError: If the arguments do not fit each other or the model, or if the energies are
                not finite at the end.
        """
        self.check_output_type(output_type)
        start = None if images is None else self.to_pixels(images)
        labels = None if class_labels is None else self.label_ids(class_labels)
        if num_images is None:
            num_images = (
                len(start) if start is not None else len(labels) if labels is not None else 1
            )
        if start is not None and len(start) != num_images:
            raise ValueError(f"{num_images} images need as many to begin with, got {len(start)}")
        if start is None:
            start = self._noise(num_images, generator)
        return self._run(
            start,
            None,
            labels,
            num_inference_steps,
            generator,
            keep_every,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            batch_size,
            output_type,
            return_dict,
        )

    def _run(
        self,
        start: Tensor,
        mask: Tensor | None,
        labels: Tensor | None,
        num_steps: int | None,
        generator: Generators,
        keep_every: int | None,
        callback: OnStepEnd | None,
        callback_inputs: Sequence[str],
        batch_size: int,
        output_type: str,
        return_dict: bool,
    ) -> EBMPipelineOutput | tuple:
        """Chains from `start` in [-1, 1], which move where `mask` (B, 1, H, W) is true."""
        if num_steps is None:
            num_steps = int(self.scheduler.config.num_inference_steps)
        num_images = len(start)
        self.check_generators(generator, num_images)
        if unknown := {*callback_inputs} - {"samples"}:
            raise ValueError(f"a callback can get samples, not {', '.join(sorted(unknown))}")
        labels = self.labels_for(labels, num_images, generator)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if num_steps < 1 or num_steps != int(num_steps):
            raise ValueError(f"num_inference_steps must be at least 1, and whole, got {num_steps}")
        if keep_every is not None and not 1 <= keep_every <= num_steps:
            raise ValueError(f"keep_every must be in 1 .. {num_steps}, got {keep_every}")
        device, network = self._execution_device, self.ebm.eval()
        done, energies, kept = [], [], []
        num_batches = -(-num_images // batch_size)
        with self.progress_bar(total=num_batches * num_steps) as progress:  # pyright: ignore[reportCallIssue]
            for first in range(0, num_images, batch_size):
                rows = slice(first, first + batch_size)
                begin = start[rows].to(device)
                move = None if mask is None else mask[rows].to(device)
                c = None if labels is None else labels[rows].to(device)
                states = []

                def score(x: Tensor, c: Tensor | None = c) -> Tensor:
                    # Through a call, where hooks bring the weights of a network that is elsewhere.
                    return differentiate(lambda z: network(z, c), x.to(network.dtype))[1]

                def hold(x: Tensor, move: Any = move, begin: Tensor = begin) -> Tensor:
                    return torch.where(move, x, begin)

                def after(step: int, x: Tensor, states: list[Tensor] = states) -> Tensor:
                    if callback is not None:
                        given = {"samples": x} if "samples" in callback_inputs else {}
                        x = (callback(self, step, step, given) or {}).get("samples", x)
                    if keep_every and (step + 1) % keep_every == 0:
                        states.append(x)
                    progress.update()
                    return x

                x = self.scheduler.chain(
                    score,
                    begin,
                    num_steps,
                    generator[rows] if isinstance(generator, list) else generator,
                    hold=None if move is None else hold,
                    on_step_end=after,
                )
                done.append(x)
                energies.append(network(x.to(network.dtype), c))
                kept += [torch.stack(states)] if states else []
        self.maybe_free_model_hooks()
        found = torch.cat(energies)
        if num_bad := int((~found.isfinite()).sum()):
            raise ValueError(
                f"{num_bad} of {num_images} energies are not finite after {num_steps} steps; "
                "try smaller ones"
            )
        images = self.to_output(torch.cat(done), output_type)
        if not return_dict:
            return (images,)
        trajectory = (torch.cat(kept, dim=1) / 2 + 0.5).clamp(0, 1) if kept else None
        return EBMPipelineOutput(images=images, energies=found, trajectory=trajectory)

    def draw_trajectory(self, trajectory: Tensor, scale: int = 2) -> Image.Image:
        """One picture of how images came about: a row for each, from left to right.

        Args:
            trajectory: (N, B, C, H, W) in [0, 1], as a call returns it.
            scale: How many pixels of the picture a pixel of an image takes, in both directions.
        """
        num_states, num_images = trajectory.shape[:2]
        side = trajectory.shape[-1] * scale
        states = self.to_output(trajectory.flatten(0, 1) * 2 - 1, "pil")
        picture = Image.new(states[0].mode, (num_states * side, num_images * side))
        for index, state in enumerate(states):
            column, row = divmod(index, num_images)
            state = state.resize((side, side), Image.Resampling.NEAREST)
            picture.paste(state, (column * side, row * side))
        return picture

    def to_pixels(self, images: Tensor | Image.Image | Sequence[Image.Image] | Any) -> Tensor:
        """Images in [0, 1], or pictures, as (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: If they are not of the model's size, or their pixels are out of range.
        """
        config = self.ebm.config
        size = (config.num_channels, config.image_size, config.image_size)
        if hasattr(images, "ndim") and not isinstance(images, Tensor):
            if images.ndim not in (3, 4):
                raise ValueError(f"an array of images is (B, H, W, C), got {images.shape}")
            images = torch.as_tensor(images).movedim(-1, -3)
        if not isinstance(images, Tensor):
            pictures = [images] if isinstance(images, Image.Image) else [*images]
            if not pictures or not all(isinstance(one, Image.Image) for one in pictures):
                raise ValueError("images must be a tensor, an array (B, H, W, C) or pictures")
            sides = (config.image_size, config.image_size)
            if wrong := {one.size for one in pictures} - {sides}:
                raise ValueError(f"images must be of {sides} pixels, got {sorted(wrong)}")
            if any(one.mode.startswith(("I", "F")) for one in pictures):
                raise ValueError("pictures must have 8 bits a channel")
            mode = "L" if config.num_channels == 1 else "RGB"
            images = torch.stack([_to_tensor(picture.convert(mode)) for picture in pictures])
        if images.dim() == 3:
            images = images[None]
        if images.dim() != 4 or images.shape[1:] != size or not images.shape[0]:
            raise ValueError(
                f"images must be (B, {', '.join(map(str, size))}), got {tuple(images.shape)}"
            )
        if not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(
                f"pixels must be in [0, 1], got {float(images.min()):g} to {float(images.max()):g}"
            )
        return images.float() * 2 - 1

    def _noise(self, num_images: int, generator: Generators) -> Tensor:
        """Uniform in [-1, 1], (B, C, H, W)."""
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        self.check_generators(generator, num_images)
        config = self.ebm.config
        size = (config.num_channels, config.image_size, config.image_size)
        if isinstance(generator, list):
            draws = [torch.rand(size, generator=one, device=one.device).cpu() for one in generator]
            return torch.stack(draws) * 2 - 1
        device = generator.device if generator is not None else "cpu"
        return torch.rand((num_images, *size), generator=generator, device=device) * 2 - 1


class EBMInpaintPipeline(EBMPipeline):
    """Fills in what is missing in images, by Langevin dynamics over an energy.

    Chains begin with uniform noise in the missing pixels; the others stay as they are (Du and
    Mordatch, 2019, Section 4.2). What it opens and saves is the checkpoint of an `EBMPipeline`.
    """

    saved_as = "EBMPipeline"

    @torch.no_grad()
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - other inputs
        self,
        images: Tensor | Image.Image | Sequence[Image.Image],
        mask: Tensor | Image.Image | Any,
        class_labels: int | str | list[int | str] | Tensor | None = None,
        num_completions: int = 1,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        keep_every: int | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("samples",),
        batch_size: int = 64,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> EBMPipelineOutput | tuple:
        """Completes images.

        Args:
            images: (B, C, H, W) in [0, 1], or pictures.
            mask: Where pixels are missing: true, one or white, as for diffusers' inpainting; (H, W)
                for all images, (B, 1, H, W) for each, as a tensor or an array, or a picture.
            class_labels: As for `EBMPipeline`, one for all images or one for each; an energy with
                classes demands them. (`genzoo.ebm.class_energies` tells the class of whole images.)
            num_completions: How many of each image; those of one follow each other.
            num_inference_steps: As for `EBMPipeline`.
            generator: As for `EBMPipeline`.
            keep_every: As for `EBMPipeline`.
            callback_on_step_end: As for `EBMPipeline`.
            callback_on_step_end_tensor_inputs: As for `EBMPipeline`.
            batch_size: As for `EBMPipeline`.
            output_type: As for `EBMPipeline`.
            return_dict: As for `EBMPipeline`.

        Raises:
            ValueError: If images, mask and model do not fit each other.
        """
        self.check_output_type(output_type)
        if num_completions < 1:
            raise ValueError(f"num_completions must be at least 1, got {num_completions}")
        known = self.to_pixels(images)
        missing = self._missing(mask, len(known))
        labels = None if class_labels is None else self.label_ids(class_labels)
        if labels is None and (names := self.ebm.config.num_classes and self.ebm.config.id2label):
            raise ValueError(
                "this energy has classes: say by class_labels of which each image is "
                f"({', '.join(names.values())})"
            )
        if labels is not None and len(labels) not in (1, len(known)):
            raise ValueError(
                f"{len(known)} images need 1 or {len(known)} class labels, got {len(labels)}"
            )
        if labels is not None and len(labels) > 1:
            labels = labels.repeat_interleave(num_completions)
        known, missing = (x.repeat_interleave(num_completions, dim=0) for x in (known, missing))
        noise = self._noise(len(known), generator)
        start = torch.where(missing.to(known.device), noise.to(known.device), known)
        return self._run(
            start,
            missing,
            labels,
            num_inference_steps,
            generator,
            keep_every,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            batch_size,
            output_type,
            return_dict,
        )

    def _missing(self, mask: Tensor | Image.Image | Any, num_images: int) -> Tensor:
        """(B, 1, H, W), true where pixels are missing."""
        side = self.ebm.config.image_size
        if isinstance(mask, Image.Image):
            mask = _to_tensor(mask.convert("L"))[0]
        if hasattr(mask, "ndim") and not isinstance(mask, Tensor):
            mask = torch.as_tensor(mask)
        if not isinstance(mask, Tensor):
            raise ValueError(f"the mask must be a tensor, an array or a picture, got {type(mask)}")
        if mask.numel() and not (mask.min() >= 0 and mask.max() <= 1):
            raise ValueError(
                f"a mask is in [0, 1], got {float(mask.min()):g} to {float(mask.max()):g}"
            )
        found = mask > 0.5
        if found.shape == (side, side):
            found = found[None, None].expand(num_images, 1, side, side)
        if found.shape != (num_images, 1, side, side):
            raise ValueError(
                f"the mask must be ({side}, {side}) or ({num_images}, 1, {side}, {side}), "
                f"got {tuple(mask.shape)}"
            )
        return found


def _to_tensor(picture: Image.Image) -> Tensor:
    """(C, H, W) in [0, 1]."""
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    width, height = picture.size
    return values.view(height, width, -1).permute(2, 0, 1).float() / 255
