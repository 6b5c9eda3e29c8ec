"""The feature networks: the contract, closed forms, bad input, training, evaluation."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

import genzoo
from common import ModelTests
from genzoo.data import ImageDataset, load_images
from genzoo.features import FeatureNetConfig, FeatureNetForImageClassification, recipes, training
from genzoo.features.evaluation import evaluate_feature_net
from genzoo.features.image_processing_feature_net import FeatureNetImageProcessor
from genzoo.features.modeling_feature_net import FeatureNetBlock
from genzoo.features.training import FeatureNetRecipe, export, shift, train_feature_net

RECIPES = [recipes.feature_net_digits, recipes.feature_net_fashion_mnist]


def small_config(**changes) -> FeatureNetConfig:
    values = {"image_size": 9, "num_channels": 2, "hidden_sizes": [3, 5], "num_blocks": [1, 2]}
    return FeatureNetConfig(**({"num_labels": 4} | values | changes))


def pixels(batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.rand(batch_size, 2, 9, 9, generator=generator) * 2 - 1}


def striped_images(count: int = 24, size: int = 8) -> ImageDataset:
    """Grey images of two classes that are easy to tell apart: rows and columns of noisy stripes."""
    noise = torch.randint(0, 60, (count, 1, size, size), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 2
    stripes = 150 * (torch.arange(size) % 2)
    rows, columns = stripes[:, None].expand(size, size), stripes[None, :].expand(size, size)
    images = noise + torch.where(labels[:, None, None, None] == 0, rows, columns)
    names = ["rows", "columns"]
    return ImageDataset(images.to(torch.uint8), labels, names, "owner/stripes", "train")


def small_recipe(**changes) -> FeatureNetRecipe:
    values = {
        "name": "feature-net-stripes",
        "model": FeatureNetConfig(image_size=8, hidden_sizes=[8, 16], num_blocks=[1, 1]),
        "data": "owner/stripes",
        "num_steps": 4,
        "batch_size": 8,
        "warmup_steps": 1,
        "max_shift": 1,
        "random_flip": True,
        "log_every": 1,
        "save_every": 1,
    }
    return FeatureNetRecipe(**(values | changes))


class TestFeatureNet(ModelTests):
    model_class = FeatureNetForImageClassification
    auto_class = AutoModelForImageClassification
    make_config = staticmethod(small_config)
    make_inputs = staticmethod(pixels)
    output = "logits"
    output_shape = (4,)
    num_parameters = 1133


# From pictures to inputs


def pictures() -> list[Image.Image]:
    source = np.random.default_rng(0)
    pixels = source.integers(0, 256, (23, 31, 4), dtype=np.uint8)
    deep = Image.fromarray(source.integers(0, 2**16, (20, 20), dtype=np.uint16))
    return [*(Image.fromarray(pixels).convert(mode) for mode in ("RGBA", "RGB", "L", "P")), deep]


@pytest.mark.parametrize("num_channels", [1, 3])
def test_pictures_are_cut_and_scaled_as_for_training(tmp_path, num_channels):
    for index, picture in enumerate(pictures()):
        picture.save(tmp_path / f"{index}.png")
    loaded = load_images(tmp_path, image_size=9, num_channels=num_channels)
    processor = FeatureNetImageProcessor(image_size=9, num_channels=num_channels)
    opened = [Image.open(tmp_path / f"{index}.png") for index in range(len(loaded.images))]
    inputs = processor(opened, return_tensors="pt").pixel_values
    expected = loaded.images / 127.5 - 1
    torch.testing.assert_close(inputs, expected, rtol=0, atol=1e-6)


def test_arrays_are_pictures():
    processor = FeatureNetImageProcessor(image_size=9, num_channels=1)
    picture = pictures()[1]
    expected = processor(picture, return_tensors="pt").pixel_values
    array = np.asarray(picture)
    for same in (array, array.transpose(2, 0, 1), torch.tensor(array)):
        assert torch.equal(processor(same, return_tensors="pt").pixel_values, expected)
    grey = np.asarray(picture.convert("L"))[:, :, None]
    assert torch.equal(processor(grey, return_tensors="pt").pixel_values, expected)


def test_a_picture_is_classified(tmp_path):
    """By the one door, which knows the task, and by transformers' own."""
    test = load_images("sklearn/digits", split="test", image_size=28, num_channels=1)
    digits = [Image.fromarray(image[0].numpy()) for image in test.images[:20]]
    classify = genzoo.pipeline(model="feature-net-digits")
    found = [int(rows[0]["label"]) for rows in classify(digits, top_k=1)]
    assert sum(a == b for a, b in zip(found, test.labels[:20].tolist(), strict=True)) >= 19
    processor = AutoImageProcessor.from_pretrained(genzoo.locate("feature-net-digits"))
    assert type(processor) is FeatureNetImageProcessor
    processor.save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


# Closed forms


