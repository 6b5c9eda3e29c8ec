"""Conversion of TensorFlow's BERTs: what was written there puts out here what it put out there.

The golden archives hold files as those programs wrote them, untouched, and beside them what the
programs computed from them: bert4keras 0.11.5 on the TensorFlow 1.15 and Keras 2.3.1 that it was
made for, and once on TensorFlow 2.10. The metadata of each expected.safetensors names versions,
commit, seed and command, and holds the script.
"""

import importlib.util
import json
import logging
import re
import shutil
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertLMHeadModel,
    PreTrainedModel,
)

from genzoo.conditional_text import ConditionalBertConfig, ConditionalBertLMHeadModel

TESTS = Path(__file__).parent


def load(name: str) -> ModuleType:
    path = TESTS.parent / "conversion" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bert4keras = load("convert_bert4keras")


@pytest.fixture
def golden(tmp_path):
    """Unpacks an archive: its folder, and what is expected of it."""

    def unpack(name: str) -> tuple[Path, dict[str, Tensor]]:
        folder = tmp_path / name
        with tarfile.open(TESTS / "golden" / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        with safe_open(folder / "expected.safetensors", "pt") as file:
            assert file.metadata().keys() >= {
                *("repo", "commit", "license", "seed", "tensorflow", "python", "command", "script"),
                "about",
            }
            return folder, {key: file.get_tensor(key) for key in file.keys()}

    return unpack


def outputs_of(model: PreTrainedModel, expected: dict[str, Tensor], **kwargs: Any) -> Any:
    inputs = {key: expected[key].long() for key in ("input_ids", "token_type_ids")}
    inputs |= {
        key: expected[key] for key in ("class_labels", "condition_embeds") if key in expected
    }
    with torch.no_grad():
        return model(**inputs, attention_mask=(inputs["input_ids"] != 0).long(), **kwargs)


def assert_equal(found: Tensor, expected: dict[str, Tensor], name: str = "logits") -> None:
    """Of padding, bert4keras computes something else."""
    is_text = expected["input_ids"] != 0
    torch.testing.assert_close(found[is_text], expected[name][is_text], rtol=1e-5, atol=1e-5)


# Google's


def test_a_checkpoint_of_google_becomes_a_bert_with_both_heads(golden):
    folder, expected = golden("google_bert")
    model, tokenizer = bert4keras.convert(folder / "bert_model.ckpt")
    assert type(model) is BertForPreTraining
    assert not model.training
    assert_equal(outputs_of(model, expected).prediction_logits, expected, "bert4keras_logits")
    assert tokenizer("好 Hotels!").input_ids == [4, 8, 20, 21, 22, 5]
    assert tokenizer.model_max_length == 16

    # Google's gelu is not the exact one.
    json_path = folder / "bert_config.json"
    json_path.write_text(json_path.read_text().replace('"gelu"', '"gelu_new"'))
    model, _ = bert4keras.convert(folder / "bert_model.ckpt")
    outputs = outputs_of(model, expected)
    assert_equal(outputs.prediction_logits.log_softmax(-1), expected, "log_probs")
    torch.testing.assert_close(
        outputs.seq_relationship_logits.log_softmax(-1),
        expected["next_sentence_log_probs"],
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_folder_is_opened_by_all_berts(golden, tmp_path):
    folder, expected = golden("google_bert")
    bert4keras.main([str(folder / "bert_model.ckpt.index"), str(tmp_path / "bert")])
    assert {path.name for path in (tmp_path / "bert").iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "bert")
    assert type(model) is BertForMaskedLM
    assert_equal(outputs_of(model, expected).logits, expected, "bert4keras_logits")
    model = ConditionalBertLMHeadModel.from_bert(
        str(tmp_path / "bert"), class_names=["a", "b"], condition_size=3
    ).eval()
    classes = {"class_labels": torch.tensor([0, 1, 0])}
    outputs = outputs_of(model, expected | classes, attention_pattern="bidirectional")
    assert_equal(outputs.logits, expected, "bert4keras_logits")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bert")
    assert len(tokenizer) == model.config.vocab_size == 30
    assert tokenizer.mask_token_id == 6


def test_what_an_optimizer_left_is_left_out(golden, caplog):
    folder, expected = golden("google_bert_training")
    with caplog.at_level(logging.WARNING):
        model, _ = bert4keras.convert(folder / "bert_model.ckpt")
    assert "61 variables, such as bert/embeddings/LayerNorm/beta/adam_m, are not" in caplog.text
    query = model.bert.encoder.layer[0].attention.self.query.weight
    kernel = expected["bert/encoder/layer_0/attention/self/query/kernel"]
    assert torch.equal(query, kernel.T)
    gamma = expected["cls/predictions/transform/LayerNorm/gamma"]
    assert torch.equal(model.cls.predictions.transform.LayerNorm.weight, gamma)


# bert4keras'


def test_a_checkpoint_of_bert4keras_with_fewer_tokens(golden):
    folder, expected = golden("bert4keras_checkpoint")
    kept = expected["keep_tokens"].tolist()
    tokens = bert4keras.read_vocabulary(folder / "vocab.txt")
    assert len(tokens) == 30
    assert bert4keras.read_keep_tokens("simplified", tokens) == kept
    (folder / "kept.json").write_text(json.dumps(kept))
    for keep_tokens in ("simplified", kept, folder / "kept.json"):
        model, tokenizer = bert4keras.convert(folder / "bert_model.ckpt", keep_tokens=keep_tokens)
        assert type(model) is BertForMaskedLM
        assert_equal(outputs_of(model, expected).logits, expected)
        assert model.config.vocab_size == len(tokenizer) == 24
        assert tokenizer.mask_token is None  # [MASK] was not kept
        assert tokenizer.convert_ids_to_tokens(range(24)) == [tokens[row] for row in kept]


def test_tokens_are_thrown_away_where_bert4keras_has_not(golden):
    folder, expected = golden("google_bert")
    kept = [0, 3, 4, 5, 6, *range(23, 7, -1)]
    model, tokenizer = bert4keras.convert(folder / "bert_model.ckpt", keep_tokens=kept)
    place = {token: row for row, token in enumerate(kept)}
    is_kept = torch.tensor(
        [[int(token) in place for token in row] for row in expected["input_ids"]]
    )
    assert is_kept.all(dim=1).any()
    rows = is_kept.all(dim=1)
    ids = expected["input_ids"][rows].apply_(lambda token: place.get(token, 0))
    outputs = outputs_of(
        model, {"input_ids": ids, "token_type_ids": expected["token_type_ids"][rows]}
    )
    torch.testing.assert_close(
        outputs.prediction_logits,
        expected["bert4keras_logits"][rows][..., kept],
        rtol=1e-5,
        atol=1e-5,
    )
    assert len(tokenizer) == 21


def test_classes_in_hdf5(golden, tmp_path):
    pytest.importorskip("h5py")
    folder, expected = golden("bert4keras_classes")
    bert4keras.main(
        [
            *(str(folder / "best_model.weights"), str(tmp_path / "out")),
            *("--keep-tokens", "simplified", "--class-names", "negative", "positive"),
        ]
    )
    model = ConditionalBertLMHeadModel.from_pretrained(tmp_path / "out")
    assert_equal(outputs_of(model, expected).logits, expected)
    config = model.config
    assert config.class_names == ["negative", "positive"]
    assert (config.condition_size, config.num_classes, config.bottleneck_size) == (8, 2, None)
    assert config.attention_pattern == "causal"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == config.vocab_size == 24
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 2, 3)
    out = model.generate(class_labels=torch.tensor([0, 1]), max_new_tokens=4, do_sample=False)
    assert (out[:, 0] == 2).all()


def test_a_bottleneck_in_a_checkpoint_of_keras_with_two_files(golden, caplog):
    folder, expected = golden("bert4keras_bottleneck")
    assert len([*folder.glob("best_model.weights.data-*-of-00002")]) == 2
    with caplog.at_level(logging.WARNING):
        model, _ = bert4keras.convert(folder / "best_model.weights", bottleneck_activation="swish")
    assert re.search(r"\d+ variables, such as .*\.OPTIMIZER_SLOT.*, are not", caplog.text)
    assert_equal(outputs_of(model, expected).logits, expected)
    config = model.config
    assert (config.condition_size, config.bottleneck_size, config.num_classes) == (12, 4, 0)


@pytest.mark.parametrize("suffix", ["", ".h5"])
def test_both_kinds_of_file_of_keras_are_one_model(golden, suffix):
    if suffix:
        pytest.importorskip("h5py")
    folder, expected = golden("bert4keras_unilm")
    model, _ = bert4keras.convert(
        folder / f"best_model.weights{suffix}",
        bottleneck_activation="swish",
        attention_pattern="prefix",
    )
    assert_equal(outputs_of(model, expected).logits, expected)


def test_a_model_without_a_condition_in_hdf5(golden, tmp_path):
    """As `save_weights` writes it; the heads that it lacks are the only difference to Google's."""
    h5py = pytest.importorskip("h5py")
    folder, expected = golden("bert4keras_classes")
    path = folder / "best_model.weights"
    with h5py.File(path, "r+") as file:
        names = [name.decode() for name in file.attrs["layer_names"]]
        file.attrs["layer_names"] = [name for name in names if name != "embedding_1"]
        for name in names:
            weights = file[name].attrs["weight_names"]
            if name.endswith("-Norm"):
                file[name].attrs["weight_names"] = [w for w in weights if b"dense" not in w]
    model, _ = bert4keras.convert(path, keep_tokens="simplified")
    model.save_pretrained(tmp_path / "out")
    model = BertLMHeadModel.from_pretrained(tmp_path / "out", is_decoder=True)
    nothing = {name: tensor for name, tensor in expected.items() if name != "class_labels"}
    plain = outputs_of(model, nothing).logits
    model, _ = bert4keras.convert(golden("bert4keras_classes")[0] / path.name, **SIMPLIFIED)
    zeros = {"condition_embeds": torch.zeros(3, 8)}
    assert_equal(outputs_of(model, nothing | zeros).logits, nothing | {"logits": plain})


SIMPLIFIED = {"keep_tokens": "simplified"}


def test_cased(golden):
    folder, _ = golden("google_bert")
    _, tokenizer = bert4keras.convert(folder / "bert_model.ckpt", is_cased=True)
    assert tokenizer("A a", add_special_tokens=False).input_ids == [3, 15]
    _, tokenizer = bert4keras.convert(folder / "bert_model.ckpt")
    assert tokenizer("A a", add_special_tokens=False).input_ids == [15, 15]


# Names


SIZES = {
    "vocab_size": 7,
    "hidden_size": 4,
    "num_hidden_layers": 11,
    "num_attention_heads": 2,
    "intermediate_size": 6,
}


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (BertForMaskedLM, BertConfig(**SIZES)),
        (BertForPreTraining, BertConfig(**SIZES)),
        (ConditionalBertLMHeadModel, ConditionalBertConfig(**SIZES, condition_size=3)),
        (
            ConditionalBertLMHeadModel,
            ConditionalBertConfig(**SIZES, condition_size=3, bottleneck_size=2, num_classes=2),
        ),
    ],
)
def test_the_table_of_names_is_a_bijection(model_class, config):
    model = model_class(config)
    wanted = model.state_dict().keys() - model.all_tied_weights_keys.keys()
    for is_keras in (False, True):
        names = {
            theirs.replace("{}", str(layer)): ours.format(layer)
            for theirs, ours in bert4keras.KEYS.items()
            for layer in range(11)
            if theirs[0].isupper() + theirs.startswith("embedding/") == is_keras
        }
        assert len({*names.values()}) == len(names)
        back = bert4keras.rename(names, "it")
        assert back == {ours: theirs for theirs, ours in names.items()}
        if is_keras or type(config) is BertConfig:
            assert wanted <= back.keys()
    assert {ours for ours in wanted if "layer.10." in ours}  # two digits


