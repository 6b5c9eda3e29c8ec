"""Conditional BERT: closed forms, what it takes over from BERT, masks, generation, bad input."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    GenerationConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    StaticCache,
)

from common import ModelTests
from genzoo.conditional_text import (
    ConditionalBertConfig,
    ConditionalBertForSequenceClassification,
    ConditionalBertLMHeadModel,
    ConditionalBertModel,
    ConditionalLayerNorm,
)
from genzoo.conditional_text.modeling_conditional_bert import ClassEmbedding, ConditionMap
from genzoo.conditional_text.tokenization import build_tokenizer

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


def small_config(**changes) -> ConditionalBertConfig:
    """A model whose maps are trained, and whose weights are large enough to make a difference."""
    values = SIZES | {
        "condition_size": 6,
        "num_classes": 3,
        "initializer_range": 0.3,
        "condition_initializer_range": 0.3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
    }
    return ConditionalBertConfig(**(values | changes))


def language_model(**changes) -> ConditionalBertLMHeadModel:
    return ConditionalBertLMHeadModel(small_config(**changes)).eval()


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Tokens that are neither padding nor the one that begins a text."""
    return torch.randint(2, 50, shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


LABELS = torch.tensor([0, 2])
"""A batch of two conditions."""


# The contract


def texts(
    batch_size: int, generator: torch.Generator, condition_size: int = 0
) -> dict[str, torch.Tensor]:
    """Texts of seven tokens, the last three of which are padding in every second one."""
    ids = torch.randint(1, 50, (batch_size, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1::2, 4:] = 0
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    if condition_size:
        condition = torch.randn(batch_size, condition_size, generator=generator)
        return inputs | {"condition_embeds": condition}
    return inputs | {"class_labels": torch.arange(batch_size) % 3}


def vectors(batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return texts(batch_size, generator, 6)


class TestConditionalBertLMHeadModel(ModelTests):
    model_class = ConditionalBertLMHeadModel
    auto_class = AutoModelForCausalLM
    make_config = staticmethod(lambda: small_config(use_cache=False))
    make_inputs = staticmethod(texts)
    output = "logits"
    output_shape = (7, 50)
    num_parameters = 6820


class TestBottleneckConditionalBertLMHeadModel(TestConditionalBertLMHeadModel):
    make_config = staticmethod(
        lambda: small_config(
            num_hidden_layers=1,
            use_cache=False,
            num_classes=0,
            bottleneck_size=4,
            bottleneck_activation="silu",
            attention_pattern="bidirectional",
        )
    )
    make_inputs = staticmethod(vectors)
    num_parameters = 4298


class TestConditionalBertModel(ModelTests):
    model_class = ConditionalBertModel
    auto_class = AutoModel
    make_config = staticmethod(
        lambda: small_config(num_hidden_layers=1, num_classes=0, attention_pattern="bidirectional")
    )
    make_inputs = staticmethod(vectors)
    output = "pooler_output"
    output_shape = (16,)
    num_parameters = 4184


class TestConditionalBertForSequenceClassification(ModelTests):
    model_class = ConditionalBertForSequenceClassification
    auto_class = AutoModelForSequenceClassification
    make_config = staticmethod(lambda: small_config(num_hidden_layers=1, num_labels=4))
    make_inputs = staticmethod(texts)
    output = "logits"
    output_shape = (4,)
    num_parameters = 4270


# Conditional LayerNorm


def shaken(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """A module none of whose weights is at a special value any more."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in module.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator)
    return module


def plain_layer_norm(layer: ConditionalLayerNorm) -> nn.LayerNorm:
    plain = nn.LayerNorm(layer.normalized_shape, eps=layer.eps)
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    return plain


@pytest.mark.parametrize(
    "bottleneck", [{}, {"bottleneck_size": 4, "bottleneck_activation": "silu"}]
)
@pytest.mark.parametrize("size", [1, 16, 37, 768])
def test_zero_maps_are_a_plain_layer_norm_bit_for_bit(size, bottleneck):
    layer = ConditionalLayerNorm(size, 6, **bottleneck)
    with torch.no_grad():
        layer.weight.copy_(normal(size, seed=1))
        layer.bias.copy_(normal(size, seed=2))
    plain = plain_layer_norm(layer)
    for shape in ((5, size), (5, 7, size), (5, 3, 2, size)):
        for scale, offset in ((1, 0), (1e-6, 0), (30, 500)):
            x = normal(*shape) * scale + offset
            expected = plain(x)
            assert torch.equal(layer(x, normal(5, 6)), expected)
            assert torch.equal(layer(x), expected)
            if len(shape) == 3:
                assert torch.equal(layer(x, normal(5, 7, 6)), expected)


@pytest.mark.parametrize("activation", [None, "linear", "silu", "relu"])
@pytest.mark.parametrize("shape", [(5, 16), (5, 7, 16), (5, 7, 2, 16)])
@pytest.mark.parametrize("per_token", [False, True])
def test_trained_maps_follow_the_formula(shape, per_token, activation):
    if per_token and len(shape) != 3:
        return
    bottleneck = {} if activation is None else {"bottleneck_activation": activation}
    layer = ConditionalLayerNorm(
        16, 6, eps=1e-5, bottleneck_size=None if activation is None else 4, **bottleneck
    )
    layer = shaken(layer).double()
    x = 3 * normal(*shape, dtype=torch.float64) + 1
    c = normal(5, 7, 6, dtype=torch.float64) if per_token else normal(5, 6, dtype=torch.float64)

    h = c
    if activation is not None:
        h = c @ layer.bottleneck.weight.T
        h = {"linear": h, "silu": h * h.sigmoid(), "relu": h.clamp(min=0)}[activation]
    gain, bias = layer.weight + h @ layer.scale.weight.T, layer.bias + h @ layer.shift.weight.T
    if not per_token:
        middle = (5, *[1] * (len(shape) - 2), 16)
        gain, bias = gain.view(middle), bias.view(middle)
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    expected = (x - mean) / (variance + 1e-5).sqrt() * gain + bias
    torch.testing.assert_close(layer(x, c), expected, rtol=1e-12, atol=1e-12)
    single = layer.float()(x.float(), c.float())
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)


def test_samples_have_conditions_of_their_own():
    layer = shaken(ConditionalLayerNorm(16, 6))
    x, c = normal(2, 7, 16), normal(2, 6, seed=1)
    both = layer(x, c)
    for row in range(2):
        torch.testing.assert_close(both[row : row + 1], layer(x[row : row + 1], c[row : row + 1]))
    assert not torch.allclose(both[0], layer(x, c.flip(0))[0])
    # A condition for each token, all the same, is one for the sample.
    torch.testing.assert_close(layer(x, c[:, None].expand(2, 7, 6)), both)


@pytest.mark.parametrize("offset", [0, 100, 1000])
def test_statistics_are_float32_under_bfloat16(offset):
    layer = shaken(ConditionalLayerNorm(256, 6), 0.1).bfloat16()
    x = (normal(4, 9, 256) * 16 + offset).bfloat16()
    c = normal(4, 6).bfloat16()
    exact = layer.double()(x.double(), c.double())
    output = layer.bfloat16()(x, c)
    assert output.dtype == torch.bfloat16
    error = (output.double() - exact).norm() / exact.norm()
    # Gain and output are rounded to nine bits, which costs 1.26; the normalized x too costs 1.5.
    assert error < 1.4 * 2**-9, error
    # With statistics in bfloat16, it would be worse.
    mean = x.mean(-1, keepdim=True)
    std = (x - mean).square().mean(-1, keepdim=True).sqrt()
    coarse = (x - mean) / std
    plain = F.layer_norm(x.double(), (256,))
    if offset:
        assert (coarse.double() - plain).norm() / plain.norm() > 2**-7
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer.float()(x, c)
    assert (mixed.double() - exact).norm() / exact.norm() < 2**-8


def test_the_bottleneck_learns_from_the_second_step_on():
    layer = ConditionalLayerNorm(16, 6, bottleneck_size=4)
    assert not layer.scale.weight.any() and not layer.shift.weight.any()
    assert layer.bottleneck.weight.all() and layer.bottleneck.bias is None
    target = normal(5, 7, 16, seed=3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def backward() -> None:
        optimizer.zero_grad()
        (layer(normal(5, 7, 16), normal(5, 6)) - target).square().mean().backward()

    backward()
    assert not layer.bottleneck.weight.grad.any()
    assert layer.scale.weight.grad.any() and layer.shift.weight.grad.any()
    optimizer.step()
    backward()
    assert layer.bottleneck.weight.grad.any()


@pytest.mark.parametrize(
    ("x", "condition", "message"),
    [
        ((5, 7, 16), (5, 5), r"\(B, C\) or \(B, T, C\) with C = 6, got \(5, 5\)"),
        ((5, 7, 16), (6,), r"with C = 6, got \(6,\)"),
        ((5, 7, 16), (5, 7, 1, 6), r"with C = 6, got \(5, 7, 1, 6\)"),
        ((5, 7, 16), (1, 6), "5 texts need 5 rows of condition, got 1: repeat one that all share"),
        ((5, 7, 16), (5, 6, 6), r"of \(5, 7, 16\) must be \(5, 7, 6\), got \(5, 6, 6\)"),
        ((5, 7, 2, 16), (5, 7, 6), r"must be \(5, 7, 2, 6\), got \(5, 7, 6\)"),
        ((5, 16), (5, 1, 6), r"must be \(5, 6\), got \(5, 1, 6\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x, condition, message):
    with pytest.raises(ValueError, match=message):
        ConditionalLayerNorm(16, 6)(normal(*x), normal(*condition))


# From a plain BERT


def plain_bert(model_class: type[PreTrainedModel], folder: Path, **changes) -> PreTrainedModel:
    """A BERT as trained a little, and the folder where it is."""
    config = SIZES | {"initializer_range": 0.3, "pad_token_id": 0} | changes
    shaken(model_class(BertConfig(**config)), 0.1).save_pretrained(folder)
    # From the file, as the conditional one: alignment in memory may change the last bit.
    return model_class.from_pretrained(folder)


def padded(length: int = 9) -> dict[str, Tensor]:
    """Three texts of two segments, one of them shorter."""
    ids = tokens(3, length)
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    segments = (torch.arange(length) > length // 2).long().repeat(3, 1)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": segments}


BOTTLENECK = {"bottleneck_size": 4, "bottleneck_activation": "silu"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("fields", [{}, BOTTLENECK])
@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertForPreTraining])
def test_scores_are_those_of_the_plain_bert_exactly(model_class, fields, attention, tmp_path):
    plain_bert(model_class, tmp_path)
    options = {"attn_implementation": attention}
    model = ConditionalBertLMHeadModel.from_bert(
        str(tmp_path), num_classes=3, condition_size=6, **fields, **options
    )
    assert not model.training and model.config._attn_implementation == attention
    inputs = padded()
    masked = BertForMaskedLM.from_pretrained(tmp_path, **options)(**inputs).logits
    causal = BertLMHeadModel.from_pretrained(tmp_path, is_decoder=True, **options)(**inputs).logits
    assert not torch.allclose(masked, causal)
    for label in range(3):
        inputs["class_labels"] = torch.full((3,), label)
        bidirectional = model(**inputs, attention_pattern="bidirectional").logits
        assert torch.equal(bidirectional, masked)
        assert torch.equal(model(**inputs).logits, causal)
    del inputs["class_labels"]
    inputs["condition_embeds"] = 100 * normal(3, 6)
    assert torch.equal(model(**inputs).logits, causal)
    inputs["condition_embeds"] = normal(3, 9, 6)
    assert torch.equal(model(**inputs).logits, causal)


def test_a_checkpoint_without_a_head_keeps_its_states_exactly(tmp_path):
    plain = plain_bert(BertModel, tmp_path)
    with pytest.raises(ValueError, match="has no language model head; new_head=True begins a new"):
        ConditionalBertLMHeadModel.from_bert(str(tmp_path), num_classes=3)
    model = ConditionalBertLMHeadModel.from_bert(str(tmp_path), num_classes=3, new_head=True)
    inputs = padded()
    condition = {"class_labels": torch.arange(3), "attention_pattern": "bidirectional"}
    outputs = model(**inputs, **condition, output_hidden_states=True)
    expected = plain(**inputs, output_hidden_states=True).hidden_states
    assert len(outputs.hidden_states) == len(expected) == 3
    for mine, its in zip(outputs.hidden_states, expected, strict=True):
        assert torch.equal(mine, its)
    causal = BertModel.from_pretrained(tmp_path, is_decoder=True)(**inputs).last_hidden_state
    mine = model.bert(**inputs, class_labels=torch.arange(3)).last_hidden_state
    assert torch.equal(mine, causal)
    assert outputs.logits.isfinite().all()
    head = model.cls.predictions
    assert head.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert 0.2 < head.transform.dense.weight.std() < 0.4  # as the config says
    assert not head.bias.any() and (head.transform.LayerNorm.weight == 1).all()


@pytest.mark.parametrize("model_class", [BertForSequenceClassification, BertForQuestionAnswering])
def test_a_bert_for_another_task_is_a_base_too(model_class, tmp_path):
    plain = plain_bert(model_class, tmp_path)
    with pytest.raises(ValueError, match="has no language model head"):
        ConditionalBertLMHeadModel.from_bert(str(tmp_path), num_classes=3)
    model = ConditionalBertLMHeadModel.from_bert(str(tmp_path), num_classes=3, new_head=True)
    inputs = padded()
    condition = {"class_labels": torch.arange(3), "attention_pattern": "bidirectional"}
    mine = model.bert(**inputs, **condition).last_hidden_state
    assert torch.equal(mine, plain.bert(**inputs).last_hidden_state)


def test_a_classifier_goes_on_or_begins_a_new_head(tmp_path):
    fine = plain_bert(BertForSequenceClassification, tmp_path / "fine", num_labels=4)
    loaded = ConditionalBertForSequenceClassification.from_bert(
        str(tmp_path / "fine"), num_classes=3
    )
    inputs = padded()
    labels = torch.arange(3)
    assert torch.equal(loaded(**inputs, class_labels=labels).logits, fine(**inputs).logits)
    # Of another size, it is new; what is below is not.
    new = ConditionalBertForSequenceClassification.from_bert(
        str(tmp_path / "fine"), num_classes=3, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}
    )
    outputs = new(**inputs, class_labels=labels)
    assert outputs.logits.shape == (3, 2) and outputs.logits.isfinite().all()
    states = new.bert(**inputs, class_labels=labels, attention_pattern="bidirectional")
    assert torch.equal(states.pooler_output, fine.bert(**inputs).pooler_output)
    plain_bert(BertForMaskedLM, tmp_path / "masked")
    new = ConditionalBertForSequenceClassification.from_bert(
        str(tmp_path / "masked"), num_classes=3
    )
    assert new(**inputs, class_labels=labels).logits.isfinite().all()


def test_the_base_model_has_a_door_too(tmp_path):
    plain = plain_bert(BertModel, tmp_path / "base")
    model = ConditionalBertModel.from_bert(str(tmp_path / "base"), condition_size=6)
    inputs = padded()
    condition = {"condition_embeds": normal(3, 6), "attention_pattern": "bidirectional"}
    mine, its = model(**inputs, **condition), plain(**inputs)
    assert torch.equal(mine.last_hidden_state, its.last_hidden_state)
    assert torch.equal(mine.pooler_output, its.pooler_output)
    plain_bert(BertForMaskedLM, tmp_path / "masked")
    with pytest.raises(ValueError, match="has no pooler; new_head=True begins a new one"):
        ConditionalBertModel.from_bert(str(tmp_path / "masked"))
    model = ConditionalBertModel.from_bert(str(tmp_path / "masked"), new_head=True)
    assert model(**inputs, condition_embeds=normal(3, 128)).pooler_output.isfinite().all()


def test_a_truncated_checkpoint_is_an_error_that_names_a_weight(tmp_path):
    plain_bert(BertForMaskedLM, tmp_path, num_hidden_layers=1)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    for missing in state:
        rest = {name: weight for name, weight in state.items() if name != missing}
        save_file(rest, file, metadata={"format": "pt"})
        for new_head in (False, True):
            with pytest.raises(ValueError, match=f"missing or of another size.*{missing}"):
                ConditionalBertLMHeadModel.from_bert(str(tmp_path), new_head=new_head)


def test_names_of_old_checkpoints_are_read(tmp_path):
    """As Google's were converted: gamma and beta, positions as a weight, one bias for two names."""
    plain = plain_bert(BertForPreTraining, tmp_path)
    file = tmp_path / "model.safetensors"
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): weight
        for name, weight in load_file(file).items()
    }
    assert sum(name.endswith("gamma") for name in state) == 6
    assert "cls.predictions.decoder.bias" not in state
    state["bert.embeddings.position_ids"] = torch.arange(32)[None]
    save_file(state, file, metadata={"format": "pt"})
    edit_config(tmp_path, pooler_fc_size=768, directionality="bidi", model_type="bert")
    model = ConditionalBertLMHeadModel.from_bert(str(tmp_path), num_classes=3)
    inputs = padded()
    found = model(**inputs, class_labels=torch.arange(3), attention_pattern="bidirectional").logits
    torch.testing.assert_close(found, plain(**inputs).prediction_logits)


def edit_config(folder: Path, **changes) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))


