"""What one does with words and documents on a sphere.

Neighbors and analogies behind the names that gensim's users know, vectors of new documents, and
the way to other programs and back.
"""

import difflib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from .corpus import Texts, alias_table, keep_probabilities, num_cores
from .formats import read_word2vec, to_sphere, write_word2vec
from .kernels import FACTORS, infer_piece
from .modeling_jose import JoseConfig, JoseModel
from .tokenization import UNKNOWN, build_tokenizer

logger = logging.get_logger(__name__)

Rows = NDArray[np.float32]
Key = str | int | np.integer | NDArray[Any] | Tensor
"""A word, a document, or a vector (D,)."""
Keys = Key | Sequence[Key | tuple[Key, float]] | NDArray[Any]
"""One of them, or several, each alone or with a weight."""
Among = Literal["words", "documents", "both"]

_CHUNK = 4096  # texts whose vectors are inferred at a time


class UnknownWordError(KeyError):
    """A word has no vector; the message names the closest that have one."""

    def __init__(self, word: str, known: Sequence[str] = ()):
        super().__init__(word)
        self.known = known

    def __str__(self) -> str:
        # Looked for when somebody reads it: among a million words, it takes seconds.
        near = difflib.get_close_matches(self.args[0], self.known, n=3)
        close = f"; close to it are {', '.join(map(repr, near))}" if near else ""
        return f"there is no word {self.args[0]!r}{close}"


