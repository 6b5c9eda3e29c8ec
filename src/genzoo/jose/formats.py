"""Foreign files: vectors as word2vec's program writes them, which everyone reads.

Both formats begin with a line "V D", the numbers of words and of dimensions. In the text format a
line is a word and D numbers; in the binary one a word and a space are followed by D numbers of four
bytes, little endian (https://code.google.com/archive/p/word2vec).

What is read comes to the sphere: vectors of other programs have any length, and here only their
direction counts.
"""

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

logger = logging.get_logger(__name__)

_SPACES = " \t\r\n"
_NUMERALS = b"0123456789+-.eEnaifNAIF \t\r"  # nan and inf are numbers too: bad ones


def read_word2vec(
    path: str | os.PathLike, *, binary: bool | None = None
) -> tuple[list[str], NDArray[np.float32]]:
    """Reads a file of vectors, and brings them to length 1.

    Of a word that is there several times, the first vector counts; letters that are not UTF-8
    become U+FFFD. Both are counted in a warning. A file is read as it comes: nothing but its
    vectors is in memory at a time.

    Args:
        path: Text or binary.
        binary: Which of them; None to find out.

    Returns:
        The words, in the order of the file, and their vectors, (V, D).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else, more or less than its first line says, NaN or
            infinity, or a vector of zeros, which has no direction; the message names the place.
    """
    path = Path(path)
    with path.open("rb") as file:
        header = file.readline(200)
        fields = header.split()
        if len(fields) != 2 or not all(field.isdigit() and int(field) > 0 for field in fields):
            raise ValueError(
                f"{path} is no word2vec file: its first line must be two numbers, of words and of "
                f"dimensions, and is {header[:40]!r}"
            )
        num_words, size = map(int, fields)
        if binary is None:
            binary = not _is_text(file.read(4096))
            file.seek(len(header))
        # A first line that promises too much asks for no memory: in text a number takes two bytes.
        num_rows = path.stat().st_size // ((4 if binary else 2) * size)
        rows = np.empty((min(num_words, num_rows), size), np.float32)
        read = _read_binary if binary else _read_text
        words = list(read(file, path, num_words, rows))

    num_damaged = 0
    decoded = []
    for word in words:
        try:
            decoded.append(word.decode())
        except UnicodeDecodeError:
            num_damaged += 1
            decoded.append(word.decode(errors="replace"))
    if num_damaged:
        logger.warning(f"{path}: {num_damaged} words are not UTF-8; what is not was replaced")

    to_sphere(rows, decoded, str(path), out=rows)
    first = {word: row for row, word in reversed([*enumerate(decoded)])}
    if len(first) < num_words:
        logger.warning(
            f"{path}: {num_words - len(first)} lines repeat a word; the first of each was kept"
        )
        kept = sorted(first.values())
        decoded, rows = [decoded[row] for row in kept], rows[kept]
    return decoded, rows


def _is_text(start: bytes) -> bool:
    """Whether what follows the header is text: a word and, up to the line's end, only numbers."""
    values = start.partition(b"\n")[0].partition(b" " if b" " in start else b"\t")[2]
    return bool(values.strip()) and not values.translate(None, _NUMERALS)


def _read_text(
    file: BinaryIO, path: Path, num_words: int, rows: NDArray[np.float32]
) -> Iterator[bytes]:
    """The words of the lines that follow; fills `rows`."""
    size = rows.shape[1]
    num_read = 0
    for number, line in enumerate(file, start=2):
        # Only these are spaces to the word2vec program, which writes one more at the line's end.
        word, *values = line.rstrip(_SPACES.encode()).replace(b"\t", b" ").split(b" ")
        if not word and not values:
            continue
        if num_read == num_words:
            raise ValueError(
                f"{path}, line {number}: there are more vectors than the {num_words} that the "
                "first line promises"
            )
        if len(values) != size or not word:
            raise ValueError(
                f"{path}, line {number}: a line must be a word and {size} numbers, and this one "
                f"has {len(values)} values behind {word[:40].decode(errors='replace')!r}"
            )
        try:
            with np.errstate(over="ignore"):  # what float32 cannot hold is found as infinity
                rows[num_read] = np.array(values, np.float32)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: behind {word[:40].decode(errors='replace')!r} stand other "
                "things than numbers"
            ) from error
        yield word
        num_read += 1
    if num_read < num_words:
        raise ValueError(f"{path} has {num_read} vectors, and its first line promises {num_words}")


