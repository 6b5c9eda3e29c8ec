"""Publishing and pulling, with the real client against a Hub that speaks HTTP on 127.0.0.1.

What a user does is done here in a process of its own with an empty cache. The default run
publishes one checkpoint of each room and pulls it, with genzoo and without; the faults, of the
network, of the Hub and of people, are slow.
"""

import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

import genzoo
from genzoo import GANPipeline, downloads, hub, loading
from genzoo.gan import modeling_selfmod_gan
from genzoo.jose import build_tokenizer
from hub_server import Hub

REPOSITORY = Path(__file__).parents[1]
DIGITS = REPOSITORY / "model_cards" / "selfmod-gan-digits"
TOKENS = {"your-name": "hf_yours", "bob": "hf_bobs"}


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with Hub(users=TOKENS) as server:
        yield server


@pytest.fixture(autouse=True)
def no_fault_outlives_its_test(request) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").clear_faults()


# A process of a user: what it runs, and what comes back.
CLIENT = """
import json, sys
without_genzoo, result_file, arguments = json.loads(sys.argv[1])
if without_genzoo:
    sys.modules["genzoo"] = None
import torch
torch.set_num_threads(1)
{source}
try:
    result = {name}(*arguments)
except Exception as error:
    result = {{"error": type(error).__name__, "message": str(error)}}
with open(result_file, "w") as file:
    json.dump(result, file)
"""


