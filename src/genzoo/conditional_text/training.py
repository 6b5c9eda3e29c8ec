"""How the text models of the room are trained: thin calls of transformers' Trainer."""

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, cast

import datasets
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.utils import logging

from ..data import load_texts
from ..runtime import (
    Progress,
    Run,
    command,
    generator_for,
    half_precision,
    hardware,
    move_atomically,
    training_of,
    update_results,
    versions,
)
from .collation import (
    IGNORED,
    CausalCollator,
    MaskedCollator,
    PrefixCollator,
    class_names_of,
    encode,
)
from .modeling_conditional_bert import (
    NEW_WEIGHTS,
    ConditionalBertConfig,
    ConditionalBertLMHeadModel,
    unwanted_tokens,
)
from .tokenization import build_tokenizer, tokens_in, trim_tokenizer

logger = logging.get_logger(__name__)


class LengthOrder(Sampler[int]):
    """Texts of about the same length next to each other, in another order every epoch.

    The order depends on seed and epoch alone, so that all processes have the same one, of which
    each takes its share, and a resumed run goes on with its own. transformers' sampler draws from
    torch's own generator, and keeps neither promise.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = [*lengths], batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order; accelerate's loaders say when."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = generator_for(self.seed, self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class _OrderedTrainer(Trainer):
    """transformers' Trainer, with `LengthOrder` where it groups texts by length."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        table: Any = self.train_dataset if train_dataset is None else train_dataset
        names = getattr(table, "column_names", None) or []
        if self.args.train_sampling_strategy != "group_by_length" or "input_ids" not in names:
            return super()._get_train_sampler(train_dataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        lengths = [len(tokens) for tokens in table["input_ids"]]
        return LengthOrder(lengths, size * self.args.world_size, seed)


# What PEFT puts into the names of weights that it learns whole, or adds to.
_OF_PEFT = re.compile(r"\.(modules_to_save|lora_A|lora_B)\.\w+(?=\.weight$)")


class ConditionalTextTrainer(_OrderedTrainer):
    """transformers' Trainer with what a conditional language model wants otherwise.

    - The maps and the class embeddings, which are new where all else is pretrained, can have a
      learning rate of their own.
    - Label smoothing looks at the same places as the loss: transformers' own shifts labels only for
      models that it knows by name.
    - A batch without class labels, but with vectors, is still one that has labels to be evaluated.
    - A collator for another attention pattern than the model's is refused.

    Args:
        args: transformers' `TrainingArguments`, and as there all else.
        condition_learning_rate: Of the new weights, at its highest; None for that of the others.

    Raises:
        ValueError: If the collator is for another attention pattern, or if there are no new weights
            for the rate.
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *,
        condition_learning_rate: float | None = None,
        **kwargs: Any,
    ):
        if args is None:
            args = TrainingArguments()
        if args.label_names is None:
            args.label_names = ["labels"]
        self.condition_learning_rate = condition_learning_rate
        super().__init__(model, args, **kwargs)
        wanted = getattr(self.data_collator, "attention_pattern", None)
        given = getattr(getattr(self.model, "config", None), "attention_pattern", wanted)
        if wanted is not None and given != wanted:
            raise ValueError(
                f"{type(self.data_collator).__name__} is for attention_pattern {wanted!r}, and the "
                f"model has {given!r}"
            )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of the arguments, the new weights in groups of their own."""
        if self.condition_learning_rate is None:
            return super().create_optimizer(model)
        if self.optimizer is not None:
            raise ValueError("condition_learning_rate is for an optimizer that is made here")
        optimizer = super().create_optimizer(model)
        new = {
            id(weight)
            for name, weight in (self.model if model is None else model).named_parameters()
            if NEW_WEIGHTS.search(_OF_PEFT.sub("", name)) and weight.requires_grad
        }
        if not new:
            raise ValueError(
                "condition_learning_rate is set, and there are no new weights to learn"
            )
        for group in [*optimizer.param_groups]:
            mine = [weight for weight in group["params"] if id(weight) in new]
            group["params"] = [weight for weight in group["params"] if id(weight) not in new]
            if mine:
                settings = {key: value for key, value in group.items() if key != "params"}
                optimizer.add_param_group(
                    settings | {"params": mine, "lr": self.condition_learning_rate}
                )
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's loss, smoothed while training if the arguments say so."""
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        if not smoothing:
            smoother, self.label_smoother = self.label_smoother, None
            try:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            finally:
                self.label_smoother = smoother
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        plain = self.accelerator.unwrap_model(model)
        usual = "causal" if getattr(plain.config, "is_decoder", False) else "bidirectional"
        pattern = inputs.get("attention_pattern") or getattr(
            plain.config, "attention_pattern", usual
        )
        logits = outputs["logits"]
        if pattern != "bidirectional":
            logits, labels = logits[:, :-1], labels[:, 1:]
        total = F.cross_entropy(
            logits.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            label_smoothing=smoothing,
            reduction="sum",
        )
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        loss = total / count
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


class MaskedLMTrainer(_OrderedTrainer):
    """transformers' Trainer for a BERT that computes scores only where a word is to be guessed.

    That is one place in seven, and the scores of all words of a vocabulary cost as much as a layer
    or more.
    """

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of BertForMaskedLM while training; with outputs, computed in its own way."""
        if return_outputs or not model.training or not isinstance(model, BertForMaskedLM):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        is_target = labels != IGNORED
        with self.accelerator.autocast():  # which the model's own forward would have
            hidden_states = model.bert(**inputs).last_hidden_state[is_target]
            scores = model.cls(hidden_states).float()
        loss = F.cross_entropy(scores, labels[is_target], reduction="sum")
        return loss / (len(hidden_states) if num_items_in_batch is None else num_items_in_batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """All that decides how a checkpoint comes out.

    Args:
        name: The checkpoint's name.
        model: Architecture: a ConditionalBertConfig, or a BertConfig for a masked language model.
            With a base, only what the base does not decide counts: condition and dropout.
        data: Hub ids of the training data.
        subsets: Configurations of the data, one for each id; None where it has only one.
        rows: Makes texts of a row of the data: dicts with "text", and "target" or "label" where
            there are some.
        judges: Makers of what tells the classes of texts, for the evaluation.
        split: Of the data.
        base: Checkpoint of a BERT to start from: a name of the zoo or a Hub id. None for random
            weights and a vocabulary made from the data.
        max_tokens: Size of the vocabulary at most; of a base's, the commonest tokens stay.
        min_count: A token that occurs less often is not in the vocabulary.
        max_length: Tokens of a text at most.
        num_steps: Steps.
        batch_size: Texts in a batch, over all processes together.
        learning_rate: Of AdamW, at its highest: it rises linearly, then falls linearly to zero.
        condition_learning_rate: The same of maps and class embeddings; None for no other.
        warmup_ratio: Share of the steps in which it rises.
        weight_decay: Of AdamW.
        label_smoothing: Share of the target that is spread over the vocabulary.
        top_p: The published model draws from the tokens that make up this share of the probability,
            unless it is told otherwise.
        seed: Of the weights, the order of the texts, and all that is drawn.
        log_every: Steps between entries of the log.
        save_every: Steps between checkpoints.
    """

    name: str
    model: BertConfig
    data: list[str]
    rows: Callable[[Mapping[str, Any]], Iterator[dict[str, Any]]]
    subsets: list[str | None] | None = None
    judges: tuple[Callable[[], Any], ...] = ()
    split: str = "train"
    base: str | None = None
    max_tokens: int = 6_000
    min_count: int = 5
    max_length: int = 128
    num_steps: int = 1_000
    batch_size: int = 32
    learning_rate: float = 5e-4
    condition_learning_rate: float | None = None
    warmup_ratio: float = 0.05
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    top_p: float = 0.95
    seed: int = 0
    log_every: int = 50
    save_every: int = 500

    def __post_init__(self):
        for name in ("num_steps", "batch_size", "log_every", "save_every", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def smoke(self) -> "TextRecipe":
        """The same recipe, two steps of a small network from random weights."""
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        fields: dict[str, Any] = self.model.to_diff_dict() | small | {"intermediate_size": 32}
        fields = {key: value for key, value in fields.items() if key in _fields(self.model)}
        return dataclasses.replace(
            self,
            model=type(self.model)(**fields),
            base=None,
            min_count=1,
            num_steps=2,
            batch_size=2,
            save_every=1,
        )

    def identity(self) -> dict[str, Any]:
        """All fields as JSON-able data."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        model = self.model.to_diff_dict()
        model.pop("transformers_version", None)
        values.pop("judges")  # they come after the training
        return values | {"model": model, "rows": self.rows.__name__}


def _fields(config: BertConfig) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def train_text(
    recipe: TextRecipe,
    dataset: str | Path | Sequence[str | Mapping[str, Any]] | None = None,
    init: str | Path | None = None,
    *,
    output_dir: str | Path,
    resume: bool = False,
    tracker: str | None = None,
) -> Path:
    """Trains a text model and leaves a folder that the Auto classes open, tokenizer included.

    The state of the run lies in `output_dir/run`; all else in the folder is what can be published.

    Args:
        recipe: How.
        dataset: Texts in the place of the recipe's: a name or path for `load_texts`, or rows with
            "text", and with "target" or "label" where the recipe wants them.
        init: A checkpoint (folder or Hub id) to start from: the recipe's base, or another BERT in
            its place.
        output_dir: The folder.
        resume: Whether to continue a run that the folder holds.
        tracker: None for JSON lines, or a tracker of transformers such as "tensorboard".

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder holds something and `resume` is not set.
        ValueError: If the folder holds another run, or the texts do not fit the recipe.
        FloatingPointError: If the loss is no longer finite; the checkpoints from before stay.
    """
    output_dir = Path(output_dir)
    if recipe.base is not None and init is None:
        raise ValueError(f"{recipe.name} starts from {recipe.base}: give its folder as init")
    is_given = dataset is not None and not isinstance(dataset, str | Path)
    source = "texts" if is_given else str(dataset or " + ".join(recipe.data))
    identity = recipe.identity() | {"data": source, "init": None if init is None else str(init)}
    arguments = TrainingArguments(
        output_dir=str(output_dir / "run" / "checkpoints"),
        max_steps=recipe.num_steps,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_ratio,
        weight_decay=recipe.weight_decay,
        label_smoothing_factor=recipe.label_smoothing,
        max_grad_norm=1.0,
        logging_nan_inf_filter=False,  # it would log a bad loss as none at all
        seed=recipe.seed,
        logging_steps=recipe.log_every,
        save_steps=recipe.save_every,
        save_total_limit=2,
        train_sampling_strategy="group_by_length",
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        report_to=tracker or "none",
        disable_tqdm=True,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    if recipe.batch_size % arguments.world_size:
        raise ValueError(
            f"batch_size {recipe.batch_size} cannot be split over {arguments.world_size} processes"
        )
    if arguments.n_gpu > 1:  # several GPUs are for several processes
        arguments._n_gpu = 1
    arguments.per_device_train_batch_size = recipe.batch_size // arguments.world_size
    is_main = arguments.process_index == 0
    run = Run(output_dir, identity, resume=resume, is_main=is_main)
    with arguments.main_process_first():
        table = load_rows(recipe, dataset)
        model, tokenizer = build(recipe, table, init)
        config = model.config
        has_targets = "target" in table.column_names
        texts = encode(
            table,
            tokenizer,
            target="target" if has_targets else None,
            class_names=getattr(config, "class_names", None),
            max_length=min(recipe.max_length, config.max_position_embeddings),
        )
    run.begin()

    is_masked = isinstance(model, BertForMaskedLM)
    checkpoint = _last_whole(run.folder / "checkpoints") if resume else None
    step = 0 if checkpoint is None else int(checkpoint.name.split("-")[1])
    run.forget_log_after(step)
    log = _Log(run.folder / "log.jsonl", recipe, step)
    if is_masked:
        generators = (
            generator_for(recipe.seed, index, arguments.process_index) for index in count(step)
        )
        trainer = MaskedLMTrainer(
            model,
            arguments,
            train_dataset=texts,
            data_collator=MaskedCollator(tokenizer, generators=generators),
        )
    else:
        collator = PrefixCollator if has_targets else CausalCollator
        trainer = ConditionalTextTrainer(
            model,
            arguments,
            train_dataset=texts,
            data_collator=collator(tokenizer),
            condition_learning_rate=recipe.condition_learning_rate,
        )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(log)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    log.close()

    if is_main:
        published = trainer.accelerator.unwrap_model(trainer.model)
        published.config.use_cache = True  # which the Trainer turns off
        if published.can_generate():
            # Without top_k=0, transformers would draw from the 50 likeliest tokens at most.
            published.generation_config.update(do_sample=True, top_p=recipe.top_p, top_k=0)
        export(published, tokenizer, run.folder, output_dir)
        is_by_the_book = source == " + ".join(recipe.data) and _is_base(init, recipe.base)
        update_results(
            output_dir,
            # Other data or another start make another checkpoint, which is called as its folder.
            name=recipe.name if is_by_the_book else output_dir.resolve().name,
            recipe=recipe.name,
            task="fill-mask" if is_masked else "conditional-text-generation",
            training={
                "command": command(),
                "dataset": " + ".join(dict.fromkeys(source.split(" + "))),
                "split": recipe.split,
                "num_steps": recipe.num_steps,
                "num_texts": recipe.num_steps * recipe.batch_size,
                "batch_size": recipe.batch_size,
                "seed": recipe.seed,
                "num_processes": arguments.world_size,
                "seconds": log.seconds,
                "hardware": hardware(),
                "versions": versions(),
                "init": training_of(init),
            },
            **({"evaluation": []} if step < recipe.num_steps else {}),
        )
    trainer.accelerator.wait_for_everyone()
    return output_dir


def _is_base(init: str | Path | None, base: str | None) -> bool:
    """Whether a folder holds what the recipe starts from: by its name, or by what it says."""
    if init is None or base is None:
        return init is base
    name, results = base.rpartition("/")[2], Path(init) / "results.json"
    said = json.loads(results.read_text()).get("name") if results.is_file() else None
    return name == said or any(part.endswith(name) for part in Path(init).resolve().parts)


def load_rows(
    recipe: TextRecipe,
    dataset: str | Path | Sequence[str | Mapping[str, Any]] | None = None,
    *,
    split: str | None = None,
) -> datasets.Dataset:
    """The texts of a recipe, or others, as a table.

    Args:
        recipe: Which makes texts of rows.
        dataset: As for `train_text`.
        split: In the place of the recipe's.

    Returns:
        Of the recipe's own data, the training split lacks what the held-out splits have, word for
        word, and a held-out split has no text twice.

    Raises:
        FileNotFoundError: If there is no such data set.
        ValueError: If there is no text.
    """
    is_held_out = split is not None and split != recipe.split
    if dataset is not None and not isinstance(dataset, str | Path):
        given: Iterable[Any] = dataset
        rows = [{"text": row} if isinstance(row, str) else {**row} for row in given]
    else:
        rows = _rows_of(recipe, dataset, split or recipe.split)
        if dataset is None and not is_held_out:
            held_out = _held_out(recipe)
            kept = [row for row in rows if words_of(row) not in held_out]
            if len(kept) < len(rows):
                logger.warning(
                    f"{recipe.name}: {len(rows) - len(kept):,} of {len(rows):,} texts are among "
                    "the held-out ones, and are left out of the training"
                )
            rows = kept
        elif is_held_out:
            rows = [*{words_of(row): row for row in rows}.values()]
    if not rows:
        raise ValueError(f"there is no text for {recipe.name}")
    return datasets.Dataset.from_list(rows)


def _rows_of(recipe: TextRecipe, dataset: str | Path | None, split: str) -> list[dict[str, Any]]:
    names = recipe.data if dataset is None else [str(dataset)]
    subsets = recipe.subsets if dataset is None and recipe.subsets else [None] * len(names)
    rows = []
    for name, subset in zip(names, subsets, strict=True):
        table = load_texts(name, split=split, subset=subset)
        known = getattr(table.features.get("label"), "names", None)
        for index, row in enumerate(cast(Iterable[Any], table)):
            if dataset is not None and not str(row.get("text") or "").strip():
                raise ValueError(f"row {index} of {name} has no text: it is {row.get('text')!r}")
            try:
                texts = [*recipe.rows(row)]
            except KeyError as error:
                raise ValueError(
                    f"{name} has no column {error}, only {', '.join(table.column_names)}"
                ) from None
            for text in texts:
                if "label" in text and text["label"] is None:
                    raise ValueError(f"row {index} of {name} has no label")
                if known and isinstance(text.get("label"), int):
                    text["label"] = known[text["label"]]
                rows.append(text)
    return rows


def words_of(row: Mapping[str, Any]) -> str:
    """What two texts share that are the same but for blanks."""
    return "".join(row["text"].split()) + "\n" + "".join(row.get("target", "").split())


def _held_out(recipe: TextRecipe) -> set[str]:
    """The texts of the splits that are not for training."""
    found = set()
    for split in {"validation", "test"} - {*recipe.split.split("+")}:
        subsets = recipe.subsets or [None] * len(recipe.data)
        for name, subset in zip(recipe.data, subsets, strict=True):
            one = dataclasses.replace(recipe, data=[name], subsets=[subset])
            with contextlib.suppress(FileNotFoundError):  # not every data set has both
                found |= {words_of(row) for row in _rows_of(one, None, split)}
    return found


def build(
    recipe: TextRecipe, table: datasets.Dataset, init: str | Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model and tokenizer at the start of a run.

    From a checkpoint, its vocabulary is cut down to what the texts use; else one is made of them.

    Raises:
        ValueError: If the texts do not fit the recipe, or the checkpoint is no BERT.
    """
    is_conditional = isinstance(recipe.model, ConditionalBertConfig)
    fields: dict[str, Any] = {}
    if is_conditional and recipe.model.num_classes:
        fields = {"class_names": recipe.model.class_names or class_names_of(table)}
        fields["num_classes"] = len(fields["class_names"])
    has_targets = "target" in table.column_names
    texts = [
        text for name in ("text", "target") if name in table.column_names for text in table[name]
    ]
    adds_end = has_targets or not is_conditional
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        if init is None:
            tokenizer = build_tokenizer(
                texts, max_tokens=recipe.max_tokens, min_count=recipe.min_count, adds_end=adds_end
            )
            known: dict[str, Any] = {
                key: getattr(recipe.model, key) for key in _fields(recipe.model)
            }
            special: dict[str, Any] = {
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": tokenizer.cls_token_id,
                "eos_token_id": tokenizer.sep_token_id,
            }
            config_class: Any = type(recipe.model)
            config = config_class(**known | fields | special | {"vocab_size": len(tokenizer)})
            model = (
                ConditionalBertLMHeadModel(config) if is_conditional else BertForMaskedLM(config)
            )
        else:
            if not is_conditional:
                raise ValueError(f"{recipe.name} is trained from random weights, not from {init}")
            old = AutoTokenizer.from_pretrained(init)
            kept = tokens_in(old, texts, max_tokens=recipe.max_tokens, min_count=recipe.min_count)
            tokenizer = trim_tokenizer(old, kept, adds_end=adds_end)
            chosen = {
                name: getattr(recipe.model, name)
                for name in _fields(recipe.model) - _fields(BertConfig())
                if name not in ("num_classes", "class_names")
            }
            for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
                chosen[name] = getattr(recipe.model, name)
            model = ConditionalBertLMHeadModel.from_bert(
                str(init), keep_tokens=kept, new_head=True, **chosen | fields
            )
        if is_conditional:
            model.generation_config.suppress_tokens = unwanted_tokens(tokenizer)
            for name in ("pad", "bos", "eos"):
                token = getattr(model.config, f"{name}_token_id")
                setattr(model.generation_config, f"{name}_token_id", token)
    return model, tokenizer


class _Log(TrainerCallback):
    """Writes JSON lines, shows progress, and stops a run that has gone wrong."""

    def __init__(self, path: Path, recipe: TextRecipe, step: int):
        lines = path.read_text().splitlines() if path.exists() else []
        self.path, self.batch_size = path, recipe.batch_size
        self.progress = Progress(
            samples=step * recipe.batch_size,
            total=recipe.num_steps * recipe.batch_size,
            seconds=json.loads(lines[-1])["seconds"] if lines else 0.0,
            enabled=True,
        )
        self.seconds = self.progress.seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.bar.disable = not state.is_world_process_zero
        self.progress.update(self.batch_size)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" not in logs:
            return
        loss = float(logs["loss"])
        if loss != loss or loss in (float("inf"), -float("inf")):
            raise FloatingPointError(
                f"the loss was not finite before step {state.global_step}; the checkpoints before "
                f"it are in {args.output_dir}"
            )
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = {
                "step": state.global_step,
                "loss": loss,
                "seconds": self.progress.seconds,
                "samples_per_second": self.progress.samples_per_second,
            }
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        self.progress.show({"loss": loss})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The last thing that is written: a folder without it may be half of a checkpoint.
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()

    def close(self) -> None:
        """Ends the bar and stops the clock."""
        self.seconds = self.progress.seconds
        self.progress.close()


_WHOLE = "whole"


def _last_whole(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; what is newer is removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    whole = [path for path in found if (path / _WHOLE).is_file()]
    for path in found:
        if not (path / _WHOLE).is_file():
            shutil.rmtree(path, ignore_errors=True)  # another process may be at it
    return whole[-1] if whole else None


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    run_folder: Path,
    output_dir: Path,
) -> None:
    """Puts a finished model into `output_dir`; `config.json` comes last, when all else is there.

    Raises:
        ValueError: If a weight is beyond the range of float16.
    """
    partial = run_folder / "export"
    shutil.rmtree(partial, ignore_errors=True)
    model.eval().save_pretrained(partial, state_dict=half_precision(model))
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(partial)
    names = sorted(path.name for path in partial.iterdir() if path.name != "config.json")
    for name in [*names, "config.json"]:
        move_atomically(partial / name, output_dir / name)
    partial.rmdir()
