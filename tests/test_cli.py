"""The command line: what it prints, what it writes, and the one line that wrong input gets."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Optional, Union

import pytest
import torch
from diffusers import SchedulerMixin
from PIL import Image
from safetensors.torch import save_file

import genzoo
from genzoo import __main__ as cli
from genzoo import loading
from genzoo.gan.losses import hinge_d
from genzoo.jose import build_tokenizer

TINY = [
    "--set=num_steps=2",
    "--set=batch_size=4",
    "--set=standing_batches=1",
    "--set=sample_every=0",
    "--set=model.latent_dim=4",
    "--set=model.generator_channels=4,4,4",
    "--set=model.discriminator_channels=4,4,4",
]
TINY_JUDGE = [
    "--set=num_steps=2",
    "--set=batch_size=4",
    "--set=model.hidden_sizes=4,8",
    "--set=model.num_blocks=1,1",
]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Nothing that a command writes lands in the repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GENZOO_DEBUG", raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny GAN and a tiny judge, both trained by the command line."""
    root = tmp_path_factory.mktemp("trained")
    assert cli.main(["train", "selfmod-gan-digits", "--output", str(root / "gan"), *TINY]) == 0
    judge = ["train", "feature-net-digits", "--output", str(root / "judge"), *TINY_JUDGE]
    assert cli.main(judge) == 0
    # Word vectors, which nobody trained.
    config = genzoo.JoseConfig(vocab_size=3, embedding_dim=4, has_context_embeddings=False)
    genzoo.JoseModel(config).save_pretrained(root / "words")
    build_tokenizer(["king", "queen"]).save_pretrained(root / "words")
    results = {"name": "words", "recipe": "feature-net-digits", "task": "feature-extraction"}
    (root / "words/results.json").write_text(json.dumps(results))
    return root


@pytest.fixture
def gan(trained, tmp_path):
    return shutil.copytree(trained / "gan", tmp_path / "gan")


@pytest.fixture
def refused(capfd):
    """Runs a command that must fail, and returns its one line."""

    def run(*words: str) -> str:
        capfd.readouterr()
        try:
            code = cli.main(list(words))
        except SystemExit as exit:
            code = exit.code
        out, err = capfd.readouterr()
        assert code == 2
        assert out == ""
        line = err.splitlines()[-1]
        assert line.startswith("genzoo: ")
        assert "Traceback" not in err
        return line

    return run


