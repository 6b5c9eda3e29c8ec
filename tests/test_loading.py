"""The two doors: where a checkpoint is found, what a pipeline is made of, and what is said else."""

import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers.pipelines
from transformers import GPT2Config

import genzoo
from genzoo import downloads, loading
from genzoo.ebm.pipeline_ebm import EBMInpaintPipeline, EBMPipeline
from genzoo.gan.pipeline_gan import GANPipeline
from genzoo.jose import build_tokenizer

REPOSITORY = Path(__file__).parents[1]
SHIPPED = "selfmod-gan-fashion-mnist"


def make_checkpoint(folder: Path, num_classes: int = 2) -> Path:
    """The smallest folder that a GANPipeline opens."""
    config = genzoo.SelfModGANConfig(
        image_size=8,
        num_channels=1,
        latent_dim=3,
        num_classes=num_classes,
        generator_channels=[2, 2],
        discriminator_channels=[2],
        num_downsamples=1,
        modulation_size=2,
    )
    GANPipeline(genzoo.SelfModGANGenerator(config)).save_pretrained(folder)
    return folder


def make_energy(folder: Path, num_classes: int = 2) -> Path:
    """The smallest folder that an EBMPipeline opens."""
    config = genzoo.EBMConfig(
        image_size=8,
        num_channels=1,
        num_classes=num_classes,
        channels=[2, 2],
        downsamples=[True],
    )
    scheduler = genzoo.LangevinScheduler(clamp=[-1, 1], num_inference_steps=2)
    EBMPipeline(genzoo.EnergyModel(config), scheduler).save_pretrained(folder)
    return folder


def make_words(folder: Path) -> Path:
    """The smallest folder that a pipeline for word vectors opens."""
    words = ["king", "queen", "sea"]
    config = genzoo.JoseConfig(vocab_size=4, embedding_dim=8, has_context_embeddings=False)
    genzoo.JoseModel(config).save_pretrained(folder)
    build_tokenizer(words).save_pretrained(folder)
    results = {"name": "words", "recipe": "words", "task": "feature-extraction"}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("unlabelled"), num_classes=0)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with one repository; what it was asked for is recorded."""
    requests = []

    def snapshot_download(repository, **options):
        requests.append((repository, options))
        return str(make_checkpoint(tmp_path / "snapshot"))

    monkeypatch.setattr(downloads, "snapshot_download", snapshot_download)
    return requests


def lay_out(monkeypatch, root: Path, *, checkout: bool, weights: bool) -> Path:
    """An installation of genzoo that has a card for SHIPPED; returns the card's folder."""
    package = root / "src" / "genzoo" if checkout else root / "site-packages" / "genzoo"
    card = (root if checkout else package) / "model_cards" / SHIPPED
    package.mkdir(parents=True)
    card.mkdir(parents=True)
    (card / "README.md").touch()
    if weights:
        (card / "gan").mkdir()
        (card / "gan" / "model.safetensors").touch()
    monkeypatch.setattr(loading, "_PACKAGE", package)
    return card


# locate


@pytest.mark.parametrize("checkout", [True, False])
def test_locate_takes_what_is_here(monkeypatch, tmp_path, hub, checkout):
    card = lay_out(monkeypatch, tmp_path, checkout=checkout, weights=True)
    assert genzoo.locate(SHIPPED) == card
    assert hub == []


@pytest.mark.parametrize("checkout", [True, False])
def test_locate_asks_the_hub_for_the_rest(monkeypatch, tmp_path, hub, checkout):
    """A card without weights is no checkpoint; what a run left beside it does not count."""
    card = lay_out(monkeypatch, tmp_path, checkout=checkout, weights=False)
    state = card / "run" / "checkpoints" / "model.safetensors"
    state.parent.mkdir(parents=True)
    state.touch()
    assert genzoo.locate(SHIPPED) == tmp_path / "snapshot"
    [(repository, options)] = hub
    assert repository == f"{loading.NAMESPACE}/{SHIPPED}"
    assert {Path(pattern).suffix for pattern in options["allow_patterns"]}.isdisjoint(
        {".py", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ""}
    )


