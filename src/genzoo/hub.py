"""The door out: from a checkpoint folder to a repository on the Hub that everybody can load.

Whoever has genzoo loads a published checkpoint with the installed code and needs no trust. Whoever
has not loads it with `trust_remote_code=True`: beside the weights lies the code of their classes,
each in one file that stands alone, at the places where transformers and diffusers look for it.
"""

import ast
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from . import cards, loading
from .downloads import git_hash, patiently, sentences, sha256

PACKAGE = "genzoo"
PROCESSOR, SCHEDULER = "preprocessor_config.json", "scheduler_config.json"


@dataclass(frozen=True)
class Publication:
    """What was published, or on a dry run would be.

    Args:
        repository: Its id on the Hub, "owner/name".
        files: Path in the repository -> size in bytes.
        deleted: What the repository held before, and the checkpoint does not.
        url: Of the commit that the repository is at now; None after a dry run.
        is_new: Whether that commit was made just now; an unchanged checkpoint makes none.
    """

    repository: str
    files: dict[str, int]
    deleted: list[str]
    url: str | None
    is_new: bool


def publish(
    name_or_folder: str | os.PathLike,
    to: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> Publication:
    """Publishes a checkpoint in one commit, so that a stranger can load it.

    What goes out is the checkpoint's data (see `genzoo.loading.DATA_FILES`), the code of its
    classes, and its card. Before that, a process in which genzoo cannot be imported loads the
    checkpoint, and what its models put out must equal what they put out here, bit for bit.

    Doing it again makes no second commit unless something changed. What the checkpoint no longer
    has is deleted from the repository.

    Args:
        name_or_folder: A checkpoint of the zoo whose weights are here, or a folder.
        to: An owner on the Hub, under whom the repository is called as the folder is; or a
            repository, "owner/name".
        private: Whether only the owner may see it.
        dry_run: Whether to do all but the upload. It needs no network.
        revision: The branch; it is made if it is missing.
        token: Of the Hub; the one of `hf auth login` unless given.

    Raises:
        ValueError: If there is no such checkpoint, if it cannot be loaded by a stranger, or if the
            repository holds something else.
        OSError: If the Hub cannot be reached or refuses. A repository that was there is then as it
            was; a new one may be there, empty.
    """
    folder = _checkpoint(name_or_folder)
    repository = to if "/" in to else f"{to}/{Path(os.path.abspath(folder)).name}"
    api = HfApi(token=token)
    with sentences(repository, "published"):
        validate_repo_id(repository)
        # Asked before the long checks, so that a wrong token does not have to wait for them.
        user = None if dry_run else patiently(api.whoami)
    if user is not None:
        _check_owner(repository, user)
    with tempfile.TemporaryDirectory(prefix="genzoo-publish-") as name:
        staged = Path(name)
        try:
            models = stage(folder, repository, staged)
            check_as_a_stranger(staged, models)
        except (ValueError, OSError) as error:  # about the copy, which is gone when they are read
            raise type(error)(str(error).replace(name, str(folder))) from error
        files = {
            path.relative_to(staged).as_posix(): path
            for path in sorted(staged.rglob("*"))
            if path.is_file()
        }
        sizes = {name: path.stat().st_size for name, path in files.items()}
        if dry_run:
            return Publication(repository, sizes, deleted=[], url=None, is_new=False)
        url, is_new, deleted = _push(repository, files, private, revision, api)
        return Publication(repository, sizes, deleted, url, is_new)


def publish_all(
    to: str, *, private: bool = False, dry_run: bool = False, token: str | None = None
) -> list[Publication]:
    """Publishes every checkpoint whose weights are here, and a collection with the zoo's table.

    Args:
        to: An owner on the Hub.
        private: Whether only the owner may see them.
        dry_run: Whether to do all but the upload.
        token: Of the Hub; the one of `hf auth login` unless given.

    Raises:
        ValueError: As `publish`; what was published before stays.
        OSError: As `publish`.
    """
    if "/" in to:
        raise ValueError(f"{to} is one repository; to publish all, name an owner")
    names = [name for name, card in loading.card_folders().items() if loading.has_weights(card)]
    done = [
        publish(name, to, private=private, dry_run=dry_run, token=token) for name in sorted(names)
    ]
    if not dry_run:
        with sentences(f"the collection of {to}", "updated"):
            _update_collection(to, done, private, HfApi(token=token))
    return done


def _checkpoint(name_or_folder: str | os.PathLike) -> Path:
    """The folder of a checkpoint that is here."""
    text, known = os.fspath(name_or_folder), loading.card_folders()
    folder = loading.folder_of(text) or known.get(text)
    if folder is None:
        raise ValueError(f"there is no checkpoint {text!r}; {loading.closest(text, known)}")
    if not loading.has_weights(folder):
        raise ValueError(f"{text} has no weights here: train it first (genzoo train)")
    return folder


# Staging: the folder as it will lie on the Hub


def stage(folder: Path, repository: str, target: Path) -> dict[str, str]:
    """Lays out a checkpoint as it will lie on the Hub.

    The code of a model lies at the root, where transformers looks for it even when the model is in
    a sub-folder, and beside the weights, where diffusers does.

    Args:
        folder: The checkpoint.
        repository: Where it will lie, for its card.
        target: An empty folder.

    Returns:
        Folder of each model in it ("" for the root) -> name of the Auto class that loads it.

    Raises:
        ValueError: If the folder holds no model of the zoo.
    """
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        is_hidden = any(part.startswith((".", "_")) for part in place.parts)
        is_ours = place.parts[0] != "run" and (not is_hidden or place.parts[0] == ".eval_results")
        if is_ours and path.is_file() and any(place.match(name) for name in loading.DATA_FILES):
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / place)

    index_path, models = target / "model_index.json", {}
    if index_path.is_file():
        index = loading.read_json(index_path)
        loading.tasks_of(target)  # dies unless it is a pipeline of the zoo
        pipeline_class = index["_class_name"]
        if isinstance(pipeline_class, list):
            pipeline_class = pipeline_class[-1]
        module = importlib.import_module(loading.PIPELINES[pipeline_class][0])
        _write_code(module, target)
        index["_class_name"] = [module.__name__.rpartition(".")[2], pipeline_class]
        classes = getattr(module, pipeline_class).auto_classes
        for name, value in index.items():
            if not isinstance(value, list) or name.startswith("_") or value[-1] is None:
                continue
            if (target / name / SCHEDULER).is_file():
                code = sys.modules[classes[name].__module__]
                _write_code(code, target / name)
                index[name] = [code.__name__.rpartition(".")[2], classes[name].__name__]
            else:
                models[name], index[name] = add_code(target, name)
        _write_json(index_path, index)
    else:
        models[""], _ = add_code(target, "")
    cards.complete_card(target, repository, models)
    return models