def test_a_checkpoint_that_does_not_fit_its_config_is_an_error(tmp_path):
    plain_bert(BertForMaskedLM, tmp_path)
    edit_config(tmp_path, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"16 weights are unknown, such as bert.encoder.layer.1"):
        ConditionalBertLMHeadModel.from_bert(str(tmp_path))
    edit_config(tmp_path, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"16 weights are missing .* bert.encoder.layer.2"):
        ConditionalBertLMHeadModel.from_bert(str(tmp_path))
    edit_config(tmp_path, num_hidden_layers=2, max_position_embeddings=16)
    with pytest.raises(ValueError, match=r"of another size, such as bert.embeddings.position_emb"):
        ConditionalBertLMHeadModel.from_bert(str(tmp_path))


def test_another_architecture_is_an_error(tmp_path):
    RobertaForMaskedLM(RobertaConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a roberta, which is no BERT"):
        ConditionalBertLMHeadModel.from_bert(str(tmp_path))


def test_a_conditional_bert_can_be_the_start_too(tmp_path):
    """What fits stays, the learned maps with it; classes of another number begin anew."""
    model: Any = shaken(language_model())
    model.save_pretrained(tmp_path)
    ids, labels = tokens(2, 7), torch.tensor([0, 1])
    same = ConditionalBertLMHeadModel.from_bert(str(tmp_path))
    assert torch.equal(
        same(ids, class_labels=labels).logits, model(ids, class_labels=labels).logits
    )
    other = ConditionalBertLMHeadModel.from_bert(str(tmp_path), class_names=["a", "b", "c", "d"])
    assert other.config.class_names == ["a", "b", "c", "d"]
    assert other.bert.class_embeddings.weight.shape[0] == 4
    condition = torch.randn(2, model.config.condition_size)
    assert torch.equal(
        other(ids, condition_embeds=condition).logits,
        model(ids, condition_embeds=condition).logits,
    )
    state = load_file(tmp_path / "model.safetensors")
    lacking = {name: tensor for name, tensor in state.items() if "scale" not in name}
    save_file(lacking, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"are missing or of another size, such as .*scale.weight"):
        ConditionalBertLMHeadModel.from_bert(str(tmp_path))
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    narrow = ConditionalBertLMHeadModel.from_bert(
        str(tmp_path), num_classes=2, condition_size=3, condition_initializer_range=0.0
    )
    assert not narrow.bert.layer_norms()[0].scale.weight.any()


def test_options_reach_the_loader_and_fields_the_config(tmp_path):
    plain = plain_bert(BertForMaskedLM, tmp_path / "inner", tie_word_embeddings=False)
    options = {"subfolder": "inner", "dtype": torch.bfloat16, "attn_implementation": "eager"}
    model = ConditionalBertLMHeadModel.from_bert(
        str(tmp_path), class_names=["a", "b"], attention_pattern="prefix", **options
    )
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    config = model.config
    assert (config.num_classes, config.class_names) == (2, ["a", "b"])
    assert (config.attention_pattern, config.condition_size) == ("prefix", 128)
    assert not config.tie_word_embeddings
    assert torch.equal(
        model.cls.predictions.decoder.weight, plain.cls.predictions.decoder.weight.bfloat16()
    )
    with pytest.raises(TypeError, match="num_clases"):
        ConditionalBertLMHeadModel.from_bert(str(tmp_path), subfolder="inner", num_clases=2)


def maps_of(model: nn.Module) -> list[ConditionMap]:
    return [module for module in model.modules() if isinstance(module, ConditionMap)]


def bottlenecks_of(model: nn.Module) -> list[nn.Linear]:
    norms = (module for module in model.modules() if isinstance(module, ConditionalLayerNorm))
    return [norm.bottleneck for norm in norms]


@pytest.mark.parametrize("spread", [0.0, 0.1])
@pytest.mark.parametrize(
    "way", ["from_bert", "from_pretrained", "from_config", "constructor", "saved"]
)
def test_maps_start_as_the_config_says_on_every_way(way, spread, tmp_path):
    fields = {"num_classes": 40, "condition_size": 32, "bottleneck_size": 24}
    fields |= {"condition_initializer_range": spread}
    if way == "from_bert":
        plain_bert(BertForMaskedLM, tmp_path)
        model = ConditionalBertLMHeadModel.from_bert(str(tmp_path), **fields)
    elif way == "from_pretrained":
        plain_bert(BertForMaskedLM, tmp_path)
        config = ConditionalBertConfig(**SIZES, initializer_range=0.3, **fields)
        model = ConditionalBertLMHeadModel.from_pretrained(tmp_path, config=config)
    else:
        config = small_config(**fields)
        if way == "from_config":
            model = AutoModelForCausalLM.from_config(config)
        else:
            model = ConditionalBertLMHeadModel(config)
        if way == "saved":
            model.save_pretrained(tmp_path)
            model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(model) is ConditionalBertLMHeadModel
    maps = maps_of(model)
    assert len(maps) == 2 * (1 + 2 * 2 + 1)
    for each in maps:
        assert each.bias is None
        std = each.weight.std().item()
        assert std == 0 if spread == 0 else 0.8 * spread < std < 1.2 * spread
    assert len(bottlenecks_of(model)) == 6
    for each in bottlenecks_of(model):
        assert 0.24 < each.weight.std() < 0.36 and each.bias is None
    classes = model.bert.class_embeddings
    assert isinstance(classes, ClassEmbedding) and 0.9 < classes.weight.std() < 1.1


def test_trained_maps_survive_save_and_load(tmp_path):
    model = shaken(language_model(**BOTTLENECK))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    mine, its = model.state_dict(), loaded.state_dict()
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name], its[name]) for name in mine)
    inputs = padded() | {"class_labels": torch.arange(3)}
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


