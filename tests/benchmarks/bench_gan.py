"""What `make bench` measures of the GAN room: work, time and memory of training, speed of sampling.

Times are ratios or rates measured in one run, on a machine that does nothing else.
"""

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from genzoo.data import ImageBatches, ImageDataset
from genzoo.gan.modeling_selfmod_gan import SelfModGANConfig
from genzoo.gan.pipeline_gan import GANPipeline
from genzoo.gan.recipes import selfmod_gan_cifar10, selfmod_gan_digits, selfmod_gan_fashion_mnist
from genzoo.gan.training import GANRecipe, build, train_gan
from genzoo.runtime import generator_for, moving_average


def noise_images(config: SelfModGANConfig) -> ImageDataset:
    """Random images of the recipe's size, with labels if it has classes."""
    shape = (512, config.num_channels, config.image_size, config.image_size)
    names = list(config.id2label.values()) if config.num_classes else []
    labels = torch.arange(512) % config.num_classes if names else None
    return ImageDataset(
        torch.randint(256, shape, dtype=torch.uint8), labels, names, "noise", "train"
    )


def analytic_step_flops(recipe: GANRecipe) -> int:
    """Floating-point operations that one step cannot do without, from the config alone.

    A matrix product or convolution of F operations costs F forward, F for its weight's gradient
    and F for its input's. The discriminator's step runs the generator forward, and the
    discriminator forward and back on real and on fake images, but for the gradients of the images
    themselves. The generator's step runs the generator forward and back, and the discriminator
    forward and back to the images, without its weights' gradients.
    """
    config = recipe.model
    size = config.image_size

    def conv(c_in: int, c_out: int, kernel: int, side: int) -> int:
        return 2 * c_in * c_out * kernel**2 * side**2

    # The generator: what takes the latents, which need no gradient, and the rest.
    channels = config.generator_channels
    side = size >> (len(channels) - 1)
    from_latents = 2 * config.latent_dim * channels[0] * side**2
    modulation_in = modulation_out = rest = 0

    def modulate(features: int) -> None:
        nonlocal modulation_in, modulation_out
        modulation_in += 2 * 2 * config.latent_dim * config.modulation_size
        modulation_out += 2 * 2 * config.modulation_size * features

    for c_in, c_out in pairwise(channels):
        modulate(c_in)
        modulate(c_out)
        rest += conv(c_in, c_out, 1, side)
        side *= 2
        rest += conv(c_in, c_out, 3, side) + conv(c_out, c_out, 3, side)
    modulate(channels[-1])
    rest += conv(channels[-1], config.num_channels, 3, side)
    generator = from_latents + modulation_in + modulation_out + rest
    # With classes, z' = z + E(c) + E'(c) * z needs a gradient, and so the nets' inputs do.
    no_input_gradient = from_latents + (0 if config.num_classes else modulation_in)

    # The discriminator: what takes the images, and the rest.
    channels = [config.num_channels, *config.discriminator_channels]
    from_images = rest = 0
    for index, (c_in, c_out) in enumerate(pairwise(channels)):
        downsample = index < config.num_downsamples
        hidden = c_out if index == 0 else c_in
        first, second = conv(c_in, hidden, 3, side), conv(hidden, c_out, 3, side)
        side = side // 2 if downsample else side
        shortcut = conv(c_in, c_out, 1, side) if downsample or c_in != c_out else 0
        rest += second
        if index == 0:
            from_images += first + shortcut
        else:
            rest += first + shortcut
    rest += 2 * channels[-1]
    discriminator = from_images + rest

    d_step = generator + 2 * (3 * discriminator - from_images)
    g_step = 3 * generator - no_input_gradient + 2 * discriminator
    return recipe.batch_size * (recipe.num_d_steps * d_step + g_step)


def train(recipe: GANRecipe, dataset: ImageDataset, num_steps: int) -> None:
    """A run that saves and samples nothing on the way."""
    recipe = dataclasses.replace(
        recipe, num_steps=num_steps, standing_batches=1, save_every=10**9, sample_every=0
    )
    with tempfile.TemporaryDirectory() as folder:
        train_gan(recipe, dataset, output_dir=Path(folder) / "run")


def measured_step_flops(recipe: GANRecipe) -> int:
    """What torch counts in one step of `train_gan`: two steps less one."""
    dataset = noise_images(recipe.model)
    counts = []
    for num_steps in (1, 2):
        with FlopCounterMode(display=False) as counter:
            train(recipe, dataset, num_steps)
        counts.append(counter.get_total_flops())
    return counts[1] - counts[0]


