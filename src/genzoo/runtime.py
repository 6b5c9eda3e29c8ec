"""What every training loop calls.

Seeded noise, run state, log, progress, and the names of hardware and versions.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm.auto import tqdm

Tensors = tuple[Tensor, ...] | list[Tensor]


def generator_for(seed: int, *position: int) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments.

    A loop that draws the noise of each step from `generator_for(seed, step, ...)` continues after
    an interruption where it stopped, with no state of random numbers to keep, and draws the same
    for any number of processes.
    """
    state = np.random.SeedSequence([seed, *position]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def make_accelerator(tracker: str | None, run_folder: Path) -> Accelerator:
    """An accelerator for the hardware at hand.

    It computes in bfloat16 where the GPU has it, and on the CPU where there is no GPU.

    Args:
        tracker: Any tracker of accelerate, such as "tensorboard"; None writes JSON lines to
            `log.jsonl`.
        run_folder: Where the tracker writes.

    Raises:
        ValueError: If several processes were started but accelerate sees one, which would train
            in each of them alone and let them overwrite each other's results.
    """
    has_gpu = torch.cuda.is_available()
    torch.backends.cudnn.benchmark = has_gpu  # shapes are the same in every step
    accelerator = Accelerator(
        cpu=not has_gpu,
        mixed_precision="bf16" if has_gpu and torch.cuda.is_bf16_supported() else "no",
        log_with=tracker or JSONLinesTracker(run_folder / "log.jsonl"),
        project_dir=run_folder,
        # Batch statistics stay those of each process: copying them inside forward would break the
        # second of two forward passes before one backward pass. Checkpoints hold process 0's.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    started = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != started:
        raise ValueError(
            f"{started} processes were started, but accelerate sees {accelerator.num_processes}"
        )
    return accelerator


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """The update of an exponential moving average, for torch's `AveragedModel`.

    Its first updates are quicker, with the decay (1 + n) / (10 + n) for the n-th, so that the
    weights of the start are forgotten in a short run too.

    Args:
        decay: How much of the average an update keeps, in the long run.
    """

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, num_averaged: Tensor | int) -> None:
        num_updates = int(num_averaged)
        weight = 1 - min(decay, (1 + num_updates) / (10 + num_updates))
        torch._foreach_lerp_(averaged, current, weight)

    return update


class JSONLinesTracker(GeneralTracker):
    """An accelerate tracker that appends one JSON object a line."""

    name = "jsonl"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    @property
    def tracker(self) -> Path:
        """The file."""
        return self.path

    @on_main_process
    def store_init_configuration(self, values: dict) -> None:
        """Nothing: the run's folder holds the recipe already."""

    @on_main_process
    def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        """Appends `values` and the step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")


class Progress:
    """A progress bar counted in samples, and a clock that goes on after an interruption."""

    def __init__(
        self,
        *,
        samples: int,
        total: int,
        seconds: float,
        enabled: bool,
        unit: str = " samples",
    ):
        self.bar = tqdm(
            total=total, initial=samples, unit=unit, unit_scale=True, disable=not enabled
        )
        self._start = self._begin = time.monotonic()
        self._before, self._samples = seconds, 0

    @property
    def seconds(self) -> float:
        """Seconds of training."""
        return self._before + time.monotonic() - self._start

    @property
    def samples_per_second(self) -> float:
        """Samples per second since this was last asked."""
        begin, samples = self._begin, self._samples
        self._begin, self._samples = time.monotonic(), 0
        return samples / (self._begin - begin)

    def update(self, samples: int) -> None:
        """Counts samples; fewer than none where training goes back, which was work all the same."""
        self._samples += max(samples, 0)
        self.bar.update(samples)

    def show(self, values: Mapping[str, float]) -> None:
        """Puts numbers behind the bar."""
        self.bar.set_postfix({key: f"{value:.3f}" for key, value in values.items()}, refresh=False)

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()


class OtherRunError(ValueError):
    """The folder holds a run with other settings."""


class Run:
    """The state of one training run, in the folder `run` of its output folder.

    A checkpoint is one file, written beside its place and renamed into it, so that it is whole or
    absent whatever happens. The newest two are kept.

    Args:
        output_dir: Folder of the finished checkpoint; the run keeps its own things in `run` there.
        identity: What makes two runs the same: the recipe as JSON-able data.
        resume: Whether to continue the run that is there; if none is, one begins.
        is_main: Whether this process writes.

    Raises:
        FileExistsError: If the folder holds a finished checkpoint or a run and `resume` is not set.
        OtherRunError: If the folder holds another run.
    """

    def __init__(self, output_dir: Path, identity: dict, *, resume: bool, is_main: bool):
        self.folder = Path(output_dir) / "run"
        self.is_main = is_main
        self.identity = identity = json.loads(json.dumps(identity))
        if not is_main:
            return
        path = self.folder / "recipe.json"
        if path.exists():
            if not resume:
                raise FileExistsError(
                    f"{output_dir} holds a run already: resume it, or choose another folder"
                )
            here, there = _with_dots(identity), _with_dots(json.loads(path.read_text()))
            changes = [
                f"{key} is {there.get(key)!r} there, {here.get(key)!r} here"
                for key in here | there
                if here.get(key) != there.get(key)
            ]
            if changes:
                raise OtherRunError(f"{output_dir} holds another run: {', '.join(changes)}")
        elif any(
            (Path(output_dir) / name).exists() for name in ("model_index.json", "config.json")
        ):
            raise FileExistsError(f"{output_dir} holds a checkpoint already: choose another folder")

    def begin(self) -> None:
        """Takes the folder for this run: everything that can be wrong has been looked at."""
        if self.is_main:
            content = json.dumps(self.identity, indent=2).encode()
            write_atomically(self.folder / "recipe.json", content)

    def save(self, step: int, state: dict) -> None:
        """Keeps `state`, a tree of tensors and plain values, as the checkpoint of `step`.

        Raises:
            OSError: If it cannot be written (a full disk); the checkpoints there stay as they are.
        """
        if not self.is_main:
            return
        folder = self.folder / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{step:08d}.pt"
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
            partial.unlink(missing_ok=True)
            kept = self._checkpoints()
            last = f"the last good one is {kept[-1].name}" if kept else "there is none yet"
            raise OSError(
                f"the checkpoint of step {step} could not be written to {folder}, {last}: {error}"
            ) from error
        partial.replace(path)
        for old in self._checkpoints()[:-2]:
            old.unlink()

    def load(self) -> dict | None:
        """The newest checkpoint's state, or None at the start of a run."""
        kept = self._checkpoints()
        return torch.load(kept[-1], map_location="cpu", weights_only=True) if kept else None

    def forget_log_after(self, step: int) -> None:
        """Removes the lines of `log.jsonl` that a resumed run will write again."""
        path = self.folder / "log.jsonl"
        if self.is_main and path.exists():
            lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            write_atomically(path, "".join(line + "\n" for line in kept).encode())

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("step-*.pt"))


