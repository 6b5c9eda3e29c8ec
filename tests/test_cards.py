"""Cards: numbers rendered from results.json, names that agree, and code that runs as it stands."""

import copy
import functools
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from genzoo import cards
from genzoo.loading import locate, recipes

REPOSITORY = Path(__file__).parents[1]
CARDS = {card.parent.name: card.parent for card in (REPOSITORY / "model_cards").glob("*/README.md")}
PAGES = ["README.md", "README.zh.md", *(f"model_cards/{name}/README.md" for name in sorted(CARDS))]
SCHEMA = json.loads((REPOSITORY / "model_cards/results.schema.json").read_text())

# What the weights in the tree may take, in MiB, by room: git keeps every version for ever.
BUDGET = {"gan": 8, "ebm": 4, "glann": 5, "jose": 10, "conditional_text": 12, "features": 2}

# A page says `<!-- not run: reason -->` above a Python block that the test must not run; here is
# every page that does so, with its reasons.
NEEDS_HUB = "it needs the Hub; tests/test_hub.py runs it against one of its own"
REASONS = [NEEDS_HUB, NEEDS_HUB]
NOT_RUN = {"README.md": REASONS, "README.zh.md": REASONS}

WEIGHTS_ELSEWHERE = "weights are not in this repository"


def weights(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*.safetensors")
        if "run" not in path.relative_to(folder).parts
    ]


def room_of(name: str) -> str:
    return recipes()[name].__module__.split(".")[1]


# Every card of the zoo


@pytest.mark.parametrize("name", sorted(CARDS))
def test_card_names_agree(name):
    assert name in recipes(), "a card is named as its recipe"
    results = CARDS[name] / "results.json"
    if results.exists():
        results = json.loads(results.read_text())
        assert (results["name"], results["recipe"]) == (name, name)
    recipe = recipes()[name]()
    assert recipe.name == name
    data = ModelCard.load(CARDS[name] / "README.md").data
    assert (data.datasets or []) == cards.on_the_hub(cards.names_of(recipe.data))


def test_every_recipe_has_a_card():
    assert sorted(recipes()) == sorted(CARDS)


@pytest.mark.parametrize("name", sorted(CARDS))
def test_front_matter_is_what_the_hub_takes(name):
    data = ModelCard.load(CARDS[name] / "README.md").data
    assert data.license == "apache-2.0"
    assert data.library_name in ("genzoo", "diffusers", "transformers")
    assert data.pipeline_tag
    assert data.tags


@pytest.mark.parametrize("name", sorted(CARDS))
def test_results_keep_the_schema(name):
    path = CARDS[name] / "results.json"
    results = json.loads(path.read_text()) if path.exists() else None
    if results is not None:
        jsonschema.validate(results, SCHEMA, jsonschema.Draft202012Validator)
    if weights(CARDS[name]):
        assert results and "training" in results, "weights, but no record of their training"


@pytest.mark.parametrize("name", sorted(CARDS))
def test_card_is_rendered(name, tmp_path):
    """The card in the tree is what `render_card` makes of its results."""
    before = {}
    for path in [
        CARDS[name] / "README.md",
        *CARDS[name].glob("results.json"),
        *CARDS[name].glob(".eval_results/*"),
    ]:
        copy = tmp_path / path.relative_to(CARDS[name])
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
        before[copy] = path.read_bytes()
    assert cards.render_card(tmp_path) == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", sorted(CARDS))
def test_card_shows_what_is_there(name):
    text = (CARDS[name] / "README.md").read_text(encoding="utf-8")
    for image in re.findall(r"!\[.*?\]\((?!https?:)(.+?)\)", text):
        assert (CARDS[name] / image).is_file()
    if not weights(CARDS[name]):
        assert cards.NOT_TRAINED in text or WEIGHTS_ELSEWHERE in text


