"""What an energy is measured by: cases whose answer is known."""

import dataclasses
import json
import math

import pytest
import torch

from genzoo.data import ImageDataset
from genzoo.ebm import evaluation
from genzoo.ebm.colors import (
    COLORS,
    color_of,
    colors_of_digits,
    digits_in_colors,
    gray,
)
from genzoo.ebm.likelihood import log_partition
from genzoo.ebm.modeling_ebm import EBMConfig, EnergyModel
from genzoo.ebm.pipeline_ebm import EBMPipeline
from genzoo.ebm.recipes import igebm_colour_digits, igebm_mnist
from genzoo.ebm.scheduling_langevin import LangevinScheduler
from genzoo.features import FeatureNetConfig, FeatureNetForImageClassification

NAMES = ["zero", "one"]


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Likelihood


def test_the_bounds_close_in_on_log_z():
    """E = x^2 / 2v on [-1, 1]^3, whose integral is known through erf, with exact samples."""
    variance, size = 0.05, 3
    exact = size * math.log(
        math.sqrt(2 * math.pi * variance) * math.erf(1 / math.sqrt(2 * variance))
    )

    def energy(x):
        return x.square().flatten(1).sum(dim=1) / (2 * variance)

    draws = torch.randn(4096, size, generator=source()) * math.sqrt(variance)
    samples = draws[draws.abs().amax(dim=1) <= 1][:1000]
    found = log_partition(
        energy,
        (size,),
        samples=samples,
        num_chains=1000,
        num_distributions=200,
        generator=source(1),
    )
    assert found.lower == pytest.approx(exact, abs=0.05)
    assert found.upper == pytest.approx(exact, abs=0.05)
    assert 0.9 < found.acceptance_rate < 1


def test_the_bounds_hold_on_the_average():
    """Too few distributions: the bounds are off, each to its side."""
    exact = math.log(math.sqrt(2 * math.pi / 50) * math.erf(5))

    def energy(x):
        return 25 * x.square().sum(dim=1)

    samples = (torch.randn(40, 100, 1, generator=source()) / math.sqrt(50)).clamp(-1, 1)
    found = [
        log_partition(
            energy,
            (1,),
            samples=samples[seed],
            num_chains=2,
            num_distributions=3,
            generator=source(seed),
        )
        for seed in range(40)
    ]
    assert sum(one.lower for one in found) / 40 < exact - 0.1
    assert sum(one.upper for one in found) / 40 > exact + 0.1


def test_a_flat_energy_needs_no_chain():
    found = log_partition(
        lambda x: torch.full(x.shape[:1], 2.0),
        (2, 2),
        samples=torch.zeros(3, 2, 2),
        num_chains=2,
        num_distributions=1,
        generator=source(),
    )
    assert found.lower == pytest.approx(4 * math.log(2) - 2, abs=1e-6)
    assert found.upper == pytest.approx(found.lower, abs=1e-6)


def test_bounds_want_samples_in_the_box():
    with pytest.raises(ValueError, match=r"samples must be in \[-1, 1\]"):
        log_partition(lambda x: x.sum(dim=1), (1,), samples=torch.full((1, 1), 2.0))
    for wrong in (torch.zeros(0, 1), torch.zeros(3, 5), torch.zeros(1)):
        with pytest.raises(ValueError, match=r"samples must be \(B, 1\), got"):
            log_partition(lambda x: x.sum(dim=1), (1,), samples=wrong)
    with pytest.raises(ValueError, match="energies are not finite"):
        log_partition(lambda x: x.sum(dim=1) * math.nan, (1,), num_distributions=2)
    with pytest.raises(ValueError, match="there must be a chain"):
        log_partition(lambda x: x.sum(dim=1), (1,), num_chains=0)


# Colors


def digits(count: int = 60, size: int = 28) -> ImageDataset:
    images = torch.randint(256, (count, 1, size, size), generator=source()).to(torch.uint8)
    labels = torch.arange(count) % len(NAMES)
    return ImageDataset(images.expand(-1, 3, -1, -1), labels, NAMES, "digits", "train")