def test_classes_keep_their_embeddings_by_name(tmp_path):
    """In another order, or some of them with others; the number alone changes nothing."""
    old = language_model(class_names=["a", "b", "c"])
    old.save_pretrained(tmp_path)
    rows = old.bert.class_embeddings.weight
    model = ConditionalBertLMHeadModel.from_bert(str(tmp_path), class_names=["c", "x", "a"])
    found = model.bert.class_embeddings.weight
    assert torch.equal(found[0], rows[2]) and torch.equal(found[2], rows[0])
    assert not torch.isclose(found[1], rows).all(dim=1).any() and found[1].abs().max() > 0.01
    same = ConditionalBertLMHeadModel.from_bert(str(tmp_path), num_classes=3)
    assert same.config.class_names == ["a", "b", "c"]
    assert torch.equal(same.bert.class_embeddings.weight, rows)


def test_names_say_how_many_classes_there_are():
    assert ConditionalBertConfig(class_names=["a", "b"]).num_classes == 2


def test_class_names_reach_the_config(tmp_path):
    plain_bert(BertForMaskedLM, tmp_path)
    names = ["neg", "pos"]
    for fields in ({}, {"num_classes": 2}):
        model = ConditionalBertLMHeadModel.from_bert(str(tmp_path), class_names=names, **fields)
        assert model.config.num_classes == 2 and model.config.class_names == names
        assert model.config.class_ids(["pos", "neg", 1]).tolist() == [1, 0, 1]
    with pytest.raises(StrictDataclassClassValidationError, match="must be 3 different names"):
        ConditionalBertLMHeadModel.from_bert(str(tmp_path), class_names=names, num_classes=3)
    model = ConditionalBertLMHeadModel.from_bert(str(tmp_path), condition_size=6)
    assert not hasattr(model.bert, "class_embeddings")
    assert model(**padded(), condition_embeds=normal(3, 6)).logits.isfinite().all()


def save_tokenizer(folder: Path) -> None:
    """A tokenizer whose words are the letters, and whose special tokens are not the first."""
    letters = [chr(ord("a") + index) for index in range(26)]
    tokenizer = build_tokenizer(letters * 2, max_tokens=40)
    assert len(tokenizer) == 31
    tokenizer.save_pretrained(folder)


def test_the_tokenizer_says_what_begins_ends_and_pads(tmp_path):
    plain_bert(BertForMaskedLM, tmp_path)
    save_tokenizer(tmp_path)
    model = ConditionalBertLMHeadModel.from_bert(str(tmp_path), num_classes=2)
    for config in (model.config, model.generation_config):
        ids = (config.pad_token_id, config.bos_token_id, config.eos_token_id)
        assert ids == (0, 2, 3)  # [PAD], [CLS], [SEP]
    assert model.generation_config.suppress_tokens == [0, 1, 2, 4]  # not [SEP]
    texts = model.generate(class_labels=torch.tensor([0, 1] * 20), max_new_tokens=9, do_sample=True)
    assert texts.shape[0] == 40 and (texts[:, 0] == 2).all()
    for row in texts[:, 1:].tolist():
        row = row[: row.index(3)] if 3 in row else row
        assert not {0, 1, 2, 4} & {*row}
    model.save_pretrained(tmp_path / "again")
    again = ConditionalBertLMHeadModel.from_pretrained(tmp_path / "again")
    assert again.generation_config.suppress_tokens == [0, 1, 2, 4]
    assert again.generation_config.bos_token_id == 2
    # What the caller says comes first.
    model = ConditionalBertLMHeadModel.from_bert(str(tmp_path), num_classes=2, eos_token_id=9)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 9


@pytest.mark.parametrize("vocab_size", [50, 20])
def test_without_a_tokenizer_that_fits_nothing_is_made_up(vocab_size, tmp_path):
    plain_bert(BertForMaskedLM, tmp_path, vocab_size=vocab_size)
    if vocab_size == 20:
        save_tokenizer(tmp_path)  # of 31 tokens
    model = ConditionalBertLMHeadModel.from_bert(str(tmp_path), num_classes=2)
    assert model.config.bos_token_id is None and model.config.eos_token_id is None
    assert model.generation_config.suppress_tokens is None
    with pytest.raises(ValueError, match="there is nothing to begin with: give input_ids"):
        model.generate(class_labels=LABELS // 2, max_new_tokens=3)
    begun = model.generate(class_labels=LABELS // 2, max_new_tokens=3, bos_token_id=7)
    assert begun.shape == (2, 4) and (begun[:, 0] == 7).all()


KEPT = [3, 0, 30, 2, 17, 4, 21, 1, 9]
"""Special tokens among them, in another order."""


@pytest.mark.parametrize("is_tied", [True, False])
def test_kept_tokens_keep_their_scores(is_tied, tmp_path):
    plain_bert(BertForMaskedLM, tmp_path, tie_word_embeddings=is_tied)
    save_tokenizer(tmp_path)
    full = ConditionalBertLMHeadModel.from_bert(str(tmp_path), num_classes=2)
    model = ConditionalBertLMHeadModel.from_bert(str(tmp_path), num_classes=2, keep_tokens=KEPT)
    ids = torch.tensor([[2, 30, 17, 4, 3], [2, 9, 9, 1, 21]])
    new = torch.tensor([[KEPT.index(token) for token in row] for row in ids.tolist()])
    inputs = {"class_labels": torch.arange(2)}
    head, trimmed = full.cls.predictions, model.cls.predictions
    assert torch.equal(trimmed.decoder.weight, head.decoder.weight[KEPT])
    assert torch.equal(trimmed.decoder.bias, head.decoder.bias[KEPT])
    for pattern in ("causal", "bidirectional"):
        states = full.bert(ids, attention_pattern=pattern, **inputs).last_hidden_state
        mine = model.bert(new, attention_pattern=pattern, **inputs).last_hidden_state
        assert torch.equal(mine, states)
        # A product with fewer columns may round its sums differently.
        expected = full(ids, attention_pattern=pattern, **inputs).logits[..., KEPT]
        found = model(new, attention_pattern=pattern, **inputs).logits
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    labels = new.where(new != 0, -100)
    assert model(new, labels=labels, **inputs).loss.isfinite()

    for config in (model.config, model.generation_config):
        # [PAD] 0, [CLS] 2 and [SEP] 3
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (1, 3, 0)
    assert sorted(model.generation_config.suppress_tokens) == [1, 3, 5, 7]  # 0, 2, 4, 1
    assert model.config.vocab_size == 9
    words, decoder = model.bert.embeddings.word_embeddings, model.cls.predictions.decoder
    assert (words.num_embeddings, words.padding_idx, decoder.out_features) == (9, 1, 9)
    assert (decoder.weight is words.weight) == is_tied
    assert (decoder.bias is model.cls.predictions.bias) == is_tied
    assert decoder.bias.shape == model.cls.predictions.bias.shape == (9,)

    model.save_pretrained(tmp_path / "trimmed")
    loaded = ConditionalBertLMHeadModel.from_pretrained(tmp_path / "trimmed")
    assert loaded.config.vocab_size == 9
    torch.testing.assert_close(loaded(new, **inputs).logits, model(new, **inputs).logits)
    assert loaded.generate(class_labels=torch.arange(2), max_new_tokens=4).max() < 9


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([0, 2, 30], "must have token 3, which is the eos_token_id"),
        ([0, 3, 30], "must have token 2, which is the bos_token_id"),
        ([2, 3, 30], "must have token 0, which is the pad_token_id"),
        ([0, 2, 3, 30, 30], "must be different numbers below 50"),
        ([0, 2, 3, 50], "must be different numbers below 50"),
        ([0, 2, 3, -1], "must be different numbers below 50"),
    ],
)
def test_tokens_that_cannot_go_or_are_not_there(kept, message):
    model = language_model(bos_token_id=2, eos_token_id=3)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model.keep_tokens(kept)
    # Nothing is half done.
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (model.config.vocab_size, model.config.eos_token_id) == (50, 3)