class Client:
    """Someone with a computer: a cache, perhaps a token, perhaps genzoo."""

    def __init__(self, server: Hub, folder: Path, token: str | None, without_genzoo: bool = False):
        self.folder = folder
        self.without_genzoo = without_genzoo
        self.environment = server.environment(token=token, cache=folder / "cache")
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, function: Callable, *arguments: Any, **environment: str) -> Any:
        """What a function returns in a clean process; an error becomes a dict."""
        process = self.start(function, *arguments, **environment)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return json.loads((self.folder / "result.json").read_text())

    def start(self, function: Callable, *arguments: Any, **environment: str) -> subprocess.Popen:
        source = textwrap.dedent(inspect.getsource(function))
        code = CLIENT.format(source=source, name=function.__name__)
        result = self.folder / "result.json"
        request = json.dumps([self.without_genzoo, str(result), arguments], default=str)
        return subprocess.Popen(
            [sys.executable, "-c", code, request],
            cwd=self.folder,
            env=os.environ | self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def type_in(self, command: str) -> str:
        """What a command of the README shows."""
        words = command.split()
        assert words[0] == "genzoo"
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=self.folder,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def new_client(server, tmp_path) -> Callable[..., Client]:
    """Makes users, each with an empty cache."""
    count = iter(range(100))

    def make(owner: str | None = None, **settings) -> Client:
        folder = tmp_path / f"client-{next(count)}"
        return Client(server, folder, TOKENS.get(owner, owner), **settings)

    return make


def readme_section(title: str) -> str:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def says(fault: str, repository: str = "OWNER/NAME") -> str:
    """What the user sees, by the table of tests/README.md."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", FAULTS, flags=re.MULTILINE)
    sentence = dict(rows)[fault].replace("OWNER/NAME", repository)
    return re.fullmatch("`(.+)`", sentence)[1]


FAULTS = (
    (REPOSITORY / "tests" / "README.md").read_text(encoding="utf-8").partition("## Faults of")[2]
)


def test_every_fault_of_the_table_happens():
    rows = re.findall(r"^\| ([^|`]+?) \| `", FAULTS, flags=re.MULTILINE)
    source = Path(__file__).read_text(encoding="utf-8")
    assert len(rows) > 10
    assert [row for row in rows if f'says("{row}"' not in source] == []


# What users' processes run


def run_block(code: str) -> list:
    """Types a block of a page in, and asks what it made for images of a 3 and an 8."""
    import torch

    names: dict = {}
    exec("import genzoo" if "genzoo.pipeline" in code else "", names)
    exec(code, names)
    seed = torch.Generator().manual_seed(0)
    images = names["pipe"](class_labels=["3", "8"], generator=seed, output_type="pt").images
    kinds = [type(names[name]).__module__ for name in ("pipe", "generator") if name in names]
    return [images.flatten(1).tolist(), *kinds]


def publish(names: list[str], to: str, settings: dict) -> list:
    """Publishes, the first with all checks, the others without the slow one."""
    import dataclasses

    from genzoo import hub

    done = []
    for name in names:
        done.append(dataclasses.asdict(hub.publish(name, to, **settings)))
        hub.check_as_a_stranger = lambda *_: None
    return done


def publish_unchecked(name: str, to: str, settings: dict) -> dict:
    import dataclasses

    from genzoo import hub

    hub.check_as_a_stranger = lambda *_: None
    return dataclasses.asdict(hub.publish(name, to, **settings))


def pull(repository: str, settings: dict) -> list:
    """Loads as users do who have genzoo; an image, and what kinds of files are in the cache."""
    import os
    from pathlib import Path

    import torch

    import genzoo

    pipe = genzoo.GANPipeline.from_pretrained(repository, **settings)
    pipe.set_progress_bar_config(disable=True)
    image = pipe(generator=torch.Generator().manual_seed(0), output_type="pt").images
    snapshots = Path(os.environ["HF_HUB_CACHE"]).glob("models--*/snapshots/*/**/*")
    return [image.flatten().tolist(), sorted({path.suffix for path in snapshots} - {""})]


# One process of each kind for each room


def expected_images(folder: Path, **settings) -> list:
    pipe = GANPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(0)
    return pipe(generator=seed, output_type="pt", **settings).images.flatten(1).tolist()


def published(server: Hub, repository: str) -> dict[str, bytes]:
    """What a repository holds, as a browser would fetch it."""
    from urllib.request import ProxyHandler, build_opener

    fetch = build_opener(ProxyHandler({})).open
    with fetch(f"{server.url}/api/models/{repository}") as answer:
        names = [entry["rfilename"] for entry in json.load(answer)["siblings"]]
    contents = {}
    for name in names:
        with fetch(f"{server.url}/{repository}/resolve/main/{name}") as answer:
            contents[name] = answer.read()
    return contents


def test_a_gan_goes_out_and_comes_back(server, new_client):
    """Published as by the README, pulled by someone with genzoo and by someone without."""
    me = new_client("your-name")
    folder = me.folder / "my_digits"
    shutil.copytree(DIGITS, folder)
    first, second = me.run(publish, [folder, folder], "your-name", {})
    assert first["is_new"] and not second["is_new"]
    assert first["url"] == second["url"]
    assert len(server.log("POST .*/your-name/my_digits/commit/main")) == 1
    files = published(server, "your-name/my_digits")
    assert {*files} == {*first["files"], ".gitattributes"}
    assert not [name for name in files if name.endswith((".pt", ".bin", ".pkl"))]

    expected = expected_images(DIGITS, class_labels=["3", "8"])
    (code,) = blocks(readme_section("Publish your own"), "python")
    images, *kinds = new_client().run(run_block, code)
    assert images == expected
    (code,) = blocks(readme_section("Use without installing genzoo"), "python")
    images, *kinds = new_client(without_genzoo=True).run(run_block, code)
    assert images == expected
    assert [kind.partition(".")[0] for kind in kinds] == [
        "diffusers_modules",
        "transformers_modules",
    ]

    card = ModelCard(files["README.md"].decode())
    with_genzoo, without, alone = blocks(card.text.partition("## From the Hub")[2], "python")[:3]
    assert all("your-name/my_digits" in code for code in (with_genzoo, without, alone))
    assert 'subfolder="discriminator"' in alone


def test_a_feature_network_goes_out_and_comes_back(server, new_client):
    def classify(repository: str) -> list:
        import sys

        from PIL import Image

        trust = {"trust_remote_code": True} if sys.modules.get("genzoo", 1) is None else {}
        if trust:
            from transformers import pipeline
        else:
            from genzoo import pipeline
        pipe = pipeline(model=repository, **trust)
        answers = pipe(Image.radial_gradient("L"), top_k=10)
        kinds = [type(part).__module__ for part in (pipe.model, pipe.image_processor)]
        return [sorted((row["label"], row["score"]) for row in answers), *kinds]

    (done,) = new_client("your-name").run(publish, ["feature-net-digits"], "your-name", {})
    assert done["repository"] == "your-name/feature-net-digits"
    answers, *kinds = new_client().run(classify, done["repository"])
    here = genzoo.pipeline(model="feature-net-digits")(Image.radial_gradient("L"), top_k=10)
    assert answers == sorted([row["label"], row["score"]] for row in here)
    assert all(kind.startswith("genzoo.features.") for kind in kinds)
    stranger = new_client(without_genzoo=True)
    answers_without, *kinds = stranger.run(classify, done["repository"])
    assert answers_without == answers
    assert all(kind.startswith("transformers_modules.") for kind in kinds)

    card = ModelCard(published(server, done["repository"])["README.md"].decode())
    _, code, *_ = blocks(card.text.partition("## From the Hub")[2], "python")
    assert f'AutoModelForImageClassification.from_pretrained("{done["repository"]}"' in code


def test_an_energy_goes_out_and_comes_back(server, new_client, tmp_path):
    """Its scheduler is a component with code of its own."""

    def draw(repository: str) -> list:
        import sys

        import torch

        if sys.modules.get("genzoo", 1) is None:
            from diffusers import DiffusionPipeline

            pipe = DiffusionPipeline.from_pretrained(repository, trust_remote_code=True)
        else:
            import genzoo

            pipe = genzoo.pipeline(model=repository)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        found = pipe(class_labels=[0, 2], generator=generator, output_type="pt")
        kinds = [type(part).__module__ for part in (pipe, pipe.ebm, pipe.scheduler)]
        return [found.images.tolist(), found.energies.tolist(), *kinds]

    sizes = {"image_size": 8, "channels": [4, 4], "downsamples": [True]}
    config = genzoo.EBMConfig(**sizes, num_channels=1, num_classes=3)
    chains = genzoo.LangevinScheduler(
        step_size=0.5, noise_std=0.1, clamp=[-1, 1], num_inference_steps=4
    )
    genzoo.EBMPipeline(genzoo.EnergyModel(config), chains).save_pretrained(tmp_path / "energy")
    done, _ = new_client("your-name").run(publish, [tmp_path / "energy"] * 2, "your-name", {})
    assert isinstance(done, dict), (done, _)
    assert "scheduler/scheduling_langevin.py" in published(server, done["repository"])
    *images, pipeline, ebm, scheduler = new_client().run(draw, done["repository"])
    assert (pipeline, ebm, scheduler) == (
        "genzoo.ebm.pipeline_ebm",
        "genzoo.ebm.modeling_ebm",
        "genzoo.ebm.scheduling_langevin",
    )
    *images_without, pipeline, ebm, scheduler = new_client(without_genzoo=True).run(
        draw, done["repository"]
    )
    assert images_without == images
    assert all("_modules." in kind for kind in (pipeline, ebm, scheduler))


def make_words(folder: Path) -> Path:
    """What a training on a small corpus leaves."""
    words = ["king", "queen", "sea", "ship"]
    config = genzoo.JoseConfig(
        vocab_size=5, embedding_dim=8, num_documents=3, has_context_embeddings=False
    )
    genzoo.JoseModel(config).save_pretrained(folder)
    build_tokenizer(words, lowercase=True).save_pretrained(folder)
    (folder / "documents.json").write_text('{"names": ["a", "b", "c"]}')
    (folder / "word_counts.json").write_text(json.dumps({word: 9 for word in words}))
    results = {"name": folder.name, "recipe": "words", "task": "feature-extraction"}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_word_vectors_go_out_and_come_back(server, new_client):
    def embed(repository: str) -> list:
        import sys

        import torch
        from transformers import AutoModel, AutoTokenizer, pipeline

        doors, trust = [pipeline], {"trust_remote_code": True}
        if sys.modules.get("genzoo", 1) is not None:
            import genzoo

            doors, trust = [pipeline, lambda task, model: genzoo.pipeline(model=model)], {}
        pipes = [door("feature-extraction", model=repository, **trust) for door in doors]
        model = AutoModel.from_pretrained(repository, **trust)
        tokenizer = AutoTokenizer.from_pretrained(repository, **trust)
        text = "The queen of the SEA"
        with torch.no_grad():
            vectors = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        assert all(type(pipe.model) is type(model) for pipe in pipes)
        assert all(pipe.task == "feature-extraction" for pipe in pipes)
        return [[vectors.tolist(), *(pipe(text) for pipe in pipes)], type(model).__module__]

    me = new_client("your-name")
    folder = make_words(me.folder / "my_words")
    (done,) = me.run(publish, [folder], "your-name", {})
    files = published(server, "your-name/my_words")
    for name in ("tokenizer.json", "documents.json", "word_counts.json"):
        assert files[name] == (folder / name).read_bytes()

    table = load_file(folder / "model.safetensors")["word_embeddings.weight"]
    nothing = torch.zeros(8)
    expected = torch.stack([nothing, table[2], nothing, nothing, table[3]])[None].tolist()
    for without_genzoo, place, ways in ((False, "genzoo", 3), (True, "transformers_modules", 2)):
        client = new_client(without_genzoo=without_genzoo)
        vectors, module = client.run(embed, done["repository"])
        assert vectors == [expected] * ways
        assert module.partition(".")[0] == place

    card = ModelCard(files["README.md"].decode())
    with_genzoo, without = blocks(card.text.partition("## From the Hub")[2], "python")
    assert 'genzoo.pipeline(model="your-name/my_words")' in with_genzoo
    for name in ("AutoTokenizer", "AutoModel"):
        assert f'{name}.from_pretrained("your-name/my_words", trust_remote_code=True)' in without


# Flattening and staging


def test_flattened_models_stand_alone():
    source = hub.flatten(Path(modeling_selfmod_gan.__file__))
    compile(source, "modeling_selfmod_gan.py", "exec")
    first, *_ = source.splitlines()
    assert re.fullmatch(
        r"# From genzoo [\d.]+: gan/modeling_selfmod_gan.py, with gan/layers.py put in\.", first
    )
    assert '\n\n"""Self-modulated GAN' in source
    assert "from ." not in source
    assert "genzoo." not in source
    assert source.count("class SpectralNorm:") == 1
    assert source.count("\nimport torch\n") == 1, "one block of imports"
    assert "@strict\nclass SelfModGANConfig" in source
    assert "# image_size: (generator channels" in source, "comments travel"
    assert source.index("class GANConfig") < source.index("class SelfModGANConfig")


def test_a_flattened_file_reads_like_the_source(tmp_path):
    """No line of code or comment is lost or changed, and linter and formatter agree."""
    path = Path(modeling_selfmod_gan.__file__)
    flat = hub.flatten(path)
    kept = set(flat.splitlines())
    for file in (path, path.with_name("layers.py")):
        body = re.sub(r'\A""".*?"""', "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        body = re.sub(r"^from [\w.]+ import (\([^)]*\)|.*)$", "", body, flags=re.MULTILINE)
        assert [line for line in body.splitlines() if line not in kept] == []
    (tmp_path / "modeling_x.py").write_text(flat)
    settings = ["--isolated", "--line-length", "100"]
    for command in (["check", "--select", "E,F,I,W"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *settings, "modeling_x.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "from . import layers",
        "from ..runtime import EMA",
        "from genzoo.gan.layers import GANConfig",
        "import genzoo",
        "from __future__ import annotations",
        "from .layers import ONE as TWO",
        "from .layers import *",
        "from .sub.layers import ONE",
        "from .layers import ONE\nONE = 2",
        "from .layers import ONE\nfrom json import loads as logger",
    ],
)
def test_what_cannot_travel_is_refused(line, tmp_path):
    (tmp_path / "layers.py").write_text(
        "import logging\n\nONE = 1\nlogger = logging.getLogger(__name__)\n"
    )
    path = tmp_path / "modeling_x.py"
    path.write_text(f'"""A model."""\n\n{line}\n')
    with pytest.raises(ValueError, match=r"(modeling_x|layers)\.py:\d+: "):
        hub.flatten(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_staging_again_gives_the_same(tmp_path):
    """Also from the staged folder itself: whoever pulls a checkpoint can publish it on."""
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    models = hub.stage(DIGITS, "owner/my_digits", tmp_path / "first")
    assert models == {"gan": "AutoModel", "discriminator": "AutoModelForPreTraining"}
    hub.stage(DIGITS, "owner/my_digits", tmp_path / "second")
    hub.stage(tmp_path / "first", "owner/my_digits", tmp_path / "third")
    first = contents(tmp_path / "first")
    assert first == contents(tmp_path / "second") == contents(tmp_path / "third")
    assert first["modeling_selfmod_gan.py"] == first["gan/modeling_selfmod_gan.py"]
    config = json.loads(first["discriminator/config.json"])
    assert config["auto_map"] == {
        "AutoConfig": "modeling_selfmod_gan.SelfModGANConfig",
        "AutoModelForPreTraining": "modeling_selfmod_gan.SelfModGANDiscriminator",
    }
    assert config["dtype"] == "float32"


def test_only_data_goes_out(tmp_path):
    folder = tmp_path / "my_digits"
    shutil.copytree(DIGITS, folder)
    for name in ("run/checkpoints/step-1.pt", "run/recipe.json", "gan/weights.bin", "notes.py",
                 ".git/config.json", "gan/.cache/x.json", "__pycache__/x.json"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    names = [*hub.publish(folder, "owner", dry_run=True).files]
    assert names == sorted(names)
    assert names == [
        "README.md",
        "discriminator/config.json",
        "discriminator/model.safetensors",
        "discriminator/modeling_selfmod_gan.py",
        "gan/config.json",
        "gan/model.safetensors",
        "gan/modeling_selfmod_gan.py",
        "model_index.json",
        "modeling_selfmod_gan.py",
        "pipeline_gan.py",
        "results.json",
        "samples/grid.png",
    ]


def test_cards_of_the_zoo_point_to_the_owner(tmp_path):
    card = REPOSITORY / "model_cards" / "selfmod-gan-fashion-mnist"
    hub.stage(card, "owner/selfmod-gan-fashion-mnist", tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "](https://huggingface.co/owner/dcgan-fashion-mnist)" in text
    assert "](../" not in text
    data = ModelCard(text).data
    assert data.model_name == "selfmod-gan-fashion-mnist"
    assert {row.metric_type for row in data.eval_results} >= {"fid", "recall"}
    assert (tmp_path / ".eval_results" / "zalando-datasets--fashion_mnist.yaml").is_file()


@pytest.mark.parametrize("has_results", [True, False])
@pytest.mark.parametrize(
    "own_card",
    [
        None,
        "# My digits\n\nBy hand.\n",
        "---\nlibrary_name: diffusers\npipeline_tag: unconditional-image-generation\n"
        "tags: [mine]\n---\n# My digits\n\nBy hand.\n",
    ],
)
def test_a_card_is_completed(tmp_path, has_results, own_card):
    folder = tmp_path / "my_digits"
    shutil.copytree(DIGITS, folder)
    (folder / "README.md").unlink()
    if own_card is not None:
        (folder / "README.md").write_text(own_card)
    if not has_results:
        (folder / "results.json").unlink()
    (tmp_path / "staged").mkdir()
    hub.stage(folder, "owner/my_digits", tmp_path / "staged")
    card = ModelCard.load(tmp_path / "staged" / "README.md")
    assert card.data.tags[-1] == "genzoo"
    assert ("By hand." in card.text) == (own_card is not None)
    assert card.data.library_name == "diffusers"
    if has_results:
        assert card.data.pipeline_tag == "unconditional-image-generation"
        assert card.data.datasets is None, "scikit-learn's digits are not on the Hub"
        assert "| Class accuracy" in card.text and "genzoo train selfmod-gan-digits" in card.text
    else:
        assert card.text.count("There is no record of the training.") == 2
    assert 'DiffusionPipeline.from_pretrained("owner/my_digits"' in card.text
    found = (folder / "README.md").read_text() if (folder / "README.md").exists() else None
    assert found == own_card, "the user's folder is left alone"


def test_a_folder_here_comes_before_a_name_of_the_zoo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub._checkpoint("selfmod-gan-digits") == DIGITS
    shutil.copytree(DIGITS, tmp_path / "selfmod-gan-digits")
    assert hub._checkpoint("selfmod-gan-digits") == Path("selfmod-gan-digits")
    assert loading.find_checkpoint("selfmod-gan-digits") == Path("selfmod-gan-digits")


def test_what_cannot_be_published(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint 'selfmod-gan-digit'; did you mean selfmod"):
        hub.publish("selfmod-gan-digit", "owner")
    with pytest.raises(ValueError, match="selfmod-gan-cifar10 has no weights here: train it first"):
        hub.publish("selfmod-gan-cifar10", "owner")
    with pytest.raises(ValueError, match="neither a folder here nor a Hub id"):
        hub.publish("selfmod-gan-digits", "no owner at all", dry_run=True)
    with pytest.raises(ValueError, match="to publish all, name an owner"):
        hub.publish_all("owner/name")
    folder = tmp_path / "bert"
    BertModel(BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1,
                         intermediate_size=8, vocab_size=9)).save_pretrained(folder)  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMe"]}))
    with pytest.raises(ValueError, match="holds a BertForMe, no model that an Auto class loads"):
        hub.publish(folder, "owner", dry_run=True)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda state: state.pop("classifier.bias"), "do not fit the model: classifier.bias"),
        (lambda state: state.update(x=torch.zeros(1)), "do not fit the model: x"),
        (lambda state: state.update({"norm.bias": torch.zeros(3)}), "cannot be loaded: "),
    ],
)
def test_weights_that_do_not_fit_are_not_published(tmp_path, damage, sentence):
    folder = tmp_path / "judge"
    shutil.copytree(REPOSITORY / "model_cards" / "feature-net-digits", folder)
    state = load_file(folder / "model.safetensors")
    damage(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=sentence):
        hub.publish(folder, "owner", dry_run=True)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        hub.publish(folder, "owner", dry_run=True)


def test_what_a_stranger_tries(tmp_path):
    """A tokenizer, too, is loaded and tried, with words that it knows and one that it does not."""
    folder = make_words(tmp_path / "words")
    build_tokenizer(["x", "xx", "queen", "xxxx"]).save_pretrained(folder)
    models = {"": "AutoModel"}
    (tmp_path / "staged").mkdir()
    assert hub.stage(folder, "owner/words", tmp_path / "staged") == models
    found = hub.run_everything(str(tmp_path / "staged"), models)
    assert found[".input_ids"].tolist() == [[0, 1, 2, 3, 4, 0]], "the last is xxx"
    assert found["..last_hidden_state"].shape == (3, 4, 8)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="the checkpoint cannot be loaded"):
        hub.publish(folder, "owner", dry_run=True)


