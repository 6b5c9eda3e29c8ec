"""Cards: what a checkpoint folder shows to its readers and to the Hub.

A card is written by hand where it is prose. Its numbers come from `results.json` in the same
folder, which training and evaluation write (`model_cards/results.schema.json` says what is in it),
and `render_card` carries them over.
"""

import json
import math
import re
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)
from huggingface_hub.utils import yaml_dump

from .loading import has_weights, read_json, recipes
from .runtime import write_atomically

NOT_TRAINED = "Not trained yet: recipe only."
NOT_RECORDED = "There is no record of the training."
NOT_EVALUATED = "Trained, but not evaluated yet."

# Task of the zoo -> the one under which the Hub lists it.
HUB_TASKS = {"class-to-image": "unconditional-image-generation"}

# Name of a metric in results.json -> name for a reader, direction of better.
METRICS = {
    "fid": ("FID", "↓"),
    "kid": ("KID", "↓"),
    "inception_score": ("Inception-style score", "↑"),
    "precision": ("Precision", "↑"),
    "recall": ("Recall", "↑"),
    "class_accuracy": ("Class accuracy", "↑"),
    "accuracy": ("Accuracy", "↑"),
}


@dataclass(kw_only=True)
class _Training:
    command: str
    dataset: str
    split: str
    num_steps: int
    num_images: int
    batch_size: int
    seed: int
    num_processes: int
    seconds: float
    hardware: str
    versions: dict[str, str]
    init: dict[str, Any] | None = None  # how the checkpoint was trained that this began from


@dataclass(kw_only=True)
class _Measurement:
    metric: str
    value: float
    std: float | None
    dataset: str
    split: str
    num_real: int | None
    num_generated: int | None
    feature_network: str | None
    feature_network_sha256: str | None
    truncation: float | None
    seed: int
    command: str
    hardware: str
    seconds: float
    versions: dict[str, str]
    reference: bool


def render_card(folder: str | Path) -> list[Path]:
    """Carries the numbers of `results.json` over into a card; doing it again changes nothing.

    Three things are written, and nothing else is touched:

    - in `README.md`, what stands between `<!-- results -->` and `<!-- /results -->`, and between
      `<!-- training -->` and `<!-- /training -->`; a folder without weights says there that it has
      none;
    - in its front matter, `model-index`, the older form in which the Hub takes results; the other
      keys keep their values and order, though not YAML comments;
    - `.eval_results/*.yaml`, the newer form, one file for each data set that the front matter lists
      in `datasets`, since those are on the Hub. Other YAML files in there are removed.

    Rows marked as reference (numbers about real data) are in the table and not in the two forms for
    the Hub.

    Args:
        folder: A checkpoint folder: a `README.md` and, once it is trained, a `results.json`.

    Returns:
        The files that changed.

    Raises:
        FileNotFoundError: If there is no `README.md`.
        ValueError: If the card lacks a marker or its front matter, or if `results.json` lacks a
            field or has an unknown one; the sentence names it.
    """
    folder = Path(folder)
    readme = folder / "README.md"
    if not readme.is_file():
        raise FileNotFoundError(
            f"{folder} has no README.md: write the card, its numbers will be filled in"
        )
    results = _load_results(folder / "results.json")
    training, measurements = results["training"], results["evaluation"]
    measured = [row for row in measurements if not row.reference]

    if not readme.read_text(encoding="utf-8").startswith("---\n"):
        raise ValueError(
            f"{readme} does not begin with front matter (YAML between two lines of ---)"
        )
    # A model-index that cannot be read is no loss: it is about to be written anew.
    card = ModelCard.load(readme, ignore_metadata_errors=True)
    data = cast(ModelCardData, card.data)
    unknown = NOT_RECORDED if has_weights(folder) else NOT_TRAINED
    results_block = _results_block(measurements) or (NOT_EVALUATED if training else unknown)
    training_block = _training_block(training) if training else unknown
    card.text = _fill(card.text, "results", results_block, readme)
    card.text = _fill(card.text, "training", training_block, readme)
    task = data.pipeline_tag or results["task"]
    data.model_name = results["name"] if measured else None
    data.eval_results = [_model_index_entry(row, task) for row in measured] or None

    contents = {readme: str(card)}
    eval_results = folder / ".eval_results"
    datasets = data.datasets or []
    for dataset in [datasets] if isinstance(datasets, str) else datasets:
        if entries := [_eval_result_entry(row) for row in measured if row.dataset == dataset]:
            path = eval_results / f"{dataset.replace('/', '--')}.yaml"
            contents[path] = yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False)

    changed = [path for path in sorted(eval_results.glob("*.yaml")) if path not in contents]
    for path in changed:
        path.unlink()
    for path, content in contents.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            write_atomically(path, content.encode())
            changed.append(path)
    return changed


