"""Cards: what a checkpoint folder shows to its readers and to the Hub.

A card is written by hand where it is prose. Its numbers come from `results.json` in the same
folder, which training and evaluation write (`model_cards/results.schema.json` says what is in it),
and `render_card` carries them over.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from statistics import fmean, stdev
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
NOT_COMPARED = "Not measured yet."

# Task of the zoo -> the one under which the Hub lists it.
HUB_TASKS = {
    "class-to-image": "unconditional-image-generation",
    "conditional-text-generation": "text-generation",
}

# Name of a metric in results.json -> name for a reader, direction of better.
METRICS = {
    "fid": ("FID", "↓"),
    "kid": ("KID", "↓"),
    "inception_score": ("Inception-style score", "↑"),
    "precision": ("Precision", "↑"),
    "recall": ("Recall", "↑"),
    "class_accuracy": ("Class accuracy", "↑"),
    "accuracy": ("Accuracy", "↑"),
    "energy_accuracy": ("Accuracy of the lowest energy", "↑"),
    "auroc": ("AUROC of the energy, the second data set against the first", "↑"),
    "auroc_noise": ("AUROC of the energy, uniform noise against the data", "↑"),
    "inpainting_mse": ("Squared error in missing pixels", "↓"),
    "inpainting_advantage": ("Squared error less than the nearest image's", "↑"),
    "inpainting_mse_of_any": ("Squared error of the nearest image of any class", "↓"),
    "inpainting_mse_of_mean": ("Squared error of the class's mean image", "↓"),
    "inpainting_accuracy": ("Class accuracy of completions", "↑"),
    "both_accuracy": ("Digit and color both right", "↑"),
    "digit_accuracy": ("Digit right", "↑"),
    "color_accuracy": ("Color right", "↑"),
    "log_likelihood_lower": ("Log-likelihood, lower bound", "↑"),
    "log_likelihood_upper": ("Log-likelihood, upper bound", "↑"),
    "spearman": ("Spearman", "↑"),
    "analogy_accuracy": ("Analogy accuracy", "↑"),
    "knn_f1_macro": ("k-NN F1, macro", "↑"),
    "knn_f1_micro": ("k-NN F1, micro", "↑"),
    "kmeans_nmi": ("k-means NMI", "↑"),
    "kmeans_ari": ("k-means ARI", "↑"),
    "kmeans_purity": ("k-means purity", "↑"),
    "kmeans_mi": ("k-means MI", "↑"),
    "skmeans_nmi": ("Spherical k-means NMI", "↑"),
    "skmeans_ari": ("Spherical k-means ARI", "↑"),
    "skmeans_purity": ("Spherical k-means purity", "↑"),
    "skmeans_mi": ("Spherical k-means MI", "↑"),
    "perplexity": ("Perplexity", "↓"),
    "perplexity_unconditioned": ("Perplexity without the condition", "↓"),
    "masked_accuracy": ("Accuracy on hidden words", "↑"),
    "masked_perplexity": ("Perplexity of hidden words", "↓"),
    "distinct_1": ("Distinct-1", "↑"),
    "distinct_2": ("Distinct-2", "↑"),
    "distinct_3": ("Distinct-3", "↑"),
    "self_bleu": ("Self-BLEU", "↓"),
    "bleu": ("BLEU", "↑"),
    "rouge_1": ("ROUGE-1", "↑"),
    "rouge_2": ("ROUGE-2", "↑"),
    "rouge_l": ("ROUGE-L", "↑"),
    "equal_length": ("Answers as long as the reference", "↑"),
    "words_per_cpu_second": ("Words per CPU second", "↑"),
}


# The records of results.json. Its fields tell which subclass a record is of (see `_record`).


@dataclass(kw_only=True)
class _Training:
    command: str
    dataset: str
    split: str
    seed: int
    num_processes: int
    seconds: float
    hardware: str
    versions: dict[str, str]
    init: dict[str, Any] | None = None  # how the checkpoint was trained that this began from


@dataclass(kw_only=True)
class _ImageTraining(_Training):
    num_steps: int
    num_images: int
    batch_size: int

    @property
    def length(self) -> str:
        images = f"{self.num_images:,} images in batches of {self.batch_size}"
        return f"{self.num_steps:,} steps, {images}"


@dataclass(kw_only=True)
class _TextTraining(_Training):
    num_epochs: int
    num_words: int

    @property
    def length(self) -> str:
        epochs = "1 epoch" if self.num_epochs == 1 else f"{self.num_epochs:,} epochs"
        return f"{epochs}, {self.num_words:,} words"


@dataclass(kw_only=True)
class _BatchTraining(_Training):
    num_steps: int
    num_texts: int
    batch_size: int

    @property
    def length(self) -> str:
        texts = f"{self.num_texts:,} texts in batches of {self.batch_size}"
        return f"{self.num_steps:,} steps, {texts}"


@dataclass(kw_only=True)
class _Measurement:
    metric: str
    value: float
    std: float | None
    dataset: str
    split: str
    num_items: int | None = None
    coverage: float | None = None
    num_repeats: int | None = None
    judge: str | None = None
    guidance_scale: float | None = None
    seed: int
    command: str
    hardware: str
    seconds: float
    versions: dict[str, str]
    reference: bool


@dataclass(kw_only=True)
class _ImageMeasurement(_Measurement):
    num_real: int | None
    num_generated: int | None
    feature_network: str | None
    feature_network_sha256: str | None
    truncation: float | None
    num_inference_steps: int | None = None
    chain_start: str | None = None


@dataclass(kw_only=True)
class _Comparison:
    title: str
    about: str
    metrics: list[str]
    rows: list[Any]  # of _Compared
    hardware: str
    versions: dict[str, str]
    dataset: str
    split: str


@dataclass(kw_only=True)
class _Compared:
    name: str
    settings: dict[str, Any]
    values: dict[str, list[float]]
    seconds: list[float] | None = None
    command: str


def render_card(folder: str | Path) -> list[Path]:
    """Carries the numbers of `results.json` over into a card; doing it again changes nothing.

    Three things are written, and nothing else is touched:

    - in `README.md`, what stands between `<!-- results -->` and `<!-- /results -->`, between
      `<!-- training -->` and `<!-- /training -->`, and, in a card that has it, between
      `<!-- comparison -->` and `<!-- /comparison -->`; a folder without weights says in the first
      two that it has none;
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
    if "<!-- comparison -->" in card.text:
        tables = map(_comparison_block, results["comparison"])
        comparison_block = "\n\n".join(tables) or NOT_COMPARED
        card.text = _fill(card.text, "comparison", comparison_block, readme)
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
    block = _from_the_hub_block(
        repository,
        models,
        has_tokenizer=(folder / "tokenizer.json").is_file(),
        has_code=any(folder.glob("*.py")),
    )
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
    recipe = recipes().get(results.get("recipe", ""))
    data = names_of(recipe().data) if recipe else []
    if training and training.dataset == " + ".join(data) and on_the_hub(data):
        matter["datasets"] = on_the_hub(data)
    return yaml_dump(matter, sort_keys=False)


