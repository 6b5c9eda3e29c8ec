"""The two doors in, `locate(name)` and `pipeline(task, model=...)`, and the recipes by name."""

import difflib
import importlib
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    PreTrainedConfig,
)

from .downloads import HUB_OPTIONS, fetch

NAMESPACE = "genzoo"
"""The owner of the zoo's repositories on the Hub."""

ROOMS = ("gan", "features", "jose", "conditional_text", "ebm")
"""The packages of genzoo that have a recipes.py."""

TASKS = {
    "class-to-image": "selfmod-gan-fashion-mnist",
    "unconditional-image-generation": "dcgan-fashion-mnist",
    "image-inpainting": "igebm-mnist",
    "conditional-text-generation": "conditional-bert-zh-sentiment",
}
"""The tasks that transformers does not have, and the checkpoint for each when none is named."""

PIPELINES = {
    "GANPipeline": ("genzoo.gan.pipeline_gan", "gan"),
    "EBMPipeline": ("genzoo.ebm.pipeline_ebm", "ebm"),
}
"""The class that a model_index.json names: its module, and the component that has the classes."""

SIBLINGS = {
    ("EBMPipeline", "image-inpainting"): "EBMInpaintPipeline",
}
"""A class that model_index.json names, and a task -> the class beside it that does the task."""

TEXT_PIPELINES = {
    "conditional-text-generation": ("genzoo.conditional_text.pipeline_conditional_text_generation"),
}
"""The tasks whose pipelines are transformers', and the modules that register them there."""

HEADS = {
    AutoModelForImageClassification: "image-classification",
    AutoModelForMaskedLM: "fill-mask",
    AutoModelForCausalLM: "text-generation",
}
"""The Auto classes of networks that do one task of transformers, and the task."""

_PACKAGE = Path(__file__).resolve().parent
DATA_FILES = ("*.json", "*.safetensors", "*.md", "*.yaml", "*.png", "*.txt")
"""What a checkpoint consists of: data and no code, neither Python files nor pickles."""


def recipes() -> dict[str, Callable[[], Any]]:
    """Every recipe of the zoo by its checkpoint's name.

    A recipe is a public function of a room's recipes.py. The module also has `train`, which takes
    what a recipe returns, and `evaluate`, which takes what `train` leaves and, if it
    has an argument of that name, the recipe (see `room_of`).
    """
    found = {}
    for room in ROOMS:
        module = importlib.import_module(f"genzoo.{room}.recipes")
        for name, value in vars(module).items():
            is_own = callable(value) and getattr(value, "__module__", None) == module.__name__
            if is_own and name not in ("train", "evaluate") and not name.startswith("_"):
                found[name.replace("_", "-")] = value
    return found


def find_recipe(name: str) -> Callable[[], Any]:
    """The recipe of a checkpoint.

    Raises:
        ValueError: If there is none; the message names the closest.
    """
    known = recipes()
    if name not in known:
        raise ValueError(f"there is no recipe {name!r}; {closest(name, known)}")
    return known[name]


def room_of(recipe: Callable[[], Any]) -> Any:
    """The recipes module that a recipe stands in, with the room's `train` and `evaluate`."""
    return importlib.import_module(recipe.__module__)


def closest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the one most like it, or else all."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def card_folders() -> dict[str, Path]:
    """The card folder of every checkpoint that this installation knows, with or without weights."""
    # In a checkout the cards lie beside src, in a wheel inside the package.
    checkout = _PACKAGE.parents[1]
    roots = [_PACKAGE / "model_cards"]
    if checkout / "src" / "genzoo" == _PACKAGE:
        roots.append(checkout / "model_cards")
    cards = [path for root in roots for path in sorted(root.glob("*")) if path.is_dir()]
    return {card.name: card for card in cards}


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a checkpoint: safetensors in it or in a component's folder."""
    return any(folder.glob("*.safetensors")) or any(folder.glob("*/*.safetensors"))


def locate(name: str) -> Path:
    """The folder of one of the zoo's checkpoints.

    Looked for in this order: `model_cards/NAME` of the repository, where genzoo runs from a
    checkout; the weights packaged in the wheel; the Hub, as `genzoo/NAME` (data only, never code),
    which stays in the cache.

    Args:
        name: Of a checkpoint, such as "selfmod-gan-fashion-mnist"; `genzoo list` shows them all.

    Raises:
        ValueError: If the zoo has no such checkpoint; the message names the closest.
        OSError: If its weights are not here and the Hub cannot be reached, or does not have them.
    """
    cards = card_folders()
    if name in cards and has_weights(cards[name]):
        return cards[name]
    if name not in cards and name not in (known := {*cards, *recipes()}):
        raise ValueError(f"there is no checkpoint {name!r}; {closest(name, known)}")
    try:
        folder = fetch(f"{NAMESPACE}/{name}", DATA_FILES)
    except OSError as error:
        raise OSError(f"the weights of {name} are not here, and {error}") from error
    if not has_weights(folder):
        raise OSError(
            f"the weights of {name} are neither here nor in {NAMESPACE}/{name} on the Hub"
        )
    return folder


