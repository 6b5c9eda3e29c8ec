"""A diffusers pipeline over any generator of the room: latent vectors (and classes) to pictures."""

from typing import Any, ClassVar

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import AutoModel, AutoModelForPreTraining, PreTrainedModel

from ..pipelines import ImagePipeline


class GANPipeline(ImagePipeline):
    """Generates images with a GAN.

    Args:
        gan: A generator: `gan(latents, class_labels=None).images` is (B, C, H, W) in [-1, 1].
        discriminator: The network it was trained against; the pipeline does not use it, but saves
            it along.
    """

    auto_classes: ClassVar[dict[str, Any]] = {
        "gan": AutoModel,
        "discriminator": AutoModelForPreTraining,
    }
    model_cpu_offload_seq = "gan"
    _optional_components = ["discriminator"]  # noqa: RUF012 - the name and the type are diffusers'

    def __init__(self, gan: PreTrainedModel, discriminator: PreTrainedModel | None = None):
        super().__init__()
        self.register_modules(gan=gan, discriminator=discriminator)

    @torch.no_grad()
    def __call__(
        self,
        num_images: int | None = None,
        class_labels: int | str | list[int | str] | Tensor | None = None,
        latents: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        truncation: float | None = None,
        batch_size: int = 64,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Generates images.

        Args:
            num_images: How many; by default as many as there are latents or class labels, else one.
            class_labels: One class for all images or one for each, by name (`gan.config.id2label`)
                or number. A labeled model without them draws each class with the same probability.
            latents: (B, Z), in the place of standard normal ones.
            generator: The source of random numbers: one, or one for each image.
            truncation: Draw latents from the normal distribution cut off beyond plus and minus this
                many standard deviations (Brock et al., 2019, Section 3.1): smaller is truer to type
                and less varied.
            batch_size: How many images are made at once.
            output_type: "pil", "np" (B, H, W, C) or "pt" (B, C, H, W); arrays are float in [0, 1].
            return_dict: Whether to return an `ImagePipelineOutput` or a tuple.

        Raises:
            ValueError: If the arguments do not fit each other or the model.
        """
        self.check_output_type(output_type)
        if latents is not None and truncation is not None:
            raise ValueError(
                "truncation says how to draw latents, so it cannot be combined with latents"
            )
        if truncation is not None and not truncation > 0:
            raise ValueError(f"truncation must be positive, got {truncation}")
        labels = None if class_labels is None else self.label_ids(class_labels)
        if num_images is None:
            num_images = (
                len(latents) if latents is not None else len(labels) if labels is not None else 1
            )
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        self.check_generators(generator, num_images)

        device, dtype = self._execution_device, self.gan.dtype
        if latents is None:
            latents = self._draw_latents(num_images, generator, truncation)
        elif len(latents) != num_images:
            raise ValueError(f"{num_images} images need {num_images} latents, got {len(latents)}")
        labels = self.labels_for(labels, num_images, generator)

        batches = []
        with self.progress_bar(total=num_images) as progress:  # pyright: ignore[reportCallIssue]
            for first in range(0, num_images, batch_size):
                z = latents[first : first + batch_size].to(device, dtype)
                c = None if labels is None else labels[first : first + batch_size].to(device)
                batches.append(self.gan(z, class_labels=c).images)
                progress.update(len(z))
        self.maybe_free_model_hooks()
        images = self.to_output(torch.cat(batches), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def interpolate(
        self,
        num_images: int = 8,
        class_labels: int | str | None = None,
        latents: Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple:
        """Generates the images along the great circle between two latent vectors (slerp).

        Args:
            num_images: How many, the two ends included.
            class_labels: One class for all of them; a labeled model without one draws it.
            latents: (2, Z), the ends; drawn unless given.
            generator: The source of random numbers.
            **kwargs: As for a call.

        Raises:
            ValueError: If there are fewer than two images or not two latent vectors.
        """
        if latents is None:
            latents = self._draw_latents(2, generator, kwargs.pop("truncation", None))
        if latents.dim() != 2 or len(latents) != 2 or num_images < 2:
            raise ValueError(
                "two latents and two images are the least, "
                f"got {tuple(latents.shape)} and {num_images}"
            )
        if class_labels is None and self.gan.config.num_classes:
            class_labels = int(self.draw_labels(1, generator))
        path = slerp(
            latents[0], latents[1], torch.linspace(0, 1, num_images, device=latents.device)
        )
        return self(latents=path, class_labels=class_labels, **kwargs)

    def _draw_latents(
        self,
        num_images: int,
        generator: torch.Generator | list[torch.Generator] | None,
        truncation: float | None,
    ) -> Tensor:
        shape = (num_images, self.gan.config.latent_dim)
        latents = randn_tensor(
            shape, generator=generator, device=self._execution_device, dtype=torch.float32
        )
        if truncation is None:
            return latents
        # A standard normal number's quantile is uniform; squeezed into the part within
        # +-truncation, it is the quantile of a truncated one. So a seed gives related images for
        # every truncation.
        low = torch.special.ndtr(torch.tensor(-truncation, dtype=torch.float64))
        quantile = low + torch.special.ndtr(latents.cpu().double()) * (1 - 2 * low)
        return torch.special.ndtri(quantile).float().clamp(-truncation, truncation)


def slerp(start: Tensor, end: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation between two vectors at the angle a (Shoemake, 1985).

        sin((1 - t) a) / sin(a) * start + sin(t a) / sin(a) * end

    Args:
        start: (Z,).
        end: (Z,).
        weights: (N,), t in [0, 1].

    Returns:
        (N, Z); straight interpolation where the two vectors are parallel.
    """
    t = weights[:, None]
    angle = torch.acos(torch.nn.functional.cosine_similarity(start, end, dim=0).clamp(-1, 1))
    if torch.sin(angle) < 1e-4:
        return torch.lerp(start[None], end[None], t)
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)
