"""Energy models, their objectives, and the buffer of their chains."""

import math
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModel

from common import ModelTests
from genzoo.ebm import losses
from genzoo.ebm.buffer import SampleBuffer, dequantize, quantize
from genzoo.ebm.composition import class_energies, compose, of_class
from genzoo.ebm.layers import differentiate
from genzoo.ebm.likelihood import log_partition
from genzoo.ebm.modeling_ebm import BACKBONES, EBMConfig, EBMConv2d, EnergyModel, ResidualConv2d
from genzoo.ebm.samplers import ParallelTempering, sample
from genzoo.ebm.scheduling_langevin import LangevinScheduler

TINY = {"image_size": 12, "num_channels": 1, "channels": [4, 6, 8], "downsamples": [True, False]}


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.rand(batch_size, 1, 12, 12, generator=generator) * 2 - 1}


class TestEnergyModel(ModelTests):
    model_class = EnergyModel
    auto_class = AutoModel
    output = None
    output_shape = ()
    num_parameters = 1_697
    bfloat16_output = torch.float32

    @staticmethod
    def make_config():
        return EBMConfig(**TINY)

    make_inputs = staticmethod(images)


class TestConditionalEnergyModel(TestEnergyModel):
    num_parameters = 1_894
    without_gradient: ClassVar[dict[str, str]] = {
        f"attention.{part}.{kind}": "the attention's share starts at zero"
        for part in ("query", "key", "value")
        for kind in ("weight", "bias")
    }

    @staticmethod
    def make_config():
        return EBMConfig(**TINY, num_classes=3, attention_after=0, activation="swish")

    @staticmethod
    def make_inputs(batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return images(batch_size, generator) | {"class_labels": torch.arange(batch_size) % 3}


def tiny(**changes) -> EnergyModel:
    torch.manual_seed(0)
    model = EnergyModel(EBMConfig(**TINY | changes))
    with torch.no_grad():  # what starts at zero would hide what it does
        for module in model.modules():
            if isinstance(module, ResidualConv2d):
                module.weight.normal_()
        if model.config.attention_after is not None:
            model.attention.gamma.fill_(0.5)
    for _ in range(30):  # singular vectors settle
        model(**model.dummy_inputs)
    return model.eval()


@pytest.mark.parametrize("changes", [{}, {"num_classes": 3}, {"attention_after": 0}])
def test_energies_and_scores(changes: dict):
    model = tiny(**changes)
    inputs = model.dummy_inputs
    energies = model(**inputs)
    assert energies.shape == (4,) and energies.dtype == torch.float32
    x = inputs["pixel_values"].clone().requires_grad_()
    model(**inputs | {"pixel_values": x}).sum().backward()
    score = model.score(**inputs)
    assert x.grad.abs().max() > 0
    torch.testing.assert_close(score, -x.grad)
    with torch.no_grad():
        quiet = model.score(**inputs)
    assert not quiet.requires_grad and torch.equal(quiet, score)


def test_score_is_the_slope_of_the_energy():
    model = tiny(activation="swish").double()
    x = model.dummy_inputs["pixel_values"].double()
    direction = torch.randn(x.shape, generator=source(1), dtype=torch.float64)
    step = 1e-5
    slope = (model(x + step * direction) - model(x - step * direction)) / (2 * step)
    expected = -(model.score(x) * direction).flatten(1).sum(dim=1)
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-6)


def test_a_class_is_gains_and_biases_that_start_as_none():
    torch.manual_seed(0)
    model = EnergyModel(EBMConfig(**TINY, num_classes=3)).eval()
    x = model.dummy_inputs["pixel_values"]
    one, other = (model(x, torch.full((4,), label)) for label in (0, 2))
    assert torch.equal(one, other)
    with torch.no_grad():
        model.blocks[0].gain2.weight[2] += 1
    assert torch.equal(model(x, torch.zeros(4).long()), one)
    assert (model(x, torch.full((4,), 2)) != other).all()


def test_all_weights_but_the_last_have_a_spectral_norm_of_one():
    model = tiny(num_classes=2, attention_after=1)
    for module in model.modules():
        if isinstance(module, EBMConv2d):
            weight = module.normalized_weight().detach().flatten(1)
            norm = torch.linalg.matrix_norm(weight, 2)
            assert float(norm) == pytest.approx(1, abs=0.02)
    assert not isinstance(model.head, EBMConv2d)


