"""ModelTests: the contract that every shipped model keeps, whatever its room.

A room declares each of its models in a class of a few lines that asserts nothing itself:

    class TestDCGANGenerator(ModelTests):
        model_class = DCGANGenerator
        auto_class = AutoModel
        ...
"""

import contextlib
import functools
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from genzoo import hub

PACKAGE = "genzoo"


class ModelTests:
    """Thirteen checks; a subclass whose name starts with Test declares a model and inherits them.

    Attributes:
        model_class: The model.
        auto_class: The Auto class that finds it by model_type.
        make_config: Returns a small config; called anew for every use.
        make_inputs: Maps (batch size, generator) to the keyword arguments of `forward`.
        output: Name of the output that is compared; None where `forward` returns it bare.
        output_shape: Its shape without the batch.
        num_parameters: Pinned, so that no layer changes unseen: a parameter's name is for ever.
        without_gradient: Parameters that rightly get no gradient, each with the reason.
        bfloat16_tolerance: Relative error allowed in bfloat16, of root mean squares.
        bfloat16_output: Type of the output of a network that is in bfloat16.
    """

    model_class: type[PreTrainedModel]
    auto_class: type
    make_config: Callable[[], PreTrainedConfig]
    make_inputs: Callable[[int, torch.Generator], dict[str, Tensor]]
    output: str | None
    output_shape: tuple[int, ...]
    num_parameters: int
    without_gradient: ClassVar[dict[str, str]] = {}
    bfloat16_tolerance: float = 0.03
    bfloat16_output: torch.dtype = torch.bfloat16

    def make_model(self) -> PreTrainedModel:
        """A model as trained a little: no tensor has the value that `_init_weights` gives it."""
        generator = torch.Generator().manual_seed(0)
        model = self.model_class(self.make_config())
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if not tensor.is_floating_point():
                    tensor += 7
                    continue
                scale = tensor.std() if tensor.numel() > 1 and tensor.std() > 0 else 1.0
                # Noise that is not negative, for variances.
                tensor += 0.1 * scale * torch.rand(tensor.shape, generator=generator)
        return model.eval()

    def run(self, model: nn.Module, batch_size: int = 4, **kwargs) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return self.value(model(**self.make_inputs(batch_size, generator), **kwargs))

    def value(self, outputs: Any) -> Tensor:
        """The output that is compared."""
        return outputs if self.output is None else outputs[self.output]

    def test_output_shape_and_type(self):
        model = self.make_model()
        outputs = model(**self.make_inputs(3, torch.Generator().manual_seed(1)))
        assert self.value(outputs).shape == (3, *self.output_shape)
        assert self.value(outputs).dtype == torch.float32
        if self.output is not None:
            assert getattr(outputs, self.output) is outputs[self.output]

    def test_output_is_finite(self):
        assert torch.empty(2).isnan().all(), "the tests want torch.empty to be poisoned"
        fresh = self.model_class(self.make_config())
        for model in (fresh.train(), fresh.eval(), self.make_model()):
            with torch.no_grad():
                assert self.run(model).isfinite().all()
        assert all(t.isfinite().all() for t in fresh.state_dict().values())

    def test_every_parameter_receives_a_finite_gradient(self):
        model = self.model_class(self.make_config()).train()
        output = self.run(model, batch_size=8)
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
        (weight * output).sum().backward()
        names = {name for name, _ in model.named_parameters()}
        assert self.without_gradient.keys() <= names, "without_gradient names what is not there"
        for name, parameter in model.named_parameters():
            if name in self.without_gradient:
                assert parameter.grad is None or not parameter.grad.any(), (
                    f"{name} has a gradient after all"
                )
                continue
            assert parameter.grad is not None, f"{name} has no gradient"
            assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
            assert parameter.grad.any(), f"the gradient of {name} is zero"

    def test_loaded_model_gives_equal_outputs(self, tmp_path: Path):
        model = self.make_model()
        model.save_pretrained(tmp_path)
        loaded, again = (self.model_class.from_pretrained(tmp_path) for _ in range(2))
        assert not loaded.training
        expected, state = model.state_dict(), loaded.state_dict()
        assert expected.keys() == state.keys()
        for name in expected:
            assert torch.equal(expected[name], state[name]), (
                f"{name} changed on its way through the file"
            )
            assert expected[name].dtype == state[name].dtype, name
        assert torch.equal(self.run(loaded), self.run(again))
        torch.testing.assert_close(self.run(loaded), self.run(model), rtol=1e-5, atol=1e-5)
        # The file is mapped into memory, where tensors are aligned to 8 bytes, not to torch's 64;
        # matrix-vector products may round differently there. In torch's own memory no bit differs.
        for tensor in [*loaded.parameters(), *loaded.buffers()]:
            tensor.data = tensor.data.clone()
        assert torch.equal(self.run(loaded), self.run(model))

    def test_config_survives_the_round_trip(self, tmp_path: Path, caplog):
        config = self.make_config()
        self.model_class(config).save_pretrained(tmp_path)
        for loaded in (
            type(config).from_pretrained(tmp_path),
            AutoConfig.from_pretrained(tmp_path),
        ):
            assert type(loaded) is type(config)
            mine, its = config.to_dict(), loaded.to_dict()
            for key in ("architectures", "dtype", "transformers_version", "_name_or_path"):
                mine.pop(key, None), its.pop(key, None)
            assert mine == its
        assert not [record for record in caplog.records if record.name.startswith(PACKAGE)]
        found = self.auto_class.from_pretrained(tmp_path)
        assert type(found) is self.model_class

    def test_init_weights_covers_every_tensor(self, tmp_path: Path):
        config = self.make_config()
        first, second = (self.model_class(config).state_dict() for _ in range(2))
        model = self.make_model()
        model.save_pretrained(tmp_path)
        tied = model.all_tied_weights_keys  # which the file has only once, under their source
        file = tmp_path / "model.safetensors"
        state = load_file(file)
        for missing in state:
            save_file(
                {k: v for k, v in state.items() if k != missing}, file, metadata={"format": "pt"}
            )
            with _quiet_transformers():  # which would print a table of what is missing
                loaded = self.model_class.from_pretrained(tmp_path).state_dict()
            for name in loaded:
                source = tied.get(name, name)
                if source != missing:
                    assert torch.equal(loaded[name], state[source]), (
                        f"without {missing}, {name} was overwritten"
                    )
            value, fresh = loaded[missing], first[missing]
            assert value.isfinite().all(), (
                f"{missing} is not initialized when a checkpoint lacks it"
            )
            if (fresh.numel() > 1 and torch.equal(fresh, second[missing])) or not fresh.any():
                assert torch.equal(value, fresh), (
                    f"{missing} starts at {fresh.flatten()[0]}, but not on loading"
                )
            else:
                ratio = (value.float().norm() / fresh.float().norm()).item()
                bound = 1.5 if fresh.numel() >= 64 else 4
                assert 1 / bound < ratio < bound, (
                    f"{missing} has another scale on loading: {ratio:.3f}"
                )

    def test_parameter_count(self):
        model = self.model_class(self.make_config())
        counted = sum(p.numel() for p in model.parameters())
        assert counted == self.num_parameters, f"{counted} parameters, not {self.num_parameters}"

    def test_output_does_not_depend_on_batch_mates(self):
        model = self.make_model().double()
        inputs = self.make_inputs(4, torch.Generator().manual_seed(1))
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        together = self.value(model(**inputs))
        for row in range(4):
            alone = self.value(model(**{k: v[row : row + 1] for k, v in inputs.items()}))
            torch.testing.assert_close(alone[0], together[row], rtol=1e-9, atol=1e-9)

    def test_same_seed_same_output(self):
        model = self.make_model()
        state = torch.get_rng_state()
        first = self.run(model)
        assert torch.equal(first, self.run(model))
        assert torch.equal(state, torch.get_rng_state()), (
            "the forward pass draws from the global generator"
        )
        other = self.value(model(**self.make_inputs(4, torch.Generator().manual_seed(3))))
        assert not torch.equal(first, other)

    def test_processes_can_hand_it_over(self):
        """As multiprocessing and torch.save do, by pickle."""
        model = self.make_model()
        copied = pickle.loads(pickle.dumps(model))
        assert torch.equal(self.run(copied), self.run(model))

    def test_return_dict_false_agrees(self):
        model = self.make_model()
        inputs = self.make_inputs(4, torch.Generator().manual_seed(1))
        if self.output is None:
            assert isinstance(model(**inputs), Tensor)
            return
        as_tuple, as_output = model(**inputs, return_dict=False), model(**inputs)
        assert isinstance(as_tuple, tuple)
        assert len(as_tuple) == len(as_output.to_tuple())
        for mine, its in zip(as_tuple, as_output.to_tuple(), strict=True):
            assert torch.equal(mine, its)

    def test_bfloat16_forward_is_finite_and_close(self):
        model = self.make_model()
        expected = self.run(model)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = self.run(model)
        model = model.to(torch.bfloat16)
        inputs = self.make_inputs(4, torch.Generator().manual_seed(1))
        inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
        pure = self.value(model(**inputs))
        assert pure.dtype == self.bfloat16_output
        for output in (mixed, pure):
            assert output.isfinite().all()
            error = ((output.float() - expected).norm() / expected.norm()).item()
            assert error < self.bfloat16_tolerance, f"relative error {error:.4f}"

    def test_dummy_inputs_fit(self):
        model = self.make_model()
        first, second = model.dummy_inputs, model.dummy_inputs
        assert first.keys() == self.make_inputs(1, torch.Generator()).keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        with torch.no_grad():
            assert self.value(model(**first)).isfinite().all()

    def test_flattened_file_needs_no_package(self):
        expected, found = _outputs_without_the_package(type(self).__module__)
        name = type(self).__name__
        assert found.keys() == expected.keys()
        assert torch.equal(found[name], expected[name])


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