def test_colors_are_found_again():
    data = digits()
    by_digit, by_color = digits_in_colors(data), colors_of_digits(data)
    assert torch.equal(by_digit.images, by_color.images)
    assert torch.equal(gray(by_digit.images), data.images[:, :1])
    assert by_digit.label_names == NAMES and torch.equal(by_digit.labels, data.labels)
    assert by_color.label_names == [*COLORS]
    assert torch.equal(color_of(by_color.images.float() / 255), by_color.labels)
    assert by_color.labels.unique().tolist() == [*range(len(COLORS))]
    with pytest.raises(ValueError, match="want images of three channels, digits has 1"):
        digits_in_colors(dataclasses.replace(data, images=data.images[:, :1]))


# Numbers of a card


def test_auroc_of_known_energies():
    inside, outside = torch.tensor([[0.0, 9.0], [1.0, 9.0]]), torch.tensor([[9.0, 2.0], [0.5, 8.0]])
    assert evaluation.auroc(inside, outside) == 0.75
    assert evaluation.auroc(inside, inside) == 0.5


def test_the_nearest_image_has_the_same_class_and_upper_half():
    train = digits(40, 4)
    images = train.images[:6].clone()
    images[:, :, 2:] = 0  # the lower half does not count
    assert torch.equal(evaluation.nearest_images(images, train.labels[:6], train), train.images[:6])
    others = 1 - train.labels[:6]
    found = evaluation.nearest_images(images, others, train)
    assert all(
        any(torch.equal(image, other) for other in train.images[train.labels == label])
        for image, label in zip(found, others, strict=True)
    )


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    config = FeatureNetConfig(
        image_size=28,
        hidden_sizes=[4],
        num_blocks=[1],
        num_labels=2,
        id2label=dict(enumerate(NAMES)),
        label2id={name: index for index, name in enumerate(NAMES)},
    )
    FeatureNetForImageClassification(config).save_pretrained(folder)
    return folder


def checkpoint(folder, num_channels: int, names: list[str]):
    torch.manual_seed(0)
    config = EBMConfig(
        image_size=28,
        num_channels=num_channels,
        num_classes=len(names),
        id2label=dict(enumerate(names)),
        channels=[2, 2, 2],
        downsamples=[True, True],
    )
    chains = LangevinScheduler(step_size=1.0, noise_std=0.1, clamp=[-1, 1], num_inference_steps=3)
    EBMPipeline(EnergyModel(config), chains).save_pretrained(folder)
    (folder / "results.json").write_text(json.dumps({"recipe": "igebm-mnist"}))
    return folder


def test_the_numbers_of_an_energy(tmp_path, judge, monkeypatch):
    """Every kind of number is there once, and the same on every call."""
    data = dataclasses.replace(digits(), images=digits().images[:, :1], split="test")
    monkeypatch.setattr(evaluation, "NUM_INPAINTED", 3)
    monkeypatch.setattr(evaluation, "NUM_DISTRIBUTIONS", 4)
    monkeypatch.setattr(evaluation, "load_images", lambda *_, **__: data)
    folder = checkpoint(tmp_path / "energy", 1, NAMES)
    arguments = {"feature_network": judge, "num_images": 30, "num_inference_steps": 2}
    rows = evaluation.evaluate_energy(folder, data, recipe=igebm_mnist(), **arguments)
    found = {(row["metric"], row["reference"]): row for row in rows}
    assert len(found) == len(rows)
    assert {name for name, is_reference in found if not is_reference} == {
        "fid",
        "kid",
        "inception_score",
        "precision",
        "recall",
        "class_accuracy",
        "inpainting_mse",
        "inpainting_accuracy",
        "energy_accuracy",
        "auroc_noise",
        "auroc",
        "log_likelihood_lower",
        "log_likelihood_upper",
    }
    fid, filled = found["fid", False], found["inpainting_mse", False]
    assert (fid["num_inference_steps"], fid["chain_start"], fid["num_generated"]) == (
        2,
        "noise",
        30,
    )
    assert (filled["num_real"], filled["num_generated"]) == (3, 48)
    bound = found["log_likelihood_lower", False]
    assert (bound["num_generated"], bound["num_inference_steps"]) == (16, 4)
    assert ("inpainting_mse", True) not in found, "it has no others to be near"
    assert found["auroc", False]["value"] == pytest.approx(0.5), "of the same images"
    assert found["auroc", False]["dataset"] == "digits + digits"
    lower, upper = (found[f"log_likelihood_{end}", False]["value"] for end in ("lower", "upper"))
    # Weights as they are at the start give a nearly flat energy: log p is that of a uniform x.
    assert lower == pytest.approx(upper, abs=2) and upper == pytest.approx(
        -784 * math.log(2), abs=2
    )
    again = evaluation.evaluate_energy(folder, data, recipe=igebm_mnist(), **arguments)
    assert [row["value"] for row in again] == [row["value"] for row in rows]