def add_code(target: Path, place: str = "") -> tuple[str, list[str]]:
    """Puts a model's code where the loaders look, and `auto_map` into its config.json.

    A model that transformers has itself needs neither.

    Args:
        target: The folder that will be the repository.
        place: The model's folder in it.

    Returns:
        The name of the Auto class that loads it, and [file, class] for model_index.json.
    """
    what = place or "the folder"
    if not (target / place / "config.json").is_file():
        raise ValueError(f"{what} holds no model: it has no config.json")
    config = AutoConfig.from_pretrained(target / place, trust_remote_code=False)
    module = sys.modules[type(config).__module__]
    class_name = (config.architectures or ["?"])[0]
    auto_classes = [
        name
        for name, found in _auto_classes(type(config))
        if found is not None and found.__name__ == class_name
    ]
    if not auto_classes:
        raise ValueError(f"{what} holds a {class_name}, no model that an Auto class loads")
    if not module.__name__.startswith(f"{PACKAGE}."):
        return auto_classes[0], ["transformers", class_name]
    stem = module.__name__.rpartition(".")[2]
    auto_map = {name: f"{stem}.{class_name}" for name in auto_classes}
    values = loading.read_json(target / place / "config.json")
    values["auto_map"] = {"AutoConfig": f"{stem}.{type(config).__name__}", **auto_map}
    _write_json(target / place / "config.json", dict(sorted(values.items())))
    modules = [module]
    if (target / place / PROCESSOR).is_file() and type(config) in IMAGE_PROCESSOR_MAPPING:
        processor = next(iter(IMAGE_PROCESSOR_MAPPING[type(config)].values()))
        modules.append(sys.modules[processor.__module__])
        values = loading.read_json(target / place / PROCESSOR)
        name = f"{processor.__module__.rpartition('.')[2]}.{processor.__name__}"
        values["auto_map"] = {"AutoImageProcessor": name}
        _write_json(target / place / PROCESSOR, dict(sorted(values.items())))
    for folder in {target, target / place}:
        for each in modules:
            _write_code(each, folder)
    return auto_classes[0], [stem, class_name]