def names_of(data: str | Sequence[str]) -> list[str]:
    """The data sets of a recipe, which has one or several."""
    return [data] if isinstance(data, str) else list(data)


def on_the_hub(data: Iterable[str]) -> list[str]:
    """Those data sets that somebody on the Hub has: what a library brings along has no owner."""
    return [name for name in data if "/" in name and not name.startswith("sklearn/")]


def _from_the_hub_block(
    repository: str, models: dict[str, str], *, has_tokenizer: bool, has_code: bool
) -> str:
    """How to load a checkpoint, with genzoo and without."""
    lines = [
        "## From the Hub",
        "",
        "```python",
        "import genzoo",
        "",
        f'pipe = genzoo.pipeline(model="{repository}")',
        "```",
        "",
    ]
    if has_code:
        lines += [
            "Without genzoo, the code beside the weights is used, in one file for each model.",
            "`trust_remote_code=True` runs it: read it first, and pin the `revision` "
            "that you read.",
        ]
    else:
        lines += ["Without genzoo, transformers alone loads it: the model is one of its own."]
    lines += ["", "```python"]
    if "" not in models:
        lines += [
            "from diffusers import DiffusionPipeline",
            "",
            f'pipe = DiffusionPipeline.from_pretrained("{repository}", trust_remote_code=True)',
        ]
    else:
        classes = [models[""], "AutoTokenizer"] if has_tokenizer else [models[""]]
        lines += [f"from transformers import {', '.join(classes)}", ""]
        trust = ", trust_remote_code=True" if has_code else ""
        trusting = f'from_pretrained("{repository}"{trust})'
        if has_tokenizer:  # it needs no code, but AutoTokenizer reads the model's config
            lines += [f"tokenizer = AutoTokenizer.{trusting}"]
        lines += [f"model = {models['']}.{trusting}"]
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
    return first and f"{_named(first['metric'])[0]} {first['value']:.4g}"