def test_a_classifier_can_lose_tokens_too():
    model = ConditionalBertForSequenceClassification(small_config()).eval()
    ids, labels = torch.tensor([[1, 30, 0], [1, 17, 9]]), torch.arange(2)
    expected = model(ids, class_labels=labels).logits
    kept = [9, 1, 0, 30, 17]
    model.keep_tokens(kept)
    new = torch.tensor([[kept.index(token) for token in row] for row in ids.tolist()])
    assert torch.equal(model(new, class_labels=labels).logits, expected)


# All the LayerNorms


def test_a_bert_of_twelve_layers_has_26_conditional_layer_norms_and_uses_all():
    config = {"num_hidden_layers": 12, "condition_initializer_range": 0.0}
    model = language_model(**config)
    norms = [*model.bert.layer_norms(), model.cls.predictions.transform.LayerNorm]
    assert len(norms) == 26
    found = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert {id(norm) for norm in norms} == {id(module) for module in found}
    assert len(maps_of(model)) == 52

    ids = tokens(2, 5)
    plain = model(ids, class_labels=LABELS).logits
    assert torch.equal(plain, model(ids, class_labels=LABELS.flip(0)).logits)
    for site, norm in enumerate(norms):
        for each in (norm.scale, norm.shift):
            with torch.no_grad():
                each.weight.copy_(normal(*each.weight.shape))
            changed = model(ids, class_labels=LABELS).logits
            assert (changed - plain).abs().max() > 1e-2, f"LayerNorm {site} is not used"
            assert not torch.allclose(changed, model(ids, class_labels=LABELS.flip(0)).logits)
            nn.init.zeros_(each.weight)
    assert torch.equal(plain, model(ids, class_labels=LABELS).logits)


def test_sites_of_a_classifier_and_of_the_base_model():
    model = ConditionalBertForSequenceClassification(small_config(num_hidden_layers=3))
    norms = model.bert.layer_norms()
    found = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == len(found) == 7
    assert {id(norm) for norm in norms} == {id(module) for module in found}


def test_modulations_may_be_given_in_the_place_of_conditions():
    model = language_model(**BOTTLENECK)
    ids = tokens(2, 5)
    modulations = model.modulations(LABELS, batch_size=2)
    assert modulations.shape == (2, 6, 1, 2, 16)
    expected = model(ids, class_labels=LABELS).logits
    assert torch.equal(model(ids, modulations=modulations).logits, expected)


def test_offloaded_weights_come_when_they_are_wanted():
    """accelerate hooks modules: whatever reads a weight does so inside its own module."""
    model = language_model(**BOTTLENECK)
    ids = tokens(2, 5)
    expected = model(ids, class_labels=LABELS).logits
    text = model.generate(ids, class_labels=LABELS, max_new_tokens=4, guidance_scale=2.0)
    cpu_offload(model)
    assert all(weight.is_meta for weight in model.parameters())
    torch.testing.assert_close(model(ids, class_labels=LABELS).logits, expected)
    found = model.generate(ids, class_labels=LABELS, max_new_tokens=4, guidance_scale=2.0)
    assert torch.equal(found, text)


def test_conditions_are_dropped_once():
    """While training, the share of texts without a condition is the one that was asked for."""
    model = language_model(condition_dropout=0.5).train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    ids, labels = tokens(1, 4).expand(400, -1), torch.zeros(400, dtype=torch.long)
    for norm in model.bert.layer_norms():
        nn.init.normal_(norm.shift.weight)
    torch.manual_seed(0)
    logits = model(ids, class_labels=labels).logits[:, 0]
    without = model(ids[:1], condition_embeds=torch.zeros(1, 6)).logits[0, 0]
    is_dropped = (logits - without).abs().amax(dim=1) < 1e-4
    assert 0.4 < is_dropped.double().mean() < 0.6


def test_a_condition_for_each_token():
    model = language_model()
    ids, condition = tokens(2, 5), normal(2, 6)
    same = model(ids, condition_embeds=condition).logits
    repeated = condition[:, None].expand(2, 5, 6)
    torch.testing.assert_close(model(ids, condition_embeds=repeated).logits, same)
    # That of the fourth token moves the fourth and the fifth.
    other = repeated.clone()
    other[:, 3] += 1
    moved = (model(ids, condition_embeds=other).logits - same).abs().amax(dim=(0, 2))
    assert (moved[:3] < 1e-5).all() and (moved[3:] > 1e-2).all()
    last = model(ids, condition_embeds=other, logits_to_keep=2).logits
    torch.testing.assert_close(last, model(ids, condition_embeds=other).logits[:, -2:])


# Masks


def naive_rule(pattern: str, segments: Tensor, mask: Tensor) -> Tensor:
    """Whether token i sees token j: (B, T) -> (B, T, T). Su (2019), kexue.fm/archives/6933."""
    rows = []
    for row, is_text in zip(segments.tolist(), mask.tolist(), strict=True):
        sums = [sum(row[: i + 1]) for i in range(len(row))]

        def sees(i: int, j: int, sums: list[int] = sums, is_text: list[int] = is_text) -> bool:
            if pattern == "causal":
                return j <= i and is_text[j] == 1
            if pattern == "prefix":
                return sums[j] <= sums[i] and is_text[j] == 1
            return is_text[j] == 1

        rows.append([[sees(i, j) for j in range(len(row))] for i in range(len(row))])
    return torch.tensor(rows)


PATTERNS = ["causal", "prefix", "bidirectional"]
SEGMENTS = {
    "a source and a target": [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]],
    "alternating": [[0, 1, 0, 1, 0, 1], [0, 0, 1, 0, 1, 1], [1, 0, 0, 1, 1, 0]],
    "only one": [[0] * 6, [1] * 6, [0] * 6],
}
PADDINGS = {
    "none": [[1] * 6] * 3,
    "left": [[1] * 6, [0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 1, 0, 0], [1] * 6, [1, 1, 1, 1, 1, 0]],
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_token_sees_what_the_rule_says(pattern, segments, padding, attention):
    model = language_model(attn_implementation=attention)
    segments, mask = torch.tensor(SEGMENTS[segments]), torch.tensor(PADDINGS[padding])
    sees = naive_rule(pattern, segments, mask)
    inputs = {
        "attention_mask": mask if padding != "none" else None,
        "token_type_ids": segments,
        "attention_pattern": pattern,
        "class_labels": torch.arange(3),
    }
    embeds = normal(3, 6, 16)
    with torch.no_grad():
        logits = model(inputs_embeds=embeds, **inputs).logits
        for j in range(6):
            moved = embeds.clone()
            moved[:, j] += normal(3, 16, seed=1)
            change = (model(inputs_embeds=moved, **inputs).logits - logits).abs().amax(dim=-1)
            is_other = mask == 1  # (B, T), the real tokens but j
            is_other[:, j] = False
            assert torch.equal((change > 1e-3)[is_other], sees[..., j][is_other]), j
            assert (change[is_other & ~sees[..., j]] < 1e-5).all()
        # The same rule as a dense mask.
        dense = torch.where(sees, 0.0, torch.finfo(torch.float32).min)[:, None]
        found = model(inputs_embeds=embeds, **inputs | {"attention_mask": dense}).logits
    is_text = mask == 1
    torch.testing.assert_close(found[is_text], logits[is_text], rtol=1e-4, atol=1e-5)


def test_the_config_names_the_pattern_and_a_call_may_name_another():
    ids, segments = tokens(2, 6), torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    inputs = {"input_ids": ids, "token_type_ids": segments, "class_labels": LABELS}
    models = {}
    for pattern in PATTERNS:
        torch.manual_seed(0)
        models[pattern] = language_model(attention_pattern=pattern)
    for pattern in PATTERNS:
        expected = models[pattern](**inputs).logits
        for model in models.values():
            assert torch.equal(model(**inputs, attention_pattern=pattern).logits, expected)
        for other in PATTERNS:
            same = torch.allclose(models[other](**inputs).logits, expected)
            assert same == (other == pattern)


def test_without_segments_all_of_a_prefix_sees_itself():
    model, ids = language_model(), tokens(2, 6)
    prefix = model(ids, class_labels=LABELS, attention_pattern="prefix").logits
    all_see = model(ids, class_labels=LABELS, attention_pattern="bidirectional").logits
    torch.testing.assert_close(prefix, all_see)


# Generation


@torch.no_grad()
def scores_by_hand(
    model: ConditionalBertLMHeadModel,
    ids: Tensor,
    mask: Tensor,
    segments: Tensor,
    condition: Tensor,
    guidance: float | None,
    pattern: str,
) -> Tensor:
    """Scores of a whole text without any cache, under guidance of two separate runs."""
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": segments,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "attention_pattern": pattern,
        "use_cache": False,
    }
    logits = model(**inputs, condition_embeds=condition).logits
    if guidance is None:
        return logits
    without = model(**inputs, condition_embeds=torch.zeros_like(condition)).logits
    return without + guidance * (logits - without)


def greedy_by_hand(
    model: ConditionalBertLMHeadModel,
    ids: Tensor,
    mask: Tensor,
    labels: Tensor,
    steps: int,
    guidance: float | None,
    pattern: str,
) -> tuple[Tensor, Tensor]:
    """Texts (B, T + steps), and the scores (B, steps, V) that led to them."""
    condition = model.bert.class_embeddings(labels).detach()
    segments, steps_of_scores = torch.zeros_like(ids), []
    for _ in range(steps):
        logits = scores_by_hand(model, ids, mask, segments, condition, guidance, pattern)[:, -1]
        steps_of_scores.append(logits)
        one = torch.ones_like(ids[:, :1])
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, one], dim=1)
        segments = torch.cat([segments, one if pattern == "prefix" else 0 * one], dim=1)
    return ids, torch.stack(steps_of_scores, dim=1)


