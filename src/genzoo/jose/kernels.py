"""The CPU engine: one pass over a piece of the corpus in compiled code that holds no lock.

Threads that run these functions share the tables and take no turns (Hogwild; Niu et al., 2011,
https://arxiv.org/abs/1106.5730). `naive.py` says the same things slowly and in torch; the tests
hold the two together step by step.

What makes it fast. A step moves a row along itself and along rows that it was multiplied with, so
the norm afterwards follows from inner products that are known already, and one pass over the rows
updates and normalizes them. Norms are measured in the pass that takes the inner products, never
carried along, so that neither rounding nor another thread's write adds up. The noise table is that
of the alias method, a few bytes a word, which stays in the cache. Negative words are drawn one pair
ahead, and their rows are on the way while the pair before is worked on.
"""

import math
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

MAX_SENTENCE = 1000
"""Words that are kept of a document at a time; no window reaches over the end (as in jose.c)."""

_MULTIPLIER = np.uint64(6364136223846793005)  # Knuth's generator, MMIX
_INCREMENT = np.uint64(1442695040888963407)
_TO_UNIT = np.float32(2.0**-24)

_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_TINY = np.float32(1e-12)

PLAIN, CALIBRATED, REFERENCE = 0, 1, 2
"""Factors of a step: none, 1 - cos (the paper's), and what jose.c has in its place."""


def constant(number: int) -> tuple[int, ...]:
    """A number that the compiler sees: it becomes the length of a tuple, which is part of a type.

    A setting that does not change within a run costs nothing when it is passed in this way.
    """
    return (0,) * number


FACTORS = {"none": PLAIN, "calibrated": CALIBRATED, "reference": REFERENCE}
"""The same, as a JoseConfig calls them."""


def _compiled(function: Any) -> Any:
    settings = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **settings)(function)
    except RuntimeError:  # there is no folder to keep it in: compiled anew in every process
        return njit(**settings)(function)


@cast(Any, intrinsic)
def _prefetch(typing_context: Any, table: Any, row: Any) -> Any:
    """Asks for a row of a table, which will be needed soon."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, arguments[0])
        byte, number, wide = ir.IntType(8), ir.IntType(32), ir.IntType(64)
        row_bytes = builder.extract_value(array.strides, 0)
        start = builder.bitcast(array.data, byte.as_pointer())
        start = builder.gep(start, [builder.mul(arguments[1], row_bytes)])
        function_type = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), number, number, number])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        # For reading, to be kept, data. Seven lines of 64 bytes: the processor itself goes on with
        # what follows them.
        for line in range(7):
            place = builder.gep(start, [ir.Constant(wide, 64 * line)])
            builder.call(function, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(table, row), code


@_compiled
def _next(state: Any) -> Any:
    return state * _MULTIPLIER + _INCREMENT


@_compiled
def _uniform(state: Any) -> Any:
    """A float32 in [0, 1) from the state's highest bits."""
    return np.float32(state >> np.uint64(40)) * _TO_UNIT


@_compiled
def _noise_word(state: Any, thresholds: Any, aliases: Any) -> Any:
    """A word from the noise distribution: the upper half picks a column, the lower a side of it."""
    column = np.int64(((state >> np.uint64(32)) * np.uint64(len(thresholds))) >> np.uint64(32))
    side = np.float32((state >> np.uint64(8)) & np.uint64(0xFFFFFF)) * _TO_UNIT
    return column if side < thresholds[column] else np.int64(aliases[column])


