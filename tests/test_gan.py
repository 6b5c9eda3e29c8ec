"""The models of the GAN room: the contract, closed forms, golden outputs, bad input."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)
from safetensors import safe_open
from torch import nn
from torch.nn.utils import parametrizations
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from common import ModelTests
from genzoo.gan import (
    DCGANConfig,
    DCGANDiscriminator,
    DCGANGenerator,
    SelfModGANConfig,
    SelfModGANDiscriminator,
    SelfModGANGenerator,
    layers,
    losses,
)
from genzoo.gan.layers import (
    SpectralNormConv2d,
    SpectralNormEmbedding,
    SpectralNormLinear,
    num_doublings,
)
from genzoo.gan.modeling_selfmod_gan import (
    BACKBONES,
    DiscriminatorBlock,
    GeneratorBlock,
    SelfModulatedBatchNorm2d,
)

GOLDEN = Path(__file__).parent / "golden"
LABELS = {0: "shirt", 1: "shoe", 2: "bag"}


def selfmod_config(image_size: int = 28, **kwargs) -> SelfModGANConfig:
    """The paper's backbone with few channels."""
    generator, discriminator, _ = BACKBONES[image_size]
    small = {
        "num_channels": 1,
        "latent_dim": 6,
        "modulation_size": 5,
        "generator_channels": [4 + i for i in range(len(generator))],
        "discriminator_channels": [4 + i // 2 for i in range(len(discriminator))],
    }
    return SelfModGANConfig(image_size=image_size, **(small | kwargs))


def latents(
    batch_size: int, generator: torch.Generator, num_classes: int = 0
) -> dict[str, torch.Tensor]:
    inputs = {"latents": torch.randn(batch_size, 6, generator=generator)}
    if num_classes:
        inputs["class_labels"] = torch.arange(batch_size) % num_classes
    return inputs


def images(
    batch_size: int, generator: torch.Generator, num_classes: int = 0
) -> dict[str, torch.Tensor]:
    inputs = {"images": torch.rand(batch_size, 1, 28, 28, generator=generator) * 2 - 1}
    if num_classes:
        inputs["class_labels"] = torch.arange(batch_size) % num_classes
    return inputs


class TestSelfModGANGenerator(ModelTests):
    model_class = SelfModGANGenerator
    auto_class = AutoModel
    make_config = staticmethod(selfmod_config)
    make_inputs = staticmethod(latents)
    output = "images"
    output_shape = (1, 28, 28)
    num_parameters = 3171


class TestSelfModGANDiscriminator(ModelTests):
    model_class = SelfModGANDiscriminator
    auto_class = AutoModelForPreTraining
    make_config = staticmethod(selfmod_config)
    make_inputs = staticmethod(images)
    output = "logits"
    output_shape = (1,)
    num_parameters = 1336


class TestClassConditionalSelfModGANGenerator(TestSelfModGANGenerator):
    make_config = staticmethod(lambda: selfmod_config(num_classes=3, id2label=LABELS))
    make_inputs = staticmethod(lambda batch_size, generator: latents(batch_size, generator, 3))
    num_parameters = 3207


class TestProjectionSelfModGANDiscriminator(TestSelfModGANDiscriminator):
    make_config = staticmethod(lambda: selfmod_config(num_classes=3, id2label=LABELS))
    make_inputs = staticmethod(lambda batch_size, generator: images(batch_size, generator, 3))
    num_parameters = 1351


def dcgan_config(**kwargs) -> DCGANConfig:
    return DCGANConfig(
        **({"image_size": 28, "num_channels": 1, "latent_dim": 6, "channels": 4} | kwargs)
    )


class TestDCGANGenerator(ModelTests):
    model_class = DCGANGenerator
    auto_class = AutoModel
    make_config = staticmethod(dcgan_config)
    make_inputs = staticmethod(latents)
    output = "images"
    output_shape = (1, 28, 28)
    num_parameters = 2953


class TestDCGANDiscriminator(ModelTests):
    model_class = DCGANDiscriminator
    auto_class = AutoModelForPreTraining
    make_config = staticmethod(dcgan_config)
    make_inputs = staticmethod(images)
    output = "logits"
    output_shape = (1,)
    num_parameters = 989


class TestSpectralNormDCGANDiscriminator(TestDCGANDiscriminator):
    make_config = staticmethod(lambda: dcgan_config(use_spectral_norm=True))
    num_parameters = 981


# Shapes and sizes


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("image_size", BACKBONES)
def test_every_selfmod_size(image_size, num_channels, num_classes):
    config = selfmod_config(image_size, num_channels=num_channels, num_classes=num_classes)
    labels = torch.tensor([0, 2]) if num_classes else None
    made = SelfModGANGenerator(config)(torch.randn(2, 6), labels).images
    assert made.shape == (2, num_channels, image_size, image_size)
    assert made.abs().max() <= 1
    assert SelfModGANDiscriminator(config)(made, labels).logits.shape == (2, 1)


@pytest.mark.parametrize("use_spectral_norm", [False, True])
@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("image_size", [8, 16, 28, 32, 48, 64, 128])
def test_every_dcgan_size(image_size, num_channels, use_spectral_norm):
    config = dcgan_config(
        image_size=image_size,
        num_channels=num_channels,
        channels=2,
        use_spectral_norm=use_spectral_norm,
    )
    made = DCGANGenerator(config)(torch.randn(2, 6)).images
    assert made.shape == (2, num_channels, image_size, image_size)
    assert made.abs().max() <= 1
    assert DCGANDiscriminator(config)(made).logits.shape == (2, 1)


@pytest.mark.parametrize(
    ("image_size", "doublings", "start"),
    [
        (8, 1, 4),
        (10, 1, 5),
        (12, 1, 6),
        (14, 1, 7),
        (28, 2, 7),
        (32, 3, 4),
        (48, 3, 6),
        (128, 5, 4),
    ],
)
def test_num_doublings(image_size, doublings, start):
    assert num_doublings(image_size) == doublings
    assert image_size >> doublings == start


@pytest.mark.parametrize("image_size", [-8, 0, 1, 2, 4, 6, 7, 9, 22, 30, 31, 36, 100])
def test_sizes_that_are_not_doublings(image_size):
    with pytest.raises(ValueError, match=f"times a power of two, got {image_size}"):
        num_doublings(image_size)


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# Counted in mimicry (https://github.com/kwotsin/mimicry at a7fda06): SNGANGenerator without the
# gains and biases of its batch norms, and SNGANDiscriminator.
MIMICRY = {
    32: (4_276_739 - 3_584, 1_053_825),
    48: (4_878_083 - 2_816, 10_141_441),
    64: (12_220_675 - 5_888, 10_141_441),
    128: (32_150_787 - 9_984, 29_017_857),
}


@pytest.mark.parametrize("image_size", MIMICRY)
def test_the_full_size_backbones_have_sngan_s_parameters(image_size):
    with torch.device("meta"):
        generator = SelfModGANGenerator(SelfModGANConfig(image_size=image_size))
        discriminator = SelfModGANDiscriminator(SelfModGANConfig(image_size=image_size))
    norms = [m for m in generator.modules() if isinstance(m, SelfModulatedBatchNorm2d)]
    backbone = num_parameters(generator) - sum(map(num_parameters, norms))
    assert (backbone, num_parameters(discriminator)) == MIMICRY[image_size]
    # Two nets for each norm: (Z + 1) x 32 and 33 x C.
    assert num_parameters(norms[0]) == 2 * (129 * 32 + 33 * generator.config.generator_channels[0])


# Self-modulation


def zero_modulation(norm: SelfModulatedBatchNorm2d) -> None:
    for net in (norm.gamma, norm.beta):
        nn.init.zeros_(net[-1].weight)
        nn.init.zeros_(net[-1].bias)


@pytest.mark.parametrize("modulation_size", [0, 4])
def test_zero_modulation_is_plain_batch_norm(modulation_size):
    norm, plain = SelfModulatedBatchNorm2d(3, 5, modulation_size), nn.BatchNorm2d(3, affine=False)
    zero_modulation(norm)
    for training in (True, True, False):
        norm.train(training), plain.train(training)
        h = torch.randn(4, 3, 6, 6) * 3 + 1
        assert torch.equal(norm(h, torch.randn(4, 5)), plain(h))
    assert torch.equal(norm.norm.running_mean, plain.running_mean)
    assert torch.equal(norm.norm.running_var, plain.running_var)


def test_constant_modulation_is_affine_batch_norm():
    norm, plain = SelfModulatedBatchNorm2d(3, 5, 4).double(), nn.BatchNorm2d(3).double()
    zero_modulation(norm)
    with torch.no_grad():
        plain.weight.copy_(torch.randn(3))
        plain.bias.copy_(torch.randn(3))
        norm.gamma[-1].bias.copy_(plain.weight - 1)
        norm.beta[-1].bias.copy_(plain.bias)
    for training in (True, False):
        norm.train(training), plain.train(training)
        h = torch.randn(4, 3, 6, 6).double() * 3 + 1
        torch.testing.assert_close(norm(h, torch.randn(4, 5).double()), plain(h))


def test_a_generator_whose_modulation_is_zero_hears_z_only_at_its_start():
    generator = SelfModGANGenerator(selfmod_config()).eval()
    h = torch.randn(2, 4, 7, 7)
    z, other = torch.randn(2, 2, 6)
    block = generator.blocks[0]
    assert not torch.equal(block(h, z), block(h, other))
    zero_modulation(block.norm1), zero_modulation(block.norm2)
    assert torch.equal(block(h, z), block(h, other))


def test_modulation_is_the_paper_s_equation():
    norm = SelfModulatedBatchNorm2d(3, 5, 4).double()
    h, z = torch.randn(4, 3, 2, 2).double(), torch.randn(4, 5).double()
    w1, b1, w2, b2 = norm.gamma.parameters()
    v1, c1, v2, c2 = norm.beta.parameters()
    gamma = (z @ w1.T + b1).clamp(min=0) @ w2.T + b2
    beta = (z @ v1.T + c1).clamp(min=0) @ v2.T + c2
    mean, variance = h.mean(dim=(0, 2, 3)), h.var(dim=(0, 2, 3), unbiased=False)
    for channel in range(3):
        x = (h[:, channel] - mean[channel]) / (variance[channel] + 1e-5).sqrt()
        expected = (1 + gamma[:, channel, None, None]) * x + beta[:, channel, None, None]
        torch.testing.assert_close(norm(h, z)[:, channel], expected)


def test_modulation_without_a_hidden_layer_is_linear():
    linear, hidden = (
        SelfModulatedBatchNorm2d(3, 5, 0).double(),
        SelfModulatedBatchNorm2d(3, 5, 4).double(),
    )
    z, other = torch.randn(2, 7, 5).double()
    zero = torch.zeros(1, 5).double()

    def is_linear(net: nn.Module) -> bool:
        together = net(2 * z - 3 * other) - net(zero)
        return torch.allclose(
            together, 2 * (net(z) - net(zero)) - 3 * (net(other) - net(zero)), atol=1e-12
        )

    assert is_linear(linear.gamma)
    assert is_linear(linear.beta)
    assert not is_linear(hidden.gamma)


def test_labels_change_the_latents_that_the_modulations_see():
    conditional = SelfModGANGenerator(selfmod_config(num_classes=3)).eval()
    plain = SelfModGANGenerator(selfmod_config()).eval()
    plain.load_state_dict(
        {k: v for k, v in conditional.state_dict().items() if not k.startswith("class_")}
    )
    nn.init.normal_(conditional.class_scale.weight)
    z, c = torch.randn(4, 6), torch.tensor([0, 2, 1, 2])
    shift, scale = conditional.class_shift.weight[c], conditional.class_scale.weight[c]
    start = plain.project(z)
    with plain.project.register_forward_hook(lambda *_: start):  # which sees z without its label
        expected = plain(z + shift + scale * z).images
    assert torch.equal(conditional(z, c).images, expected)
    nn.init.zeros_(conditional.class_scale.weight), nn.init.zeros_(conditional.class_shift.weight)
    assert torch.equal(conditional(z, c).images, plain(z).images)


def test_classes_differ_from_the_first_step():
    generator = SelfModGANGenerator(selfmod_config(num_classes=3, latent_dim=64)).eval()
    assert not generator.class_scale.weight.any()
    assert 0.8 < generator.class_shift.weight.std() < 1.2


# The order of cheap and dear steps


def test_doubling_commutes_with_the_shortcut():
    block = GeneratorBlock(3, 5, selfmod_config()).double()
    x, z = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 6).double()
    h = F.interpolate(F.relu(block.norm1(x, z)), scale_factor=2, mode="nearest")
    h = block.conv2(F.relu(block.norm2(block.conv1(h), z)))
    slow = h + block.shortcut(F.interpolate(x, scale_factor=2, mode="nearest"))
    torch.testing.assert_close(block(x, z), slow)


