"""Conversions: the files of other programs become checkpoints, and checkpoints become files."""

import importlib.util
import logging
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from genzoo.ebm.modeling_ebm import EnergyModel
from genzoo.ebm.pipeline_ebm import EBMPipeline
from genzoo.jose import JoseModel, JoseVectors
from genzoo.jose.formats import read_word2vec, to_sphere

REPOSITORY = Path(__file__).parents[1]


def load(name: str) -> ModuleType:
    path = REPOSITORY / "conversion" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


jose_c = load("convert_jose_c")


# The JoSE authors' program

WORDS = ["</s>", "the", "of", "café", "zoo"]


def points(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)
    return to_sphere(rows, range(count), "points")


def write_as_it_does(path: Path, keys: list[str], rows: np.ndarray) -> Path:
    """Six decimals, and a space behind the last of a line."""
    lines = [f"{len(rows)} {rows.shape[1]}\n"]
    lines += [
        f"{key} " + "".join(f"{number:f} " for number in row) + "\n"
        for key, row in zip(keys, rows, strict=True)
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    documents = [str(row) for row in range(3)]
    (tmp_path / "vocabulary.txt").write_text("</s> 3\nthe 90\nof 60\ncafé 7\nzoo 5\n")
    return {
        "words": write_as_it_does(tmp_path / "w.txt", WORDS, points(5, 0)),
        "contexts": write_as_it_does(tmp_path / "v.txt", WORDS, points(5, 1)),
        "documents": write_as_it_does(tmp_path / "d.txt", documents, points(3, 2)),
        "vocabulary": tmp_path / "vocabulary.txt",
    }


def test_files_of_the_program_become_a_checkpoint(files, tmp_path):
    jose_c.from_c(**files).save_pretrained(tmp_path / "checkpoint")
    vectors = JoseVectors.from_pretrained(tmp_path / "checkpoint")
    assert vectors.words == ["the", "of", "café", "zoo"]  # </s> is no word
    assert vectors.counts.tolist() == [0, 90, 60, 7, 5]
    np.testing.assert_allclose(vectors[vectors.words], points(5, 0)[1:], atol=1e-6)
    np.testing.assert_allclose(vectors.documents, points(3, 2), atol=1e-6)
    model = AutoModel.from_pretrained(tmp_path / "checkpoint")
    assert type(model) is JoseModel
    contexts = model.context_embeddings.weight.detach().numpy()
    np.testing.assert_allclose(contexts[1:], points(5, 1)[1:], atol=1e-6)
    for table in (model.word_embeddings, model.context_embeddings, model.document_embeddings):
        np.testing.assert_allclose(table.weight.norm(dim=1).tolist(), 1, atol=1e-6)


def test_every_tensor_has_its_file(files):
    """The table of names is a bijection."""
    state = jose_c.from_c(**files).model.state_dict()
    assert sorted(state) == sorted([*jose_c.TABLES.values(), "word_counts"])
    del files["vocabulary"]
    for name in ("contexts", "documents"):
        del files[name]
        state = jose_c.from_c(**files).model.state_dict()
        assert sorted(state) == sorted([*(jose_c.TABLES[key] for key in files), "word_counts"])
    assert not state["word_counts"].any()  # nobody knows


def test_a_checkpoint_becomes_files_that_the_program_reads(files, tmp_path):
    vectors = jose_c.from_c(**files)
    vectors.save_pretrained(tmp_path / "checkpoint")
    written = jose_c.to_c(tmp_path / "checkpoint", tmp_path / "back")
    assert [path.name for path in written] == ["back_w.txt", "back_v.txt", "back_d.txt"]
    contexts = vectors.model.context_embeddings.weight.detach().numpy()[1:]
    tables = (vectors[vectors.words], contexts, vectors.documents)
    for path, rows in zip(written, tables, strict=True):
        keys, found = read_word2vec(path, binary=False)
        assert keys == (["0", "1", "2"] if path.name == "back_d.txt" else vectors.words)
        assert np.array_equal(found, rows)
        # With a line's end, the program would count the last word twice.
        assert path.read_bytes()[-1:].isdigit()
    again = jose_c.from_c(*written)
    for name, tensor in again.model.state_dict().items():
        if name != "word_counts":
            assert np.array_equal(tensor, vectors.model.state_dict()[name])


def test_a_model_of_words_alone_is_one_file(files, tmp_path):
    jose_c.from_c(files["words"]).save_pretrained(tmp_path / "checkpoint")
    (written,) = jose_c.to_c(tmp_path / "checkpoint", tmp_path / "back")
    assert written.name == "back_w.txt"


def test_words_that_the_program_would_cut_are_left_out(tmp_path, caplog):
    words = ["a", "b" * 98, "c" * 99, "é" * 50, "d"]
    vectors = JoseVectors.from_arrays(words, points(5, 0), context_vectors=points(5, 1))
    vectors.save_pretrained(tmp_path / "checkpoint")
    with caplog.at_level(logging.WARNING):
        written = jose_c.to_c(tmp_path / "checkpoint", tmp_path / "back")
    assert "2 words were left out: they have more than 98 bytes" in caplog.text
    for path, seed in zip(written, (0, 1), strict=True):
        found, rows = read_word2vec(path)
        assert found == ["a", "b" * 98, "d"]
        assert np.array_equal(rows, points(5, seed)[[0, 1, 4]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("words", "nonsense\n", r"w\.txt is no word2vec file"),
        ("words", "2 2\n</s> 0 1 \nthe 1 \n", r"w\.txt, line 3: a line must be a word and 2"),
        ("contexts", "2 6\n</s> 1 0 0 0 0 0 \nthe 1 0 0 0 0 0 \n", r"v\.txt has other words"),
        ("documents", "1 6\n1 1 0 0 0 0 0 \n", r"d\.txt must number its documents 0, 1, 2"),
        ("documents", "1 2\n0 1 0 \n", r"d\.txt has vectors of 2 numbers, .*w\.txt of 6"),
        ("vocabulary", "the 90\nof\n", r"vocabulary\.txt, line 2: a line must be a word and its"),
        ("vocabulary", "the 90\nof 2\n", r"vocabulary\.txt does not know 2 words, such as 'café'"),
    ],
)
def test_files_that_are_not_of_one_run_are_refused(files, name, content, message):
    files[name].write_text(content)
    with pytest.raises(ValueError, match=message):
        jose_c.from_c(**files)


def test_the_command_line_goes_there_and_back(files, tmp_path):
    options = [f"--{name}={path}" for name, path in files.items()]
    jose_c.main([*options, str(tmp_path / "checkpoint")])
    jose_c.main(["--to-c", str(tmp_path / "checkpoint"), str(tmp_path / "back")])
    words, _ = read_word2vec(tmp_path / "back_w.txt")
    assert words == WORDS[1:]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["OUT"], 2, "it takes either --words FILE ... FOLDER, or --to-c FOLDER PREFIX"),
        (["--words=w", "OUT", "PREFIX"], 2, "it takes either"),
        (["--to-c", "OUT"], 2, "it takes either"),
        (["--to-c", "--contexts=v", "OUT", "PREFIX"], 2, "and no files"),
        (["--words=nowhere.txt", "OUT"], 1, "No such file or directory: 'nowhere.txt'"),
        (["--to-c", "nowhere", "PREFIX"], 1, "'nowhere' is neither a folder here nor a Hub id"),
    ],
)
def test_the_command_line_ends_with_a_sentence(arguments, code, message, capsys):
    with pytest.raises(SystemExit) as end:
        jose_c.main(arguments)
    assert end.value.code == code
    assert message in capsys.readouterr().err


