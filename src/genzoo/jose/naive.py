"""What kernels.py does, as it is defined: one pair at a time, gradients by autograd, in float64.

This is the meaning of the fast code, and what the tests hold it to. It draws the same random
numbers and takes the same steps in the same order.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import MAX_SENTENCE
from .modeling_jose import JoseConfig


class _Dice:
    """The generator of kernels.py."""

    def __init__(self, seed: int, thresholds: np.ndarray, aliases: np.ndarray):
        self.state, self.thresholds, self.aliases = seed, thresholds, aliases
        self.roll()
        self.roll()

    def roll(self) -> int:
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return self.state

    def uniform(self) -> np.float32:
        return np.float32(self.roll() >> 40) * np.float32(2.0**-24)

    def noise_word(self) -> int:
        state = self.roll()
        column = ((state >> 32) * len(self.thresholds)) >> 32
        side = np.float32((state >> 8) & 0xFFFFFF) * np.float32(2.0**-24)
        return column if side < self.thresholds[column] else int(self.aliases[column])


def events(
    tokens: np.ndarray,
    starts: np.ndarray,
    ids: np.ndarray,
    keep: np.ndarray,
    thresholds: np.ndarray,
    aliases: np.ndarray,
    config: JoseConfig,
    first_rate: float,
    last_rate: float,
    seed: int,
) -> Iterator[tuple[float, int, int | None, int | None, list[int]]]:
    """The steps of one pass over a piece of the corpus, in order.

    The arguments are those of `kernels.train_piece`.

    Yields:
        Learning rate, center word, context word or None, document or None, negative words.
    """
    dice = _Dice(seed, thresholds, aliases)
    upcoming = [dice.noise_word() for _ in range(config.num_negatives)]

    def negatives() -> list[int]:
        nonlocal upcoming
        drawn, upcoming = upcoming, [dice.noise_word() for _ in range(config.num_negatives)]
        return drawn

    for index, document in enumerate(ids.tolist()):
        position = int(starts[index])
        while position < starts[index + 1]:
            share = (position - starts[0]) / (starts[-1] - starts[0])
            rate = float(np.float32(first_rate + (last_rate - first_rate) * share))
            sentence = []
            while position < starts[index + 1] and len(sentence) < MAX_SENTENCE:
                if dice.uniform() < keep[tokens[position]]:
                    sentence.append(int(tokens[position]))
                position += 1
            for i, word in enumerate(sentence):
                radius = config.window_size - (dice.roll() >> 33) % config.window_size
                around = sentence[max(0, i - radius) : i] + sentence[i + 1 : i + 1 + radius]
                for center in around:
                    yield rate, center, word, document if config.is_joint else None, negatives()
                for _ in range(0 if config.is_joint else config.num_document_updates):
                    yield rate, word, None, document, negatives()


def naive_piece(
    tokens: np.ndarray,
    starts: np.ndarray,
    ids: np.ndarray,
    words: Tensor,
    contexts: Tensor,
    documents: Tensor,
    keep: np.ndarray,
    thresholds: np.ndarray,
    aliases: np.ndarray,
    config: JoseConfig,
    first_rate: float,
    last_rate: float,
    seed: int,
) -> None:
    """Goes once through a piece of the corpus and changes the tables, float64, in place."""
    arguments = (tokens, starts, ids, keep, thresholds, aliases, config)
    for rate, center, context, document, negatives in events(
        *arguments, first_rate, last_rate, seed
    ):
        for negative in negatives:
            if config.is_joint:
                assert context is not None and document is not None
                others = [contexts[context], documents[document]]
                if negative != center:
                    _step(words[center], words[negative], others, rate, config)
                continue
            skip = context if context is not None else center
            other = contexts[context] if context is not None else documents[document]
            is_reference = (config.step_factors or [])[1] == "reference" and config.use_retraction
            if negative != skip and (negative != center or is_reference):
                _step(words[center], words[negative], [other], rate, config)


def _step(u: Tensor, x: Tensor, others: list[Tensor], rate: float, config: JoseConfig) -> None:
    """One step of a positive word u, a negative word x, and a context, a document, or both."""
    rows = [u, x, *others]
    leaves = [row.clone().requires_grad_() for row in rows]
    points = leaves if config.use_retraction else [F.normalize(leaf, dim=0) for leaf in leaves]
    gap = config.margin - sum(other @ (points[0] - points[1]) for other in points[2:])
    assert isinstance(gap, Tensor)
    if config.loss == "cross_entropy":
        loss = F.softplus(config.loss_scale * gap) / config.loss_scale
    else:
        loss = gap.clamp_min(0)
    gradients = torch.autograd.grad(loss, leaves)

    p = [point.detach().clone() for point in points]
    f, h = float(p[0] @ p[2]), float(p[1] @ p[2])
    kinds = [*(config.step_factors or []), (config.step_factors or [])[-1]]
    reference = [1 - f, 2 * h, 1 - (f - h)]
    for index, (row, point, gradient) in enumerate(zip(rows, p, gradients, strict=True)):
        length = gradient.norm()
        if length == 0:
            continue
        factor: Any = 1.0
        if kinds[index] == "calibrated":
            factor = _calibration(index, p)
        elif kinds[index] == "reference":
            factor = reference[index]
        if config.use_retraction:
            # The row as it is now: where u and x are one row, it has moved already, as in jose.c.
            along = -gradient - (-gradient @ point) * row
            row += rate * factor * along
            row /= row.norm()
        else:
            row -= rate * factor * gradient


def _calibration(index: int, p: list[Tensor]) -> Tensor:
    """1 - cos of a point and the direction that the loss pulls it to."""
    pull = [sum(p[2:]), -sum(p[2:])][index] if index < 2 else p[0] - p[1]
    assert isinstance(pull, Tensor)
    return 1 - F.cosine_similarity(p[index], pull, dim=0)
