"""The command line: list, train, sample, evaluate, publish, demo."""

import argparse
import contextlib
import dataclasses
import inspect
import math
import os
import shutil
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.utils import logging

from . import cards, hub, loading
from .runtime import OtherRunError, update_results

# What a setting is called on the command line, where it is not called the same.
OPTIONS = {"feature_network": "features", "num_inference_steps": "steps"}

# What wrong input raises: one sentence is all that its user needs.
EXPECTED = (
    ValueError,
    OSError,
    FloatingPointError,
    ModuleNotFoundError,
    StrictDataclassError,
    SafetensorError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The words behind `genzoo`; those of the process unless given.

    Returns:
        The exit code: 0, 2 for wrong input (one line on stderr; the environment variable
        GENZOO_DEBUG=1 shows where it came from), 130 after Ctrl-C, 141 where nobody reads on.
    """
    logging.disable_progress_bar()  # transformers has one for each file; that of the work stays
    try:
        options = make_parser().parse_args(arguments)
        options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is still in the buffer must not be written when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except EXPECTED as error:
        if os.environ.get("GENZOO_DEBUG") == "1":
            raise
        if isinstance(
            error, StrictDataclassError
        ):  # it only names the validator; the cause says why
            error = error.__cause__ or error
        sys.stderr.write(f"genzoo: {' '.join(str(error).split()) or type(error).__name__}\n")
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"genzoo: {message} (see {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = _Parser(
        prog="genzoo", description="A zoo of generative and embedding models.", allow_abbrev=False
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(run: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        name = run.__name__.removesuffix("_command")
        added = commands.add_parser(name, help=summary, description=run.__doc__, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    command(list_command, "what the zoo has")
    command(demo_command, "sample from a shipped checkpoint, train and evaluate a small one")

    train = command(train_command, "train a checkpoint by its recipe")
    train.add_argument("name", metavar="NAME", help="a recipe; `genzoo list` shows them")
    train.add_argument(
        "--data",
        metavar="PATH_OR_ID",
        help="data in the place of the recipe's: a Hub id, a parquet mirror of one, or, "
        "for images, a folder of pictures, whose sub-folders are the classes",
    )
    train.add_argument(
        "--init", metavar="MODEL", help="a checkpoint to start from: folder, Hub id or name"
    )
    train.add_argument(
        "--output", metavar="DIR", help="where the checkpoint goes (default: outputs/NAME)"
    )
    train.add_argument("--resume", action="store_true", help="continue the run that is in DIR")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="settings",
        help="change the recipe (num_steps=20) or its model (model.latent_dim=64); repeatable",
    )
    train.add_argument(
        "--tracker",
        metavar="NAME",
        help="tensorboard, or another tracker of accelerate "
        "(default: JSON lines in DIR/run/log.jsonl)",
    )

    sample = command(sample_command, "write a picture of generated images")
    sample.add_argument("model", metavar="MODEL", help="folder, Hub id or name")
    sample.add_argument(
        "-n", "--num-images", type=int, default=64, metavar="N", help="how many (default: 64)"
    )
    sample.add_argument(
        "--out", default="grid.png", metavar="FILE", help="the picture (default: grid.png)"
    )
    sample.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="names or numbers, shared out evenly (default: a row for each)",
    )
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    sample.add_argument(
        "--truncation",
        type=float,
        metavar="T",
        help="cut latents off at plus and minus T (default: off)",
    )
    sample.add_argument(
        "--steps", type=int, metavar="N", help="of a chain of an energy (default: the checkpoint's)"
    )

    evaluate = command(
        evaluate_command,
        "measure a checkpoint, and write the numbers into its results.json and card",
    )
    evaluate.add_argument("folder", metavar="FOLDER", help="of a checkpoint")
    evaluate.add_argument("--data", metavar="PATH_OR_ID", help="data in the place of the recipe's")
    evaluate.add_argument(
        "--features", metavar="MODEL", help="the network to look through (default: the recipe's)"
    )
    evaluate.add_argument("--num-images", type=int, metavar="N", help="how many to generate")
    evaluate.add_argument("--seed", type=int, metavar="N")
    evaluate.add_argument(
        "--truncation", type=float, metavar="T", help="cut latents off at plus and minus T"
    )
    evaluate.add_argument(
        "--steps", type=int, metavar="N", help="of a chain of an energy (default: the checkpoint's)"
    )
    evaluate.add_argument("--split", metavar="SPLIT", help="of the data (default: test)")

    publish = command(publish_command, "put a checkpoint on the Hub, so that everybody can load it")
    publish.add_argument("name", metavar="NAME", nargs="?", help="a checkpoint, or a folder")
    publish.add_argument(
        "--to",
        required=True,
        metavar="OWNER",
        help="your name on the Hub, or an organization's; or a whole OWNER/NAME",
    )
    publish.add_argument(
        "--all",
        action="store_true",
        help="all checkpoints whose weights are here, and a collection that lists them",
    )
    publish.add_argument("--dry-run", action="store_true", help="do all but the upload")
    publish.add_argument("--private", action="store_true", help="for the owner's eyes only")
    publish.add_argument("--revision", metavar="BRANCH", help="(default: main)")
    return parser


def list_command(options: argparse.Namespace) -> None:
    """Shows the checkpoints: what they do, their size, one result, whether weights are here."""
    rows = [["name", "method", "task", "parameters", "result", "weights"]]
    folders = loading.card_folders()
    for name, recipe in sorted(loading.recipes().items()):
        card = folders.get(name)
        config = (loading.config_of(card) if card else None) or recipe().model
        task, num_parameters = loading.describe(config)
        rows.append(
            [
                name,
                type(config).__name__.removesuffix("Config"),
                task,
                "-" if num_parameters is None else f"{num_parameters:,}",
                (cards.headline(card) if card else None) or "-",
                "here" if card and loading.has_weights(card) else "-",
            ]
        )
    show_table(rows)


def train_command(options: argparse.Namespace) -> None:
    """Trains a checkpoint by its recipe and leaves a folder that from_pretrained opens."""
    recipe = loading.find_recipe(options.name)
    if options.init and any(setting.startswith("model.") for setting in options.settings):
        raise ValueError(
            "--init brings its own architecture, which --set model.FIELD cannot change"
        )
    settled = with_settings(recipe(), options.settings)
    start = options.init or getattr(settled, "base", None)
    folder = loading.room_of(recipe).train(
        settled,
        options.data,
        loading.find_checkpoint(start) if start else None,
        output_dir=Path(options.output or Path("outputs") / options.name),
        resume=options.resume,
        tracker=options.tracker,
    )
    if os.environ.get("RANK", "0") == "0":  # one of several processes speaks for all
        if (folder / "README.md").is_file():
            cards.render_card(folder)
        show(f"The checkpoint is in {folder.resolve()}")


def sample_command(options: argparse.Namespace) -> None:
    """Writes one picture of many images, with a row for each class of a labelled model."""
    pipe = loading.pipeline(model=options.model, device=fastest_device())
    if not hasattr(pipe, "grid"):
        raise ValueError(f"{options.model} makes no images; its task is {pipe.task}")
    labels = None
    if options.classes is not None:
        names = pipe.network.config.id2label.values()
        wanted = [
            int(word) if word.isdecimal() and word not in names else word
            for word in options.classes
        ]
        labels = [
            wanted[index * len(wanted) // options.num_images] for index in range(options.num_images)
        ]
    settings = {"truncation": options.truncation, "num_inference_steps": options.steps}
    settings = {name: value for name, value in settings.items() if value is not None}
    for name in settings:
        if name not in inspect.signature(type(pipe).__call__).parameters:
            raise ValueError(f"--{OPTIONS.get(name, name)} has no meaning for {options.model}")
    write_grid(
        pipe,
        Path(options.out),
        num_images=options.num_images,
        class_labels=labels,
        seed=options.seed,
        **settings,
    )


def evaluate_command(options: argparse.Namespace) -> None:
    """Measures a checkpoint and shows the numbers.

    They go into the folder's results.json, where they replace those that were measured in the same
    way, and into the card, where there is one.
    """
    rows = measure(
        Path(options.folder),
        data=options.data,
        features=options.features,
        split=options.split,
        num_images=options.num_images,
        seed=options.seed,
        truncation=options.truncation,
        num_inference_steps=options.steps,
    )
    show_measurements(rows)


def publish_command(options: argparse.Namespace) -> None:
    """Publishes a checkpoint: data, card and the code of its classes, in one commit.

    Nothing is uploaded before a process without genzoo has loaded it and put out the same, bit for
    bit. The token is that of `hf auth login`, or of the environment variable HF_TOKEN.
    """
    if (options.name is None) != options.all:
        raise ValueError("publish wants a NAME or --all")
    settings = {"private": options.private, "dry_run": options.dry_run}
    if options.all and options.revision:
        raise ValueError("--revision has no meaning for --all")
    if options.all:
        publications = hub.publish_all(options.to, **settings)
    else:
        publications = [
            hub.publish(options.name, options.to, revision=options.revision, **settings)
        ]
    for publication in publications:
        files = publication.files
        if options.dry_run:
            show(f"{publication.repository} would hold")
            show_table([[f"  {name}", f"{size:,} bytes"] for name, size in files.items()])
        else:
            change = "published" if publication.is_new else "unchanged"
            show(f"{publication.repository}: {change}, {len(files)} files, {publication.url}")
            for name in publication.deleted:
                show(f"  deleted {name}")


def demo_command(options: argparse.Namespace) -> None:
    """Draws from the shipped Fashion-MNIST GAN, trains the digits GAN and measures it, in ./demo.

    Run again, it goes on from where it was stopped.
    """
    folder = Path("demo")
    shipped = loading.locate("selfmod-gan-fashion-mnist")
    show(f"1. Samples from {shipped}")
    write_grid(
        loading.pipeline(model=shipped, device=fastest_device()), folder / "fashion-mnist.png"
    )

    name = "selfmod-gan-digits"
    recipe = loading.find_recipe(name)
    train = loading.room_of(recipe).train
    show(f"2. Training of {name}, {recipe().num_steps:,} steps")
    try:
        train(recipe(), output_dir=folder / name, resume=True)
    except OtherRunError:  # what is there was begun by another version of the recipe
        shutil.rmtree(folder / name)
        train(recipe(), output_dir=folder / name)
    write_grid(
        loading.pipeline(model=folder / name, device=fastest_device()), folder / "digits.png"
    )

    show(f"3. Evaluation of {folder / name}")
    show_measurements(measure(folder / name))


def measure(
    folder: Path, *, data: str | None = None, features: str | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """Has a checkpoint evaluated by its room, and keeps the numbers in results.json and the card.

    Args:
        folder: Of the checkpoint.
        data: In the place of those that the room measures with.
        features: The network to look through, in the place of the one that the recipe names.
        settings: What else the room's `evaluate` takes; what is None keeps its default.

    Returns:
        The rows that were measured, as they are in results.json.

    Raises:
        OSError: If the folder does not say what made it, or data or networks are not there.
        ValueError: If the room's `evaluate` takes no such setting, or something does not fit.
    """
    if not folder.is_dir():
        raise OSError(f"there is no folder {folder}")
    results = loading.read_json(folder / "results.json")
    recipe = loading.find_recipe(results.get("recipe", ""))
    evaluate = loading.room_of(recipe).evaluate
    asked = recipe()
    network = features or getattr(asked, "feature_network", None)
    if network is not None:
        is_folder = network != "inception"
        settings["feature_network"] = loading.find_checkpoint(network) if is_folder else network
    if getattr(asked, "companion", None) is not None:
        settings["companion"] = loading.find_checkpoint(asked.companion)
    settings = {name: value for name, value in settings.items() if value is not None}
    wanted = inspect.signature(evaluate).parameters
    for name in settings:
        if name not in wanted:
            option = OPTIONS.get(name, name).replace("_", "-")
            raise ValueError(f"--{option} has no meaning in the evaluation of {results['recipe']}")

    if "recipe" in wanted:
        settings["recipe"] = asked
    rows = evaluate(folder, data, **settings)
    kept = {measured_as(row): row for row in results.get("evaluation", [])}
    kept |= {measured_as(row): row for row in rows}
    update_results(folder, evaluation=list(kept.values()))
    if (folder / "README.md").is_file():
        cards.render_card(folder)
    return rows


def measured_as(row: dict[str, Any]) -> tuple:
    """What two rows of results.json share where the newer replaces the older."""
    settings = (
        "metric",
        "dataset",
        "split",
        "num_generated",
        "feature_network",
        "truncation",
        "num_inference_steps",
        "chain_start",
        "num_repeats",
        "judge",
        "guidance_scale",
        "seed",
        "reference",
    )
    return tuple(row.get(name) for name in settings)


def with_settings(recipe: Any, settings: Sequence[str]) -> Any:
    """A recipe with other values in some of its fields, or of its model's.

    Values are read as the field's annotation wants them: numbers, true and false, words, `none`
    where it is allowed, lists as 1,2,3. What a config derives from its other fields is derived
    again.

    Args:
        recipe: Any dataclass; a field that is one itself has its fields behind a dot.
        settings: Such as "num_steps=20" or "model.latent_dim=64"; the last one for a field counts.

    Raises:
        ValueError: If there is no such field (the message names the nearest), or a value is not
            what the field wants.
    """
    values = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set wants FIELD=VALUE, got {setting!r}")
        values[field.strip()] = text.strip()
    return _replace(recipe, values, prefix="")


def _replace(instance: Any, values: dict[str, str], prefix: str) -> Any:
    hints = get_type_hints(
        type(instance), localns={"torch": torch}
    )  # transformers imports it for checkers only
    names = [field.name for field in dataclasses.fields(instance)]
    changed: dict[str, Any] = {}
    inner: dict[str, dict[str, str]] = {}
    for path, text in values.items():
        name, dot, rest = path.partition(".")
        if name not in names:
            raise ValueError(
                f"--set {prefix}{path}: {type(instance).__name__} has no field {name!r}; "
                f"{loading.closest(name, names)}"
            )
        has_fields = dataclasses.is_dataclass(getattr(instance, name))
        if dot and has_fields:
            inner.setdefault(name, {})[rest] = text
        elif dot:
            raise ValueError(f"--set {prefix}{path}: {prefix}{name} has no fields of its own")
        elif has_fields:
            raise ValueError(
                f"--set {prefix}{name}: set its fields one by one, as in {prefix}{name}.FIELD=VALUE"
            )
        else:
            try:
                changed[name] = parse_value(text, hints[name])
            except (ValueError, TypeError) as error:
                raise ValueError(f"--set {prefix}{name}: {error}") from error
    for name, texts in inner.items():
        changed[name] = _replace(getattr(instance, name), texts, f"{prefix}{name}.")
    if isinstance(instance, PreTrainedConfig):
        return type(instance)(**explicit_fields(instance) | changed)
    return dataclasses.replace(instance, **changed)


def explicit_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that make a config: the fewest from which its class derives the others again."""
    kind, whole = type(config), config.to_dict()
    needed = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name in list(needed):
        fewer = {key: value for key, value in needed.items() if key != name}
        try:
            if kind(**fewer).to_dict() == whole:
                needed = fewer
        except (ValueError, StrictDataclassError):
            continue  # the others make no config without it
    return needed


def parse_value(text: str, hint: Any) -> Any:
    """A word of the command line as a value of a type.

    Args:
        text: The word.
        hint: An annotation: bool, int, float, str, a Literal, or a list, tuple or union of them.

    Raises:
        ValueError: If the word is no such value.
        TypeError: If no word can be one.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = [argument for argument in arguments if argument is not types.NoneType]
        if types.NoneType in arguments and text.lower() == "none":
            return None
        for kind in kinds[:-1]:
            with contextlib.suppress(ValueError, TypeError):
                return parse_value(text, kind)
        return parse_value(text, kinds[-1])
    try:
        if hint is str:
            return text
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        if hint is int:
            return int(text)
        if hint is float and math.isfinite(number := float(text)):
            return number
        if origin is Literal:
            return {str(argument): argument for argument in arguments}[text]
        if origin in (list, tuple):
            items = [item.strip() for item in text.strip("[]()").split(",") if item.strip()]
            is_uniform = origin is list or arguments[-1] is Ellipsis
            kinds = [arguments[0]] * len(items) if is_uniform else arguments
            pairs = zip(items, kinds, strict=True)
            return origin(parse_value(item, kind) for item, kind in pairs)
    except (KeyError, ValueError) as error:
        name = hint.__name__ if origin is None else str(hint).replace("typing.", "")
        raise ValueError(f"wanted {name}, got {text!r}") from error
    if hint is float:
        raise ValueError(f"wanted a finite float, got {text!r}")
    raise TypeError("this is set in Python, by a recipe of your own, not from the command line")


def fastest_device() -> str:
    """Where to generate."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def write_grid(
    pipe: Any, path: Path, *, num_images: int = 64, seed: int = 0, **settings: Any
) -> None:
    """Writes a picture of generated images and says where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    pipe.grid(num_images=num_images, generator=generator, **settings).save(path)
    show(f"The picture is {path.resolve()}")


def show_measurements(rows: Iterable[dict[str, Any]]) -> None:
    """Shows rows of results.json."""
    show_table(cards.results_table(rows))


def show_table(rows: Sequence[Sequence[str]]) -> None:
    """Shows rows in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        show("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show(line: str) -> None:
    """Writes a result to stdout, at once: progress bars and warnings go to stderr."""
    encoding = sys.stdout.encoding or "utf-8"  # which may lack an arrow
    sys.stdout.write(line.encode(encoding, "replace").decode(encoding) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
