"""GANPipeline: what diffusers users expect of a call, a folder and a grid."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genzoo.gan.modeling_dcgan import DCGANConfig, DCGANDiscriminator, DCGANGenerator
from genzoo.gan.modeling_selfmod_gan import (
    SelfModGANConfig,
    SelfModGANDiscriminator,
    SelfModGANGenerator,
)
from genzoo.gan.pipeline_gan import GANPipeline, slerp


def make_pipeline(**changes) -> GANPipeline:
    fields = {
        "image_size": 16,
        "num_channels": 1,
        "latent_dim": 4,
        "num_classes": 3,
        "id2label": {0: "bag", 1: "coat", 2: "shoe"},
        "generator_channels": [8, 8, 8],
        "discriminator_channels": [8, 8],
        "num_downsamples": 2,
        "modulation_size": 4,
    }
    config = SelfModGANConfig(**fields | changes)
    torch.manual_seed(0)
    pipe = GANPipeline(SelfModGANGenerator(config).eval(), SelfModGANDiscriminator(config).eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_output_types_agree():
    pipe = make_pipeline()
    tensors = pipe(4, generator=seeded(), output_type="pt").images
    arrays = pipe(4, generator=seeded(), output_type="np").images
    pictures = pipe(4, generator=seeded()).images
    (plain,) = pipe(4, generator=seeded(), output_type="pt", return_dict=False)
    assert tensors.shape == (4, 1, 16, 16) and tensors.dtype == torch.float32
    assert 0 <= tensors.min() and tensors.max() <= 1
    assert torch.equal(plain, tensors)
    assert np.array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    assert pictures[0].size == (16, 16) and pictures[0].mode == "L"
    expected = (tensors[0, 0].numpy() * 255).round().astype(np.uint8)
    assert np.array_equal(np.asarray(pictures[0]), expected)


def test_seed_decides_and_batches_do_not():
    pipe = make_pipeline()
    whole = pipe(10, generator=seeded(), output_type="pt").images
    parts = pipe(10, generator=seeded(), output_type="pt", batch_size=3).images
    assert torch.equal(whole, pipe(10, generator=seeded(), output_type="pt").images)
    assert torch.allclose(whole, parts, atol=1e-6)
    assert not torch.equal(whole, pipe(10, generator=seeded(1), output_type="pt").images)


def test_one_generator_for_each_image():
    pipe = make_pipeline()
    together = pipe(3, generator=[seeded(index) for index in range(3)], output_type="pt").images
    alone = [pipe(1, generator=[seeded(index)], output_type="pt").images for index in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_class_labels_by_name_and_number():
    pipe = make_pipeline()
    latents = torch.randn(3, 4, generator=seeded())
    expected = pipe(latents=latents, class_labels=[2, 0, 1], output_type="pt").images
    for labels in (["shoe", "bag", "coat"], torch.tensor([2, 0, 1]), ["shoe", 0, "coat"]):
        assert torch.equal(
            pipe(latents=latents, class_labels=labels, output_type="pt").images, expected
        )
    one = pipe(latents=latents, class_labels="coat", output_type="pt").images
    assert torch.equal(one[2], expected[2])
    assert len(pipe(class_labels=["bag", "coat"]).images) == 2
    direct = pipe.gan(latents, torch.tensor([2, 0, 1])).images
    assert torch.allclose(expected, direct / 2 + 0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": "hat"}, "no class 'hat'; this model has bag, coat, shoe"),
        ({"class_labels": 3}, "no class 3"),
        ({"num_images": 3, "class_labels": [0, 1]}, "3 images need 1 or 3 class labels, got 2"),
        ({"num_images": 2, "latents": torch.zeros(3, 4)}, "2 images need 2 latents, got 3"),
        ({"latents": torch.zeros(1, 5)}, r"latents must be \(B, 4\), got \(1, 5\)"),
        ({"latents": torch.zeros(1, 4), "truncation": 1.0}, "cannot be combined"),
        ({"truncation": 0.0}, "must be positive"),
        ({"num_images": 0}, "at least 1"),
        ({"num_images": 2, "generator": [seeded()]}, "2 images need 2 generators, got 1"),
        ({"output_type": "jpeg"}, "output_type must be"),
    ],
)
def test_wrong_arguments_die_with_a_sentence(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_pipeline()(**arguments)


def test_unconditional_models_take_no_labels():
    pipe = make_pipeline(num_classes=0, id2label=None)
    assert pipe(2, output_type="pt").images.shape == (2, 1, 16, 16)
    with pytest.raises(ValueError, match="unconditional"):
        pipe(2, class_labels=0)


def test_truncated_latents_follow_the_truncated_normal():
    pipe = make_pipeline()
    latents = pipe._draw_latents(20_000, seeded(), 0.5)
    assert latents.abs().max() <= 0.5
    # Variance of a standard normal cut at a: 1 - 2 a phi(a) / (2 Phi(a) - 1).
    assert latents.var().item() == pytest.approx(0.0806, abs=2e-3)
    whole = pipe._draw_latents(20_000, seeded(), None)
    assert torch.allclose(pipe._draw_latents(20_000, seeded(), 8.0), whole, atol=1e-3)
    assert torch.equal(latents.sign(), whole.sign())


def test_slerp_keeps_angle_and_length():
    start, end = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    path = slerp(start, end, torch.linspace(0, 1, 4))
    angles = torch.arange(4) * torch.pi / 6
    assert torch.allclose(path, torch.stack([angles.cos(), angles.sin()], dim=1), atol=1e-6)
    assert torch.equal(slerp(start, 3 * start, torch.tensor([0.5])), torch.tensor([[2.0, 0.0]]))


def test_interpolation_ends_at_its_ends():
    pipe = make_pipeline()
    latents = torch.randn(2, 4, generator=seeded())
    path = pipe.interpolate(5, class_labels="bag", latents=latents, output_type="pt").images
    ends = pipe(latents=latents, class_labels="bag", output_type="pt").images
    assert torch.allclose(path[[0, -1]], ends, atol=1e-5)
    drawn = pipe.interpolate(3, generator=seeded(), output_type="pt").images
    assert torch.equal(drawn, pipe.interpolate(3, generator=seeded(), output_type="pt").images)
    with pytest.raises(ValueError, match="two latents"):
        pipe.interpolate(latents=latents[:1])


def test_grid_places_images_and_names():
    pipe = make_pipeline()
    labels = [0, 1, 2, 0, 1, 2]
    picture = pipe.grid(6, num_columns=3, class_labels=labels, scale=1, generator=seeded())
    images = pipe(6, class_labels=labels, generator=seeded()).images
    assert picture.size == (48, 32)
    assert picture.crop((32, 16, 48, 32)).tobytes() == images[5].tobytes()
    named = pipe.grid(10, num_columns=4, generator=seeded())
    assert named.size[0] > 4 * 32 and named.size[1] == 3 * 32  # a row for each class
    plain = make_pipeline(num_classes=0, id2label=None, num_channels=3).grid(5, num_columns=2)
    assert plain.mode == "RGB" and plain.size == (64, 96)
    assert isinstance(plain, Image.Image)


def test_saves_and_loads_without_running_code(tmp_path: Path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_gan", "GANPipeline"]
    assert index["gan"] == ["modeling_selfmod_gan", "SelfModGANGenerator"]
    assert index["discriminator"] == ["modeling_selfmod_gan", "SelfModGANDiscriminator"]
    (tmp_path / "pipeline_gan.py").write_text("raise RuntimeError('code of the folder was run')")
    (tmp_path / "gan" / "modeling_selfmod_gan.py").write_text("raise RuntimeError('code was run')")

    loaded = GANPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    expected = pipe(4, generator=seeded(), output_type="pt").images
    assert torch.equal(loaded(4, generator=seeded(), output_type="pt").images, expected)
    assert not loaded.gan.training and not loaded.discriminator.training
    assert GANPipeline.from_pretrained(tmp_path, discriminator=None).discriminator is None


def test_serves_every_generator_of_the_room(tmp_path: Path):
    config = DCGANConfig(image_size=16, num_channels=3, latent_dim=4, channels=4)
    pipe = GANPipeline(DCGANGenerator(config).eval(), DCGANDiscriminator(config).eval())
    pipe.save_pretrained(tmp_path)
    loaded = GANPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.gan, DCGANGenerator)
    assert isinstance(loaded.discriminator, DCGANDiscriminator)


def test_dtype_device_and_variant(tmp_path: Path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    half = GANPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.gan.dtype == torch.bfloat16
    images = half(2, generator=seeded(), output_type="pt").images
    assert images.dtype == torch.float32 and images.isfinite().all()
    assert half.to(torch.float32).gan.dtype == torch.float32
    assert pipe.to("cpu").device.type == "cpu"
    pipe.save_pretrained(tmp_path / "v", variant="small")
    assert (tmp_path / "v" / "gan" / "model.small.safetensors").exists()
    again = GANPipeline.from_pretrained(tmp_path / "v", variant="small")
    assert torch.equal(again.gan.project.weight, pipe.gan.project.weight)


def test_saved_without_a_discriminator(tmp_path: Path):
    GANPipeline(make_pipeline().gan).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["discriminator"] == [None, None]
    assert GANPipeline.from_pretrained(tmp_path).discriminator is None


def test_damaged_and_foreign_folders(tmp_path: Path):
    with pytest.raises(OSError, match=r"no model_index\.json"):
        GANPipeline.from_pretrained(tmp_path)
    make_pipeline().save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "gan" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match=r"weights in .*gan are damaged"):
        GANPipeline.from_pretrained(tmp_path / "cut")
    make_pipeline().save_pretrained(tmp_path / "foreign")
    config = DCGANConfig(image_size=16, num_channels=1, latent_dim=4, channels=4)
    DCGANGenerator(config).save_pretrained(tmp_path / "dcgan")
    (tmp_path / "dcgan" / "model.safetensors").replace(
        tmp_path / "foreign" / "gan" / "model.safetensors"
    )
    with pytest.raises(OSError, match="are of another model"):
        GANPipeline.from_pretrained(tmp_path / "foreign")
    (tmp_path / "ddpm").mkdir()
    (tmp_path / "ddpm" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(ValueError, match="no component named `gan`"):
        GANPipeline.from_pretrained(tmp_path / "ddpm")
    with pytest.raises(TypeError, match="takes no trunkation"):
        make_pipeline().save_pretrained(tmp_path / "fine")
        GANPipeline.from_pretrained(tmp_path / "fine", trunkation=1)


def test_habits_of_diffusers_users(tmp_path: Path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    again = GANPipeline.from_pretrained(tmp_path, use_safetensors=True, low_cpu_mem_usage=True)
    again.set_progress_bar_config(disable=True)
    images = again(class_labels=np.array([0, 1, 2])[:2].tolist(), output_type="np").images
    assert images.shape == (2, 16, 16, 1)
    one = again(class_labels=[np.int64(2)], generator=seeded(), output_type="pt").images
    assert torch.equal(one, again(class_labels="shoe", generator=seeded(), output_type="pt").images)
    with pytest.raises(ValueError, match="no class True"):
        again(class_labels=[True])
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(OSError, match=r"model_index\.json is damaged"):
        GANPipeline.from_pretrained(tmp_path)