@_compiled
def _two_hinges(
    words: Any,
    center: Any,
    others: Any,
    other: Any,
    negatives: Any,
    skip: Any,
    rate: Any,
    margin: Any,
    scale: Any,
    is_smooth: Any,
    factor_u: Any,
    factor_x: Any,
    factor_v: Any,
    retract: Any,
    first_word: Any,
    first_other: Any,
) -> Any:
    """Pushes center word u and another row v together, and v and each negative word x apart.

    Returns the sum of the losses and their number.
    """
    u, v = words[center], others[other]
    size = len(u)
    f, uu, vv = _ZERO, _ZERO, _ZERO
    for d in range(size):
        f += u[d] * v[d]
        uu += u[d] * u[d]
        vv += v[d] * v[d]
    total, count = _ZERO, 0
    for negative in negatives:
        if negative == skip:
            continue
        if negative == center and (len(factor_x) != REFERENCE or len(retract) == 0):
            continue  # jose.c alone takes a word for its own opposite
        x = words[negative]
        h, g, xx = _ZERO, _ZERO, _ZERO
        for d in range(size):
            h += x[d] * v[d]
            g += u[d] * x[d]
            xx += x[d] * x[d]
        count += 1
        cos_f, cos_h = f, h
        if len(retract) == 0:  # rows of any length, of which the direction counts
            cos_f = f / math.sqrt(uu * vv)
            cos_h = h / math.sqrt(xx * vv)
        gap = margin - (cos_f - cos_h)
        weight = _ONE
        if len(is_smooth) == 1:
            weight = _ONE / (_ONE + math.exp(-scale * gap))
            total += (max(gap, _ZERO) * scale - math.log(max(weight, _ONE - weight))) / scale
        elif gap <= _ZERO:
            continue
        else:
            total += gap
        a_u, a_x, a_v = rate * weight, rate * weight, rate * weight
        if len(factor_u) != PLAIN:
            a_u *= _ONE - cos_f
        if len(factor_x) == CALIBRATED:
            a_x *= _ONE + cos_h
        elif len(factor_x) == REFERENCE:
            a_x *= _TWO * cos_h
        if len(factor_v) == REFERENCE:
            a_v *= _ONE - (cos_f - cos_h)
        elif len(factor_v) == CALIBRATED:
            cos_g = g if len(retract) == 1 else g / math.sqrt(uu * xx)
            length = math.sqrt(max(_TWO - _TWO * cos_g, _TINY))
            a_v *= _ONE - (cos_f - cos_h) / length
        # Each new row is a sum of old ones: u' = u_u u + u_v v, and so on.
        u_u, u_v = _ONE - a_u * cos_f, a_u
        x_x, x_v = _ONE + a_x * cos_h, -a_x
        v_v, v_u, v_x = _ONE - a_v * (cos_f - cos_h), a_v, -a_v
        if len(retract) == 1:
            r = _ONE / math.sqrt(u_u * u_u * uu + _TWO * u_u * u_v * f + u_v * u_v * vv)
            u_u, u_v = u_u * r, u_v * r
            r = _ONE / math.sqrt(x_x * x_x * xx + _TWO * x_x * x_v * h + x_v * x_v * vv)
            x_x, x_v = x_x * r, x_v * r
            if negative == center:  # jose.c steps towards v, then from there away from v
                x_x, x_v = (_ONE + a_x * cos_h) * u_u, (_ONE + a_x * cos_h) * u_v - a_x
                r = _ONE / math.sqrt(x_x * x_x * uu + _TWO * x_x * x_v * f + x_v * x_v * vv)
                x_x, x_v = x_x * r, x_v * r
                u_u, u_v = x_x, x_v
            r = v_v * v_v * vv + _TWO * v_v * a_v * (f - h) + a_v * a_v * (uu - _TWO * g + xx)
            r = _ONE / math.sqrt(r)
            v_v, v_u, v_x = v_v * r, v_u * r, v_x * r
        else:  # the gradient of f(x / |x|) is the projected one over |x|
            u_u, u_v = _ONE - a_u * cos_f / uu, a_u / math.sqrt(uu * vv)
            x_x, x_v = _ONE + a_x * cos_h / xx, -a_x / math.sqrt(xx * vv)
            v_v = _ONE - a_v * (cos_f - cos_h) / vv
            v_u, v_x = a_v / math.sqrt(vv * uu), -a_v / math.sqrt(vv * xx)
        if center < first_word:
            u_u, u_v = _ONE, _ZERO
        if negative < first_word:
            x_x, x_v = _ONE, _ZERO
        if other < first_other:
            v_v, v_u, v_x = _ONE, _ZERO, _ZERO
        for d in range(size):
            u_d, x_d, v_d = u[d], x[d], v[d]
            u[d] = u_u * u_d + u_v * v_d
            x[d] = x_x * x_d + x_v * v_d
            v[d] = v_v * v_d + v_u * u_d + v_x * x_d
        # What the next negative word needs, from what is known. From here no error adds up: with
        # the next pair all is measured again.
        product = u_u * (v_v * f + v_u * uu + v_x * g) + u_v * (v_v * vv + v_u * f + v_x * h)
        if len(retract) == 1:
            uu, vv = _ONE, _ONE
        else:
            length = v_v * v_v * vv + v_u * v_u * uu + v_x * v_x * xx
            length += _TWO * (v_v * v_u * f + v_v * v_x * h + v_u * v_x * g)
            uu = u_u * u_u * uu + _TWO * u_u * u_v * f + u_v * u_v * vv
            vv = length
        f = product
    return total, count


