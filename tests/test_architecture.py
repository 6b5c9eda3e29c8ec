"""The laws of the house: who may import whom, what a shipped file holds, what an import costs."""

import ast
import dataclasses
import importlib
import inspect
import itertools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedModel

import genzoo

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "src" / "genzoo"
SOURCES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
ROOMS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"evaluation"}

DOORS = "loading|cards|hub"

# Distribution name -> module name, where they differ.
MODULE_OF = {
    "faiss-cpu": "faiss",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "sentence-transformers": "sentence_transformers",
    "torch-fidelity": "torch_fidelity",
}


def kind_of(file: str) -> str:
    """The row of the import table that a file falls under."""
    *folders, name = Path(file).parts
    stem = name.removesuffix(".py")
    if not folders:
        rows = {"__init__": "package", "data": "base", "runtime": "base"}
        return {"downloads": "shared", "pipelines": "shared", **rows}.get(stem, "door")
    if folders[0] == "evaluation":
        return "base"
    # A room's evaluation.py and comparison.py need data and metrics as its training.py does.
    rows = {"optimization": "losses", "evaluation": "training", "comparison": "training"}
    if stem in ("layers", "losses", "training", "recipes", *rows):
        return rows.get(stem, stem)
    prefix = stem.split("_")[0]
    if prefix in ("modeling", "image", "scheduling", "pipeline"):
        return prefix
    return "room"  # what only this room needs: __init__.py, kernels.py, vectors.py, ...


SHIPPED = [
    file
    for file in SOURCES
    # Layers and what all rooms share are put into the others.
    if kind_of(file) in ("layers", "modeling", "image", "scheduling", "pipeline", "shared")
]

# What travels with a checkpoint may ask for nothing that its user does not have; the rest may use
# what genzoo declares.
SHIPPED_PACKAGES = {"torch", "transformers", "huggingface_hub"}
PACKAGES = {
    "layers": SHIPPED_PACKAGES,
    "modeling": SHIPPED_PACKAGES | {"diffusers"},
    "image": SHIPPED_PACKAGES | {"numpy", "PIL"},  # image_processing_*.py
    "scheduling": SHIPPED_PACKAGES | {"diffusers"},
    # Pillow comes with diffusers, safetensors with transformers: nobody has to install them.
    "pipeline": SHIPPED_PACKAGES | {"diffusers", "PIL", "safetensors"},
    "shared": SHIPPED_PACKAGES | {"diffusers", "PIL", "safetensors"},
    "losses": {"torch"},
}


def allowed_modules(file: str) -> str:
    """A pattern of the modules of genzoo that a file may import."""
    room = re.escape(f"genzoo.{Path(file).parts[0]}")
    any_room = rf"genzoo\.({'|'.join(sorted(ROOMS))})"
    return {
        "layers": "nothing",
        "modeling": rf"{room}\.layers",
        "image": "nothing",
        "scheduling": rf"{room}\.layers",
        "pipeline": rf"{room}\.(layers|(modeling|scheduling)_\w+)|genzoo\.pipelines",
        "shared": {"pipelines.py": r"genzoo\.downloads"}.get(file, "nothing"),
        "losses": "nothing",
        "training": rf"{room}(\..+)?|genzoo\.(data|runtime|evaluation(\..+)?)",
        "recipes": rf"{room}(\..+)?|{any_room}|genzoo\.data",
        "room": rf"{room}(\..+)?",
        # data.py draws its orders from runtime.py's seeded generators; what a pipeline makes is
        # measured against data.
        "base": {
            "data.py": r"genzoo\.runtime",
            "runtime.py": "nothing",
            "evaluation/pipelines.py": rf"{room}\..+|genzoo\.(data|runtime)",
        }.get(file, rf"{room}\..+"),
        "door": rf"{any_room}|genzoo(\.({DOORS}|data|runtime|downloads|evaluation(\..+)?))?",
        "package": r"genzoo\..+",
    }[kind_of(file)]