def test_a_block_whose_residual_is_zero_is_its_shortcut():
    block = FeatureNetBlock(3, 3, stride=1).eval()
    torch.nn.init.zeros_(block.norm2.weight)
    h = torch.randn(2, 3, 5, 5)
    assert torch.equal(block(h), h.relu())


@pytest.mark.parametrize(("size", "expected"), [(8, 4), (7, 4)])
def test_a_block_halves_the_image_and_rounds_up(size, expected):
    block = FeatureNetBlock(3, 4, stride=2).eval()
    assert block(torch.randn(2, 3, size, size)).shape == (2, 4, expected, expected)


def test_the_shortcut_sees_every_pixel():
    """The gradient of a block with no residual is the same for all pixels of an even image."""
    block = FeatureNetBlock(1, 1, stride=2).eval()
    torch.nn.init.zeros_(block.norm2.weight)
    torch.nn.init.ones_(block.shortcut[1].weight)
    h = torch.rand(1, 1, 4, 4, requires_grad=True)
    block(h).sum().backward()
    torch.testing.assert_close(h.grad, torch.full((1, 1, 4, 4), h.grad[0, 0, 0, 0].item()))


def test_logits_are_linear_in_the_embeddings():
    model = FeatureNetForImageClassification(small_config()).eval()
    output = model(**pixels(3, torch.Generator().manual_seed(0)))
    assert output.loss is None
    assert output.embeddings.shape == (3, 5)
    assert (output.embeddings >= 0).all()
    torch.testing.assert_close(output.logits, model.classifier(output.embeddings))


def test_loss_is_cross_entropy():
    model = FeatureNetForImageClassification(small_config()).eval()
    inputs, labels = pixels(3, torch.Generator().manual_seed(0)), torch.tensor([3, 0, 1])
    output = model(**inputs, labels=labels)
    assert torch.equal(output.logits, model(**inputs).logits)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    assert len(model(**inputs, labels=labels, return_dict=False)) == 3


def test_a_stem_of_stride_two_halves_the_image():
    config = small_config(stem_stride=2, hidden_sizes=[3], num_blocks=[1])
    model = FeatureNetForImageClassification(config).eval()
    assert model.stem(pixels(1, torch.Generator())["pixel_values"]).shape == (1, 3, 5, 5)


# Bad input


@pytest.mark.parametrize(
    ("pixel_values", "labels", "message"),
    [
        (torch.zeros(1, 1, 9, 9), None, r"must be \(B, 2, 9, 9\), got \(1, 1, 9, 9\)"),
        (torch.zeros(1, 2, 8, 9), None, r"must be \(B, 2, 9, 9\), got \(1, 2, 8, 9\)"),
        (torch.zeros(2, 9, 9), None, r"must be \(B, 2, 9, 9\), got \(2, 9, 9\)"),
        (torch.zeros(1, 2, 9, 9, dtype=torch.uint8), None, "floating point in .*, got torch.uint8"),
        (torch.zeros(2, 2, 9, 9), torch.zeros(1, dtype=torch.int64), r"labels must be \(2,\)"),
    ],
)
def test_wrong_shapes_die_at_the_door(pixel_values, labels, message):
    model = FeatureNetForImageClassification(small_config())
    with pytest.raises(ValueError, match=message):
        model(pixel_values, labels=labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_blocks": [1]}, "one entry for each stage"),
        ({"hidden_sizes": [], "num_blocks": []}, "one entry for each stage"),
        ({"num_blocks": [1, 0]}, "must be positive"),
        ({"image_size": 1}, "image_size must be at least 2"),
        ({"num_labels": 2, "id2label": {0: "cat", 2: "dog"}}, "id2label must name the classes"),
    ],
)
def test_impossible_architectures_are_refused(changes, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        small_config(**changes)


def test_fields_have_types():
    with pytest.raises(StrictDataclassFieldValidationError, match="image_size"):
        small_config(image_size="9")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("hidden_size", "hidden_sizes"), ("num_chanels", "num_channels"), ("num_label", "num_labels")],
)
def test_a_misspelt_field_in_config_json_gives_a_warning(tmp_path, caplog, wrong, right):
    small_config().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {wrong: 3}))
    with caplog.at_level(logging.WARNING):
        AutoConfig.from_pretrained(tmp_path)
    assert f"FeatureNetConfig has no field {wrong!r}; did you mean {right!r}?" in caplog.text


# Checkpoints


def test_a_checkpoint_is_float16_and_loads_as_float32(tmp_path):
    model = TestFeatureNet().make_model()
    export(model, tmp_path / "run", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float16}
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    half = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.dtype == torch.float16
    for name, tensor in half.float().state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    inputs = pixels(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(**inputs).logits, half(**inputs).logits, rtol=0, atol=1e-5)
    assert model.dtype == torch.float32  # the network that was exported is as it was