@pytest.mark.parametrize("is_first", [False, True])
def test_halving_commutes_with_the_shortcut(is_first):
    block = DiscriminatorBlock(3, 5, downsample=True, is_first=is_first).double().eval()
    x = torch.randn(2, 3, 8, 8).double()
    h = block.conv2(F.relu(block.conv1(x if is_first else F.relu(x))))
    torch.testing.assert_close(block(x), F.avg_pool2d(h + block.shortcut(x), 2))
    assert block.conv1.out_channels == (5 if is_first else 3)


def test_a_block_that_keeps_its_shape_has_a_bare_shortcut():
    block = DiscriminatorBlock(3, 3, downsample=False, is_first=False).eval()
    x = torch.randn(2, 3, 4, 4)
    assert isinstance(block.shortcut, nn.Identity)
    assert torch.equal(block(x), block.conv2(F.relu(block.conv1(F.relu(x)))) + x)


# Spectral normalization


def spectral_pair() -> list[tuple[nn.Module, nn.Module]]:
    """Our layers, each beside torch's with the same weight and the same u."""
    pairs = []
    for mine, its in (
        (SpectralNormConv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)),
        (SpectralNormLinear(4, 6), nn.Linear(4, 6)),
        (SpectralNormEmbedding(7, 4), nn.Embedding(7, 4)),
    ):
        its.load_state_dict({k: v for k, v in mine.state_dict().items() if k != "u"})
        its = parametrizations.spectral_norm(its)
        power = its.parametrizations.weight[0]
        power._u.copy_(mine.u)
        power._v.copy_(F.normalize(mine.weight.detach().flatten(1).T @ mine.u, dim=0))
        pairs.append((mine, its))
    return pairs