def prompts() -> dict[str, Tensor]:
    """Three prompts of different lengths, padded on the left."""
    ids = tokens(3, 5, seed=4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    return {"input_ids": ids * mask, "attention_mask": mask}


THREE = torch.tensor([2, 0, 1])
WAYS = {
    "as it is": {},
    "without cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("guidance", [None, 2.5])
@pytest.mark.parametrize("pattern", ["causal", "prefix"])
def test_greedy_texts_are_those_of_the_model_without_a_cache(pattern, guidance, attention):
    model = language_model(attn_implementation=attention)
    inputs = prompts()
    expected, scores = greedy_by_hand(
        model, *inputs.values(), THREE, steps=12, guidance=guidance, pattern=pattern
    )
    assert len({*expected[:, 5:].flatten().tolist()}) > 4  # no stammering
    settings = {
        "max_new_tokens": 12,
        "guidance_scale": guidance,
        "attention_pattern": pattern,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    for name, way in WAYS.items():
        if guidance and name == "static cache":
            continue  # refused, see below
        found = model.generate(**inputs, class_labels=THREE, **settings, **way)
        assert torch.equal(found.sequences, expected), name
        logits = torch.stack(found.logits, dim=1)
        torch.testing.assert_close(logits, scores, rtol=1e-4, atol=1e-4)
    # Row by row, without padding.
    for row in range(3):
        start = int((inputs["attention_mask"][row] == 0).sum())
        alone = model.generate(
            inputs["input_ids"][row : row + 1, start:],
            class_labels=THREE[row : row + 1],
            **settings,
        )
        assert torch.equal(alone.sequences[0], expected[row, start:])
    # Other conditions, other texts.
    other = model.generate(**inputs, class_labels=THREE.roll(1), **settings).sequences
    assert (other != expected).any(dim=1).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("guidance", [None, 2.5])
@pytest.mark.parametrize("pattern", ["causal", "prefix"])
def test_beams(pattern, guidance, attention):
    """What beam search says of its texts is what the model says that reads them as a whole."""
    model = language_model(attn_implementation=attention)
    inputs = prompts()
    settings = {
        "max_new_tokens": 8,
        "num_beams": 4,
        "num_return_sequences": 3,
        "guidance_scale": guidance,
        "attention_pattern": pattern,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    found = model.generate(**inputs, class_labels=THREE, **settings)
    texts = found.sequences
    assert texts.shape == (9, 13) and torch.equal(
        texts[:, :5], inputs["input_ids"].repeat_interleave(3, 0)
    )
    condition = model.bert.class_embeddings(THREE).detach().repeat_interleave(3, 0)
    mask = F.pad(inputs["attention_mask"].repeat_interleave(3, 0), (0, 8), value=1)
    segments = torch.zeros_like(texts)
    segments[:, 5:] = int(pattern == "prefix")
    scores = scores_by_hand(model, texts, mask, segments, condition, guidance, pattern)
    likelihood = scores[:, 4:-1].log_softmax(-1).gather(-1, texts[:, 5:, None]).sum(dim=(1, 2))
    torch.testing.assert_close(found.sequences_scores, likelihood / 8, rtol=1e-4, atol=1e-4)
    # The best is first, and better than greedy.
    by_text = found.sequences_scores.view(3, 3)
    assert (by_text.diff(dim=1) <= 0).all()
    _, scores = greedy_by_hand(
        model, *inputs.values(), THREE, steps=8, guidance=guidance, pattern=pattern
    )
    assert (by_text[:, 0] >= scores.log_softmax(-1).amax(-1).mean(-1) - 1e-4).all()

    for name, way in WAYS.items():
        if guidance and name == "static cache":
            continue
        again = model.generate(**inputs, class_labels=THREE, **settings, **way).sequences
        assert torch.equal(again, texts), name
    for row in range(3):
        start = int((inputs["attention_mask"][row] == 0).sum())
        alone = model.generate(
            inputs["input_ids"][row : row + 1, start:],
            class_labels=THREE[row : row + 1],
            **settings,
        )
        assert torch.equal(alone.sequences, texts[3 * row : 3 * row + 3, start:])


@pytest.mark.parametrize("guidance", [None, 2.5])
@pytest.mark.parametrize("pattern", ["causal", "prefix"])
def test_samples(pattern, guidance):
    model = language_model()
    inputs = prompts()
    settings = {"max_new_tokens": 8, "guidance_scale": guidance, "attention_pattern": pattern}

    def draw(num: int = 3, condition: Tensor = THREE, **way) -> Tensor:
        torch.manual_seed(5)
        return model.generate(
            **inputs,
            class_labels=condition,
            do_sample=True,
            top_k=0,
            num_return_sequences=num,
            **settings,
            **way,
        )

    texts = draw()
    assert texts.shape == (9, 13)
    assert len({tuple(row) for row in texts.tolist()}) == 9
    for name, way in WAYS.items():
        if not (guidance and name == "static cache"):
            assert torch.equal(draw(**way), texts), name
    # Three of each are the same as one of each prompt that is there three times.
    torch.manual_seed(5)
    repeated = {name: value.repeat_interleave(3, 0) for name, value in inputs.items()}
    labels = THREE.repeat_interleave(3)
    again = model.generate(**repeated, class_labels=labels, do_sample=True, top_k=0, **settings)
    assert torch.equal(again, texts)
    model.set_attn_implementation("eager")
    assert torch.equal(draw(), texts)


def test_samples_come_from_the_scores():
    """Chi-square of first tokens, so that sampling under guidance is sampling of these scores."""
    model = language_model()
    count = 4000
    labels = torch.ones(count, dtype=torch.long)
    condition = model.bert.class_embeddings(labels[:1]).detach()
    one = torch.ones(1, 1, dtype=torch.long)
    logits = scores_by_hand(model, one, one, 0 * one, condition, 1.7, "causal")[0, -1]
    torch.manual_seed(0)
    texts = model.generate(
        class_labels=labels, max_new_tokens=1, do_sample=True, top_k=0, guidance_scale=1.7
    )
    expected = logits.softmax(-1) * count
    found = torch.bincount(texts[:, 1], minlength=50)
    common = expected > 5
    chi2 = ((found - expected).square() / expected)[common].sum().item()
    degrees = int(common.sum())
    assert degrees > 5 and chi2 < degrees + 4 * math.sqrt(2 * degrees)


def test_no_prompt_is_needed():
    model = language_model()
    settings = {"max_new_tokens": 9}
    expected = model.generate(torch.ones(3, 1, dtype=torch.long), class_labels=THREE, **settings)
    assert expected.shape == (3, 10)
    assert torch.equal(model.generate(class_labels=THREE, **settings), expected)
    condition = model.bert.class_embeddings(THREE).detach()
    assert torch.equal(model.generate(condition_embeds=condition, **settings), expected)
    by_name = model.generate(
        input_ids=torch.ones(3, 1, dtype=torch.long), class_labels=THREE, **settings
    )
    assert torch.equal(by_name, expected)
    other = model.generate(class_labels=THREE, bos_token_id=7, **settings)
    assert (other[:, 0] == 7).all() and not torch.equal(other[:, 1:], expected[:, 1:])
    # The padding token is no padding where it begins a text.
    begun = model.generate(class_labels=THREE, bos_token_id=0, **settings)
    given = {"input_ids": torch.zeros(3, 1, dtype=torch.long), "class_labels": THREE}
    mask = torch.ones(3, 1, dtype=torch.long)
    assert torch.equal(begun, model.generate(**given, attention_mask=mask, **settings))


def test_prompts_may_be_vectors():
    model = language_model()
    ids = tokens(2, 4)
    embeds = model.get_input_embeddings()(ids).detach()
    for guidance in (None, 3.0):
        for pattern in ("causal", "prefix"):
            settings = {"class_labels": LABELS, "max_new_tokens": 6, "guidance_scale": guidance}
            settings["attention_pattern"] = pattern
            expected = model.generate(ids, **settings)[:, 4:]
            assert torch.equal(model.generate(inputs_embeds=embeds, **settings), expected)


def test_finished_texts_are_padded():
    model = language_model()
    inputs = prompts() | {"class_labels": THREE, "max_new_tokens": 12}
    texts = model.generate(**inputs)
    end = int(texts[0, 8])  # the fourth new token of the first text
    stopped = model.generate(**inputs, eos_token_id=end)
    for mine, whole in zip(stopped[:, 5:].tolist(), texts[:, 5:].tolist(), strict=True):
        length = whole.index(end) + 1 if end in whole else len(mine)
        assert mine[:length] == whole[:length] and not any(mine[length:])
    assert (stopped[0] == 0).any()


def test_a_target_is_of_the_second_segment():
    """Where transformers would repeat the last segment, which is the first."""
    model = language_model(attention_pattern="prefix")
    ids, condition = tokens(2, 5), model.bert.class_embeddings(LABELS).detach()
    found = model.generate(
        ids, class_labels=LABELS, max_new_tokens=6, output_logits=True, return_dict_in_generate=True
    )
    mask, ones = torch.ones_like(found.sequences), torch.ones(2, 6, dtype=torch.long)
    for segment in (0, 1):
        segments = torch.cat([torch.zeros_like(ids), segment * ones], dim=1)
        arguments = (found.sequences, mask, segments, condition, None, "prefix")
        scores = scores_by_hand(model, *arguments)[:, 4:-1]
        same = torch.allclose(torch.stack(found.logits, dim=1), scores, rtol=1e-4, atol=1e-4)
        assert same == (segment == 1)
    # A source may have segments of its own: an example with its answer, and the question.
    segments = torch.tensor([[0, 0, 1, 1, 0]] * 2)
    found = model.generate(
        ids,
        token_type_ids=segments,
        class_labels=LABELS,
        max_new_tokens=6,
        output_logits=True,
        return_dict_in_generate=True,
    )
    segments = torch.cat([segments, ones], dim=1)
    arguments = (found.sequences, mask, segments, condition, None, "prefix")
    scores = scores_by_hand(model, *arguments)[:, 4:-1]
    torch.testing.assert_close(torch.stack(found.logits, dim=1), scores, rtol=1e-4, atol=1e-4)


class Listener:
    """A streamer that writes down what it gets."""

    def __init__(self):
        self.heard: list[list[int]] = []
        self.is_over = False

    def put(self, value: Tensor) -> None:
        self.heard.append(value.flatten().tolist())

    def end(self) -> None:
        self.is_over = True


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_a_streamer_gets_every_token(guidance):
    model, listener = language_model(), Listener()
    texts = model.generate(
        tokens(1, 4),
        class_labels=THREE[:1],
        max_new_tokens=7,
        guidance_scale=guidance,
        streamer=listener,
    )
    assert listener.is_over
    assert listener.heard[0] == texts[0, :4].tolist()
    assert listener.heard[1:] == [[token] for token in texts[0, 4:].tolist()]


def test_guidance_of_one_is_off_bit_for_bit():
    model = language_model()
    inputs = prompts() | {"class_labels": THREE}
    plain = model(**inputs).logits
    assert torch.equal(model(**inputs, guidance=1).logits, plain)
    assert torch.equal(model(**inputs, guidance=1.0).logits, plain)
    settings = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}
    off = model.generate(**inputs, **settings)
    for guidance in (1, 1.0):
        one = model.generate(**inputs, **settings, guidance_scale=guidance)
        assert torch.equal(one.sequences, off.sequences)
        assert all(torch.equal(a, b) for a, b in zip(one.logits, off.logits, strict=True))


@pytest.mark.parametrize("guidance", [0.0, 0.3, 3.0, -1.0])
def test_guidance_in_a_forward_pass(guidance):
    model = language_model()
    inputs = prompts()
    condition = model.bert.class_embeddings(THREE).detach()
    with_it = model(**inputs, condition_embeds=condition).logits
    without = model(**inputs, condition_embeds=torch.zeros(3, 6)).logits
    expected = without + guidance * (with_it - without)
    found = model(**inputs, class_labels=THREE, guidance=guidance)
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-4)
    assert found.logits.shape == with_it.shape
    per_token = condition[:, None].expand(3, 5, 6)
    found = model(**inputs, condition_embeds=per_token, guidance=guidance).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # With the tokens one after the other.
    cache, steps = None, []
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    expected = model(**inputs, class_labels=THREE, guidance=guidance, position_ids=positions).logits
    for step in range(5):
        outputs = model(
            inputs["input_ids"][:, step : step + 1],
            attention_mask=inputs["attention_mask"][:, : step + 1],
            position_ids=positions[:, step : step + 1],
            class_labels=THREE,
            guidance=guidance,
            past_key_values=cache,
            use_cache=True,
        )
        cache = outputs.past_key_values
        steps.append(outputs.logits)
    is_text = inputs["attention_mask"] == 1
    found = torch.cat(steps, dim=1)
    torch.testing.assert_close(found[is_text], expected[is_text], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("has_cache", [True, False])
def test_the_generation_config_is_heeded(has_cache):
    model = language_model()
    settings = {"output_logits": True, "return_dict_in_generate": True}
    call = {"max_new_tokens": 6, "guidance_scale": 2.0}
    expected = model.generate(**prompts(), class_labels=THREE, **call, **settings)
    given = GenerationConfig(**call, **settings, use_cache=has_cache, cache_implementation=None)
    found = model.generate(**prompts(), class_labels=THREE, generation_config=given)
    assert torch.equal(found.sequences, expected.sequences)
    assert (found.past_key_values is not None) == has_cache
    for mine, its in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)
    begun = model.generate(class_labels=THREE, **call)
    given = GenerationConfig(max_new_tokens=6)  # says neither what begins a text nor how strong
    model.generation_config.guidance_scale = 2.0
    assert torch.equal(model.generate(class_labels=THREE, generation_config=given), begun)
    plain = model.generate(class_labels=THREE, generation_config=given, guidance_scale=1.0)
    assert not torch.equal(plain, begun)
    model.generation_config.guidance_scale = None
    assert torch.equal(model.generate(class_labels=THREE, max_new_tokens=6), plain)
    model.generation_config.max_new_tokens = 6
    assert torch.equal(model.generate(class_labels=THREE), plain)


def test_the_condition_is_computed_once():
    model, calls = language_model(**BOTTLENECK), []
    for each in maps_of(model):
        each.register_forward_hook(lambda *_: calls.append(1))
    counts = {}
    guided = {"guidance_scale": 2.0}
    for way in ({}, {"num_beams": 3}, {"use_cache": False}, guided, guided | {"num_beams": 3}):
        for steps in (1, 10):
            calls.clear()
            model.generate(class_labels=THREE, max_new_tokens=steps, **way)
            # With guidance once more, for no condition.
            counts[steps, *way] = len(calls) / (2 if "guidance_scale" in way else 1)
    assert {*counts.values()} == {2 * 6}, counts


def test_conditions_lie_between_conditions():
    model = language_model()
    first, second = model.bert.class_embeddings.weight.detach()[[0, 2]]
    texts = []
    for weight in (0.0, 0.5, 1.0):
        condition = torch.lerp(first, second, weight)[None]
        texts.append(model.generate(condition_embeds=condition, max_new_tokens=10))
    for label, text in ((0, texts[0]), (2, texts[2])):
        by_class = model.generate(class_labels=torch.tensor([label]), max_new_tokens=10)
        assert torch.equal(text, by_class)
    assert not torch.equal(texts[0], texts[2])


def test_all_positions_can_be_used():
    model = language_model()
    settings = {"class_labels": THREE[:1], "output_logits": True, "return_dict_in_generate": True}
    # 32 tokens are read, and the 33rd is put out.
    found = model.generate(tokens(1, 2), max_new_tokens=31, **settings)
    assert found.sequences.shape == (1, 33)
    whole = model(found.sequences[:, :-1], class_labels=THREE[:1]).logits[:, 1:]
    torch.testing.assert_close(torch.stack(found.logits, dim=1), whole, rtol=1e-4, atol=1e-4)
    assert model.generate(tokens(1, 2), max_length=33, **settings).sequences.shape == (1, 33)


def test_generation_leaves_the_mode_and_knows_no_dropout():
    model = language_model(
        hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5, condition_dropout=0.9
    )
    settings = {"class_labels": torch.arange(3).repeat(4), "max_new_tokens": 6}
    expected = model.generate(**settings)
    assert not model.training
    model.train()
    assert torch.equal(model.generate(**settings), expected)
    assert model.training and model.bert.encoder.layer[0].training
    with pytest.raises(ValueError, match="there is no class 9"):
        model.generate(class_labels=torch.tensor([9]), max_new_tokens=2)
    assert model.training


# Machinery


def compiled(model: nn.Module, backend: str) -> nn.Module:
    torch.compiler.reset()
    return torch.compile(model, backend=backend, fullgraph=True)


def check_compiled(model: ConditionalBertLMHeadModel, backend: str) -> None:
    fast = compiled(model, backend)
    inputs = padded() | {"class_labels": torch.arange(3)}
    for pattern in PATTERNS:
        expected = model(**inputs, attention_pattern=pattern).logits
        found = fast(**inputs, attention_pattern=pattern).logits
        is_text = inputs["attention_mask"] == 1
        torch.testing.assert_close(found[is_text], expected[is_text], rtol=1e-4, atol=1e-5)
    inputs = padded() | {"condition_embeds": normal(3, 6)}
    labels = inputs["input_ids"]
    torch.testing.assert_close(
        fast(**inputs, labels=labels).loss, model(**inputs, labels=labels).loss
    )


def test_a_compiled_model_is_one_graph():
    with torch.no_grad():
        check_compiled(language_model(num_hidden_layers=1), "eager")


@pytest.mark.slow
def test_a_compiled_model_with_kernels_of_its_own_is_the_same():
    check_compiled(language_model(**BOTTLENECK), "inductor")


def test_gradient_checkpointing_changes_nothing():
    inputs = padded() | {"class_labels": torch.arange(3)}
    inputs["labels"] = inputs["input_ids"]
    losses, gradients = [], []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        model = language_model(**BOTTLENECK).train()
        if is_checkpointed:
            # The old name warns in new versions of transformers, which old ones lack.
            name = "activation_checkpointing_enable"
            getattr(model, name, model.gradient_checkpointing_enable)()
        calls = []
        model.bert.encoder.layer[0].intermediate.register_forward_hook(
            lambda *_, c=calls: c.append(1)
        )
        loss = model(**inputs).loss
        loss.backward()
        assert len(calls) == 1 + is_checkpointed
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*losses)
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient)