@_compiled
def _joint_hinge(
    words: Any,
    center: Any,
    contexts: Any,
    context: Any,
    documents: Any,
    document: Any,
    negatives: Any,
    rate: Any,
    margin: Any,
    scale: Any,
    is_smooth: Any,
    factor_u: Any,
    factor_x: Any,
    factor_v: Any,
    retract: Any,
    first_word: Any,
    first_document: Any,
) -> Any:
    """One step on max(0, m - v.u - u.d + v.u' + u'.d) for each negative word (Meng et al., 2019).

    Returns the sum of the losses and their number.
    """
    u, v, w = words[center], contexts[context], documents[document]
    size = len(u)
    total, count = _ZERO, 0
    for negative in negatives:
        if negative == center:
            continue
        x = words[negative]
        f, p, h, q, g, e = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
        uu, vv, ww, xx = _ZERO, _ZERO, _ZERO, _ZERO
        for d in range(size):
            f += u[d] * v[d]
            p += u[d] * w[d]
            h += x[d] * v[d]
            q += x[d] * w[d]
            g += u[d] * x[d]
            e += v[d] * w[d]
            uu += u[d] * u[d]
            vv += v[d] * v[d]
            ww += w[d] * w[d]
            xx += x[d] * x[d]
        count += 1
        iu, iv, iw, ix = _ONE, _ONE, _ONE, _ONE  # one over the lengths
        if len(retract) == 0:
            iu, iv = _ONE / math.sqrt(uu), _ONE / math.sqrt(vv)
            iw, ix = _ONE / math.sqrt(ww), _ONE / math.sqrt(xx)
        cos_f, cos_p, cos_h, cos_q = f * iu * iv, p * iu * iw, h * ix * iv, q * ix * iw
        gap = margin - cos_f - cos_p + cos_h + cos_q
        weight = _ONE
        if len(is_smooth) == 1:
            weight = _ONE / (_ONE + math.exp(-scale * gap))
            total += (max(gap, _ZERO) * scale - math.log(max(weight, _ONE - weight))) / scale
        elif gap <= _ZERO:
            continue
        else:
            total += gap

        a_u, a_x, a_v, a_w = rate * weight, rate * weight, rate * weight, rate * weight
        pull = cos_f + cos_p  # of u along v + w, whose length is |v + w|
        push = cos_h + cos_q
        if len(factor_u) != PLAIN:
            length = math.sqrt(max(_TWO + _TWO * e * iv * iw, _TINY))
            a_u *= _ONE - pull / length
            a_x *= _ONE + push / length
            length = math.sqrt(max(_TWO - _TWO * g * iu * ix, _TINY))
            a_v *= _ONE - (cos_f - cos_h) / length
            a_w *= _ONE - (cos_p - cos_q) / length
        # Without retraction the steps are shorter by the length of the row.
        a_u, a_x, a_v, a_w = a_u * iu, a_x * ix, a_v * iv, a_w * iw
        u_u, u_v, u_w = _ONE - a_u * pull * iu, a_u * iv, a_u * iw
        x_x, x_v, x_w = _ONE + a_x * push * ix, -a_x * iv, -a_x * iw
        v_v, v_u, v_x = _ONE - a_v * (cos_f - cos_h) * iv, a_v * iu, -a_v * ix
        w_w, w_u, w_x = _ONE - a_w * (cos_p - cos_q) * iw, a_w * iu, -a_w * ix
        if len(retract) == 1:
            r = u_u * u_u * uu + _TWO * u_u * u_v * (f + p)
            r = _ONE / math.sqrt(r + u_v * u_v * (vv + _TWO * e + ww))
            u_u, u_v, u_w = u_u * r, u_v * r, u_w * r
            r = x_x * x_x * xx + _TWO * x_x * x_v * (h + q)
            r = _ONE / math.sqrt(r + x_v * x_v * (vv + _TWO * e + ww))
            x_x, x_v, x_w = x_x * r, x_v * r, x_w * r
            difference = uu - _TWO * g + xx
            r = v_v * v_v * vv + _TWO * v_v * v_u * (f - h) + v_u * v_u * difference
            r = _ONE / math.sqrt(r)
            v_v, v_u, v_x = v_v * r, v_u * r, v_x * r
            r = w_w * w_w * ww + _TWO * w_w * w_u * (p - q) + w_u * w_u * difference
            r = _ONE / math.sqrt(r)
            w_w, w_u, w_x = w_w * r, w_u * r, w_x * r
        if center < first_word:
            u_u, u_v, u_w = _ONE, _ZERO, _ZERO
        if negative < first_word:
            x_x, x_v, x_w = _ONE, _ZERO, _ZERO
        if context < first_word:
            v_v, v_u, v_x = _ONE, _ZERO, _ZERO
        if document < first_document:
            w_w, w_u, w_x = _ONE, _ZERO, _ZERO
        for d in range(size):
            u_d, x_d, v_d, w_d = u[d], x[d], v[d], w[d]
            u[d] = u_u * u_d + u_v * v_d + u_w * w_d
            x[d] = x_x * x_d + x_v * v_d + x_w * w_d
            v[d] = v_v * v_d + v_u * u_d + v_x * x_d
            w[d] = w_w * w_d + w_u * u_d + w_x * x_d
    return total, count