@pytest.mark.parametrize("index", range(3), ids=["conv", "linear", "embedding"])
def test_spectral_norm_is_torch_s(index):
    mine, its = spectral_pair()[index]
    tangent = torch.randn_like(mine.weight)

    def compare():
        weights = mine.eval().normalized_weight(), its.eval().weight
        torch.testing.assert_close(*weights)
        (gradient,) = torch.autograd.grad((weights[0] * tangent).sum(), mine.weight)
        original = its.parametrizations.weight.original
        torch.testing.assert_close(
            gradient, torch.autograd.grad((weights[1] * tangent).sum(), original)[0]
        )

    compare()
    for _ in range(3):
        mine.train().normalized_weight()
        its.train().weight  # noqa: B018 - looking at it is an iteration
        torch.testing.assert_close(mine.u, its.parametrizations.weight[0]._u)
        compare()


def test_spectral_norm_in_training_is_algorithm_1():
    layer = SpectralNormLinear(4, 6).train()
    u, w = layer.u.clone(), layer.weight.detach()
    v = w.T @ u / (w.T @ u).norm()
    new_u = w @ v / (w @ v).norm()
    torch.testing.assert_close(layer.normalized_weight(), w / (new_u @ w @ v))
    torch.testing.assert_close(layer.u, new_u)