def test_weights_beyond_float16_are_refused(tmp_path):
    model = FeatureNetForImageClassification(small_config())
    model.norm.running_var.fill_(1e6)
    with pytest.raises(ValueError, match=r"norm\.running_var does not fit into float16"):
        export(model, tmp_path / "run", tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_recipe_is_small_and_well_spelt(recipe, caplog):
    config = recipe().model
    assert recipe.__name__.replace("_", "-") == recipe().name
    assert FeatureNetForImageClassification(config).num_parameters() < 500_000  # 1 MB of float16
    assert "has no field" not in caplog.text
    declared = {field.name for field in dataclasses.fields(config)} | {"model_type"}
    assert set(config.to_diff_dict()) <= declared


# Training


def test_shift_moves_each_image_by_its_own_offset():
    images = torch.arange(2 * 2 * 3 * 3, dtype=torch.float32).view(2, 2, 3, 3)
    moved = shift(images, torch.tensor([[1, 0], [0, -2]]), max_shift=2)
    assert torch.equal(moved[0], images[0][:, [0, 0, 1]])  # down by one, first row repeated
    assert torch.equal(moved[1], images[1][:, :, [2, 2, 2]])  # left by two, last column repeated
    assert torch.equal(shift(images, torch.zeros(2, 2, dtype=torch.int64), max_shift=0), images)


def test_training_learns_and_evaluation_says_so(tmp_path):
    train_feature_net(small_recipe(num_steps=60), striped_images(), output_dir=tmp_path)
    rows = evaluate_feature_net(tmp_path, dataclasses.replace(striped_images(), split="test"))
    (row,) = rows
    assert (row["metric"], row["value"], row["split"], row["num_real"]) == (
        "accuracy",
        1,
        "test",
        24,
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["name"], results["task"]) == ("feature-net-stripes", "image-classification")
    assert results["training"]["num_images"] == 60 * 8
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.id2label == {0: "rows", 1: "columns"}


def test_evaluation_matches_classes_by_name(tmp_path):
    images = striped_images()
    train_feature_net(small_recipe(num_steps=60), images, output_dir=tmp_path)
    swapped = dataclasses.replace(images, labels=1 - images.labels, label_names=["columns", "rows"])
    assert evaluate_feature_net(tmp_path, swapped)[0]["value"] == 1
    with pytest.raises(ValueError, match="classes that the network does not know: dots"):
        evaluate_feature_net(tmp_path, dataclasses.replace(images, label_names=["rows", "dots"]))
    with pytest.raises(ValueError, match="owner/stripes has none"):
        evaluate_feature_net(tmp_path, dataclasses.replace(images, labels=None))
    (tmp_path / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match="does not say what it was trained on"):
        evaluate_feature_net(tmp_path)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    straight = train_feature_net(small_recipe(), striped_images(), output_dir=tmp_path / "straight")
    save = training.Run.save

    def save_and_die(run, step, state):
        save(run, step, state)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Run, "save", save_and_die)
    arguments = {"dataset": striped_images(), "output_dir": tmp_path / "resumed"}
    with pytest.raises(KeyboardInterrupt):
        train_feature_net(small_recipe(), **arguments)
    monkeypatch.undo()
    with pytest.raises(FileExistsError):
        train_feature_net(small_recipe(), **arguments)
    with pytest.raises(ValueError, match="another run"):
        train_feature_net(small_recipe(seed=1), **arguments, resume=True)
    resumed = train_feature_net(small_recipe(), **arguments, resume=True)
    expected, found = (load_file(folder / "model.safetensors") for folder in (straight, resumed))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_training_stops_when_the_loss_is_no_number(tmp_path):
    with pytest.raises(FloatingPointError, match="the loss was not finite at step 1;"):
        train_feature_net(small_recipe(learning_rate=1e30), striped_images(), output_dir=tmp_path)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.name == "step-00000001.pt"
    assert not (tmp_path / "config.json").exists()


def test_images_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"images \(1, 8, 8\), owner/stripes has \(1, 10, 10\)"):
        train_feature_net(small_recipe(), striped_images(size=10), output_dir=tmp_path / "a")
    unlabelled = dataclasses.replace(striped_images(), labels=None, label_names=[])
    with pytest.raises(ValueError, match="learns from labels, and owner/stripes has none"):
        train_feature_net(small_recipe(), unlabelled, output_dir=tmp_path / "b")


def test_fine_tuning_keeps_all_but_the_last_layer(tmp_path, caplog):
    first = train_feature_net(small_recipe(), striped_images(), output_dir=tmp_path / "first")
    images = striped_images()
    three = dataclasses.replace(images, labels=torch.arange(24) % 3, label_names=["a", "b", "c"])
    start_from = FeatureNetForImageClassification.from_pretrained(first)
    model = training.build(small_recipe(), three, start_from)
    assert "classifier.weight, classifier.bias do not fit the data and start anew" in caplog.text
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert torch.equal(model.stem.weight, start_from.stem.weight)
    second = train_feature_net(small_recipe(), three, first, output_dir=tmp_path / "second")
    assert load_file(second / "model.safetensors")["classifier.weight"].shape == (3, 16)
