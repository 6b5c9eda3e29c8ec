"""What the zoo's diffusers pipelines share: how they are loaded and saved."""

import json
import os
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline
from diffusers import __version__ as diffusers_version
from safetensors import SafetensorError
from transformers import PreTrainedModel

from .downloads import HUB_OPTIONS, fetch


class ZooPipeline(DiffusionPipeline):
    """A pipeline whose components are PreTrainedModels, found by their `model_type`.

    `DiffusionPipeline.from_pretrained` knows components by their file and runs the repository's
    code to get them. This class takes the installed one, so it needs no trust, and serves every
    model that joins its room. A checkpoint that `genzoo.hub.publish` made can be loaded both ways.

    Attributes:
        auto_classes: Name of each component -> the Auto class that finds it. The first one is
            needed; the others are so unless `_optional_components` has them.
    """

    auto_classes: ClassVar[dict[str, Any]]

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
            indices = ["model_index.json", "*/config.json", "*/model.safetensors.index*.json"]
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
            raise ValueError(
                f"{name} holds a {index.get('_class_name')}, which has no component named `{first}`"
            )

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
            "_class_name": [file, type(self).__name__],
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


def _load(
    auto_class: Any, folder: Path, dtype: torch.dtype, variant: str | None
) -> PreTrainedModel:
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
