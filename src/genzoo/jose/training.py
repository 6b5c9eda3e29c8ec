"""How a JoSE model is made of a corpus: one loop, and three engines that do its work.

Threads share the tables on the CPU (kernels.py). Large batches run in torch on a device, with
`SphericalSGD`. Several processes each take a part, and their tables are averaged after every round.
"""

import contextlib
import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from ..data import load_texts
from ..runtime import (
    Progress,
    Run,
    command,
    half_precision,
    hardware,
    make_accelerator,
    move_atomically,
    update_results,
    versions,
)
from .corpus import (
    Corpus,
    Splitter,
    Texts,
    alias_table,
    count_words,
    keep_probabilities,
    num_cores,
)
from .kernels import FACTORS, constant, sample_pairs, train_piece
from .modeling_jose import JoseConfig, JoseModel
from .optimization import SphericalSGD
from .tokenization import build_tokenizer, rule_of, words_of

logger = logging.get_logger(__name__)

_LOWEST_RATE = 1e-4  # of the learning rate, at the end


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How tables are trained, whatever they begin from.

    Args:
        num_epochs: Passes over the corpus.
        learning_rate: Of the first word; it falls in a straight line to almost nothing.
        num_threads: Threads of each process, on the CPU; None for one for each core. With one, a
            seed gives the same bits again.
        seed: Of the tables and of all that is drawn.
        device: None for the engine of threads; else the torch device on which batches run, such as
            "cuda". There the steps are those of `SphericalSGD`, times 1 - cos unless the step
            factors are "none".
        batch_size: Words whose pairs make a batch, on a device.
        shuffle: Whether blocks of documents, 16,000 words each, come in another order every epoch,
            or as they are in the corpus. What is trained at the same time comes out a little alike:
            of a corpus that is sorted by subject, the vectors know more than its words say.
        words_per_round: Words after which the loss is logged and processes average their tables.
        save_every: Rounds between checkpoints; None for one an epoch.
    """

    num_epochs: int = 10
    learning_rate: float = 0.04
    num_threads: int | None = None
    seed: int = 0
    device: str | None = None
    batch_size: int = 1024
    shuffle: bool = True
    words_per_round: int = 2_000_000
    save_every: int | None = None

    def __post_init__(self):
        for name in ("num_epochs", "batch_size", "words_per_round"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_threads", "save_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.device is not None:
            try:
                torch.empty(0, device=self.device)
            except (RuntimeError, AssertionError) as error:  # as torch says it, in many words
                raise ValueError(f"there is no device {self.device!r} here") from error
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JoseRecipe(FitSettings):
    """All that decides how a checkpoint comes out, beside what `FitSettings` has.

    Args:
        name: The checkpoint's name.
        model: Size of the vectors, and loss.
        data: Names of the data sets, one corpus together.
        split: Which part of them.
        segmenter: Cuts a text into words with spaces between; None where it has them.
        lowercase: Whether texts are put into lower case.
        word_pattern: Regular expression of a word; without one, words are what spaces separate.
        max_words: How many words are published, the most frequent ones; None for all.
        has_documents: Whether the documents are published.
    """

    name: str
    model: JoseConfig
    data: list[str]
    split: str = "train"
    segmenter: Callable[[str], str] | None = None
    lowercase: bool = False
    word_pattern: str | None = None
    max_words: int | None = None
    has_documents: bool = False

    def smoke(self) -> "JoseRecipe":
        """The same recipe, two short epochs long."""
        model = type(self.model).from_dict(self.model.to_dict() | {"min_count": 1})
        return dataclasses.replace(self, model=model, num_epochs=2, num_threads=1, segmenter=None)

    def identity(self) -> dict[str, Any]:
        """All fields as JSON-able data."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        segmenter = self.segmenter and self.segmenter.__name__
        return values | {"model": self.model.to_diff_dict(), "segmenter": segmenter}