def declared_packages() -> set[str]:
    """The modules of the packages that pyproject.toml names, extras included."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    requirements = [
        *project["dependencies"],
        *itertools.chain(*project["optional-dependencies"].values()),
    ]
    names = [re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements]
    return {MODULE_OF.get(name, name) for name in names}


def test_the_oldest_versions_are_the_declared_ones():
    """What `make test-oldest` installs is where the ranges of pyproject.toml begin."""
    lines = (REPOSITORY / "constraints-oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["dev"], *extras["test"]]:
        name, *versions = re.split(r">=|,<", requirement)
        if versions and name != "torch":  # of which this version's CPU build is at hand
            pinned, declared = (re.sub(r"(\.0)+$", "", v) for v in (pins[name], versions[0]))
            assert pinned == declared, name


def imports(file: str, source: str) -> Iterator[tuple[str, str]]:
    """The modules that a file imports, made absolute, and the names it takes from them."""
    package = ["genzoo", *Path(file).parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{module}.{alias.name}".removeprefix("genzoo.").replace(".", "/")
                is_module = module.startswith("genzoo") and (
                    f"{inner}.py" in SOURCES or f"{inner}/__init__.py" in SOURCES
                )
                yield (f"{module}.{alias.name}", "") if is_module else (module, alias.name)


def forbidden_imports(file: str, source: str) -> list[str]:
    packages = PACKAGES.get(kind_of(file), declared_packages()) | sys.stdlib_module_names
    return [
        module
        for module, _ in imports(file, source)
        if not (
            re.fullmatch(allowed_modules(file), module)
            if module.split(".")[0] == "genzoo"
            else module.split(".")[0] in packages
        )
    ]


@pytest.mark.parametrize("file", SOURCES)
def test_import_table(file):
    assert forbidden_imports(file, SOURCES[file].read_text()) == []


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("gan/layers.py", "import diffusers", ["diffusers"]),
        ("gan/modeling_x.py", "import numpy as np", ["numpy"]),
        ("gan/modeling_x.py", "from .layers import Y", []),
        ("gan/modeling_x.py", "from .losses import Y", ["genzoo.gan.losses"]),
        ("gan/modeling_x.py", "from ..runtime import Y", ["genzoo.runtime"]),
        ("gan/pipeline_x.py", "from .modeling_x import X", []),
        ("gan/pipeline_x.py", "from ..pipelines import ZooPipeline", []),
        ("gan/pipeline_x.py", "from ..loading import X", ["genzoo.loading"]),
        ("gan/modeling_x.py", "from ..pipelines import X", ["genzoo.pipelines"]),
        ("gan/losses.py", "from .modeling_dcgan import X", ["genzoo.gan.modeling_dcgan"]),
        ("gan/training.py", "from ..features import X", ["genzoo.features"]),
        ("gan/training.py", "def f():\n    from genzoo import features", ["genzoo.features"]),
        ("gan/training.py", "from ..evaluation.images import x", []),
        ("jose/optimization.py", "import numba", ["numba"]),
        ("jose/modeling_jose.py", "from .kernels import x", ["genzoo.jose.kernels"]),
        ("jose/vectors.py", "from .kernels import x", []),
        ("jose/vectors.py", "from ..gan import X", ["genzoo.gan"]),
        ("gan/recipes.py", "from ..features import X", []),
        ("gan/recipes.py", "from ..features.training import X", ["genzoo.features.training"]),
        ("data.py", "from .gan import X", ["genzoo.gan"]),
        ("loading.py", "from .gan import X", []),
        ("loading.py", "from .gan.layers import X", ["genzoo.gan.layers"]),
        ("runtime.py", "import undeclared", ["undeclared"]),
    ],
)  # fmt: skip
def test_import_table_sees_a_violation(file, source, found):
    assert forbidden_imports(file, source) == found


@pytest.mark.parametrize("file", SHIPPED)
def test_shipped_file_survives_the_loaders(file):
    """What travels with a checkpoint keeps the laws that the loaders were measured to have."""
    tree = ast.parse(SOURCES[file].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module != "__future__", "turns off the checks of a strict config"
            if node.level:
                one_above = kind_of(file) == "pipeline" and node.module == "pipelines"
                assert node.level == 1 or one_above, "saving looks for siblings only"
                assert node.module, "`from . import x` saves without x"
            assert not any(alias.name == "*" for alias in node.names), "cannot be inlined"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines = [
                line for line in node.value.splitlines() if re.match(r"\s*(from|import)\s+\.", line)
            ]
            assert not lines, f"the scanner takes this line for an import: {lines}"
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "register_buffer":
            persistent = [
                k.value.value
                for k in node.keywords
                if k.arg == "persistent" and isinstance(k.value, ast.Constant)
            ]
            assert persistent != [False], "after from_pretrained it holds uninitialized memory"
        elif isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            fields = [ast.unparse(f.annotation) for f in node.body if isinstance(f, ast.AnnAssign)]
            assert not [field for field in fields if "tuple" in field.lower()], (
                "a tuple does not survive JSON"
            )


@pytest.mark.parametrize("name", [name for name in genzoo.__all__ if name.endswith("Config")])
def test_config_leaves_the_loaders_their_arguments(name):
    """AutoModel.from_pretrained hands the config what it has a field for, whatever it means."""
    loader = PreTrainedModel.from_pretrained
    taken = {*inspect.signature(loader).parameters}
    taken |= {*re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(loader))}
    assert {"variant", "revision", "output_loading_info"} <= taken
    own = {field.name for field in dataclasses.fields(getattr(genzoo, name))}
    own -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    config = getattr(genzoo, name)
    values = config().to_dict()
    for clash in own & taken:  # such a field must not take what was meant for the loader
        _, unused = config.from_dict(values, return_unused_kwargs=True, **{clash: "fp16"})
        assert unused == {clash: "fp16"}


def test_import_is_light():
    """`import genzoo` adds the models and nothing heavier than transformers brings along itself."""
    code = """