def test_checksums_of_the_cache(tmp_path):
    """In its three layouts: small file, large file, and large file in the store that Xet shares."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c", tmp_path / "models--a--b/blobs"
    for folder in (snapshot, blobs, tmp_path / "blobs" / "ab"):
        folder.mkdir(parents=True)
    small, large = b"{}", b"weights"
    (blobs / downloads.git_hash(small)).write_bytes(small)
    sha256 = hashlib.sha256(large).hexdigest()
    shared = tmp_path / "blobs" / "ab" / ("ab" * 32)
    shared.write_bytes(large)
    (blobs / sha256).symlink_to("../../blobs/ab/" + shared.name)
    (snapshot / "config.json").symlink_to(f"../../blobs/{downloads.git_hash(small)}")
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{sha256}")
    downloads.drop_damaged(snapshot)
    assert (snapshot / "model.safetensors").read_bytes() == large

    for file in (shared, blobs / downloads.git_hash(small)):
        content = file.read_bytes()
        file.write_bytes(bytes(len(content)))
        with pytest.raises(downloads.DamagedFileError, match="arrived damaged"):
            downloads.drop_damaged(snapshot)
        assert not file.exists()
    assert list(snapshot.iterdir()) == []


def test_nothing_goes_out_that_a_stranger_cannot_load(monkeypatch):
    """A file that needs genzoo, and one that computes something else."""
    flatten = hub.flatten
    monkeypatch.setattr(hub, "flatten", lambda path: flatten(path) + "\nimport genzoo.gan\n")
    with pytest.raises(
        ValueError, match=r"without genzoo, the checkpoint cannot be loaded: .*genzoo"
    ):
        hub.publish("feature-net-digits", "owner", dry_run=True)
    monkeypatch.setattr(
        hub, "flatten", lambda path: flatten(path).replace("mean(dim=(2, 3))", "amax(dim=(2, 3))")
    )
    with pytest.raises(
        ValueError, match=r"without genzoo, \.\.logits comes out different from here"
    ):
        hub.publish("feature-net-digits", "owner", dry_run=True)


# Faults: publishing


@pytest.mark.slow
def test_the_readme_typed_in(server, new_client):
    me = new_client("your-name")
    shutil.copytree(DIGITS, me.folder / "my_digits")
    (me.folder / "my_digits" / "README.md").unlink()
    (text,) = blocks(readme_section("Publish your own"), "bash")
    commands = [line for line in text.splitlines() if line.startswith("genzoo publish")]
    assert len(commands) == 2
    server.clear_log()
    assert "your-name/my_digits would hold" in me.type_in(commands[0])
    assert server.log() == [], "a dry run asks nobody"
    me.type_in(commands[1])
    before = published(server, "your-name/my_digits")
    assert "unchanged" in me.type_in(commands[1])
    assert published(server, "your-name/my_digits") == before
    assert b"There is no record" not in before["README.md"]


@pytest.mark.slow
def test_publishing_all_makes_a_collection(server, new_client):
    def publish_all(to: str) -> list:
        import dataclasses

        from genzoo import hub

        hub.check_as_a_stranger = lambda *_: None
        done = [hub.publish_all(to) for _ in range(2)]
        collections = [hub.HfApi().get_collection(c.slug) for c in hub.HfApi().list_collections()]
        items = [[(item.item_id, item.note) for item in c.items] for c in collections]
        return [[[dataclasses.asdict(p) for p in run] for run in done], items]

    (first, second), collections = new_client("bob").run(publish_all, "bob")
    names = sorted(
        name for name, card in loading.card_folders().items() if loading.has_weights(card)
    )
    assert [row["repository"] for row in first] == [f"bob/{name}" for name in names]
    assert all(row["is_new"] for row in first) and not any(row["is_new"] for row in second)
    (items,) = collections
    assert [item for item, _ in items] == [f"bob/{name}" for name in names]
    notes = dict(items)
    assert "class-to-image" in notes["bob/selfmod-gan-fashion-mnist"]
    assert "FID" in notes["bob/selfmod-gan-fashion-mnist"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "sentence"),
    [
        (None, lambda: says("publishing without a token", "your-name/selfmod-gan-digits")),
        (
            "hf_nonsense",
            lambda: says("publishing with a wrong token", "your-name/selfmod-gan-digits"),
        ),
        ("bob", lambda: says("publishing under another's name", "your-name/selfmod-gan-digits")),
    ],
)
def test_who_may_publish(server, new_client, who, sentence):
    server.clear_log()
    result = new_client(who).run(publish_unchecked, "selfmod-gan-digits", "your-name", {})
    assert result["error"] == "OSError"
    assert sentence() in result["message"]
    assert server.log("^(POST|PUT) ") == []


@pytest.mark.slow
def test_a_name_that_is_taken(server, new_client):
    """By something else, or by a public repository where a private one was asked for."""
    me = new_client("your-name")
    server.plant("your-name/taken", {"README.md": b"# Mine", "weights.bin": b"123"})
    server.plant("your-name/public", {"README.md": b"---\ntags: [genzoo]\n---\n# A net\n"})
    server.clear_log()
    result = me.run(publish_unchecked, DIGITS, "your-name/taken", {})
    assert says("name taken", "your-name/taken") in result["message"]
    result = me.run(publish_unchecked, DIGITS, "your-name/public", {"private": True})
    assert says("private wanted, public there", "your-name/public") in result["message"]
    assert server.log("/commit/|lfs") == []


@pytest.mark.slow
def test_what_the_checkpoint_no_longer_has_is_deleted(server, new_client):
    server.plant(
        "your-name/old", {"README.md": b"---\ntags: [genzoo]\n---\n# A net\n", "old.json": b"{}"}
    )
    result = new_client("your-name").run(publish_unchecked, DIGITS, "your-name/old", {})
    assert {*published(server, "your-name/old")} == {*result["files"]}


@pytest.mark.slow
def test_two_publishers_at_once(server, new_client):
    """They meet at the commit. One wins, and the repository holds what is the winner's."""
    clients = [new_client("your-name") for _ in range(2)]
    for client, name in zip(clients, ("selfmod-gan-digits", "dcgan-fashion-mnist"), strict=True):
        shutil.copytree(REPOSITORY / "model_cards" / name, client.folder / "net")
    server.fault("hold", "POST .*/commit/main", seconds=120)
    processes = [
        client.start(publish_unchecked, client.folder / "net", "your-name/contested", {})
        for client in clients
    ]
    for process in processes:
        process.communicate(timeout=300)
        assert process.returncode == 0
    assert server.faults()[0]["hits"] == 2
    server.clear_faults()
    results = [json.loads((client.folder / "result.json").read_text()) for client in clients]
    (winner,) = [result for result in results if "error" not in result]
    (loser,) = [result for result in results if "error" in result]
    assert says("two publishers at once", "your-name/contested") in loser["message"]
    files = published(server, "your-name/contested")
    assert {*files} == {*winner["files"], ".gitattributes"}
    client = clients[results.index(winner)]
    assert (
        files["gan/model.safetensors"] == (client.folder / "net/gan/model.safetensors").read_bytes()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "match", "options"),
    [
        ("status", "POST .*/commit/main", {"status": 500}),
        ("status", "PUT .*lfs", {"status": 503}),
        ("cut", "PUT .*lfs", {"after_bytes": 1000}),
        ("cut", "POST .*/commit/main", {"after_bytes": 100}),
        ("cut", "POST .*/commit/main", {"side": "response"}),
    ],
)
def test_publishing_over_a_bad_line(server, new_client, request, kind, match, options):
    """What passes is waited for, also where the commit was made and only its answer was lost."""
    name = re.sub(r"\W+", "-", request.node.callspec.id).strip("-")
    repository = f"your-name/{name}"
    server.fault(kind, match, **options)
    result = new_client("your-name").run(publish_unchecked, DIGITS, repository, {})
    assert server.faults()[0]["hits"] == 1
    server.clear_faults()
    assert result["is_new"]
    assert {*published(server, repository)} == {*result["files"], ".gitattributes"}
    made = [entry for entry in server.log(f"POST .*{repository}/commit") if entry["status"] == 200]
    assert len(made) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("status", {}, lambda name: says("the Hub fails and does not recover", name)),
        (
            "cut",
            {"after_bytes": 9},
            lambda name: says("the connection is cut again and again", name),
        ),
    ],
)
def test_publishing_in_vain_leaves_nothing(server, new_client, kind, options, sentence):
    me, repository = new_client("your-name"), f"your-name/{kind}"
    server.fault(kind, "POST .*/commit/main", times=None, **options)
    result = me.run(publish_unchecked, DIGITS, repository, {})
    server.clear_faults()
    assert sentence(repository) in result["message"]
    assert len(server.log(f"POST .*/{kind}/commit")) == 3
    assert [*published(server, repository)] == [".gitattributes"]
    assert me.run(publish_unchecked, DIGITS, repository, {})["is_new"]