class JoseVectors:
    """Words and documents as points of one sphere.

        vectors = JoseVectors.from_pretrained("folder")
        vectors.most_similar("coffee", topn=5)
        vectors.analogy("man", "king", "woman")
        vectors.most_similar("coffee", among="documents")
        vectors.most_similar(vectors.infer(["a text that nobody has seen"])[0])

    A *key* is a word, a document as it comes out (its id if documents have ids, else its row), or
    a vector (D,) of any length, of which the direction counts. All vectors that come out have
    length 1. The unknown word, which is word 0 of the model, is none of the words here.

    The tables are looked at once: make another of these when the model has been trained on.

    Args:
        model: Its words, and documents if it has any.
        tokenizer: Cuts texts into the words of the model (see `build_tokenizer`).
        document_ids: (N,), what to call the documents, strings or whole numbers; without them they
            are called by their rows.
        counts: (V,), how often each word, the unknown one included, occurred in training; None for
            what the model says. They become the model's, and are saved with it.

    Attributes:
        model: The model.
        tokenizer: The tokenizer.
        words: The V - 1 words, those that occurred most often first.
        documents: (N, D), float32, or None.
        document_ids: (N,), or None.
        counts: int64, (V,), or None where nobody knows.

    Raises:
        ValueError: If the parts do not belong together, or a row of a table is no vector.
    """

    def __init__(
        self,
        model: JoseModel,
        tokenizer: PreTrainedTokenizerFast,
        document_ids: Sequence[str | int] | None = None,
        counts: ArrayLike | None = None,
    ):
        size = model.config.vocab_size
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        if [number for _, number in vocabulary] != list(range(size)):
            raise ValueError(
                f"the tokenizer must number its words from 0 to {size - 1}, as the model does, and "
                f"has {len(vocabulary)} words"
            )
        if tokenizer.unk_token_id != 0:
            raise ValueError(f"word 0 must be the unknown word, and is {vocabulary[0][0]!r}")
        self.model = model
        self.tokenizer = tokenizer
        self.words = [word for word, _ in vocabulary[1:]]
        self._row_of_word = {word: row for row, word in enumerate(self.words)}
        self._word_rows = _rows_of(model.word_embeddings, 1, self.words, "the table of words")

        table = model.document_embeddings
        self.document_ids: list[str | int] | None = None
        self._row_of_document: dict[str | int, int] | None = None
        if document_ids is not None:
            self.document_ids = [_checked_id(value) for value in document_ids]
            if len(self.document_ids) != model.config.num_documents:
                raise ValueError(
                    f"document_ids must be one for each of the {model.config.num_documents} "
                    f"documents, got {len(self.document_ids)}"
                )
            self._row_of_document = {value: row for row, value in enumerate(self.document_ids)}
            if len(self._row_of_document) < len(self.document_ids):
                twice = next(
                    value
                    for row, value in enumerate(self.document_ids)
                    if self._row_of_document[value] != row
                )
                raise ValueError(f"two documents have the id {twice!r}")
        names = self.document_ids or range(model.config.num_documents)
        self.documents: Rows | None = None
        if table is not None:
            self.documents = _rows_of(table, 0, names, "the table of documents")

        if counts is not None:
            counts = np.asarray(counts, np.int64)
            if counts.shape != (size,):
                raise ValueError(f"counts must be ({size},), got {counts.shape}")
            model.word_counts = torch.from_numpy(counts.copy())
        if (model.word_counts < 0).any():
            raise ValueError("counts must not be negative")
        self._indexes: dict[str, Any] = {}
        self._statistics: tuple[NDArray, NDArray, NDArray] | None = None

    @classmethod
    def from_arrays(
        cls,
        words: Sequence[str],
        word_vectors: NDArray[Any],
        *,
        context_vectors: NDArray[Any] | None = None,
        document_vectors: NDArray[Any] | None = None,
        document_ids: Sequence[str | int] | None = None,
        counts: ArrayLike | None = None,
    ) -> Self:
        """Makes a model of vectors from anywhere, and a tokenizer that cuts at spaces.

        Args:
            words: All different. If `[UNK]` is among them, it becomes the unknown word.
            word_vectors: (W, D), one for each word, of any length.
            context_vectors: (W, D), or None: then the model cannot be trained on.
            document_vectors: (N, D), or None.
            document_ids: (N,), as for the class.
            counts: (W,), how often each word occurs.

        Raises:
            ValueError: If shapes or words are not like this, or a vector is NaN, infinite or zero.
        """
        words = list(words)
        if not {*words} - {UNKNOWN}:
            raise ValueError("there must be a word")
        # The unknown word comes first; where there is none, its row is any point of the sphere.
        unknown = [words.index(UNKNOWN)] if UNKNOWN in words else []
        known = [row for row in range(len(words)) if row not in unknown]
        tables: dict[str, Tensor] = {}
        for name, vectors in (
            ("word_embeddings", word_vectors),
            ("context_embeddings", context_vectors),
            ("document_embeddings", document_vectors),
        ):
            if vectors is None:
                continue
            is_document = name == "document_embeddings"
            rows = np.asarray(vectors, np.float32)
            length = len(rows) if is_document else len(words)
            if rows.ndim != 2 or rows.shape != (length, np.shape(word_vectors)[-1]):
                raise ValueError(
                    f"{name} must be {'(N, D)' if is_document else f'({length}, D)'}, as many "
                    f"dimensions in all tables, got {rows.shape}"
                )
            rows = to_sphere(rows, range(length) if is_document else words, name)
            if not is_document:
                first = rows[unknown] if unknown else np.full_like(rows[:1], rows.shape[1] ** -0.5)
                rows = np.concatenate([first, rows[known] if unknown else rows])
            tables[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(rows))
        tables["word_counts"] = torch.zeros(len(known) + 1, dtype=torch.long)
        if counts is not None:
            counts = np.asarray(counts, np.int64)
            if counts.shape != (len(words),):
                raise ValueError(f"counts must be ({len(words)},), got {counts.shape}")
            counts = np.concatenate([counts[unknown] if unknown else [0], counts[known]])
            tables["word_counts"] = torch.from_numpy(counts)
        config = JoseConfig(
            vocab_size=len(known) + 1,
            embedding_dim=int(np.shape(word_vectors)[-1]),
            num_documents=0 if document_vectors is None else len(document_vectors),
            has_context_embeddings=context_vectors is not None,
        )
        with torch.device("meta"):  # nothing is drawn that would be overwritten
            model = JoseModel(config)
        model.load_state_dict(tables, assign=True)
        tokenizer = build_tokenizer([words[row] for row in known])
        return cls(model.eval(), tokenizer, document_ids)

    # Checkpoints

    @classmethod
    def from_pretrained(cls, name_or_folder: str | os.PathLike, **hub_options: Any) -> Self:
        """Reads a checkpoint: model, tokenizer and ids of the documents.

        It runs no code of the checkpoint. One of the zoo's is opened by its folder:

            JoseVectors.from_pretrained(genzoo.locate("jose-20news"))

        Args:
            name_or_folder: A folder, or a Hub id with its owner ("owner/name").
            hub_options: What `snapshot_download` takes, such as `revision` and `token`.

        Raises:
            ValueError: If it is neither of them, or holds another model, or parts that do not
                belong together.
            OSError: If there is no checkpoint, if it cannot be had, or if it is damaged.
        """
        folder = _folder_of(os.fspath(name_or_folder), hub_options)
        config = _read_json(folder, "config.json", dict)
        if config.get("model_type") != JoseConfig.model_type:
            raise ValueError(
                f"{folder} holds a model of the type {config.get('model_type')!r}, not "
                f"{JoseConfig.model_type!r}"
            )
        if not (folder / "tokenizer.json").is_file():
            raise OSError(f"there is no {folder / 'tokenizer.json'}")
        try:
            model, loaded = JoseModel.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        except Exception as error:  # those of four libraries
            raise OSError(f"{folder} cannot be read: {_first_line(error)}") from error
        if loaded["missing_keys"]:
            raise OSError(f"{folder} lacks {', '.join(sorted(loaded['missing_keys']))}")
        document_ids = None
        if (folder / "documents.json").is_file():
            document_ids = _read_json(folder, "documents.json", list)
        try:
            return cls(model, tokenizer, document_ids)
        except ValueError as error:
            raise ValueError(f"{folder} does not fit together: {error}") from error

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes a folder that `from_pretrained`, and `AutoModel` for the model alone, can open.

        The ids of documents become `documents.json`.
        """
        folder = Path(folder)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        path = folder / "documents.json"
        if self.document_ids is None:  # nor is there a file of an older checkpoint
            path.unlink(missing_ok=True)
            return
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(self.document_ids, ensure_ascii=False), encoding="utf-8")
        partial.replace(path)

    @property
    def counts(self) -> NDArray[np.int64] | None:
        """How often each word occurred, (V,), if anybody knows."""
        counts = self.model.word_counts
        return counts.cpu().numpy() if counts.any() else None

    # Vectors

    def __len__(self) -> int:
        return len(self.words)

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._row_of_word

    def __getitem__(self, words: str | Sequence[str]) -> Rows:
        """The vector of a word, (D,), or of several, (W, D).

        Raises:
            KeyError: If there is no such word; the message names the closest.
        """
        if isinstance(words, str):
            return self._word_rows[self._word_row(words)].copy()
        if not all(isinstance(word, str) for word in words):
            raise ValueError(
                "vectors[...] takes a word or a list of words; documents are read by .document(id)"
            )
        return self._word_rows[[self._word_row(word) for word in words]]

    def __repr__(self) -> str:
        size = self._word_rows.shape[1]
        documents = 0 if self.documents is None else len(self.documents)
        return f"JoseVectors({len(self)} words, {documents} documents, {size} dimensions)"

    def document(self, id: str | int) -> Rows:
        """The vector of a document, (D,).

        Raises:
            KeyError: If there is no document of this id.
        """
        if self._row_of_document is None:
            row = None if isinstance(id, str) else self._document_row(id)
        else:  # an id may be a word, too
            row = self._row_of_document.get(id)
        if row is None or self.documents is None:
            raise KeyError(f"there is no document {id!r}")
        return self.documents[row].copy()

    def _word_row(self, word: str) -> int:
        if word not in self._row_of_word:
            raise UnknownWordError(word, self.words)
        return self._row_of_word[word]

    def _vector(self, key: Key) -> Rows:
        """The unit vector of a key, (D,)."""
        row = self._document_row(key)
        if row is not None:
            assert self.documents is not None
            return self.documents[row]
        if isinstance(key, str):
            return self._word_rows[self._word_row(key)]
        try:
            vector = np.asarray(key, np.float32)
        except (TypeError, ValueError):
            vector = np.empty(0, np.float32)
        size = self._word_rows.shape[1]
        if vector.shape != (size,) or not np.isfinite(vector).all() or not vector.any():
            raise ValueError(
                f"a key is a word, a document, or a vector of {size} finite numbers, "
                f"not all zero, got {key!r:.60}"
            )
        return to_sphere(vector[None], ["key"], "the keys")[0]

    def _document_row(self, key: Any) -> int | None:
        """The row of a key that calls a document; a word that is also an id is the word."""
        if isinstance(key, str):
            is_id = self._row_of_document is not None and key not in self
            return self._row_of_document.get(key) if is_id else None
        if not isinstance(key, int | np.integer):
            return None
        if self.documents is None:
            raise KeyError(f"there is no document {key}: this model has words only")
        if self._row_of_document is not None:
            if int(key) not in self._row_of_document:
                raise KeyError(f"there is no document {key!r}")
            return self._row_of_document[int(key)]
        if not 0 <= key < len(self.documents):
            raise KeyError(f"there is no document {key}, only 0 to {len(self.documents) - 1}")
        return int(key)

    # Neighbors

    def most_similar(
        self,
        positive: Keys = (),
        negative: Keys = (),
        topn: int = 10,
        among: Among = "words",
        exact: bool = True,
    ) -> list[tuple[str | int, float]]:
        """The words or documents that lie closest to a mean of keys, the keys themselves left out.

        Args:
            positive: A key or several. A key may come with a weight, as `(key, weight)`.
            negative: The same; their weight is -1, unless a weight says otherwise, which then has
                to be negative itself (as in gensim).
            topn: How many.
            among: Where to look.
            exact: Whether to compare with all rows. If not, the index of `build_index` is asked.

        Returns:
            Word or document id, and cosine, the closest first; fewer than `topn` if there are no
            more.

        Raises:
            KeyError: If a word or document is not there.
            ValueError: If there is no key, if keys cancel, or if there are no documents to look
                among, or no index to ask.
        """
        keys, weights = _weighted(positive, negative)
        query = np.zeros(self._word_rows.shape[1], np.float32)
        for key, weight in zip(keys, weights, strict=True):
            query += np.float32(weight) * self._vector(key)
        length = np.linalg.norm(query)
        if not length > 1e-6:
            raise ValueError("most_similar needs keys, and such as do not cancel each other")
        query /= length

        found: list[tuple[str | int, float]] = []
        for kind in self._kinds(among, topn):
            table = self._table(kind)
            excluded = self._rows_among(keys, kind)
            if exact:
                best = _best(table @ query, excluded, topn)
            else:
                best = self._ask_index(kind, query, excluded, topn)
            found += [(self._name(kind, row), score) for row, score in best]
        return sorted(found, key=lambda item: -item[1])[:topn]

    def most_similar_cosmul(
        self, positive: Keys = (), negative: Keys = (), topn: int = 10
    ) -> list[tuple[str, float]]:
        """The words with the greatest product of cosines, 3CosMul of analogies.

            prod (1 + cos(x, p)) / 2  /  (prod (1 + cos(x, n)) / 2 + 1e-6)

        Levy and Goldberg, 2014, Equation 4 (https://aclanthology.org/W14-1618). Where a sum is
        ruled by its largest term, the product lets each key speak.

        Args:
            positive: A key p or several; weights have no meaning here.
            negative: A key n or several, or none.
            topn: How many.

        Returns:
            Word and score, which is no cosine, the greatest first.

        Raises:
            KeyError: If a word or document is not there.
            ValueError: If there is no positive key, or one has a weight.
        """
        positive, negative = _listed(positive), _listed(negative)
        if not positive or any(isinstance(key, tuple) for key in [*positive, *negative]):
            raise ValueError("most_similar_cosmul needs positive keys, and knows no weights")
        self._kinds("words", topn)

        def closeness(keys: list[Any]) -> Rows:
            cosines = self._word_rows @ np.stack([self._vector(key) for key in keys]).T  # (V, K)
            return ((1 + cosines) / 2).prod(axis=1)

        scores = closeness(positive) / ((closeness(negative) if negative else 1) + np.float32(1e-6))
        best = _best(scores, self._rows_among([*positive, *negative], "words"), topn)
        return [(self.words[row], score) for row, score in best]

    def analogy(
        self,
        a: Key,
        b: Key,
        c: Key,
        topn: int = 1,
        method: Literal["3cosadd", "3cosmul"] = "3cosadd",
    ) -> list[tuple[str | int, float]]:
        """What c is to, as a is to b: `analogy("man", "king", "woman")` hopes for "queen".

        Args:
            a: A key.
            b: What it is to.
            c: Another key.
            topn: How many answers.
            method: "3cosadd" is `most_similar`, "3cosmul" is `most_similar_cosmul`.

        Returns:
            Word and score, the best first; never one of the keys.

        Raises:
            KeyError: If a word or document is not there.
            ValueError: If there is no such method.
        """
        if method == "3cosadd":
            return self.most_similar([b, c], [a], topn)
        if method == "3cosmul":
            return [*self.most_similar_cosmul([b, c], [a], topn)]
        raise ValueError(f"method must be '3cosadd' or '3cosmul', got {method!r}")

    def similarity(self, a: Key, b: Key) -> float:
        """The cosine of two keys."""
        return float(self._vector(a) @ self._vector(b))

    def n_similarity(self, a: Keys, b: Keys) -> float:
        """The cosine of the means of two lists of keys."""
        return float(self._mean(a) @ self._mean(b))

    def doesnt_match(self, keys: Keys) -> Any:
        """The key that lies farthest from the mean of all."""
        mean, keys = self._mean(keys), _listed(keys)
        return keys[int(np.argmin([self._vector(key) @ mean for key in keys]))]

    def _mean(self, keys: Keys) -> Rows:
        keys = _listed(keys)
        mean = np.sum([self._vector(key) for key in keys], axis=0)
        if not keys or not np.linalg.norm(mean) > 1e-6:
            raise ValueError("a mean needs keys, and such as do not cancel each other")
        return mean / np.linalg.norm(mean)

    def _kinds(self, among: Among, topn: int) -> list[str]:
        kinds = {"words": ["words"], "documents": ["documents"], "both": ["words", "documents"]}
        if among not in kinds:
            raise ValueError(f"among must be 'words', 'documents' or 'both', got {among!r}")
        if among != "words" and self.documents is None:
            raise ValueError("this model has no documents to look among")
        if topn < 1:
            raise ValueError(f"topn must be at least 1, got {topn}")
        return kinds[among]

    def _table(self, kind: str) -> Rows:
        if kind == "words":
            return self._word_rows
        assert self.documents is not None
        return self.documents

    def _name(self, kind: str, row: int) -> str | int:
        if kind == "words":
            return self.words[row]
        return row if self.document_ids is None else self.document_ids[row]

    def _rows_among(self, keys: Iterable[Any], kind: str) -> list[int]:
        """The rows of those keys that are words, or documents."""
        if kind == "words":
            return sorted({self._row_of_word[k] for k in keys if isinstance(k, str) and k in self})
        rows = [self._document_row(key) for key in keys]
        return sorted({row for row in rows if row is not None})

    def build_index(self, num_links: int = 32) -> None:
        """Makes an index, so that `most_similar(..., exact=False)` need not look at all rows.

        A graph in which every row knows some near ones (HNSW; Malkov and Yashunin, 2018,
        https://arxiv.org/abs/1603.09320), as faiss has it. It may overlook a neighbor, more rarely
        with more links. It is not saved with the rest.

        Args:
            num_links: Of each row, M of the paper.

        Raises:
            ModuleNotFoundError: If faiss is not installed; it is in the extra `jose`.
        """
        try:
            import faiss
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the index is one of faiss: pip install 'genzoo[jose]'"
            ) from error
        for kind in ["words"] if self.documents is None else ["words", "documents"]:
            table = self._table(kind)
            index = faiss.IndexHNSWFlat(table.shape[1], num_links, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = 100
            index.add(table)  # pyright: ignore[reportCallIssue]
            self._indexes[kind] = index

    def _ask_index(
        self, kind: str, query: Rows, excluded: list[int], topn: int
    ) -> list[tuple[int, float]]:
        if kind not in self._indexes:
            raise ValueError("exact=False asks an index, and there is none: call build_index()")
        import faiss

        count = min(topn + len(excluded), len(self._table(kind)))
        # As many candidates are kept on the way; of these, the last would be the uncertain ones.
        parameters = faiss.SearchParametersHNSW(efSearch=max(128, 2 * count))
        scores, rows = self._indexes[kind].search(query[None], count, params=parameters)
        return [
            (int(row), float(score))
            for row, score in zip(rows[0], scores[0], strict=True)
            if row >= 0 and row not in excluded
        ][:topn]

    # New documents

    def infer(
        self,
        texts: Iterable[str] | os.PathLike,
        *,
        num_epochs: int = 10,
        learning_rate: float = 0.02,
        num_threads: int | None = None,
        seed: int = 0,
    ) -> Rows:
        """Vectors of new documents, on the sphere of the words and the old documents.

        A document begins in the middle of its words and takes the steps that it would take in
        training, while the words stay where they are. Where training leaves out a frequent word
        with some probability (sub-sampling), here the step is shorter by it. Of a model with a
        joint hinge, too, the document has a hinge of its own.

        The vector of a text depends on its known words, their order and `seed`, and on nothing
        else: not on the other texts nor on the number of threads.

        What training made of a document lies near, and not in the same place, since there its words
        moved with it: on 20 Newsgroups the mean cosine of both is 0.83 (of trained documents and
        means of words, 0.55). To find or to classify new documents among old ones, infer both.

        Without `counts`, the n-th word is taken to occur 1/n times as often as the first (Zipf's
        law).

        Args:
            texts: Strings, or whatever else `train_jose` takes; of a path, each line is a text.
            num_epochs: Passes over each text.
            learning_rate: Of the first step; it falls to zero in a straight line.
            num_threads: Threads, which share the texts; None for one on each CPU core.
            seed: Of the random words.

        Returns:
            (N, D), rows of length 1. A text without any known word gets the direction of the mean
            of all documents, or of all words where there are no documents; a warning counts these.

        Raises:
            ValueError: If `texts` is a single string, or holds something else than strings.
        """
        if isinstance(texts, str):
            raise ValueError("infer takes several texts: put one into a list")
        if num_epochs < 1 or not learning_rate >= 0:
            raise ValueError(
                "num_epochs must be at least 1 and learning_rate not negative, got "
                f"{num_epochs} and {learning_rate}"
            )
        config = self.model.config
        settings = (
            config.num_negatives,
            np.float32(config.margin),
            np.float32(config.loss_scale if config.loss == "cross_entropy" else 0),
            FACTORS[config.step_factors[2]],
            num_epochs,
            learning_rate,
            np.uint64(seed % 2**64),
        )
        num_threads = num_threads or num_cores()
        read = Texts(_Once(texts) if isinstance(texts, Iterator) else texts)
        remaining = iter(read)
        rows, num_empty = [np.empty((0, self._word_rows.shape[1]), np.float32)], 0
        with ThreadPoolExecutor(num_threads) as pool:
            while chunk := list(itertools.islice(remaining, _CHUNK)):
                tokens, starts = self._numbered(chunk)
                inferred = np.empty((len(chunk), self._word_rows.shape[1]), np.float32)
                # More pieces than threads: not all are equally long.
                edges = np.linspace(0, len(chunk), 8 * num_threads + 1).astype(int)
                pieces = [
                    pool.submit(
                        infer_piece,
                        tokens,
                        starts[first : last + 1],
                        self._word_rows,
                        *self._noise(),
                        *settings,
                        inferred[first:last],
                    )
                    for first, last in itertools.pairwise(edges)
                    if first < last
                ]
                for piece in pieces:
                    piece.result()
                is_empty = np.diff(starts) == 0
                if is_empty.any():
                    inferred[is_empty] = self._middle()
                    num_empty += int(is_empty.sum())
                rows.append(inferred)
        read.warn()
        if num_empty:
            logger.warning(
                f"{num_empty} texts have no known word: their vector is the middle of all "
                f"{'words' if self.documents is None else 'documents'}"
            )
        return np.concatenate(rows)

    def partial_fit(
        self,
        texts: Any,
        *,
        document_ids: Sequence[str | int] | None = None,
        min_count: int | None = None,
        is_frozen: bool = True,
        **settings: Any,
    ) -> Self:
        """Adds the words and documents of new texts, in place.

        Args:
            texts: A corpus, as for `train_jose`.
            document_ids: What to call the new documents; without them, by their rows.
            min_count: New words that are rarer are left out; None for the model's own.
            is_frozen: Whether every old word and document stays as it is, to the last bit.
            **settings: As for `train_jose`: `num_epochs`, `learning_rate`, `num_threads`, `seed`.

        Returns:
            This object.

        Raises:
            ValueError: If the texts have no words, if there are new words or old ones to be moved
                and the model was saved without its contexts, or if ids do not fit.
        """
        from .training import extend  # with all that training needs

        old_ids = self.document_ids or list(range(self.model.config.num_documents))
        new_ids = None if document_ids is None else [_checked_id(value) for value in document_ids]
        if new_ids is not None and len({*old_ids, *new_ids}) < len(old_ids) + len(new_ids):
            raise ValueError(
                "document_ids must differ from each other and from those that are there"
            )
        source = Texts(texts)
        if new_ids is not None and (count := sum(1 for _ in source)) != len(new_ids):
            raise ValueError(f"document_ids are {len(new_ids)} and the texts are {count}")
        model, tokenizer = extend(
            self.model, self.tokenizer, source, min_count=min_count, is_frozen=is_frozen, **settings
        )
        ids = None
        if self.document_ids is not None or new_ids is not None:
            free = (number for number in itertools.count(len(old_ids)) if number not in {*old_ids})
            num_new = model.config.num_documents - len(old_ids)
            ids = [*old_ids, *(new_ids or itertools.islice(free, num_new))]
        # All is well now: this object becomes the larger one.
        self.__dict__ = type(self)(model, tokenizer, ids).__dict__
        return self

    def _numbered(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The known words of texts as rows of the table, and where each text begins."""
        backend = self.tokenizer.backend_tokenizer
        # A call of the tokenizer may have left these on.
        backend.no_truncation()
        backend.no_padding()
        numbers = [code.ids for code in backend.encode_batch_fast(texts, add_special_tokens=False)]
        ends = np.cumsum([0, *map(len, numbers)])
        tokens = np.fromiter(itertools.chain.from_iterable(numbers), np.int32, ends[-1])
        is_known = tokens > 0
        return tokens[is_known] - 1, np.concatenate([[0], np.cumsum(is_known)])[ends]

    def _noise(self) -> tuple[NDArray, NDArray, NDArray]:
        """How likely each word survives sub-sampling, and the alias table of the random words."""
        if self._statistics is None:
            known = None if self.counts is None else self.counts[1:]
            if known is None or not known.any():
                known = np.rint(1e12 / np.arange(1, len(self) + 1))  # Zipf's law
            config = self.model.config
            keep = keep_probabilities(known, config.subsample_threshold)
            noise = alias_table(known.astype(np.float64) ** config.noise_exponent)
            self._statistics = (keep, *noise)
        return self._statistics

    def _middle(self) -> Rows:
        table = self._word_rows if self.documents is None else self.documents
        middle = table.sum(axis=0, dtype=np.float64)
        length = np.linalg.norm(middle)
        return (middle / length).astype(np.float32) if length > 1e-6 else table[0]

    # Other programs

    def to_gensim(self) -> Any:
        """The words as `KeyedVectors` of gensim, with their counts if they are known.

        Raises:
            ModuleNotFoundError: If gensim is not installed; it is in the extra `jose`.
        """
        try:
            from gensim.models import KeyedVectors
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("this needs gensim: pip install 'genzoo[jose]'") from error
        vectors = KeyedVectors(self._word_rows.shape[1])
        vectors.add_vectors(self.words, self._word_rows)
        if self.counts is not None:
            vectors.expandos["count"] = self.counts[1:].copy()
        return vectors

    @classmethod
    def from_gensim(cls, vectors: Any) -> Self:
        """Takes words and counts from `KeyedVectors` of gensim, such as `model.wv`.

        Vectors are brought to length 1, which those of gensim do not have.

        Raises:
            ValueError: If a key is no string, or a vector has no direction.
        """
        words = list(vectors.index_to_key)
        if not all(isinstance(word, str) for word in words):
            raise ValueError("from_gensim takes vectors of words, and some keys are no strings")
        counts = vectors.expandos.get("count")
        # When gensim reads a file that has no counts, it makes these up.
        if counts is not None and np.array_equal(counts, np.arange(len(words), 0, -1)):
            counts = None
        return cls.from_arrays(words, vectors.vectors, counts=counts)

    def save_word2vec(
        self, path: str | os.PathLike, binary: bool = False, documents: bool = False
    ) -> None:
        """Writes words, or documents, as a file of word2vec's program.

        Args:
            path: The file.
            binary: Whether it is binary, or else text.
            documents: Whether to write the documents, which have their row numbers for words (as
                in the JoSE authors' program).

        Raises:
            ValueError: If a word has a space in it, or if there are no documents.
        """
        if documents and self.documents is None:
            raise ValueError("this model has no documents to write")
        kind = "documents" if documents else "words"
        rows = self._table(kind)
        names = range(len(rows)) if documents else self.words
        write_word2vec(path, names, rows, binary=binary)

    @classmethod
    def load_word2vec(cls, path: str | os.PathLike, binary: bool | None = None) -> Self:
        """Reads words from a file of word2vec's program, and brings them to length 1.

        Those that gensim, fastText (.vec) and word2vec itself write can be read; files of the JoSE
        authors' program are better read by `conversion/convert_jose_c.py`, which knows what comes
        together.

        Args:
            path: The file.
            binary: Whether it is binary, or else text; None to find out.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged or something else (see `formats.read_word2vec`).
        """
        return cls.from_arrays(*read_word2vec(path, binary=binary))

    def save_sentence_transformer(self, folder: str | os.PathLike) -> None:
        """Writes a folder that `SentenceTransformer(folder)` opens, with no code of ours.

        The vector of a text is the mean of its words, brought to length 1: what `JoseModel` calls
        `pooler_output`; `infer` is not in it. Documents are not in the folder either.

        Raises:
            ModuleNotFoundError: If sentence-transformers is not installed; it is in the extra
                `jose`.
        """
        try:
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.base.modules import Normalize
            from sentence_transformers.sentence_transformer.modules import StaticEmbedding
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "this needs sentence-transformers 6: pip install 'genzoo[jose]'"
            ) from error
        # Rows as the model has them; the unknown word adds nothing to a sum.
        weight = self.model.word_embeddings.weight.detach().to("cpu", torch.float32).clone()
        weight[0] = 0
        embedding = StaticEmbedding(self.tokenizer, embedding_weights=weight)
        SentenceTransformer(modules=[embedding, Normalize()], device="cpu").save(
            os.fspath(folder), create_model_card=False
        )


class _Once:
    """What is read only once, and so need not be kept as `Texts` would do."""

    def __init__(self, texts: Iterator[Any]):
        self._texts = texts

    def __iter__(self) -> Iterator[Any]:
        return self._texts


def _rows_of(table: nn.Embedding, first: int, names: Sequence[str | int], source: str) -> Rows:
    """A table's rows from the first on, of length 1; the model's own memory where they have it."""
    rows = table.weight.detach().to("cpu", torch.float32).numpy()[first:]
    rows = to_sphere(rows, names, source).view()
    rows.flags.writeable = False
    return rows


def _checked_id(value: Any) -> str | int:
    if isinstance(value, str):
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise ValueError(f"the id of a document is a string or a whole number, got {value!r:.60}")


def _listed(keys: Any) -> list[Any]:
    is_array = isinstance(keys, np.ndarray | Tensor)
    if isinstance(keys, str | int | np.integer) or (is_array and keys.ndim == 1):
        return [keys]
    return list(keys)


def _weighted(positive: Keys, negative: Keys) -> tuple[list[Any], list[float]]:
    keys, weights = [], []
    for listed, sign in ((_listed(positive), 1.0), (_listed(negative), -1.0)):
        for key in listed:
            key, weight = key if isinstance(key, tuple) else (key, sign)
            keys.append(key)
            weights.append(weight)
    return keys, weights


def _best(scores: Rows, excluded: list[int], topn: int) -> list[tuple[int, float]]:
    """Rows and scores, the greatest first and among equals the first row; changes `scores`."""
    scores[excluded] = -np.inf
    count = min(topn, len(scores) - len(excluded))
    if count < 1:
        return []
    rows = np.argpartition(-scores, count - 1)[:count]
    rows = rows[np.lexsort((rows, -scores[rows]))]
    return [(int(row), float(scores[row])) for row in rows]


def _folder_of(name: str, hub_options: dict[str, Any]) -> Path:
    if os.path.isdir(name):
        return Path(name)
    if os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1:
        raise OSError(f"there is no folder {name}")
    if "/" not in name:
        raise ValueError(
            f"{name!r} is neither a folder here nor a Hub id (owner/name); for a name of the zoo "
            f"write JoseVectors.from_pretrained(genzoo.locate({name!r}))"
        )
    patterns = ["*.json", "*.safetensors", "*.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **hub_options))
    except HFValidationError as error:
        raise ValueError(f"{name!r} is neither a folder here nor a Hub id (owner/name)") from error
    except Exception as error:  # those of the Hub and of its HTTP client, a full disk
        raise OSError(f"{name} could not be fetched: {_first_line(error)}") from error


def _read_json(folder: Path, name: str, kind: type) -> Any:
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OSError(f"there is no {path}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a {kind.__name__}")
    return content


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
