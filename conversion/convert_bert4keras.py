r"""BERTs of TensorFlow: Google's and bert4keras', with a condition or without.

Checkpoints of https://github.com/google-research/bert, and those that save_weights_as_checkpoint of
https://github.com/bojone/bert4keras wrote, become a folder that every BERT of transformers opens,
and `from_bert` of the conditional ones. bert_config.json and vocab.txt lie beside the checkpoint:

    python conversion/convert_bert4keras.py chinese_L-12_H-768_A-12/bert_model.ckpt FOLDER

What save_weights of Keras 2 wrote, be it HDF5 or a checkpoint, is read too. If it has conditional
LayerNorms, it becomes a ConditionalBertLMHeadModel:

    python conversion/convert_bert4keras.py best_model.weights FOLDER --config bert_config.json \
        --vocab vocab.txt --keep-tokens simplified --class-names negative positive

It takes no TensorFlow; HDF5 takes h5py. What makes a LayerNorm conditional is in the files of
save_weights only: save_weights_as_checkpoint leaves it out without a word.

Three things are in no file. "gelu" is the exact one here, in transformers and in bert4keras, while
Google's program computes it by way of tanh: to follow it to the last digits, set `hidden_act` to
"gelu_new". Which tokens a token sees is up to --attention-pattern, or, without a condition, to
whoever opens the folder: bert4keras' application="lm" is BertLMHeadModel with is_decoder=True. And
only --cased makes a tokenizer that keeps capital letters.
"""

import argparse
import json
import logging
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from numba import njit
from numpy.typing import NDArray
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.activations import ACT2FN

from genzoo.conditional_text import ConditionalBertConfig, ConditionalBertLMHeadModel
from genzoo.conditional_text.modeling_conditional_bert import unwanted_tokens
from genzoo.conditional_text.tokenization import with_ends

logger = logging.getLogger("genzoo.conversion")

Numbers = NDArray[np.floating]

# Names: transformers', Google's, bert4keras'. The last are those of a layer and of the attribute of
# it that holds the part.

LAYER = ("bert.encoder.layer.{}.", "bert/encoder/layer_{}/", "Transformer-{}-")
PARTS_OF_A_LAYER = [
    ("attention.self.query", "attention/self/query", "MultiHeadSelfAttention/q_dense"),
    ("attention.self.key", "attention/self/key", "MultiHeadSelfAttention/k_dense"),
    ("attention.self.value", "attention/self/value", "MultiHeadSelfAttention/v_dense"),
    ("attention.output.dense", "attention/output/dense", "MultiHeadSelfAttention/o_dense"),
    ("attention.output.LayerNorm", "attention/output/LayerNorm", "MultiHeadSelfAttention-Norm"),
    ("intermediate.dense", "intermediate/dense", "FeedForward/i0_dense"),
    ("output.dense", "output/dense", "FeedForward/o_dense"),
    ("output.LayerNorm", "output/LayerNorm", "FeedForward-Norm"),
]
MODULES = [
    *(tuple(map("".join, zip(LAYER, part, strict=True))) for part in PARTS_OF_A_LAYER),
    ("bert.embeddings.LayerNorm", "bert/embeddings/LayerNorm", "Embedding-Norm"),
    ("bert.pooler.dense", "bert/pooler/dense", "Pooler-Dense"),
    ("cls.predictions.transform.dense", "cls/predictions/transform/dense", "MLM-Dense"),
    ("cls.predictions.transform.LayerNorm", "cls/predictions/transform/LayerNorm", "MLM-Norm"),
]
OF_DENSE = {"kernel": "weight", "bias": "bias"}
OF_LAYER_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "gamma_dense/kernel": "scale.weight",
    "beta_dense/kernel": "shift.weight",
    "hidden_dense/kernel": "bottleneck.weight",
}
KEYS = {
    f"{theirs}/{name}": f"{ours}.{new}"
    for ours, *both in MODULES
    for theirs in both
    for name, new in (OF_LAYER_NORM if ours.endswith("LayerNorm") else OF_DENSE).items()
} | {
    "bert/embeddings/word_embeddings": "bert.embeddings.word_embeddings.weight",
    "bert/embeddings/position_embeddings": "bert.embeddings.position_embeddings.weight",
    "bert/embeddings/token_type_embeddings": "bert.embeddings.token_type_embeddings.weight",
    "cls/predictions/output_bias": "cls.predictions.bias",
    "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
    "cls/seq_relationship/output_bias": "cls.seq_relationship.bias",
    "Embedding-Token/embeddings": "bert.embeddings.word_embeddings.weight",
    "Embedding-Position/embeddings": "bert.embeddings.position_embeddings.weight",
    "Embedding-Segment/embeddings": "bert.embeddings.token_type_embeddings.weight",
    "MLM-Bias/beta": "cls.predictions.bias",
    "NSP-Proba/kernel": "cls.seq_relationship.weight",
    "NSP-Proba/bias": "cls.seq_relationship.bias",
    # Of a layer without a name, which Keras calls embedding, embedding_1, ....
    "embedding/embeddings": "bert.class_embeddings.weight",
}
LAYER_NUMBER = re.compile(r"^(bert/encoder/layer_|Transformer-)(\d+)")
CLASSES_NUMBER = re.compile(r"^embedding_\d+(?=/)")

