"""A diffusers pipeline over any generator of the room: latent vectors (and classes) to pictures."""

from numbers import Integral
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import AutoModel, AutoModelForPreTraining, PreTrainedModel

from ..pipelines import ZooPipeline


class GANPipeline(ZooPipeline):
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
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be 'pil', 'np' or 'pt', got {output_type!r}")
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
        if isinstance(generator, list) and len(generator) != num_images:
            raise ValueError(
                f"{num_images} images need {num_images} generators, got {len(generator)}"
            )

        device, dtype = self._execution_device, self.gan.dtype
        if latents is None:
            latents = self._draw_latents(num_images, generator, truncation)
        elif len(latents) != num_images:
            raise ValueError(f"{num_images} images need {num_images} latents, got {len(latents)}")
        if labels is None and self.gan.config.num_classes:
            labels = self._draw_labels(num_images, generator)
        elif labels is not None:
            if len(labels) not in (1, num_images):
                raise ValueError(
                    f"{num_images} images need 1 or {num_images} class labels, got {len(labels)}"
                )
            labels = labels.expand(num_images)

        batches = []
        with self.progress_bar(total=num_images) as progress:  # pyright: ignore[reportCallIssue]
            for first in range(0, num_images, batch_size):
                z = latents[first : first + batch_size].to(device, dtype)
                c = None if labels is None else labels[first : first + batch_size].to(device)
                batches.append(self.gan(z, class_labels=c).images)
                progress.update(len(z))
        images: Any = (torch.cat(batches).float() / 2 + 0.5).clamp(0, 1)  # (B, C, H, W)
        self.maybe_free_model_hooks()

        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).numpy()  # (B, C, H, W) -> (B, H, W, C)
            if output_type == "pil":
                images = self.numpy_to_pil(images)
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
            class_labels = int(self._draw_labels(1, generator))
        path = slerp(
            latents[0], latents[1], torch.linspace(0, 1, num_images, device=latents.device)
        )
        return self(latents=path, class_labels=class_labels, **kwargs)

    def grid(
        self,
        num_images: int = 64,
        num_columns: int = 8,
        class_labels: int | str | list[int | str] | Tensor | None = None,
        scale: int = 2,
        **kwargs: Any,
    ) -> Image.Image:
        """Generates one picture of many images.

        Args:
            num_images: How many. For a labeled model without `class_labels` it is rounded up to
                whole rows for each class, whose name then stands at the left.
            num_columns: How many in a row.
            class_labels: As for a call.
            scale: How many pixels of the picture a pixel of an image takes, in both directions.
            **kwargs: As for a call.
        """
        num_classes, names = self.gan.config.num_classes, {}
        if class_labels is None and num_classes:
            rows_each = -(-num_images // (num_columns * num_classes))
            class_labels = torch.arange(num_classes).repeat_interleave(num_columns * rows_each)
            num_images = len(class_labels)
            names = {index * rows_each: name for index, name in self.gan.config.id2label.items()}
        kwargs["output_type"] = "pil"
        images = self(num_images=num_images, class_labels=class_labels, **kwargs).images

        side = self.gan.config.image_size * scale
        margin = 8 + max(
            (int(ImageDraw.Draw(images[0]).textlength(name)) for name in names.values()), default=-8
        )
        num_rows = -(-num_images // num_columns)
        picture = Image.new(images[0].mode, (margin + num_columns * side, num_rows * side), "white")
        for index, image in enumerate(images):
            row, column = divmod(index, num_columns)
            image = image.resize((side, side), Image.Resampling.NEAREST)
            picture.paste(image, (margin + column * side, row * side))
        for row, name in names.items():
            ImageDraw.Draw(picture).text(
                (4, row * side + side // 2), name, fill="black", anchor="lm"
            )
        return picture

    def label_ids(self, class_labels: int | str | list[int | str] | Tensor) -> Tensor:
        """Class names and numbers to numbers, (B,).

        Raises:
            ValueError: If the model has no classes or not these.
        """
        config = self.gan.config
        if not config.num_classes:
            raise ValueError("this model is unconditional and takes no class_labels")
        labels: Any = class_labels
        if isinstance(labels, Tensor):
            labels = labels.flatten().tolist()
        elif isinstance(labels, Integral | str):
            labels = [labels]
        by_name = {name: index for index, name in config.id2label.items()}
        labels = [by_name.get(label, label) for label in labels]
        for label in labels:
            is_number = isinstance(label, Integral) and not isinstance(label, bool)
            if not is_number or not 0 <= int(label) < config.num_classes:
                raise ValueError(
                    f"there is no class {label!r}; this model has {', '.join(by_name)}"
                )
        return torch.tensor([int(label) for label in labels])

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

    def _draw_labels(
        self, num_images: int, generator: torch.Generator | list[torch.Generator] | None
    ) -> Tensor:
        num_classes = self.gan.config.num_classes
        if isinstance(generator, list):
            draws = [
                torch.randint(num_classes, (1,), generator=one, device=one.device).cpu()
                for one in generator
            ]
            return torch.cat(draws)
        device = generator.device if generator is not None else "cpu"
        return torch.randint(num_classes, (num_images,), generator=generator, device=device).cpu()


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
