"""What the zoo's diffusers pipelines share: how they are loaded and saved."""

import json
import os
from collections.abc import Callable, Iterable
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers import __version__ as diffusers_version
from PIL import Image, ImageDraw
from safetensors import SafetensorError
from torch import Tensor

from .downloads import HUB_OPTIONS, fetch


class ZooPipeline(DiffusionPipeline):
    """A pipeline of PreTrainedModels, found by their `model_type`, and perhaps a scheduler.

    `DiffusionPipeline.from_pretrained` knows components by their file and runs the repository's
    code to get them. This class takes the installed one, so it needs no trust, and serves every
    model that joins its room. A checkpoint that `genzoo.hub.publish` made can be loaded both ways.

    Attributes:
        auto_classes: Name of each component -> the Auto class that finds it, or the class of a
            scheduler. The first one is needed; the others are so unless `_optional_components` has
            them.
        saved_as: The class that `model_index.json` names, where it is another one of the file: a
            checkpoint that several classes open is saved as the first of them.
    """

    auto_classes: ClassVar[dict[str, Any]]
    saved_as: ClassVar[str | None] = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Self:
        """Loads a pipeline; no code of a repository is run.

        Args:
            pretrained_model_name_or_path: A folder or a Hub id.
            **kwargs: `torch_dtype` (float32 unless given, whatever the file holds), `variant`, what
                the Hub wants (`revision`, `token`, `cache_dir`, `local_files_only`,
                `force_download`), and components that replace those of the checkpoint
                (`discriminator=None` leaves it out).

        Raises:
            OSError: If there is no such checkpoint, or a file of it is damaged.
            ValueError: If the name is none, or what it names holds no such pipeline.
        """
        hub_options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None) or torch.float32
        variant = kwargs.pop("variant", None)
        # Habits of diffusers' users that are always so here: safetensors, and no remote code.
        for habit in ("use_safetensors", "low_cpu_mem_usage", "trust_remote_code"):
            kwargs.pop(habit, None)
        name = os.fspath(pretrained_model_name_or_path)
        if os.path.isdir(name):
            folder = Path(name)
        else:
            stem = f"model.{variant}" if variant else "model"
            weights = [f"*/{stem}.safetensors", f"*/{stem}-*.safetensors"]
            indices = [
                "model_index.json",
                "*/config.json",
                "*/scheduler_config.json",
                "*/model.safetensors.index*.json",
            ]
            folder = fetch(name, [*indices, *weights], **hub_options)

        index_path = folder / "model_index.json"
        if not index_path.is_file():
            raise OSError(f"{name} holds no pipeline: it has no model_index.json")
        try:
            index = json.loads(index_path.read_text())
        except ValueError as error:
            raise OSError(f"{index_path} is damaged: {error}") from error
        first = next(iter(cls.auto_classes))
        if first not in index:
            held = index.get("_class_name")
            held = held[-1] if isinstance(held, list) else held
            raise ValueError(f"{name} holds a {held}, which has no component named `{first}`")

        components = {}
        for component, auto_class in cls.auto_classes.items():
            if component in kwargs:
                components[component] = kwargs.pop(component)
            elif index.get(component, [None])[0] is not None:
                components[component] = _load(auto_class, folder / component, dtype, variant)
        if kwargs:
            raise TypeError(f"{cls.__name__}.from_pretrained takes no {', '.join(kwargs)}")
        pipe = cls(**components)
        pipe.register_to_config(_name_or_path=name)
        return pipe

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Writes one folder for each component and the `model_index.json` that names their classes.

        Args:
            save_directory: The folder.
            **kwargs: Passed to each component's `save_pretrained`, such as `variant`.
        """
        folder = Path(save_directory)
        # Pairs [file, class], which diffusers can load where genzoo is missing, given the code.
        file = type(self).__module__.rpartition(".")[2]
        index: dict[str, Any] = {
            "_class_name": [file, self.saved_as or type(self).__name__],
            "_diffusers_version": diffusers_version,
        }
        for name, component in self.components.items():
            if component is None:
                index[name] = [None, None]
                continue
            component.save_pretrained(folder / name, **kwargs)
            index[name] = [type(component).__module__.rpartition(".")[2], type(component).__name__]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


class ImagePipeline(ZooPipeline):
    """A pipeline that makes images, of classes where its network has them.

    The first component is the network: its config has `image_size`, `num_classes` and `id2label`.
    """

    # Each pipeline's own call makes the images: `num_images`, `class_labels` and `output_type`
    # mean the same in all of them.
    __call__: Callable[..., Any]

    @property
    def network(self) -> Any:
        """The network that makes the images, or judges them."""
        return getattr(self, next(iter(self.auto_classes)))

    @staticmethod
    def check_output_type(output_type: str) -> None:
        """Dies unless it is one that `to_output` knows."""
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be 'pil', 'np' or 'pt', got {output_type!r}")

    @staticmethod
    def check_generators(
        generator: torch.Generator | list[torch.Generator] | None, num_images: int
    ) -> None:
        """Dies unless there is one for all, or one for each image."""
        each = generator if isinstance(generator, list) else [generator]
        if wrong := [one for one in each if not isinstance(one, torch.Generator | None)]:
            raise ValueError(f"a generator must be a torch.Generator, got {wrong[0]!r}")
        if isinstance(generator, list) and len(generator) != num_images:
            raise ValueError(
                f"{num_images} images need {num_images} generators, got {len(generator)}"
            )

    def to_output(self, images: Tensor, output_type: str) -> Any:
        """Images (B, C, H, W) in [-1, 1] as a call returns them, in [0, 1] or as pictures."""
        images = (images.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        arrays = images.cpu().permute(0, 2, 3, 1).numpy()  # (B, C, H, W) -> (B, H, W, C)
        return self.numpy_to_pil(arrays) if output_type == "pil" else arrays

    def labels_for(
        self,
        labels: Tensor | None,
        num_images: int,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Tensor | None:
        """One class for each image: those given, one for all, or drawn; None without classes.

        Raises:
            ValueError: If there are neither one nor as many as images.
        """
        if labels is None:
            return (
                self.draw_labels(num_images, generator) if self.network.config.num_classes else None
            )
        if len(labels) not in (1, num_images):
            raise ValueError(
                f"{num_images} images need 1 or {num_images} class labels, got {len(labels)}"
            )
        return labels.expand(num_images)

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
        num_classes, names = self.network.config.num_classes, {}
        if class_labels is None and num_classes:
            rows_each = -(-num_images // (num_columns * num_classes))
            class_labels = torch.arange(num_classes).repeat_interleave(num_columns * rows_each)
            num_images = len(class_labels)
            names = {
                index * rows_each: name for index, name in self.network.config.id2label.items()
            }
        kwargs["output_type"] = "pil"
        images = self(num_images=num_images, class_labels=class_labels, **kwargs).images

        side = self.network.config.image_size * scale
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
        config = self.network.config
        if not config.num_classes:
            raise ValueError("this model is unconditional and takes no class_labels")
        labels: Any = class_labels
        if isinstance(labels, Tensor):
            labels = labels.flatten().tolist()
        elif isinstance(labels, str) or not isinstance(labels, Iterable):
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

    def draw_labels(
        self, num_images: int, generator: torch.Generator | list[torch.Generator] | None
    ) -> Tensor:
        """Classes (B,), each with the same probability."""
        num_classes = self.network.config.num_classes
        if isinstance(generator, list):
            draws = [
                torch.randint(num_classes, (1,), generator=one, device=one.device).cpu()
                for one in generator
            ]
            return torch.cat(draws)
        device = generator.device if generator is not None else "cpu"
        return torch.randint(num_classes, (num_images,), generator=generator, device=device).cpu()


def _load(auto_class: Any, folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
    if issubclass(auto_class, SchedulerMixin):
        return auto_class.from_pretrained(folder)
    try:
        model, info = auto_class.from_pretrained(
            folder,
            dtype=dtype,
            variant=variant,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise OSError(f"the weights in {folder} are damaged: {error}") from error
    except RuntimeError as error:  # what transformers raises for weights of other sizes
        raise OSError(f"the weights in {folder} are of another model: {error}") from error
    foreign = sorted([*info["missing_keys"], *info["unexpected_keys"]])
    if foreign:
        raise OSError(
            f"the weights in {folder} are of another model: {len(foreign)} names do not fit, "
            f"such as {foreign[0]}"
        )
    return model.eval()