@pytest.mark.parametrize("index", range(3), ids=["conv", "linear", "embedding"])
def test_spectral_norm_converges_to_the_largest_singular_value(index):
    layer = spectral_pair()[index][0]
    for _ in range(500):
        layer.train().normalized_weight()
    norms = torch.linalg.svdvals(layer.weight.detach().flatten(1))
    torch.testing.assert_close(
        layer.normalized_weight(), layer.weight / norms[0], rtol=1e-4, atol=1e-5
    )
    normalized = layer.eval().normalized_weight().detach().flatten(1)
    torch.testing.assert_close(torch.linalg.svdvals(normalized)[0], torch.tensor(1.0))
    torch.testing.assert_close(layer.u.norm(), torch.tensor(1.0))


def test_spectral_norm_estimates_only_in_training():
    layer = SpectralNormLinear(4, 6)
    before = layer.u.clone()
    assert torch.equal(layer.eval()(torch.ones(1, 4)), layer(torch.ones(1, 4)))
    assert torch.equal(layer.u, before)
    layer.train()(torch.ones(1, 4))
    assert not torch.equal(layer.u, before)


def test_spectral_norm_is_invariant_to_the_scale_of_its_weight():
    layer = SpectralNormLinear(4, 6).double().eval()
    expected = layer.normalized_weight().detach()
    with torch.no_grad():
        layer.weight *= 37
    torch.testing.assert_close(layer.normalized_weight(), expected, rtol=1e-5, atol=1e-6)


