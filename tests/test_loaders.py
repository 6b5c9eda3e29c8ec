"""What the loaders of transformers and diffusers do with a checkpoint's code, config and tensors.

Fifteen laws, L1 to L15, were measured before the zoo was built, and it is built around them; here
each is measured again. A failure means that a new version of a library behaves otherwise: the law
may be relaxed, or must be stated anew, and so must what the zoo does because of it.

Most experiments are one small file, `modeling(...)`, with one thing changed. What is to be loaded
by the code that lies with it is loaded by a stranger: a process that cannot import where the code
came from.
"""

import importlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from genzoo import SelfModGANConfig
from hub_server import Hub

MODELING = """
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
HEAD

@strict
class LawConfig(PreTrainedConfig):
    model_type = "genzoo_test_LAW"
    size: int = 2

    def validate_size(self):
        if self.size < 1:
            raise ValueError("size must be at least 1")


class LawModel(PreTrainedModel):
    config_class = LawConfig

    def __init__(self, config):
        super().__init__(config)
        self.weight = nn.Parameter(torch.ones(config.size))
        self.post_init()

    def forward(self):
        return FACTOR * self.weight
"""

PIPELINE = """
from diffusers import DiffusionPipeline


class LawPipeline(DiffusionPipeline):
    def __init__(self, net):
        super().__init__()
        self.register_modules(net=net)

    def __call__(self):
        return self.net()
"""

TWO, THREE = "FACTOR = 2.0\n", "FACTOR = 3.0\n"
WEIGHT, DOUBLE, TRIPLE = [3.0, 5.0], [6.0, 10.0], [9.0, 15.0]


def modeling(law: str, head: str) -> str:
    """The source of a model that puts out FACTOR * WEIGHT; the head says where FACTOR is from."""
    return MODELING.replace("LAW", law).replace("HEAD", head)


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def sources(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))


@pytest.fixture
def imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, dict[str, str]], ModuleType]]:
    """Writes files and imports the module of that name from among them, until the test is over."""
    folder = tmp_path / "code"
    monkeypatch.syspath_prepend(folder)

    def write_and_import(name: str, files: dict[str, str]) -> ModuleType:
        write(folder, files)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield write_and_import
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def with_weight(module: ModuleType) -> PreTrainedModel:
    model = module.LawModel(module.LawConfig())
    with torch.no_grad():
        model.weight.copy_(torch.tensor(WEIGHT))
    return model


def save(module: ModuleType, folder: Path) -> None:
    """Saves the module's model, and has transformers save the code that belongs to it."""
    module.LawConfig.register_for_auto_class()
    module.LawModel.register_for_auto_class("AutoModel")
    with_weight(module).save_pretrained(folder)


def pipeline_files(law: str, code: dict[str, str]) -> dict[str, bytes]:
    """A diffusers checkpoint with one component, `net`, which transformers can load alone."""
    file = f"modeling_{law}"
    index = {"_class_name": [f"pipeline_{law}", "LawPipeline"], "net": [file, "LawModel"]}
    auto_map = {"AutoConfig": f"{file}.LawConfig", "AutoModel": f"{file}.LawModel"}
    config = {"model_type": f"genzoo_test_{law}", "auto_map": auto_map}
    files = {"model_index.json": json.dumps(index), f"pipeline_{law}.py": PIPELINE}
    files |= {"net/config.json": json.dumps(config)} | code
    weights = safetensors.torch.save({"weight": torch.tensor(WEIGHT)}, {"format": "pt"})
    return {path: text.encode() for path, text in files.items()} | {
        "net/model.safetensors": weights
    }


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """Hears transformers too, whose logger keeps its messages to itself."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="transformers")
    return caplog


# Reads what to load, line by line, and answers each with what came of it.
STRANGER = """
import json, logging, sys

answers, sys.stdout = sys.stdout, sys.stderr
import diffusers, transformers

log = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: log.append(record.getMessage())
logging.captureWarnings(True)
for name in ("diffusers", "transformers", "py.warnings"):
    logging.getLogger(name).addHandler(handler)

for line in sys.stdin:
    loader, name, options = json.loads(line)
    log.clear()
    answer = {"log": log}
    try:
        library = diffusers if loader == "DiffusionPipeline" else transformers
        loaded = getattr(library, loader).from_pretrained(name, trust_remote_code=True, **options)
        answer |= {"module": type(loaded).__module__, "output": loaded().tolist()}
    except Exception as error:
        answer |= {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), file=answers, flush=True)
"""


@dataclass
class Answer:
    """What came of a loading: the class's module and the output, which tell whose code ran."""

    log: list[str]
    module: str = ""
    output: list[float] | None = None
    error: str = ""
    message: str = ""


def misses_code(answer: Answer, name: str) -> bool:
    """Whether diffusers did not find a component's code, as it says so before and since 0.42.1."""
    if answer.error == "ModuleNotFoundError":
        return answer.message == f"No module named '{name.partition('.')[0]}'"
    said = answer.message.startswith(f"{name} is not one of the libraries")
    return answer.error == "ValueError" and said


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub(users={"alice": "hf_alice"}) as hub:
        yield hub


@pytest.fixture(scope="module")
def load(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Answer]]:
    """Has a stranger load a folder, or a repository of the Hub, with the code that is in it.

    One process serves all tests, because it imports both libraries for seconds. Like any process,
    it keeps the modules that it imported: every test has names of its own.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | hub.environment()
    with subprocess.Popen(
        [sys.executable, "-c", STRANGER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=tmp_path_factory.mktemp("stranger"),
        text=True,
    ) as process:

        def ask(loader: str, name: str | Path, **options: Any) -> Answer:
            process.stdin.write(json.dumps([loader, str(name), options]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, "the stranger died; its standard error says why"
            return Answer(**json.loads(line))

        yield ask


def fetched_code(hub: Hub, repository: str) -> set[str]:
    """The Python files that were asked for, whether or not they are there."""
    paths = [entry["path"] for entry in hub.log(f"/{repository}/resolve/")]
    return {path.split("/", 5)[5] for path in paths if path.endswith(".py")}


# Code: what saving copies, and what loading wants


def test_l01_what_lies_above_is_not_found_on_saving(imported, tmp_path):
    """L1: saving a file that imports from above its folder raises; shipped files do not."""
    files = {
        "zoo_l01/nn.py": TWO,
        "zoo_l01/room/modeling_l01.py": modeling("l01", "from ..nn import FACTOR"),
    }
    module = imported("zoo_l01.room.modeling_l01", files)
    with pytest.raises(FileNotFoundError) as caught:
        save(module, tmp_path / "saved")
    # The scanner takes all but the first dot for a part of the sibling's name.
    assert caught.value.filename == str(tmp_path / "code/zoo_l01/room/.nn.py")
    assert not (tmp_path / "saved/model.safetensors").exists()


def test_l02_a_module_imported_from_the_package_is_left_behind(imported, load, log, tmp_path):
    """L2: `from . import x` saves silently without x and cannot be loaded; the zoo has none."""
    head = "from . import layers\n\nFACTOR = layers.FACTOR"
    files = {"zoo_l02/layers.py": TWO, "zoo_l02/modeling_l02.py": modeling("l02", head)}
    save(imported("zoo_l02.modeling_l02", files), tmp_path / "saved")
    assert log.messages == []
    assert sources(tmp_path / "saved") == ["modeling_l02.py"]
    answer = load("AutoModel", tmp_path / "saved")
    assert answer.error == "ImportError"
    assert "cannot import name 'layers' from 'transformers_modules." in answer.message


def test_l03_the_own_package_is_asked_for_by_name(imported, load, log, tmp_path):
    """L3: an import of one's own package has every user install it; the zoo's are relative."""
    head = "from zoo_l03.layers import FACTOR"
    files = {"zoo_l03/layers.py": TWO, "zoo_l03/modeling_l03.py": modeling("l03", head)}
    save(imported("zoo_l03.modeling_l03", files), tmp_path / "saved")
    assert log.messages == []
    assert sources(tmp_path / "saved") == ["modeling_l03.py"]
    answer = load("AutoModel", tmp_path / "saved")
    assert answer.error == "ImportError"
    assert "not found in your environment: zoo_l03. Run `pip install zoo_l03`" in answer.message


def test_l04_a_sibling_travels_along(imported, load, log, tmp_path):
    """L4: `from .layers import X` saves, copies and loads, so a room may have its layers.py."""
    head = "from .layers import FACTOR"
    files = {"zoo_l04/layers.py": TWO, "zoo_l04/modeling_l04.py": modeling("l04", head)}
    save(imported("zoo_l04.modeling_l04", files), tmp_path / "saved")
    assert log.messages == []
    assert sources(tmp_path / "saved") == ["layers.py", "modeling_l04.py"]
    answer = load("AutoModel", tmp_path / "saved")
    assert answer.output == DOUBLE, answer
    assert answer.module.startswith("transformers_modules.saved.")


def test_l05_one_file_holds_config_and_model(imported, load, tmp_path):
    """L5: one file may hold both classes if auto_map names both; here an architecture is a file."""
    module = imported("modeling_l05", {"modeling_l05.py": modeling("l05", TWO)})
    module.LawModel.register_for_auto_class("AutoModel")
    with_weight(module).save_pretrained(tmp_path / "half")
    save(module, tmp_path / "whole")
    half, whole = (
        json.loads((tmp_path / name / "config.json").read_text())["auto_map"]
        for name in ("half", "whole")
    )
    assert half == {"AutoModel": "modeling_l05.LawModel"}
    assert whole == half | {"AutoConfig": "modeling_l05.LawConfig"}
    assert sources(tmp_path / "whole") == ["modeling_l05.py"]
    # In this order, because a process remembers by model_type what it could load.
    answer = load("AutoModel", tmp_path / "half")
    assert answer.error == "ValueError"
    assert "`genzoo_test_l05` but Transformers does not recognize this" in answer.message
    assert load("AutoModel", tmp_path / "whole").output == DOUBLE


def test_l06_an_import_is_a_requirement(imported, load, tmp_path):
    """L6: every import must be installed, used or not; shipped files import what loaders need."""
    heads = {
        "used": "import extra_l06",
        "unused": "def never_called():\n    import extra_l06",
        "tried": "try:\n    import extra_l06\nexcept ImportError:\n    extra_l06 = None",
    }
    answers = {}
    for case, head in heads.items():
        law, source = f"l06_{case}", modeling(f"l06_{case}", f"{head}\n\n{TWO}")
        module = imported(f"modeling_{law}", {f"modeling_{law}.py": source, "extra_l06.py": ""})
        save(module, tmp_path / law)
        assert sources(tmp_path / law) == [f"modeling_{law}.py"]
        answers[case] = load("AutoModel", tmp_path / law)
    for case in ("used", "unused"):
        assert answers[case].error == "ImportError"
        complaint = "not found in your environment: extra_l06. Run `pip install extra_l06`"
        assert complaint in answers[case].message
    assert answers["tried"].output == DOUBLE

    # diffusers warns, and lets the import itself fail.
    for case in ("used", "unused"):
        law, source = f"l06_{case}_net", modeling(f"l06_{case}_net", f"{heads[case]}\n\n{TWO}")
        folder = write(tmp_path / law, pipeline_files(law, {f"net/modeling_{law}.py": source}))
        answers[case] = load("DiffusionPipeline", folder)
        assert "environment: extra_l06. Run `pip install extra_l06`" in "".join(answers[case].log)
    assert answers["used"].error == "ModuleNotFoundError"
    assert answers["used"].message == "No module named 'extra_l06'"
    assert answers["unused"].output == DOUBLE


def test_l07_siblings_of_a_component_stay_on_the_hub(hub, load, tmp_path):
    """L7: diffusers fetches one file of a component's code; publishing puts the sibling into it."""
    source = modeling("l07", "from .layers_l07 import FACTOR")
    files = pipeline_files("l07", {"net/modeling_l07.py": source, "net/layers_l07.py": TWO})
    hub.plant("alice/l07", files)
    answer = load("DiffusionPipeline", "alice/l07")
    assert answer.error == "FileNotFoundError"
    assert re.search(r"/models--alice--l07/snapshots/\w+/net/layers_l07\.py'$", answer.message)
    assert fetched_code(hub, "alice/l07") == {"pipeline_l07.py", "net/modeling_l07.py"}
    # The same files load from a folder, where nothing has to be fetched.
    assert load("DiffusionPipeline", write(tmp_path, files)).output == DOUBLE