UNNEEDED = (
    r"^global_step$|/(adam|lamb)_[mv]$|/(Adam|AdamWeightDecayOptimizer|LAMBOptimizer)(_1)?$"
    r"|^beta[12]_power$|^optimizer/|/\.OPTIMIZER_SLOT/|^save_counter/"
)
"""Names of what an optimizer leaves in a checkpoint, and of TensorFlow's own counters."""

HEADS = ("bert.pooler.", "cls.seq_relationship.")
"""What only a model for pretraining has; the others do without."""


def rename(names: Collection[str], checkpoint: str | Path) -> dict[str, str]:
    """Names of the parameters -> those of the variables that they come from.

    Raises:
        ValueError: If a variable is none of a BERT, or two are the same parameter.
    """
    renamed: dict[str, str] = {}
    unknown = []
    for name in names:
        number = LAYER_NUMBER.match(name)
        pattern = CLASSES_NUMBER.sub("embedding", LAYER_NUMBER.sub(r"\1{}", name))
        if pattern not in KEYS:
            unknown.append(name)
            continue
        ours = KEYS[pattern].format(number[2] if number else "")
        if ours in renamed:
            raise ValueError(f"{checkpoint} has both {renamed[ours]} and {name}, where one belongs")
        renamed[ours] = name
    if unknown:
        raise ValueError(
            f"{checkpoint} has {_some(unknown, 'variables')} that no BERT has; if they are of a "
            "network beside it, --leave-out leaves them out"
        )
    return renamed


def _some(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}, such as {names[0]},"


# Checkpoints of TensorFlow: an index, which is a table in LevelDB's manner, and the numbers, in one
# file or more. In https://github.com/tensorflow/tensorflow the table is described in
# tensorflow/core/lib/io/table_format.txt, its values in core/protobuf/tensor_bundle.proto.

MAGIC = bytes.fromhex("57fb808b247547db")
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
KERAS_KEY = re.compile(r"layer_with_weights-\d+/([^.]+)/\.ATTRIBUTES/VARIABLE_VALUE")
FLOATS = {1: "<f4", 2: "<f8", 19: "<f2"}
"""Numbers of core/framework/types.proto."""


class Entry(NamedTuple):
    """What the index says of a tensor."""

    type: int
    shape: list[int]
    file: Path
    offset: int
    size: int
    checksum: int
    is_sliced: bool


