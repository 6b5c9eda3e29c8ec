"""What a condition costs when BERT writes, and what the cache saves: `make bench`.

At the sizes of BERT-base, with random weights. Each pair is measured in turns in one run, and the
ratio of the medians counts.
"""

import sys
from collections.abc import Callable

import pytest
import torch
from clock import seconds_of
from transformers import BertConfig, BertLMHeadModel

from genzoo import ConditionalBertConfig, ConditionalBertLMHeadModel

NUM_TOKENS = 128
PROMPT = 8


def report(what: str, value: str) -> None:
    sys.stdout.write(f"\nconditional text: {what}: {value}")


@pytest.fixture(scope="module")
def models():
    plain = BertLMHeadModel(BertConfig(is_decoder=True)).eval()
    config = ConditionalBertConfig(num_classes=2, condition_size=128)
    conditional = ConditionalBertLMHeadModel(config).eval()
    return plain, conditional


def writer(model, batch_size: int, num_tokens: int, **kwargs) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(1000, 20000, (batch_size, PROMPT), generator=generator)

    def write():
        tokens = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            pad_token_id=0,
            **kwargs,
        )
        assert tokens.shape == (batch_size, PROMPT + num_tokens)

    return write


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_condition_costs_a_tenth_at_most(models, batch_size):
    plain, conditional = models
    labels = torch.arange(batch_size) % 2
    without, with_one = seconds_of(
        writer(plain, batch_size, 64),
        writer(conditional, batch_size, 64, class_labels=labels),
        repeats=5,
    )
    ratio = with_one / without
    report(f"64 tokens, batch {batch_size}, with a condition over plain BERT", f"{ratio:.3f}")
    assert ratio <= 1.10


def test_the_cache_is_five_times_as_fast(models):
    _, conditional = models
    labels = torch.zeros(1, dtype=torch.long)
    cached, encoded = seconds_of(
        writer(conditional, 1, NUM_TOKENS, class_labels=labels),
        writer(conditional, 1, NUM_TOKENS, class_labels=labels, use_cache=False),
        repeats=2,
    )
    report(
        f"{NUM_TOKENS} tokens, encoded again at every step over cached", f"{encoded / cached:.1f}"
    )
    assert encoded >= 5 * cached