def test_l08_siblings_of_one_name_are_one_module(load, tmp_path):
    """L8: the second of two pipelines runs the first one's sibling; a published file has none."""
    source = "from .layers_l08 import FACTOR"
    for law, factor in (("l08_first", TWO), ("l08_second", THREE)):
        code = {f"net/modeling_{law}.py": modeling(law, source), "net/layers_l08.py": factor}
        write(tmp_path / law, pipeline_files(law, code))
    assert load("DiffusionPipeline", tmp_path / "l08_first").output == DOUBLE
    second = load("DiffusionPipeline", tmp_path / "l08_second")
    assert second.output == DOUBLE  # which is wrong, and nobody is told
    assert second.log == []
    # transformers keeps the same siblings apart.
    assert load("AutoModel", tmp_path / "l08_first/net").output == DOUBLE
    assert load("AutoModel", tmp_path / "l08_second/net").output == TRIPLE


def test_l09_diffusers_saves_the_path_of_a_module(imported, load, tmp_path):
    """L9: diffusers saves module paths, and no code; the zoo writes model_index.json itself."""
    source, folder = modeling("l09", TWO), tmp_path / "saved"
    files = {"zoo_l09/modeling_l09.py": source, "zoo_l09/pipeline_l09.py": PIPELINE}
    net = with_weight(imported("zoo_l09.modeling_l09", files))
    imported("zoo_l09.pipeline_l09", {}).LawPipeline(net).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "LawPipeline"
    assert index["net"] == ["zoo_l09.modeling_l09", "LawModel"]
    assert sources(folder) == []
    answer = load("DiffusionPipeline", folder)
    assert answer.error == "AttributeError"
    assert answer.message == "module diffusers has no attribute LawPipeline"

    code = {"pipeline_l09.py": PIPELINE, "net/modeling_l09.py": source}
    index["_class_name"] = ["pipeline_l09", "LawPipeline"]
    write(folder, code | {"model_index.json": json.dumps(index)})
    answer = load("DiffusionPipeline", folder)
    assert misses_code(answer, "zoo_l09.modeling_l09"), answer

    index["net"] = ["modeling_l09", "LawModel"]
    write(folder, {"model_index.json": json.dumps(index)})
    assert load("DiffusionPipeline", folder).output == DOUBLE


