"""Training a GAN: what it leaves, what it refuses, what it keeps when something goes wrong."""

import dataclasses
import json
import resource
from pathlib import Path

import pytest
import torch
from PIL import Image

from genzoo.data import ImageDataset
from genzoo.gan.losses import hinge_d, hinge_g, r1_penalty
from genzoo.gan.modeling_dcgan import DCGANConfig
from genzoo.gan.modeling_selfmod_gan import SelfModGANConfig
from genzoo.gan.pipeline_gan import GANPipeline
from genzoo.gan.training import GANRecipe, build, estimate_batch_statistics, train_gan
from genzoo.runtime import Run, moving_average


def tiny_recipe(**changes) -> GANRecipe:
    model = SelfModGANConfig(
        image_size=16,
        num_channels=1,
        num_classes=2,
        latent_dim=4,
        generator_channels=[8, 8, 8],
        discriminator_channels=[8, 8],
        num_downsamples=2,
        modulation_size=4,
    )
    recipe = GANRecipe(
        name="tiny",
        model=model,
        data="nobody/nothing",
        feature_network="none",
        d_loss=hinge_d,
        g_loss=hinge_g,
        num_steps=3,
        batch_size=4,
        standing_batches=2,
        log_every=1,
        save_every=1,
        sample_every=2,
    )
    return dataclasses.replace(recipe, **changes)


def noise(
    num_channels: int = 1, size: int = 16, names: tuple[str, ...] = ("a", "b")
) -> ImageDataset:
    images = torch.randint(256, (8, num_channels, size, size)).to(torch.uint8)
    labels = torch.arange(8) % len(names) if names else None
    return ImageDataset(images, labels, list(names), "noise", "train")


def test_leaves_a_folder_that_the_pipeline_opens(tmp_path: Path):
    folder = train_gan(tiny_recipe(), noise(), output_dir=tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {
        "gan", "discriminator", "model_index.json", "results.json", "samples", "run",
    }  # fmt: skip
    pipe = GANPipeline.from_pretrained(folder)
    assert pipe.gan.config.id2label == {0: "a", 1: "b"}
    assert pipe.gan.dtype == torch.float32 and pipe.discriminator is not None
    assert pipe(4, output_type="pt").images.shape == (4, 1, 16, 16)
    training = json.loads((folder / "results.json").read_text())["training"]
    assert training["num_images"] == 3 * 4 and training["seconds"] > 0
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3]
    assert (folder / "run" / "samples" / "step-00000002.png").exists()


def test_published_statistics_are_those_of_the_published_weights(tmp_path: Path):
    """In evaluation mode the last feature map before the modulation is standardized."""
    recipe = tiny_recipe(standing_batches=50, batch_size=64)
    generator, _ = build(recipe, noise(), None)
    estimate_batch_statistics(generator, 50, 64, seed=0)
    seen = {}
    generator.norm.norm.register_forward_hook(lambda module, args, out: seen.update(out=out))
    generator(torch.randn(4096, 4), torch.randint(2, (4096,)))
    assert seen["out"].mean((0, 2, 3)).abs().max() < 0.1
    assert (seen["out"].std((0, 2, 3)) - 1).abs().max() < 0.1
    assert not generator.training and generator.norm.norm.momentum == 0.1


def test_moving_average_is_the_closed_form():
    update, decay = moving_average(0.5), 0.5
    average, expected = [torch.zeros(1)], 0.0
    for step in range(1, 20):
        update(average, [torch.tensor([float(step)])], step)
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * step
    assert average[0].item() == pytest.approx(expected, rel=1e-5)


def test_learning_rates_fall_linearly_and_the_penalty_counts(tmp_path: Path):
    """A run without steps of the generator's optimizer differs only by what the recipe says."""
    plain = train_gan(tiny_recipe(), noise(), output_dir=tmp_path / "plain")
    penalized = train_gan(
        tiny_recipe(d_penalty=r1_penalty, penalty_weight=10.0), noise(), output_dir=tmp_path / "r1"
    )
    states = [
        torch.load(folder / "run" / "checkpoints" / "step-00000003.pt", weights_only=True)
        for folder in (plain, penalized)
    ]
    # The rate of the third of three steps is a third of the first one's.
    for state in states:
        assert state["d_optimizer"]["param_groups"][0]["lr"] == pytest.approx(4e-4 / 3)
        assert state["g_optimizer"]["param_groups"][0]["lr"] == pytest.approx(2e-4 / 3)
    weights = [state["discriminator"]["blocks.0.conv1.weight"] for state in states]
    assert not torch.equal(*weights)