def test_autocast_keeps_the_estimate_in_float32():
    layer, same = SpectralNormLinear(64, 32).train(), SpectralNormLinear(64, 32).train()
    same.load_state_dict(layer.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        weight, output = layer.normalized_weight(), layer(torch.randn(2, 64))
    assert weight.dtype == torch.float32
    assert output.dtype == torch.bfloat16
    assert torch.equal(weight, same.normalized_weight())
    same.normalized_weight()  # the second of the two passes above
    assert torch.equal(layer.u, same.u)


def test_bfloat16_weights_are_estimated_in_float32():
    layer = SpectralNormLinear(64, 32).to(torch.bfloat16).train()
    for _ in range(100):
        weight = layer.normalized_weight()
    assert weight.dtype == torch.bfloat16
    norm = torch.linalg.svdvals(layer.weight.detach().float())[0]
    assert abs(layer.weight.float().norm() / weight.float().norm() / norm - 1) < 0.01


def test_passes_in_both_modes_may_precede_one_backward_pass():
    layer = SpectralNormLinear(4, 6)
    output = layer.eval()(torch.ones(1, 4))
    (output + layer.train()(torch.ones(1, 4))).sum().backward()
    assert layer.weight.grad.isfinite().all()


# The discriminator's head


def test_projection_adds_the_class_s_vector_to_the_head_s():
    model = SelfModGANDiscriminator(selfmod_config(num_classes=3)).eval()
    features = []
    model.head.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    labels = torch.tensor([2, 0, 1, 2])
    logits = model(torch.randn(4, 1, 28, 28), labels).logits
    (h,) = features
    w, e = model.head.normalized_weight(), model.class_embedding.normalized_weight()
    expected = (
        torch.stack([(w[0] + e[c]) @ x for c, x in zip(labels, h, strict=True)]) + model.head.bias
    )
    torch.testing.assert_close(logits[:, 0], expected)
    assert (h >= 0).all(), "the features are sums of a ReLU"


def test_without_projection_the_labels_are_not_seen():
    model = SelfModGANDiscriminator(selfmod_config(num_classes=3, use_projection_head=False)).eval()
    assert not hasattr(model, "class_embedding")
    x = torch.randn(4, 1, 28, 28)
    assert torch.equal(
        model(x, torch.tensor([0, 1, 2, 0])).logits, model(x, torch.tensor([2, 2, 1, 1])).logits
    )


def test_features_are_summed_over_space():
    model = SelfModGANDiscriminator(selfmod_config()).eval()
    images = torch.randn(2, 1, 28, 28)
    h = images
    for block in model.blocks:
        h = block(h)
    torch.testing.assert_close(model(images).logits, model.head(h.clamp(min=0).sum(dim=(2, 3))))


def test_r1_reaches_the_weights_of_a_spectrally_normalized_discriminator():
    model = SelfModGANDiscriminator(selfmod_config()).train()
    losses.r1_penalty(
        lambda x: model(x).logits, torch.randn(4, 1, 28, 28), torch.empty(0)
    ).backward()
    for name, parameter in model.named_parameters():
        if name != "head.bias":  # which does not change the slope
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_channels_last_changes_nothing():
    model = SelfModGANGenerator(selfmod_config(num_channels=3)).eval()
    z = torch.randn(2, 6)
    expected = model(z).images
    made = model.to(memory_format=torch.channels_last)(z).images
    assert made.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


# Golden outputs of mimicry (MIT); the metadata of each file names the commit and holds the script
# that made it. There ReLU is not in place and doubling is nearest-neighbor, as in the authors' own
# https://github.com/pfnet-research/sngan_projection; in mimicry itself the shortcuts of the
# discriminator see the features after an in-place ReLU, and the generator's doubling is bilinear.


def golden(
    name: str, keys: dict[str, str]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Tensors of a golden file, and those of its weights under our names."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        assert file.metadata().keys() >= {
            "repo",
            "commit",
            "license",
            "seed",
            "torch",
            "script",
            "about",
        }
        tensors = {key: file.get_tensor(key) for key in file.keys()}

    def rename(key: str) -> str:
        for old, new in keys.items():
            key = key.replace(old, new)
        return key

    renamed = {rename(k): v for k, v in tensors.items() if k.startswith(("weights.", "after."))}
    return tensors, {k: v.flatten() if k.endswith(".u") else v for k, v in renamed.items()}


def of(renamed: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in renamed.items() if k.startswith(prefix)}


DISCRIMINATOR_KEYS = {
    **{f"block{i + 1}.": f"blocks.{i}." for i in range(4)},
    ".c1.": ".conv1.",
    ".c2.": ".conv2.",
    ".c_sc.": ".shortcut.",
    ".l5.": ".head.",
    ".l_y.": ".class_embedding.",
    "weight_orig": "weight",
    "weight_u": "u",
    "sn_u": "u",
}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("mimicry_sngan_discriminator", {"discriminator_channels": [4, 6, 8, 16]}),
        (
            "mimicry_projection_discriminator_32",
            {"discriminator_channels": [8, 8, 8, 8], "num_classes": 3},
        ),
    ],
)
def test_golden_discriminator(name, config):
    tensors, renamed = golden(name, DISCRIMINATOR_KEYS)
    model = SelfModGANDiscriminator(selfmod_config(32, num_channels=3, **config))
    weights = {k: v for k, v in of(renamed, "weights.").items() if not k.endswith("sn_sigma")}
    model.load_state_dict(weights, strict=True)
    pixels, labels = tensors["pixels"] / 127.5 - 1, tensors.get("class_labels")
    with torch.no_grad():
        torch.testing.assert_close(model.train()(pixels, labels).logits, tensors["train_logits"])
        after = of(renamed, "after.")
        assert after.keys() == {k for k in model.state_dict() if k.endswith(".u")}
        for key, u in after.items():
            torch.testing.assert_close(model.state_dict()[key], u)
        for _ in range(300):
            for layer in model.modules():
                if isinstance(layer, layers.SpectralNorm):
                    layer.normalized_weight()
        converged = model.eval()(pixels, labels).logits
    torch.testing.assert_close(converged, tensors["converged_logits"], rtol=1e-4, atol=1e-4)