def test_a_bounded_norm_lets_a_small_weight_be():
    torch.manual_seed(0)
    conv = ResidualConv2d(4, 4, 3, has_spectral_norm=True, is_bounded=True)
    for _ in range(30):
        conv.power_iteration()
    with torch.no_grad():
        conv.weight.mul_(0.1 / torch.linalg.matrix_norm(conv.weight.flatten(1), 2))
    torch.testing.assert_close(conv.normalized_weight(), conv.weight, rtol=1e-4, atol=1e-6)


def test_blocks_start_as_their_shortcuts():
    torch.manual_seed(0)
    model = EnergyModel(EBMConfig(**TINY)).eval()
    x = torch.randn(2, 4, 12, 12, generator=source())
    block = model.blocks[0]
    expected = F.leaky_relu(F.avg_pool2d(block.shortcut(x), 2), 0.2)
    torch.testing.assert_close(block(x, None), expected, atol=1e-5, rtol=1e-5)


def test_energy_stays_as_it_is_along_a_chain():
    """Power iterations belong to training; in evaluation nothing moves, though it is called."""
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = model.dummy_inputs["pixel_values"]
    sample(model, x, LangevinScheduler(step_size=0.1), 5, source())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="training mode"):
        sample(model.train(), x, LangevinScheduler(step_size=0.1), 5, source())
    model(x)
    assert not torch.equal(model.stem.u, before["stem.u"])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones_fit_their_images(backbone: str):
    size = {"small": 28, "resnet128": 128}.get(backbone, 32)
    with torch.device("meta"):
        model = EnergyModel(EBMConfig(image_size=size, backbone=backbone, use_spectral_norm=False))
        assert model(torch.empty(2, 3, size, size)).shape == (2,)


@pytest.mark.parametrize(
    ("backbone", "millions"), [("resnet32", 5.3), ("large", 18.6), ("wider", 74.3)]
)
def test_backbones_are_as_large_as_the_papers(backbone: str, millions: float):
    with torch.device("meta"):
        model = EnergyModel(EBMConfig(backbone=backbone))
    assert round(model.num_parameters() / 1e6, 1) == millions


@pytest.mark.parametrize("size", [1, 3])
def test_a_block_by_hand(size: int):
    """Where it widens there is a convolution beside it; what halves comes after all else."""
    config = EBMConfig(
        image_size=8,
        num_channels=1,
        channels=[3, 3, 5],
        downsamples=[True, True],
        shortcut_kernel_size=size,
    )
    torch.manual_seed(0)
    model = EnergyModel(config).double().eval()
    same, wider = model.blocks
    assert isinstance(same.shortcut, torch.nn.Identity) == (size == 3)
    assert wider.shortcut.kernel_size == (size, size)
    x = torch.randn(2, 3, 8, 8, generator=source(), dtype=torch.float64)
    for block in (same, wider):
        torch.nn.init.normal_(block.conv2.weight)
        h = block.conv2(F.leaky_relu(block.conv1(x), 0.2)) + block.shortcut(x)
        expected = F.leaky_relu(F.avg_pool2d(h, 2), 0.2)
        torch.testing.assert_close(block(x, None), expected)
        x = expected


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 7]), torch.tensor([-1, 0]), torch.tensor([True, False])]
)
def test_labels_that_are_none(labels):
    model = tiny(num_classes=3)
    x = model.dummy_inputs["pixel_values"][:2]
    with pytest.raises(ValueError, match="class_labels must be"):
        model(x, labels)


@pytest.mark.parametrize("activation", ["swish", "leaky_relu"])
def test_score_compiles_without_a_break_and_so_does_its_gradient(activation: str):
    model = tiny(activation=activation, num_classes=2)
    inputs = model.dummy_inputs

    def loss():
        return model.score(**inputs).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found, expected = [], []
    for function, grads in ((compiled, found), (loss, expected)):
        model.zero_grad()
        function().backward()
        grads += [w.grad.clone() for w in model.parameters() if w.grad is not None]
    assert len(found) == len(expected) > 5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # jvp's