def bare_loop(recipe: GANRecipe, dataset: ImageDataset, num_steps: int) -> None:
    """The same mathematics as `train_gan`, with nothing around it."""
    generator, discriminator = build(recipe, dataset, None)
    generator = generator.train().to(memory_format=torch.channels_last)
    discriminator = discriminator.train().to(memory_format=torch.channels_last)
    ema = AveragedModel(generator, multi_avg_fn=moving_average(recipe.ema_decay))
    d_optimizer = torch.optim.Adam(discriminator.parameters(), recipe.d_learning_rate, recipe.betas)
    g_optimizer = torch.optim.Adam(generator.parameters(), recipe.g_learning_rate, recipe.betas)
    batches = ImageBatches(dataset, recipe.batch_size, seed=0)
    size = (recipe.batch_size, recipe.model.latent_dim)
    for step in range(num_steps):
        discriminator.requires_grad_(True)
        batch = batches[step]
        with torch.no_grad():
            fake_images = generator(torch.randn(size), batch.labels).images
        real_logits = discriminator(batch.images, batch.labels).logits
        d_loss = recipe.d_loss(real_logits, discriminator(fake_images, batch.labels).logits)
        d_optimizer.zero_grad()
        d_loss.backward()
        d_optimizer.step()

        discriminator.requires_grad_(False)
        labels = torch.randint(recipe.model.num_classes, (recipe.batch_size,))
        fake_images = generator(torch.randn(size), labels).images
        g_optimizer.zero_grad()
        recipe.g_loss(None, discriminator(fake_images, labels).logits).backward()
        g_optimizer.step()
        ema.update_parameters(generator)


def seconds_a_step(loop: Callable[[int], None], few: int = 5, many: int = 105) -> float:
    """Seconds of one step, start and end of the run taken out."""
    times = []
    for num_steps in (few, many):
        start = time.perf_counter()
        loop(num_steps)
        times.append(time.perf_counter() - start)
    return (times[1] - times[0]) / (many - few)


def loop_ratio() -> float:
    """Speed of `train_gan` over that of the bare loop: the median of three interleaved pairs."""
    recipe = selfmod_gan_digits()
    dataset = noise_images(recipe.model)
    ratios = []
    for _ in range(3):
        bare = seconds_a_step(lambda num_steps: bare_loop(recipe, dataset, num_steps))
        ours = seconds_a_step(lambda num_steps: train(recipe, dataset, num_steps))
        ratios.append(bare / ours)
    return sorted(ratios)[1]


def images_per_second(recipe: GANRecipe) -> float:
    """Of `GANPipeline`, in batches of 64."""
    generator, _ = build(recipe, noise_images(recipe.model), None)
    pipe = GANPipeline(generator.eval())
    pipe.set_progress_bar_config(disable=True)
    arguments = {"generator": generator_for(0), "output_type": "pt"}
    pipe(64, **arguments)
    start = time.perf_counter()
    pipe(512, **arguments)
    return 512 / (time.perf_counter() - start)


def peak_memory(recipe_name: str) -> float:
    """MB that a process of three training steps takes at most, libraries and all."""
    # Linux's own high-water mark: getrusage's is never below that of the process which started it.
    program = (
        "import re, sys; sys.path.insert(0, sys.argv[2]); import bench_gan as bench\n"
        "recipe = getattr(bench, sys.argv[1])(); data = bench.noise_images(recipe.model)\n"
        "bench.train(recipe, data, 3)\n"
        "status = open('/proc/self/status').read()\n"
        "sys.stdout.write(str(int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) / 1024))"
    )
    command = [sys.executable, "-c", program, recipe_name, str(Path(__file__).parent)]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


RECIPES = [selfmod_gan_digits, selfmod_gan_fashion_mnist]


def report(name: str, what: str, value: str) -> None:
    """A line of the table."""
    sys.stdout.write(f"\n{name}: {what}: {value}")


@pytest.mark.parametrize("make_recipe", [*RECIPES, selfmod_gan_cifar10])
def test_no_network_runs_more_often_than_needed(make_recipe: Callable[[], GANRecipe]):
    recipe = dataclasses.replace(make_recipe(), use_compile=False, batch_size=8)
    ratio = measured_step_flops(recipe) / analytic_step_flops(recipe)
    report(recipe.name, "FLOPs of a training step, measured / analytic", f"{ratio:.4f}")
    assert abs(ratio - 1) < 0.02


def test_the_loop_costs_little():
    ratio = loop_ratio()
    report("selfmod-gan-digits", "speed of train_gan / bare loop", f"{ratio:.3f}")
    assert ratio >= 0.95


@pytest.mark.parametrize("make_recipe", RECIPES)
def test_speed_and_memory(make_recipe: Callable[[], GANRecipe]):
    recipe = make_recipe()
    report(recipe.name, "sampling", f"{images_per_second(recipe):.0f} images/s")
    report(recipe.name, "peak memory of training", f"{peak_memory(make_recipe.__name__):.0f} MB")