def read_index(prefix: str) -> dict[str, Entry]:
    """The tensors of a checkpoint, `prefix` being its path without ".index"."""
    path = Path(f"{prefix}.index")
    data = path.read_bytes()
    footer = data[-48:]
    if not footer.endswith(MAGIC):
        raise ValueError(f"{path} is cut off, or no index of a checkpoint of TensorFlow")
    _, at = _varint(footer, 0)  # offset and size of the meta index, which is empty
    _, at = _varint(footer, at)
    blocks = _block(path, data, footer[at:])
    (_, header), *pairs = [pair for _, handle in blocks for pair in _block(path, data, handle)]
    head: dict[int, Any] = {1: 1, 2: 0} | dict(_fields(header))
    if head[2]:
        raise ValueError(f"{path} is of a machine with the other order of bytes")
    entries = {}
    for name, value in pairs:
        zeros: dict[int, Any] = {1: 0, 2: b"", 3: 0, 4: 0, 5: 0, 6: b""}  # which are not written
        fields = zeros | dict(_fields(value))
        shape = [dict(_fields(size)).get(1, 0) for _, size in _fields(fields[2])]
        file = Path(f"{prefix}.data-{fields[3]:05d}-of-{head[1]:05d}")
        crc = int.from_bytes(fields[6], "little")
        entries[name] = Entry(fields[1], shape, file, fields[4], fields[5], crc, 7 in fields)
    return entries


def read_bytes(name: str, entry: Entry) -> bytes:
    """A tensor as it is stored, if it is all there and its checksum is right."""
    with entry.file.open("rb") as file:
        file.seek(entry.offset)
        data = file.read(entry.size)
    if len(data) < entry.size:
        raise ValueError(f"{entry.file} is cut off before the end of {name}")
    summed = data
    if name == GRAPH:  # a string: its length counts as four bytes, however it is written
        length, at = _varint(data, 0)
        summed = length.to_bytes(4, "little") + data[at:]
    if checksum(summed) != entry.checksum:
        raise ValueError(f"{entry.file} is damaged: the checksum of {name} is wrong")
    return data


def read_tensor(name: str, entry: Entry) -> Numbers:
    """A tensor of floating-point numbers."""
    if entry.type not in FLOATS or entry.is_sliced:
        how = "in slices" if entry.is_sliced else f"as TensorFlow's type {entry.type}"
        raise ValueError(f"{name} is stored {how}, which is not read here")
    return np.frombuffer(read_bytes(name, entry), FLOATS[entry.type]).reshape(entry.shape)


def read_keras_names(graph: Entry) -> dict[str, str]:
    """Names in a checkpoint that Keras wrote -> each its layer and the attribute of it.

    They only number the layers, whose names stand in the graph of objects, at the head of those of
    their variables (core/protobuf/trackable_object_graph.proto).
    """
    data = read_bytes(GRAPH, graph)
    _, at = _varint(data, 0)
    names = {}
    for _, node in _fields(data[at + 4 :]):  # behind the length and a checksum of it
        for attribute in (value for number, value in _fields(node) if number == 2):
            _, full_name, key = (dict(_fields(attribute)).get(field, b"") for field in (1, 2, 3))
            if found := KERAS_KEY.fullmatch(key.decode()):
                names[found[0]] = f"{full_name.decode().split('/')[0]}/{found[1]}"
    return names