@pytest.mark.parametrize(
    "name",
    [
        "global_step",
        "bert/pooler/dense/bias/adam_v",
        "bert/pooler/dense/bias/Adam_1",
        "beta1_power",
        "bert/embeddings/word_embeddings/AdamWeightDecayOptimizer",
        "layer_with_weights-2/gamma/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE",
        "optimizer/iter/.ATTRIBUTES/VARIABLE_VALUE",
    ],
)
def test_names_of_optimizers(name):
    assert re.search(bert4keras.UNNEEDED, name)
    assert not any(re.search(bert4keras.UNNEEDED, key) for key in bert4keras.KEYS)


def test_unknown_names():
    with pytest.raises(ValueError, match="it has 1 variables, such as bert/nonsense, that no BERT"):
        bert4keras.rename(["bert/nonsense", "bert/embeddings/word_embeddings"], "it")
    with pytest.raises(ValueError, match="both embedding/embeddings and embedding_1/embeddings"):
        bert4keras.rename(["embedding/embeddings", "embedding_1/embeddings"], "it")


def test_checksum():
    """The check value of RFC 3720's polynomial; TensorFlow rotates it by 15 bits and adds."""
    turned = (0xE3069283 >> 15 | 0xE3069283 << 17) & 0xFFFFFFFF
    assert bert4keras.checksum(b"123456789") == (turned + 0xA282EAD8) % 2**32