@_compiled
def train_piece(
    tokens: Any,
    starts: Any,
    ids: Any,
    words: Any,
    contexts: Any,
    documents: Any,
    keep: Any,
    thresholds: Any,
    aliases: Any,
    window_size: Any,
    num_negatives: Any,
    document_updates: Any,
    margin: Any,
    scale: Any,
    is_smooth: Any,
    is_joint: Any,
    factor_u: Any,
    factor_x: Any,
    factor_v: Any,
    retract: Any,
    first_rate: Any,
    last_rate: Any,
    first_word: Any,
    first_document: Any,
    seed: Any,
) -> Any:
    """Goes once through a piece of the corpus.

    Args:
        tokens: int32, (T,), word numbers, unknown words left out.
        starts: int64, (S + 1,), where each document begins in `tokens`, and the end.
        ids: int64, (S,), the row of each document.
        words: float32, (V, D), center words, changed in place.
        contexts: float32, (V, D), context words, changed in place.
        documents: float32, (N, D), changed in place.
        keep: float32, (V,), the chance of a word to survive sub-sampling.
        thresholds: float32, (V,), of the alias method (see `alias_table`).
        aliases: int32, (V,).
        window_size: The largest distance of two words that make a pair; the window of each word is
            drawn from 1 to this.
        num_negatives: Negative words K for each pair.
        document_updates: Steps for each word with its document, if `is_joint` is not set.
        margin: m of the loss.
        scale: s of softplus(s gap) / s.
        is_smooth: A `constant`: 1 for this softplus, 0 for the hinge.
        is_joint: A `constant`: 1 if words and documents share one hinge.
        factor_u: A `constant`: which factor the step of the positive word has; if `is_joint`, that
            of all.
        factor_x: A `constant`: that of the negative word.
        factor_v: A `constant`: that of the context or document.
        retract: A `constant`: 1 if rows are brought back to length 1 after every step.
        first_rate: Learning rate at the beginning of the piece.
        last_rate: At its end; it changes in a straight line.
        first_word: Rows of words and contexts before this one stay as they are.
        first_document: Rows of documents before this one stay as they are.
        seed: uint64, of all that is drawn.

    Returns:
        The sum of the losses of words, their number, and the same of documents.
    """
    state = _next(_next(seed))
    sentence = np.empty(MAX_SENTENCE, np.int64)
    negatives = np.empty(num_negatives, np.int64)
    upcoming = np.empty(num_negatives, np.int64)
    for k in range(num_negatives):
        state = _next(state)
        upcoming[k] = _noise_word(state, thresholds, aliases)
    word_loss, num_word_losses, document_loss, num_document_losses = 0.0, 0, 0.0, 0
    for s in range(len(ids)):
        document, position = ids[s], starts[s]
        while position < starts[s + 1]:
            share = (position - starts[0]) / (starts[len(ids)] - starts[0])
            rate = np.float32(first_rate + (last_rate - first_rate) * share)
            length = 0
            while position < starts[s + 1] and length < MAX_SENTENCE:
                token = tokens[position]
                position += 1
                state = _next(state)
                if _uniform(state) < keep[token]:
                    sentence[length] = token
                    length += 1
            for i in range(length):
                word = sentence[i]
                state = _next(state)
                shrink = np.int64((state >> np.uint64(33)) % np.uint64(window_size))
                first = max(0, i - window_size + shrink)
                last = min(length - 1, i + window_size - shrink)
                # Behind the window come the steps with the document.
                for c in range(first, last + 1 + (0 if len(is_joint) == 1 else document_updates)):
                    if c == i:
                        continue
                    for k in range(num_negatives):
                        negatives[k] = upcoming[k]
                        state = _next(state)
                        upcoming[k] = _noise_word(state, thresholds, aliases)
                        _prefetch(words, upcoming[k])
                    if len(is_joint) == 1:
                        loss, count = _joint_hinge(
                            words,
                            sentence[c],
                            contexts,
                            word,
                            documents,
                            document,
                            negatives,
                            rate,
                            margin,
                            scale,
                            is_smooth,
                            factor_u,
                            factor_x,
                            factor_v,
                            retract,
                            first_word,
                            first_document,
                        )
                        word_loss += loss
                        num_word_losses += count
                    elif c <= last:
                        loss, count = _two_hinges(
                            words,
                            sentence[c],
                            contexts,
                            word,
                            negatives,
                            word,
                            rate,
                            margin,
                            scale,
                            is_smooth,
                            factor_u,
                            factor_x,
                            factor_v,
                            retract,
                            first_word,
                            first_word,
                        )
                        word_loss += loss
                        num_word_losses += count
                    else:
                        loss, count = _two_hinges(
                            words,
                            word,
                            documents,
                            document,
                            negatives,
                            word,
                            rate,
                            margin,
                            scale,
                            is_smooth,
                            factor_u,
                            factor_x,
                            factor_v,
                            retract,
                            first_word,
                            first_document,
                        )
                        document_loss += loss
                        num_document_losses += count
    return word_loss, num_word_losses, document_loss, num_document_losses