def train_recipe(
    recipe: JoseRecipe,
    dataset: Any = None,
    init: str | Path | None = None,
    *,
    output_dir: str | Path,
    resume: bool = False,
    tracker: str | None = None,
) -> Path:
    """Trains a checkpoint and leaves a folder that `AutoModel` and `JoseVectors` open.

    The state of the run lies in `output_dir/run`; all else in the folder is what can be published.

    Args:
        recipe: How.
        dataset: A corpus in the place of the recipe's: what `train_jose` takes, or the name of a
            data set for `load_texts`.
        init: Not for embeddings: words and documents are added by `JoseVectors.partial_fit`.
        output_dir: The folder.
        resume: Whether to continue a run that the folder holds.
        tracker: As in `train_jose`.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder holds something and `resume` is not set.
        ValueError: As `train_jose`, and if `init` is given.
        OSError: If a checkpoint cannot be written.
    """
    output_dir = Path(output_dir)
    if init is not None:
        raise ValueError(
            "embeddings do not start from a checkpoint: JoseVectors.partial_fit adds to one"
        )
    if dataset is None:
        source, corpus = " + ".join(recipe.data), _Joined(recipe.data, recipe.split)
    elif isinstance(dataset, str) and not Path(dataset).is_file():
        source, corpus = dataset, _Joined([dataset], recipe.split)
    else:
        is_file = isinstance(dataset, str | Path)
        source, corpus = Path(dataset).name if is_file else "strings", dataset
    if recipe.segmenter is not None:
        # A generator is read once and kept, so that each text is cut into words once.
        whole = Texts(corpus)
        corpus = map(recipe.segmenter, whole)

    identity = recipe.identity() | {"data": source}
    is_main = int(os.environ.get("RANK", 0)) == 0
    run = Run(output_dir, identity, resume=resume, is_main=is_main)
    words, corpus, model = prepare(
        corpus, recipe.model, recipe.seed, recipe.lowercase, recipe.word_pattern
    )
    if recipe.segmenter is not None:
        whole.warn()
    seconds = fit(model, corpus, recipe, run=run, tracker=tracker)
    if is_main:
        export(model, words, recipe, run.folder, output_dir)
        is_by_the_book = source == " + ".join(recipe.data)
        update_results(
            output_dir,
            name=recipe.name if is_by_the_book else output_dir.resolve().name,
            recipe=recipe.name,
            task="feature-extraction",
            training={
                "command": command(),
                "dataset": source,
                "split": recipe.split,
                "num_epochs": recipe.num_epochs,
                "num_words": recipe.num_epochs * corpus.num_words,
                "seed": recipe.seed,
                "num_processes": int(os.environ.get("WORLD_SIZE", 1)),
                "seconds": seconds,
                "hardware": hardware(),
                "versions": versions(),
                "init": None,
            },
            **({"evaluation": []} if seconds else {}),
        )
    return output_dir


def train_jose(
    corpus: Any,
    config: JoseConfig | None = None,
    *,
    lowercase: bool = False,
    word_pattern: str | None = None,
    text_column: str = "text",
    output_dir: str | Path | None = None,
    resume: bool = False,
    tracker: str | None = None,
    show_progress: bool = True,
    **settings: Any,
) -> tuple[JoseModel, PreTrainedTokenizerFast]:
    """Trains words, contexts and documents of a corpus on one sphere.

        model, tokenizer = train_jose("corpus.txt", JoseConfig(window_size=10), num_epochs=10)

    The corpus is read twice, to count its words and to number them; then it lies as numbers in a
    temporary file. Beside the tables, about 200 MB of memory are taken, however long it is.

    Args:
        corpus: A path or a list of `pathlib.Path`, whose lines are documents; or strings, one for
            each document; or a data set of `datasets`, in memory or streaming.
        config: Architecture and loss. `vocab_size` and `num_documents` are the corpus's.
        lowercase: Whether texts are put into lower case.
        word_pattern: Regular expression of a word; without one, words are what spaces separate.
        text_column: The column of a data set.
        output_dir: A folder for checkpoints of the run, and for its log; none are kept without.
        resume: Whether to continue a run that is there. It must be over the same corpus.
        tracker: Where losses go, if there is an `output_dir`: None for JSON lines in
            `output_dir/run/log.jsonl`, or a tracker of accelerate.
        show_progress: Whether to show a progress bar.
        **settings: Those of `FitSettings`: `num_epochs`, `learning_rate`, `num_threads`, `seed`,
            `device`, `batch_size`, `shuffle`, `words_per_round`, `save_every`.

    Returns:
        The model, whose documents are in the order of the corpus, and its tokenizer.

    Raises:
        FileNotFoundError: If there is no such corpus.
        FileExistsError: If `output_dir` holds a run and `resume` is not set.
        ValueError: If the corpus is empty, or no word occurs `min_count` times, or a setting is
            wrong, or the folder holds another run.
        FloatingPointError: If the loss is no longer finite.
    """
    config, fit_settings = config or JoseConfig(), FitSettings(**settings)
    words, numbered, model = prepare(
        corpus, config, fit_settings.seed, lowercase, word_pattern, text_column
    )
    run = None
    if output_dir is not None:
        identity = dataclasses.asdict(fit_settings)
        identity |= {"lowercase": lowercase, "word_pattern": word_pattern}
        identity |= {"model": model.config.to_diff_dict(), "num_words": numbered.num_words}
        is_main = int(os.environ.get("RANK", 0)) == 0
        run = Run(Path(output_dir), identity, resume=resume, is_main=is_main)
    fit(model, numbered, fit_settings, run=run, tracker=tracker, show_progress=show_progress)
    return model, build_tokenizer(words, lowercase=lowercase, word_pattern=word_pattern)