def _block(path: Path, data: bytes, handle: bytes) -> Iterator[tuple[str, bytes]]:
    """Keys and values of a block of the table."""
    start, at = _varint(handle, 0)
    size, _ = _varint(handle, at)
    block, crc = data[start : start + size + 1], data[start + size + 1 : start + size + 5]
    if checksum(block) != int.from_bytes(crc, "little"):
        raise ValueError(f"{path} is damaged: the checksum of a block is wrong")
    if block[size]:
        raise ValueError(f"{path} is compressed, as TensorFlow writes none")
    num_restarts = int.from_bytes(block[size - 4 : size], "little")
    key, at = b"", 0
    while at < size - 4 - 4 * num_restarts:
        num_shared, at = _varint(block, at)
        num_new, at = _varint(block, at)
        length, at = _varint(block, at)
        key, at = key[:num_shared] + block[at : at + num_new], at + num_new
        yield key.decode(errors="replace"), block[at : at + length]
        at += length


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of the fields of a protocol buffer."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value, at = _varint(message, at) if key & 7 in (0, 2) else ({1: 8, 5: 4}[key & 7], at)
        if key & 7:  # what was read is a size
            value, at = message[at : at + value], at + value
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number with seven bits in a byte, and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def checksum(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4), which TensorFlow rotates and adds to."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.uint32(0x82F63B78) * (table & 1)
    crc = int(_crc32c(np.frombuffer(data, np.uint8), table))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@njit
def _crc32c(data: NDArray[np.uint8], table: NDArray[np.uint32]) -> int:
    crc = np.uint32(0xFFFFFFFF)
    for byte in data:
        crc = table[(crc ^ byte) & np.uint32(255)] ^ (crc >> np.uint32(8))
    return crc ^ np.uint32(0xFFFFFFFF)


# HDF5. In it Keras numbers the parts of a layer, so that only the order, that in which bert4keras
# makes them, tells query from value, and gain from bias.

MADE = {
    ("MultiHeadSelfAttention", 4): ["q_dense", "k_dense", "v_dense", "o_dense"],
    ("FeedForward", 2): ["i0_dense", "o_dense"],
    ("Norm", 2): ["beta_dense", "gamma_dense"],
    ("Norm", 3): ["hidden_dense", "beta_dense", "gamma_dense"],
}
"""By the end of the layer's name, and the number of its parts."""


def read_hdf5(path: str) -> dict[str, Numbers]:
    """The weights in a file of Keras 2, each by its layer and the attribute of it."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path} is HDF5, which takes h5py: pip install h5py") from error
    weights: dict[str, Numbers] = {}
    try:
        with h5py.File(path) as file:
            root: Any = file.get("model_weights", file)  # where model.save puts them
            if "layer_names" not in root.attrs:
                raise ValueError(f"{path} is not of Keras 2, the only one that bert4keras runs on")
            for layer in map(_text, root.attrs["layer_names"]):
                names = [_text(name) for name in root[layer].attrs["weight_names"]]
                for name, part in zip(names, _parts(path, layer, names), strict=True):
                    weights[f"{layer}/{part}"] = root[layer][name][()]
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return weights


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _parts(path: str, layer: str, names: list[str]) -> list[str]:
    """Names of the weights of a layer -> the attributes that hold them."""
    ends = [name.removesuffix(":0").split("/")[-2:] for name in names]
    found = list(dict.fromkeys(part for part, _ in ends if re.fullmatch(r"dense(_\d+)?", part)))
    order = [int(part.partition("_")[2] or 0) for part in found]
    if order != sorted(order):
        raise ValueError(f"{path} has the parts of {layer} in another order than bert4keras")
    made = dict(zip(found, MADE.get((layer.split("-")[-1], len(found)), found), strict=True))
    return [f"{made[part]}/{name}" if part in made else name for part, name in ends]


# The folder.

FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
OTHER_FIELDS = (
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
)
"""Of bert_config.json, with transformers' defaults. The size of the vocabulary is counted."""

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS, WORD_BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"