# Configs


def test_l10_a_future_import_turns_field_checks_off(imported):
    """L10: annotations that are strings are not checked; no shipped file has the future import."""
    future = "from __future__ import annotations\n"
    files = {
        "checked_l10.py": modeling("l10", TWO),
        "unchecked_l10.py": future + modeling("l10", TWO),
    }
    checked = imported("checked_l10", files).LawConfig
    unchecked = imported("unchecked_l10", files).LawConfig
    with pytest.raises(StrictDataclassFieldValidationError, match="'size' expected int, got float"):
        checked(size=2.5)
    assert unchecked(size=2.5).size == 2.5
    # What a config checks by methods of its own is checked in both files.
    for config_class in (checked, unchecked):
        with pytest.raises(StrictDataclassClassValidationError, match="size must be at least 1"):
            config_class(size=0)


def test_l11_a_tuple_does_not_survive_the_file(tmp_path):
    """L11: a tuple comes back as a list, which a strict config refuses; fields are lists here."""

    class LooseConfig(PreTrainedConfig):
        model_type = "genzoo_test_l11_loose"
        sizes: tuple[int, ...] = (1, 2)

    @strict
    class TupleConfig(PreTrainedConfig):
        model_type = "genzoo_test_l11_tuple"
        sizes: tuple[int, ...] = (1, 2)

    @strict
    class ListConfig(PreTrainedConfig):
        model_type = "genzoo_test_l11_list"
        sizes: list[int] | None = None

    LooseConfig(sizes=(3, 4)).save_pretrained(tmp_path)
    assert LooseConfig.from_pretrained(tmp_path).sizes == [3, 4]
    TupleConfig().save_pretrained(tmp_path)  # the default is enough
    with pytest.raises(StrictDataclassFieldValidationError, match="expected a tuple, got list"):
        TupleConfig.from_pretrained(tmp_path)
    ListConfig(sizes=[3, 4]).save_pretrained(tmp_path)
    assert ListConfig.from_pretrained(tmp_path).sizes == [3, 4]