def prepare(
    corpus: Any,
    config: JoseConfig,
    seed: int,
    lowercase: bool = False,
    word_pattern: str | None = None,
    text_column: str = "text",
) -> tuple[list[str], Corpus, JoseModel]:
    """The words of a corpus, the corpus in numbers, and a model at the start of its run.

    The arguments are those of `train_jose`.
    """
    if not config.has_context_embeddings:
        raise ValueError("training needs a table of contexts: has_context_embeddings=True")
    texts, split = Texts(corpus, text_column), Splitter(lowercase, word_pattern)
    check_rule(texts, split, build_tokenizer([], lowercase=lowercase, word_pattern=word_pattern))
    words, counts = vocabulary(texts, split, config.min_count)
    texts.warn()
    numbered = Corpus(texts, split, {word: index + 1 for index, word in enumerate(words)})
    numbered.warn()
    return words, numbered, new_model(config, counts, len(numbered), seed)


def check_rule(texts: Texts, split: Splitter, tokenizer: PreTrainedTokenizerFast) -> None:
    """Dies if the first texts have other words in training than the tokenizer will find in them.

    Patterns mean the same to Python and to tokenizers, but for their finer points.
    """
    for text in itertools.islice(texts, 1000):
        mine = [word for words in split(text[:10_000]) for word in words]
        its = words_of(tokenizer, text[:10_000])
        if mine != its:
            pairs = itertools.zip_longest(mine, its)
            one, other = next(pair for pair in pairs if pair[0] != pair[1])
            raise ValueError(
                f"word_pattern means {one!r} in training and {other!r} to the tokenizer: write it "
                "in a way that both understand alike, such as with ranges [a-z] in place of \\w"
            )


def vocabulary(texts: Texts, split: Splitter, min_count: int) -> tuple[list[str], np.ndarray]:
    """The words of a corpus that are frequent enough, most frequent first, and their counts.

    Raises:
        ValueError: If there are none; the sentence says why.
    """
    counts = count_words(texts, split)
    if not counts:
        raise ValueError("the corpus is empty: there is no word in it")
    ranked = [(word, n) for word, n in counts.most_common() if n >= min_count]
    if not ranked:
        word, n = counts.most_common(1)[0]
        raise ValueError(
            f"no word occurs min_count = {min_count} times: the most frequent, {word!r:.50}, does "
            f"{n} times"
        )
    return [word for word, _ in ranked], np.array([n for _, n in ranked], np.int64)