def test_golden_generator():
    keys = {
        "l1.": "project.",
        **{f"block{i + 2}.": f"blocks.{i}." for i in range(3)},
        ".b1.": ".norm1.",
        ".b2.": ".norm2.",
        ".b5.": ".norm.",
        ".c1.": ".conv1.",
        ".c2.": ".conv2.",
        ".c_sc.": ".shortcut.",
        ".c5.": ".to_image.",
    }
    tensors, renamed = golden("mimicry_sngan_generator_32", keys)
    weights = of(renamed, "weights.")
    model = SelfModGANGenerator(
        selfmod_config(32, num_channels=3, generator_channels=[8] * 4)
    ).eval()
    for name, module in model.named_modules():
        if isinstance(
            module, SelfModulatedBatchNorm2d
        ):  # constant nets in the place of a gain and a bias
            zero_modulation(module)
            with torch.no_grad():
                module.gamma[-1].bias.copy_(weights.pop(f"{name}.weight") - 1)
                module.beta[-1].bias.copy_(weights.pop(f"{name}.bias"))
            for key in ("running_mean", "running_var", "num_batches_tracked"):
                weights[f"{name}.norm.{key}"] = weights.pop(f"{name}.{key}")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(".gamma." in key or ".beta." in key for key in missing)
    torch.testing.assert_close(
        model(tensors["latents"]).images, tensors["images"], rtol=1e-4, atol=1e-5
    )


# Auto classes


@pytest.mark.parametrize(
    ("model", "auto_class"),
    [
        (SelfModGANGenerator, AutoModel),
        (SelfModGANDiscriminator, AutoModelForPreTraining),
        (DCGANGenerator, AutoModel),
        (DCGANDiscriminator, AutoModelForPreTraining),
    ],
)
def test_auto_classes_find_models_by_model_type(model, auto_class, tmp_path):
    config = selfmod_config() if model.config_class is SelfModGANConfig else dcgan_config()
    config.save_pretrained(tmp_path)  # no `architectures`: only model_type tells
    found = AutoConfig.from_pretrained(tmp_path)
    assert type(found) is model.config_class
    assert type(auto_class.from_config(found)) is model
    assert (
        json.loads((tmp_path / "config.json").read_text())["model_type"]
        == f"genzoo_{model_stem(model)}"
    )


def model_stem(model: type) -> str:
    return model.__module__.rpartition(".")[2].removeprefix("modeling_")


# Bad input: one sentence


@pytest.fixture(scope="module")
def conditional():
    config = selfmod_config(num_classes=3)
    return SelfModGANGenerator(config).eval(), SelfModGANDiscriminator(config).eval()


@pytest.fixture(scope="module")
def unconditional():
    return (
        *(
            model(selfmod_config()).eval()
            for model in (SelfModGANGenerator, SelfModGANDiscriminator)
        ),
        *(model(dcgan_config()).eval() for model in (DCGANGenerator, DCGANDiscriminator)),
    )


@pytest.mark.parametrize("shape", [(2, 5), (6,), (2, 6, 1), (2, 6, 1, 1)])
def test_wrong_latents(unconditional, shape):
    for generator in unconditional[::2]:
        with pytest.raises(ValueError, match=r"latents must be \(B, 6\), got"):
            generator(torch.zeros(shape))


@pytest.mark.parametrize(
    "shape", [(2, 3, 28, 28), (2, 1, 32, 32), (2, 1, 28, 27), (1, 28, 28), (2, 784)]
)
def test_wrong_images(unconditional, shape):
    for discriminator in unconditional[1::2]:
        with pytest.raises(ValueError, match=r"images must be \(B, 1, 28, 28\), got"):
            discriminator(torch.zeros(shape))


