"""How fast and how small spherical embeddings are, beside jose.c and gensim: `make bench`.

jose.c is the program of the paper's authors (github.com/yumeng5/Spherical-Text-Embedding). It is no
part of this project: build it by its own makefile and name it in the environment variable JOSE_C,
and the ratio is measured; without it that test is skipped. Texts are drawn here, as frequent as
words are in language.
"""

import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from genzoo.jose import JoseConfig
from genzoo.jose.training import train_jose

SETTINGS = {"num_negatives": 2, "margin": 0.15, "variant": "reference"}
# Words, documents, vocabulary: a tenth of 20 Newsgroups, and a third with the words of all.
CORPORA = {"small": (800_000, 2_000, 10_000), "large": (2_000_000, 6_000, 40_000)}
NUM_EPOCHS = 3


def write_corpus(path: Path, size: str) -> int:
    """Documents of words by Zipf's law; the number of words."""
    num_words, num_documents, vocabulary = CORPORA[size]
    source = np.random.default_rng(0)
    share = 1 / np.arange(1, vocabulary + 1)
    words = source.choice(vocabulary, num_words, p=share / share.sum())
    with path.open("w") as file:
        for row in np.array_split(words, num_documents):
            file.write(" ".join(f"w{word}" for word in row) + "\n")
    return num_words


def report(what: str, value: str) -> None:
    sys.stdout.write(f"\njose: {what}: {value}")


def our_speed(path: Path, num_words: int, window_size: int, num_threads: int) -> float:
    """Words per CPU second, all that a call costs together: reading, counting, training."""
    start = time.process_time()
    train_jose(
        path,
        JoseConfig(window_size=window_size, **SETTINGS),
        num_epochs=NUM_EPOCHS,
        num_threads=num_threads,
        show_progress=False,
    )
    return NUM_EPOCHS * num_words / (time.process_time() - start)


def their_speed(program: str, path: Path, window_size: int) -> float:
    """What jose.c says itself of its training, without its reading of the vocabulary."""
    command = [program, "-train", path.name, "-window", str(window_size), "-iter", str(NUM_EPOCHS)]
    command += ["-threads", "1", "-word-output", "w.txt", "-doc-output", "d.txt"]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=True)
    return 1000 * float(re.findall(r"Words/thread/sec: ([\d.]+)k", done.stdout)[-1])


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """The kernels, compiled before anything is timed."""
    train_jose(["a b c d e"] * 50, JoseConfig(**SETTINGS), num_epochs=1, show_progress=False)


@pytest.mark.parametrize(("size", "window_size"), [("small", 5), ("large", 10)])
def test_four_times_the_speed_of_the_reference(size, window_size, tmp_path):
    program = os.environ.get("JOSE_C") and os.path.abspath(os.environ["JOSE_C"])
    path = tmp_path / "corpus.txt"
    num_words = write_corpus(path, size)
    ours = {threads: our_speed(path, num_words, window_size, threads) for threads in (1, 2)}
    setting = f"{num_words:,} words, window {window_size}"
    for threads, speed in ours.items():
        report(f"words per CPU second, {setting}, {threads} threads", f"{speed:,.0f}")
    if program is None:
        pytest.skip("JOSE_C does not name the reference program")
    theirs = their_speed(program, path, window_size)
    report(f"the reference program, {setting}", f"{theirs:,.0f}, ratio {ours[1] / theirs:.2f}")
    assert ours[1] > 4 * theirs


def test_faster_than_doc2vec(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        doc2vec = pytest.importorskip("gensim.models.doc2vec")
    path = tmp_path / "corpus.txt"
    num_words = write_corpus(path, "small")
    texts = [line.split() for line in path.read_text().splitlines()]
    tagged = [doc2vec.TaggedDocument(text, [index]) for index, text in enumerate(texts)]
    start = time.process_time()
    doc2vec.Doc2Vec(
        tagged,
        dm=0,
        dbow_words=1,
        vector_size=100,
        window=10,
        negative=2,
        min_count=5,
        sample=1e-3,
        epochs=NUM_EPOCHS,
        workers=1,
    )
    theirs = NUM_EPOCHS * num_words / (time.process_time() - start)
    ours = our_speed(path, num_words, 10, 1)
    report("words per CPU second, window 10, beside gensim's Doc2Vec", f"{ours:,.0f}")
    report("gensim's Doc2Vec (PV-DBOW with words, 2 negatives)", f"{theirs:,.0f}")
    assert ours > theirs


def test_memory(tmp_path):
    """Growth beyond the tables, for a corpus and for one ten times as long."""
    program = (
        "import sys; from genzoo.jose.training import *\n"
        "def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "before = peak()\n"
        "model, _ = train_jose(sys.argv[1], num_epochs=1, show_progress=False)\n"
        "tables = sum(p.numel() * 4 for p in model.parameters())\n"
        "sys.stdout.write(str((peak() - before) / 1024 - tables / 2**20))"
    )
    for size in CORPORA:
        path = tmp_path / size
        write_corpus(path, size)
        command = [sys.executable, "-c", program, str(path)]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        report(f"memory beyond the tables, {size} corpus", f"{float(done.stdout):.0f} MiB")
        assert float(done.stdout) < 200