def complete_card(folder: Path, repository: str, models: dict[str, str]) -> None:
    """Makes a checkpoint's card that of its repository on the Hub.

    Links to other cards of the zoo become links to repositories of the same owner, the tag `genzoo`
    is added, and what stands between `<!-- from-the-hub -->` and `<!-- /from-the-hub -->` says how
    to load it. What a card lacks of front matter and places for the numbers, or the whole card, is
    added.

    Args:
        folder: The checkpoint, as it will lie on the Hub.
        repository: Its id there.
        models: Folder of each model in it ("" for the root) -> name of its Auto class.

    Raises:
        ValueError: As `render_card`.
    """
    readme, (owner, _, name) = folder / "README.md", repository.partition("/")
    text = readme.read_text(encoding="utf-8") if readme.is_file() else f"# {name}\n"
    if not text.startswith("---\n"):
        text = f"---\n{_plain_front_matter(folder)}---\n\n{text}"
    for block in ("from-the-hub", "results", "training"):
        if f"<!-- {block} -->" not in text:
            title = "" if block == "from-the-hub" else f"## {block.capitalize()}\n\n"
            text = f"{text.rstrip()}\n\n{title}<!-- {block} -->\n<!-- /{block} -->\n"
    text = re.sub(
        r"\]\(\.\./([\w.-]+)/README\.md\)", rf"](https://huggingface.co/{owner}/\1)", text
    )
    readme.write_text(text, encoding="utf-8", newline="\n")

    render_card(folder)
    card = ModelCard.load(readme)
    tags = cast(ModelCardData, card.data).tags or []
    cast(ModelCardData, card.data).tags = tags if "genzoo" in tags else [*tags, "genzoo"]
    block = _from_the_hub_block(repository, models)
    card.text = _fill(card.text, "from-the-hub", block, readme)
    readme.write_text(str(card), encoding="utf-8", newline="\n")


def _plain_front_matter(folder: Path) -> str:
    """What is known of a checkpoint whose card does not say it."""
    results = _load_results(folder / "results.json")
    training, task = results["training"], results["task"]
    matter: dict[str, Any] = {
        "library_name": "diffusers" if (folder / "model_index.json").is_file() else "transformers"
    }
    if task:
        matter["pipeline_tag"] = HUB_TASKS.get(task, task)
    # The recipe's own data are on the Hub, unless a library brings them along.
    recipe = recipes().get(results.get("recipe", ""))
    data = recipe().data if recipe else ""
    if training and training.dataset == data and not data.startswith("sklearn/"):
        matter["datasets"] = [data]
    return yaml_dump(matter, sort_keys=False)


def _from_the_hub_block(repository: str, models: dict[str, str]) -> str:
    """How to load a checkpoint, with genzoo and with the code that lies beside it."""
    lines = [
        "## From the Hub",
        "",
        "```python",
        "import genzoo",
        "",
        f'pipe = genzoo.pipeline(model="{repository}")',
        "```",
        "",
        "Without genzoo, the code beside the weights is used, in one file for each model.",
        "`trust_remote_code=True` runs it: read it first, and pin the `revision` that you read.",
        "",
        "```python",
    ]
    if "" not in models:
        lines += [
            "from diffusers import DiffusionPipeline",
            "",
            f'pipe = DiffusionPipeline.from_pretrained("{repository}", trust_remote_code=True)',
        ]
    else:
        lines += [
            f"from transformers import {models['']}",
            "",
            f'model = {models[""]}.from_pretrained("{repository}", trust_remote_code=True)',
        ]
    lines += ["```"]
    parts = {place: name for place, name in models.items() if place}
    if parts:
        lines += ["", "The networks alone:", "", "```python"]
        lines += [f"from transformers import {', '.join(sorted(set(parts.values())))}", ""]
        for place, name in parts.items():
            lines += [
                f"{place} = {name}.from_pretrained(",
                f'    "{repository}", subfolder="{place}", trust_remote_code=True',
                ")",
            ]
        lines += ["```"]
    return "\n".join(lines)


def headline(folder: Path) -> str | None:
    """The first number in a card folder's results.json that is about the model."""
    if not (folder / "results.json").is_file():
        return None
    rows = read_json(folder / "results.json").get("evaluation", [])
    first = next((row for row in rows if not row["reference"]), None)
    return first and f"{metric_name(first)} {first['value']:.4g}"


def metric_name(row: dict[str, Any]) -> str:
    """A metric's name for readers."""
    return METRICS.get(row["metric"], (row["metric"],))[0]


def _load_results(path: Path) -> dict[str, Any]:
    """The file with its records checked; no training is None, no evaluation an empty list."""
    if not path.is_file():
        return {"name": None, "task": None, "training": None, "evaluation": []}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    for key in ("name", "recipe", "task"):
        if key not in results:
            raise ValueError(f"{path} has no field {key!r}")
    training = results.get("training")
    return results | {
        "training": training and _record(_Training, training, f"{path}: training"),
        "evaluation": [
            _record(_Measurement, row, f"{path}: evaluation[{index}]")
            for index, row in enumerate(results.get("evaluation", []))
        ],
    }


_Record = TypeVar("_Record", _Training, _Measurement)