# igebm-pytorch

igebm = load("convert_igebm")


@pytest.fixture
def energies() -> dict[str, dict]:
    """Two small energies of that program whose spectral norms have settled, and what they say."""
    stored = load_file(REPOSITORY / "tests" / "golden" / "rosinality_igebm.safetensors")
    found: dict[str, dict] = {"plain": {"state": {}}, "classes": {"state": {}}}
    for name, value in stored.items():
        kind, part, *rest = name.split(".", 2)
        if rest:
            found[kind]["state"][rest[0]] = value
        else:
            found[kind][part] = value
    return found


@pytest.mark.parametrize("kind", ["plain", "classes"])
def test_energies_of_igebm_pytorch(energies, kind: str):
    golden = energies[kind]
    model, labels = igebm.from_igebm(golden["state"], 16), golden.get("labels")
    x = golden["images"] * 2 - 1
    torch.testing.assert_close(model(x, labels).detach(), golden["energies"])
    # Half as steep, for pixels twice as far apart.
    torch.testing.assert_close(
        -model.score(x, labels).detach(), golden["gradients"] / 2, rtol=1e-4, atol=1e-6
    )


def test_igebm_command_line(energies, tmp_path, capsys):
    torch.save(energies["classes"]["state"], tmp_path / "model.pt")
    igebm.main([str(tmp_path / "model.pt"), str(tmp_path / "out"), "--image-size", "16"])
    model = EBMPipeline.from_pretrained(tmp_path / "out").ebm
    assert isinstance(model, EnergyModel)
    assert model.config.num_classes == 3 and model.config.downsamples == [True, False, True, False]
    torch.save({"conv1.weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(SystemExit):
        igebm.main([str(tmp_path / "other.pt"), str(tmp_path / "more")])
    assert "no state dict of igebm-pytorch" in capsys.readouterr().err
    (tmp_path / "noise.pt").write_bytes(b"i am no checkpoint")
    torch.save({"conv1.weight_orig": 1, "blocks.0.conv1.weight_orig": 2}, tmp_path / "numbers.pt")
    for name, words in (
        ("noise.pt", "no file of weights that torch reads"),
        ("numbers.pt", "holds no state dict"),
        ("missing.pt", "there is no file"),
    ):
        with pytest.raises(SystemExit):
            igebm.main([str(tmp_path / name), str(tmp_path / "more")])
        assert words in capsys.readouterr().err
    state = energies["plain"]["state"]
    for wrong in (
        state | {"blocks.9.conv1.weight_orig": torch.ones(1)},
        state | {"x": state["linear.bias"]},
    ):
        with pytest.raises(ValueError, match="igebm-pytorch"):
            igebm.from_igebm(wrong)