def test_fine_tuning_takes_over_what_fits(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    first = train_gan(tiny_recipe(), noise(), output_dir=tmp_path / "first")
    recipe = tiny_recipe(num_steps=1, g_learning_rate=0.0, d_learning_rate=0.0)
    second = train_gan(recipe, noise(names=("x", "y", "z")), first, output_dir=tmp_path / "second")
    old, new = GANPipeline.from_pretrained(first), GANPipeline.from_pretrained(second)
    assert new.gan.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert torch.equal(old.gan.project.weight, new.gan.project.weight)
    assert torch.equal(old.discriminator.head.weight, new.discriminator.head.weight)
    assert new.gan.class_shift.weight.shape == (3, 4)
    unlabelled = train_gan(recipe, noise(names=()), first, output_dir=tmp_path / "third")
    assert GANPipeline.from_pretrained(unlabelled).gan.config.num_classes == 0


def test_fine_tunes_on_a_folder_of_pictures(tmp_path: Path):
    for name in ("cats", "dogs"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(3):
            color = (80 * index, 40, 200 if name == "cats" else 10)
            picture = Image.new("RGB", (30, 20), color)
            picture.save(tmp_path / "pictures" / name / f"{index}.png")
    folder = train_gan(tiny_recipe(), tmp_path / "pictures", output_dir=tmp_path / "out")
    assert GANPipeline.from_pretrained(folder).gan.config.id2label == {0: "cats", 1: "dogs"}


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (noise(size=8), r"wants images \(1, 16, 16\), noise has \(1, 8, 8\)"),
        (noise(num_channels=3), r"wants images \(1, 16, 16\), noise has \(3, 16, 16\)"),
    ],
)
def test_refuses_images_that_do_not_fit(dataset: ImageDataset, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        train_gan(tiny_recipe(), dataset, output_dir=tmp_path / "out")


def test_refuses_a_folder_with_another_run(tmp_path: Path):
    train_gan(tiny_recipe(), noise(), output_dir=tmp_path)
    with pytest.raises(FileExistsError, match="holds a run already"):
        train_gan(tiny_recipe(), noise(), output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"another run: num_steps is 3 there, 5 here"):
        train_gan(tiny_recipe(num_steps=5), noise(), output_dir=tmp_path, resume=True)
    before = (tmp_path / "gan" / "model.safetensors").read_bytes()
    train_gan(tiny_recipe(), noise(), output_dir=tmp_path, resume=True)  # nothing is left to do
    assert (tmp_path / "gan" / "model.safetensors").read_bytes() == before


def test_refuses_a_folder_with_a_checkpoint(tmp_path: Path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds a checkpoint already"):
        train_gan(tiny_recipe(), noise(), output_dir=tmp_path)


def test_stops_at_a_loss_that_is_not_finite_and_keeps_the_checkpoint(tmp_path: Path):
    calls = 0

    def nan_at_third(real_logits, fake_logits, **kwargs):
        nonlocal calls
        calls += 1
        return hinge_d(real_logits, fake_logits) * (float("nan") if calls == 3 else 1.0)

    recipe = tiny_recipe(d_loss=nan_at_third, num_steps=6)
    with pytest.raises(FloatingPointError, match="step 2"):
        train_gan(recipe, noise(), output_dir=tmp_path)
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["step-00000001.pt", "step-00000002.pt"]
    kept = torch.load(tmp_path / "run" / "checkpoints" / left[-1], weights_only=True)
    assert all(tensor.isfinite().all() for tensor in kept["generator"].values())
    assert not (tmp_path / "model_index.json").exists()


def test_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path):
    run = Run(tmp_path, {"name": "x"}, resume=False, is_main=True)
    run.save(1, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # no file may grow beyond it
    try:
        with pytest.raises(OSError, match=r"step 2 could not be written .*step-00000001.pt"):
            run.save(2, {"step": 2, "weights": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [
        "step-00000001.pt"
    ]
    assert run.load() == {"step": 1}


def test_unconditional_recipes_ignore_labels(tmp_path: Path):
    model = DCGANConfig(image_size=16, num_channels=1, latent_dim=4, channels=4)
    folder = train_gan(tiny_recipe(model=model), noise(), output_dir=tmp_path / "out")
    pipe = GANPipeline.from_pretrained(folder)
    assert type(pipe.gan).__name__ == "DCGANGenerator" and pipe.gan.config.num_classes == 0


def test_tensorboard_is_a_tracker(tmp_path: Path):
    folder = train_gan(tiny_recipe(), noise(), output_dir=tmp_path / "out", tracker="tensorboard")
    assert list((folder / "run").rglob("events.out.tfevents.*"))
    assert not (folder / "run" / "log.jsonl").exists()


@pytest.mark.slow
def test_compiled_generator_trains_alike(tmp_path: Path):
    weights = []
    for use_compile in (False, True):
        recipe = tiny_recipe(use_compile=use_compile)
        folder = train_gan(recipe, noise(), output_dir=tmp_path / str(use_compile))
        weights.append(GANPipeline.from_pretrained(folder).gan.project.weight)
    assert torch.allclose(*weights, atol=1e-3)


def test_wrong_input_leaves_the_folder_free(tmp_path: Path):
    with pytest.raises(ValueError, match="wants images"):
        train_gan(tiny_recipe(), noise(size=8), output_dir=tmp_path / "out")
    with pytest.raises(OSError, match="no data folder"):
        train_gan(tiny_recipe(), tmp_path / "nowhere", output_dir=tmp_path / "out")
    train_gan(tiny_recipe(), noise(), output_dir=tmp_path / "out")


@pytest.mark.parametrize("name", ["num_steps", "num_d_steps", "batch_size", "standing_batches"])
def test_refuses_counts_below_one(name: str):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        tiny_recipe(**{name: 0})


def test_weights_that_are_not_finite_are_not_kept(tmp_path: Path):
    """The losses are looked at before the step, the weights after it."""

    def poison(discriminator, real_images, fake_images, *, generator=None):
        return discriminator(real_images).sum() * 0 / 0

    recipe = tiny_recipe(d_penalty=poison, penalty_weight=1.0)
    with pytest.raises(FloatingPointError, match="step 0"):
        train_gan(recipe, noise(), output_dir=tmp_path)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_results_tell_where_a_checkpoint_began(tmp_path: Path):
    first = train_gan(tiny_recipe(), noise(), output_dir=tmp_path / "first")
    second = train_gan(tiny_recipe(), noise(), first, output_dir=tmp_path / "second")
    results = [json.loads((folder / "results.json").read_text()) for folder in (first, second)]
    assert results[0]["training"]["init"] is None
    assert results[1]["training"]["init"] == results[0]["training"]
    assert results[1]["name"] == "second" and results[1]["recipe"] == "tiny"