def _read_binary(
    file: BinaryIO, path: Path, num_words: int, rows: NDArray[np.float32]
) -> Iterator[bytes]:
    """The words that follow the header; fills `rows`."""
    size = rows.shape[1]
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position = file.tell()
        for number in range(num_words):
            space = content.find(b" ", position)
            end = space + 1 + 4 * size
            if space < 0 or end > len(content):
                raise ValueError(
                    f"{path} ends within word {number + 1} of the {num_words} that its first line "
                    "promises (binary)"
                )
            # Some programs end a vector with a new line, and some do not.
            word = content[position:space].lstrip(b"\n")
            if not word:
                raise ValueError(f"{path}: word {number + 1} is empty (binary)")
            rows[number] = np.frombuffer(content[space + 1 : end], "<f4")
            yield word
            position = end
        if content[position:].strip():
            raise ValueError(
                f"{path} goes on behind the {num_words} vectors that its first line promises "
                "(binary)"
            )


def to_sphere(
    rows: NDArray[np.float32],
    words: Sequence[str | int],
    source: str,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Rows brought to length 1.

    Rows that have it already stay as they are to the last bit, so that nothing changes on the way
    through several files.

    Args:
        rows: (V, D).
        words: (V,), how to call them in messages.
        source: Where they are from, in messages too.
        out: Where to put the result, such as `rows`; None for a new array, or for `rows` itself
            where nothing has to change.

    Raises:
        ValueError: If a row holds NaN or infinity, or is zero.
    """
    lengths = np.sqrt(np.einsum("vd,vd->v", rows, rows, dtype=np.float64))  # (V, D) -> (V,)
    for is_bad, what in ((~np.isfinite(lengths), "NaN or infinity"), (lengths == 0, "only zeros")):
        if is_bad.any():
            row = int(is_bad.argmax())
            raise ValueError(
                f"{source}: vector {row + 1}, of {words[row]!r}, holds {what} "
                f"({int(is_bad.sum())} of {len(rows)} do)"
            )
    is_off = np.abs(lengths - 1) > 1e-6
    if out is None:
        if not is_off.any():
            return rows
        out = np.empty_like(rows)
    scale = np.where(is_off, lengths, 1)  # (V,)
    return np.divide(rows, scale[:, None], out=out, casting="same_kind")


def write_word2vec(
    path: str | os.PathLike,
    words: Sequence[str | int],
    rows: NDArray[np.float32],
    *,
    binary: bool = False,
) -> None:
    """Writes a file of vectors, whole or not at all.

    Text has nine digits, and so float32 comes back as it was to the last bit.

    Args:
        path: The file.
        words: (V,); documents have their row numbers for words.
        rows: (V, D).
        binary: Whether to write the binary format.

    Raises:
        ValueError: If a word is empty or has a space in it, which ends a word in both formats.
    """
    for word in words:
        if isinstance(word, str) and (not word or any(space in word for space in _SPACES)):
            raise ValueError(f"the word {word!r} has no place in a word2vec file, spaces end words")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    numbers = " %.9g" * rows.shape[1] + "\n"
    try:
        with partial.open("wb") as file:
            file.write(b"%d %d\n" % rows.shape)
            for word, row in zip(words, rows, strict=True):
                if binary:
                    file.write(f"{word} ".encode() + row.astype("<f4").tobytes() + b"\n")
                else:
                    file.write((str(word) + numbers % tuple(row.tolist())).encode())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
