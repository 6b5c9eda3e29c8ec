"""A corpus of any length, as numbers on the disk: read once to count, once to number, then fast."""

import os
import re
import tempfile
import weakref
import zlib
from array import array
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from .tokenization import UNKNOWN

logger = logging.get_logger(__name__)

MAX_COUNTED = 500_000
"""Different words that are counted at a time; beyond, the rarest are forgotten. About 100 MB."""

_PIECE = 1 << 18  # characters of a text that are split at a time
_BUFFER = 1 << 20  # words that are written at a time


class Texts:
    """A corpus that can be read again and again, one string for each document.

    What could not be read as it is gets counted (see `warn`).

    Args:
        corpus: A path or several (lines are documents), strings, or a data set of `datasets`, in
            memory or streaming. What can be read only once, such as a generator, is kept in a
            temporary file.
        text_column: The column of a data set.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the corpus is none of these.
    """

    def __init__(self, corpus: Any, text_column: str = "text"):
        self.num_damaged = 0
        self._open: Callable[[], Iterator[Any]]
        self._spool: Any = None
        if isinstance(corpus, str | Path):
            corpus = [Path(corpus)]
        if isinstance(corpus, Mapping):
            raise ValueError(
                f"the corpus is a {type(corpus).__name__} of {', '.join(map(str, corpus))}: pass "
                "one of its parts"
            )
        if hasattr(corpus, "columns"):
            raise ValueError('the corpus is a table: pass a column of it, such as table["text"]')
        if hasattr(corpus, "column_names"):  # a data set, in memory or streaming
            names = corpus.column_names
            if names is not None and text_column not in names:
                raise ValueError(f"the data set has no column {text_column!r}, only {names}")
            self._open = lambda: _column(corpus, text_column)
        elif isinstance(corpus, list | tuple) and corpus and isinstance(corpus[0], Path):
            for path in corpus:
                if not os.path.isfile(path):  # False, too, for a text that is no name of a file
                    raise FileNotFoundError(f"there is no corpus {str(path)!r:.200}")
            self._open = lambda: (line for path in corpus for line in _lines(Path(path)))
        elif isinstance(corpus, Iterator):
            self._spool = _temporary_file(self)
            self._open = lambda: self._spooled(corpus)
        elif isinstance(corpus, Iterable):
            self._open = lambda: iter(corpus)
        else:
            raise ValueError(f"a corpus is a path, strings or a data set, not {corpus!r:.50}")

    def __iter__(self) -> Iterator[str]:
        self.num_damaged = 0
        for number, text in enumerate(self._open()):
            if isinstance(text, bytes):
                try:
                    text = text.decode()
                except UnicodeDecodeError:
                    self.num_damaged += 1
                    text = text.decode(errors="replace")
            elif isinstance(text, str):
                try:
                    text.encode()
                except UnicodeEncodeError:  # half of a pair of surrogates
                    self.num_damaged += 1
                    text = text.encode(errors="surrogatepass").decode(errors="replace")
            else:
                raise ValueError(f"document {number} is a {type(text).__name__}, not a string")
            yield text

    def warn(self) -> None:
        """Says how many documents were not what they should be, if there were any."""
        if self.num_damaged:
            logger.warning(
                f"{self.num_damaged} documents were not valid UTF-8: what could not be read was "
                "replaced"
            )

    def _spooled(self, source: Iterator[Any]) -> Iterator[Any]:
        self._spool.seek(0)
        yield from (line.removesuffix(b"\n") for line in self._spool)
        for text in source:  # none, from the second time on
            if isinstance(text, str):
                text = text.encode(errors="surrogatepass")
            if isinstance(text, bytes):
                text = text.replace(b"\n", b" ")
                self._spool.write(text + b"\n")
            yield text  # what the second time will give


def _column(dataset: Any, name: str) -> Iterator[Any]:
    for batch in dataset.iter(1000):
        if name not in batch:  # a stream may not know its columns before it is read
            raise ValueError(f"the data set has no column {name!r}, only {[*batch]}")
        yield from batch[name]


def _temporary_file(owner: object) -> Any:
    """A nameless file that is closed when its owner goes."""
    file = tempfile.TemporaryFile("w+b")
    weakref.finalize(owner, file.close)
    return file


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        if file.read(len(BOM_UTF8)) != BOM_UTF8:  # a mark of the encoding is no part of a word
            file.seek(0)
        yield from (line.removesuffix(b"\n") for line in file)


class Splitter:
    """Cuts a text into words, as the tokenizer of `build_tokenizer` does, at Python's speed.

    Args:
        lowercase: As in `build_tokenizer`.
        word_pattern: As there.
    """

    def __init__(self, lowercase: bool = False, word_pattern: str | None = None):
        self.lowercase = lowercase
        self._find: Callable[[str], list[str]] = str.split
        if word_pattern is not None:
            try:
                pattern = re.compile(word_pattern)
            except re.error as error:
                raise ValueError(f"word_pattern {word_pattern!r} is wrong: {error}") from error
            if pattern.groups:
                raise ValueError(f"word_pattern has groups, write (?:...) for them: {word_pattern}")
            if pattern.search("") is not None:
                raise ValueError(f"word_pattern must not match nothing: {word_pattern}")
            self._find = lambda text: list(filter(None, pattern.findall(text)))

    def __call__(self, text: str) -> Iterator[list[str]]:
        """The words of a text, in lists; a long text is not split at once."""
        start = 0
        while start < len(text):
            end = start + _PIECE
            while end < len(text) and not text[end].isspace():
                end += 1
            piece = text[start:end] if start or end < len(text) else text
            if self.lowercase:
                # A capital sigma at the end of a word has a form of its own in Python alone.
                piece = piece.replace("\u03a3", "\u03c3").lower()
            yield self._find(piece)
            start = end