# Wrong input


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "the following arguments are required: COMMAND (see genzoo --help)"),
        ("trian x", "invalid choice: 'trian'"),
        ("train selfmod-gan-digits --step 3", "unrecognized arguments: --step 3"),
        ("train selfmod-gan-digits --res", "unrecognized arguments: --res"),
        (
            "sample x -n many",
            "-n/--num-images: invalid int value: 'many' (see genzoo sample --help)",
        ),
        (
            "train selfmod-gan-digit",
            "no recipe 'selfmod-gan-digit'; did you mean selfmod-gan-digits?",
        ),
        ("train selfmod-gan-digits --data /no/where", "no data folder /no/where"),
        ("train selfmod-gan-digits --init ./nowhere", "there is no folder ./nowhere"),
        ("train selfmod-gan-digits --init selfmod-gan-digit", "no checkpoint 'selfmod-gan-digit'"),
        (
            "train selfmod-gan-digits --set num_stepz=2",
            "no field 'num_stepz'; did you mean num_steps?",
        ),
        ("train selfmod-gan-digits --set num_steps=2.5", "--set num_steps: wanted int, got '2.5'"),
        ("train selfmod-gan-digits --set num_steps", "--set wants FIELD=VALUE, got 'num_steps'"),
        ("train selfmod-gan-digits --set d_loss=hinge_g", "--set d_loss: this is set in Python"),
        (
            "train selfmod-gan-digits --set model=big",
            "set its fields one by one, as in model.FIELD",
        ),
        ("train selfmod-gan-digits --set seed.x=1", "--set seed.x: seed has no fields of its own"),
        (
            "train selfmod-gan-digits --set model.latnt_dim=8",
            "SelfModGANConfig has no field 'latnt_dim'; did you mean latent_dim?",
        ),
        (
            "train selfmod-gan-digits --set model.image_size=17",
            "genzoo: image_size must be 4, 5, 6 or 7",
        ),
        ("sample ./nowhere", "there is no folder ./nowhere"),
        ("sample selfmod-gan-digit", "did you mean selfmod-gan-digits?"),
        ("sample owner/name", "owner/name could not be fetched: the Hub cannot be reached"),
        ("evaluate nowhere", "there is no folder nowhere"),
        ("evaluate .", "there is no results.json"),
    ],
)
def test_wrong_input_gets_one_line(refused, words, sentence):
    assert sentence in refused(*words.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("sample gan -n 0", "num_images must be at least 1"),
        ("sample gan -n -3 --classes 1", "num_images must be at least 1"),
        ("sample gan --classes 10", "there is no class 10"),
        ("sample gan --truncation 0", "truncation must be positive"),
        ("sample gan --out grid.nothing", "unknown file extension"),
        ("sample judge", "judge makes no images; its task is image-classification"),
        ("sample words", "words makes no images; its task is feature-extraction"),
        ("evaluate gan --features nothing", "there is no checkpoint 'nothing'"),
        (
            "evaluate judge --truncation 1",
            "--truncation has no meaning in the evaluation of feature-net",
        ),
        (
            "evaluate judge --features gan",
            "--features has no meaning in the evaluation of feature-net",
        ),
        ("train selfmod-gan-digits --output gan", "gan holds a run already"),
        (
            "train selfmod-gan-digits --output gan --resume",
            "gan holds another run: ",
        ),
    ],
)
def test_wrong_use_of_a_checkpoint_gets_one_line(refused, monkeypatch, trained, words, sentence):
    monkeypatch.chdir(trained)
    assert sentence in refused(*words.split())


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("gan/model.safetensors", b"too short", "weights in gan/gan are damaged"),
        ("gan/config.json", b"{", "gan/gan/config.json is not JSON"),
        ("model_index.json", b'{"_class_name": "DDPMPipeline"}', "gan holds a DDPMPipeline"),
        ("model_index.json", b"[]", "model_index.json holds a list, not an object"),
    ],
)
def test_damaged_checkpoints_get_one_line(refused, gan, file, content, sentence):
    (gan / file).write_bytes(content)
    assert sentence in refused("sample", "gan")


def test_foreign_weights_get_one_line(refused, gan):
    save_file({"foreign": torch.zeros(3)}, gan / "gan/model.safetensors", metadata={"format": "pt"})
    refused("sample", "gan")


def test_the_debug_switch_shows_where(monkeypatch):
    monkeypatch.setenv("GENZOO_DEBUG", "1")
    with pytest.raises(ValueError, match="no recipe"):
        cli.main(["train", "nothing"])


def test_interruption_is_quiet(monkeypatch, capfd):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "recipes", interrupt)
    assert cli.main(["list"]) == 130
    assert capfd.readouterr() == ("", "")


