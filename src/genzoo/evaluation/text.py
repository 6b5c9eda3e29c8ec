"""How good generated text is: likely, right for its condition, various, near to references.

Likelihood: `token_perplexity` of held-out text under a model. Condition: the accuracy of a judge,
a classifier trained on human text apart from the generator (`TfidfJudge`, `NeuralJudge`).
Variety: `distinct_n` and `self_bleu` of a set of texts. References: `bleu` and `rouge`.

Judges read strings. The n-gram measures read texts that are cut already, into words, characters
or ids, as lists of anything that can be a key: cutting decides the number, so it is the caller's.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchmetrics.functional.text.rouge import rouge_score

IGNORED_LABEL = -100  # as in F.cross_entropy and in transformers


@dataclass(frozen=True)
class PerplexityResult:
    """What `token_perplexity` found.

    Args:
        perplexity: Exponential of `nats_per_token`, 1 at best; V for a model that knows nothing.
        nats_per_token: Mean of -log p over all tokens that count.
        num_tokens: Count of those.
    """

    perplexity: float
    nats_per_token: float
    num_tokens: int


@torch.no_grad()
def token_perplexity(
    model: Callable[..., Any], batches: Iterable[Mapping[str, Tensor]], *, shift: bool = True
) -> PerplexityResult:
    """Perplexity of text under a model: exp of the mean of -log p over tokens.

    Every token weighs the same, whatever the batch it is in, so batch size and padding do not
    move the number. Compare only models that cut text into the same tokens.

    Args:
        model: Anything that takes the entries of a batch but "labels" as keyword arguments and
            returns an object with `logits` (B, T, V). A module is put into evaluation mode, and
            back after.
        batches: Each holds "labels" (B, T), ids or -100 for what does not count, and what the
            model takes, where the model is.
        shift: Whether logits at t predict the label at t + 1, as in a causal language model; False
            where they predict the label at t, as in a masked one or in a decoder whose input is
            shifted already.

    Returns:
        A perplexity of infinity where the model gives a token no probability at all.

    Raises:
        ValueError: If a batch has no labels or logits of another shape, or if no token counts.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    total, num_tokens = 0.0, 0
    try:
        if isinstance(model, nn.Module):
            model.eval()
        for index, batch in enumerate(batches):
            if "labels" not in batch:
                raise ValueError(f"batch {index} must hold labels, got {', '.join(batch)}")
            labels = batch["labels"]  # (B, T)
            logits = model(**{key: batch[key] for key in batch if key != "labels"}).logits
            if logits.dim() != 3 or logits.shape[:2] != labels.shape:
                raise ValueError(
                    f"batch {index} must have labels (B, T) and logits (B, T, V), "
                    f"got {tuple(labels.shape)} and {tuple(logits.shape)}"
                )
            if shift:
                logits, labels = logits[:, :-1], labels[:, 1:]
            counted = labels != IGNORED_LABEL
            logits, labels = logits[counted], labels[counted]  # (N, V), (N,)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            nats = F.cross_entropy(logits, labels.to(logits.device), reduction="none")  # (N,)
            total += float(nats.cpu().double().sum())  # not every device has float64
            num_tokens += len(labels)
    finally:
        # One by one: a part that was frozen in evaluation mode stays so.
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
    if num_tokens == 0:
        raise ValueError("a perplexity needs a token that counts, but there is none")
    nats_per_token = total / num_tokens
    # torch, because math.exp raises where the answer is infinity.
    perplexity = torch.tensor(nats_per_token, dtype=torch.float64).exp()
    return PerplexityResult(float(perplexity), nats_per_token, num_tokens)


