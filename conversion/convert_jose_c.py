"""Vectors of the JoSE authors' program (https://github.com/yumeng5/Spherical-Text-Embedding).

What its options -word-output, -context-output and -doc-output wrote becomes a checkpoint:

    python conversion/convert_jose_c.py --words w.txt --contexts v.txt --documents d.txt FOLDER

And back, into PREFIX_w.txt and PREFIX_v.txt, which its option -load-emb PREFIX reads, and
PREFIX_d.txt for the documents, which it does not read:

    python conversion/convert_jose_c.py --to-c FOLDER PREFIX

Its word 0 is </s>, the end of a line, which it neither trains nor draws. It is no word here and
becomes nothing; on the way back it stays away, and the program draws its vector anew.
"""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genzoo.jose import JoseVectors
from genzoo.jose.formats import read_word2vec, write_word2vec

logger = logging.getLogger("genzoo.conversion")

END_OF_LINE = "</s>"
MAX_BYTES = 98
"""The longest word that the program knows; longer ones it cuts."""

TABLES = {
    "words": "word_embeddings.weight",
    "contexts": "context_embeddings.weight",
    "documents": "document_embeddings.weight",
}
"""Its files, and what they are in a JoseModel."""


def from_c(
    words: str | Path,
    contexts: str | Path | None = None,
    documents: str | Path | None = None,
    vocabulary: str | Path | None = None,
) -> JoseVectors:
    """Reads what the program wrote.

    Args:
        words: The file of -word-output.
        contexts: That of -context-output; without it the model can be used, but not trained on.
        documents: That of -doc-output.
        vocabulary: That of -save-vocab, the counts of the words, by which `infer` draws.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file is something else, or they are not of one run.
    """
    names, rows = _without_end_of_line(*read_word2vec(words, binary=False))
    tables: dict[str, NDArray[np.float32]] = {}
    if contexts is not None:
        names_there, tables["context_vectors"] = _without_end_of_line(
            *read_word2vec(contexts, binary=False)
        )
        if names_there != names:
            raise ValueError(f"{contexts} has other words, or another order, than {words}")
    if documents is not None:
        keys, tables["document_vectors"] = read_word2vec(documents, binary=False)
        if keys != [str(row) for row in range(len(keys))]:
            raise ValueError(f"{documents} must number its documents 0, 1, 2, ...")
    for name, path in (("context_vectors", contexts), ("document_vectors", documents)):
        if name in tables and tables[name].shape[1] != rows.shape[1]:
            raise ValueError(
                f"{path} has vectors of {tables[name].shape[1]} numbers, {words} of {rows.shape[1]}"
            )
    counts = None if vocabulary is None else _read_counts(Path(vocabulary), names)
    vectors = JoseVectors.from_arrays(names, rows, **tables, counts=counts)
    expected = {
        TABLES[name]
        for name, path in (("words", words), ("contexts", contexts), ("documents", documents))
        if path is not None
    }
    assert vectors.model.state_dict().keys() == expected | {"word_counts"}
    return vectors


def to_c(folder: str | Path, prefix: str | Path) -> list[Path]:
    """Writes files that -load-emb reads.

    Args:
        folder: A checkpoint.
        prefix: How the files' names begin. The program wants no more than 93 bytes.

    Returns:
        The files: words, contexts and documents, as far as the model has them.

    Raises:
        ValueError: If a word has a space in it.
        OSError: If the checkpoint cannot be read, or the files cannot be written.
    """
    vectors = JoseVectors.from_pretrained(folder)
    kept = [row for row, word in enumerate(vectors.words) if len(word.encode()) <= MAX_BYTES]
    if len(kept) < len(vectors):
        logger.warning(
            f"{len(vectors) - len(kept)} words were left out: they have more than {MAX_BYTES} "
            "bytes, with which the program cannot cope"
        )
    names = [vectors.words[row] for row in kept]
    files: list[tuple[Path, Sequence[str | int], NDArray[np.float32]]] = [
        (Path(f"{prefix}_w.txt"), names, vectors[names])
    ]
    if vectors.model.context_embeddings is not None:
        rows = vectors.model.context_embeddings.weight.detach().numpy()
        files.append((Path(f"{prefix}_v.txt"), names, rows[np.array(kept) + 1]))
    if vectors.documents is not None:
        ids = range(len(vectors.documents))
        files.append((Path(f"{prefix}_d.txt"), ids, vectors.documents))
    for path, keys, rows in files:
        write_word2vec(path, keys, rows)
        # Behind a last new line the program would read the last word once more, without a vector.
        os.truncate(path, path.stat().st_size - 1)
    return [path for path, _, _ in files]


def _without_end_of_line(
    words: list[str], rows: NDArray[np.float32]
) -> tuple[list[str], NDArray[np.float32]]:
    kept = [row for row, word in enumerate(words) if word != END_OF_LINE]
    return [words[row] for row in kept], rows[kept]


def _read_counts(path: Path, words: list[str]) -> list[int]:
    counts = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            word, _, count = line.rstrip(b"\n").rpartition(b" ")
            if not count.isdigit():
                raise ValueError(f"{path}, line {number}: a line must be a word and its count")
            counts.setdefault(word.decode(errors="replace"), int(count))
    missing = [word for word in words if word not in counts]
    if missing:
        raise ValueError(f"{path} does not know {len(missing)} words, such as {missing[0]!r}")
    return [counts[word] for word in words]


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--to-c", action="store_true", help="from a checkpoint to the program")
    parser.add_argument("--words", help="file of -word-output")
    parser.add_argument("--contexts", help="file of -context-output")
    parser.add_argument("--documents", help="file of -doc-output")
    parser.add_argument("--vocabulary", help="file of -save-vocab")
    parser.add_argument("folder", help="the checkpoint")
    parser.add_argument("prefix", nargs="?", help="with --to-c, how the files' names begin")
    options = parser.parse_args(arguments)
    files = (options.words, options.contexts, options.documents, options.vocabulary)
    if options.to_c != bool(options.prefix) or options.to_c != (not options.words):
        parser.error("it takes either --words FILE ... FOLDER, or --to-c FOLDER PREFIX")
    if options.to_c and any(files):
        parser.error("--to-c takes a checkpoint and a prefix, and no files")
    try:
        if options.to_c:
            to_c(options.folder, options.prefix)
        else:
            from_c(*files).save_pretrained(options.folder)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