@pytest.mark.slow
def test_a_broken_checkpoint_is_not_even_announced(server, new_client):
    def publish_what_needs_genzoo(name: str) -> None:
        from genzoo import hub

        flatten = hub.flatten
        hub.flatten = lambda path: flatten(path) + "\nimport genzoo.gan\n"
        hub.publish(name, "your-name")

    server.clear_log()
    result = new_client("your-name").run(publish_what_needs_genzoo, "feature-net-fashion-mnist")
    assert "without genzoo, the checkpoint cannot be loaded" in result["message"]
    assert server.log("^(POST|PUT) ") == []


@pytest.mark.slow
def test_a_publisher_killed_in_the_middle(server, new_client):
    me = new_client("your-name")
    server.fault("delay", "POST .*/commit/main", seconds=60)
    process = me.start(publish_unchecked, DIGITS, "your-name/killed", {})
    wait_for(lambda: server.log("POST .*/killed/commit/main") or server.faults()[0]["hits"])
    process.kill()
    process.communicate()
    assert [*published(server, "your-name/killed")] == [".gitattributes"]
    server.clear_faults()
    assert me.run(publish_unchecked, DIGITS, "your-name/killed", {})["repository"]
    assert "gan/model.safetensors" in published(server, "your-name/killed")


@pytest.mark.slow
def test_publishing_with_a_full_disk(server, new_client):
    def publish_on_a_full_disk(name: str) -> dict:
        import resource

        from genzoo import hub

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # no file grows beyond it
        return {"url": hub.publish(name, "your-name").url}

    server.clear_log()
    result = new_client("your-name").run(publish_on_a_full_disk, "selfmod-gan-digits")
    assert says("a full disk, publishing") in result["message"]
    assert server.log("^(POST|PUT) ") == []


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