def test_a_repository_without_weights_is_no_checkpoint(monkeypatch, tmp_path):
    lay_out(monkeypatch, tmp_path, checkout=True, weights=False)
    monkeypatch.setattr(downloads, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(OSError, match=f"of {SHIPPED} are neither here nor in genzoo/{SHIPPED}"):
        genzoo.locate(SHIPPED)


def test_locate_says_that_the_hub_is_out_of_reach(monkeypatch, tmp_path):
    lay_out(monkeypatch, tmp_path, checkout=True, weights=False)
    with pytest.raises(OSError, match=f"of {SHIPPED} are not here, .* cannot be reached"):
        genzoo.locate(SHIPPED)


def test_locate_names_the_closest():
    with pytest.raises(
        ValueError, match="no checkpoint 'selfmod-gan-digit'; did you mean selfmod-gan-digits"
    ):
        genzoo.locate("selfmod-gan-digit")
    with pytest.raises(ValueError, match=f"known are .*{SHIPPED}"):
        genzoo.locate("zzz")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionResetError("reset\nby peer"), r"reset$"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("what nobody foresaw"), "what nobody foresaw"),
    ],
)
def test_errors_of_the_hub_become_one_sentence(monkeypatch, error, reason):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(downloads, "snapshot_download", snapshot_download)
    with pytest.raises(OSError, match=f"owner/name could not be fetched: .*{reason}"):
        loading.find_checkpoint("owner/name")


def test_find_checkpoint(monkeypatch, tmp_path, checkpoint, hub):
    """A folder that is there comes first, then a Hub id, then a name."""
    assert loading.find_checkpoint(checkpoint) == checkpoint
    assert hub == []
    assert loading.find_checkpoint("owner/name", revision="main") == tmp_path / "snapshot"
    assert hub[0][0] == "owner/name" and hub[0][1]["revision"] == "main"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, SHIPPED)
    assert loading.find_checkpoint(SHIPPED) == Path(SHIPPED)


@pytest.mark.parametrize("model", ["/no/where", "./where", "a/b/c", "where/", "~/where"])
def test_what_can_only_be_a_folder_is_not_looked_for_elsewhere(hub, model):
    with pytest.raises(OSError, match=f"there is no folder {model}"):
        loading.find_checkpoint(model)
    with pytest.raises(OSError, match=f"there is no folder {model}"):
        genzoo.pipeline(model=model)
    assert hub == []


def test_find_checkpoint_wants_weights(tmp_path):
    with pytest.raises(OSError, match="holds no checkpoint"):
        loading.find_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="neither a folder here nor a Hub id"):
        loading.find_checkpoint("no name/at all")


# pipeline


def test_the_task_is_told_by_the_checkpoint(checkpoint, unlabelled):
    assert loading.tasks_of(checkpoint) == ["class-to-image", "unconditional-image-generation"]
    assert loading.tasks_of(unlabelled) == ["unconditional-image-generation"]