def test_bfloat16_is_near_and_trains():
    model = language_model(hidden_size=32, **BOTTLENECK)
    inputs = padded() | {"class_labels": torch.arange(3)}
    inputs["labels"] = inputs["input_ids"]
    expected = model(**inputs)
    half = model.bfloat16()(**inputs)
    assert half.logits.dtype == torch.bfloat16 and half.logits.isfinite().all()
    difference = (half.logits.float() - expected.logits).norm() / expected.logits.norm()
    assert difference < 0.03, difference
    torch.testing.assert_close(half.loss.float(), expected.loss, rtol=0.05, atol=0.05)
    half.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    # A condition in float32, as an image network gives it.
    condition = model.bert.class_embeddings(torch.arange(3)).float()
    again = model(**padded(), condition_embeds=condition).logits
    assert torch.equal(again, half.logits)
    assert model.generate(class_labels=THREE, max_new_tokens=4, guidance_scale=2.0).shape == (3, 5)


# peft asks transformers under a name that is on its way out.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_lora_with_the_maps_trains(tmp_path):
    peft = pytest.importorskip("peft")
    fields = {"condition_initializer_range": 0.0}
    model = language_model(**fields)
    language_model_state = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules=["query", "value"],
        modules_to_save=["scale", "shift", "class_embeddings"],
    )
    adapted = peft.get_peft_model(model, config)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert sum("lora_" in name for name in trained) == 2 * 2 * 2
    assert sum(".scale." in name or ".shift." in name for name in trained) == 12
    assert len(trained) == 8 + 12 + 1
    ids = tokens(2, 8).repeat(1, 2)
    inputs = {"input_ids": ids, "class_labels": LABELS, "labels": ids}
    frozen = {n: p.detach().clone() for n, p in adapted.named_parameters() if n not in trained}
    plain = language_model_loss(model, inputs)
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=0.03)
    for _ in range(30):
        optimizer.zero_grad()
        adapted(**inputs).loss.backward()
        optimizer.step()
    assert language_model_loss(adapted, inputs) < 0.7 * plain
    for name, weight in adapted.named_parameters():
        assert name in trained or torch.equal(weight, frozen[name])
    texts = adapted.generate(class_labels=LABELS, max_new_tokens=5, guidance_scale=2.0)
    assert texts.shape == (2, 6)
    adapted.save_pretrained(tmp_path)
    base = language_model(**fields)
    base.load_state_dict(language_model_state)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(loaded(**inputs).logits, adapted(**inputs).logits)


@torch.no_grad()
def language_model_loss(model: nn.Module, inputs: dict[str, Tensor]) -> float:
    return model.eval()(**inputs).loss.item()


def test_guided_outputs_are_those_of_the_condition():
    model = language_model(attn_implementation="eager")
    inputs = padded() | {"class_labels": torch.arange(3)}
    wanted = {"output_hidden_states": True, "output_attentions": True}
    plain, guided = model(**inputs, **wanted), model(**inputs, **wanted, guidance=2.0)
    for name in ("hidden_states", "attentions"):
        for one, other in zip(plain[name], guided[name], strict=True):
            torch.testing.assert_close(one, other)