def _auto_classes(config_class: type) -> list[tuple[str, type]]:
    """The Auto classes that know a config, each with the model class that it would load."""
    modeling_auto = transformers.models.auto.modeling_auto
    pairs = []
    for name in sorted(vars(modeling_auto)):
        mapping = getattr(getattr(modeling_auto, name), "_model_mapping", None)
        if re.fullmatch(r"AutoModel\w*", name) and mapping is not None:
            pairs.append((name, mapping.get(config_class, None)))
    return pairs


def _write_code(module: ModuleType, folder: Path) -> None:
    path = Path(inspect.getfile(module))
    (folder / path.name).write_text(flatten(path), encoding="utf-8", newline="\n")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8", newline="\n")


# Flattening: one file for each class


@dataclass
class _Flat:
    """What has been gathered on the way from a file to all that it imports."""

    files: list[Path] = field(default_factory=list)
    plain_imports: set[str] = field(default_factory=set)  # import x
    from_imports: dict[str, set[str]] = field(default_factory=dict)  # from x import these
    meanings: dict[str, str] = field(default_factory=dict)  # name -> what it stands for
    docstring: str = ""
    bodies: list[str] = field(default_factory=list)


def flatten(path: Path) -> str:
    """A file of the zoo as one that stands alone: the zoo's files that it imports, then itself.

    Each is there once, with its comments; the imports of all come first. A header says where the
    file came from.

    Raises:
        ValueError: For an import that cannot travel with a checkpoint, or a name with two meanings.
    """
    flat = _Flat()
    _gather(path, flat)
    package = Path(__file__).parent
    names = [
        file.relative_to(package).as_posix() if file.is_relative_to(package) else file.name
        for file in flat.files
    ]
    header = f"# From {PACKAGE} {metadata.version(PACKAGE)}: {names[-1]}"
    if names[:-1]:
        header += f", with {' and '.join(names[:-1])} put in"
    header = (
        f"{header}.\n# SPDX-License-Identifier: Apache-2.0\n"
        f"# Where {PACKAGE} is installed, this copy is not used."
    )
    top = "\n\n".join(part for part in (header, flat.docstring, _import_block(flat)) if part)
    parts = flat.bodies
    if len(parts) > 1:
        parts = [_below(f"# {name}", body) for name, body in zip(names, parts, strict=True)]
    return _below(top, "\n\n\n".join(parts)) + "\n"


def _below(top: str, body: str) -> str:
    """Two pieces of code as the formatter sets them: two blank lines before a class or function."""
    gap = "\n\n\n" if re.match(r"class |def |async def |@", body) else "\n\n"
    return f"{top}{gap}{body}"


def _gather(path: Path, flat: _Flat) -> None:
    source = path.read_text(encoding="utf-8")
    lines, body, end = source.splitlines(), [], 0
    flat.files.append(path)  # seen
    for index, node in enumerate(ast.parse(source).body):
        # From the end of the statement before, so that comments and decorators come along.
        text, end = "\n".join(lines[end : node.end_lineno]), node.end_lineno or end
        where = f"{path.name}:{node.lineno}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            _gather_import(node, path, where, flat)
        elif index == 0 and isinstance(node, ast.Expr):
            flat.docstring = flat.docstring or text
        else:
            for name in _names(node):
                _define(name, f"a definition in {path.name}", where, flat)
            body.append(text)
    flat.bodies.append("\n".join(body).strip("\n"))
    flat.files.append(flat.files.pop(flat.files.index(path)))  # after what it needs


