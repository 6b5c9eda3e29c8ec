"""Pipelines over energies: a small network, and a Gaussian whose answers are known."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from PIL import Image
from transformers import PreTrainedModel

from genzoo.ebm.buffer import SampleBuffer
from genzoo.ebm.composition import of_class
from genzoo.ebm.modeling_ebm import EBMConfig, EnergyModel
from genzoo.ebm.pipeline_ebm import EBMInpaintPipeline, EBMPipeline
from genzoo.ebm.samplers import sample
from genzoo.ebm.scheduling_langevin import LangevinScheduler

TINY = {"image_size": 8, "num_channels": 1, "channels": [4, 6], "downsamples": [True]}
CLASSES = {"num_classes": 3, "id2label": {0: "shirt", 1: "shoe", 2: "bag"}}


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(**changes) -> EnergyModel:
    torch.manual_seed(0)
    model = EnergyModel(EBMConfig(**TINY | changes))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "conv2" in name or "gain" in name:
                weight.normal_()
    return model.eval()


def make(kind: type = EBMPipeline, steps: int = 5, **changes) -> EBMPipeline:
    scheduler = LangevinScheduler(
        step_size=0.5, noise_std=0.02, clamp=[-1, 1], num_inference_steps=steps
    )
    pipe = kind(tiny(**changes), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class GaussianEnergy(PreTrainedModel):
    """E = (|a|^2 + |b|^2 - 2 r a . b) / (2 v (1 - r^2)) of an image with the rows a and b."""

    config_class = EBMConfig
    correlation, variance = 0.8, 0.01

    def __init__(self, config):
        super().__init__(config)
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def forward(self, pixel_values, class_labels=None):
        above, below = pixel_values[:, 0, 0], pixel_values[:, 0, 1]
        form = above.square() + below.square() - 2 * self.correlation * above * below
        return form.sum(dim=1) / (2 * self.variance * (1 - self.correlation**2))

    def score(self, pixel_values, class_labels=None):
        return -torch.func.grad(lambda x: self(x).sum())(pixel_values)


def gaussian(kind: type, scheduler: LangevinScheduler) -> EBMPipeline:
    pipe = kind(
        GaussianEnergy(
            EBMConfig(image_size=2, num_channels=1, channels=[1, 1], downsamples=[False])
        ),
        scheduler,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_call_is_a_chain_from_uniform_noise():
    pipe = make()
    found = pipe(3, generator=source(), output_type="pt")
    draws = source()
    start = torch.rand(3, 1, 8, 8, generator=draws) * 2 - 1
    expected = sample(pipe.ebm, start, pipe.scheduler, 5, draws)
    torch.testing.assert_close(found.images, expected.samples / 2 + 0.5)
    torch.testing.assert_close(found.energies, expected.energies)
    assert found.images.min() >= 0 and found.images.max() <= 1 and found.trajectory is None
    assert (found.energies < pipe.ebm(start)).all()


def test_images_of_a_gaussian_have_its_moments():
    scheduler = LangevinScheduler(step_size=0.0005, num_inference_steps=400)
    found = gaussian(EBMPipeline, scheduler)(
        4_000, generator=source(), batch_size=4_000, output_type="pt"
    )
    rows = (found.images * 2 - 1)[:, 0].permute(1, 0, 2).flatten(1)  # (2, N)
    moments = rows.cov() / GaussianEnergy.variance
    expected = torch.tensor([[1, 0.8], [0.8, 1]])
    torch.testing.assert_close(moments, expected, atol=0.06, rtol=0)


def test_what_is_filled_in_is_the_conditional_distribution():
    """Below x the mean is r x, and the variance v (1 - r^2)."""
    scheduler = LangevinScheduler(step_size=0.0005, num_inference_steps=300)
    pipe = gaussian(EBMInpaintPipeline, scheduler)
    image = torch.tensor([[[[0.55, 0.45], [0.5, 0.5]]]])
    mask = torch.tensor([[False, False], [True, True]])
    found = pipe(
        image, mask, num_completions=4_000, generator=source(), batch_size=4_000, output_type="pt"
    )
    assert torch.equal(found.images[:, :, 0], image[:, :, 0].expand(4_000, 1, 2))
    below = found.images[:, 0, 1] * 2 - 1
    torch.testing.assert_close(below.mean(dim=0), torch.tensor([0.08, -0.08]), atol=0.005, rtol=0)
    torch.testing.assert_close(below.var(dim=0), torch.full((2,), 0.0036), atol=0.0003, rtol=0)


def test_saved_and_loaded(tmp_path):
    pipe = make(**CLASSES)
    pipe.save_pretrained(tmp_path)
    found = EBMPipeline.from_pretrained(tmp_path)
    found.set_progress_bar_config(disable=True)
    assert dict(found.scheduler.config)["noise_std"] == 0.02
    one, other = (p(2, "bag", generator=source(), output_type="pt").images for p in (pipe, found))
    torch.testing.assert_close(one, other)
    fast = LangevinScheduler(step_size=0.1)
    assert EBMPipeline.from_pretrained(tmp_path, scheduler=fast).scheduler is fast
    filler = EBMInpaintPipeline.from_pretrained(tmp_path)
    assert type(filler.ebm) is EnergyModel
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(OSError, match="scheduler_config"):
        EBMPipeline.from_pretrained(tmp_path)


def test_classes_by_name_and_number():
    pipe = make(**CLASSES)
    options = {"generator": source(), "output_type": "pt"}
    by_name = pipe(class_labels=["bag", "shirt"], **options).images
    by_number = pipe(class_labels=[2, 0], generator=source(), output_type="pt").images
    assert torch.equal(by_name, by_number) and len(by_name) == 2
    one_for_all = pipe(3, class_labels=1, generator=source(), output_type="pt").images
    drawn = pipe(3, generator=source(), output_type="pt").images
    assert one_for_all.shape == drawn.shape == (3, 1, 8, 8)


def test_an_image_with_a_generator_of_its_own_does_not_depend_on_the_others():
    pipe = make(**CLASSES)
    together = pipe(3, 1, generator=[source(1), source(2), source(3)], output_type="pt").images
    alone = pipe(1, 1, generator=[source(2)], output_type="pt").images
    torch.testing.assert_close(together[1:2], alone)
    by_twos = pipe(
        3, 1, generator=[source(1), source(2), source(3)], batch_size=2, output_type="pt"
    ).images
    torch.testing.assert_close(together, by_twos)


def test_chains_begin_with_data_and_keep_their_way():
    pipe = make()
    data = torch.rand(3, 1, 8, 8, generator=source(1))
    found = pipe(
        images=data,
        num_inference_steps=4,
        generator=source(),
        keep_every=2,
        batch_size=2,
        output_type="pt",
    )
    assert found.trajectory.shape == (2, 3, 1, 8, 8)
    assert torch.equal(found.trajectory[-1], found.images)
    assert (found.images - data).abs().mean() < 0.2
    pictures = [Image.fromarray((image[0] * 255).byte().numpy()) for image in data]
    again = pipe(
        images=pictures, num_inference_steps=4, generator=source(), batch_size=2, output_type="pt"
    )
    assert (found.images - again.images).abs().max() < 0.02


def test_chains_begin_with_samples_of_a_buffer():
    pipe = make(**CLASSES)
    buffer = SampleBuffer(6, (1, 8, 8), num_classes=3, generator=source())
    samples, labels, _ = buffer.draw(4, source(1))
    found = pipe(
        images=samples / 2 + 0.5, class_labels=labels, generator=source(), output_type="pt"
    )
    energy = of_class(pipe.ebm, labels)
    expected = sample(energy, samples, pipe.scheduler, 5, source()).samples
    torch.testing.assert_close(found.images, expected / 2 + 0.5)


def test_a_callback_sees_every_step_and_may_change_it():
    pipe, seen = make(), []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, tensors["samples"].shape))
        return {"samples": tensors["samples"] * 0} if step == 4 else None

    found = pipe(2, generator=source(), callback_on_step_end=callback, output_type="np").images
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4]
    assert found.shape == (2, 8, 8, 1) and np.allclose(found, 0.5)


@pytest.mark.parametrize("noise_first", [False, True])
def test_known_pixels_stay_as_they_are(noise_first: bool):
    pipe = make(EBMInpaintPipeline, **CLASSES)
    pipe.scheduler = LangevinScheduler(step_size=0.5, noise_std=0.1, noise_first=noise_first)
    data = torch.rand(2, 1, 8, 8, generator=source(1))
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[4:] = True
    options = {"num_inference_steps": 5, "num_completions": 2, "output_type": "pt"}
    found = pipe(data, mask, class_labels=["bag", "shoe"], generator=source(), **options).images
    assert found.shape == (4, 1, 8, 8)
    known = data.repeat_interleave(2, dim=0)
    torch.testing.assert_close(found[:, :, :4], known[:, :, :4])
    assert (found[0, :, 4:] != found[1, :, 4:]).any() and (found != known)[:, :, 4:].all()
    picture = Image.fromarray(mask.numpy())
    for same in (mask.float(), mask.expand(2, 1, 8, 8), picture, mask.numpy()):
        again = pipe(data, same, class_labels=["bag", "shoe"], generator=source(), **options)
        assert torch.equal(again.images, found)


def test_an_energy_with_classes_fills_in_what_is_of_a_class():
    """No class is drawn for an image that has one."""
    pipe = make(EBMInpaintPipeline, **CLASSES)
    with pytest.raises(ValueError, match=r"say by class_labels .* \(shirt, shoe, bag\)"):
        pipe(torch.rand(1, 1, 8, 8), torch.ones(8, 8))
    make(EBMInpaintPipeline)(torch.rand(1, 1, 8, 8), torch.ones(8, 8))


def test_what_comes_out_goes_in_again():
    pipe = make()
    for kind in ("pil", "np", "pt"):
        images = pipe(2, generator=source(), output_type=kind).images
        again = pipe(images=images, generator=source(1), output_type="pt").images
        assert again.shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="must be a tensor, an array"):
        pipe(images=[torch.zeros(1, 8, 8)])


def test_the_picture_of_a_trajectory():
    """A row for each image, a column for each state that was kept."""
    pipe = make()
    found = pipe(2, generator=source(), keep_every=2, output_type="pt")
    assert found.trajectory.shape == (2, 2, 1, 8, 8)
    picture = np.asarray(pipe.draw_trajectory(found.trajectory, scale=1))
    assert picture.shape == (16, 16)
    expected = (found.trajectory[1, 0, 0] * 255).round().byte().numpy()
    assert np.abs(picture[:8, 8:].astype(int) - expected).max() <= 1
    for keep_every in (0, 6):
        with pytest.raises(ValueError, match=f"keep_every must be in 1 .. 5, got {keep_every}"):
            pipe(2, keep_every=keep_every)


def test_a_callback_gets_what_it_asks_for():
    seen = []
    pipe = make()
    pipe(
        1,
        callback_on_step_end=lambda pipe, step, t, tensors: seen.append(tensors),
        callback_on_step_end_tensor_inputs=[],
    )
    assert seen == [{}] * 5


def test_offloaded_weights_come_when_they_are_wanted():
    """Every weight is read inside its own module, where accelerate's hooks bring it."""
    pipe = make(**CLASSES)
    expected = pipe(2, "bag", generator=source(), output_type="pt")
    cpu_offload(pipe.ebm)
    assert all(weight.is_meta for weight in pipe.ebm.parameters())
    found = pipe(2, "bag", generator=source(), output_type="pt")
    torch.testing.assert_close(found.images, expected.images)