# Faults: pulling


@pytest.fixture(scope="module")
def repository(server, tmp_path_factory) -> str:
    """One that is there to be pulled, in two versions, v1 being the older."""
    me = Client(server, tmp_path_factory.mktemp("publisher"), TOKENS["your-name"])
    shutil.copytree(DIGITS, me.folder / "old")
    weights = me.folder / "old" / "gan" / "model.safetensors"
    save_file({k: v * 0.9 for k, v in load_file(weights).items()}, weights, {"format": "pt"})

    def publish_two_versions(old: str, new: str, repository: str) -> None:
        from huggingface_hub import HfApi

        from genzoo import hub

        hub.check_as_a_stranger = lambda *_: None
        hub.publish(old, repository)
        HfApi().create_tag(repository, tag="v1")
        hub.publish(new, repository)
        hub.publish(old, repository, revision="branch")
        hub.publish(new, "your-name/secret", private=True)

    assert me.run(publish_two_versions, me.folder / "old", DIGITS, "your-name/net") is None
    return "your-name/net"


def image_of(result: list) -> list[float]:
    assert "error" not in result, result
    return result[0]


@pytest.mark.slow
def test_revisions(server, new_client, repository):
    new, old = (
        image_of(new_client().run(pull, repository, settings))
        for settings in ({}, {"revision": "v1"})
    )
    assert new == expected_images(DIGITS)[0]
    assert old != new
    assert image_of(new_client().run(pull, repository, {"revision": "branch"})) == old
    result = new_client().run(pull, repository, {"revision": "v9"})
    assert says("no such revision", repository) in result["message"]

    def pull_as_a_stranger(repository: str, revision: str) -> list:
        import torch
        from diffusers import DiffusionPipeline
        from transformers import AutoModel

        settings = {"revision": revision, "trust_remote_code": True}
        pipe = DiffusionPipeline.from_pretrained(repository, **settings)
        alone = AutoModel.from_pretrained(repository, subfolder="gan", **settings)
        half = AutoModel.from_pretrained(
            repository, subfolder="gan", dtype=torch.bfloat16, local_files_only=True, **settings
        )
        image = pipe(generator=torch.Generator().manual_seed(0), output_type="pt").images
        same = torch.equal(alone.project.weight, pipe.gan.project.weight)
        return [image.flatten().tolist(), same, str(half.dtype)]

    stranger = new_client(without_genzoo=True)
    assert stranger.run(pull_as_a_stranger, repository, "v1") == [old, True, "torch.bfloat16"]