def convert(
    checkpoint: str | Path,
    config: str | Path | None = None,
    vocab: str | Path | None = None,
    *,
    keep_tokens: str | Path | Sequence[int] | None = None,
    is_cased: bool = False,
    leave_out: str | None = None,
    **condition: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Makes a model and its tokenizer.

    Args:
        checkpoint: An HDF5 file, or a checkpoint's path without ".index".
        config: bert_config.json; by default the one beside the checkpoint.
        vocab: vocab.txt; likewise.
        keep_tokens: Numbers of the tokens that bert4keras has kept, or that are kept now, in their
            new order; or a JSON file with them; or "simplified" for what its
            `load_vocab(simplified=True, startswith=["[PAD]", "[UNK]", "[CLS]", "[SEP]"])` keeps.
        is_cased: Whether the tokenizer keeps capital letters.
        leave_out: Regular expression of the names of variables that are not the BERT's, such as
            those of a network for images.
        condition: What a ConditionalBertConfig needs and no file has: `bottleneck_activation`, if
            there is a bottleneck, `class_names`, `attention_pattern`. None is the same as nothing.

    Returns:
        A ConditionalBertLMHeadModel if there are conditional LayerNorms, a BertForPreTraining if
        there are its heads, or else a BertForMaskedLM.

    Raises:
        ImportError: If the checkpoint is HDF5 and h5py is missing.
        OSError: If a file is not there.
        StrictDataclassError: If a configuration cannot have such a value.
        ValueError: If one is damaged, or they do not belong together.
    """
    folder = Path(checkpoint).parent
    config, vocab = config or folder / "bert_config.json", vocab or folder / "vocab.txt"
    fields, tokens = read_config(config), read_vocabulary(vocab)
    variables = read_checkpoint(checkpoint, leave_out)
    names = rename(variables, checkpoint)
    if not {WORDS, WORD_BIAS} <= names.keys():
        raise ValueError(f"{checkpoint} has no word embeddings, or no language model head")

    words = variables[names[WORDS]]
    if keep_tokens is not None:
        rows = read_keep_tokens(keep_tokens, tokens)
        if len(words) == len(tokens):  # or else bert4keras has thrown the others away
            words = variables[names[WORDS]] = words[rows]
            variables[names[WORD_BIAS]] = variables[names[WORD_BIAS]][rows]
        tokens = [tokens[row] for row in rows]
    if len(words) != len(tokens):
        raise ValueError(
            f"{checkpoint} has {len(words)} word embeddings, and the vocabulary {len(tokens)} "
            "tokens; if bert4keras was told of keep_tokens, --keep-tokens must say which"
        )
    ids = {token: row for row, token in enumerate(tokens)}
    if missing := [token for token in SPECIAL if token not in ids]:
        raise ValueError(f"the vocabulary has no {missing[0]}, which BERT needs")
    fields |= {"vocab_size": len(tokens), "pad_token_id": ids["[PAD]"]}
    fields |= {"bos_token_id": ids["[CLS]"], "eos_token_id": ids["[SEP]"]}

    shapes = {ours: variables[name].shape for ours, name in names.items()}
    model = make_model(fields, shapes, checkpoint, condition)
    fill(model, variables, names, f"{checkpoint}, read with {config},")
    tokenizer: Any = BertTokenizer(
        vocab=ids,
        do_lower_case=not is_cased,
        mask_token="[MASK]" if "[MASK]" in ids else None,  # transformers would add one
        model_max_length=model.config.max_position_embeddings,
    )
    if isinstance(model, ConditionalBertLMHeadModel):
        # It begins a text that shall go on, and puts no blanks between Chinese characters.
        model.generation_config.suppress_tokens = unwanted_tokens(tokenizer)
        is_causal = model.config.attention_pattern == "causal"
        tokenizer = with_ends(tokenizer, adds_end=not is_causal)
        tokenizer.model_max_length = model.config.max_position_embeddings
    return model.eval(), tokenizer


def read_config(path: str | Path) -> dict[str, Any]:
    """What bert_config.json says."""
    fields = _read_json(path)
    if not isinstance(fields, dict) or (missing := [name for name in FIELDS if name not in fields]):
        what = missing[0] if isinstance(fields, dict) else "fields"
        raise ValueError(f"{path} is no configuration of a BERT: it has no {what}")
    if (activation := fields.get("hidden_act", "gelu")) not in ACT2FN:
        raise ValueError(f"{path}: transformers has no hidden_act {activation!r}")
    return {name: fields[name] for name in (*FIELDS, *OTHER_FIELDS) if name in fields}


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


def read_vocabulary(path: str | Path) -> list[str]:
    """The tokens of vocab.txt."""
    with open(path, encoding="utf-8") as file:
        tokens = [line.rstrip("\n") for line in file]
    if len({*tokens}) < len(tokens):
        raise ValueError(f"{path} has the token {Counter(tokens).most_common(1)[0][0]!r} twice")
    return tokens


def read_checkpoint(path: str | Path, leave_out: str | None = None) -> dict[str, Numbers]:
    """The variables of a BERT by Google's or bert4keras' names; the arguments are `convert`'s."""
    try:
        unneeded = re.compile(UNNEEDED if leave_out is None else f"{UNNEEDED}|{leave_out}")
    except re.error as error:
        raise ValueError(f"{leave_out} is no regular expression: {error}") from error
    path = str(path).removesuffix(".index")
    if Path(path).is_file():
        with open(path, "rb") as file:
            if file.read(8) != b"\x89HDF\r\n\x1a\n":
                raise ValueError(f"{path} is no HDF5, and no checkpoint with an .index beside it")
        readers = {name: partial(np.asarray, array) for name, array in read_hdf5(path).items()}
    else:
        entries = read_index(path)
        graph = entries.pop(GRAPH, None)
        names = {} if graph is None else read_keras_names(graph)
        readers = {names.get(key, key): partial(read_tensor, key, entries[key]) for key in entries}
        assert len(readers) == len(entries)
    left_out = [name for name in readers if unneeded.search(name)]
    if left_out:
        logger.warning(f"{_some(left_out, 'variables')} are not the model's and were left out")
    return {name: read() for name, read in readers.items() if name not in {*left_out}}


def read_keep_tokens(keep_tokens: str | Path | Sequence[int], tokens: list[str]) -> list[int]:
    """Numbers of the tokens that are kept, as for `convert`."""
    if keep_tokens == "simplified":
        first = [tokens.index(token) for token in SPECIAL if token in tokens]
        return first + [
            row
            for row, token in enumerate(tokens)
            if row not in first and not _never_comes_up(token)
        ]
    rows = _read_json(keep_tokens) if isinstance(keep_tokens, str | Path) else [*keep_tokens]
    # Were all of them kept, nobody could tell whether the checkpoint has the new order or the old.
    if (
        not isinstance(rows, list)
        or not all(isinstance(row, int) and 0 <= row < len(tokens) for row in rows)
        or not len({*rows}) == len(rows) < len(tokens)
    ):
        raise ValueError(f"keep_tokens must be different numbers of some of {len(tokens)} tokens")
    return rows


CHINESE = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b73f"
    "\U0002b740-\U0002b81f\U0002b820-\U0002ceaf\U0002f800-\U0002fa1f]"
)