# What is refused


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def change(path: Path, **fields: Any) -> None:
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


DATA, INDEX = "bert_model.ckpt.data-00000-of-00001", "bert_model.ckpt.index"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: cut(f / DATA, 23_000), rf"{DATA} is cut off before the end of cls/"),
        (lambda f: cut(f / DATA, 0), rf"{DATA} is cut off before the end of bert/embeddings/"),
        (lambda f: damage(f / DATA, 0), rf"{DATA} is damaged: the checksum of bert/embeddings/L"),
        (lambda f: (f / DATA).unlink(), rf"No such file or directory: '.*{DATA}'"),
        (lambda f: cut(f / INDEX, 1_000), rf"{INDEX} is cut off, or no index of a checkpoint"),
        (lambda f: cut(f / INDEX, 0), rf"{INDEX} is cut off, or no index of a checkpoint"),
        (lambda f: damage(f / INDEX, 100), rf"{INDEX} is damaged: the checksum of a block"),
        (lambda f: damage(f / INDEX, -44), rf"{INDEX} is damaged: the checksum of a block"),
        (lambda f: (f / INDEX).unlink(), rf"No such file or directory: '.*{INDEX}'"),
        (lambda f: (f / "vocab.txt").unlink(), r"No such file or directory: '.*vocab\.txt'"),
        (lambda f: cut(f / "vocab.txt", 50), r"has 30 word embeddings, and the vocabulary \d+ tok"),
        (
            lambda f: (f / "vocab.txt").write_text("a\nb\nc\nb\n"),
            r"vocab\.txt has the token 'b' twice",
        ),
        (
            lambda f: (f / "vocab.txt").write_text("".join(f"{i}\n" for i in range(30))),
            r"the vocabulary has no \[PAD\], which BERT needs",
        ),
        (
            lambda f: change(f / "bert_config.json", hidden_size=24),
            r"read with .*bert_config\.json, has a bert\..* of shape \[.*16\], which must be \[",
        ),
        (
            lambda f: change(f / "bert_config.json", max_position_embeddings=512),
            r"position_embeddings\.weight of shape \[16, 16\], which must be \[512, 16\]",
        ),
        (
            lambda f: change(f / "bert_config.json", num_hidden_layers=3),
            r"has 16 parameters, such as bert\.encoder\.layer\.2\..*, without a value",
        ),
        (
            lambda f: change(f / "bert_config.json", num_hidden_layers=1),
            r"has 16 variables, such as bert/encoder/layer_1/.*, without a place",
        ),
        (
            lambda f: change(f / "bert_config.json", num_attention_heads=None),
            r"bert_config\.json is no configuration of a BERT: it has no num_attention_heads",
        ),
        (
            lambda f: change(f / "bert_config.json", hidden_act="nonsense"),
            r"bert_config\.json: transformers has no hidden_act 'nonsense'",
        ),
        (
            lambda f: (f / "bert_config.json").write_text("[]"),
            r"configuration of a BERT: it has no",
        ),
        (lambda f: cut(f / "bert_config.json", 9), r"bert_config\.json is no JSON: .*line 1"),
        (
            lambda f: shutil.copy(f / DATA, f / "bert_model.ckpt"),
            r"bert_model\.ckpt is no HDF5, and no checkpoint with an \.index beside it",
        ),
    ],
)
def test_files_that_are_damaged_or_do_not_belong_together(golden, harm, message):
    folder, _ = golden("google_bert")
    harm(folder)
    with pytest.raises((ValueError, OSError), match=message):
        bert4keras.convert(folder / "bert_model.ckpt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"keep_tokens": [0, 0, 3, 4, 5]},
            "keep_tokens must be different numbers of some of 30 to",
        ),
        ({"keep_tokens": [3, 4, 5, 30]}, "keep_tokens must be different numbers of some of 30 tok"),
        ({"keep_tokens": range(30)}, "keep_tokens must be different numbers of some of 30 tokens"),
        ({"keep_tokens": [0, 3, 4, 8]}, r"the vocabulary has no \[SEP\], which BERT needs"),
        ({"keep_tokens": "nowhere.json"}, "No such file or directory: 'nowhere.json'"),
        ({"class_names": ["a", "b"]}, "has no conditional LayerNorm, which class_names is about"),
        ({"leave_out": "cls/"}, "has no word embeddings, or no language model head"),
        (
            {"leave_out": "layer_0"},
            r"has 16 parameters, such as bert\.encoder\.layer\.0\..*without",
        ),
    ],
)
def test_options_that_do_not_fit_a_plain_bert(golden, options, message):
    folder, _ = golden("google_bert")
    with pytest.raises((ValueError, OSError), match=message):
        bert4keras.convert(folder / "bert_model.ckpt", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has a bottleneck, and no file its --bottleneck-activation"),
        ({"bottleneck_activation": "nonsense"}, "there is no activation 'nonsense'"),
        ({"bottleneck_activation": "swish", "class_names": ["a"]}, "such as bert.class_embeddings"),
        (
            {"bottleneck_activation": "swish", "attention_pattern": "nonsense"},
            "attention_pattern must be one of causal, prefix, bidirectional, got 'nonsense'",
        ),
        (
            {
                "bottleneck_activation": "swish",
                "keep_tokens": [0, 3, 4, 5],
                "leave_out": "MLM-Norm",
            },
            r"has 5 parameters, such as cls\.predictions\.transform\.LayerNorm\.bias, without a",
        ),
    ],
)
def test_options_that_do_not_fit_a_conditional_bert(golden, options, message):
    folder, _ = golden("bert4keras_bottleneck")
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        bert4keras.convert(folder / "best_model.weights", **options)