def _with_dots(values: dict, prefix: str = "") -> dict:
    """A tree of dicts as one dict, whose keys are those that `--set` takes."""
    flat = {}
    for key, value in values.items():
        inner = _with_dots(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        flat |= {f"{prefix}{key}": value} if inner is None else inner
    return flat


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def move_atomically(source: Path, target: Path) -> None:
    """Puts a finished file or folder in the place of another one, or of none."""
    if target.is_dir():
        old = source.with_name(source.name + ".old")
        target.replace(old)
        source.replace(target)
        shutil.rmtree(old)
    else:
        source.replace(target)


def half_precision(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model in float16, to be saved in the place of its own.

    The file holds float16 and the configuration says float32: the model is loaded as float32 by
    default, with exactly the numbers that the file has.

    Raises:
        ValueError: If a weight is beyond the range of float16.
    """
    state, rounded = {}, {}
    for name, tensor in model.state_dict().items():
        # Tied weights stay one tensor, which is saved once.
        place = tensor.data_ptr(), tensor.shape
        if place not in rounded:
            rounded[place] = tensor.half() if tensor.is_floating_point() else tensor
        state[name] = rounded[place]
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{type(model).__name__}.{name} does not fit into float16")
    return state


def update_results(folder: Path, **values: Any) -> None:
    """Puts values into the `results.json` of a checkpoint's folder; what is not named stays."""
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    write_atomically(path, (json.dumps(results | values, indent=2) + "\n").encode())


def kept_run(folder: Path, method: str, settings: Mapping[str, Any], seed: int) -> Path:
    """The file of one run of a comparison: a method with its settings and a seed."""
    words = [method, *(f"{key}={value}" for key, value in sorted(settings.items())), f"seed={seed}"]
    name = "_".join("".join(c if c.isalnum() or c in "=.-" else "-" for c in w) for w in words)
    return folder / f"{name}.json"


def keep_run(
    folder: Path,
    method: str,
    settings: Mapping[str, Any],
    seed: int,
    measure: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """One run's numbers: from its file, or measured now and kept there.

    Args:
        folder: Of the files.
        method: Of the run.
        settings: Of the run.
        seed: Of the run.
        measure: Makes a dict with "values", a dict of numbers, and what else is to be kept.

    Returns:
        That dict with method, settings, seed, hardware and, in "seconds", the time that it took.
    """
    file = kept_run(folder, method, settings, seed)
    if file.is_file():
        return json.loads(file.read_text())
    start = time.monotonic()
    result = {"method": method, "settings": dict(settings), "seed": seed} | measure()
    result = {"seconds": time.monotonic() - start} | result | {"hardware": hardware()}
    write_atomically(file, (json.dumps(result, indent=2) + "\n").encode())
    return result


def training_of(checkpoint: str | Path | None) -> dict | None:
    """How the checkpoint in a folder was trained, if its `results.json` says so."""
    path = None if checkpoint is None else Path(checkpoint) / "results.json"
    if path is None or not path.is_file():
        return None
    return json.loads(path.read_text()).get("training")


def command() -> str:
    """The command line of this process, as a user would type it."""
    program = Path(sys.argv[0]).name
    return " ".join(["genzoo" if program == "__main__.py" else program, *sys.argv[1:]])


def hardware() -> str:
    """The machine's processors in words: the GPUs if there are any, else the CPU cores in use."""
    if torch.cuda.is_available():
        return f"{os.environ.get('WORLD_SIZE', 1)} x {torch.cuda.get_device_name()}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        name = names[0] if names else name
    return f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores ({name})"


def versions() -> dict[str, str]:
    """The installed versions of what a number can depend on."""
    return {
        name: importlib.metadata.version(name)
        for name in ("genzoo", "torch", "transformers", "diffusers")
    }