def test_the_numbers_of_a_composition(tmp_path, judge, monkeypatch):
    monkeypatch.setattr(evaluation, "NUM_DISTRIBUTIONS", 2)
    data = dataclasses.replace(digits_in_colors(digits()), split="test")
    by_digit = checkpoint(tmp_path / "digit", 3, NAMES)
    by_color = checkpoint(tmp_path / "color", 3, [*COLORS])
    rows = evaluation.evaluate_energy(
        by_digit,
        data,
        recipe=igebm_colour_digits(),
        feature_network=judge,
        companion=by_color,
        num_images=24,
    )
    values = {row["metric"]: row["value"] for row in rows}
    assert values["both_accuracy"] <= min(values["digit_accuracy"], values["color_accuracy"])
    assert "fid" not in values and "inpainting_mse" not in values


def test_completions_stand_beside_the_nearest_image(tmp_path, judge, monkeypatch):
    """Of training images with noise below, whose error is what it is in closed form."""
    train = dataclasses.replace(digits(), images=digits().images[:, :1])
    above, below = train.images[:, :, :14], train.images[:, :, 14:]
    test = torch.cat([above, 255 - below], dim=2)
    parts = {"train": train, "test": dataclasses.replace(train, images=test, split="test")}
    monkeypatch.setattr(evaluation, "NUM_INPAINTED", 5)
    monkeypatch.setattr(evaluation, "NUM_DISTRIBUTIONS", 1)
    monkeypatch.setattr(evaluation, "evaluate_pipeline", lambda *_, **__: [])
    monkeypatch.setattr(evaluation, "load_images", lambda *_, split, **__: parts[split])
    folder = checkpoint(tmp_path / "energy", 1, NAMES)
    rows = evaluation.evaluate_energy(
        folder, "digits", recipe=igebm_mnist(), feature_network=judge, num_inference_steps=1
    )
    (nearest,) = [row for row in rows if row["reference"] and row["metric"] == "inpainting_mse"]
    chosen = torch.randperm(60, generator=evaluation.generator_for(0, 3))[:5]
    expected = (2 * below[chosen].double() / 255 - 1).square().mean()
    assert nearest["value"] == pytest.approx(float(expected), rel=1e-5)
    assert nearest["num_real"] == 5 and nearest["num_generated"] is None
    rows = {row["metric"]: row for row in rows if row is not nearest}
    labels = train.labels[chosen]
    means = torch.stack([below[train.labels == each].double().mean(dim=0) for each in labels])
    mean_error = ((means - 255 + below[chosen].double()) / 255).square().mean()
    mean = rows["inpainting_mse_of_mean"]
    assert mean["value"] == pytest.approx(float(mean_error), rel=1e-5) and mean["reference"]
    any_class = rows["inpainting_mse_of_any"]
    assert any_class["value"] == pytest.approx(nearest["value"]), "itself, of whatever class"
    gain, own = rows["inpainting_advantage"], rows["inpainting_mse"]
    assert gain["value"] == pytest.approx(nearest["value"] - own["value"], rel=1e-4)
    assert gain["std"] > 0 and gain["num_generated"] == 80 and not gain["reference"]


@pytest.mark.parametrize("is_composed", [True, False])
def test_no_images_at_all_are_no_measurement(tmp_path, judge, is_composed):
    model = checkpoint(tmp_path / "digit", 3 if is_composed else 1, NAMES)
    companion = {"companion": checkpoint(tmp_path / "color", 3, [*COLORS])} if is_composed else {}
    recipe = igebm_colour_digits() if is_composed else igebm_mnist()
    data = digits_in_colors(digits()) if is_composed else digits()
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        evaluation.evaluate_energy(
            model, data, recipe=recipe, feature_network=judge, num_images=0, **companion
        )