def find_checkpoint(model: str | os.PathLike, **hub_options: Any) -> Path:
    """The folder of any checkpoint.

    Args:
        model: A folder, a Hub id with its owner ("owner/name"), or a name (see `locate`).
            As in every `from_pretrained`, a folder that is there comes first.
        hub_options: Those of `genzoo.downloads`, such as `revision` and `token`, for a Hub id.

    Raises:
        ValueError: If it is no folder, no Hub id, and no name of the zoo.
        OSError: If the folder holds no weights, or the Hub does not give them.
    """
    text = os.fspath(model)
    if (folder := folder_of(text)) is not None:
        if not has_weights(folder):
            raise OSError(f"{model} holds no checkpoint: there is no .safetensors file in it")
        return folder
    return fetch(text, DATA_FILES, **hub_options) if "/" in text else locate(text)


def folder_of(model: str) -> Path | None:
    """The folder here that `model` means, if it means one.

    A run that was begun in ./NAME does not hide the checkpoint NAME that it starts from.

    Raises:
        OSError: If it can only mean a folder, and there is none.
    """
    is_hidden = is_folder(model) and model in card_folders() and not has_weights(Path(model))
    return Path(model) if is_folder(model) and not is_hidden else None


def is_folder(model: str | os.PathLike) -> bool:
    """Whether `model` means a folder.

    Raises:
        OSError: If it can only mean a folder, and there is none.
    """
    text = os.fspath(model)
    if os.path.isdir(text):
        return True
    if (
        os.path.isabs(text)
        or text.startswith((".", "~"))
        or text.count("/") > 1
        or text.endswith("/")
    ):
        raise OSError(f"there is no folder {text}")
    return False


def tasks_of(folder: Path) -> list[str]:
    """What the pipeline in a checkpoint folder does, the most telling task first.

    Returns:
        Tasks of the zoo; none where the folder holds a model without a pipeline of the zoo.

    Raises:
        ValueError: If the folder holds a pipeline of someone else, or one that cannot be read.
    """
    class_name = _pipeline_class(folder)
    if class_name is None:
        return []
    config = read_json(folder / PIPELINES[class_name][1] / "config.json")
    # Without labels, a labelled model draws its classes at random.
    labelled = ["class-to-image"] if config.get("num_classes") else []
    others = [task for owner, task in SIBLINGS if owner == class_name]
    return [*labelled, "unconditional-image-generation", *others]


def _pipeline_class(folder: Path) -> str | None:
    """The class of the pipeline in a checkpoint folder, if it holds one."""
    index = folder / "model_index.json"
    if not index.is_file():
        return None
    # A flattened checkpoint names file and class, a plain one the class alone.
    class_name = read_json(index).get("_class_name")
    class_name = class_name[-1] if isinstance(class_name, list) else class_name
    if class_name not in PIPELINES:
        raise ValueError(
            f"{folder} holds a {class_name}, which is none of genzoo's pipelines "
            f"({', '.join(PIPELINES)}); DiffusionPipeline of diffusers may load it"
        )
    return class_name


def config_of(folder: Path) -> PreTrainedConfig | None:
    """The configuration of the checkpoint in a folder; of a pipeline, that of its main network.

    Returns:
        None where there is none: a card without a checkpoint.

    Raises:
        ValueError: As `tasks_of`.
    """
    class_name = _pipeline_class(folder)
    place = folder / PIPELINES[class_name][1] if class_name else folder
    if not (place / "config.json").is_file():
        return None
    return AutoConfig.from_pretrained(place, trust_remote_code=False)


