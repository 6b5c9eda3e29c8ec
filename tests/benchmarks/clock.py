"""How the benchmarks measure time."""

import statistics
import time
from collections.abc import Callable

import torch


def seconds_of(*runs: Callable[[], object], repeats: int) -> list[float]:
    """The median time of each, all of them measured in turns, after one that does not count."""
    for run in runs:
        run()
    _finish()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, measured in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            _finish()
            measured.append(time.perf_counter() - start)
    return [statistics.median(measured) for measured in times]


def _finish() -> None:
    """Waits for what a device has not finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