@pytest.mark.parametrize("activation", ["swish", "leaky_relu"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_score_is_differentiated_forward_and_backward(activation: str, mode: Callable):
    """The slope of the score along v, both ways, is that of finite differences."""
    model = tiny(activation=activation).double()
    x = model.dummy_inputs["pixel_values"].double()
    v = torch.randn(x.shape, generator=source(), dtype=x.dtype)
    one_by_one = torch.func.vmap(lambda z: model.score(z[None])[0])
    with mode():
        _, forward = torch.func.jvp(model.score, (x,), (v,))
        _, each = torch.func.jvp(one_by_one, (x,), (v,))
        backward = torch.func.grad(lambda z: (model.score(z) * v).sum())(x)
        expected = (model.score(x + 1e-6 * v) - model.score(x - 1e-6 * v)) / 2e-6
    torch.testing.assert_close(forward, backward)
    torch.testing.assert_close(forward, each)
    torch.testing.assert_close(forward, expected, rtol=1e-4, atol=1e-6)
    assert bool(forward.any()) == (activation == "swish")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # jvp's
def test_score_is_differentiated_forward_in_the_weights():
    model = tiny(activation="swish").double()
    x = model.dummy_inputs["pixel_values"].double()
    weight = model.stem.weight.detach()

    def score(w: torch.Tensor) -> torch.Tensor:
        weights = {"stem.weight": w}
        return differentiate(lambda z: torch.func.functional_call(model, weights, (z,)), x)[1]

    v = torch.randn(weight.shape, generator=source(), dtype=x.dtype)
    with torch.no_grad():
        _, forward = torch.func.jvp(score, (weight,), (v,))
    found, pull = torch.func.vjp(score, weight)
    torch.testing.assert_close((forward * found).sum(), (pull(found)[0] * v).sum())
    assert forward.any()


@pytest.mark.parametrize("is_compiled", [False, True])
def test_score_remembers_nothing_where_nobody_asks(is_compiled: bool):
    model = tiny()
    score = torch.compile(model.score, backend="aot_eager") if is_compiled else model.score
    x = model.dummy_inputs["pixel_values"].requires_grad_()
    with torch.no_grad():
        assert not score(x).requires_grad
    assert score(x).requires_grad


def test_bfloat16_network_sums_in_float32():
    model = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        energies = model(**model.dummy_inputs)
    assert energies.dtype == torch.float32
    torch.testing.assert_close(energies, model(**model.dummy_inputs), rtol=0.05, atol=0.1)


def test_saved_and_loaded(tmp_path):
    model = tiny(num_classes=2, attention_after=1)
    model.save_pretrained(tmp_path)
    found = EnergyModel.from_pretrained(tmp_path)
    torch.testing.assert_close(found(**found.dummy_inputs), model(**model.dummy_inputs))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": [4, 6]}, "one for each block"),
        ({"backbone": "none", "channels": None, "downsamples": None}, "there is no backbone"),
        ({"image_size": 1}, "cannot be halved"),
        ({"activation": "relu"}, "activation must be one of"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"attention_after": 2}, "0 to 1"),
        ({"num_classes": 2, "id2label": {0: "a", 1: "a"}}, "same name"),
        ({"num_channels": 0}, "at least 1"),
    ],
)
def test_bad_configs_get_a_sentence(changes: dict, words: str):
    with pytest.raises(StrictDataclassError, match=words):
        EBMConfig(**TINY | changes)


@pytest.mark.parametrize(
    ("changes", "inputs", "words"),
    [
        ({}, {"pixel_values": torch.zeros(2, 3, 12, 12)}, r"must be \(B, 1, 12, 12\)"),
        ({"num_classes": 2}, {}, "pass class_labels"),
        ({}, {"class_labels": torch.zeros(2).long()}, "unconditional"),
        ({"num_classes": 2}, {"class_labels": torch.zeros(2)}, "integers"),
        ({"num_classes": 2}, {"class_labels": torch.zeros(3).long()}, r"must be \(2,\)"),
    ],
)
def test_bad_input_gets_a_sentence(changes: dict, inputs: dict, words: str):
    model = tiny(**changes)
    with pytest.raises(ValueError, match=words):
        model(**{"pixel_values": torch.zeros(2, 1, 12, 12)} | inputs)


# Objectives


def test_contrastive_divergence_has_the_gradient_of_the_likelihood():
    """For E = k x^2 / 2 the log likelihood's slope in k is known, and samples can be drawn."""
    k = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    data = torch.randn(200_000, generator=source(), dtype=torch.float64)
    model = torch.randn(200_000, generator=source(1), dtype=torch.float64) / k.detach().sqrt()
    losses.contrastive_divergence(k * data**2 / 2, k * model**2 / 2).backward()
    expected = data.square().mean() / 2 - 1 / (2 * k.detach())
    assert float(k.grad) == pytest.approx(float(expected), abs=0.005)