# What a stranger's process does: no package, no network, the folder's own code.
STRANGER = """
import json, sys
sys.modules["PACKAGE"] = None
import torch, transformers
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
outputs = {}
for name, (folder, auto_class, output) in json.load(sys.stdin).items():
    model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(config) is type(model.config)
    with torch.no_grad():
        found = model(**load_file(f"{folder}/inputs.safetensors"))
        outputs[name] = (found if output is None else found[output]).contiguous()
save_file(outputs, sys.argv[1])
"""


@functools.cache
def _outputs_without_the_package(test_module: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a test module's models put out, here and in one process that has only their folders."""
    members = inspect.getmembers(sys.modules[test_module], inspect.isclass)
    declarations = [c for _, c in members if issubclass(c, ModelTests) and c is not ModelTests]
    with tempfile.TemporaryDirectory() as folder:
        expected, requests = {}, {}
        for declaration in declarations:
            name, tests = declaration.__name__, declaration()
            target = Path(folder, re.sub(r"\W", "_", name))
            tests.make_model().save_pretrained(target)
            hub.add_code(target)
            inputs = target / "inputs.safetensors"
            save_file(declaration.make_inputs(4, torch.Generator().manual_seed(1)), inputs)
            # From files, as in the other process: alignment may change the last bit.
            with torch.no_grad():
                model = declaration.model_class.from_pretrained(target)
                expected[name] = tests.value(model(**load_file(inputs)))
            requests[name] = (str(target), declaration.auto_class.__name__, declaration.output)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"HF_HOME": f"{folder}/home", "HF_HUB_OFFLINE": "1"}
        process = subprocess.run(
            [
                sys.executable,
                "-c",
                STRANGER.replace("PACKAGE", PACKAGE),
                f"{folder}/outputs.safetensors",
            ],
            input=json.dumps(requests),
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        return expected, load_file(f"{folder}/outputs.safetensors")