def test_a_grid_of_all_classes():
    picture = make(**CLASSES).grid(6, 2, generator=source())
    assert picture.height == 3 * 16 and picture.width > 2 * 16


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, q: p(0), "num_images must be at least 1"),
        (lambda p, q: p(2, num_inference_steps=0), "at least 1"),
        (lambda p, q: p(2, num_inference_steps=2.5), "at least 1, and whole, got 2.5"),
        (lambda p, q: p(2, generator=0), "must be a torch.Generator, got 0"),
        (lambda p, q: p(2, generator=[source(), 1]), "must be a torch.Generator, got 1"),
        (lambda p, q: p(2, "hat"), "there is no class 'hat'"),
        (lambda p, q: make()(2, 1), "unconditional"),
        (lambda p, q: p(3, ["bag", "shoe"]), "1 or 3 class labels"),
        (lambda p, q: p(2, output_type="tf"), "output_type must be"),
        (lambda p, q: p(2, generator=[source()]), "need 2 generators"),
        (lambda p, q: p(2, keep_every=0), "keep_every"),
        (lambda p, q: p(2, callback_on_step_end_tensor_inputs=["latents"]), "not latents"),
        (lambda p, q: p(2, images=torch.zeros(1, 1, 8, 8)), "as many to begin with"),
        (lambda p, q: p(images=torch.zeros(2, 3, 8, 8)), r"must be \(B, 1, 8, 8\)"),
        (lambda p, q: p(images=torch.full((2, 1, 8, 8), -1.0)), "pixels must be in"),
        (lambda p, q: p(images=torch.full((2, 1, 8, 8), torch.nan)), "pixels must be in"),
        (lambda p, q: p(images=torch.zeros(0, 1, 8, 8)), r"must be \(B, 1, 8, 8\)"),
        (lambda p, q: p(images=np.zeros((8, 8))), r"array of images is \(B, H, W, C\)"),
        (lambda p, q: p(images=Image.new("I;16", (8, 8))), "must have 8 bits a channel"),
        (lambda p, q: p(2, 3.0), "there is no class 3.0"),
        (lambda p, q: p(images=[]), "must be a tensor, an array"),
        (lambda p, q: p(images=[Image.new("L", (8, 8)), Image.new("L", (9, 9))]), "8, 8.*pixels"),
        (lambda p, q: p(2, batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda p, q: q(torch.zeros(2, 1, 8, 8), [[1]]), "mask must be a tensor, an array or a"),
        (lambda p, q: q(torch.zeros(2, 1, 8, 8), torch.ones(8, 8) * 7), "mask is in.*got 7 to 7"),
        (lambda p, q: q(torch.zeros(2, 1, 8, 8), torch.ones(8, 8) / 0 * 0), "got nan to nan"),
        (lambda p, q: q(torch.zeros(2, 1, 8, 8), torch.ones(4, 4)), r"mask must be \(8, 8\)"),
        (lambda p, q: q(torch.zeros(2, 1, 8, 8), torch.ones(8, 8), num_completions=0), "complet"),
        (lambda p, q: q(torch.zeros(2, 1, 8, 8), torch.ones(8, 8), [0, 1, 2]), "1 or 2 class"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(call, words: str):
    with pytest.raises(ValueError, match=words):
        call(make(**CLASSES), make(EBMInpaintPipeline, **CLASSES))


def test_an_energy_that_is_no_number_gets_a_sentence():
    pipe = make()
    with torch.no_grad():
        pipe.ebm.head.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="2 of 2 energies are not finite"):
        pipe(2, generator=source())