def test_l12_a_misspelled_argument_is_taken_in_silence(imported, log, tmp_path):
    """L12: a misspelled argument is taken in silence; the zoo warns, and checks its recipes."""
    bert = BertConfig(hiden_size=12)
    assert (bert.hidden_size, bert.hiden_size) == (BertConfig().hidden_size, 12)
    config = imported("modeling_l12", {"modeling_l12.py": modeling("l12", TWO)}).LawConfig(sise=3)
    assert (config.size, config.sise) == (2, 3)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["sise"] == 3
    assert log.messages == []

    assert SelfModGANConfig(latent_dims=64).latent_dim == SelfModGANConfig().latent_dim
    (message,) = log.messages
    assert message == "SelfModGANConfig has no field 'latent_dims'; did you mean 'latent_dim'?"


# Tensors


class TensorConfig(PreTrainedConfig):
    model_type = "genzoo_test_tensors"


def test_l13_what_no_file_holds_is_lost(tmp_path):
    """L13: a non-persistent buffer comes back uninitialized; what a model owns is in its file."""

    class Net(PreTrainedModel):
        config_class = TensorConfig

        def __init__(self, config: TensorConfig):
            super().__init__(config)
            self.weight = nn.Parameter(torch.tensor(WEIGHT))
            self.register_buffer("persistent", torch.tensor(WEIGHT))
            self.register_buffer("transient", torch.tensor(WEIGHT), persistent=False)
            self.attribute = torch.tensor(WEIGHT)
            self.post_init()

    Net(TensorConfig()).save_pretrained(tmp_path)
    loaded = Net.from_pretrained(tmp_path)
    assert loaded.weight.tolist() == loaded.persistent.tolist() == WEIGHT
    assert loaded.transient.shape == (2,)
    assert loaded.transient.isnan().all()  # what torch.empty, poisoned here, gives
    assert loaded.attribute.is_meta  # a plain tensor is not even given memory