@pytest.mark.slow
def test_what_every_loader_takes(server, new_client, repository, tmp_path):
    """revision (a branch, a tag, a sha), token, cache_dir, local_files_only, variant and dtype."""

    def load_in_all_ways(
        repository: str, sha: str, token: str, cache_dir: str, trust: dict
    ) -> list:
        import os
        import sys

        import torch
        from transformers import AutoModel

        settings = {"revision": sha, "token": token, "cache_dir": cache_dir, **trust}
        if sys.modules.get("genzoo", 1) is None:
            from diffusers import DiffusionPipeline

            loaders = [lambda **kw: DiffusionPipeline.from_pretrained(repository, **kw).gan]
        else:
            import genzoo

            loaders = [
                lambda **kw: genzoo.GANPipeline.from_pretrained(repository, **kw).gan,
                lambda **kw: genzoo.pipeline(model=repository, **kw).gan,
            ]
        loaders += [lambda **kw: AutoModel.from_pretrained(repository, subfolder="gan", **kw)]
        found = []
        for load in loaders:
            whole = load(**settings)
            again = load(local_files_only=True, **settings)
            # transformers calls dtype what diffusers calls torch_dtype.
            name = "dtype" if load is loaders[-1] else "torch_dtype"
            half = load(**settings, **{name: torch.bfloat16})
            variant = load(**settings, variant="small")
            found.append([
                whole.project.weight.double().sum().item(),
                torch.equal(whole.project.weight, again.project.weight),
                str(half.dtype),
                variant.project.weight.double().sum().item(),
            ])  # fmt: skip
        return [found, os.path.isdir(f"{cache_dir}/models--{repository.replace('/', '--')}")]

    me = new_client("your-name")
    shutil.copytree(DIGITS, me.folder / "net")
    sums = []
    for name, factor in (("model", 1.0), ("model.small", 0.5)):
        for part in ("gan", "discriminator"):
            state = load_file(DIGITS / part / "model.safetensors")
            state = {k: v * factor if v.is_floating_point() else v for k, v in state.items()}
            save_file(state, me.folder / "net" / part / f"{name}.safetensors", {"format": "pt"})
            if part == "gan":
                sums.append(state["project.weight"].float().double().sum().item())
    settings = {"private": True, "revision": "other"}
    done = me.run(publish_unchecked, me.folder / "net", "your-name/ways", settings)
    sha = done["url"].rpartition("/")[2]
    for trust in ({}, {"trust_remote_code": True}):
        # diffusers 0.42 does not hand `token` on to the request for the code: strangers log in.
        client = new_client("your-name" if trust else None, without_genzoo=bool(trust))
        cache = str(client.folder / "elsewhere")
        result = client.run(
            load_in_all_ways, "your-name/ways", sha, TOKENS["your-name"], cache, trust
        )
        assert "error" not in result, result
        found, is_there = result
        assert is_there
        assert found == [[sums[0], True, "torch.bfloat16", sums[1]]] * len(found)
        assert len(found) == (2 if trust else 3)