def _load_results(path: Path) -> dict[str, Any]:
    """The file with its records checked; no training is None, no other record an empty list."""
    if not path.is_file():
        return {"name": None, "task": None, "training": None, "evaluation": [], "comparison": []}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    for key in ("name", "recipe", "task"):
        if key not in results:
            raise ValueError(f"{path} has no field {key!r}")
    training = results.get("training")
    return results | {
        "training": training and _training(training, f"{path}: training"),
        "evaluation": [
            _measurement(row, f"{path}: evaluation[{index}]")
            for index, row in enumerate(results.get("evaluation", []))
        ],
        "comparison": [
            _comparison(table, f"{path}: comparison[{index}]")
            for index, table in enumerate(results.get("comparison", []))
        ],
    }


def _training(values: dict[str, Any], place: str) -> Any:
    return _record(values, place, _ImageTraining, _TextTraining, _BatchTraining)


def _measurement(values: dict[str, Any], place: str) -> _Measurement:
    row = _record(values, place, _Measurement, _ImageMeasurement)
    if not math.isfinite(row.value):
        raise ValueError(f"{place}: value is {row.value}, which is not a result")
    return row


def _comparison(values: dict[str, Any], place: str) -> _Comparison:
    table = _record(values, place, _Comparison)
    rows = [
        _record(row, f"{place}.rows[{index}]", _Compared) for index, row in enumerate(table.rows)
    ]
    if not all(row.values for row in rows) or not rows:
        raise ValueError(f"{place} has nothing to compare in one of its rows, or no rows")
    for index, row in enumerate(rows):
        for metric, numbers in row.values.items():
            where = f"{place}.rows[{index}].values[{metric!r}]"
            if metric not in table.metrics:
                raise ValueError(f"{where} is of none of the metrics {', '.join(table.metrics)}")
            if not numbers or not all(map(math.isfinite, numbers)):
                raise ValueError(f"{where} is {numbers}, which is not a result")
    return replace(table, rows=rows)


_Record = TypeVar("_Record", bound=_Training | _Measurement | _Comparison | _Compared)


def _record(values: dict[str, Any], place: str, *kinds: type[_Record]) -> _Record:
    """A record with its fields checked; of several kinds, the one that has the most of them."""
    fields_of = {kind: {field.name: field for field in fields(kind)} for kind in kinds}
    kind = max(kinds, key=lambda kind: len(values.keys() & fields_of[kind]))
    names = list(fields_of[kind])
    wanted = [name for name, field in fields_of[kind].items() if field.default is MISSING]
    if missing := [name for name in wanted if name not in values]:
        raise ValueError(f"{place} has no field {missing[0]!r}")
    if unknown := [name for name in values if name not in names]:
        raise ValueError(
            f"{place} has the unknown field {unknown[0]!r}; the fields are {', '.join(names)}"
        )
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


def results_table(rows: Iterable[dict[str, Any]]) -> list[list[str]]:
    """Rows of results.json as a table for readers, whose first row names the columns."""
    return _table([_measurement(row, "a row of the results") for row in rows])