def test_hidden_states_and_attentions():
    model = language_model(attn_implementation="eager", attention_pattern="prefix")
    inputs = padded() | {"class_labels": torch.arange(3)}
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert [h.shape for h in outputs.hidden_states] == [(3, 9, 16)] * 3
    assert [a.shape for a in outputs.attentions] == [(3, 2, 9, 9)] * 2
    expected = model.bert(**inputs).last_hidden_state
    assert torch.equal(outputs.hidden_states[-1], expected)
    embedded = model.bert.embeddings.LayerNorm
    words = model.get_input_embeddings()(inputs["input_ids"])
    segments = model.bert.embeddings.token_type_embeddings(inputs["token_type_ids"])
    positions = model.bert.embeddings.position_embeddings.weight[:9]
    condition = model.bert.class_embeddings(torch.arange(3))
    torch.testing.assert_close(
        outputs.hidden_states[0], embedded(words + segments + positions, condition)
    )
    sees = naive_rule("prefix", inputs["token_type_ids"], inputs["attention_mask"])
    for attention in outputs.attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(3, 2, 9))
        assert torch.equal(attention > 0, sees[:, None].expand_as(attention))


def test_outputs_may_be_tuples():
    inputs = padded() | {"class_labels": torch.arange(3)}
    model = language_model()
    labels = inputs["input_ids"]
    loss, logits, cache = (
        model(**inputs, return_dict=False, labels=labels, use_cache=True)[:3],
        0,
        0,
    )
    outputs = model(**inputs, labels=labels)
    assert torch.equal(loss[0], outputs.loss) and torch.equal(loss[1], outputs.logits)
    assert outputs.past_key_values is None  # nobody goes on with what is learned
    logits, cache = model(**inputs, return_dict=False)
    assert torch.equal(logits, outputs.logits) and cache.get_seq_length() == 9
    (logits,) = model(**inputs, return_dict=False, use_cache=False)
    assert torch.equal(logits, outputs.logits)
    base = model.bert(**inputs, return_dict=False)
    assert torch.equal(base[0], model.bert(**inputs).last_hidden_state)


def test_a_few_scores_are_enough():
    model = language_model()
    inputs = padded() | {"class_labels": torch.arange(3)}
    logits = model(**inputs).logits
    for guidance in (None, 2.0):
        logits = model(**inputs, guidance=guidance).logits
        kept = model(**inputs, guidance=guidance, logits_to_keep=2).logits
        torch.testing.assert_close(kept, logits[:, -2:])
        places = torch.tensor([0, 4])
        kept = model(**inputs, guidance=guidance, logits_to_keep=places).logits
        torch.testing.assert_close(kept, logits[:, places])


# Losses


def shifted_cross_entropy(logits: Tensor, labels: Tensor, shift: bool) -> tuple[float, int]:
    """Sum of -log p, one token after the other, and their number."""
    total, count = 0.0, 0
    for row in range(len(labels)):
        for place in range(labels.shape[1]):
            target = labels[row, place].item()
            source = place - shift
            if target == -100 or source < 0:
                continue
            total -= logits[row, source].double().log_softmax(-1)[target].item()
            count += 1
    return total, count


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_loss_is_cross_entropy_shifted_unless_all_is_seen(pattern):
    model = language_model()
    inputs = padded() | {"class_labels": torch.arange(3), "attention_pattern": pattern}
    labels = tokens(3, 9, seed=3)
    labels[:, 2] = labels[1, -4:] = -100
    outputs = model(**inputs, labels=labels)
    total, count = shifted_cross_entropy(outputs.logits, labels, pattern != "bidirectional")
    assert count == 3 * 9 - 3 - 4 - 3 * (pattern != "bidirectional")
    assert outputs.loss.item() == pytest.approx(total / count, rel=1e-5)
    # As the Trainer wants it where it accumulates gradients.
    for num_items in (7, torch.tensor(7)):
        loss = model(**inputs, labels=labels, num_items_in_batch=num_items).loss
        assert loss.item() == pytest.approx(total / 7, rel=1e-5)
    # What is at an ignored place does not count.
    model.zero_grad()
    outputs = model(
        **inputs, labels=torch.full_like(labels, -100).index_fill(1, torch.tensor(4), 5)
    )
    outputs.logits.retain_grad()
    outputs.loss.backward()
    moved = outputs.logits.grad.abs().sum(-1) > 0
    place = 4 if pattern == "bidirectional" else 3
    assert moved[:, place].all() and moved.sum() == 3


def test_the_condition_is_dropped_while_training_and_never_else():
    model = language_model(condition_dropout=0.5).train()
    batch = 400
    labels = torch.arange(batch) % 3
    ids = tokens(1, 4).expand(batch, 4)
    with torch.no_grad():
        logits = model(ids, class_labels=labels).logits
        model.eval()
        with_it = model(ids, class_labels=labels).logits
        zero = model(ids, condition_embeds=torch.zeros(batch, 6)).logits
    is_kept = torch.isclose(logits, with_it, atol=1e-4).flatten(1).all(1)
    is_zero = torch.isclose(logits, zero, atol=1e-4).flatten(1).all(1)
    assert (is_kept ^ is_zero).all()
    assert 0.4 < is_zero.float().mean() < 0.6
    assert 0.3 < is_zero[labels == 1].float().mean() < 0.7
    assert torch.equal(model(ids, class_labels=labels).logits, with_it)
    # Vectors are dropped too, all of a text's at once.
    model.train()
    dropped = model.bert.condition(None, torch.ones(batch, 4, 6), batch_size=batch)
    assert ((dropped == 0).flatten(1).all(1) | (dropped == 1).flatten(1).all(1)).all()
    assert 0.4 < dropped.mean() < 0.6
    model.eval()
    assert model.bert.condition(None, torch.ones(3, 6), batch_size=3).all()
    with_none = language_model().train()
    assert with_none.bert.condition(None, torch.ones(batch, 6), batch_size=batch).all()


def test_a_few_steps_teach_the_model_what_its_classes_say():
    """Each class says something else after the same beginning."""
    model = language_model(condition_initializer_range=0.0, hidden_size=32).train()
    texts = torch.cat([torch.ones(3, 1, dtype=torch.long), tokens(3, 6)], dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(texts, class_labels=torch.arange(3), labels=texts).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.2
    assert torch.equal(model.generate(class_labels=THREE, max_new_tokens=6), texts[THREE])


# Bad input


NAMED = {"num_classes": 3, "class_names": ["neg", "so-so", "pos"]}


@pytest.mark.parametrize(
    ("fields", "inputs", "message"),
    [
        ({}, {}, "needs either class_labels or condition_embeds, got neither"),
        (NAMED, {}, r"\(the classes are neg, so-so, pos\), got neither"),
        (
            {},
            {"class_labels": LABELS, "condition_embeds": torch.zeros(2, 6)},
            "needs either class_labels or condition_embeds, got both",
        ),
        ({}, {"class_labels": torch.tensor([0, 3])}, "there is no class 3; known are 0, 1, 2"),
        (NAMED, {"class_labels": torch.tensor([0, -1])}, "no class -1; known are neg, so-so, pos"),
        (
            {},
            {"class_labels": LABELS.float()},
            r"2 whole numbers, one for each text, got torch.float32 of shape \(2,\)",
        ),
        ({}, {"class_labels": LABELS[:1]}, r"2 whole numbers.* got torch.int64 of shape \(1,\)"),
        ({}, {"class_labels": LABELS[None]}, r"2 whole numbers.* of shape \(1, 2\)"),
        ({}, {"condition_embeds": torch.zeros(2, 5)}, r"with C = 6, got \(2, 5\)"),
        ({}, {"condition_embeds": torch.zeros(6)}, r"\(B, C\).*, got \(6,\)"),
        (
            {},
            {"condition_embeds": torch.zeros(1, 6)},
            "2 texts need 2 rows of condition, got 1: repeat one that all share",
        ),
        (
            {"num_classes": 0},
            {"class_labels": LABELS},
            r"has no classes \(num_classes is 0\): give condition_embeds",
        ),
    ],
)
@pytest.mark.parametrize("way", ["forward", "base", "classifier", "generate", "beams"])
def test_conditions_that_do_not_fit(fields, inputs, message, way):
    if way == "classifier":
        model = ConditionalBertForSequenceClassification(small_config(**fields)).eval()
    else:
        model = language_model(**fields)
    with pytest.raises(ValueError, match=message):
        if way == "generate":
            model.generate(tokens(2, 4), max_new_tokens=2, **inputs)
        elif way == "beams":
            model.generate(tokens(2, 4), max_new_tokens=2, num_beams=2, **inputs)
        else:
            (model.bert if way == "base" else model)(tokens(2, 4), **inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "give either input_ids or inputs_embeds"),
        (
            {"input_ids": tokens(2, 33)},
            "the model has 32 positions, too few for 33 tokens",
        ),
        (
            {"input_ids": tokens(2, 4), "attention_pattern": "left"},
            "must be one of causal, prefix, bidirectional, got 'left'",
        ),
        (
            {"input_ids": tokens(2, 4), "modulations": torch.zeros(2, 6, 1, 2, 16)},
            "modulations stand in the place of class_labels and condition_embeds",
        ),
    ],
)
def test_texts_that_do_not_fit(inputs, message):
    with pytest.raises(ValueError, match=message):
        language_model()(class_labels=LABELS, **inputs)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 6, 3, 2, 16), "4 tokens need 4 rows of condition each, got 3"),
        ((2, 5, 1, 2, 16), r"modulations must be \(2, 6, 1 \| T, 2, D\), got \(2, 5, "),
        ((3, 6, 1, 2, 16), r"modulations must be \(2, 6, "),
        ((2, 7), r"a condition must be \(B, C\)"),
    ],
)
def test_modulations_that_do_not_fit(shape, message):
    """Those of the base model are not those of the language model."""
    with pytest.raises(ValueError, match=message):
        language_model()(tokens(2, 4), modulations=torch.zeros(shape))


def test_a_text_is_tokens_or_vectors():
    model = language_model()
    with pytest.raises(ValueError, match="give either input_ids or inputs_embeds"):
        model.bert(tokens(2, 4), inputs_embeds=normal(2, 4, 16), class_labels=LABELS)


def test_a_condition_for_each_token_must_fit_the_tokens():
    with pytest.raises(ValueError, match="4 tokens need 4 rows of condition each, got 3"):
        language_model()(tokens(2, 4), condition_embeds=normal(2, 3, 6))