@pytest.mark.slow
def test_private_repositories(server, new_client, repository):
    secret = "your-name/secret"
    for who in (None, "bob"):
        result = new_client(who).run(pull, secret, {})
        assert says("a private repository, pulled by another", secret) in result["message"]
    result = new_client("hf_nonsense").run(pull, secret, {})
    assert says("pulling with a wrong token", secret) in result["message"]
    assert image_of(new_client("your-name").run(pull, secret, {}))
    # As an argument, too.
    assert image_of(new_client().run(pull, secret, {"token": TOKENS["your-name"]}))


@pytest.mark.slow
def test_offline(server, new_client, repository, tmp_path):
    client = new_client()
    result = client.run(pull, repository, {}, HF_HUB_OFFLINE="1")
    assert says("HF_HUB_OFFLINE=1 before the first pull", repository) in result["message"]
    online, suffixes = client.run(pull, repository, {})
    assert suffixes == [".json", ".safetensors"]
    server.clear_log()
    assert image_of(client.run(pull, repository, {}, HF_HUB_OFFLINE="1")) == online
    assert image_of(client.run(pull, repository, {"local_files_only": True})) == online
    assert server.log("/resolve/") == []
    elsewhere = {"cache_dir": str(tmp_path / "elsewhere")}
    assert image_of(client.run(pull, repository, elsewhere)) == online
    assert (tmp_path / "elsewhere" / "models--your-name--net").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "match", "options"),
    [
        ("status", "GET /api/models/your-name/net", {}),
        ("status", "GET .*/gan/model.safetensors", {}),
        ("cut", "GET .*/gan/model.safetensors", {"after_bytes": 1000}),
        ("cut", "GET .*/gan/model.safetensors", {"after_bytes": 1000, "reset": True}),
        ("corrupt", "GET .*/gan/model.safetensors", {"after_bytes": 9000}),
        ("corrupt", "GET .*/gan/config.json", {"after_bytes": 30}),
    ],
)
def test_pulling_over_a_bad_line(server, new_client, repository, kind, match, options):
    server.fault(kind, match, **options)
    result = new_client().run(pull, repository, {})
    assert server.faults()[0]["hits"] == 1
    server.clear_faults()
    assert image_of(result) == expected_images(DIGITS)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("status", {}, lambda name: says("a download that the Hub refuses with 500", name)),
        ("cut", {"after_bytes": 1000}, lambda name: says("a download that is always cut", name)),
        ("corrupt", {"after_bytes": 9000}, lambda name: says("a corrupted download", name)),
    ],
)
def test_nothing_half_written_is_loaded(server, new_client, repository, kind, options, sentence):
    """Nor later, without a network."""
    client = new_client()
    server.fault(kind, "GET .*/gan/model.safetensors", times=None, **options)
    result = client.run(pull, repository, {})
    server.clear_faults()
    assert result["error"] == "OSError"
    assert sentence(repository) in result["message"]
    assert client.run(pull, repository, {}, HF_HUB_OFFLINE="1")["error"] == "OSError"
    assert image_of(client.run(pull, repository, {})) == expected_images(DIGITS)[0]