@_compiled
def sample_pairs(
    tokens: Any,
    starts: Any,
    ids: Any,
    keep: Any,
    thresholds: Any,
    aliases: Any,
    window_size: Any,
    num_negatives: Any,
    seed: Any,
) -> Any:
    """The pairs of a piece of the corpus, for batches: those that `train_piece` would go through.

    Args:
        tokens: As in `train_piece`, like all that follow.
        starts: As there.
        ids: As there.
        keep: As there.
        thresholds: As there.
        aliases: As there.
        window_size: As there.
        num_negatives: As there.
        seed: As there.

    Returns:
        int64: centers, contexts and documents of pairs, (3, P), negative words for each, (P, K);
        words and documents, (2, Q), and negative words for each, (Q, K).
    """
    state = _next(_next(seed))
    sentence = np.empty(MAX_SENTENCE, np.int64)
    most = len(tokens)
    pairs = np.empty((3, most * 2 * window_size), np.int64)
    singles = np.empty((2, most), np.int64)
    num_pairs, num_singles = 0, 0
    for s in range(len(ids)):
        position = starts[s]
        while position < starts[s + 1]:
            length = 0
            while position < starts[s + 1] and length < MAX_SENTENCE:
                state = _next(state)
                if _uniform(state) < keep[tokens[position]]:
                    sentence[length] = tokens[position]
                    length += 1
                position += 1
            for i in range(length):
                state = _next(state)
                radius = window_size - np.int64((state >> np.uint64(33)) % np.uint64(window_size))
                for c in range(max(0, i - radius), min(length - 1, i + radius) + 1):
                    if c != i:
                        pairs[0, num_pairs] = sentence[c]
                        pairs[1, num_pairs] = sentence[i]
                        pairs[2, num_pairs] = ids[s]
                        num_pairs += 1
                singles[0, num_singles] = sentence[i]
                singles[1, num_singles] = ids[s]
                num_singles += 1
    negatives = np.empty((num_pairs + num_singles, num_negatives), np.int64)
    for row in range(num_pairs + num_singles):
        for k in range(num_negatives):
            state = _next(state)
            negatives[row, k] = _noise_word(state, thresholds, aliases)
    return (
        pairs[:, :num_pairs],
        negatives[:num_pairs],
        singles[:, :num_singles],
        negatives[num_pairs:],
    )