def new_model(config: JoseConfig, counts: np.ndarray, num_documents: int, seed: int) -> JoseModel:
    """A model at the start of a run: all rows are random points of the sphere.

    Args:
        config: Everything but the sizes of the corpus.
        counts: (V - 1,), of the known words.
        num_documents: N.
        seed: Of the rows.
    """
    sizes = {"vocab_size": len(counts) + 1, "num_documents": num_documents}
    config = type(config).from_dict(config.to_dict() | sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = JoseModel(config)
    model.word_counts[1:] = torch.from_numpy(counts)
    return model.eval()


def extend(
    model: JoseModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Any,
    *,
    min_count: int | None = None,
    is_frozen: bool = True,
    show_progress: bool = False,
    **settings: Any,
) -> tuple[JoseModel, PreTrainedTokenizerFast]:
    """Adds the words and the documents of new texts to a trained model.

    Args:
        model: A model; it is not changed.
        tokenizer: Its tokenizer.
        texts: A corpus, as for `train_jose`. Its documents come after those that are there, its new
            words too.
        min_count: New words that are rarer are left out; None for the model's own.
        is_frozen: Whether all that was there before stays as it is, to the last bit.
        show_progress: Whether to show a progress bar.
        **settings: As for `train_jose`.

    Returns:
        A larger model and its tokenizer.

    Raises:
        ValueError: As `train_jose`; and if there are new words, or old ones to be moved, and the
            model was saved without its contexts.
    """
    config, fit_settings = model.config, FitSettings(**settings)
    lowercase, word_pattern = rule_of(tokenizer)
    known = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)[1:]
    source = texts if isinstance(texts, Texts) else Texts(texts)
    split = Splitter(lowercase, word_pattern)
    found = count_words(source, split)
    source.warn()
    least, known_words = config.min_count if min_count is None else min_count, {*known}
    added = [word for word, n in found.most_common() if n >= least and word not in known_words]
    if not config.has_context_embeddings and (added or not is_frozen):
        what = f"{len(added)} new words, such as {added[0]!r}," if added else "old words"
        raise ValueError(
            f"{what} cannot be placed: this model was saved without its table of contexts, and can "
            "only take documents of known words (min_count above all counts leaves new ones out)"
        )
    if not config.has_context_embeddings and config.is_joint:
        raise ValueError(
            "documents share their hinge with contexts in this model, and it was saved without "
            "them: use infer"
        )
    words = [*known, *added]
    corpus = Corpus(source, split, {word: index + 1 for index, word in enumerate(words)})
    if not corpus.num_words:
        raise ValueError("the texts have no known words")
    corpus.warn()

    old_size, old_documents = config.vocab_size, config.num_documents
    grown = new_model(
        type(config).from_dict(config.to_dict() | {"has_context_embeddings": True}),
        np.array([found[word] for word in words], np.int64),
        old_documents + len(corpus),
        fit_settings.seed,
    )
    for name, old in model.state_dict().items():
        if name == "word_counts":
            grown.word_counts[:old_size] += old
        else:
            grown.state_dict()[name][: len(old)] = old
    fit(
        grown,
        corpus,
        fit_settings,
        show_progress=show_progress,
        first_word=old_size if is_frozen else 0,
        first_document=old_documents if is_frozen else 0,
        offset=old_documents,
    )
    if not model.word_counts.any():  # unknown they stay: those of the new texts say little
        grown.word_counts.zero_()
    if not config.has_context_embeddings:
        grown.context_embeddings, grown.config.has_context_embeddings = None, False
    return grown, build_tokenizer(words, lowercase=lowercase, word_pattern=word_pattern)