def _table(rows: Sequence[_Measurement]) -> list[list[str]]:
    """The header and the cells; a column about which no row says anything is left out."""
    of_images = [row if isinstance(row, _ImageMeasurement) else None for row in rows]
    has_chains = any(row and _chain(row) for row in of_images)
    columns = {
        "metric": [_label(row) for row in rows],
        "value": [_spread(row.value, row.std) for row in rows],
        "data": [f"{row.dataset}, {row.split}" for row in rows],
        "real / generated images": [row and _num_images(row) for row in of_images],
        "feature network": [row and _judge(row) for row in of_images],
        "truncation": [row and _truncation(row) for row in of_images] if not has_chains else [],
        "steps of a chain": [row and _chain(row) for row in of_images],
        "guidance": [
            None if row.guidance_scale is None else f"{row.guidance_scale:g}" for row in rows
        ],
        "judge": [row.judge for row in rows],
        "items": [row.num_items and f"{row.num_items:,}" for row in rows],
        "coverage": [None if row.coverage is None else f"{row.coverage:.1%}" for row in rows],
        "repeats": [row.num_repeats and f"{row.num_repeats:,}" for row in rows],
        "seed": [f"{row.seed}" for row in rows],
    }
    used = {title: cells for title, cells in columns.items() if any(cells)}
    return [[*used], *([cell or "-" for cell in row] for row in zip(*used.values(), strict=True))]


def _label(row: _Measurement) -> str:
    name, direction = _named(row.metric)
    of_what = " (reference: real images)" if isinstance(row, _ImageMeasurement) else " (reference)"
    return f"{name} {direction}".strip() + (of_what if row.reference else "")


def _num_images(row: _ImageMeasurement) -> str:
    return " / ".join("-" if n is None else f"{n:,}" for n in (row.num_real, row.num_generated))


def _judge(row: _ImageMeasurement) -> str:
    if row.feature_network is None:
        return "-"
    return f"{row.feature_network} ({(row.feature_network_sha256 or 'no sha256')[:12]})"


def _truncation(row: _ImageMeasurement) -> str:
    return "off" if row.truncation is None else f"{row.truncation:g}"


def _chain(row: _ImageMeasurement) -> str | None:
    if row.num_inference_steps is None:
        return None
    return f"{row.num_inference_steps:,} from {row.chain_start or 'noise'}"


def _markdown(table: Iterable[Sequence[str]]) -> list[str]:
    header, *rows = table
    lines = [header, ["---"] * len(header), *rows]
    escaped = [[cell.replace("|", r"\|") for cell in cells] for cells in lines]
    return [f"| {' | '.join(cells)} |" for cells in escaped]


def _results_block(measurements: list[_Measurement]) -> str:
    if not measurements:
        return ""
    lines = _markdown(_table(measurements))
    lines += ["", "Measured with", "", "```bash"]
    lines += dict.fromkeys(row.command for row in measurements)
    setups = dict.fromkeys(f"{row.hardware}; {_versions(row.versions)}" for row in measurements)
    lines += ["```", "", f"on {' and on '.join(setups)}."]
    return "\n".join(lines)


def _training_block(training: _ImageTraining | _TextTraining | _BatchTraining) -> str:
    before = []
    if training.init is not None:
        start = _training(training.init, "training.init")
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
            f"- length: {training.length}",
            f"- seed: {training.seed}",
            f"- hardware: {training.hardware}, {processes}",
            f"- time: {_duration(training.seconds)}",
            f"- versions: {_versions(training.versions)}",
        ]
    )


def _comparison_block(table: _Comparison) -> str:
    columns = [["method", *(row.name for row in table.rows)]]
    for metric in table.metrics:
        columns.append(_comparison_column(metric, [row.values.get(metric) for row in table.rows]))
    counts = {len(numbers) for row in table.rows for numbers in row.values.values()}
    seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts)}"
    seeds = "One seed" if counts == {1} else f"Mean ± standard deviation of {seeds} seeds"
    setup = f"{table.dataset}, {table.split}, on {table.hardware}; {_versions(table.versions)}"
    rows = _markdown(zip(*columns, strict=True))
    return "\n".join([f"### {table.title}", "", table.about, "", *rows, "", f"{seeds}, {setup}."])