@_compiled
def infer_piece(
    tokens: Any,
    starts: Any,
    words: Any,
    keep: Any,
    thresholds: Any,
    aliases: Any,
    num_negatives: Any,
    margin: Any,
    scale: Any,
    factor: Any,
    num_epochs: Any,
    learning_rate: Any,
    seed: Any,
    documents: Any,
) -> Any:
    """Finds the vectors of documents whose words are fixed.

    The step of a document d with its word u and a random word x is that of `train_piece`:

        d <- y / |y|,   y = d + rate keep(u) factor (u - x - (d.u - d.x) d)

    Args:
        tokens: int32, (T,), rows of known words.
        starts: int64, (N + 1,), where each document begins in `tokens`, and the end.
        words: float32, (V, D), rows of length 1.
        keep: float32, (V,), what the step of each word is multiplied with.
        thresholds: float32, (V,), of the alias method (see `corpus.alias_table`).
        aliases: int32, (V,).
        num_negatives: Random words for each word.
        margin: m of the loss.
        scale: 0 for the hinge, or the scale s of softplus(s gap) / s.
        factor: Which factor the steps have, PLAIN, CALIBRATED or REFERENCE.
        num_epochs: Passes over each document.
        learning_rate: At the beginning; it falls to zero.
        seed: uint64, of all that is drawn, together with the words of the document.
        documents: float32, (N, D), is filled; rows of documents without words stay as they are.
    """
    size = words.shape[1]
    one = np.float32(1)
    for i in range(len(starts) - 1):
        first, last = starts[i], starts[i + 1]
        if first == last:
            continue
        v = documents[i]
        v[:] = 0
        state = np.uint64(14695981039346656037) ^ seed
        for t in range(first, last):
            u = words[tokens[t]]
            # The words are hashed (FNV-1a), so that equal texts draw equal random words.
            state = (state ^ np.uint64(tokens[t])) * np.uint64(1099511628211)
            for d in range(size):
                v[d] += keep[tokens[t]] * u[d]
        state = _next(_next(state))
        square = np.float32(0)
        for d in range(size):
            square += v[d] * v[d]
        if square < np.float32(1e-12):  # the words cancel
            v[:] = words[tokens[first]]
            square = one
        for d in range(size):
            v[d] *= one / math.sqrt(square)

        num_steps = num_epochs * (last - first)
        for step in range(num_steps):
            token = tokens[first + step % (last - first)]
            u = words[token]
            rate = np.float32(learning_rate * (1 - step / num_steps)) * keep[token]
            for _ in range(num_negatives):
                state = _next(state)
                negative = _noise_word(state, thresholds, aliases)
                if negative == token:
                    continue
                x = words[negative]
                f, h, g = np.float32(0), np.float32(0), np.float32(0)
                for d in range(size):
                    f += u[d] * v[d]
                    h += x[d] * v[d]
                    g += u[d] * x[d]
                gap = margin - (f - h)
                a = rate
                if scale > 0:
                    a *= one / (one + math.exp(-scale * gap))
                elif gap <= 0:
                    continue
                if factor == REFERENCE:
                    a *= one - (f - h)
                elif factor == CALIBRATED:  # 1 - cos(d, u - x)
                    a *= one - (f - h) / math.sqrt(max(2 - 2 * g, np.float32(1e-12)))
                square = np.float32(0)
                for d in range(size):
                    v[d] += a * (u[d] - x[d] - (f - h) * v[d])
                    square += v[d] * v[d]
                r = one / math.sqrt(square)
                for d in range(size):
                    v[d] *= r