@pytest.mark.parametrize("labels", [[0, 1], torch.tensor([0.0, 1.0]), 1])
def test_labels_of_a_wrong_type(conditional, labels):
    for model, x in zip(conditional, (torch.zeros(2, 6), torch.zeros(2, 1, 28, 28)), strict=True):
        with pytest.raises(ValueError, match="class_labels must be a tensor of integers"):
            model(x, labels)


def test_labels_missing(conditional):
    for model, x in zip(conditional, (torch.zeros(2, 6), torch.zeros(2, 1, 28, 28)), strict=True):
        with pytest.raises(
            ValueError, match=f"{type(model).__name__} has 3 classes: pass class_labels"
        ):
            model(x)


def test_labels_unwanted(unconditional):
    x = (torch.zeros(2, 6), torch.zeros(2, 1, 28, 28)) * 2
    for model, argument in zip(unconditional, x, strict=True):
        with pytest.raises(
            ValueError, match=f"{type(model).__name__} is unconditional and takes no class_labels"
        ):
            model(argument, torch.tensor([0, 1]))


@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [[0], [1]], 0])
def test_labels_of_a_wrong_shape(conditional, labels):
    for model, x in zip(conditional, (torch.zeros(2, 6), torch.zeros(2, 1, 28, 28)), strict=True):
        with pytest.raises(ValueError, match=r"class_labels must be \(2,\), got"):
            model(x, torch.tensor(labels))


def test_a_label_out_of_range(conditional):
    for model, x in zip(conditional, (torch.zeros(2, 6), torch.zeros(2, 1, 28, 28)), strict=True):
        with pytest.raises((IndexError, ValueError), match=r"range|class_labels"):
            model(x, torch.tensor([0, 3]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": 30}, "image_size must be 4, 5, 6 or 7 times a power of two, got 30"),
        ({"image_size": 4}, "image_size must be 4, 5, 6 or 7 times a power of two, got 4"),
        ({"image_size": 24}, "no backbone for image_size 24"),
        (
            {"image_size": 24, "generator_channels": [4, 4, 4]},
            "give generator_channels, discriminator_channels and",
        ),
        ({"generator_channels": [8, 8]}, "needs 4 entries, got"),
        ({"generator_channels": [8] * 5}, "needs 4 entries, got"),
        ({"discriminator_channels": [8]}, "num_downsamples must be 1 to 1 here, got 2"),
        ({"num_downsamples": 5}, "num_downsamples must be 1 to 4 here, got 5"),
        (
            {"image_size": 16, "discriminator_channels": [8] * 6, "num_downsamples": 5},
            "num_downsamples must be 1 to 4 here, got 5",
        ),
        ({"num_downsamples": -1}, "num_downsamples must be 1 to 4 here, got -1"),
        ({"generator_channels": [8, 8, 0, 8]}, "channels must be at least 1"),
        ({"discriminator_channels": [8, 8, -8]}, "channels must be at least 1"),
        ({"modulation_size": -1}, "modulation_size at least 0"),
        ({"num_channels": 0}, "num_channels must be at least 1, got 0"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"num_classes": -1}, "num_classes"),
        ({"num_classes": 3, "id2label": {0: "a", 1: "b"}}, "num_classes is 3, but id2label"),
        ({"num_classes": 1, "id2label": {0: "a", 1: "b"}}, "num_classes is 1, but id2label"),
        ({"num_classes": 2, "id2label": {1: "a", 2: "b"}}, "num_classes is 2, but id2label"),
        ({"num_classes": 2, "id2label": {0: "a", 1: "a"}}, "several classes the same name"),
    ],
)
def test_configs_that_fit_no_network(kwargs, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        SelfModGANConfig(**kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"image_size": "32"},
        {"image_size": 32.0},
        {"latent_dim": None},
        {"num_classes": "10"},
        {"use_projection_head": "yes"},
        {"generator_channels": (8, 8, 8, 8)},
        {"generator_channels": [8, 8, 8, "8"]},
        {"discriminator_channels": 64},
    ],
    ids=str,
)
def test_configs_of_wrong_types(kwargs):
    with pytest.raises(StrictDataclassFieldValidationError, match=f"field '{next(iter(kwargs))}'"):
        SelfModGANConfig(**kwargs)
    if kwargs.keys() <= {"image_size", "latent_dim"}:
        with pytest.raises(
            StrictDataclassFieldValidationError, match=f"field '{next(iter(kwargs))}'"
        ):
            DCGANConfig(**kwargs)