def test_a_reader_may_leave(tmp_path):
    """As in `genzoo list | head -1`: no traceback, and as the module of the package."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "genzoo", "list"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


# --set


def read(hint: Any, text: str) -> Any:
    return cli.parse_value(text, hint)


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, "20", 20),
        (int, "-1_000", -1000),
        (float, "3e-4", 3e-4),
        (float, "2", 2.0),
        (bool, "true", True),
        (bool, "False", False),
        (str, "none", "none"),
        (int | None, "none", None),
        (int | None, "3", 3),
        (Optional[float], "None", None),  # noqa: UP045 - as transformers writes it
        (Union[int, str], "3", 3),  # noqa: UP007
        (int | str, "three", "three"),
        (str | None, "none", None),
        (Callable | None, "none", None),
        (list[int], "1,2,3", [1, 2, 3]),
        (list[int] | None, "[1, 2]", [1, 2]),
        (list[float], "", []),
        (list[str], "a,b", ["a", "b"]),
        (tuple[float, float], "0.5,0.999", (0.5, 0.999)),
        (tuple[int, ...], "(1,)", (1,)),
        (Literal["a", 2], "2", 2),
    ],
)
def test_values_are_read_as_annotated(hint, text, value):
    result = read(hint, text)
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("hint", "text", "wanted"),
    [
        (int, "2.0", "int"),
        (int, "", "int"),
        (int | None, "many", "int"),
        (float, "fast", "float"),
        (float, "nan", "finite float"),
        (float, "inf", "finite float"),
        (bool, "1", "bool"),
        (bool, "yes", "bool"),
        (list[int], "1,b", "list[int]"),
        (tuple[float, float], "1", "tuple[float, float]"),
        (Literal["a", "b"], "c", "Literal['a', 'b']"),
    ],
)
def test_other_values_are_refused(hint, text, wanted):
    with pytest.raises(ValueError) as error:
        read(hint, text)
    assert f"wanted {wanted}" in str(error.value).replace("a finite", "finite")


@pytest.mark.parametrize("hint", [Callable, Callable[..., int] | None, torch.dtype, dict[str, int]])
def test_what_no_word_can_say_is_refused(hint):
    with pytest.raises(TypeError, match="set in Python"):
        read(hint, "x")


@pytest.mark.parametrize("name", sorted(loading.recipes()))
def test_every_field_of_every_recipe_can_be_set_or_is_refused(name):
    """What `--set` reads for a field is what the field holds."""
    recipe = loading.recipes()[name]()
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        parts = value if isinstance(value, tuple) else (value,)
        if any(map(callable, parts)) or isinstance(value, SchedulerMixin):
            continue
        if dataclasses.is_dataclass(value):
            continue
        text = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
        assert cli.with_settings(recipe, [f"{field.name}={text}"]) == recipe


def test_settings_reach_recipe_and_model():
    recipe = loading.recipes()["selfmod-gan-digits"]()
    changed = cli.with_settings(
        recipe,
        ["num_steps=7", "num_steps=8", "model.latent_dim=5", "betas=0.5,0.9", "d_penalty=none"],
    )
    assert (changed.num_steps, changed.betas, changed.d_penalty) == (8, (0.5, 0.9), None)
    assert changed.d_loss is hinge_d
    assert changed.model.latent_dim == 5
    assert changed.model.to_dict() | {"latent_dim": 32} == recipe.model.to_dict() | {
        "latent_dim": 32
    }
    assert cli.with_settings(recipe, []) == recipe


def test_what_a_config_derives_is_derived_again():
    """The channels of a backbone follow the image size, unless the recipe gives them."""

    @dataclasses.dataclass
    class Recipe:
        model: genzoo.SelfModGANConfig

    paper = Recipe(genzoo.SelfModGANConfig(image_size=32))
    changed = cli.with_settings(paper, ["model.image_size=64"])
    assert changed.model.to_dict() == genzoo.SelfModGANConfig(image_size=64).to_dict()
    own = Recipe(genzoo.SelfModGANConfig(image_size=32, generator_channels=[8, 8, 8, 8]))
    changed = cli.with_settings(own, ["model.num_classes=3"])
    assert changed.model.generator_channels == [8, 8, 8, 8]
    assert len(changed.model.id2label) == 3


# What commands do


def test_list_names_every_recipe(capsys, monkeypatch, tmp_path):
    card = tmp_path / "cards" / "selfmod-gan-digits"
    (card / "gan").mkdir(parents=True)
    (card / "gan" / "model.safetensors").touch()
    rows = [
        {"metric": "fid", "value": 0.5, "reference": True},
        {"metric": "fid", "value": 12.3456789, "reference": False},
    ]
    (card / "results.json").write_text(json.dumps({"evaluation": rows}))
    monkeypatch.setattr(loading, "card_folders", lambda: {"selfmod-gan-digits": card})
    assert cli.main(["list"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "method", "task", "parameters", "result", "weights"]
    table = {line.split()[0]: line.split()[1:] for line in lines}
    assert sorted(table) == sorted(loading.recipes())
    config = loading.recipes()["selfmod-gan-digits"]().model
    count = f"{genzoo.SelfModGANGenerator(config).num_parameters():,}"
    assert table["selfmod-gan-digits"] == [
        "SelfModGAN",
        "class-to-image",
        count,
        "FID",
        "12.35",
        "here",
    ]
    assert table["dcgan-fashion-mnist"][:2] == ["DCGAN", "unconditional-image-generation"]
    assert table["feature-net-digits"][:2] == ["FeatureNet", "image-classification"]
    assert table["feature-net-digits"][-2:] == ["-", "-"]


def test_list_shows_the_parameters_of_the_checkpoint(capsys, monkeypatch, trained):
    """Of the recipe where there is none, as far as it knows."""

    @dataclasses.dataclass
    class Recipe:
        model: genzoo.JoseConfig

    recipes = {name: lambda: Recipe(genzoo.JoseConfig()) for name in ("jose-a", "jose-b")}
    monkeypatch.setattr(loading, "recipes", lambda: recipes)
    monkeypatch.setattr(loading, "card_folders", lambda: {"jose-b": trained / "words"})
    assert cli.main(["list"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["jose-a", "Jose", "feature-extraction", "-", "-", "-"],
        ["jose-b", "Jose", "feature-extraction", "12", "-", "here"],
    ]


def test_a_result_is_shown_on_any_terminal(monkeypatch, tmp_path):
    """Also on one that knows neither arrows nor Chinese."""
    with (tmp_path / "terminal").open("w", encoding="ascii") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        cli.show("Spearman ↑  0.50")
    assert (tmp_path / "terminal").read_text() == "Spearman ?  0.50\n"


def test_settings_reach_a_recipe_for_words():
    """Of several corpora, and with fields that follow from others."""

    @dataclasses.dataclass
    class Recipe:
        model: genzoo.JoseConfig
        data: list[str]

    recipe = Recipe(genzoo.JoseConfig(embedding_dim=50), ["english_corpora", "owner/reviews"])
    changed = cli.with_settings(recipe, ["data=a,owner/b", "model.window_size=7"])
    assert changed.data == ["a", "owner/b"]
    config = genzoo.JoseConfig(embedding_dim=50, window_size=7)
    assert changed.model.to_dict() == config.to_dict()
    assert cli.with_settings(recipe, []) == recipe


def test_train_says_where_the_checkpoint_is(capsys, tmp_path):
    assert cli.main(["train", "selfmod-gan-digits", *TINY]) == 0
    assert (
        capsys.readouterr().out
        == f"The checkpoint is in {tmp_path / 'outputs/selfmod-gan-digits'}\n"
    )
    pipe = genzoo.GANPipeline.from_pretrained("outputs/selfmod-gan-digits")
    assert pipe.gan.config.generator_channels == [4, 4, 4]
    assert cli.main(["train", "selfmod-gan-digits", *TINY, "--resume"]) == 0


def test_train_starts_from_a_folder_and_own_pictures(gan):
    for index in range(4):
        folder = Path("pictures") / ["cats", "dogs"][index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30), (60 * index, 0, 0)).save(folder / f"{index}.png")
    words = ["train", "selfmod-gan-digits", "--init", "gan", "--data", "pictures"]
    length = [word for word in TINY if "model." not in word]
    assert cli.main([*words, "--output", "own", *length]) == 0
    assert cli.main([*words, "--set", "model.latent_dim=2"]) == 2  # the checkpoint brings its own
    config = genzoo.pipeline(model="own").gan.config
    assert (config.image_size, list(config.id2label.values())) == (16, ["cats", "dogs"])


def test_sample_writes_a_grid(capsys, gan, tmp_path):
    assert cli.main(["sample", "gan", "--out", "new/all.png"]) == 0
    assert str(tmp_path / "new" / "all.png") in capsys.readouterr().out
    words = ["sample", "gan", "-n", "6", "--classes", "3", "5", "--truncation", "1"]
    pictures = []
    for seed in ("1", "1", "2"):
        assert cli.main([*words, "--seed", seed, "--out", "some.png"]) == 0
        pictures.append(Path("some.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_classes_are_shared_out_evenly(monkeypatch, gan):
    grids = []
    monkeypatch.setattr(cli, "write_grid", lambda *_, **settings: grids.append(settings))
    cli.main(["sample", "gan", "-n", "5", "--classes", "3", "5"])
    cli.main(["sample", "gan", "-n", "5"])
    assert [grid["class_labels"] for grid in grids] == [["3", "3", "3", "5", "5"], None]


def test_evaluate_keeps_other_numbers(capsys, gan, trained):
    """The same measurement replaces the older one in its place; another one is added."""
    words = ["evaluate", "gan", "--features", str(trained / "judge"), "--num-images", "20"]
    assert cli.main(words) == 0
    first = json.loads((gan / "results.json").read_text())
    assert cli.main(words) == 0
    again = json.loads((gan / "results.json").read_text())
    capsys.readouterr()
    assert cli.main([*words, "--seed", "1"]) == 0
    out = capsys.readouterr().out
    more = json.loads((gan / "results.json").read_text())

    keys = [cli.measured_as(row) for row in first["evaluation"]]
    assert [cli.measured_as(row) for row in again["evaluation"]] == keys
    assert [row["value"] for row in again["evaluation"]] == [
        row["value"] for row in first["evaluation"]
    ]
    assert more["evaluation"][: len(keys)] == again["evaluation"]
    assert {row["seed"] for row in more["evaluation"][len(keys) :]} == {1}
    assert more["training"] == first["training"]
    header = "metric value data real / generated images feature network truncation seed"
    assert out.splitlines()[0].split() == header.split()
    assert any(
        line.startswith("FID ") and "sklearn/digits, test" in line for line in out.splitlines()
    )


def test_an_evaluation_that_asks_for_the_recipe_gets_it(monkeypatch, tmp_path):
    asked = []

    def evaluate(folder, dataset=None, *, recipe, seed=0):
        asked.append((folder, recipe, seed))
        return [{"metric": "perplexity", "value": 2.0}]

    (tmp_path / "results.json").write_text('{"recipe": "bert-zh-mini"}')
    monkeypatch.setattr(loading, "room_of", lambda recipe: SimpleNamespace(evaluate=evaluate))
    cli.measure(tmp_path, seed=3)
    assert asked == [(tmp_path, loading.find_recipe("bert-zh-mini")(), 3)]
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["evaluation"] == [{"metric": "perplexity", "value": 2.0}]


def test_evaluate_renders_the_card(trained, tmp_path):
    folder = shutil.copytree(trained / "judge", tmp_path / "judge")
    blocks = "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ("results", "training"))
    (folder / "README.md").write_text(f"---\ntags: [genzoo]\n---\n{blocks}")
    assert cli.main(["evaluate", "judge"]) == 0
    [row] = json.loads((folder / "results.json").read_text())["evaluation"]
    assert row["metric"] == "accuracy"
    assert "| Accuracy ↑ |" in (folder / "README.md").read_text(encoding="utf-8")


def test_demo(monkeypatch, capsys, gan, trained, tmp_path):
    """Again, it goes on where it was; after a change of the recipe, it starts anew."""
    length = [2]

    def recipes():
        recipe = found["selfmod-gan-digits"]()
        settings = [word.removeprefix("--set=") for word in TINY] + [f"num_steps={length[0]}"]

        def tiny():
            return cli.with_settings(recipe, settings)

        tiny.__module__ = found["selfmod-gan-digits"].__module__
        return found | {"selfmod-gan-digits": tiny}

    found = loading.recipes()
    monkeypatch.setattr(loading, "recipes", recipes)
    here = {"selfmod-gan-fashion-mnist": gan, "feature-net-digits": trained / "judge"}
    monkeypatch.setattr(loading, "locate", here.__getitem__)
    results = tmp_path / "demo" / "selfmod-gan-digits" / "results.json"
    for length[0] in (2, 2, 3):
        capsys.readouterr()
        assert cli.main(["demo"]) == 0
        out = capsys.readouterr().out
        for picture in ("fashion-mnist.png", "digits.png"):
            assert str(tmp_path / "demo" / picture) in out
            assert (tmp_path / "demo" / picture).is_file()
        assert "Class accuracy" in out
        assert json.loads(results.read_text())["training"]["num_steps"] == length[0]