def test_igebm_squares_both_energies_with_a_plus_sign():
    positive, negative = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
    assert float(losses.igebm(positive, negative, 0.5)) == pytest.approx(0.5 + 0.5 * 15 / 2)
    big = losses.igebm(positive, torch.tensor([100.0, -100.0]))
    assert big > losses.igebm(positive, negative)


def test_log_sum_exp_weighs_samples_by_their_density():
    positive = torch.zeros(3)
    negative = torch.tensor([0.0, 1.0, 5.0], requires_grad=True)
    losses.log_sum_exp(positive, negative).backward()
    torch.testing.assert_close(negative.grad, -(-negative.detach()).softmax(0))
    assert float(losses.log_sum_exp(positive + 2, positive + 2)) == pytest.approx(0, abs=1e-6)


def test_softplus_saturates_where_the_gap_is_wide():
    apart = losses.softplus(torch.tensor([-9.0]), torch.tensor([9.0]))
    assert 0 < float(apart) < 1e-6
    even = losses.softplus(torch.zeros(2), torch.zeros(2))
    assert float(even) == pytest.approx(math.log(2))


def test_denoising_score_matching_has_its_minimum_at_the_smeared_density():
    """Data of variance 1 smeared by sigma: the score is -x / (1 + sigma^2)."""
    data = torch.randn(100_000, 1, generator=source(), dtype=torch.float64)

    def loss(k):
        return losses.denoising_score_matching(
            lambda x: -k * x, data, noise_std=0.5, generator=source(1)
        )

    k = torch.tensor(1.0, dtype=torch.float64)
    slope, curvature = torch.func.grad(loss)(k), torch.func.grad(torch.func.grad(loss))(k)
    assert float(k - slope / curvature) == pytest.approx(1 / 1.25, abs=0.01)


def test_sliced_score_matching_has_its_minimum_at_the_density():
    data = torch.randn(100_000, 2, generator=source(), dtype=torch.float64) * 2

    def loss(k):
        return losses.sliced_score_matching(lambda x: -k * x, data, generator=source(1))

    k = torch.tensor(1.0, dtype=torch.float64)
    slope, curvature = torch.func.grad(loss)(k), torch.func.grad(torch.func.grad(loss))(k)
    assert float(k - slope / curvature) == pytest.approx(1 / 4, abs=0.005)


def test_sliced_score_matching_of_a_network_reaches_its_weights():
    model = tiny(activation="swish").train()
    x = model.dummy_inputs["pixel_values"]
    losses.sliced_score_matching(model.score, x, generator=source()).backward()
    assert model.stem.weight.grad.abs().max() > 0