@pytest.mark.slow
def test_a_puller_killed_in_the_middle(server, new_client, repository):
    client = new_client()
    server.fault("delay", "GET .*/gan/model.safetensors", seconds=30)
    process = client.start(pull, repository, {})
    wait_for(lambda: server.faults()[0]["hits"])
    process.kill()
    process.communicate()
    server.clear_faults()
    assert client.run(pull, repository, {}, HF_HUB_OFFLINE="1")["error"] == "OSError"
    assert image_of(client.run(pull, repository, {})) == expected_images(DIGITS)[0]


@pytest.mark.slow
def test_pulling_with_a_full_disk(new_client, repository):
    def pull_on_a_full_disk(repository: str) -> None:
        import resource

        import genzoo

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        genzoo.pipeline(model=repository)

    client = new_client()
    result = client.run(pull_on_a_full_disk, repository)
    assert says("a full disk, pulling", repository) in result["message"]
    assert image_of(client.run(pull, repository, {})) == expected_images(DIGITS)[0]


@pytest.mark.slow
def test_a_malicious_repository(server, new_client, repository, tmp_path):
    """A pickle beside the weights, code, and a path that leads out of the cache."""
    touched = tmp_path / "touched"
    code = f"open({str(touched)!r}, 'w').close()\n".encode()
    pickle = b"cos\nsystem\n(S'touch %s'\ntR." % str(touched).encode()
    good = published(server, repository)
    evil = {name: code if name.endswith(".py") else content for name, content in good.items()}
    evil |= {"gan/pytorch_model.bin": pickle, "gan/evil.pkl": pickle, "setup.py": code}
    server.plant("bob/evil", evil)
    image, suffixes = new_client().run(pull, "bob/evil", {})
    assert image == expected_images(DIGITS)[0]
    assert suffixes == [".json", ".safetensors"], "neither code nor pickles are even fetched"

    server.plant("bob/pickle", {k: v for k, v in evil.items() if k != "gan/model.safetensors"})
    assert new_client().run(pull, "bob/pickle", {})["error"] == "OSError"

    def pull_without_the_flag(repository: str) -> None:
        from transformers import AutoModel

        AutoModel.from_pretrained(repository, subfolder="gan")

    result = new_client(without_genzoo=True).run(pull_without_the_flag, "bob/evil")
    assert says("remote code without the flag") in result["message"]
    assert not touched.exists()

    server.fault("listing", "GET /api/models/your-name/net", times=None, path="../evil.json")
    client = new_client()
    result = client.run(pull_everything, repository)
    assert says("a path with .. in a repository", repository) in result["message"]
    assert list(client.folder.rglob("evil.json")) == []


def pull_everything(repository: str) -> str:
    from genzoo import loading

    return str(loading.find_checkpoint(repository))