def test_the_pooler_alone_has_no_head(golden, caplog):
    folder, expected = golden("google_bert")
    with caplog.at_level(logging.WARNING):
        model, _ = bert4keras.convert(folder / "bert_model.ckpt", leave_out="seq_relationship")
    assert type(model) is BertForMaskedLM
    assert "2 variables, such as cls/seq_relationship/output_bias, are not the" in caplog.text
    assert "2 variables, such as bert.pooler.dense.bias, are of heads that the model" in caplog.text
    assert_equal(outputs_of(model, expected).logits, expected, "bert4keras_logits")


def test_hdf5_that_is_not_bert4keras(golden):
    h5py = pytest.importorskip("h5py")
    folder, expected = golden("bert4keras_classes")
    path = folder / "best_model.weights"
    other = folder / "other.weights"

    shutil.copy(path, other)
    with h5py.File(other, "r+") as file:
        file.attrs["layer_names"] = [*file.attrs["layer_names"], b"image"]
        file.create_dataset("image/image/kernel:0", data=np.zeros((2, 3), np.float32))
        file["image"].attrs["weight_names"] = [b"image/kernel:0"]
    with pytest.raises(
        ValueError, match=r"1 variables, such as image/kernel, .*--leave-out leaves"
    ):
        bert4keras.convert(other, **SIMPLIFIED)
    model, _ = bert4keras.convert(other, **SIMPLIFIED, leave_out="^image/")
    assert_equal(outputs_of(model, expected).logits, expected)

    shutil.copy(path, other)
    with h5py.File(other, "r+") as file:
        weights = file["MLM-Norm"].attrs["weight_names"]
        file["MLM-Norm"].attrs["weight_names"] = weights[[0, 1, 3, 2]]
    with pytest.raises(ValueError, match="parts of MLM-Norm in another order than bert4keras"):
        bert4keras.convert(other, **SIMPLIFIED)

    with h5py.File(other, "w") as file:
        file.create_group("layers")
    with pytest.raises(ValueError, match=r"other\.weights is not of Keras 2"):
        bert4keras.convert(other, **SIMPLIFIED)

    shutil.copy(path, other)
    cut(other, 100_000)
    with pytest.raises(ValueError, match=r"other\.weights is damaged: .*truncated file"):
        bert4keras.convert(other, **SIMPLIFIED)