def test_noise_contrastive_estimation_finds_the_constant():
    """Of N(0, 1) with E = x^2 / 2, against N(0, 4): log Z = log sqrt(2 pi)."""
    data = torch.randn(200_000, generator=source(), dtype=torch.float64)
    noise = torch.randn(200_000, generator=source(1), dtype=torch.float64) * 2

    def log_noise(x):
        return -(x**2) / 8 - math.log(2 * math.sqrt(2 * math.pi))

    log_z = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_z], max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = losses.noise_contrastive_estimation(
            -(data**2) / 2 - log_z, log_noise(data), -(noise**2) / 2 - log_z, log_noise(noise)
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    assert log_z.item() == pytest.approx(math.log(math.sqrt(2 * math.pi)), abs=0.01)


# Composition


def well(center: float, variance: float = 1.0):
    return lambda x: (x[:, 0] - center).square() / (2 * variance)


def test_a_product_of_gaussians_is_a_gaussian():
    """Precisions add up: 1 + 3 = 4, and the mean is (1 * 2 + 3 * -2) / 4 = -1."""
    energy = compose([(well(2.0), 1.0), (well(-2.0), 3.0)])
    x = torch.linspace(-3, 3, 7)[:, None].double()
    exact = 4 * (x[:, 0] + 1).square() / 2
    torch.testing.assert_close(energy(x) - energy(x)[2], exact - exact[2])


def test_a_negation_takes_away():
    energy = compose([(well(0.0), 1.0), (well(1.0, 4.0), -1.0)])
    x = torch.tensor([[0.5]]).double()
    assert energy(x).item() == pytest.approx(0.125 - 0.25 / 8)


def test_a_mixture_of_gaussians_has_both_modes():
    energy = compose([(well(-3.0), 0.25), (well(3.0), 0.75)], mode="mixture")
    x = torch.tensor([[-3.0], [3.0]]).double()
    density = torch.exp(-energy(x))
    torch.testing.assert_close(density, torch.tensor([0.25, 0.75]).double(), atol=1e-6, rtol=0)


def test_a_mixture_of_networks_does_not_depend_on_their_zeros():
    data = torch.randn(1000, 1, generator=source())
    low, high = (lambda x: well(-1.0)(x) - 50), (lambda x: well(1.0)(x) + 70)
    energy = compose([(low, 0.5), (high, 0.5)], mode="mixture", data=data)
    assert energy(torch.tensor([[-1.0], [1.0]])).diff().abs() < 0.2


def test_classes_may_differ_from_image_to_image():
    model = tiny(num_classes=3)
    x, labels = model.dummy_inputs["pixel_values"], torch.tensor([2, 0, 1, 1])
    assert torch.equal(of_class(model, labels)(x), model(x, labels))
    assert torch.equal(of_class(model, 2)(x), model(x, torch.full((4,), 2)))
    with pytest.raises(ValueError, match="4 classes do not fit 6 images"):
        of_class(model, labels)(torch.zeros(6, 1, 12, 12))


def test_every_temperature_has_the_classes_of_the_images():
    model = tiny(num_classes=3)
    with torch.no_grad():
        for block in model.blocks:
            block.gain2.weight.normal_()
    x, labels = model.dummy_inputs["pixel_values"], torch.tensor([2, 0, 1, 1])
    state = ParallelTempering(1e-4, (1.0, 2.0)).start(of_class(model, labels), x)
    assert torch.equal(state.energies, model(x, labels))
    assert torch.equal(state.replicas.energies[4:], model(x, labels))


def test_energies_are_brought_to_one_scale_by_data():
    data = torch.randn(1000, 1, generator=source())
    loud, quiet = (lambda x: 100 * well(0.0)(x)), (lambda x: 0.01 * well(0.0)(x))
    energy = compose([(loud, 1.0), (quiet, 1.0)], data=data)
    assert energy(data).std().item() == pytest.approx(2, rel=1e-4)


def test_classes_have_energies_of_their_own():
    model = tiny(num_classes=3)
    with torch.no_grad():
        for block in model.blocks:
            block.gain2.weight.normal_()
    images = model.dummy_inputs["pixel_values"]
    found = class_energies(model, images, batch_size=3)
    assert found.shape == (4, 3)
    torch.testing.assert_close(found[:, 1], model(images, torch.ones(4).long()).detach())
    torch.testing.assert_close(of_class(model, 2)(images).detach(), found[:, 2])
    plain = tiny()
    torch.testing.assert_close(class_energies(plain, images)[:, 0], plain(images).detach())


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: compose([]), "nothing to compose"),
        (lambda: compose([(well(0.0), 1.0)], mode="sum"), "mode must be"),
        (lambda: compose([(well(0.0), -1.0)], mode="mixture"), "positive"),
        (lambda: compose([(well(0.0), 1.0)], data=torch.ones(5, 1)), "must differ between data"),
        (
            lambda: compose(
                [(well(0.0), 1.0), (lambda x: x[:, 0] / 0, 1.0)], data=torch.arange(5.0)[:, None]
            ),
            "and be finite",
        ),
        (lambda: compose([(well(0.0), math.nan)]), "weights are finite numbers"),
        (lambda: of_class(tiny(num_classes=2), 2), "there is no class 2 of 2"),
        (lambda: of_class(tiny(num_classes=2).train(), 1), "in training mode"),
        (lambda: of_class(tiny(), 0), "unconditional: it has no classes"),
        (lambda: of_class(tiny(num_classes=2), "a"), "a class is an integer"),
        (lambda: of_class(tiny(num_classes=2), torch.zeros(0).long()), "there is no class"),
        (lambda: compose([(tiny().train(), 1.0)]), "in training mode"),
        (lambda: log_partition(tiny().train(), (1, 12, 12)), "in training mode"),
        (lambda: sample(tiny().train(), torch.zeros(1, 1, 12, 12), chains(), 1), "training mode"),
        (lambda: class_energies(tiny().train(), torch.zeros(1, 1, 12, 12)), "in training mode"),
        (lambda: class_energies(broken(), torch.zeros(3, 1, 12, 12)), "of 3 of 3 images are not"),
        (lambda: class_energies(tiny(), torch.full((1, 1, 12, 12), 2.0)), "pixels must be in"),
        (lambda: class_energies(tiny(), torch.zeros(0, 1, 12, 12)), "must be an image"),
        (lambda: class_energies(tiny(), torch.zeros(1, 1, 12, 12), 0), "got 1 and 0"),
        (lambda: class_energies(tiny(), torch.zeros(1, 1, 12, 12).byte()), "got torch.uint8"),
    ],
)
def test_bad_compositions_get_a_sentence(act, words: str):
    with pytest.raises(ValueError, match=words):
        act()