def test_weights_fit_their_budget():
    sizes = defaultdict(int)
    for name, folder in CARDS.items():
        sizes[room_of(name)] += sum(path.stat().st_size for path in weights(folder))
    assert {room: size for room, size in sizes.items() if size > BUDGET[room] * 2**20} == {}


def test_no_pickle_travels():
    """Weights are safetensors: whatever can hold a pickle stays out of the cards."""
    suffixes = {".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}
    files = [
        path for folder in CARDS.values() for path in folder.rglob("*") if "run" not in path.parts
    ]
    assert [path for path in files if path.suffix in suffixes] == []


# Code in pages


def code_blocks(text: str) -> list[tuple[int, str, str | None]]:
    """Line, code, and the reason not to run it, of every Python block of a page."""
    pattern = r"^(?:<!-- not run: (?P<reason>.+?) -->\s+)?^```python\n(?P<code>.*?)^```"
    return [
        (text[: match.start("code")].count("\n"), match["code"], match["reason"])
        for match in re.finditer(pattern, text, flags=re.MULTILINE | re.DOTALL)
    ]


def test_code_blocks_are_found():
    text = "# A\n```python\na = 1\n```\n```bash\nls\n```\n"
    text += "<!-- not run: slow -->\n\n```python\nb = 2\n```\n"
    assert code_blocks(text) == [(2, "a = 1\n", None), (10, "b = 2\n", "slow")]
    assert code_blocks((REPOSITORY / "README.md").read_text(encoding="utf-8"))


# A card without weights has nothing to run; test_card_shows_what_is_there has it say so.
RUNNABLE = [page for page in PAGES if "/" not in page or weights((REPOSITORY / page).parent)]


def test_blocks_that_do_not_run_are_listed():
    found = {}
    for page in RUNNABLE:
        blocks = code_blocks((REPOSITORY / page).read_text(encoding="utf-8"))
        if reasons := [reason for _, _, reason in blocks if reason]:
            found[page] = reasons
    assert found == NOT_RUN


REVIEWS = [("服务很好", "good"), ("房间太小", "bad")]

RUN_BLOCKS = """
import json, sys
page, blocks = json.load(sys.stdin)
namespace = {"__name__": "__main__"}
for line, code in blocks:
    # Empty lines in front, so that a traceback names the line of the page.
    exec(compile("\\n" * line + code, page, "exec"), namespace)
"""


@pytest.mark.parametrize("page", RUNNABLE)
def test_code_of_a_page_runs(page, tmp_path):
    """The blocks of a page, in order as a reader runs them, offline, in a clean process."""
    blocks = code_blocks((REPOSITORY / page).read_text(encoding="utf-8"))
    # A folder that looks like the repository, so that what a block saves does not land in it.
    for path in REPOSITORY.iterdir():
        (tmp_path / path.name).symlink_to(path)
    # What a page says that its reader has.
    rows = [f"{text} {n},{label}\n" for n in range(20) for text, label in REVIEWS]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(rows), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", RUN_BLOCKS],
        input=json.dumps((page, [(line, code) for line, code, reason in blocks if not reason])),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# What travels in the wheel


def test_wheel_is_enough(tmp_path, monkeypatch):
    """Cards and weights are in the wheel, run state is not; installed, it finds its own weights."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore", "src"):
        (source / name).symlink_to(REPOSITORY / name)
    (source / "model_cards").mkdir()
    for path in (REPOSITORY / "model_cards").iterdir():
        (source / "model_cards" / path.name).symlink_to(path)
    state = source / "model_cards/x/run/checkpoints/step-1.pt"
    state.parent.mkdir(parents=True)
    state.write_text("run state")
    monkeypatch.chdir(source)
    backend = importlib.import_module("hatchling.build")
    wheel = zipfile.ZipFile(tmp_path / backend.build_wheel(str(tmp_path)))

    names = set(wheel.namelist())
    assert "genzoo/py.typed" in names
    assert [name for name in names if "/run/" in name] == []
    for folder in CARDS.values():
        for path in [folder / "README.md", *weights(folder)]:
            assert f"genzoo/model_cards/{path.relative_to(REPOSITORY / 'model_cards')}" in names

    wheel.extractall(tmp_path / "installed")
    trained = sorted(name for name, folder in CARDS.items() if weights(folder))
    code = (
        "import json, sys, genzoo; print(json.dumps([str(genzoo.locate(n)) for n in sys.argv[1:]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *trained],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    installed = tmp_path / "installed/genzoo/model_cards"
    assert json.loads(done.stdout.splitlines()[-1]) == [str(installed / name) for name in trained]
    assert [locate(name) for name in trained] == [CARDS[name] for name in trained]


# Rendering

CARD = """---
license: apache-2.0
# by hand
datasets:
- owner/faces
tags: [genzoo]
pipeline_tag: unconditional-image-generation
---

# A card

<!-- results -->
<!-- /results -->

Between.

<!-- training -->
old
<!-- /training -->

The end, with a backslash \\1.
"""

MEASUREMENT = {
    "metric": "fid",
    "value": 12.34567,
    "std": None,
    "dataset": "owner/faces",
    "split": "test",
    "num_real": 10000,
    "num_generated": 10000,
    "feature_network": "feature-net-faces",
    "feature_network_sha256": "0123456789abcdef" * 4,
    "truncation": None,
    "seed": 0,
    "command": "genzoo evaluate model_cards/gan-faces",
    "hardware": "2 CPU cores",
    "seconds": 60.0,
    "versions": {"torch": "2.13.0"},
    "reference": False,
}
RESULTS = {
    "name": "gan-faces",
    "recipe": "gan-faces",
    "task": "unconditional-image-generation",
    "training": {
        "command": "genzoo train gan-faces",
        "dataset": "owner/faces",
        "split": "train",
        "num_steps": 20000,
        "num_images": 1280000,
        "batch_size": 64,
        "seed": 0,
        "num_processes": 1,
        "seconds": 3480.5,
        "hardware": "2 CPU cores",
        "versions": {"torch": "2.13.0", "genzoo": "0.1.0"},
    },
    "evaluation": [
        MEASUREMENT,
        MEASUREMENT | {"metric": "kid", "value": 0.0042179, "std": 0.000321},
        MEASUREMENT | {"metric": "recall", "value": 0.5, "truncation": 0.7},
        MEASUREMENT | {"value": 1.5, "num_generated": None, "reference": True},
        MEASUREMENT | {"metric": "accuracy", "value": 0.9134, "dataset": "sklearn/digits"},
    ],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    return tmp_path


def change(folder: Path, **values) -> None:
    (folder / "results.json").write_text(json.dumps(RESULTS | values))


# The same for word vectors.
SIMILARITY = {
    "metric": "spearman",
    "value": 0.654321,
    "std": None,
    "dataset": "word_eval/wordsim353",
    "split": "all",
    "num_items": 1338,
    "coverage": 0.9575,
    "seed": 0,
    "command": "genzoo evaluate model_cards/words",
    "hardware": "2 CPU cores",
    "seconds": 60.0,
    "versions": {"torch": "2.13.0"},
    "reference": False,
}
COMPARISON = {
    "title": "Word similarity",
    "about": "Every method sees the same words as often.",
    "metrics": ["spearman/wordsim353", "words_per_cpu_second"],
    "rows": [
        {
            "name": "JoSE",
            "settings": {"variant": "paper", "margin": 0.15},
            "values": {
                "spearman/wordsim353": [0.61, 0.63],
                "words_per_cpu_second": [123400.0, 125600.0],
            },
            "seconds": [61.5, 60.5],
            "command": "bench_jose.py --seeds 2",
        },
        {
            "name": "word2vec",
            "settings": {},
            "values": {"spearman/wordsim353": [0.6, 0.62]},
            "command": "bench_jose.py --seeds 2",
        },
    ],
    "hardware": "2 CPU cores",
    "versions": {"gensim": "4.4.0"},
    "dataset": "english_corpora + owner/reviews",
    "split": "train",
}
WORDS = {
    "name": "words",
    "recipe": "words",
    "task": "feature-extraction",
    "training": {
        "command": "genzoo train words",
        "dataset": "english_corpora + owner/reviews",
        "split": "train",
        "num_epochs": 10,
        "num_words": 98765432,
        "seed": 0,
        "num_processes": 1,
        "seconds": 3480.5,
        "hardware": "2 CPU cores",
        "versions": {"torch": "2.13.0"},
    },
    "evaluation": [
        SIMILARITY,
        SIMILARITY | {"metric": "kmeans_nmi", "value": 0.5, "std": 0.0321, "num_repeats": 10},
    ],
    "comparison": [COMPARISON],
}


def without(record: dict, key: str) -> dict:
    return {name: value for name, value in record.items() if name != key}


def test_the_examples_keep_the_schema():
    for results in (RESULTS, WORDS):
        jsonschema.validate(results, SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("definition", "common", "kinds"),
    [
        (
            "training",
            cards._Training,
            [cards._ImageTraining, cards._TextTraining, cards._BatchTraining],
        ),
        ("measurement", cards._Measurement, [cards._ImageMeasurement]),
        ("comparison", cards._Comparison, []),
        ("compared", cards._Compared, []),
    ],
)
def test_schema_and_rendering_know_the_same_fields(definition, common, kinds):
    schema, names = SCHEMA["$defs"][definition], [field.name for field in fields(common)]
    required = [field.name for field in fields(common) if field.default is MISSING]
    assert sorted(schema["required"]) == sorted(required)
    own = [[f for f in fields(kind) if f.name not in names] for kind in kinds]
    every = [*names, *(f.name for f in itertools.chain(*own))]
    assert list(schema["properties"]) == list(dict.fromkeys(every))
    needed = [[f.name for f in kind if f.default is MISSING] for kind in own]
    assert [kind["required"] for kind in schema.get("oneOf", []) if "required" in kind] == needed


def variants(record: dict) -> Iterator[dict]:
    """A record without one of its fields, or with one more."""
    more = {"num_steps": 3, "num_epochs": 3, "num_words": 3, "num_real": 3, "truncation": None}
    more |= {"num_items": 3, "coverage": 0.5, "num_repeats": None, "seconds": None, "sed": 0}
    yield from (without(record, name) for name in record)
    yield from (record | {name: value} for name, value in more.items() if name not in record)


@pytest.mark.parametrize(
    ("results", "place"),
    [
        (RESULTS, ["training"]),
        (RESULTS, ["evaluation", 1]),
        (WORDS, ["training"]),
        (WORDS, ["evaluation", 1]),
        (WORDS, ["comparison", 0]),
        (WORDS, ["comparison", 0, "rows", 0]),
    ],
)
def test_schema_and_rendering_refuse_the_same(tmp_path, results, place):
    changed = copy.deepcopy(results)
    *way, last = place
    parent = functools.reduce(lambda part, key: part[key], way, changed)
    for variant in variants(parent[last]):
        parent[last] = variant
        (tmp_path / "results.json").write_text(json.dumps(changed))
        try:
            cards._load_results(tmp_path / "results.json")
            is_taken = True
        except ValueError:
            is_taken = False
        is_valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(changed)
        assert is_taken == is_valid, variant


def test_numbers_of_a_card(folder):
    changed = cards.render_card(folder)
    assert changed == [folder / "README.md", folder / ".eval_results/owner--faces.yaml"]
    text = (folder / "README.md").read_text(encoding="utf-8")
    judge = "feature-net-faces (0123456789ab)"
    for line in (
        f"| FID ↓ | 12.35 | owner/faces, test | 10,000 / 10,000 | {judge} | off | 0 |",
        f"| KID ↓ | 0.00422 ± 0.00032 | owner/faces, test | 10,000 / 10,000 | {judge} | off | 0 |",
        f"| Recall ↑ | 0.5000 | owner/faces, test | 10,000 / 10,000 | {judge} | 0.7 | 0 |",
        "| FID ↓ (reference: real images) | 1.500 | owner/faces, test | 10,000 / - "
        f"| {judge} | off | 0 |",
        "genzoo evaluate model_cards/gan-faces",
        "on 2 CPU cores; torch 2.13.0.",
        "genzoo train gan-faces",
        "- data: owner/faces, train",
        "- length: 20,000 steps, 1,280,000 images in batches of 64",
        "- hardware: 2 CPU cores, 1 process",
        "- time: 58 min",
        "- versions: torch 2.13.0, genzoo 0.1.0",
    ):
        assert line in text.splitlines(), line
    assert text.count("genzoo evaluate") == 1, "a command is shown once"
    assert "old" not in text
    assert text.endswith("The end, with a backslash \\1.\n") and "\n\nBetween.\n\n" in text


def test_numbers_of_a_card_about_chains(folder):
    """How long the chains were and where they began stands in the place of a truncation."""
    chains = {"num_inference_steps": 1200, "chain_start": "noise"}
    rows = [MEASUREMENT | chains, MEASUREMENT | {"reference": True, "value": 1.5}]
    change(folder, evaluation=rows)
    cards.render_card(folder)
    text = (folder / "README.md").read_text()
    header, _, *lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert "truncation" not in header and "steps of a chain" in header
    assert "| 1,200 from noise |" in lines[0] and "| - | 0 |" in lines[1]
    (entry,) = ModelCard(text).data.eval_results
    assert entry.metric_args["num_inference_steps"] == 1200


def test_rendering_again_changes_nothing(folder):
    cards.render_card(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert cards.render_card(folder) == []
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_numbers_of_a_card_about_words(folder):
    """The table has no column about images, and a place for the comparison is filled."""
    text = CARD + "\n<!-- comparison -->\n<!-- /comparison -->\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    change(folder, **WORDS)
    cards.render_card(folder)
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    data = "word_eval/wordsim353, all"
    for line in (
        "| metric | value | data | items | coverage | repeats | seed |",
        f"| Spearman ↑ | 0.6543 | {data} | 1,338 | 95.8% | - | 0 |",
        f"| k-means NMI ↑ | 0.500 ± 0.032 | {data} | 1,338 | 95.8% | 10 | 0 |",
        "- data: english_corpora + owner/reviews, train",
        "- length: 10 epochs, 98,765,432 words",
        "### Word similarity",
        "Every method sees the same words as often.",
        "| method | Spearman ↑ (wordsim353) | Words per CPU second ↑ |",
        "| JoSE | **0.620 ± 0.014** | **124,500 ± 1,556** |",
        "| word2vec | 0.610 ± 0.014 | - |",
        "Mean ± standard deviation of 2 seeds, english_corpora + owner/reviews, train, "
        "on 2 CPU cores; gensim 4.4.0.",
    ):
        assert line in lines, line
    assert cards.render_card(folder) == []

    data = ModelCard.load(folder / "README.md").data
    assert data.eval_results[0].metric_args == {"num_items": 1338, "coverage": 0.9575, "seed": 0}
    change(folder, **WORDS | {"evaluation": [SIMILARITY | {"dataset": "owner/faces"}]})
    cards.render_card(folder)
    entries = yaml.safe_load((folder / ".eval_results/owner--faces.yaml").read_text("utf-8"))
    assert entries[0]["notes"] == "all split, 1338 items, coverage 95.8%, seed 0"

    change(folder, **without(WORDS, "comparison"))
    cards.render_card(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert f"<!-- comparison -->\n\n{cards.NOT_COMPARED}\n\n<!-- /comparison -->" in text


def test_a_table_has_the_columns_that_a_row_fills():
    """Rows about images and about words in one table."""
    header, images, words = cards.results_table([MEASUREMENT, SIMILARITY])
    assert header == [
        *("metric", "value", "data", "real / generated images", "feature network", "truncation"),
        *("items", "coverage", "seed"),
    ]
    assert images[3:] == [
        "10,000 / 10,000",
        "feature-net-faces (0123456789ab)",
        "off",
        "-",
        "-",
        "0",
    ]
    assert words[3:] == ["-", "-", "-", "1,338", "95.8%", "0"]
    header, row = cards.results_table([SIMILARITY | {"reference": True, "metric": "new_score"}])
    assert row[0] == "New score (reference)"


def test_a_bar_in_a_name_does_not_end_a_cell():
    assert cards._markdown([["x/|x|", "y"]])[0] == r"| x/\|x\| | y |"


@pytest.mark.parametrize(
    ("metric", "values", "column"),
    [
        ("fid", [[3.0], [2.0], [2.0]], ["FID ↓", "3.000", "**2.000**", "**2.000**"]),
        ("spearman/men", [[0.5, 0.5], None], ["Spearman ↑ (men)", "**0.5000 ± 0.0000**", "-"]),
        ("recall", [None], ["Recall ↑", "-"]),
        ("new_score", [[2.0], [3.0]], ["New score", "2.000", "3.000"]),
    ],
)
def test_a_column_of_a_comparison(metric, values, column):
    """The best is bold, wherever better is; where nobody knows, nothing is."""
    assert cards._comparison_column(metric, values) == column


def test_one_seed_has_no_spread():
    values = {"spearman/wordsim353": [0.61]}
    one = [row | {"values": values} for row in COMPARISON["rows"]]
    block = cards._comparison_block(cards._comparison(COMPARISON | {"rows": one}, "here"))
    assert "| JoSE | **0.6100** | - |" in block
    assert "\nOne seed, english_corpora + owner/reviews, train, on 2 CPU cores;" in block
    block = cards._comparison_block(
        cards._comparison(COMPARISON | {"rows": [one[0], COMPARISON["rows"][1]]}, "here")
    )
    assert "\nMean ± standard deviation of 1 to 2 seeds, " in block


def test_data_sets_of_a_new_card(folder, monkeypatch):
    """Those of the recipe that are on the Hub, unless the training had others."""
    recipe = SimpleNamespace(data=["english_corpora", "owner/reviews"])
    monkeypatch.setattr(cards, "recipes", lambda: {"words": lambda: recipe})
    change(folder, **WORDS)
    matter = yaml.safe_load(cards._plain_front_matter(folder))
    assert matter["datasets"] == ["owner/reviews"]
    assert matter["pipeline_tag"] == "feature-extraction"
    change(folder, **WORDS | {"training": WORDS["training"] | {"dataset": "owner/reviews"}})
    assert "datasets" not in yaml.safe_load(cards._plain_front_matter(folder))
    recipe.data = "owner/reviews"
    assert yaml.safe_load(cards._plain_front_matter(folder))["datasets"] == ["owner/reviews"]


def test_results_for_the_hub(folder):
    cards.render_card(folder)
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.datasets, data.tags) == ("apache-2.0", ["owner/faces"], ["genzoo"])
    assert data.model_name == "gan-faces"
    rows = [(row.dataset_type, row.metric_type, row.metric_value) for row in data.eval_results]
    assert rows == [  # the reference is not a result of the model
        ("owner/faces", "fid", 12.35),
        ("owner/faces", "kid", 0.00422),
        ("owner/faces", "recall", 0.5),
        ("sklearn/digits", "accuracy", 0.9134),
    ]
    assert data.eval_results[1].metric_args["std"] == 0.00032
    assert data.eval_results[0].task_type == "unconditional-image-generation"

    files = list((folder / ".eval_results").iterdir())
    assert [path.name for path in files] == ["owner--faces.yaml"], (
        "sklearn/digits is not on the Hub"
    )
    entries = parse_eval_result_entries(yaml.safe_load(files[0].read_text(encoding="utf-8")))
    found = [(entry.dataset_id, entry.task_id, entry.value) for entry in entries]
    assert found == [row for row in rows if row[0] == "owner/faces"]
    assert "10000 generated images" in entries[0].notes


def test_results_that_went_away_leave_nothing_behind(folder):
    cards.render_card(folder)
    change(folder, evaluation=[])
    assert cards.render_card(folder) == [
        folder / ".eval_results/owner--faces.yaml",
        folder / "README.md",
    ]
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert cards.NOT_EVALUATED in text
    assert "model-index" not in text and "model_name" not in text


def test_a_recipe_without_weights_says_so(folder):
    (folder / "results.json").unlink()
    assert cards.render_card(folder) == [folder / "README.md"]
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.count(cards.NOT_TRAINED) == 2
    assert cards.render_card(folder) == []


@pytest.mark.parametrize(
    ("value", "std", "shown"),
    [
        (0, None, "0"),
        (123456, None, "123456"),
        (0.98333333, None, "0.9833"),
        (0.00012345678, None, "0.0001235"),
        (9.87654, 0, "9.877"),
        (123.456, 12.3, "123"),
        (-0.00012, 0.0034, "-0.0001"),
    ],
)
def test_rounding(value, std, shown):
    assert cards._rounded(value, std) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(95.4, "95 s"), (6000, "100 min"), (9000, "2.5 h")])
def test_duration(seconds, shown):
    assert cards._duration(seconds) == shown


BROKEN = COMPARISON["rows"][0] | {"values": {"spearman/wordsim353": [0.5, float("inf")]}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": without(RESULTS["training"], "seed")}, "training has no field 'seed'"),
        ({"evaluation": [MEASUREMENT, {}]}, r"evaluation\[1\] has no field 'metric'"),
        ({"evaluation": [MEASUREMENT | {"sed": 0}]}, r"\[0\] has the unknown field 'sed'"),
        ({"evaluation": [MEASUREMENT | {"value": float("nan")}]}, "value is nan"),
        ({"evaluation": [without(MEASUREMENT, "num_real")]}, r"\[0\] has no field 'num_real'"),
        ({"training": without(RESULTS["training"], "num_images")}, "has no field 'num_images'"),
        ({"comparison": [without(COMPARISON, "about")]}, r"comparison\[0\] has no field 'about'"),
        (
            {"comparison": [COMPARISON | {"rows": [without(COMPARISON["rows"][0], "name")]}]},
            r"comparison\[0\]\.rows\[0\] has no field 'name'",
        ),
        (
            {"comparison": [COMPARISON | {"metrics": ["words_per_cpu_second"]}]},
            r"rows\[0\]\.values\['spearman/wordsim353'\] is of none of the metrics",
        ),
        (
            {"comparison": [COMPARISON | {"rows": [BROKEN]}]},
            r"values\['spearman/wordsim353'\] is \[0.5, inf\], which is not a result",
        ),
        ({"comparison": [COMPARISON | {"rows": []}]}, r"comparison\[0\] has nothing to compare"),
    ],
)
def test_wrong_results_are_named_and_leave_the_card_alone(folder, values, message):
    change(folder, **values)
    with pytest.raises(ValueError, match=message):
        cards.render_card(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == CARD


def test_wrong_files_are_named(folder):
    (folder / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results.json is not JSON"):
        cards.render_card(folder)
    (folder / "results.json").write_text(json.dumps(without(RESULTS, "recipe")))
    with pytest.raises(ValueError, match="has no field 'recipe'"):
        cards.render_card(folder)
    change(folder)
    (folder / "README.md").write_text(CARD.replace("<!-- /results -->", ""))
    with pytest.raises(ValueError, match="needs `<!-- results -->`"):
        cards.render_card(folder)
    (folder / "README.md").write_text("# No front matter")
    with pytest.raises(ValueError, match="does not begin with front matter"):
        cards.render_card(folder)
    (folder / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match="write the card"):
        cards.render_card(folder)