def _record(kind: type[_Record], values: dict[str, Any], place: str) -> _Record:
    names = [field.name for field in fields(kind)]
    wanted = [field.name for field in fields(kind) if field.default is MISSING]
    if missing := [name for name in wanted if name not in values]:
        raise ValueError(f"{place} has no field {missing[0]!r}")
    if unknown := [name for name in values if name not in names]:
        raise ValueError(
            f"{place} has the unknown field {unknown[0]!r}; the fields are {', '.join(names)}"
        )
    if not math.isfinite(values.get("value", 0)):
        raise ValueError(f"{place}: value is {values['value']}, which is not a result")
    return kind(**values)


def _fill(text: str, block: str, content: str, readme: Path) -> str:
    filled, count = re.subn(
        rf"(<!-- {block} -->).*?(<!-- /{block} -->)",
        lambda match: f"{match[1]}\n\n{content}\n\n{match[2]}",
        text,
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError(
            f"{readme} needs `<!-- {block} -->` and `<!-- /{block} -->` once each, found {count}"
        )
    return filled


def _results_block(measurements: list[_Measurement]) -> str:
    if not measurements:
        return ""
    lines = [
        "| metric | value | data | real / generated images | feature network | truncation | seed |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in measurements:
        name, direction = METRICS.get(row.metric, (_readable(row.metric), ""))
        label = f"{name} {direction}".strip() + (
            " (reference: real images)" if row.reference else ""
        )
        value = _rounded(row.value, row.std) + (
            "" if row.std is None else f" ± {_rounded(row.std, row.std)}"
        )
        counts = " / ".join(
            "-" if n is None else f"{n:,}" for n in (row.num_real, row.num_generated)
        )
        truncation = "off" if row.truncation is None else f"{row.truncation:g}"
        cells = (
            label,
            value,
            f"{row.dataset}, {row.split}",
            counts,
            _judge(row),
            truncation,
            str(row.seed),
        )
        lines.append(f"| {' | '.join(cells)} |")

    lines += ["", "Measured with", "", "```bash"]
    lines += dict.fromkeys(row.command for row in measurements)
    setups = dict.fromkeys(f"{row.hardware}; {_versions(row.versions)}" for row in measurements)
    lines += ["```", "", f"on {' and on '.join(setups)}."]
    return "\n".join(lines)


def _training_block(training: _Training) -> str:
    before = []
    if training.init is not None:
        start = _record(_Training, training.init, "training.init")
        before = [_training_block(start), "", "and from there", ""]
    processes = (
        "1 process" if training.num_processes == 1 else f"{training.num_processes} processes"
    )
    return "\n".join(
        [
            *before,
            "```bash",
            training.command,
            "```",
            "",
            f"- data: {training.dataset}, {training.split}",
            f"- length: {training.num_steps:,} steps, {training.num_images:,} images "
            f"in batches of {training.batch_size}",
            f"- seed: {training.seed}",
            f"- hardware: {training.hardware}, {processes}",
            f"- time: {_duration(training.seconds)}",
            f"- versions: {_versions(training.versions)}",
        ]
    )


def _model_index_entry(row: _Measurement, task: str) -> EvalResult:
    conditions = {
        "std": None if row.std is None else float(_rounded(row.std, row.std)),
        "num_real": row.num_real,
        "num_generated": row.num_generated,
        "feature_network": row.feature_network,
        "feature_network_sha256": row.feature_network_sha256,
        "truncation": row.truncation,
        "seed": row.seed,
    }
    return EvalResult(
        task_type=task,
        dataset_type=row.dataset,
        dataset_name=row.dataset.split("/")[-1],
        dataset_split=row.split,
        metric_type=row.metric,
        metric_name=METRICS.get(row.metric, (_readable(row.metric),))[0],
        metric_value=float(_rounded(row.value, row.std)),
        metric_args={key: value for key, value in conditions.items() if value is not None},
    )


def _eval_result_entry(row: _Measurement) -> EvalResultEntry:
    notes = [f"{row.split} split"]
    if row.num_real is not None:
        notes.append(f"{row.num_real} real images")
    if row.num_generated is not None:
        notes.append(f"{row.num_generated} generated images")
    if row.feature_network is not None:
        notes.append(f"feature network {_judge(row)}")
    if row.std is not None:
        notes.append(f"standard deviation {_rounded(row.std, row.std)}")
    notes.append("truncation off" if row.truncation is None else f"truncation {row.truncation:g}")
    notes.append(f"seed {row.seed}")
    return EvalResultEntry(
        dataset_id=row.dataset,
        task_id=row.metric,
        value=float(_rounded(row.value, row.std)),
        notes=", ".join(notes),
    )


def _judge(row: _Measurement) -> str:
    if row.feature_network is None:
        return "-"
    return f"{row.feature_network} ({(row.feature_network_sha256 or 'no sha256')[:12]})"


def _readable(metric: str) -> str:
    return metric.replace("_", " ").capitalize()


def _rounded(value: float, std: float | None) -> str:
    """To the second digit of the standard deviation; to four digits where none is known."""
    scale, digits = (std, 2) if std else (value, 4)
    decimals = digits - 1 - math.floor(math.log10(abs(scale))) if scale else 0
    return f"{value:.{max(decimals, 0)}f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())