def _gather_import(node: ast.Import | ast.ImportFrom, path: Path, where: str, flat: _Flat) -> None:
    statement = ast.unparse(node)
    if isinstance(node, ast.ImportFrom) and node.level:
        sibling = path.parents[node.level - 1] / f"{node.module}.py"
        if not node.module or not sibling.is_file():
            raise ValueError(f"{where}: {statement!r} does not import from a file")
        if any(alias.asname or alias.name == "*" for alias in node.names):
            raise ValueError(f"{where}: {statement!r} renames; the names of the zoo are kept")
        if sibling not in flat.files:
            _gather(sibling, flat)
        return
    module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
    roots = {(module or alias.name).partition(".")[0] for alias in node.names}
    if roots & {PACKAGE, "__future__"}:
        raise ValueError(f"{where}: {statement!r} cannot travel with a checkpoint")
    for alias in node.names:
        _define(alias.asname or alias.name, f"{module}.{alias.name}", where, flat)
        if module:
            flat.from_imports.setdefault(module, set()).add(ast.unparse(alias))
        else:
            flat.plain_imports.add(ast.unparse(alias))


def _define(name: str, meaning: str, where: str, flat: _Flat) -> None:
    known = flat.meanings.setdefault(name, meaning)
    if known != meaning:
        raise ValueError(f"{where}: {name!r} already means {known}, and would mean {meaning}")