def test_positions_run_out_behind_a_cache_too():
    model = language_model()
    cache = model(tokens(1, 31), class_labels=LABELS[:1]).past_key_values
    with pytest.raises(ValueError, match="32 positions, too few for 33 tokens"):
        model(tokens(1, 2), class_labels=LABELS[:1], past_key_values=cache)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 30}, "has 32 positions, too few for 4 tokens and 30 new ones"),
        ({"max_length": 34}, "has 32 positions, too few for 4 tokens and 30 new ones"),
        (
            {"generation_config": GenerationConfig(max_new_tokens=30)},
            "too few for 4 tokens and 30 new ones",
        ),
        (
            {"input_ids": tokens(2, 33)},
            "has 32 positions, too few for 33 tokens and 1 new ones",
        ),
        ({"attention_pattern": "bidirectional"}, "from left to right: give attention_pattern 'ca"),
        ({"attention_pattern": "rightward"}, "must be one of causal, prefix, bidirectional"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number, got nan"),
        (
            {"guidance_scale": 2.0, "cache_implementation": "static"},
            "guidance has a cache of its own: leave cache_implementation out",
        ),
    ],
)
def test_generation_that_cannot_be(settings, message):
    inputs = {"input_ids": tokens(2, 4), "class_labels": LABELS}
    with pytest.raises(ValueError, match=message):
        language_model().generate(**inputs | settings)


def test_generation_needs_one_condition_for_each_text():
    model = language_model()
    with pytest.raises(ValueError, match=r"one condition for each text, \(B, C\), got \(2, 4, 6\)"):
        model.generate(tokens(2, 4), condition_embeds=normal(2, 4, 6), max_new_tokens=2)
    with pytest.raises(ValueError, match="to begin with: give class_labels or condition_embeds"):
        model.generate(max_new_tokens=2)
    with pytest.raises(ValueError, match=r"not used by the model.*clas_labels"):
        model.generate(class_labels=LABELS, clas_labels=LABELS, max_new_tokens=2)


def test_guidance_wants_a_cache_for_both_branches():
    model = language_model()
    cache = StaticCache(config=model.config, max_cache_len=8)
    with pytest.raises(ValueError, match="guidance needs a GuidedCache as past_key_values"):
        model(tokens(2, 4), class_labels=LABELS, guidance=2.0, past_key_values=cache)


def test_bidirectional_attention_has_no_past():
    model = language_model()
    cache = model(tokens(2, 4), class_labels=LABELS).past_key_values
    inputs = {"class_labels": LABELS, "attention_pattern": "bidirectional"}
    with pytest.raises(ValueError, match="has no past: past_key_values must be None"):
        model(tokens(2, 4), past_key_values=cache, **inputs)
    assert model(tokens(2, 4), use_cache=True, **inputs).past_key_values is None


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("good", "there is no class 'good'; known are neg, so-so, pos"),
        (3, "there is no class 3; known are neg, so-so, pos"),
        (-1, "there is no class -1"),
        ("1", "there is no class '1'"),
        (True, "there is no class True"),
        (1.0, "there is no class 1.0"),
        (None, "there is no class None"),
        (["pos", "good"], "there is no class 'good'"),
    ],
)
def test_unknown_labels_are_named_with_those_there_are(label, message):
    with pytest.raises(ValueError, match=message):
        small_config(**NAMED).class_ids(label)


def test_labels_by_name_and_by_number():
    config = small_config(**NAMED)
    for labels, expected in (
        ("pos", [2]),
        (1, [1]),
        (["neg", 2, "so-so"], [0, 2, 1]),
        (("pos",), [2]),
        (torch.tensor([2, 0]), [2, 0]),
        (torch.tensor(1), [1]),
    ):
        found = config.class_ids(labels)
        assert found.dtype == torch.long and found.tolist() == expected
    assert small_config().class_ids(["2", 0]).tolist() == [2, 0]
    with pytest.raises(ValueError, match="there is no class '3'; known are 0, 1, 2"):
        small_config().class_ids("3")
    with pytest.raises(ValueError, match="has no classes, so there is none called 'pos': give con"):
        small_config(num_classes=0).class_ids("pos")
    many = small_config(num_classes=30)
    with pytest.raises(ValueError, match=r"known are 0, 1, .*, 19, \.\.\.$"):
        many.class_ids(30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition_size": 0}, "condition_size must be at least 1, got 0"),
        ({"num_classes": -1}, "num_classes must be at least 0, got -1"),
        ({"bottleneck_size": 0}, "bottleneck_size must be at least 1, got 0"),
        ({"bottleneck_activation": "swoosh"}, "there is no activation 'swoosh'"),
        ({"condition_dropout": 1.0}, "at least 0 and below 1, got 1.0"),
        ({"condition_dropout": -0.1}, "at least 0 and below 1, got -0.1"),
        ({"condition_dropout": float("nan")}, "at least 0 and below 1, got nan"),
        ({"condition_initializer_range": -0.1}, "must not be negative, got -0.1"),
        ({"class_names": ["a", "b"]}, "class_names must be 3 different names, got .'a', 'b'."),
        ({"class_names": ["a", "b", "a"]}, "class_names must be 3 different names"),
        ({"attention_pattern": "unilm"}, "one of causal, prefix, bidirectional, got 'unilm'"),
        ({"is_decoder": False}, "has is_decoder=True and add_cross_attention=False"),
        ({"add_cross_attention": True}, "has is_decoder=True and add_cross_attention=False"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        small_config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"condition_size": "128"},
        {"num_classes": 2.0},
        {"class_names": "neg"},
        {"condition_dropout": "0.1"},
        {"attention_pattern": None},
        {"bottleneck_activation": None},
    ],
)
def test_settings_of_another_type_are_refused(changes):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(changes))):
        small_config(**changes)


# A classifier with side information


def test_side_information_decides():
    """Whether two bits differ, of which one is in the text and one beside it."""
    config = small_config(
        num_classes=2,
        num_labels=2,
        hidden_size=32,
        initializer_range=0.1,
        condition_initializer_range=0.0,
    )
    model = ConditionalBertForSequenceClassification(config).train()
    source = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.randint(2, 48, (count, 6), generator=source)
        inside = torch.randint(0, 2, (count,), generator=source)
        beside = torch.randint(0, 2, (count,), generator=source)
        place = torch.randint(1, 6, (count, 1), generator=source)
        return ids.scatter(1, place, 48 + inside[:, None]), beside, inside ^ beside

    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(120):
        ids, beside, labels = draw(64)
        optimizer.zero_grad()
        model(ids, class_labels=beside, labels=labels).loss.backward()
        optimizer.step()
    model.eval()
    ids, beside, labels = draw(500)
    with torch.no_grad():
        found = model(ids, class_labels=beside).logits.argmax(-1)
        other = model(ids, class_labels=1 - beside).logits.argmax(-1)
    assert (found == labels).float().mean() > 0.95
    # The same text with the other bit beside it has the other answer.
    assert (other != found).float().mean() > 0.9


def test_attention_of_a_classifier_is_bidirectional_unless_a_call_says_otherwise():
    model = ConditionalBertForSequenceClassification(small_config()).eval()
    ids = tokens(2, 5)
    other = ids.clone()
    other[:, -1] = 1
    logits = model(ids, class_labels=LABELS).logits
    assert not torch.allclose(model(other, class_labels=LABELS).logits, logits)
    inputs = {"class_labels": LABELS, "attention_pattern": "causal"}
    causal = model(ids, **inputs).logits  # of the first token, which sees itself alone
    assert torch.equal(model(other, **inputs).logits, causal)


@pytest.mark.parametrize(
    ("fields", "labels", "loss"),
    [
        ({"num_labels": 3}, torch.tensor([0, 2]), F.cross_entropy),
        ({"num_labels": 1}, torch.tensor([0.5, -2.0]), lambda x, y: F.mse_loss(x[:, 0], y)),
        (
            {"num_labels": 3, "problem_type": "regression"},
            torch.tensor([[0.5, 1.0, 2.0], [0.0, -1.0, 3.0]]),
            F.mse_loss,
        ),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]),
            F.binary_cross_entropy_with_logits,
        ),
        (
            {"num_labels": 3},
            torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]),
            F.binary_cross_entropy_with_logits,
        ),
    ],
)
def test_losses_of_a_classifier_are_those_of_transformers(fields, labels, loss, tmp_path):
    plain = plain_bert(BertForSequenceClassification, tmp_path, **fields)
    model = ConditionalBertForSequenceClassification.from_bert(
        str(tmp_path), num_classes=3, problem_type=fields.get("problem_type")
    )
    ids = tokens(2, 5)
    outputs = model(ids, class_labels=LABELS, labels=labels)
    assert torch.equal(outputs.loss, plain(ids, labels=labels).loss)
    torch.testing.assert_close(outputs.loss, loss(outputs.logits, labels))
    assert model.config.problem_type == plain.config.problem_type
    as_tuple = model(ids, class_labels=LABELS, labels=labels, return_dict=False)
    assert torch.equal(as_tuple[0], outputs.loss) and torch.equal(as_tuple[1], outputs.logits)


def test_a_folder_may_move(tmp_path):
    """Nothing in a checkpoint points to where it came from."""
    plain_bert(BertForMaskedLM, tmp_path / "plain")
    model = ConditionalBertLMHeadModel.from_bert(str(tmp_path / "plain"), num_classes=2)
    model.save_pretrained(tmp_path / "mine")
    shutil.rmtree(tmp_path / "plain")
    for file in (tmp_path / "mine").glob("*.json"):
        assert str(tmp_path) not in file.read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "mine")
    assert type(loaded) is ConditionalBertLMHeadModel


def test_generate_takes_names_and_a_configuration_in_its_place():
    model = language_model(class_names=["a", "b", "c"])
    wanted = model.generate(class_labels=torch.tensor([2, 0]), max_new_tokens=4, do_sample=False)
    config = GenerationConfig(max_new_tokens=4, do_sample=False, bos_token_id=1)
    for labels in (["c", "a"], [2, 0]):
        assert torch.equal(model.generate(None, config, class_labels=labels), wanted)
    with pytest.raises(ValueError, match="no class 'd'; known are a, b, c"):
        model.generate(class_labels=["d"])


def test_generate_leaves_every_part_in_its_mode():
    model = language_model().train()
    model.bert.embeddings.eval()
    modes = [module.training for module in model.modules()]
    model.generate(class_labels=[0], max_new_tokens=2)
    assert [module.training for module in model.modules()] == modes
