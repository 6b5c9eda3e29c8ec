"""JoSE: the model's contract, steps on the sphere, losses, kernels, and what a word is."""

import math
import random
import string
import sys
import unicodedata
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel, AutoTokenizer

from common import ModelTests
from genzoo.jose import JoseConfig, JoseModel, SphericalSGD, build_tokenizer, naive, segment_chinese
from genzoo.jose.corpus import Splitter, alias_table, keep_probabilities
from genzoo.jose.kernels import MAX_SENTENCE, constant, sample_pairs, train_piece
from genzoo.jose.tokenization import ENGLISH_WORDS, rule_of


def small_config(**changes) -> JoseConfig:
    values = {"vocab_size": 9, "num_documents": 4, "embedding_dim": 6}
    return JoseConfig(**(values | changes))


def texts(batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Texts of five words, the last two of which are padding in every second one."""
    mask = torch.ones(batch_size, 5, dtype=torch.long)
    mask[1::2, 3:] = 0
    ids = torch.randint(1, 9, (batch_size, 5), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}


class TestJoseModel(ModelTests):
    model_class = JoseModel
    auto_class = AutoModel
    make_config = staticmethod(small_config)
    make_inputs = staticmethod(texts)
    output = "pooler_output"
    output_shape = (6,)
    num_parameters = 2 * 9 * 6 + 4 * 6
    without_gradient = {  # noqa: RUF012 - as in ModelTests
        "context_embeddings.weight": "contexts have a part in the loss of pairs alone",
        "document_embeddings.weight": "so have documents",
    }


# The model


def test_all_tables_start_on_the_sphere():
    model = JoseModel(small_config(vocab_size=300, num_documents=200))
    for name, table in model.named_parameters():
        torch.testing.assert_close(table.norm(dim=-1), torch.ones(len(table)), rtol=0, atol=1e-6)
        # Uniform: the mean of n points has a length of about 1 / sqrt(n).
        assert table.mean(dim=0).norm() < 3 / len(table) ** 0.5, name
    first, second = model.word_embeddings.weight, model.context_embeddings.weight
    assert not torch.equal(first, second)


def test_tables_that_are_not_wanted_are_not_there():
    model = JoseModel(small_config(num_documents=0, has_context_embeddings=False))
    assert model.state_dict().keys() == {"word_embeddings.weight", "word_counts"}


def test_counts_are_kept_and_are_integers_whatever_the_weights_are(tmp_path):
    model = JoseModel(small_config())
    assert dict(model.named_buffers())["word_counts"].dtype == torch.int64
    assert model.word_counts.shape == (9,) and not model.word_counts.any()
    counts = 2**24 + torch.arange(9)  # float32 cannot tell these apart, nor float16 have them
    model.word_counts.copy_(counts)
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.word_embeddings.weight.dtype == torch.float16
    assert torch.equal(half.word_counts, counts)


def test_variant_is_a_field_and_names_the_file_of_weights(tmp_path):
    model = JoseModel(small_config(variant="paper"))
    model.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "model.fp16.safetensors").exists()
    for loaded in (AutoModel, JoseModel):
        found = loaded.from_pretrained(tmp_path, variant="fp16")
        assert found.config.variant == "paper" and found.config.is_joint
        assert torch.equal(found.word_embeddings.weight, model.word_embeddings.weight)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("genzoo", ("cross_entropy", False, ["none"] * 3)),
        ("reference", ("hinge", False, ["reference"] * 3)),
        ("paper", ("hinge", True, ["calibrated"] * 3)),
    ],
)
def test_a_variant_stands_for_settings_that_may_differ(variant, expected):
    config = JoseConfig(variant=variant)
    assert (config.loss, config.is_joint, config.step_factors) == expected
    config = JoseConfig(variant=variant, loss="hinge", is_joint=False, step_factors=["none"] * 3)
    assert (config.loss, config.is_joint, config.step_factors) == ("hinge", False, ["none"] * 3)


def test_a_text_is_the_direction_of_its_known_words():
    model = JoseModel(small_config())
    words = model.word_embeddings.weight
    ids = torch.tensor([[3, 5, 5, 0], [2, 0, 0, 7], [0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]])
    output = model(ids, mask)
    expected = [F.normalize(words[3] + 2 * words[5], dim=0), words[2], torch.zeros(6)]
    torch.testing.assert_close(output.pooler_output, torch.stack(expected))
    assert torch.equal(output.last_hidden_state[0, :3], words[[3, 5, 5]])
    assert not output.last_hidden_state[0, 3].any() and not output.last_hidden_state[1, 3].any()
    assert output.loss is None
    assert torch.equal(model(ids[:1]).pooler_output, output.pooler_output[:1])


def pairs(count: int = 40, num_negatives: int = 3) -> dict[str, torch.Tensor]:
    """Pairs of `small_config`, among whose negative words are some that are the word itself."""
    generator = torch.Generator().manual_seed(1)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, (count, *shape), generator=generator)

    ids = {"word_ids": draw(9), "context_ids": draw(9), "document_ids": draw(4)}
    return ids | {"negative_ids": draw(9, num_negatives)}


def loss_by_hand(model: JoseModel, pairs: dict[str, torch.Tensor]) -> tuple[float, int]:
    """The mean loss, one number after the other, and over how many."""
    config, total, count = model.config, 0.0, 0
    u, v, d = (table.weight.detach().double().numpy() for table in model.children())
    for row, (word, negatives) in enumerate(
        zip(pairs["word_ids"].tolist(), pairs["negative_ids"].tolist(), strict=True)
    ):
        others = []
        if "context_ids" in pairs:
            others.append(v[pairs["context_ids"][row]])
        if "document_ids" in pairs:
            others.append(d[pairs["document_ids"][row]])
        if config.is_joint:
            others = [sum(others)]
        for negative in negatives:
            if negative == word:
                continue
            count += 1
            for other in others:
                z = config.margin - other @ u[word] + other @ u[negative]
                is_hinge, s = config.loss == "hinge", config.loss_scale
                total += max(0, z) if is_hinge else math.log1p(math.exp(s * z)) / s
    return total / count, count


@pytest.mark.parametrize("loss", ["hinge", "cross_entropy"])
@pytest.mark.parametrize("variant", ["genzoo", "reference", "paper"])
@pytest.mark.parametrize("left_out", [None, "context_ids", "document_ids"])
def test_the_loss_is_its_formula(loss, variant, left_out):
    model = JoseModel(small_config(variant=variant, loss=loss, loss_scale=4.0, margin=0.3))
    assert model.config.is_joint == (variant == "paper")
    inputs = {name: ids for name, ids in pairs().items() if name != left_out}
    expected, count = loss_by_hand(model, inputs)
    assert 0 < count < 40 * 3  # some do not count
    assert model(**inputs).loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_cross_entropy_becomes_the_hinge():
    """softplus(s z) / s lies above max(0, z), by no more than log(2) / s."""
    model = JoseModel(small_config(variant="paper"))
    assert model.config.loss == "hinge"
    hinge = model(**pairs()).loss.item()
    model.config.loss = "cross_entropy"
    for scale in (1.0, 10.0, 1000.0):
        model.config.loss_scale = scale
        assert 0 <= model(**pairs()).loss.item() - hinge + 1e-6 < math.log(2) / scale + 1e-6


def test_pairs_without_another_word_have_no_loss():
    model = JoseModel(small_config())
    inputs = pairs(5)
    inputs["negative_ids"] = inputs["word_ids"][:, None].expand(5, 3)
    loss = model(**inputs).loss
    assert loss.item() == 0
    loss.backward()
    assert not model.word_embeddings.weight.grad.any()


def test_texts_and_pairs_at_once():
    model, inputs = JoseModel(small_config()), texts(2, torch.Generator().manual_seed(0))
    both = model(**inputs, **pairs())
    assert torch.equal(both.loss, model(**pairs()).loss)
    assert torch.equal(both.pooler_output, model(**inputs).pooler_output)
    assert model(**inputs, **pairs(), return_loss=False).loss is None


@pytest.mark.parametrize(
    ("changes", "inputs", "message"),
    [
        ({}, {}, "needs input_ids, or word_ids"),
        ({}, {"word_ids": 1, "context_ids": 1}, "pairs need negative_ids"),
        ({}, {"word_ids": 1, "negative_ids": 1}, "context_ids or document_ids"),
        (
            {"has_context_embeddings": False},
            {"word_ids": 1, "context_ids": 1, "negative_ids": 1},
            "has no context_embeddings: it can be used, not trained",
        ),
        (
            {"num_documents": 0},
            {"word_ids": 1, "document_ids": 1, "negative_ids": 1},
            "has no document_embeddings",
        ),
    ],
)
def test_what_is_missing_is_named(changes, inputs, message):
    with pytest.raises(ValueError, match=message):
        JoseModel(small_config(**changes))(**{name: pairs()[name] for name in inputs})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
        ({"window_size": 0}, "window_size must be at least 1"),
        ({"num_negatives": 0}, "num_negatives must be at least 1"),
        ({"min_count": 0}, "min_count must be at least 1"),
        ({"num_documents": -1}, "num_documents must not be negative"),
        ({"margin": -0.1}, "margin must not be negative"),
        ({"margin": float("nan")}, "margin must not be negative, got nan"),
        ({"subsample_threshold": -1e-3}, "subsample_threshold must not be negative"),
        ({"loss": "cross_entropy", "loss_scale": 0.0}, "loss_scale must be positive"),
        ({"step_factors": ["none"]}, "step_factors must be three of none, calibrated, reference"),
        ({"step_factors": ["one", "none", "none"]}, "got .'one', 'none', 'none'."),
        ({"variant": "reference", "is_joint": True}, "the joint hinge has one step factor for all"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        small_config(**changes)


# Steps on the sphere


def sphere(*shape: int, dtype=torch.float64, seed: int = 0) -> torch.Tensor:
    points = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(points, dim=-1).to(dtype)


def stepped(x, gradient, **arguments) -> torch.Tensor:
    parameter = torch.nn.Parameter(x.clone())
    parameter.grad = gradient.to(x.dtype) if gradient.dtype != x.dtype else gradient
    SphericalSGD([parameter], **arguments).step()
    return parameter.detach()


@pytest.mark.parametrize("is_calibrated", [True, False])
@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (4,)])
def test_a_step_is_the_formula(shape, is_calibrated):
    x, g = sphere(*shape), 3 * torch.randn(shape, dtype=torch.float64)
    found = stepped(x, g, lr=0.7, is_calibrated=is_calibrated)
    single = stepped(x.float(), g, lr=0.7, is_calibrated=is_calibrated)
    rows = zip(*(t.reshape(-1, shape[-1]).numpy() for t in (x, g, found, single)), strict=True)
    for row, gradient, after, after_single in rows:
        factor = 1 + row @ gradient / np.linalg.norm(gradient) if is_calibrated else 1
        y = row - 0.7 * factor * (np.eye(len(row)) - np.outer(row, row)) @ gradient
        np.testing.assert_allclose(after, y / np.linalg.norm(y), rtol=0, atol=1e-14)
        np.testing.assert_allclose(after_single, y / np.linalg.norm(y), rtol=0, atol=1e-6)


def test_the_factor_is_zero_to_two():
    """Along -g, across it, and against it: a little aside from each, so that there is a tangent."""
    g = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    for angle, factor in ((0.0, 0), (math.pi / 2, 1), (math.pi, 2)):
        aside = angle - 1e-5 if angle else 1e-5
        x = torch.tensor([[math.sin(aside), -math.cos(aside)]], dtype=torch.float64)
        moves = [
            (stepped(x, g, lr=1e-3, is_calibrated=is_calibrated) - x).norm().item()
            for is_calibrated in (True, False)
        ]
        assert moves[1] > 1e-9
        assert moves[0] / moves[1] == pytest.approx(factor, abs=2e-5)


def test_a_step_is_that_of_gradient_descent_through_the_direction():
    """Su, 2019: x = t / |t|, the gradient by t, and back to length 1."""
    a, b = torch.randn(7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (x @ a).exp() + (x @ b).square()

    # The gradient of a longer row is shorter, and so is the angle of a step: by its length, twice.
    for length in (1.0, 3.0):
        start = sphere(7)
        t, x = (length * start).requires_grad_(), start.clone().requires_grad_()
        (through,) = torch.autograd.grad(loss(F.normalize(t, dim=0)), t)
        (direct,) = torch.autograd.grad(loss(x), x)
        expected = F.normalize(t.detach() - 0.01 * length**2 * through, dim=0)
        assert (expected - start).norm() > 1e-3
        found = stepped(start, direct, lr=0.01, is_calibrated=False)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_gradients_do_what_dense_ones_do(dtype):
    start = sphere(8, 6, dtype=dtype)
    ids, weight = torch.tensor([5, 1, 5, 2, 1, 5]), torch.randn(6, 6).to(dtype)
    after = []
    for sparse in (False, True):
        table = torch.nn.Embedding.from_pretrained(start.clone(), freeze=False, sparse=sparse)
        (table(ids) * weight).sum().backward()
        assert table.weight.grad.is_sparse == sparse
        SphericalSGD(table.parameters(), lr=0.3).step()
        after.append(table.weight.detach())
    # bfloat16 gradients of repeated rows are summed in another order.
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(after[1], after[0], rtol=0, atol=tolerance)
    untouched = [0, 3, 4, 6, 7]
    for table in after:
        assert torch.equal(table[untouched], start[untouched])
        assert not (table[[1, 2, 5]] == start[[1, 2, 5]]).all(dim=-1).any()


def test_rows_without_a_gradient_stay_whatever_they_are():
    x = torch.cat([torch.zeros(1, 4), torch.full((1, 4), 3.0), sphere(1, 4, dtype=torch.float32)])
    gradient = torch.zeros(3, 4)
    gradient[2] = 1
    after = stepped(x, gradient, lr=0.1)
    assert torch.equal(after[:2], x[:2])
    assert not torch.equal(after[2], x[2])
    unused = torch.nn.Parameter(sphere(2, 4))
    SphericalSGD([unused]).step()
    assert torch.equal(unused, sphere(2, 4))


def test_a_gradient_that_is_no_number_is_not_passed_over():
    gradient = torch.tensor([[1.0, 0, 0], [float("nan"), 0, 0]])
    after = stepped(sphere(2, 3, dtype=torch.float32), gradient)
    assert after[0].isfinite().all() and after[1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_keep_their_length_and_find_the_closed_form(dtype):
    """The mean direction is where the sum of cosines is greatest."""
    points = sphere(20, 5, seed=3)
    table = torch.nn.Parameter(sphere(30, 5, dtype=dtype))
    optimizer = SphericalSGD([table], lr=0.05, is_calibrated=False)
    precision = torch.finfo(dtype).eps
    for _ in range(100):
        optimizer.zero_grad()
        (-(table.double() @ points.mT).sum()).backward()
        optimizer.step()
        assert ((table.double().norm(dim=-1) - 1).abs() < 4 * precision).all()
    mean = F.normalize(points.sum(dim=0), dim=0)
    torch.testing.assert_close(
        table.detach().double(), mean.expand(30, 5), rtol=0, atol=max(1e-5, 4 * precision)
    )


def test_the_factor_slows_down_before_the_end():
    """The angle t falls by lr |a| (1 - cos t) sin t, so in the long run as 1 / sqrt(lr |a| n)."""
    a = torch.tensor([0.0, 0, 5])
    table = torch.nn.Parameter(sphere(10, 3))
    optimizer = SphericalSGD([table], lr=0.05)
    for _ in range(2000):
        table.grad = -a.double().expand(10, 3)
        optimizer.step()
    angle = table[:, 2].detach().clamp(max=1).acos()
    expected = torch.full_like(angle, (0.05 * 5 * 2000) ** -0.5)
    torch.testing.assert_close(angle, expected, rtol=0.03, atol=0)


def test_the_quadratic_form_leads_to_its_eigenvector():
    basis = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    matrix = basis @ torch.diag(torch.tensor([3.0, 1, 0.5, 0.1], dtype=torch.float64)) @ basis.mT
    x = torch.nn.Parameter(sphere(6, 4))
    optimizer = SphericalSGD([x], lr=0.1, is_calibrated=False)
    for _ in range(300):
        optimizer.zero_grad()
        (-((x @ matrix) * x).sum() / 2).backward()
        optimizer.step()
    cosine = x.detach() @ basis[:, 0]
    torch.testing.assert_close(cosine.abs(), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-9)


def test_groups_schedules_and_states_are_those_of_torch():
    a, b = (torch.nn.Parameter(sphere(3, 4, seed=seed)) for seed in (1, 2))
    groups = [{"params": [a], "lr": 0.5}, {"params": [b], "is_calibrated": False}]
    optimizer = SphericalSGD(groups, lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    gradient = torch.randn(3, 4, dtype=torch.float64)
    for scale in (1, 0.1):
        expected = [
            stepped(a.detach(), gradient, lr=0.5 * scale),
            stepped(b.detach(), gradient, lr=0.1 * scale, is_calibrated=False),
        ]
        a.grad, b.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        schedule.step()
        for parameter, after in zip((a, b), expected, strict=True):
            torch.testing.assert_close(parameter.detach(), after, rtol=0, atol=1e-12)
    other = SphericalSGD([{"params": [a]}, {"params": [b]}], lr=9.0)
    other.load_state_dict(optimizer.state_dict())
    options = [{k: v for k, v in g.items() if k != "params"} for g in other.param_groups]
    assert [g["lr"] for g in options] == pytest.approx([0.5 * 0.01, 0.1 * 0.01])
    assert [g["is_calibrated"] for g in options] == [True, False]


def test_a_closure_is_called_once_with_gradients():
    x, a, calls = torch.nn.Parameter(sphere(1, 3)), sphere(3, seed=5), []

    def closure() -> torch.Tensor:
        loss = -(x @ a).sum()
        calls.append(loss.requires_grad)
        loss.backward()
        return loss

    start = x.detach().clone()
    loss = SphericalSGD([x], lr=0.5).step(closure)
    assert calls == [True]
    assert loss.item() == pytest.approx(-(start @ a).item())
    assert (x @ a).item() > (start @ a).item()


@pytest.mark.parametrize("lr", [-0.1, float("nan")])
def test_a_wrong_rate_is_refused(lr):
    with pytest.raises(ValueError, match="lr must not be negative"):
        SphericalSGD([torch.nn.Parameter(torch.ones(1))], lr=lr)


# What is drawn


def test_the_alias_table_has_the_distribution():
    source = np.random.default_rng(0)
    for weights in (
        [1],
        [0, 1],
        [5, 5, 5],
        [0, 3, 0, 1, 0],
        np.r_[0, 1 / np.arange(1, 2000)],
        np.r_[source.random(500) ** 9, np.zeros(500)],
        [1e-30, 1, 1e30],
    ):
        weights = np.asarray(weights, np.float64)
        thresholds, aliases = alias_table(weights)
        assert (thresholds.dtype, aliases.dtype) == (np.float32, np.int32)
        share = np.bincount(aliases, 1 - thresholds.astype(np.float64), len(weights)) + thresholds
        np.testing.assert_allclose(share / len(weights), weights / weights.sum(), rtol=0, atol=1e-7)
        # A uniform number in [0, 1) is never below 0, and always below 1.
        drawn = {*np.flatnonzero(thresholds > 0), *aliases[thresholds < 1]}
        assert (weights[[*drawn]] > 0).all()


def test_words_are_thinned_out_as_in_word2vec():
    counts = np.array([0, 1, 10, 1000, 500_000])
    total, t = counts.sum(), 1e-3
    found = keep_probabilities(counts, t)
    for count, chance in zip(counts[1:], found[1:], strict=True):
        # word2vec.c: ran = (sqrt(cn / (sample * train_words)) + 1) * (sample * train_words) / cn
        ran = (math.sqrt(count / (t * total)) + 1) * (t * total) / count
        assert chance == pytest.approx(min(ran, 1), rel=1e-6)
    assert found[-1] < 0.05 and found[0] == 1 and found.dtype == np.float32
    assert (keep_probabilities(counts, 0) == 1).all()


def everything(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keeps all words; negative words are equally frequent, and never word 0."""
    return np.ones(size, np.float32), *alias_table(np.arange(size) > 0)


def test_pairs_are_all_those_within_a_window_of_one_document():
    """Every word of the corpus has a number of its own, so that each pair says where it is from."""
    lengths = [1, 0, 12, MAX_SENTENCE + 7, 2]
    starts = np.cumsum([0, *lengths])
    tokens = np.arange(1, starts[-1] + 1, dtype=np.int32)
    ids = np.array([4, 0, 7, 5, 9])
    draws = everything(len(tokens) + 1)
    found, negatives, singles, single_negatives = sample_pairs(
        tokens, starts, ids, *draws, 3, 2, np.uint64(1)
    )
    centers, contexts, _ = found
    assert negatives.shape == (len(centers), 2)
    assert single_negatives.shape == (len(tokens), 2)
    assert np.array_equal(singles[0], tokens)
    assert np.array_equal(singles[1], np.repeat(ids, lengths))
    document_of = dict(zip(tokens.tolist(), singles[1].tolist(), strict=True))
    # A sentence ends after 1,000 words, and no window reaches over that.
    sentence_of = {
        int(token): (index, place // MAX_SENTENCE)
        for index, length in enumerate(lengths)
        for place, token in enumerate(tokens[starts[index] : starts[index] + length])
    }
    radius_of = {}
    for center, context, document in zip(*found.tolist(), strict=True):
        assert center != context
        assert sentence_of[center] == sentence_of[context]
        assert document == document_of[context]
        radius_of[context] = max(radius_of.get(context, 0), abs(center - context))
    assert max(radius_of.values()) == 3
    # Whatever is within the radius of a word is there, once.
    count = 0
    for context, radius in radius_of.items():
        for center in range(context - radius, context + radius + 1):
            count += center != context and sentence_of.get(center) == sentence_of[context]
    assert count == len(centers) == len({*zip(centers, contexts, strict=True)})
    alone = {token for token in document_of if token not in radius_of}
    assert alone == {1}  # the document of a single word


def test_windows_thinning_and_negative_words_are_as_frequent_as_they_should_be():
    size, count = 5, 60_000
    source = np.random.default_rng(0)
    tokens = source.integers(1, size, count).astype(np.int32)
    weights = np.array([0, 1, 2, 3, 4])
    keep = np.array([1, 1, 0.5, 0.25, 0.75], np.float32)
    starts = np.arange(0, count + 1, 100)
    found, negatives, singles, _ = sample_pairs(
        tokens, starts, np.arange(len(starts) - 1), keep, *alias_table(weights), 4, 2, np.uint64(3)
    )
    kept = np.bincount(singles[0], minlength=size) / np.bincount(tokens, minlength=size).clip(1)
    np.testing.assert_allclose(kept[1:], keep[1:], rtol=0, atol=0.02)
    # The radius is 1, 2, 3 or 4, equally often: 5 pairs for each word, but for the ends.
    lengths = np.bincount(singles[1], minlength=len(starts) - 1)
    ends = sum(2 * sum(max(0, r - place) for place in range(4)) / 4 for r in (1, 2, 3, 4))
    expected = (5 * lengths - ends).sum()
    assert len(found[0]) == pytest.approx(expected, rel=0.01)
    drawn = np.bincount(negatives.ravel(), minlength=size) / negatives.size
    np.testing.assert_allclose(drawn, weights / 10, rtol=0, atol=0.005)
    # What is drawn for a pair says nothing about what is drawn next.
    joint = np.zeros((size, size))
    np.add.at(joint, tuple(negatives.T), 1 / len(negatives))
    np.testing.assert_allclose(joint, np.outer(drawn, drawn), rtol=0, atol=0.005)


# Kernels


FACTORS = {"none": 0, "calibrated": 1, "reference": 2}


class Piece:
    """A small piece of a corpus, tables to start from, and the two ways of going through it."""

    def __init__(self, num_words: int = 12, size: int = 7, lengths: tuple = (30, 0, 25, 1, 64)):
        source = np.random.default_rng(0)
        self.starts = np.cumsum([0, *lengths])
        self.tokens = source.integers(1, num_words, self.starts[-1]).astype(np.int32)
        self.ids = np.arange(len(lengths))
        counts = np.bincount(self.tokens, minlength=num_words)
        self.draws = keep_probabilities(counts, 0.05), *alias_table(counts**0.75)
        tables = [source.standard_normal((n, size)) for n in (num_words, num_words, len(lengths))]
        self.tables = [
            (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
            for table in tables
        ]

    def kernel(self, config, rates=(0.2, 0.1), first_word=0, first_document=0, seed=5):
        """The tables afterwards, and the losses."""
        tables = [table.copy() for table in self.tables]
        losses = train_piece(
            self.tokens,
            self.starts,
            self.ids,
            *tables,
            *self.draws,
            config.window_size,
            config.num_negatives,
            config.num_document_updates,
            np.float32(config.margin),
            np.float32(config.loss_scale),
            constant(config.loss == "cross_entropy"),
            constant(config.is_joint),
            *(constant(FACTORS[factor]) for factor in config.step_factors),
            constant(config.use_retraction),
            *rates,
            first_word,
            first_document,
            np.uint64(seed),
        )
        return tables, losses

    def naive(self, config, rates=(0.2, 0.1), seed=5):
        tables = [torch.tensor(table, dtype=torch.float64) for table in self.tables]
        arguments = (self.tokens, self.starts, self.ids, *tables, *self.draws)
        naive.naive_piece(*arguments, config, *rates, seed)
        return [table.numpy() for table in tables]


def step_config(**changes) -> JoseConfig:
    values = {"window_size": 3, "margin": 0.3, "num_document_updates": 2}
    return JoseConfig(**(values | changes))


REFERENCE = {"variant": "reference"}
PAPER = {"variant": "paper"}
GENZOO = {"variant": "genzoo"}
# Other factors for each row; the second is the paper's, 1 + h, in the place of 2 h.
MIXED = {"loss": "cross_entropy", "step_factors": ["none", "calibrated", "reference"]}
# The gradients of directions, without a way back to the sphere.
FREE = {"loss": "hinge", "step_factors": ["calibrated"] * 3, "use_retraction": False}
FREE_JOINT = {
    "is_joint": True,
    "loss": "cross_entropy",
    "step_factors": ["none"] * 3,
    "use_retraction": False,
}
FEW = {
    "genzoo": GENZOO,
    "reference": REFERENCE,
    "paper": PAPER,
    "mixed": MIXED,
    "free": FREE,
    "free joint": FREE_JOINT,
}
MANY = [
    {"loss": loss, "is_joint": is_joint, "step_factors": factors, "use_retraction": use_retraction}
    for loss in ("hinge", "cross_entropy")
    for is_joint in (False, True)
    for factors in (
        ["none"] * 3,
        ["calibrated"] * 3,
        *([] if is_joint else [["reference"] * 3, ["reference", "none", "calibrated"]]),
    )
    for use_retraction in (True, False)
]


def check_against_naive(piece: Piece, config: JoseConfig, **arguments) -> None:
    found, losses = piece.kernel(config, **arguments)
    for name, start, expected, table in zip(
        ("words", "contexts", "documents"),
        piece.tables,
        piece.naive(config, **arguments),
        found,
        strict=True,
    ):
        np.testing.assert_allclose(table, expected, rtol=0, atol=1e-5, err_msg=name)
        assert np.abs(table - start).max() > 0.1, f"{name} did not move"
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("kind", FEW)
def test_kernels_take_the_steps_of_the_definition(kind):
    check_against_naive(Piece(), step_config(**FEW[kind]))


@pytest.mark.slow
@pytest.mark.parametrize("changes", MANY, ids=lambda c: "-".join(map(str, c.values())))
def test_all_kernels_take_the_steps_of_the_definition(changes):
    check_against_naive(Piece(), step_config(**changes))


@pytest.mark.parametrize("kind", ["genzoo", "reference", "paper", "mixed"])
def test_kernels_agree_where_the_negative_word_is_the_word_itself(kind):
    """Of two words, every second negative word is the center, or the other one of the pair."""
    piece = Piece(num_words=3)
    config = step_config(num_document_updates=1, **FEW[kind])
    drawn = [*naive.events(piece.tokens, piece.starts, piece.ids, *piece.draws, config, 0, 0, 5)]
    assert sum(word in negatives for _, word, _, _, negatives in drawn) > 50
    check_against_naive(piece, config)


@pytest.mark.parametrize("changes", [REFERENCE, PAPER], ids=["reference", "paper"])
def test_kernels_agree_on_a_document_of_several_sentences(changes):
    piece = Piece(lengths=(MAX_SENTENCE + 200, 3), num_words=40)
    piece.draws = (np.ones(40, np.float32), *piece.draws[1:])  # nothing is thinned out
    config = step_config(window_size=1, num_negatives=1, num_document_updates=1, **changes)
    check_against_naive(piece, config, rates=(0.02, 0.0))
    drawn = naive.events(piece.tokens, piece.starts, piece.ids, *piece.draws, config, 1, 0, 5)
    rates = sorted({rate for rate, *_ in drawn}, reverse=True)
    expected = [1 - place / 1203 for place in (0, 1000, 1200)]  # one for each sentence
    assert rates == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["genzoo", "reference", "paper", "free", "free joint"])
def test_held_rows_stay_to_the_last_bit_and_the_others_move(kind, monkeypatch):
    piece, config = Piece(size=100, lengths=(30, 0, 25, 9, 64)), step_config(**FEW[kind])
    held = {"first_word": 7, "first_document": 3}
    found, _ = piece.kernel(config, **held)
    for table, start, first in zip(found, piece.tables, (7, 7, 3), strict=True):
        assert np.array_equal(table[:first], start[:first])
        assert (np.abs(table[first:] - start[first:]).max(axis=1) > 0.01).all()

    tables, take_step = [], naive._step

    def step(u, x, others, rate, config):
        """The step of the definition, after which held rows are put back."""
        rows = [(row, row.clone()) for row in (u, x, *others) if row.data_ptr() in tables]
        take_step(u, x, others, rate, config)
        for row, old in rows:
            row.copy_(old)

    def naive_piece(tokens, starts, ids, *arguments):
        for table, first in zip(arguments[:3], (7, 7, 3), strict=True):
            tables.extend(row.data_ptr() for row in table[:first])
        whole(tokens, starts, ids, *arguments)

    whole = naive.naive_piece
    monkeypatch.setattr(naive, "_step", step)
    monkeypatch.setattr(naive, "naive_piece", naive_piece)
    for table, expected in zip(found, piece.naive(config), strict=True):
        np.testing.assert_allclose(table, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [REFERENCE, PAPER], ids=["reference", "paper"])
def test_an_empty_document_changes_nothing(changes):
    """The reference program trains it with the word that it has read last."""
    piece, config = Piece(lengths=(0, 30, 0, 25, 0)), step_config(**changes)
    tables, losses = piece.kernel(config)
    assert np.array_equal(tables[2][[0, 2, 4]], piece.tables[2][[0, 2, 4]])
    piece.starts, piece.ids = np.array([0, 30, 55]), np.array([1, 3])
    without, losses_without = piece.kernel(config)
    assert all(np.array_equal(a, b) for a, b in zip(tables, without, strict=True))
    assert losses == losses_without


@pytest.mark.parametrize("changes", [REFERENCE, PAPER], ids=["reference", "paper"])
def test_the_losses_that_are_told_are_those_of_the_pairs(changes):
    """At the rate 0 they are all of the same tables."""
    piece, config = Piece(), step_config(**changes)
    tables, losses = piece.kernel(config, rates=(0.0, 0.0))
    u, v, d = (table.astype(np.float64) for table in piece.tables)
    expected = np.zeros(4)
    drawn = naive.events(piece.tokens, piece.starts, piece.ids, *piece.draws, config, 0, 0, 5)
    for _, word, context, document, negatives in drawn:
        for negative in negatives:
            others = ([] if context is None else [v[context]]) + (
                [] if document is None else [d[document]]
            )
            # The reference program leaves out the other word of the pair, not the word itself.
            skip = word if config.is_joint or context is None else context
            if negative != skip:
                gap = sum(other @ (u[word] - u[negative]) for other in others)
                index = 2 if context is None else 0
                expected[index : index + 2] += max(0, config.margin - gap), 1
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for table, start in zip(tables, piece.tables, strict=True):
        np.testing.assert_allclose(table, start, rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", [REFERENCE, PAPER], ids=["reference", "paper"])
def test_rows_keep_their_length_over_a_long_pass(changes):
    """Norms are measured and not carried along: 100,000 steps leave them where they were."""
    piece = Piece(num_words=200, size=100, lengths=(60,) * 100)
    tables, _ = piece.kernel(JoseConfig(margin=1.0, subsample_threshold=0.0, **changes))
    for table, start in zip(tables, piece.tables, strict=True):
        moved = np.abs(table - start).max(axis=1) > 0.01
        assert moved[1:].all()
        assert np.abs(np.linalg.norm(table.astype(np.float64), axis=1) - 1).max() < 1e-6


@pytest.mark.parametrize("start", [0.5, 0.1, -0.1, -0.5])
def test_factors_decide_where_negative_words_come_to_rest(start):
    """Across the context with the reference's 2 h, opposite to it with the paper's 1 + h.

    A word and a document are held, and 4,000 steps move a negative word x whose cosine to the
    document begins at `start`. The margin is so large that the loss never rests.
    """
    piece = Piece(num_words=3, size=3, lengths=(1,))
    piece.tokens = np.array([1], np.int32)
    piece.draws = np.ones(3, np.float32), *alias_table([0, 0, 1])  # all negative words are x
    x = [start, math.sqrt(1 - start**2), 0]
    piece.tables = [np.array(rows, np.float32) for rows in ([[1, 0, 0], [0, 0, 1], x],) * 2]
    piece.tables.append(np.array([[1, 0, 0]], np.float32))
    ends = []
    for changes in (REFERENCE, MIXED):
        config = JoseConfig(num_negatives=1, margin=100.0, num_document_updates=4000, **changes)
        tables, _ = piece.kernel(config, (0.04, 0.04), first_word=2, first_document=1)
        assert np.array_equal(tables[0][:2], piece.tables[0][:2])
        ends.append(tables[0][2, 0])
    assert ends[0] == pytest.approx(0, abs=1e-3)
    # dh/dt = -(1 + h)^2 (1 - h): near -1, the rest is 1 / (2 lr t).
    assert ends[1] == pytest.approx(-1 + 1 / (2 * 0.04 * 4000), abs=3e-4)
    # The optimizer has the same factor.
    point = torch.nn.Parameter(torch.tensor([x]))
    optimizer = SphericalSGD([point], lr=0.04)
    for _ in range(4000):
        point.grad = torch.tensor([[1.0, 0, 0]])  # of the loss x.d
        optimizer.step()
    assert point[0, 0].item() == pytest.approx(ends[1], abs=1e-4)


# What a word is


SPECIAL = "".join(
    [
        "aZ09'-_.,!?; \t\n\r\x0b\x0c\x00\x1b\x1c\x1d\x1e\x1f\x7f\x85\xa0\xad",
        "\u1680\u180e\u2000\u2009\u200b\u200d\u2028\u2029\u202f\u205f\u2060\u3000\ufeff\ufffd",
        "\u03a3\u03c3\u03c2\u0130\u0131I\u00df\u1e9e\ufb01\u01c5\u00c9e\u0301\u0308\u212a\u212b",
        "\u4e2d\u6587\uff0c\u3002\U0001f600\U0001f468\u200d\U0001f469\u0627\u0644\u05d0\u0e01",
    ]
)


def random_texts(count: int, length: int) -> list[str]:
    """Of every character that Python knows; Rust knows newer ones."""
    source = random.Random(0)
    assigned = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) not in ("Cn", "Cs")
    ]
    kinds = (SPECIAL, string.ascii_letters, assigned[:1000], assigned)
    return [
        "".join(source.choice(source.choice(kinds)) for _ in range(length)) for _ in range(count)
    ] + ["\u039f\u0394\u039f\u03a3 \u03a3 \u03a3\u03a3.", "[UNK] a[UNK]b [unk]", "", " ", "\x1c"]


@pytest.mark.parametrize("word_pattern", [None, ENGLISH_WORDS], ids=["spaces", "english"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_training_and_tokenizer_find_the_same_words(tmp_path, lowercase, word_pattern):
    split = Splitter(lowercase, word_pattern)
    texts = random_texts(200, 100)
    lists = [[word for words in split(text) for word in words] for text in texts]
    words = sorted({word for words in lists for word in words} - {"[UNK]"})
    assert len(words) > 100
    rule = {"lowercase": lowercase, "word_pattern": word_pattern}
    tokenizer = build_tokenizer(words, **rule)
    assert rule_of(tokenizer) == (lowercase, word_pattern)
    vocabulary = tokenizer.get_vocab()
    assert vocabulary == {"[UNK]": 0} | {word: index + 1 for index, word in enumerate(words)}
    expected = [[vocabulary[word] for word in words] for words in lists]
    assert tokenizer(texts).input_ids == expected
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(texts).input_ids == expected
    assert rule_of(loaded) == (lowercase, word_pattern)


def test_all_spaces_and_cases_of_the_first_planes_agree():
    """Every assigned character, between two words and by itself."""
    characters = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    known = [char for char in characters if unicodedata.category(char) != "Cn"]
    text = " ".join(f"ab{char}cd {char}" for char in known)
    tokenizer = build_tokenizer(["ab"], lowercase=True).backend_tokenizer
    lowered = tokenizer.normalizer.normalize_str(text)
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(lowered)]
    found = [word for words in Splitter(lowercase=True)(text) for word in words]
    assert words == found


def test_unknown_words_and_padding_are_word_0():
    tokenizer = build_tokenizer(["cat", "dog"], lowercase=True)
    batch = tokenizer(["Cat bird dog", "dog"], padding=True, return_tensors="pt")
    assert batch.input_ids.tolist() == [[1, 0, 2], [2, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    model = JoseModel(JoseConfig(vocab_size=3, embedding_dim=4))
    pooled = model(**batch).pooler_output
    torch.testing.assert_close(pooled[1], model.word_embeddings.weight[2])


@pytest.mark.parametrize("words", [["a", "b", "a"], ["[UNK]"]])
def test_words_that_are_there_twice_are_refused(words):
    with pytest.raises(ValueError, match="is there twice"):
        build_tokenizer(words)


def test_a_tokenizer_of_another_kind_is_refused():
    tokenizer = build_tokenizer(["a"])
    tokenizer.backend_tokenizer.normalizer = None
    with pytest.raises(ValueError, match="none of build_tokenizer's"):
        rule_of(tokenizer)


def test_a_long_text_is_cut_between_words():
    source = random.Random(0)
    text = " ".join("x" * source.randint(1, 30) + str(n) for n in range(60_000))
    pieces = [*Splitter()(text)]
    assert len(pieces) > 1
    assert [word for words in pieces for word in words] == text.split()
    word = "y" * 1_000_000
    assert [*Splitter()(f"a {word} b")] == [["a", word], ["b"]]
    assert [*Splitter()("")] == []


def test_a_pattern_with_groups_is_refused():
    with pytest.raises(ValueError, match=r"has groups, write \(\?:"):
        Splitter(word_pattern="(a|b)+")


def test_chinese_is_cut_into_words():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba's own strings and imports
        pytest.importorskip("jieba")
    sentence = "我来到北京清华大学。很高兴!"
    text = segment_chinese(sentence)
    assert text.replace(" ", "") == sentence
    words = text.split()
    assert "北京" in words and "清华大学" in words
    tokenizer = build_tokenizer(sorted({*words}))
    assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == words