def _comparison_column(metric: str, values: list[list[float] | None]) -> list[str]:
    """One metric of all methods, None where it was not measured; the best mean is bold."""
    metric, _, dataset = metric.partition("/")
    name, direction = _named(metric)
    column = [f"{name} {direction}".strip() + (f" ({dataset})" if dataset else "")]
    means = [fmean(numbers) for numbers in values if numbers]
    best = {"↑": max(means, default=None), "↓": min(means, default=None)}.get(direction)
    for numbers in values:
        if numbers is None:
            column.append("-")
            continue
        cell = _spread(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None)
        column.append(f"**{cell}**" if fmean(numbers) == best else cell)
    return column


def _model_index_entry(row: _Measurement, task: str) -> EvalResult:
    names = (
        "num_real",
        "num_generated",
        "feature_network",
        "feature_network_sha256",
        "truncation",
        "num_inference_steps",
        "chain_start",
        "num_items",
        "coverage",
        "num_repeats",
        "judge",
        "guidance_scale",
        "seed",
    )
    conditions = {
        "std": None if row.std is None else float(_rounded(row.std, row.std)),
        **{name: getattr(row, name, None) for name in names},
    }
    return EvalResult(
        task_type=task,
        dataset_type=row.dataset,
        dataset_name=" + ".join(name.split("/")[-1] for name in row.dataset.split(" + ")),
        dataset_split=row.split,
        metric_type=row.metric,
        metric_name=_named(row.metric)[0],
        metric_value=float(_rounded(row.value, row.std)),
        metric_args={key: value for key, value in conditions.items() if value is not None},
    )


def _eval_result_entry(row: _Measurement) -> EvalResultEntry:
    images = row if isinstance(row, _ImageMeasurement) else None
    notes = [f"{row.split} split"]
    if images and images.num_real is not None:
        notes.append(f"{images.num_real} real images")
    if images and images.num_generated is not None:
        notes.append(f"{images.num_generated} generated images")
    if images and images.feature_network is not None:
        notes.append(f"feature network {_judge(images)}")
    if row.num_items is not None:
        notes.append(f"{row.num_items} items")
    if row.coverage is not None:
        notes.append(f"coverage {row.coverage:.1%}")
    if row.num_repeats is not None:
        notes.append(f"mean of {row.num_repeats} runs")
    if row.judge is not None:
        notes.append(f"judge {row.judge}")
    if row.guidance_scale is not None:
        notes.append(f"guidance scale {row.guidance_scale:g}")
    if row.std is not None:
        notes.append(f"standard deviation {_rounded(row.std, row.std)}")
    if images and _chain(images):
        notes.append(f"steps of a chain {_chain(images)}")
    elif images and images.num_generated is not None:
        notes.append(f"truncation {_truncation(images)}")
    notes.append(f"seed {row.seed}")
    return EvalResultEntry(
        dataset_id=row.dataset,
        task_id=row.metric,
        value=float(_rounded(row.value, row.std)),
        notes=", ".join(notes),
    )


def _named(metric: str) -> tuple[str, str]:
    """A metric's name for readers, and the direction of better, where it is known."""
    return METRICS.get(metric, (metric.replace("_", " ").capitalize(), ""))


def _spread(value: float, std: float | None) -> str:
    decimals = _decimals(value, std)
    return f"{value:,.{decimals}f}" + ("" if std is None else f" ± {std:,.{decimals}f}")


def _rounded(value: float, std: float | None) -> str:
    return f"{value:.{_decimals(value, std)}f}"


def _decimals(value: float, std: float | None) -> int:
    """To the second digit of the standard deviation; to four digits where none is known."""
    scale, digits = (std, 2) if std else (value, 4)
    return max(digits - 1 - math.floor(math.log10(abs(scale))), 0) if scale else 0


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())