def broken() -> EnergyModel:
    model = tiny(num_classes=2)
    with torch.no_grad():
        model.head.bias.fill_(math.nan)
    return model


def chains() -> LangevinScheduler:
    return LangevinScheduler(step_size=1.0)


# Buffer


def test_bytes_and_pixels():
    images = torch.arange(256, dtype=torch.uint8)
    for offset in (0.0, 0.5, 0.999):
        pixels = dequantize(images, torch.full((256,), offset))
        assert -1 <= pixels.min() and pixels.max() < 1
        assert torch.equal(quantize(pixels), images)
    assert quantize(torch.tensor([-3.0, 1.0, 3.0])).tolist() == [0, 255, 255]


@pytest.mark.parametrize("policy", ["slots", "ring", "reservoir"])
def test_labels_stay_with_their_samples(policy: str):
    buffer = SampleBuffer(
        40, (1, 2, 2), num_classes=5, reinit_probability=0.3, policy=policy, generator=source()
    )
    draws = source(1)
    for _ in range(60):
        samples, labels, places = buffer.draw(10, draws)
        assert len({*places.tolist()}) == 10 and samples.abs().max() <= 1
        samples = (labels.float() / 4 * 1.8 - 0.9)[:, None, None, None].expand(10, 1, 2, 2)
        buffer.store(samples, labels, places, draws)
    buffer.reinit_probability = 0.0
    _, labels, places = buffer.draw(40, source(2))
    shades = buffer.bytes[places].float().mean(dim=(1, 2, 3))
    expected = quantize(labels.float() / 4 * 1.8 - 0.9).float()
    assert (shades == expected).double().mean() > 0.9  # but for places that never were visited
    assert buffer.num_seen == 600


def test_a_reservoir_is_a_uniform_sample_of_all_that_came():
    counts = torch.zeros(40)
    for seed in range(300):
        buffer = SampleBuffer(10, (1, 1, 1), policy="reservoir")
        draws = source(seed)
        for first in range(0, 40, 4):
            values = torch.arange(first, first + 4).to(torch.uint8)
            samples = dequantize(values, torch.full((4,), 0.5))[:, None, None, None]
            buffer.store(samples, None, torch.arange(4), draws)
        counts[buffer.bytes.flatten().long()] += 1
    assert counts.sum() == 3000
    assert (counts / 300 - 0.25).abs().max() < 0.12  # a standard error is .025


def test_a_ring_forgets_the_oldest():
    buffer = SampleBuffer(4, (1, 1, 1), policy="ring")
    for value in range(6):
        sample = dequantize(torch.tensor([value], dtype=torch.uint8), torch.tensor([0.5]))
        buffer.store(sample[:, None, None, None], None, torch.tensor([0]))
    assert sorted(buffer.bytes.flatten().tolist()) == [2, 3, 4, 5]


def test_how_many_begin_anew():
    buffer = SampleBuffer(1000, (1, 2, 2), reinit_probability=0.2, generator=source())
    buffer.bytes.fill_(7)
    samples, labels, _ = buffer.draw(1000, source(1))
    is_old = (quantize(samples) == 7).flatten(1).all(dim=1)
    assert labels is None and 0.77 < is_old.double().mean() < 0.83