@pytest.mark.parametrize("task", [None, "class-to-image", "unconditional-image-generation"])
@pytest.mark.parametrize("kind", [str, Path])
def test_pipeline_opens_a_folder(checkpoint, task, kind):
    pipe = genzoo.pipeline(task, model=kind(checkpoint), device="cpu", torch_dtype=torch.float64)
    assert isinstance(pipe, GANPipeline)
    assert pipe.gan.dtype == torch.float64
    pipe.set_progress_bar_config(disable=True)
    images = pipe(num_images=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert images.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("class_name", ["GANPipeline", ["pipeline_gan", "GANPipeline"]])
def test_both_forms_of_an_index(tmp_path, checkpoint, class_name):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": class_name}))
    assert isinstance(genzoo.pipeline(model=folder), GANPipeline)


@pytest.mark.parametrize("num_classes", [0, 2])
def test_one_folder_generates_and_fills_in(tmp_path, num_classes):
    """By the task; what is saved again is the same checkpoint."""
    folder = make_energy(tmp_path / "energy", num_classes)
    labelled = ["class-to-image"] if num_classes else []
    tasks = [*labelled, "unconditional-image-generation", "image-inpainting"]
    assert loading.tasks_of(folder) == tasks
    for task in [None, *tasks]:
        pipe = genzoo.pipeline(task, model=folder)
        kind = EBMInpaintPipeline if task == "image-inpainting" else EBMPipeline
        assert type(pipe) is kind
    pipe.save_pretrained(tmp_path / "again")
    index = json.loads((tmp_path / "again/model_index.json").read_text())
    assert index == json.loads((folder / "model_index.json").read_text())
    assert pipe.scheduler.config.num_inference_steps == 2
    mask = torch.ones(8, 8)
    mask[:4] = 0
    pipe.set_progress_bar_config(disable=True)
    known = torch.rand(1, 1, 8, 8)
    labels = 1 if num_classes else None
    found = pipe(known, mask, class_labels=labels, output_type="pt").images
    torch.testing.assert_close(found[..., :4, :], known[..., :4, :])


def test_pipeline_finds_a_default(monkeypatch, tmp_path, checkpoint, unlabelled):
    """The default model of each task can do the task."""
    asked = []

    def locate(name):
        asked.append(name)
        if name.startswith("igebm"):
            return make_energy(tmp_path / name)
        return checkpoint if loading.recipes()[name]().model.num_classes else unlabelled

    monkeypatch.setattr(loading, "locate", locate)
    tasks = [task for task in loading.TASKS if task not in loading.TEXT_PIPELINES]
    for task in tasks:
        kind = EBMInpaintPipeline if task == "image-inpainting" else GANPipeline
        assert type(genzoo.pipeline(task)) is kind
    assert asked == [loading.TASKS[task] for task in tasks]


def test_pipeline_opens_a_hub_id(monkeypatch, hub):
    """Its JSON files are asked for first, with the same options; the pipeline fetches the rest."""
    loaded = []
    monkeypatch.setattr(
        GANPipeline, "from_pretrained", lambda *args, **kwargs: loaded.append((args, kwargs))
    )
    genzoo.pipeline(model="owner/name", revision="v1", variant="fp16")
    assert hub == [("owner/name", {"allow_patterns": ["*.json"], "revision": "v1"})]
    assert loaded == [(("owner/name",), {"revision": "v1", "variant": "fp16"})]


def test_pipeline_hands_other_tasks_to_transformers(monkeypatch, tmp_path, hub):
    calls = []
    monkeypatch.setattr(
        transformers.pipelines, "pipeline", lambda *args, **kwargs: calls.append((args, kwargs))
    )
    model = torch.nn.Identity()
    no_code = {"trust_remote_code": False}
    genzoo.pipeline("fill-mask", model="owner/name", revision="v1")
    genzoo.pipeline("text-classification")
    genzoo.pipeline("text-generation", model=model, tokenizer="t")
    assert calls == [
        (("fill-mask",), {"model": "owner/name", "revision": "v1", **no_code}),
        (("text-classification",), {"model": None, **no_code}),
        (("text-generation",), {"model": model, "tokenizer": "t", **no_code}),
    ]
    assert hub == []

    # A Hub id without a pipeline of the zoo: transformers reads the task from its page.
    monkeypatch.setattr(downloads, "snapshot_download", lambda *_, **__: str(tmp_path))
    genzoo.pipeline(model="owner/name")
    assert calls[-1] == ((None,), {"model": "owner/name", **no_code})


@pytest.mark.parametrize("task", [None, "feature-extraction"])
def test_pipeline_opens_word_vectors(tmp_path, monkeypatch, task):
    """By the task of transformers that results.json names: a folder, or a name."""
    folder = make_words(tmp_path / "words")
    monkeypatch.setattr(loading, "card_folders", lambda: {"my-words": folder})
    table = genzoo.JoseModel.from_pretrained(folder).word_embeddings.weight
    for model in (folder, str(folder), "my-words"):
        pipe = genzoo.pipeline(task, model=model)
        assert isinstance(pipe, transformers.pipelines.FeatureExtractionPipeline)
        assert isinstance(pipe.model, genzoo.JoseModel)
        vectors = torch.tensor(pipe("queen unheard king")[0])  # (T, D)
        assert torch.equal(vectors[[0, 2]], table[[2, 1]])
        assert not vectors[1].any()


def test_pipeline_says_what_a_model_can_do(unlabelled, checkpoint, tmp_path):
    with pytest.raises(
        ValueError, match="cannot do class-to-image; it can do unconditional-image-gen"
    ):
        genzoo.pipeline("class-to-image", model=unlabelled)
    with pytest.raises(
        ValueError, match="cannot do fill-mask; it can do class-to-image and uncond"
    ):
        genzoo.pipeline("fill-mask", model=checkpoint)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(
        ValueError, match="cannot do class-to-image: it is a model without a pipeline"
    ):
        genzoo.pipeline("class-to-image", model=tmp_path)
    with pytest.raises(ValueError, match="does not say what it does: pass a task of transformers"):
        genzoo.pipeline(model=tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(ValueError, match="holds a DDPMPipeline, which is none of genzoo's"):
        genzoo.pipeline(model=tmp_path)


def test_pipeline_names_the_closest_task():
    with pytest.raises(ValueError, match="no task 'class-to-imag'; did you mean class-to-image"):
        genzoo.pipeline("class-to-imag")
    with pytest.raises(ValueError, match="did you mean text-generation"):
        genzoo.pipeline("text-generatoin", model="owner/name")
    with pytest.raises(ValueError, match=r"needs a task, a model or both; .* class-to-image"):
        genzoo.pipeline()
    with pytest.raises(
        ValueError, match="for class-to-image, model is a folder, a Hub id or a name"
    ):
        genzoo.pipeline("class-to-image", model=torch.nn.Identity())


# Recipes


@pytest.mark.parametrize("name", sorted(loading.recipes()))
def test_recipes_go_by_their_checkpoints_names(name):
    function = loading.find_recipe(name)
    assert name == function().name == function.__name__.replace("_", "-")
    room = loading.room_of(function)
    assert callable(room.train) and callable(room.evaluate)
    # The command line asks the signature which of its options have a meaning.
    kinds = {each.kind for each in inspect.signature(room.evaluate).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds


def test_a_config_says_what_its_model_does():
    words = genzoo.JoseConfig(vocab_size=5, num_documents=3, embedding_dim=2)
    assert loading.describe(words) == ("feature-extraction", 2 * 5 * 2 + 3 * 2)
    # That of a recipe, which has not seen the corpus.
    assert loading.describe(genzoo.JoseConfig()) == ("feature-extraction", None)
    judge = genzoo.FeatureNetConfig(image_size=9, hidden_sizes=[3], num_blocks=[1])
    count = genzoo.FeatureNetForImageClassification(judge).num_parameters()
    assert loading.describe(judge) == ("image-classification", count)
    small = {"n_layer": 1, "n_head": 1, "n_embd": 2, "n_positions": 4, "vocab_size": 5}
    writer = GPT2Config(**small, bos_token_id=0, eos_token_id=0)
    task, count = loading.describe(writer)
    assert task == "text-generation"
    # The same without the head, as a checkpoint says.
    writer.architectures = ["GPT2Model"]
    assert loading.describe(writer) == ("feature-extraction", count)


def test_the_config_of_a_checkpoint(checkpoint, tmp_path):
    """Where it lies; of a pipeline, that of the network which makes the images."""
    assert loading.config_of(checkpoint).model_type == "genzoo_selfmod_gan"
    assert loading.config_of(make_words(tmp_path / "words")).vocab_size == 4
    assert loading.config_of(tmp_path) is None
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(ValueError, match="holds a DDPMPipeline, which is none of genzoo's"):
        loading.config_of(tmp_path)


def test_find_recipe_names_the_closest():
    with pytest.raises(
        ValueError, match="no recipe 'dcgan-fashion'; did you mean dcgan-fashion-mnist"
    ):
        loading.find_recipe("dcgan-fashion")


# The package


def test_every_public_name_is_there():
    assert set(genzoo.__all__) <= set(dir(genzoo))
    for name in genzoo.__all__:
        assert getattr(genzoo, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'GANPipelin'"):
        _ = genzoo.GANPipelin


def test_an_installed_wheel_finds_its_weights(tmp_path, monkeypatch):
    """Built, installed into an empty folder, run from another: no repository, no network."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore", "src"):
        (source / name).symlink_to(REPOSITORY / name)
    make_checkpoint(source / "model_cards" / SHIPPED)
    monkeypatch.chdir(source)
    wheel = importlib.import_module("hatchling.build").build_wheel(str(tmp_path))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    subprocess.run([*install, "--target", installed, tmp_path / wheel], check=True)
    elsewhere.mkdir()

    code = f"""
import genzoo
generate = genzoo.pipeline("class-to-image", model={SHIPPED!r})
generate.set_progress_bar_config(disable=True)
assert len(generate(num_images=2).images) == 2
print(genzoo.__version__, genzoo.__file__, genzoo.locate({SHIPPED!r}), sep="\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    version, file, folder = done.stdout.splitlines()
    assert version == genzoo.__version__
    assert Path(file) == installed / "genzoo" / "__init__.py"
    assert Path(folder) == installed / "genzoo" / "model_cards" / SHIPPED