import json, sys
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForPreTraining, PreTrainedConfig, PreTrainedModel
before = set(sys.modules)
import genzoo
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = json.loads(done.stdout.splitlines()[-1])
    assert "genzoo.gan.modeling_selfmod_gan" in added
    heavy = "diffusers|accelerate|datasets|torchmetrics|sklearn|tensorboard|numba|llvmlite"
    heavy += "|scipy|gensim|faiss|jieba|sentence_transformers"
    assert [name for name in added if re.fullmatch(rf"({heavy})(\..*)?", name)] == []
    light = ("package", "layers", "losses", "modeling", "image")
    for file in SOURCES:
        module = "genzoo." + file.removesuffix(".py").replace("/", ".")
        is_light = kind_of(file) in light or Path(file).name == "__init__.py"
        assert is_light or module not in added, f"{file} waits until it is asked for"


@pytest.mark.parametrize("name", sorted(set(genzoo.__all__) - {"__version__"}))
def test_public_name_is_documented(name):
    public = getattr(genzoo, name)
    # vars, because a class without one shows its parent's; a dataclass makes one of its signature.
    text = vars(public).get("__doc__") if isinstance(public, type) else public.__doc__
    assert text and not text.startswith(f"{name}(")


def test_public_names_are_found_by_completion():
    rooms = [importlib.import_module(f"genzoo.{room}") for room in ROOMS]
    assert len(rooms) >= 4
    for place in (genzoo, *rooms):
        assert set(getattr(place, "__all__", ())) <= set(dir(place))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        genzoo.nonsense  # noqa: B018 - the access is the test


def text_files() -> list[Path]:
    folders = ("src", "tests", "model_cards", "conversion", ".ci")
    files = [
        path for folder in folders for path in (REPOSITORY / folder).rglob("*") if path.is_file()
    ]
    files += [path for path in REPOSITORY.iterdir() if path.is_file()]
    binary = (".safetensors", ".png", ".whl", ".gz")
    return [
        path
        for path in files
        if path.suffix not in binary
        and not {"run", "__pycache__"} & {*path.relative_to(REPOSITORY).parts[:-1]}
    ]


def test_no_path_of_a_machine():
    """What is published names no folder of the machine that it was made on."""
    folders = "|".join(("home", "root", "work", "Users", "mnt", "opt", "tmp"))
    path = re.compile(rf"(?<![\w.:)}}/-])/(?:{folders})/[\w.]")
    found = {
        f"{file.relative_to(REPOSITORY)}: {line.strip()}"
        for file in text_files()
        for line in file.read_text(encoding="utf-8").splitlines()
        if path.search(line)
    }
    assert found == set()


def test_uninitialized_memory_is_poisoned():
    assert torch.empty(3).isnan().all()