class Judge(Protocol):
    """A classifier of texts; trained on human text, it measures whether generated text obeys.

    Report its accuracy on held-out human text beside that on generated text: it is what a
    generator as good as people would get. A generator that was trained against a judge needs
    another judge.
    """

    def fit(self, texts: Sequence[str], labels: ArrayLike | Tensor) -> Self:
        """Learns from N texts and their classes (N,), integers; forgets what it knew before."""
        ...

    def predict(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The class of each text: N texts -> (N,). An empty text has one, too."""
        ...

    def accuracy(self, texts: Sequence[str], labels: ArrayLike | Tensor) -> float:
        """Share of texts that are given the class they should have."""
        ...


Analyzer = Literal["char", "word"]
"""What a judge reads: characters, or runs of word characters and every other mark on its own.

Chinese has no blanks between words: take "char", or put blanks there.
"""

_WORD = r"\w+|[^\w\s]"


def _check_analyzer(analyzer: str) -> None:
    if analyzer not in ("char", "word"):
        raise ValueError(f"analyzer must be char or word, got {analyzer!r}")


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise TypeError("texts must be a list of strings, got one string")
    if len(texts) == 0:
        raise ValueError("texts must not be empty")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts must be strings, got {type(text).__name__} at {index}")


def _checked_labels(labels: ArrayLike | Tensor, num_texts: int) -> NDArray[np.int64]:
    if isinstance(labels, Tensor):
        labels = labels.cpu().numpy()
    values = np.asarray(labels)
    if values.shape != (num_texts,):
        raise ValueError(
            f"labels must be one for each text, got shape {values.shape} for {num_texts} texts"
        )
    if values.dtype.kind not in "iub":
        raise ValueError(f"labels must be integers, got {values.dtype}")
    return values.astype(np.int64)


def _check_training_set(
    texts: Sequence[str], labels: ArrayLike | Tensor
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The classes (K,) and the place of each text's class among them (N,)."""
    _check_texts(texts)
    classes, places = np.unique(_checked_labels(labels, len(texts)), return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"a judge needs at least 2 classes, but all labels are {classes[0]}")
    if not any(text.strip() for text in texts):
        raise ValueError("a judge needs texts to learn from, but all are blank")
    return classes, places


class TfidfJudge:
    """Logistic regression on tf-idf of n-grams: fast, and hard to beat on small sets.

    It sees order within an n-gram only. N-grams are of 1 to 4 characters, or of 1 and 2 words; the
    case of letters is not seen. The same texts always give the same judge.

    Args:
        analyzer: What is counted, see `Analyzer`.

    Raises:
        ValueError: If the analyzer is another.
    """

    def __init__(self, analyzer: Analyzer = "char"):
        _check_analyzer(analyzer)
        self.analyzer = analyzer
        self._classifier: LogisticRegression | None = None

    def fit(self, texts: Sequence[str], labels: ArrayLike | Tensor) -> Self:
        """Learns from N texts and their classes (N,), integers; forgets what it knew before.

        Raises:
            TypeError: If texts are not strings.
            ValueError: If there are none, if all are blank, if there is not one label for each,
                or if there is only one class.
        """
        classes, places = _check_training_set(texts, labels)
        if self.analyzer == "char":
            vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True)
        else:
            vectorizer = TfidfVectorizer(token_pattern=_WORD, ngram_range=(1, 2), sublinear_tf=True)
        # Rows have length one and many entries, so that a weaker penalty than usual is due.
        # Newton's steps are few; those of lbfgs, the default, are many and small, and threads that
        # fought for a core made them up to ninety times as slow.
        classifier = LogisticRegression(C=10, solver="newton-cg", max_iter=1000)
        self._classifier = classifier.fit(vectorizer.fit_transform(texts), places)
        self._vectorizer, self._classes = vectorizer, classes
        return self

    def predict(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The class of each text: N texts -> (N,).

        Raises:
            RuntimeError: If it has not been fitted.
            TypeError: If texts are not strings.
            ValueError: If there are none.
        """
        if self._classifier is None:
            raise RuntimeError("this judge knows nothing yet: call fit before predict")
        _check_texts(texts)
        return self._classes[self._classifier.predict(self._vectorizer.transform(texts))]

    def accuracy(self, texts: Sequence[str], labels: ArrayLike | Tensor) -> float:
        """Share of texts that are given the class they should have.

        A class that fit has not seen counts as wrong.

        Raises:
            RuntimeError: If it has not been fitted.
            TypeError: If texts are not strings.
            ValueError: If there are none, or not one label for each.
        """
        predicted = self.predict(texts)
        return float((predicted == _checked_labels(labels, len(texts))).mean())


class _TextCNN(nn.Module):
    """Features of n-grams, the strongest place of each, one linear layer (Kim, 2014, Section 2)."""

    def __init__(
        self,
        vocabulary_size: int,
        num_classes: int,
        embedding_size: int,
        num_filters: int,
        widths: Sequence[int],
        dropout: float,
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=0)
        # Small, or rare words keep what they began with: with torch's 1, the accuracy on the words
        # of Rotten Tomatoes was 0.73 instead of 0.77 (Kim's CNN-rand has 0.761).
        nn.init.normal_(self.embedding.weight, std=0.1)
        nn.init.zeros_(self.embedding.weight[0])
        self.convs = nn.ModuleList(
            nn.Conv1d(embedding_size, num_filters, width, padding=width - 1) for width in widths
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(num_filters * len(widths), num_classes)

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, K)
        x = self.embedding(ids).transpose(1, 2)  # (B, D, T)
        features = torch.cat([conv(x).max(dim=-1).values for conv in self.convs], dim=1).relu()
        return self.head(self.dropout(features))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Lets torch compute on one core: sums have one order, whatever number of threads is set.

    Nor do many small sums pay to be spread: beside another program on a machine of two cores, a
    step of `NeuralJudge` took 27 times as long on two threads as on one.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


class NeuralJudge:
    """A convolutional text classifier with vectors of its own (Kim, 2014, CNN-rand).

    Its n-grams are alike where their tokens are, while `TfidfJudge` knows each by itself, so that
    it errs elsewhere: two judges that agree say more than one. Take "word" for English; by
    characters it sees too few letters at a time.

    The vocabulary is that of fit; tokens that are rarer than `min_count` or beyond the
    `vocabulary_size` most frequent share one vector, and so do those that are met later. The case
    of letters is not seen.

    The same seed, texts and machine give the same judge, on any number of threads; no generator of
    torch is moved. It computes on the CPU: 10,000 texts of 60 characters take half a minute of one
    core.

    Source: Convolutional Neural Networks for Sentence Classification, https://arxiv.org/abs/1408.5882.
    Adam with a rate that falls to zero instead of Adadelta, and no bound on the last layer's norm.

    Args:
        analyzer: What a token is, see `Analyzer`.
        embedding_size: Size D of a token's vector.
        num_filters: Features for each width.
        widths: Lengths of the n-grams that the features see, in tokens.
        dropout: Share of features dropped in training.
        vocabulary_size: Tokens at most with a vector of their own.
        min_count: How often a token must occur for that.
        max_length: Tokens of a text that are read; the rest is not seen.
        num_epochs: Rounds over the texts.
        min_steps: Batches at least: a small set takes more rounds, or nothing would be learnt.
        batch_size: Texts at a time.
        learning_rate: Of Adam, at the beginning.
        seed: Of weights, order of texts and dropout.

    Raises:
        ValueError: If the analyzer is another.
    """

    def __init__(
        self,
        analyzer: Analyzer = "char",
        *,
        embedding_size: int = 64,
        num_filters: int = 64,
        widths: Sequence[int] = (2, 3, 4),
        dropout: float = 0.5,
        vocabulary_size: int = 20_000,
        min_count: int = 2,
        max_length: int = 256,
        num_epochs: int = 6,
        min_steps: int = 500,
        batch_size: int = 64,
        learning_rate: float = 2e-3,
        seed: int = 0,
    ):
        _check_analyzer(analyzer)
        self.analyzer = analyzer
        self.embedding_size = embedding_size
        self.num_filters = num_filters
        self.widths = tuple(widths)
        self.dropout = dropout
        self.vocabulary_size = vocabulary_size
        self.min_count = min_count
        self.max_length = max_length
        self.num_epochs = num_epochs
        self.min_steps = min_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.seed = seed
        self._network: _TextCNN | None = None

    def fit(self, texts: Sequence[str], labels: ArrayLike | Tensor) -> Self:
        """Learns from N texts and their classes (N,), integers; forgets what it knew before.

        Raises:
            TypeError: If texts are not strings.
            ValueError: If there are none, if all are blank, if there is not one label for each,
                or if there is only one class.
        """
        classes, places = _check_training_set(texts, labels)
        counts = Counter(token for text in texts for token in self._tokens(text))
        frequent = [
            token
            for token, count in counts.most_common(self.vocabulary_size)
            if count >= self.min_count
        ]
        self._id_of = {token: place for place, token in enumerate(frequent, start=2)}
        ids, targets = self._ids(texts), torch.from_numpy(places)
        lengths = torch.tensor([len(text) for text in ids])

        # Measuring is often called without gradients, and must not move anybody's random numbers.
        with _one_thread(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            network = _TextCNN(
                len(frequent) + 2,
                len(classes),
                self.embedding_size,
                self.num_filters,
                self.widths,
                self.dropout,
            )
            optimizer = torch.optim.Adam(network.parameters(), self.learning_rate)
            num_batches = math.ceil(len(ids) / self.batch_size)
            num_epochs = max(self.num_epochs, math.ceil(self.min_steps / num_batches))
            num_steps = num_epochs * num_batches
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_steps)
            for _ in range(num_epochs):
                for chosen in self._batches(lengths):
                    batch = pad_sequence([ids[place] for place in chosen], batch_first=True)
                    loss = F.cross_entropy(network(batch), targets[chosen])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        self._network, self._classes = network.eval(), classes
        return self

    def _tokens(self, text: str) -> list[str]:
        tokens = list(text.lower()) if self.analyzer == "char" else re.findall(_WORD, text.lower())
        return tokens[: self.max_length]

    def _ids(self, texts: Sequence[str]) -> list[Tensor]:
        """Numbers of tokens, 1 for those without a vector of their own, and a 0 at the end.

        The 0 lets every width see one place beyond the end, as it does in longer batches, so that
        a text's features are the same whatever it is padded to.
        """
        return [
            torch.tensor([*(self._id_of.get(token, 1) for token in self._tokens(text)), 0])
            for text in texts
        ]

    def _batches(self, lengths: Tensor) -> list[Tensor]:
        """Numbers of texts in random order, of like length within a batch, for little padding."""
        pools = torch.randperm(len(lengths)).split(32 * self.batch_size)
        batches = [
            batch
            for pool in pools
            for batch in pool[lengths[pool].argsort(stable=True)].split(self.batch_size)
        ]
        return [batches[place] for place in torch.randperm(len(batches))]

    @torch.no_grad()
    def predict(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The class of each text: N texts -> (N,).

        Raises:
            RuntimeError: If it has not been fitted.
            TypeError: If texts are not strings.
            ValueError: If there are none.
        """
        if self._network is None:
            raise RuntimeError("this judge knows nothing yet: call fit before predict")
        _check_texts(texts)
        ids = self._ids(texts)
        places = np.empty(len(ids), dtype=np.int64)
        order = torch.tensor([len(text) for text in ids]).argsort(stable=True)
        with _one_thread():
            for chosen in order.split(256):
                batch = pad_sequence([ids[place] for place in chosen], batch_first=True)
                places[chosen.numpy()] = self._network(batch).argmax(dim=1).numpy()
        return self._classes[places]

    def accuracy(self, texts: Sequence[str], labels: ArrayLike | Tensor) -> float:
        """Share of texts that are given the class they should have.

        A class that fit has not seen counts as wrong.

        Raises:
            RuntimeError: If it has not been fitted.
            TypeError: If texts are not strings.
            ValueError: If there are none, or not one label for each.
        """
        predicted = self.predict(texts)
        return float((predicted == _checked_labels(labels, len(texts))).mean())


def _check_tokens(texts: Sequence[Sequence[Hashable]], name: str) -> None:
    # A string is a sequence too, of characters, and a tensor's numbers are never equal as keys:
    # both would give a number, and a wrong one.
    for index, text in enumerate(texts):
        if isinstance(text, str) or not isinstance(text, Sequence):
            raise TypeError(
                f"{name} must be lists of tokens, got {type(text).__name__} at {index}: "
                "split a string, or take list(text) for characters; take tolist() of a tensor"
            )


def _ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def distinct_n(
    texts: Sequence[Sequence[Hashable]],
    n: int,
    *,
    num_ngrams: int | None = None,
    num_draws: int = 10,
    seed: int = 0,
) -> float:
    """Share of different n-grams among all n-grams of all texts (Li et al., 2016).

    PPLM reports it as Dist-1, Dist-2 and Dist-3. N-grams do not reach over the end of a text.
    Source: https://arxiv.org/abs/1510.03055.

    The share falls as texts are added, since new n-grams become rare: sets are comparable only at
    an equal number of n-grams, which `num_ngrams` sets (to what the smallest set has). Then texts
    are put into random order and the first `num_ngrams` n-grams count; the mean over `num_draws`
    orders is returned. Whole texts are drawn, not single n-grams, because a text repeats itself
    more than it repeats others: single n-grams would come from more texts, and flatter the larger
    set. The order is random, not the given one, because sets often are sorted by condition.

    Args:
        texts: Lists of tokens.
        n: Length of an n-gram, in tokens.
        num_ngrams: Number of n-grams that count; None for all.
        num_draws: Number of random orders.
        seed: Of the orders.

    Returns:
        Between 0 (never reached) and 1, if no n-gram occurs twice.

    Raises:
        TypeError: If texts are not lists of tokens.
        ValueError: If there is no n-gram, or fewer than `num_ngrams`.
    """
    _check_tokens(texts, "texts")
    if n < 1 or num_draws < 1:
        raise ValueError(f"n and num_draws must be at least 1, got {n} and {num_draws}")
    ngrams = [_ngrams(text, n) for text in texts]
    total = sum(map(len, ngrams))
    if total == 0:
        raise ValueError(f"there is no text of at least {n} tokens among {len(texts)}")
    if num_ngrams is None:
        num_ngrams, num_draws = total, 1  # all orders are the same
    if not 1 <= num_ngrams <= total:
        raise ValueError(
            f"num_ngrams must be between 1 and the number of n-grams, {total}, got {num_ngrams}"
        )
    generator = np.random.default_rng(seed)
    num_distinct = 0
    for _ in range(num_draws):
        shuffled = chain.from_iterable(ngrams[place] for place in generator.permutation(len(texts)))
        num_distinct += len(set(islice(shuffled, num_ngrams)))
    return num_distinct / (num_draws * num_ngrams)


def _counts(tokens: Sequence[Hashable], max_n: int) -> Counter[tuple[Hashable, ...]]:
    """How often each n-gram occurs, of 1 to `max_n` tokens."""
    return Counter(chain.from_iterable(_ngrams(tokens, n) for n in range(1, max_n + 1)))


def _closest(length: int, lengths: Iterable[int]) -> int:
    """The nearest of some lengths, the shorter of two that are equally near."""
    return min(lengths, key=lambda other: (abs(other - length), other))


def _geometric_mean(
    matches: Sequence[float], totals: Sequence[int], length: int, reference_length: int
) -> float:
    """BLEU of matched and of all n-grams for each n, none zero (Papineni et al., 2002, 2.3)."""
    precisions = [math.log(match / total) for match, total in zip(matches, totals, strict=True)]
    brevity = min(0.0, 1 - reference_length / length)
    return math.exp(brevity + math.fsum(precisions) / len(precisions))


def self_bleu(
    texts: Sequence[Sequence[Hashable]],
    *,
    max_n: int = 4,
    num_candidates: int | None = None,
    seed: int = 0,
) -> float:
    """Mean BLEU of each text against all others: high where texts are alike (Zhu et al., 2018).

    It is Texygen's measure, whose numbers NLTK computes: precisions of n-grams are clipped at the
    largest count in any one other text, their geometric mean has equal weights, and the brevity
    penalty goes by the length of the other text that is closest (the shorter of two).

    Without smoothing, one text without a common 4-gram would score 0 for all its common words.
    This is method 1 of Chen and Cherry, 2014 (https://aclanthology.org/W14-3346): where no n-gram
    of some length matches, the count 0 is replaced by 0.1. As in NLTK, a text that is too short to
    have such n-grams gets 0.1 of 1, so that short copies score below 1, and a text without a
    single common token scores 0, as an empty one does.

    It rises with the number of texts, each of which is one more chance to match: compare sets of
    equally many texts. Texygen takes 500. Texygen: https://arxiv.org/abs/1802.01886.

    Args:
        texts: Lists of tokens.
        max_n: Length of the longest n-grams, in tokens.
        num_candidates: Number of texts, drawn at random, that are scored; each still against all
            others. None for all.
        seed: Of the draw.

    Returns:
        Between 0 and 1; 1 where every text has a copy, and `max_n` tokens or more.

    Raises:
        TypeError: If texts are not lists of tokens.
        ValueError: If there are fewer than two texts, or fewer than `num_candidates`.
    """
    _check_tokens(texts, "texts")
    if max_n < 1:
        raise ValueError(f"max_n must be at least 1, got {max_n}")
    if len(texts) < 2:
        raise ValueError(f"self-BLEU compares at least 2 texts, got {len(texts)}")
    if num_candidates is not None and not 1 <= num_candidates <= len(texts):
        raise ValueError(
            f"num_candidates must be between 1 and the number of texts, {len(texts)}, "
            f"got {num_candidates}"
        )
    counts = [_counts(text, max_n) for text in texts]
    # The largest count of each n-gram, the text that has it, and the largest of all other texts:
    # what is left when one text is left out is known without a look at the others.
    limits: dict[tuple[Hashable, ...], tuple[int, int, int]] = {}
    for index, counter in enumerate(counts):
        for ngram, count in counter.items():
            first, owner, second = limits.get(ngram, (0, -1, 0))
            if count > first:
                limits[ngram] = (count, index, first)
            elif count > second:
                limits[ngram] = (first, owner, count)
    num_of_length = Counter(map(len, texts))

    candidates = np.arange(len(texts))
    if num_candidates is not None:
        candidates = np.random.default_rng(seed).choice(candidates, num_candidates, replace=False)
    scores = []
    for index in candidates.tolist():
        matches, totals = [0] * max_n, [0] * max_n
        for ngram, count in counts[index].items():
            first, owner, second = limits[ngram]
            matches[len(ngram) - 1] += min(count, second if owner == index else first)
            totals[len(ngram) - 1] += count
        length = len(texts[index])
        others = (other for other, num in num_of_length.items() if num > (other == length))
        if matches[0] == 0:
            scores.append(0.0)
            continue
        smoothed = [match or 0.1 for match in matches]
        denominators = [max(total, 1) for total in totals]
        scores.append(_geometric_mean(smoothed, denominators, length, _closest(length, others)))
    return math.fsum(scores) / len(scores)


# torchmetrics' bleu_score takes strings that it cuts at blanks, lets the order of references decide
# between two that are equally near, and counts in float32; and self_bleu needs these parts anyway.
def bleu(
    candidates: Sequence[Sequence[Hashable]],
    references: Sequence[Sequence[Sequence[Hashable]]],
    *,
    max_n: int = 4,
) -> float:
    """BLEU of a corpus, between 0 and 1 (Papineni et al., 2002, https://aclanthology.org/P02-1040).

    Matches and n-grams are summed over the corpus before they are divided, so this is no mean over
    texts. Nothing is smoothed: the number is 0 if there is no match of `max_n` tokens at all, as
    for a corpus of shorter texts. The penalty goes by the length of the closest reference of each
    candidate, the shorter of two. Where no candidate is shorter than `max_n`, NLTK's corpus_bleu is
    the same; to shorter ones it gives one n-gram that they do not have. SacreBLEU without smoothing
    is the same times 100.

    Args:
        candidates: Lists of tokens.
        references: For each candidate, the list of its references, which are lists of tokens.
        max_n: Length of the longest n-grams, in tokens.

    Raises:
        TypeError: If candidates or references are not lists of tokens.
        ValueError: If there are no candidates, or not a list of at least one reference for each.
    """
    _check_pairs(candidates, references)
    _check_tokens(candidates, "candidates")
    if max_n < 1:
        raise ValueError(f"max_n must be at least 1, got {max_n}")
    matches, totals = [0] * max_n, [0] * max_n
    length = reference_length = 0
    for index, (candidate, targets) in enumerate(zip(candidates, references, strict=True)):
        _check_tokens(targets, f"references of candidate {index}")
        if len(targets) == 0:
            raise ValueError(f"candidate {index} has no references")
        limits: Counter[tuple[Hashable, ...]] = Counter()
        for target in targets:
            limits |= _counts(target, max_n)
        for ngram, count in _counts(candidate, max_n).items():
            matches[len(ngram) - 1] += min(count, limits[ngram])
            totals[len(ngram) - 1] += count
        length += len(candidate)
        reference_length += _closest(len(candidate), map(len, targets))
    return _geometric_mean(matches, totals, length, reference_length) if all(matches) else 0.0


def _check_pairs(candidates: Sequence[Any], references: Sequence[Any]) -> None:
    if len(candidates) == 0:
        raise ValueError("candidates must not be empty")
    if len(references) != len(candidates):
        raise ValueError(
            f"references must be one for each candidate, got {len(references)} "
            f"for {len(candidates)}"
        )


def rouge(
    candidates: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Hashable]]
) -> dict[str, float]:
    """ROUGE of candidates, one reference each (Lin, 2004, https://aclanthology.org/W04-1013).

    F1 of common n-grams, or of the longest common subsequence, in each pair; then the mean over
    pairs. A pair where one has no such n-gram counts as 0. Tokens are compared as they are: no
    stemming, no lower case. Time grows with the square of a text's length.

    Args:
        candidates: Lists of tokens.
        references: Lists of tokens, one for each candidate.

    Returns:
        "rouge1" and "rouge2", of n-grams, and "rougeL", of the longest common subsequence; between
        0 and 1, in float32.

    Raises:
        TypeError: If candidates or references are not lists of tokens.
        ValueError: If there are no candidates, or not one reference for each.
    """
    _check_pairs(candidates, references)
    _check_tokens(candidates, "candidates")
    _check_tokens(references, "references")
    # torchmetrics drops what is neither a Latin letter nor a digit, all of a Chinese text, and cuts
    # at blanks; so each different token becomes a number, which it leaves alone.
    number_of = {
        token: str(place) for place, token in enumerate(set(chain(*candidates, *references)))
    }

    def spelt(texts: Sequence[Sequence[Hashable]]) -> list[str]:
        return [" ".join(number_of[token] for token in text) for text in texts]

    keys = ("rouge1", "rouge2", "rougeL")
    scores = rouge_score(spelt(candidates), spelt(references), rouge_keys=keys)
    return {key: float(scores[f"{key}_fmeasure"]) for key in keys}