def _never_comes_up(token: str) -> bool:
    """Whether BERT cuts a text inside such a token before it looks for tokens."""
    return len(token) > 1 and any(
        CHINESE.match(char) or char in string.punctuation or unicodedata.category(char)[0] == "P"
        for char in token.removeprefix("##")
    )


def make_model(
    fields: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    checkpoint: str | Path,
    condition: dict[str, Any],
) -> PreTrainedModel:
    """The model whose parameters the variables with these shapes become."""
    condition = {name: value for name, value in condition.items() if value is not None}
    gains = sorted(name for name in shapes if name.endswith("LayerNorm.scale.weight"))
    if not gains:
        if condition:
            raise ValueError(
                f"{checkpoint} has no conditional LayerNorm, which {next(iter(condition))} is about"
            )
        has_heads = all(any(name.startswith(head) for name in shapes) for head in HEADS)
        return (BertForPreTraining if has_heads else BertForMaskedLM)(BertConfig(**fields))
    bottleneck = shapes.get(gains[0].replace("scale", "bottleneck"))  # (C, H)
    if (bottleneck is None) == ("bottleneck_activation" in condition):
        raise ValueError(
            f"{checkpoint} has no bottleneck, and thus no --bottleneck-activation"
            if bottleneck is None
            else f"{checkpoint} has a bottleneck, and no file its --bottleneck-activation"
        )
    fields |= {"condition_size": (bottleneck or shapes[gains[0]])[0]}
    fields |= {"bottleneck_size": None if bottleneck is None else bottleneck[1]}
    fields |= {"num_classes": shapes.get("bert.class_embeddings.weight", (0,))[0]}
    return ConditionalBertLMHeadModel(ConditionalBertConfig(**fields, **condition))