def test_dcgan_configs_that_fit_no_network():
    with pytest.raises(StrictDataclassClassValidationError, match=r"image_size must be .* got 30"):
        DCGANConfig(image_size=30)
    with pytest.raises(
        StrictDataclassClassValidationError, match="DCGAN is unconditional, got num_classes 2"
    ):
        DCGANConfig(num_classes=2)


def test_configs_stay_strict_after_construction():
    config = selfmod_config()
    with pytest.raises(StrictDataclassFieldValidationError, match="latent_dim"):
        config.latent_dim = "many"


@pytest.mark.parametrize(
    ("config_class", "misspelt", "field"),
    [
        (SelfModGANConfig, "image_sise", "image_size"),
        (SelfModGANConfig, "modulation_sizes", "modulation_size"),
        (SelfModGANConfig, "latents_dim", "latent_dim"),
        (SelfModGANConfig, "use_projection_heads", "use_projection_head"),
        (DCGANConfig, "chanels", "channels"),
        (DCGANConfig, "use_spectralnorm", "use_spectral_norm"),
    ],
)
def test_a_misspelt_field_gives_a_warning(config_class, misspelt, field, caplog, tmp_path):
    sentence = f"{config_class.__name__} has no field {misspelt!r}; did you mean {field!r}?"
    config_class(**{misspelt: 1})
    assert [r.message for r in caplog.records if r.name.startswith("genzoo")] == [sentence]

    caplog.clear()
    config_class().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {misspelt: 1}))
    assert not [r for r in caplog.records if r.name.startswith("genzoo")]
    config_class.from_pretrained(tmp_path)
    assert sentence in [r.message for r in caplog.records]


def test_names_of_classes():
    assert SelfModGANConfig(num_classes=2).id2label == {0: "LABEL_0", 1: "LABEL_1"}
    config = SelfModGANConfig(
        num_classes=2, id2label={"0": "cat", "1": "dog"}
    )  # keys as JSON has them
    assert config.id2label == {0: "cat", 1: "dog"}
    assert config.label2id == {"cat": 0, "dog": 1}


def test_the_paper_s_backbone_is_written_out(tmp_path):
    config = SelfModGANConfig(image_size=48)
    assert config.generator_channels == [512, 256, 128, 64]
    assert config.discriminator_channels == [64, 128, 256, 512, 1024]
    assert config.num_downsamples == 4
    config.generator_channels[0] = 1
    assert SelfModGANConfig(image_size=48).generator_channels[0] == 512, "configs share one list"


def test_a_size_of_one_s_own():
    config = SelfModGANConfig(
        image_size=24,
        generator_channels=[4, 4, 4],
        discriminator_channels=[4, 4],
        num_downsamples=1,
        latent_dim=6,
    )
    made = SelfModGANGenerator(config)(torch.randn(2, 6)).images
    assert SelfModGANDiscriminator(config)(made).logits.shape == (2, 1)


def test_initial_scales():
    """Xavier with gain sqrt(2) inside residual blocks, 1 outside; DCGAN normal(0, 0.02)."""
    generator = SelfModGANGenerator(
        SelfModGANConfig(image_size=16, generator_channels=[32, 32, 32])
    )
    discriminator = SelfModGANDiscriminator(
        SelfModGANConfig(image_size=16, discriminator_channels=[32, 32])
    )

    def gain(weight: torch.Tensor) -> float:
        fan = (weight.shape[0] + weight.shape[1]) * math.prod(weight.shape[2:])
        return (weight.std() / (2 / fan) ** 0.5).item()

    assert gain(generator.blocks[0].conv1.weight) == pytest.approx(2**0.5, rel=0.05)
    assert gain(generator.blocks[0].shortcut.weight) == pytest.approx(1, rel=0.1)
    assert gain(generator.project.weight) == pytest.approx(1, rel=0.05)
    assert gain(generator.to_image.weight) == pytest.approx(1, rel=0.1)
    assert gain(generator.norm.gamma[0].weight) == pytest.approx(1, rel=0.1)
    assert gain(generator.norm.gamma[-1].weight) == pytest.approx(1, rel=0.1)
    assert gain(discriminator.blocks[1].conv2.weight) == pytest.approx(2**0.5, rel=0.05)
    assert gain(discriminator.blocks[1].shortcut.weight) == pytest.approx(1, rel=0.1)
    conditional = SelfModGANDiscriminator(SelfModGANConfig(image_size=16, num_classes=10))
    assert gain(conditional.class_embedding.weight) == pytest.approx(1, rel=0.1)
    dcgan = DCGANGenerator(DCGANConfig(image_size=16, channels=16))
    assert dcgan.project.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert dcgan.layers[2].weight.std().item() == pytest.approx(0.02, rel=0.05)