def test_l14_init_weights_overwrites_and_forgets(log, tmp_path):
    """L14: `_init_weights` can overwrite what was loaded; the zoo's writes by `initialization`."""

    def after_loading(fill: Callable[[Tensor, float], Any], missing: str = "", buffer=False):
        """The values that the tensors have after loading a file where all are 3.

        Args:
            fill: How `_init_weights` sets weight and bias to 7; it leaves `forgotten` out.
            missing: A tensor that the file lacks.
            buffer: Whether the module has a buffer that no file holds.
        """

        class Net(PreTrainedModel):
            config_class = TensorConfig

            def __init__(self, config: TensorConfig):
                super().__init__(config)
                for name in ("weight", "bias", "forgotten"):
                    setattr(self, name, nn.Parameter(torch.tensor(3.0)))
                if buffer:
                    self.register_buffer("transient", torch.tensor(0.0), persistent=False)
                self.post_init()

            @torch.no_grad()
            def _init_weights(self, module: nn.Module):
                if module is self:
                    fill(module.weight, 7.0)
                    fill(module.bias, 7.0)

        file = {name: torch.tensor(3.0) for name in ("weight", "bias", "forgotten")}
        file.pop(missing, None)
        TensorConfig().save_pretrained(tmp_path)
        safetensors.torch.save_file(file, tmp_path / "model.safetensors", {"format": "pt"})
        log.clear()
        loaded = Net.from_pretrained(tmp_path).state_dict()
        assert ("MISSING" in log.text) == bool(missing)
        return {name: tensor.item() for name, tensor in loaded.items()}

    def through_data(tensor: Tensor, value: float) -> None:
        tensor.data.fill_(value)

    def through_torch(tensor: Tensor, value: float) -> None:
        nn.init.constant_(tensor, value)  # looked up now, because transformers replaces it

    kept = {"weight": 3.0, "bias": 3.0, "forgotten": 3.0}
    for unguarded in (through_data, Tensor.fill_):
        assert after_loading(unguarded) == kept
        # A module that lacks one tensor is initialized whole, and one with such a buffer always
        # lacks it: then nobody is told.
        assert after_loading(unguarded, missing="bias") == kept | {"weight": 7.0, "bias": 7.0}
        assert after_loading(unguarded, buffer=True) == kept | {"weight": 7.0, "bias": 7.0}
    for guarded in (init.constant_, through_torch):
        assert after_loading(guarded, missing="bias") == kept | {"bias": 7.0}
        assert after_loading(guarded, buffer=True) == kept

    values = after_loading(init.constant_, missing="forgotten")
    assert torch.tensor(values.pop("forgotten")).isnan()  # what torch.empty, poisoned here, gives
    assert values == {"weight": 3.0, "bias": 3.0}


# Places


def test_l15_each_library_looks_elsewhere_for_code(hub, load, tmp_path):
    """L15: transformers takes code from the root, diffusers from the component; it lies in both."""
    code = {
        "modeling_l15.py": modeling("l15", TWO),
        "net/modeling_l15.py": modeling("l15", THREE),
    }
    for name, left_out in (
        ("both", ""),
        ("root", "net/modeling_l15.py"),
        ("net", "modeling_l15.py"),
    ):
        files = pipeline_files("l15", {k: v for k, v in code.items() if k != left_out})
        hub.plant(f"alice/l15-{name}", files)
        write(tmp_path / name, files)

    for place in ("alice/l15-both", tmp_path / "both"):
        assert load("AutoModel", place, subfolder="net").output == DOUBLE
        assert load("DiffusionPipeline", place).output == TRIPLE

    for place in ("alice/l15-root", tmp_path / "root"):
        assert load("AutoModel", place, subfolder="net").output == DOUBLE
    answer = load("DiffusionPipeline", "alice/l15-root")
    assert answer.error == "ValueError"
    complaint = "net/modeling_l15.py as defined in `model_index.json` does not exist"
    assert answer.message.startswith(complaint)
    answer = load("DiffusionPipeline", tmp_path / "root")
    assert misses_code(answer, "modeling_l15"), answer

    for place in ("alice/l15-net", tmp_path / "net"):
        answer = load("AutoModel", place, subfolder="net")
        assert answer.error == "OSError"
        assert f"{place} does not appear to have a file named modeling_l15.py" in answer.message
    assert fetched_code(hub, "alice/l15-net") == {"modeling_l15.py"}
    for place in ("alice/l15-net", tmp_path / "net"):
        assert load("DiffusionPipeline", place).output == TRIPLE