def fit(
    model: JoseModel,
    corpus: Corpus,
    settings: FitSettings,
    *,
    run: Run | None = None,
    tracker: str | None = None,
    show_progress: bool = True,
    first_word: int = 0,
    first_document: int = 0,
    offset: int = 0,
) -> float:
    """Trains a model's tables in place.

    Args:
        model: With tables of words, contexts and documents.
        corpus: Its words and documents have the model's numbers.
        settings: How.
        run: Where checkpoints are kept, or None.
        tracker: As in `train_jose`.
        show_progress: As there.
        first_word: Words and contexts before this one stay as they are.
        first_document: Documents before this one stay as they are.
        offset: Where the corpus's documents begin among the model's.

    Returns:
        Seconds of training, those before an interruption with them.

    Raises:
        FloatingPointError: If the loss is no longer finite; the checkpoints from before stay.
        OSError: If a checkpoint cannot be written.
    """
    config = model.config
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    accelerator = None
    if run is not None:
        accelerator = make_accelerator(tracker, run.folder)
    elif num_processes > 1:
        accelerator = Accelerator(cpu=not torch.cuda.is_available())
    rank = accelerator.process_index if accelerator else 0
    is_main = rank == 0

    word_counts = model.word_counts.numpy()
    noise = word_counts.astype(np.float64) ** config.noise_exponent
    noise[0] = 0  # the unknown word
    keep = keep_probabilities(word_counts, config.subsample_threshold)
    work = _Work(model, settings, keep, *alias_table(noise), first_word, first_document, offset)

    order = _Order(corpus, settings)
    total, num_rounds = settings.num_epochs * corpus.num_words, settings.num_epochs * len(order)
    save_every = settings.save_every or len(order)
    tables = {name: value for name, value in model.state_dict().items() if "embeddings" in name}

    start, seconds = 0, 0.0
    if run is not None:
        assert accelerator is not None
        run.begin()
        accelerator.wait_for_everyone()
        if state := run.load():
            if state["corpus"] != corpus.checksum:
                raise ValueError(f"{run.folder} holds another run: its corpus is another one")
            start, seconds = state["step"], state["seconds"]
            for name, table in tables.items():
                table.copy_(state.pop(name))
        run.forget_log_after(start)
        accelerator.init_trackers("jose")
    done = sum(order.num_words(step) for step in range(start))
    progress = Progress(
        samples=done,
        total=total,
        seconds=seconds,
        enabled=is_main and show_progress,
        unit=" words",
    )

    with work:
        for step in range(start, num_rounds):
            blocks, num_words = order[step], order.num_words(step)
            rates = [
                settings.learning_rate * max(1 - place / total, _LOWEST_RATE)
                for place in (done, done + num_words)
            ]
            before = _documents_before(model, corpus, blocks, offset, accelerator)
            pieces = np.array_split(blocks, num_processes * work.num_pieces)
            mine = pieces[rank * work.num_pieces : (rank + 1) * work.num_pieces]
            losses = work.go(corpus, mine, rates, step, rank)
            done += num_words
            _average(model, before, losses, first_word, accelerator)

            if not losses.isfinite().all():
                raise FloatingPointError(f"the loss was not finite in round {step}")
            mean = (losses[::2] / losses[1::2].clamp_min(1)).tolist()
            values = (
                {"word_loss": mean[0], "document_loss": mean[1]}
                if work.has_two
                else {"loss": mean[0]}
            )
            progress.update(num_words)
            progress.show(values | {"rate": rates[1]})
            if run is not None:
                assert accelerator is not None
                speed = {"words_per_second": progress.samples_per_second}
                times = {"seconds": progress.seconds} | speed
                accelerator.log(values | {"rate": rates[1]} | times, step=step + 1)
                if (step + 1) % save_every == 0 or step + 1 == num_rounds:
                    place = {"step": step + 1, "corpus": corpus.checksum}
                    run.save(step + 1, {**place, "seconds": progress.seconds, **tables})
    progress.close()
    for name, table in tables.items():  # what races between threads left over
        free = table[first_document if "document" in name else first_word :]
        if len(free):
            F.normalize(free, dim=-1, out=free)
    if run is not None:
        assert accelerator is not None
        accelerator.wait_for_everyone()
        accelerator.end_training()
    return progress.seconds