def fill(
    model: PreTrainedModel, variables: dict[str, Numbers], names: dict[str, str], checkpoint: str
) -> None:
    """Fills every parameter of a model from one variable, and leaves out no variable.

    Args:
        model: The model.
        variables: By their names.
        names: Of the parameters -> of the variables.
        checkpoint: What messages call it.

    Raises:
        ValueError: If a variable is missing, has another shape or belongs nowhere.
    """
    shapes = {
        name: list(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name not in model.all_tied_weights_keys
    }
    if heads := [name for name in names if name.startswith(HEADS) and name not in shapes]:
        logger.warning(f"{_some(heads, 'variables')} are of heads that the model does not have")
    names = {ours: name for ours, name in names.items() if ours not in heads}
    if missing := sorted(shapes.keys() - names.keys()):
        raise ValueError(f"{checkpoint} has {_some(missing, 'parameters')} without a value")
    if unknown := sorted(names[ours] for ours in names.keys() - shapes.keys()):
        raise ValueError(f"{checkpoint} has {_some(unknown, 'variables')} without a place")
    tensors = {}
    for ours, name in names.items():
        # A kernel is (in, out), a weight (out, in).
        array = variables[name].T if name.endswith("/kernel") else variables[name]
        if list(array.shape) != shapes[ours]:
            raise ValueError(
                f"{checkpoint} has a {ours} of shape {list(array.shape)}, which must be "
                f"{shapes[ours]}"
            )
        tensors[ours] = torch.from_numpy(np.array(array, np.float32, order="C"))
    model.load_state_dict(tensors, strict=False)  # not strict: those that are tied are there once


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", help="an HDF5 file, or a path without .index")
    parser.add_argument("folder", help="where the model goes")
    parser.add_argument("--config", help="bert_config.json; by default beside the checkpoint")
    parser.add_argument("--vocab", help="vocab.txt; by default beside the checkpoint")
    parser.add_argument("--cased", action="store_true", help="keep capital letters")
    parser.add_argument(
        "--keep-tokens",
        metavar="FILE",
        help="JSON with the numbers of the tokens that bert4keras kept, or are kept now; or, for "
        "those of its load_vocab(simplified=True), the word simplified",
    )
    parser.add_argument("--class-names", nargs="+", metavar="NAME", help="of the classes, in order")
    parser.add_argument(
        "--bottleneck-activation", metavar="NAME", help="layer_norm_cond_hidden_act"
    )
    parser.add_argument("--attention-pattern", help="causal (the default), prefix or bidirectional")
    parser.add_argument(
        "--leave-out", metavar="REGEX", help="names of variables that are another network's"
    )
    options = vars(parser.parse_args(arguments))
    folder, options["is_cased"] = options.pop("folder"), options.pop("cased")
    try:
        model, tokenizer = convert(**options)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except (ImportError, OSError, ValueError, StrictDataclassError) as error:
        if isinstance(
            error, StrictDataclassError
        ):  # which only names the field; its cause says why
            error = error.__cause__ or error
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