def _names(node: ast.stmt) -> list[str]:
    """The module-level names that a statement binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    return [
        n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    ]


def _import_block(flat: _Flat) -> str:
    """The imports as ruff and isort write them: the standard library's, a blank line, the rest."""
    groups: dict[bool, list[str]] = {True: [], False: []}
    for name in sorted(flat.plain_imports):
        groups[_is_standard(name)].append(f"import {name}")
    for module, names in sorted(flat.from_imports.items(), key=lambda item: item[0].lower()):
        group = groups[_is_standard(module)]
        # Constants, classes and functions follow each other; what is renamed has its own line.
        plain = [name for name in names if " as " not in name]
        plain = sorted(plain, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
        line = f"from {module} import {', '.join(plain)}"
        if len(line) > 100:
            inside = "".join(f"    {name},\n" for name in plain)
            line = f"from {module} import (\n{inside})"
        group += [line] * bool(plain)
        group += [f"from {module} import {name}" for name in sorted(names - set(plain))]
    return "\n\n".join("\n".join(group) for group in groups.values() if group)


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


# Trying: what a stranger will see


def run_everything(
    folder: str, models: dict[str, str], load_pipeline: Callable[..., Any] | None = None
) -> dict[str, Tensor]:
    """Loads all that a checkpoint folder holds, runs it once, and returns what came out.

    This function is also run in a process that has no genzoo, from its source: it uses nothing but
    what it imports itself and the types of its signature.

    Args:
        folder: As it will lie on the Hub.
        models: Folder of each model in it -> name of the Auto class that loads it.
        load_pipeline: Loads the folder's pipeline, if it has one; diffusers, with the folder's
            code, unless given.
    """
    import os

    import torch
    import transformers

    outputs = {}
    for place, auto_class in models.items():
        # Weights are model.safetensors, or model.VARIANT.safetensors, perhaps in several files.
        parts = [name.split(".") for name in os.listdir(os.path.join(folder, place))]
        variants = {
            part[1].split("-")[0] for part in parts if part[0] == "model" and len(part) == 3
        }
        for variant in [None, *sorted(variants - {"safetensors"})]:
            model, report = getattr(transformers, auto_class).from_pretrained(
                folder,
                subfolder=place,
                variant=variant,
                trust_remote_code=True,
                output_loading_info=True,
            )
            wrong = [str(name) for names in report.values() for name in names]
            if wrong:
                where = place or "the folder"
                raise ValueError(f"the weights in {where} do not fit the model: {', '.join(wrong)}")
            with torch.no_grad():
                result = model.eval()(**model.dummy_inputs)
            if isinstance(result, torch.Tensor):
                result = {"output": result}
            for name, value in result.items():
                if isinstance(value, torch.Tensor):
                    outputs[f"{place}.{variant or ''}.{name}"] = value.contiguous()
        if os.path.isfile(os.path.join(folder, place, "preprocessor_config.json")):
            processor = transformers.AutoImageProcessor.from_pretrained(
                folder, subfolder=place, trust_remote_code=True
            )
            picture = (torch.arange(40 * 50 * 3) % 251).byte().view(40, 50, 3).numpy()
            inputs = processor(picture, return_tensors="pt")
            outputs |= {f"{place}.{name}": inputs[name].contiguous() for name in inputs}
        if os.path.isfile(os.path.join(folder, place, "tokenizer.json")):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, subfolder=place, trust_remote_code=True
            )
            # Some of the words that it knows, and one that it does not.
            known, unknown = tokenizer.get_vocab(), "x"
            while unknown in known:
                unknown += "x"
            some = sorted(known, key=known.get)[:: len(known) // 10 + 1]
            inputs = tokenizer(" ".join([*some, unknown]), return_tensors="pt")
            outputs |= {f"{place}.{name}": inputs[name].contiguous() for name in inputs}
    if os.path.isfile(os.path.join(folder, "model_index.json")):
        if load_pipeline is None:
            from diffusers import DiffusionPipeline

            load_pipeline = DiffusionPipeline.from_pretrained
        pipe = load_pipeline(folder, trust_remote_code=True, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        images = pipe(generator=torch.Generator().manual_seed(0), output_type="pt").images
        outputs["images"] = images.contiguous()
    return outputs


_STRANGER = """
import sys
sys.modules[{package!r}] = None  # importing it fails
from collections.abc import Callable
from typing import Any
import torch
from safetensors.torch import save_file
from torch import Tensor
{source}
torch.set_num_threads({num_threads})
save_file(run_everything(".", {models!r}), sys.argv[1])
"""


def check_as_a_stranger(folder: Path, models: dict[str, str]) -> None:
    """Loads a staged checkpoint where genzoo cannot be imported, and compares what it puts out.

    Raises:
        ValueError: If it cannot be loaded there, or puts out something else than here.
    """

    # Loaded here, too, from the same files: two copies of a weight may differ in alignment, and
    # with it the last bit of a product.
    def load_pipeline(folder: str, trust_remote_code: bool, **settings: Any) -> Any:
        return loading.pipeline(model=folder, **settings)

    try:
        expected = run_everything(str(folder), models, load_pipeline)
    except Exception as error:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"the checkpoint cannot be loaded: {first}") from error
    code = _STRANGER.format(
        package=PACKAGE,
        source=inspect.getsource(run_everything),
        num_threads=torch.get_num_threads(),
        models=models,
    )
    with tempfile.TemporaryDirectory(prefix="genzoo-stranger-") as home:
        outputs = Path(home, "outputs.safetensors")
        empty = {"HF_HOME": home, "HF_MODULES_CACHE": f"{home}/modules"}
        process = subprocess.run(
            [sys.executable, "-c", code, str(outputs)],
            env=os.environ | empty | {"HF_HUB_OFFLINE": "1"},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if process.returncode:
            *_, reason = process.stderr.strip().splitlines() or ["it says nothing"]
            raise ValueError(f"without {PACKAGE}, the checkpoint cannot be loaded: {reason}")
        found = load_file(outputs)
    if found.keys() != expected.keys():
        raise ValueError(
            f"without {PACKAGE}, the checkpoint puts out {sorted(found)}, here {sorted(expected)}"
        )
    for name, value in expected.items():
        if not torch.equal(found[name], value):
            raise ValueError(f"without {PACKAGE}, {name} comes out different from here")


# Pushing


def _check_owner(repository: str, user: dict[str, Any]) -> None:
    owners = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    owner = repository.partition("/")[0]
    if owner.casefold() not in map(str.casefold, owners):
        raise OSError(
            f"{repository} could not be published: the token is that of {user['name']}, who may "
            f"publish under {' and '.join(owners)}"
        )


def _push(
    repository: str, files: dict[str, Path], private: bool, revision: str | None, api: HfApi
) -> tuple[str, bool, list[str]]:
    """Makes a repository hold these files and no others, in one commit or none."""
    with sentences(repository, "published"):
        patiently(lambda: api.create_repo(repository, private=private or None, exist_ok=True))
        info, there = patiently(lambda: _look(repository, None, api))
    if private and not info.private:
        raise ValueError(f"{repository} is already there, and everybody can see it")
    if there and PACKAGE not in (info.tags or []):
        raise ValueError(
            f"{repository} holds something else ({', '.join(sorted(there)[:3])}), which would be "
            "lost: publish under another name"
        )
    with sentences(repository, "published"):
        if revision is not None:
            patiently(lambda: api.create_branch(repository, branch=revision, exist_ok=True))
            info, there = patiently(lambda: _look(repository, revision, api))
        deleted = sorted(there.keys() - files.keys())
        url, is_new = patiently(lambda: _commit(repository, files, revision, info.sha, api))
    return url, is_new, deleted


def _commit(
    repository: str, files: dict[str, Path], revision: str | None, parent: str, api: HfApi
) -> tuple[str, bool]:
    """Commits what differs. It may be called again when the answer was lost."""
    info, there = _look(repository, revision, api)
    changes: list[Any] = [
        CommitOperationAdd(name, path)
        for name, path in files.items()
        if name not in there or not _is_same(path, there[name])
    ]
    changes += [CommitOperationDelete(name) for name in there if name not in files]
    if not changes:  # from the start, or because only the answer was lost
        return f"{api.endpoint}/{repository}/commit/{info.sha}", info.sha != parent
    commit = api.create_commit(
        repository,
        changes,
        commit_message=f"Publish with {PACKAGE} {metadata.version(PACKAGE)}",
        revision=revision,
        parent_commit=parent,  # whoever comes second is refused, so nothing gets mixed
    )
    return commit.commit_url, True


def _look(repository: str, revision: str | None, api: HfApi) -> tuple[Any, dict[str, RepoFile]]:
    """What the Hub says of a repository, and its files but for the one that is the Hub's own."""
    info = api.repo_info(repository, revision=revision)
    listing = api.list_repo_tree(repository, recursive=True, revision=info.sha)
    there = {entry.path: entry for entry in listing if isinstance(entry, RepoFile)}
    there.pop(".gitattributes", None)
    return info, there


def _is_same(path: Path, entry: RepoFile) -> bool:
    if entry.lfs is not None:
        return sha256(path) == entry.lfs.sha256
    return git_hash(path.read_bytes()) == entry.blob_id


def _update_collection(
    owner: str, publications: list[Publication], private: bool, api: HfApi
) -> None:
    """Makes the owner's collection list the published checkpoints, each with its row as a note."""
    collection = api.create_collection(
        PACKAGE,
        namespace=owner,
        description="A zoo of generative and embedding models; each with its measured result.",
        private=private,
        exists_ok=True,
    )
    if private and not collection.private:
        raise OSError("it is already there, and everybody can see it")
    listed = api.get_collection(collection.slug).items
    items = {item.item_id: item for item in listed if item.item_type == "model"}
    for publication in publications:
        note = _note(publication)
        item = items.get(publication.repository)
        if item is None:
            api.add_collection_item(collection.slug, publication.repository, "model", note=note)
        elif item.note != note:
            api.update_collection_item(collection.slug, item.item_object_id, note=note)


def _note(publication: Publication) -> str:
    """A checkpoint's row of the zoo's table, as text."""
    folder = loading.card_folders()[publication.repository.rpartition("/")[2]]
    config = loading.config_of(folder)
    assert config is not None, "it was published"
    task, num_parameters = loading.describe(config)
    size = num_parameters and f"{num_parameters:,} parameters"
    parts = [type(config).__name__.removesuffix("Config"), task, size, cards.headline(folder)]
    return ", ".join(filter(None, parts))