def test_hdf5_without_h5py(golden, monkeypatch):
    folder, _ = golden("bert4keras_classes")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match=r"best_model\.weights is HDF5, which takes h5py"):
        bert4keras.convert(folder / "best_model.weights")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["CHECKPOINT"], 2, "the following arguments are required: folder"),
        (["nowhere.ckpt", "OUT"], 1, "No such file or directory: 'bert_config.json'"),
        (
            ["bert_model.ckpt", "OUT", "--leave-out", "("],
            1,
            "( is no regular expression: missing )",
        ),
        (["bert_model.ckpt", "OUT", "--class-names", "a"], 1, "has no conditional LayerNorm"),
        (
            ["best_model.weights", "OUT", "--bottleneck-activation=no"],
            1,
            ": there is no activation 'no'\n",
        ),
    ],
)
def test_the_command_line_ends_with_a_sentence(
    golden, arguments, code, message, capsys, monkeypatch
):
    name = {"bert_model.ckpt": "google_bert", "best_model.weights": "bert4keras_bottleneck"}
    if arguments[0] in name:
        monkeypatch.chdir(golden(name[arguments[0]])[0])
    with pytest.raises(SystemExit) as end:
        bert4keras.main(arguments)
    assert end.value.code == code
    assert message in capsys.readouterr().err