def describe(config: PreTrainedConfig) -> tuple[str, int | None]:
    """The task of a checkpoint, and the parameters of the network that is published.

    Args:
        config: Of a checkpoint, or of a recipe. Where an architecture has several heads, the former
            names its own (`architectures`), and the latter means the first of `HEADS`.

    Returns:
        None for the parameters where the corpus decides about them: the config of a recipe whose
        vocabulary is still to be found has only the unknown word, and one more for its shape.
    """

    def is_published_as(auto_class: Any) -> bool:
        # Asking from_config and catching its error imports half of transformers for the message.
        network = auto_class._model_mapping.get(type(config), None)
        return network is not None and network.__name__ in (
            config.architectures or [network.__name__]
        )

    auto_class = next(filter(is_published_as, HEADS), AutoModel)
    if auto_class in HEADS and hasattr(config, "condition_size"):
        task = "conditional-text-generation"
    elif auto_class in HEADS:
        task = HEADS[auto_class]
    elif not hasattr(config, "image_size"):
        task = "feature-extraction"
    elif getattr(config, "num_classes", 0) > 0:
        task = "class-to-image"
    else:
        task = "unconditional-image-generation"
    if getattr(config, "vocab_size", math.inf) <= 2:
        return task, None
    with torch.device("meta"):  # nothing is filled in
        return task, auto_class.from_config(config).num_parameters()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError: If there is no such file.
        ValueError: If it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OSError(f"there is no {path}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def pipeline(task: str | None = None, model: Any = None, **kwargs: Any) -> Any:
    """A ready pipeline for a task, a model, or both: one door over diffusers and transformers.

        generate = genzoo.pipeline("class-to-image")
        generate = genzoo.pipeline(model="selfmod-gan-fashion-mnist")
        generate = genzoo.pipeline(model="my_run", device="cuda")

    | task | given to | model when none is named |
    | --- | --- | --- |
    | class-to-image | GANPipeline, EBMPipeline | selfmod-gan-fashion-mnist |
    | unconditional-image-generation | the same | dcgan-fashion-mnist |
    | image-inpainting | EBMInpaintPipeline | igebm-mnist |
    | conditional-text-generation | transformers.pipeline | conditional-bert-zh-sentiment |
    | any task of transformers | transformers.pipeline, genzoo's models registered | transformers' |

    Without a task, the checkpoint tells it: a model_index.json names its pipeline, a results.json
    the task of transformers; a Hub id without a pipeline goes to transformers, which reads the task
    from its page. A labelled model also does unconditional-image-generation, in classes drawn at
    random.

    Args:
        task: One of the tasks above.
        model: A folder, a Hub id with its owner, or a name of the zoo (a folder that is there comes
            first); for a task of transformers, also whatever transformers.pipeline takes.
        kwargs: For a task of the zoo, those of the pipeline's `from_pretrained` (`torch_dtype`,
            `revision`, `token`, `variant`, `cache_dir`, ...) and `device`, the place to move it to.
            For a task of transformers, those of `transformers.pipeline`.

    Returns:
        A pipeline of diffusers or of transformers.

    Raises:
        ValueError: If there is no such task or model (the message names the closest), if the model
            cannot do the task (the message names what it can), or if the task cannot be told.
        OSError: If the checkpoint is not there, or the Hub cannot be reached.
    """
    if task is None and model is None:
        raise ValueError(
            f"pipeline needs a task, a model or both; the zoo's tasks are {', '.join(TASKS)}"
        )
    if task is not None and task not in TASKS:
        _check_transformers_task(task)
    if model is None and task in TASKS:
        model = TASKS[task]
    image_tasks = TASKS.keys() - TEXT_PIPELINES.keys()

    if isinstance(model, str | os.PathLike):
        hub_id = None if is_folder(model) or "/" not in os.fspath(model) else os.fspath(model)
        if hub_id is None:
            model = folder = find_checkpoint(model)
        elif task is None or task in image_tasks:
            hub_options = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
            folder = fetch(hub_id, ["*.json"], **hub_options)
        else:
            folder = None  # transformers fetches what it needs
        if folder is not None:
            tasks = tasks_of(folder)
            if tasks and (task is None or task in tasks):
                return _load_own(folder, model, task, kwargs)
            if tasks:
                raise ValueError(f"{model} cannot do {task}; it can do {' and '.join(tasks)}")
            if task in TEXT_PIPELINES and not hasattr(config_of(folder), "condition_size"):
                raise ValueError(f"{model} cannot do {task}: it has no condition")
            if task in image_tasks:
                raise ValueError(
                    f"{model} cannot do {task}: it is a model without a pipeline of genzoo"
                )
            if task is None:
                results = folder / "results.json"
                task = read_json(results).get("task") if results.is_file() else None
                if task is None and hub_id is None:
                    raise ValueError(
                        f"{model} does not say what it does: pass a task of transformers"
                    )
                if task is not None and hub_id is not None:  # one of the zoo's
                    hub_options = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
                    model = fetch(hub_id, DATA_FILES, **hub_options)
            model = os.fspath(model)
    elif task in image_tasks:
        raise ValueError(
            f"for {task}, model is a folder, a Hub id or a name, got a {type(model).__name__}"
        )

    from transformers.pipelines import pipeline as transformers_pipeline

    if task in TEXT_PIPELINES:
        importlib.import_module(TEXT_PIPELINES[task])
    # Without this, transformers would ask whether to run a repository's code.
    kwargs.setdefault("trust_remote_code", False)
    # Its signature has one overload for each task.
    return transformers_pipeline(task, model=model, **kwargs)  # pyright: ignore


def _load_own(
    folder: Path, model: str | os.PathLike, task: str | None, kwargs: dict[str, Any]
) -> Any:
    class_name = _pipeline_class(folder)
    assert class_name is not None, "tasks_of found it"
    module = importlib.import_module(PIPELINES[class_name][0])
    pipeline_class = getattr(module, SIBLINGS.get((class_name, task or ""), class_name))
    kwargs = dict(kwargs)
    device = kwargs.pop("device", None)
    pipe = pipeline_class.from_pretrained(model, **kwargs)
    return pipe if device is None else pipe.to(device)


def _check_transformers_task(task: str) -> None:
    from transformers.pipelines import PIPELINE_REGISTRY

    known = [*TASKS, *PIPELINE_REGISTRY.get_supported_tasks()]
    if task not in known:
        raise ValueError(f"there is no task {task!r}; {closest(task, known)}")
