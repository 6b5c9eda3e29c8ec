"""What a Langevin step and a step of training cost beside the bare network: `make bench`.

Each pair is measured in turns in one run, and the ratio of the medians counts.
"""

import gc
import resource
import sys
from pathlib import Path

import pytest
import torch
from clock import seconds_of

from genzoo import EBMConfig, EnergyModel, LangevinScheduler
from genzoo.ebm import HMC, MALA, ParallelTempering, compose, of_class
from genzoo.ebm.losses import igebm
from genzoo.ebm.training import ends_of_chains

BATCH_SIZE = 64
NUM_CHAIN_STEPS = 60
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LEAST_SPEED_UP = {"cpu": 1.2, "cuda": 1.5}[DEVICE]

CHAINS = LangevinScheduler(
    step_size=80.0, noise_std=0.01, gradient_clip=0.005, clamp=[-1, 1], noise_first=True
)


def report(what: str, value: str) -> None:
    sys.stdout.write(f"\nenergies: {what}: {value}")


@pytest.fixture
def model() -> EnergyModel:
    torch.manual_seed(0)
    config = EBMConfig(image_size=28, num_channels=1, num_classes=10, backbone="small")
    return EnergyModel(config).to(DEVICE)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(BATCH_SIZE, 1, 28, 28, device=DEVICE) * 2 - 1
    return images, torch.arange(BATCH_SIZE, device=DEVICE) % 10


@pytest.mark.slow
def test_a_step_of_a_chain_costs_little_more_than_its_gradient(model, batch):
    images, labels = batch
    model.eval().requires_grad_(False)

    def bare() -> None:
        for _ in range(10):
            x = images.detach().requires_grad_()
            torch.autograd.grad(model(x, labels).sum(), x)

    @torch.no_grad()
    def chain() -> None:
        CHAINS.chain(lambda x: model.score(x, labels), images, 10)

    bare_seconds, chain_seconds = seconds_of(bare, chain, repeats=7)
    ratio = chain_seconds / bare_seconds
    report("a Langevin step over a bare forward and input gradient", f"{ratio:.3f}")
    assert ratio <= 1.15


@pytest.mark.slow
def test_a_step_of_training_beats_the_naive_loop(model, batch):
    """The naive loop calls backward on the summed energy, and so has the gradients of the weights
    computed at every step of a chain, as igebm-pytorch's does."""
    images, labels = batch
    start = torch.rand_like(images) * 2 - 1
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, (0.0, 0.999))
    both = labels.repeat(2)

    def learn(negative: torch.Tensor) -> None:
        positive_energies, negative_energies = model(torch.cat([images, negative]), both).chunk(2)
        optimizer.zero_grad()
        igebm(positive_energies, negative_energies).backward()
        optimizer.step()

    def naive() -> None:
        model.train()
        x = start.clone().requires_grad_()
        for _ in range(NUM_CHAIN_STEPS):
            x.data.add_(torch.randn_like(x), alpha=0.01)
            model(x, labels).sum().backward()
            x.data.add_(x.grad.data.clamp_(-0.005, 0.005), alpha=-40)
            x.grad.detach_()
            x.grad.zero_()
            x.data.clamp_(-1, 1)
        learn(x.detach())

    def own() -> None:
        learn(ends_of_chains(model, CHAINS, start, labels, NUM_CHAIN_STEPS))

    naive_seconds, own_seconds = seconds_of(naive, own, repeats=3)
    ratio = naive_seconds / own_seconds
    report("a step of training against the naive loop's", f"{ratio:.2f} times as fast")
    assert ratio >= LEAST_SPEED_UP


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(model, batch):
    """What is held at the last step of a chain, and not what was held at some time before."""
    images, labels = batch
    model.eval().requires_grad_(False)

    @torch.no_grad()
    def held_after(num_steps: int) -> int:
        gc.collect()
        found = []

        def look(step: int, x: torch.Tensor) -> None:
            if step + 1 == num_steps:
                found.append(held())

        CHAINS.chain(lambda x: model.score(x, labels), images, num_steps, on_step_end=look)
        return found[0]

    held_after(10)
    few, many = held_after(10), held_after(500)
    report("memory at the end of 500 steps over that of 10", f"{many / few:.3f}")
    # A state that is kept takes 200 kB, and what autograd remembers of a step a hundred times that.
    assert many - few < 490 * images.nbytes / 10


def held() -> int:
    """Bytes that are in use now."""
    if DEVICE == "cuda":
        return torch.cuda.memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.gpu
def test_a_chain_waits_for_nothing(model, batch):
    """torch refuses whatever makes the processor wait for the device."""
    images, labels = batch
    model.eval().requires_grad_(False)
    generator = torch.Generator(DEVICE).manual_seed(0)
    energy = compose([(of_class(model, labels), 1.0), (of_class(model, labels.flip(0)), 0.5)])
    samplers = (MALA(1e-4), HMC(1e-2, 2), ParallelTempering(1e-4))
    states = [sampler.start(energy, images) for sampler in samplers]
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            CHAINS.chain(lambda x: model.score(x, labels), images, 5, generator)
            for sampler, state in zip(samplers, states, strict=True):
                sampler.step(energy, state, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