# Beside TensorFlow


@pytest.mark.slow  # TensorFlow is not among the packages of the tests
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        *("google_bert/bert_model.ckpt", "google_bert_training/bert_model.ckpt"),
        *("bert4keras_checkpoint/bert_model.ckpt", "bert4keras_bottleneck/best_model.weights"),
        "bert4keras_unilm/best_model.weights",
    ],
)
def test_tensorflow_reads_the_same(golden, name):
    tensorflow = pytest.importorskip("tensorflow")
    folder, _ = golden(name.split("/")[0])
    prefix = str(folder.parent / name)
    reader = tensorflow.train.load_checkpoint(prefix)
    entries = bert4keras.read_index(prefix)
    shapes = reader.get_variable_to_shape_map()
    assert {key: entry.shape for key, entry in entries.items()} == shapes
    for key, entry in entries.items():
        if entry.type in bert4keras.FLOATS:
            found, wanted = bert4keras.read_tensor(key, entry), reader.get_tensor(key)
            assert found.dtype == wanted.dtype
            assert np.array_equal(found, wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_todays_tensorflow_writes_in_several_files(golden, tmp_path):
    tensorflow = pytest.importorskip("tensorflow")
    folder, expected = golden("google_bert")
    arrays = bert4keras.read_checkpoint(folder / "bert_model.ckpt")
    arrays["global_step"] = np.array(2**40)
    arrays["bert/pooler/dense/kernel/adam_m"] = np.zeros((300, 300), np.float64)
    names, parts = sorted(arrays), []
    for part in range(3):
        parts.append(str(tmp_path / f"part-{part}"))
        tensorflow.raw_ops.SaveV2(
            prefix=parts[-1],
            tensor_names=names[part::3],
            shape_and_slices=[""] * len(names[part::3]),
            tensors=[arrays[name] for name in names[part::3]],
        )
    prefix = str(folder / "new.ckpt")
    tensorflow.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=prefix)
    assert len([*folder.glob("new.ckpt.data-*-of-00003")]) == 3
    model, _ = bert4keras.convert(prefix)
    assert_equal(outputs_of(model, expected).prediction_logits, expected, "bert4keras_logits")

    variables = {f"v{row}": tensorflow.Variable(tensorflow.zeros([100, 100])) for row in range(4)}
    policy = tensorflow.train.experimental.MaxShardSizePolicy(max_shard_size=50_000)
    options = tensorflow.train.CheckpointOptions(experimental_sharding_callback=policy)
    tensorflow.train.Checkpoint(**variables).write(str(tmp_path / "sliced"), options=options)
    with pytest.raises(ValueError, match="is stored in slices, which is not read here"):
        bert4keras.read_checkpoint(tmp_path / "sliced")
