"""The contract of every recipe of every room.

A recipe is what it says, and an interrupted run equals an uninterrupted one.
"""

import dataclasses
import faulthandler
import gc
import json
import multiprocessing
import os
import signal
import socket
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from genzoo.data import ImageDataset
from genzoo.ebm.evaluation import NUM_ANNEALED, NUM_COMPLETIONS, NUM_DISTRIBUTIONS
from genzoo.loading import ROOMS, recipes, room_of

CARDS = Path(__file__).parent.parent / "model_cards"

# One server process imports the libraries once; each run is a fork of it, a process of its own that
# can be killed.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([f"genzoo.{room}.recipes" for room in ROOMS])


def random_images(recipe) -> ImageDataset:
    """A few images of noise that fit the recipe's model, two of each class."""
    config = recipe.model
    names = list((config.id2label or {0: "nothing"}).values())
    labels = torch.arange(2 * len(names)) % len(names)
    shape = (len(labels), config.num_channels, config.image_size, config.image_size)
    images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return ImageDataset(images, labels, names, "noise", "train")


def random_texts() -> list[str]:
    """A few documents of invented words."""
    generator = torch.Generator().manual_seed(0)
    numbers = (torch.rand(40, 30, generator=generator) ** 2 * 50).long()
    return [" ".join(f"w{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in row) for row in numbers]


def random_rows(recipe) -> list[dict[str, str]]:
    """A few texts of each class of the recipe, with answers where it wants them."""
    classes = getattr(recipe.model, "class_names", None)
    rows = [{"text": text} for text in random_texts()]
    for index, row in enumerate(rows):
        if classes:
            row["label"] = classes[index % len(classes)]
        if getattr(recipe.model, "attention_pattern", None) == "prefix":
            row["target"] = row["text"][:40]
    return rows


def child(
    name: str,
    output_dir: str,
    changes: dict | None = None,
    *,
    resume: bool = False,
    kill_at_save: int = 0,
    rank: int = 0,
    world_size: int = 1,
    port: int = 0,
) -> None:
    """Trains in this process, and may die by SIGKILL in the middle of writing a checkpoint.

    `kill_at_save` counts the files that are written with torch.save: one for a checkpoint of
    `runtime.Run`, several for one of transformers' Trainer.
    """
    faulthandler.register(signal.SIGUSR1)
    os.environ.update(ACCELERATE_USE_CPU="true", HF_HUB_OFFLINE="1")
    if world_size > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world_size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    torch.set_num_threads(1)
    write, saves = torch.save, 0

    def save(state: dict, file) -> None:
        nonlocal saves
        saves += 1
        if saves == kill_at_save:
            with open(file, "wb") if isinstance(file, str) else nullcontext(file) as half:
                half.write(b"half of a checkpoint")
                half.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        write(state, file)

    torch.save = save

    def end_training(self) -> None:
        """Dies where a wrapper is left to end the process group, which may hang (rarely)."""
        left = [thing for thing in gc.get_objects() if type(thing) is DistributedDataParallel]
        assert not left, "a model is still wrapped when the process group ends"
        end(self)

    end, Accelerator.end_training = Accelerator.end_training, end_training
    function = recipes()[name]
    recipe = function().smoke()
    # Deterministic weights want a small network where the recipe's is for a GPU; the path through
    # the code is the same.
    changes = (changes or {}) | {"use_compile": False}
    fields = {field.name for field in dataclasses.fields(recipe)}
    recipe = dataclasses.replace(
        recipe, **{name: value for name, value in changes.items() if name in fields}
    )
    if hasattr(recipe.model, "image_size"):
        data: Any = random_images(recipe)
    else:
        data = random_rows(recipe) if is_trainers(name) else random_texts()
    room_of(function).train(recipe, data, output_dir=output_dir, resume=resume)


def run(*args, num_processes: int = 1, **kwargs) -> list[int]:
    """Exit codes of the processes that train together; when one is killed, so are the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        CONTEXT.Process(
            target=child,
            args=args,
            kwargs=kwargs | {"rank": rank, "world_size": num_processes, "port": port},
            daemon=True,
        )
        for rank in range(num_processes)
    ]
    for process in processes:
        process.start()
    processes[0].join(timeout=300)
    for process in processes[1:]:
        if processes[0].exitcode:
            process.kill()
        process.join(timeout=60)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:  # it hangs: say where, and do not hang with it
            os.kill(process.pid, signal.SIGUSR1)
            time.sleep(1)
            process.kill()
    return codes


def tensors(value, path: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a tree, by path."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    if isinstance(value, dict):
        return {
            k: v for key, part in value.items() for k, v in tensors(part, f"{path}/{key}").items()
        }
    if isinstance(value, list | tuple):
        return tensors(dict(enumerate(value)), path)
    return {}


def final_state(output_dir: Path) -> dict[str, torch.Tensor]:
    folder = output_dir / "run" / "checkpoints"
    if found := sorted(folder.glob("step-*.pt")):
        return tensors(torch.load(found[-1], weights_only=True))
    (checkpoint,) = folder.glob("checkpoint-2")  # of transformers' Trainer
    return load_file(checkpoint / "model.safetensors") | tensors(
        torch.load(checkpoint / "optimizer.pt", weights_only=True)
    )


def published(output_dir: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output_dir)): path.read_bytes()
        for path in output_dir.rglob("*")
        if path.is_file()
        and "run" not in path.relative_to(output_dir).parts
        and path.name != "results.json"
    }


def check_equal(left: Path, right: Path) -> None:
    """Everything that a run leaves is the same to the last bit, but for the time that it took."""
    one, other = final_state(left), final_state(right)
    assert one.keys() == other.keys() and one
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different, different
    assert published(left) == published(right)
    logs = [
        [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
        for folder in (left, right)
    ]
    timeless = [
        [{k: v for k, v in line.items() if "second" not in k} for line in log] for log in logs
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("name", recipes())
def test_recipe_is_what_it_says(name: str):
    function = recipes()[name]
    recipe = function()
    assert recipe.name == name == function.__name__.replace("_", "-")
    assert function.__doc__
    declared = {field.name for field in dataclasses.fields(recipe.model)}
    given = {name for name in vars(recipe.model) if not name.startswith("_")}
    assert given <= declared, given - declared
    json.dumps(recipe.identity())


@pytest.mark.parametrize("name", ["igebm-mnist", "igebm-fashion-mnist"])
def test_the_cards_of_energies_say_what_their_recipes_do(name: str):
    recipe = recipes()[name]()
    text = " ".join((CARDS / name / "README.md").read_text().split())
    assert f"Chains of {recipe.num_chain_steps} steps begin" in text
    assert f"in a buffer of {recipe.buffer_size:,} samples, of which one in twenty" in text
    assert recipe.reinit_probability == 1 / 20
    assert "half keep their class" in text and recipe.relabel_share == 1 / 2
    assert "steps four times as long" in text and recipe.scheduler.config.step_size == 4 * 80
    assert f"the mean of {NUM_COMPLETIONS} completions" in text
    assert f"from {NUM_ANNEALED} chains of each class in {NUM_DISTRIBUTIONS} steps" in text


def is_trainers(name: str) -> bool:
    """Whether a recipe is trained by transformers' Trainer."""
    return recipes()[name].__module__ == "genzoo.conditional_text.recipes"


# Networks of tens of millions of weights: a rehearsal takes a minute on two CPU cores.
LARGE = ("igebm-cifar10", "igebm-cifar10-conditional")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in recipes()],
)
def test_killed_run_resumes_to_the_same_bits(name: str, tmp_path: Path):
    changes = {"log_every": 1}
    assert run(name, str(tmp_path / "whole"), changes) == [0]
    # The Trainer writes arguments, optimizer, schedule and random numbers, in this order.
    at = 7 if is_trainers(name) else 2
    assert run(name, str(tmp_path / "killed"), changes, kill_at_save=at) == [-signal.SIGKILL]
    left = sorted(path.name for path in (tmp_path / "killed" / "run" / "checkpoints").iterdir())
    if is_trainers(name):
        assert left == ["checkpoint-1", "checkpoint-2"]
        assert (tmp_path / "killed/run/checkpoints/checkpoint-2/model.safetensors").is_file()
    else:
        assert left == ["step-00000001.pt", "step-00000002.partial"]
    assert run(name, str(tmp_path / "killed"), changes, resume=True) == [0]
    check_equal(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(
    "name",
    [
        "selfmod-gan-digits",
        "feature-net-digits",
        "jose-20news",
        "conditional-bert-zh-sentiment",
        "igebm-mnist",
    ],
)
def test_killed_run_of_two_processes_resumes_to_the_same_bits(name: str, tmp_path: Path):
    changes = {"log_every": 1, "batch_size": 4}
    assert run(name, str(tmp_path / "whole"), changes, num_processes=2) == [0, 0]
    at = 7 if is_trainers(name) else 2
    assert (
        run(name, str(tmp_path / "killed"), changes, num_processes=2, kill_at_save=at)[0]
        == -signal.SIGKILL
    )
    assert run(name, str(tmp_path / "killed"), changes, num_processes=2, resume=True) == [0, 0]
    check_equal(tmp_path / "whole", tmp_path / "killed")
    assert (
        json.loads((tmp_path / "killed" / "results.json").read_text())["training"]["num_processes"]
        == 2
    )
    if name == "igebm-mnist":
        path = tmp_path / "killed/run/checkpoints/step-00000002.pt"
        bytes_ = torch.load(path, weights_only=True)["buffers"]["bytes"]
        assert not torch.equal(*bytes_.chunk(2)), "each process has chains of its own"