def num_cores() -> int:
    """Processors that this process may use, shared with those started together with it."""
    usable = getattr(os, "sched_getaffinity", None)
    number = len(usable(0)) if usable else os.cpu_count() or 1
    return max(1, number // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def count_words(
    texts: Iterable[str], split: Splitter, max_counted: int = MAX_COUNTED
) -> Counter[str]:
    """How often each word occurs.

    Memory is bounded: when more than `max_counted` different words are there, the rarest are
    forgotten, and begin anew at zero when they come again (as in word2vec); a warning says so.
    """
    counts: Counter[str] = Counter()
    threshold = 0
    for text in texts:
        for words in split(text):
            counts.update(words)
            if len(counts) > max_counted:
                while len(counts) > max_counted // 2:
                    threshold += 1
                    for word in [word for word, count in counts.items() if count <= threshold]:
                        del counts[word]
                counts = Counter(dict(counts))  # a dict does not shrink
    if threshold:
        logger.warning(
            f"the corpus has more than {max_counted:,} different words: those that had occurred up "
            f"to {threshold} times when memory was full were forgotten"
        )
    del counts[UNKNOWN]  # a text that has been through a tokenizer may have it
    return counts


class Corpus:
    """A corpus as word numbers in a temporary file; unknown words are left out.

    Args:
        texts: One string for each document.
        split: How a text becomes words.
        vocabulary: Word -> number.

    Attributes:
        starts: int64, (N + 1,), where each document begins, and the end.
        checksum: Of words and documents: another corpus has another one.
    """

    def __init__(self, texts: Iterable[str], split: Splitter, vocabulary: Mapping[str, int]):
        self._file = _temporary_file(self)
        starts, buffer, total = array("q", [0]), array("i"), 0
        self.checksum = zlib.crc32("\0".join(vocabulary).encode())
        for text in texts:
            for words in split(text):
                buffer.extend(vocabulary[word] for word in words if word in vocabulary)
                if len(buffer) > _BUFFER:
                    total += len(buffer)
                    buffer.tofile(self._file)
                    self.checksum = zlib.crc32(buffer, self.checksum)
                    buffer = array("i")
            starts.append(total + len(buffer))
        buffer.tofile(self._file)
        self._file.flush()
        self.checksum = zlib.crc32(starts, zlib.crc32(buffer, self.checksum))
        self.starts = np.frombuffer(starts, np.int64)

    def __len__(self) -> int:
        """Documents N."""
        return len(self.starts) - 1

    @property
    def num_words(self) -> int:
        """Known words."""
        return int(self.starts[-1])

    def blocks(self, size: int = 1 << 14) -> np.ndarray:
        """Shares out the words into blocks of about `size`, if possible between documents.

        Returns:
            int64, (B, 2), first word and end of each.
        """
        wanted = np.arange(0, self.num_words + size, size).clip(max=self.num_words)
        near = self.starts[np.searchsorted(self.starts, wanted)]
        # A document as long as half a block is cut itself.
        places = np.unique(np.where(near - wanted < size // 2, near, wanted))
        return np.stack([places[:-1], places[1:]], axis=1)

    def warn(self) -> None:
        """Says how many documents have no known words, if there are any."""
        if number := int((np.diff(self.starts) == 0).sum()):
            logger.warning(
                f"{number} of {len(self)} documents have no known words: their vectors stay random"
            )

    def gather(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reads blocks of the corpus, in this order.

        Returns:
            What `train_piece` wants: tokens, starts and document numbers.
        """
        tokens, lengths, ids = [], [np.zeros(1, np.int64)], []
        for first, last in blocks.tolist():
            data = os.pread(self._file.fileno(), 4 * (last - first), 4 * first)
            low = int(np.searchsorted(self.starts, first, side="right")) - 1
            high = int(np.searchsorted(self.starts, last, side="left"))
            tokens.append(np.frombuffer(data, np.int32))
            lengths.append(np.diff(self.starts[low : high + 1].clip(first, last)))
            ids.append(np.arange(low, high))
        empty = np.zeros(0, np.int64)
        return (
            np.concatenate([empty.astype(np.int32), *tokens]),
            np.cumsum(np.concatenate(lengths)),
            np.concatenate([empty, *ids]),
        )


def keep_probabilities(counts: np.ndarray, threshold: float) -> np.ndarray:
    """The chance of each word to survive sub-sampling, (V,), as word2vec's program has it.

        sqrt(t / f) + t / f, at most 1

    Args:
        counts: (V,), how often each word occurs.
        threshold: t, a share of all words; 0 keeps everything.
    """
    if not threshold:
        return np.ones(len(counts), np.float32)
    share = threshold * counts.sum() / np.maximum(counts, 1)
    return np.minimum(1, np.sqrt(share) + share).astype(np.float32)


def alias_table(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The alias method (Walker, 1977): draws from any distribution with one comparison.

    Column i is drawn uniformly; it gives i with probability `thresholds[i]`, else `aliases[i]`.

    Args:
        weights: (V,), not negative, not all zero.

    Returns:
        Thresholds, float32, and aliases, int32, (V,) each.
    """
    share = np.asarray(weights, np.float64) * (len(weights) / np.sum(weights))
    thresholds, aliases = np.ones(len(share), np.float32), np.arange(len(share), dtype=np.int32)
    small = [int(i) for i in np.flatnonzero(share < 1)]
    large = [int(i) for i in np.flatnonzero(share >= 1)]
    while small and large:
        low, high = small.pop(), large[-1]
        thresholds[low], aliases[low] = share[low], high
        share[high] -= 1 - share[low]
        if share[high] < 1:
            small.append(large.pop())
    return thresholds, aliases  # what is left over weighs 1, but for rounding