@pytest.mark.parametrize("share", [0, 0.25, 1])
def test_samples_of_the_places_in_front_go_on_under_labels_of_the_data(share):
    options = {"num_classes": 4, "reinit_probability": 0.2, "relabel_share": share}
    buffer = SampleBuffer(4000, (1, 2, 2), **options, generator=source())
    buffer.labels.fill_(3)
    samples, labels, places = buffer.draw(4000, source(1), torch.zeros(4000, dtype=torch.int64))
    is_old = (quantize(samples) == buffer.bytes[places]).flatten(1).all(dim=1)
    assert abs(1 - is_old.float().mean() - 0.2) < 0.02
    assert (labels[~is_old] == 0).all()  # what begins anew has the data's
    assert torch.equal(labels[is_old] == 0, places[is_old] < 4000 * share)
    assert (buffer.labels == 3).all()  # until they are stored
    buffer.store(samples, labels, places)
    assert torch.equal(buffer.labels[places], labels)


def test_buffer_is_saved_and_restored():
    buffer = SampleBuffer(10, (1, 2, 2), num_classes=3, generator=source())
    samples, labels, places = buffer.draw(4, source(1))
    buffer.store(samples * 0.5, labels, places)
    other = SampleBuffer(10, (1, 2, 2), num_classes=3, generator=source(5))
    other.load_state_dict({k: v for k, v in buffer.state_dict().items()})
    for one, two in zip(buffer.draw(8, source(2)), other.draw(8, source(2)), strict=True):
        assert torch.equal(one, two)
    assert other.num_seen == 4


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda b: SampleBuffer(0, (1, 2, 2)), "capacity"),
        (lambda b: SampleBuffer(9, (1, 2, 2), reinit_probability=2), "reinit_probability"),
        (lambda b: SampleBuffer(9, (1, 2, 2), relabel_share=-1), "relabel_share"),
        (lambda b: SampleBuffer(9, (1, 2, 2), policy="lru"), "policy must be"),
        (lambda b: b.draw(11), "fewer than 11"),
        (lambda b: b.store(torch.zeros(1, 3, 2, 2), None, torch.tensor([0])), "holds samples"),
        (
            lambda b: b.store(torch.zeros(1, 1, 2, 2), torch.tensor([0]), torch.tensor([0])),
            "conditional energy",
        ),
        (
            lambda b: b.load_state_dict(SampleBuffer(9, (1, 2, 2)).state_dict()),
            r"saved holds \(9, 1, 2, 2\), this one \(10, 1, 2, 2\)",
        ),
        (
            lambda b: b.load_state_dict(SampleBuffer(10, (1, 2, 2), num_classes=2).state_dict()),
            "has labels",
        ),
        (lambda b: b.load_state_dict({}), "it has no bytes, labels, num_seen"),
        (
            lambda b: b.load_state_dict(b.state_dict() | {"bytes": b.bytes / 255}),
            "samples as bytes, got torch.float32",
        ),
        (lambda b: load_labels(torch.zeros(1).long()), r"must be \(10,\)"),
        (lambda b: load_labels(torch.full((10,), -1)), "2 classes, got -1"),
        (lambda b: labeled().draw(1, labels=torch.tensor([2])), "there are 2 classes, got 2 to 2"),
        (lambda b: b.store(torch.zeros(1, 1, 2, 2), None, torch.arange(3)), "1 samples need"),
    ],
)
def test_bad_buffers_get_a_sentence(act, words: str):
    with pytest.raises(ValueError, match=words):
        act(SampleBuffer(10, (1, 2, 2)))


def labeled() -> SampleBuffer:
    return SampleBuffer(10, (1, 2, 2), num_classes=2)


def load_labels(labels: torch.Tensor) -> None:
    labeled().load_state_dict(labeled().state_dict() | {"labels": labels})


def test_rosinality_block_is_the_same_function():
    """Gain and bias after each convolution, 1x1 shortcut, halving, slope .2."""
    model = tiny(num_classes=3)
    block, labels = model.blocks[0], torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        for gain in (block.gain1, block.gain2):
            nn.init.normal_(gain.weight)
    x = torch.randn(4, 4, 12, 12, generator=source(3))
    h = F.conv2d(x, block.conv1.normalized_weight(), padding=1)
    gain, bias = block.gain1.weight[labels][:, :, None, None].chunk(2, 1)
    h = F.leaky_relu(gain * h + bias, 0.2)
    h = F.conv2d(h, block.conv2.normalized_weight(), padding=1)
    gain, bias = block.gain2.weight[labels][:, :, None, None].chunk(2, 1)
    h = gain * h + bias + F.conv2d(x, block.shortcut.normalized_weight())
    expected = F.leaky_relu(F.avg_pool2d(h, 2), 0.2)
    torch.testing.assert_close(block(x, labels), expected, atol=1e-5, rtol=1e-5)