class _Order:
    """Which blocks of the corpus each round goes through."""

    def __init__(self, corpus: Corpus, settings: FitSettings):
        self.blocks, self.settings = corpus.blocks(), settings
        wanted = -(-corpus.num_words // settings.words_per_round)
        self.rounds_per_epoch = max(1, min(wanted, len(self.blocks)))

    def __len__(self) -> int:
        """Rounds in an epoch."""
        return self.rounds_per_epoch

    def __getitem__(self, step: int) -> np.ndarray:
        """The blocks of a round, (B, 2)."""
        epoch, index = divmod(step, len(self))
        blocks = self.blocks
        if self.settings.shuffle:
            blocks = np.random.default_rng([self.settings.seed, epoch]).permutation(blocks)
        return np.array_split(blocks, len(self))[index]

    def num_words(self, step: int) -> int:
        """The words of a round."""
        return int(np.diff(self[step]).sum())


class _Work:
    """What one process does with its part of a round, by threads or on a device."""

    def __init__(
        self,
        model: JoseModel,
        settings: FitSettings,
        keep: np.ndarray,
        thresholds: np.ndarray,
        aliases: np.ndarray,
        first_word: int,
        first_document: int,
        offset: int,
    ):
        self.model, self.settings, config = model, settings, model.config
        self.draws = (keep, thresholds, aliases, config.window_size, config.num_negatives)
        self.first_word, self.first_document, self.offset = first_word, first_document, offset
        self.has_two = not config.is_joint
        num_threads = settings.num_threads or num_cores()
        self.num_pieces = num_threads if settings.device is None else 1
        if settings.device is not None and (first_word or first_document):
            raise ValueError(
                "old rows can be held only by the engine of threads: leave out the device"
            )

    def __enter__(self) -> "_Work":
        self.resources = contextlib.ExitStack()
        if self.settings.device is None:
            self.pool = self.resources.enter_context(ThreadPoolExecutor(self.num_pieces))
            return self
        # On the CPU this is the model itself; elsewhere a copy, which `go` brings home.
        device = self.settings.device
        self.device_model: Any = self.model
        if torch.device(device).type != "cpu":
            self.device_model = cast(Any, JoseModel(self.model.config)).to(device)
        for part in self.device_model.children():
            part.sparse = True
        is_calibrated = "none" not in (self.model.config.step_factors or [])
        self.optimizer = SphericalSGD(
            self.device_model.parameters(), self.settings.learning_rate, is_calibrated=is_calibrated
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self.resources.close()
        self.model.zero_grad()
        for part in self.model.children():
            cast(torch.nn.Embedding, part).sparse = False

    def go(
        self,
        corpus: Corpus,
        pieces: list[np.ndarray],
        rates: list[float],
        step: int,
        rank: int,
    ) -> Tensor:
        """Sum and number of the losses of words, and of documents."""
        is_away = self.settings.device is not None and self.device_model is not self.model
        if is_away:
            self.device_model.load_state_dict(self.model.state_dict())
        engine = self._thread if self.settings.device is None else self._batches

        def one(number: int) -> Any:
            piece = corpus.gather(pieces[number])
            state = np.random.SeedSequence([self.settings.seed, step, rank, number])
            return engine(piece, rates, int(state.generate_state(1, np.uint64)[0]))

        numbers = range(len(pieces))
        results = self.pool.map(one, numbers) if self.num_pieces > 1 else map(one, numbers)
        losses = torch.tensor(list(results), dtype=torch.float64).sum(0)
        if is_away:
            self.model.load_state_dict(self.device_model.state_dict())
        return losses

    def _thread(self, piece: Any, rates: list[float], seed: int) -> tuple:
        config, model = self.model.config, self.model
        tokens, starts, ids = piece
        tables = (model.word_embeddings, model.context_embeddings, model.document_embeddings)
        return cast(Any, train_piece)(
            tokens,
            starts,
            ids + self.offset,
            *(cast(Any, table).weight.data.numpy() for table in tables),
            *self.draws,
            config.num_document_updates,
            np.float32(config.margin),
            np.float32(config.loss_scale),
            constant(config.loss == "cross_entropy"),
            constant(bool(config.is_joint)),
            *(constant(FACTORS[factor]) for factor in config.step_factors or []),
            constant(config.use_retraction),
            *rates,
            self.first_word,
            self.first_document,
            np.uint64(seed),
        )

    def _batches(self, piece: Any, rates: list[float], seed: int) -> tuple:
        config, settings, model = self.model.config, self.settings, self.device_model
        if not config.use_retraction or settings.device is None:
            raise ValueError("on a device, rows return to length 1 after every step")
        tokens, starts, ids = piece
        losses = np.zeros(4)
        for number, first in enumerate(range(0, len(tokens), settings.batch_size)):
            last = min(first + settings.batch_size, len(tokens))
            low = int(np.searchsorted(starts, first, side="right")) - 1
            high = int(np.searchsorted(starts, last, side="left"))
            state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
            found = sample_pairs(
                tokens[first:last],
                np.clip(starts[low : high + 1], first, last) - first,
                ids[low:high] + self.offset,
                *self.draws,
                state,
            )
            pairs, negatives, singles, single_negatives = (
                torch.from_numpy(values).to(settings.device) for values in found
            )
            share = first / len(tokens)
            self.optimizer.param_groups[0]["lr"] = rates[0] + (rates[1] - rates[0]) * share
            if config.is_joint:
                batches = [(pairs[0], pairs[1], pairs[2], negatives)]
            else:
                batches = [
                    (pairs[0], pairs[1], None, negatives),
                    (singles[0], None, singles[1], single_negatives),
                ]
            self.optimizer.zero_grad()
            for index, batch in enumerate(batches):
                names = ("word_ids", "context_ids", "document_ids", "negative_ids")
                count = int((batch[3] != batch[0][:, None]).sum())
                if not count:
                    continue
                total = model(**dict(zip(names, batch, strict=True))).loss * count
                repeats = config.num_document_updates if index else 1
                (repeats * total).backward()
                losses[2 * index : 2 * index + 2] += total.item(), count
            self.optimizer.step()
        return tuple(losses)


class _Joined:
    """The texts of several data sets, one after the other."""

    def __init__(self, names: list[str], split: str):
        self.parts = [load_texts(name, split=split) for name in names]

    def __iter__(self) -> Iterator[str]:
        for part in self.parts:
            for batch in cast(Any, part).iter(1000):
                yield from batch["text"]


def export(
    model: JoseModel, words: list[str], recipe: JoseRecipe, run_folder: Path, output_dir: Path
) -> None:
    """Puts what is published of a trained model into `output_dir`; `config.json` comes last.

    That is the most frequent words and, if the recipe says so, the documents, in float16. Contexts
    are needed for training alone.
    """
    kept = len(words) if recipe.max_words is None else min(recipe.max_words, len(words))
    documents = model.document_embeddings
    sizes = {
        "vocab_size": kept + 1,
        "num_documents": model.config.num_documents if recipe.has_documents else 0,
        "has_context_embeddings": False,
    }
    config = type(model.config).from_dict(model.config.to_dict() | sizes)
    published = JoseModel(config)
    published.word_embeddings.weight.data.copy_(model.word_embeddings.weight.data[: kept + 1])
    published.word_counts.copy_(model.word_counts[: kept + 1])
    if published.document_embeddings is not None and documents is not None:
        published.document_embeddings.weight.data.copy_(documents.weight.data)
    partial = run_folder / "export"
    shutil.rmtree(partial, ignore_errors=True)
    published.eval().save_pretrained(partial, state_dict=half_precision(published))
    tokenizer = build_tokenizer(
        words[:kept], lowercase=recipe.lowercase, word_pattern=recipe.word_pattern
    )
    tokenizer.save_pretrained(partial)
    names = sorted(path.name for path in partial.iterdir())
    for name in sorted(names, key="config.json".__eq__):
        move_atomically(partial / name, output_dir / name)
    partial.rmdir()


def _documents_before(
    model: JoseModel,
    corpus: Corpus,
    blocks: np.ndarray,
    offset: int,
    accelerator: Accelerator | None,
) -> tuple[Tensor, Tensor] | None:
    """The documents of a round, as they are now, for `_average`."""
    if accelerator is None or accelerator.num_processes == 1:
        return None
    rows = torch.from_numpy(np.unique(corpus.gather(blocks)[2])) + offset
    assert model.document_embeddings is not None
    return rows, model.document_embeddings.weight.data[rows]


def _average(
    model: JoseModel,
    before: tuple[Tensor, Tensor] | None,
    losses: Tensor,
    first_word: int,
    accelerator: Accelerator | None,
) -> None:
    """Makes the tables of all processes equal: means of words, each document from its process."""
    if before is None:
        return
    assert accelerator is not None
    assert model.context_embeddings is not None and model.document_embeddings is not None
    to_sphere = F.normalize if model.config.use_retraction else torch.clone
    for table in (model.word_embeddings, model.context_embeddings):
        free = table.weight.data[first_word:]
        if len(free):
            mean = cast(Tensor, accelerator.reduce(free.to(accelerator.device), "mean"))
            free.copy_(to_sphere(mean))
    rows, old = before
    documents = model.document_embeddings.weight.data[rows]
    change = cast(Tensor, accelerator.reduce((documents - old).to(accelerator.device), "sum"))
    model.document_embeddings.weight.data[rows] = to_sphere(old + change.cpu())
    losses.copy_(cast(Tensor, accelerator.reduce(losses.to(accelerator.device), "sum")))
