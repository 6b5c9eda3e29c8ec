"""What every test gets: seeds, an empty offline Hugging Face home, deterministic kernels."""

import atexit
import os
import random
import shutil
import tempfile

# huggingface_hub reads these when it is imported, so they are set before anything else is.
_home = tempfile.mkdtemp(prefix="genzoo-tests-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
os.environ["HF_HOME"] = _home
os.environ["HF_HUB_OFFLINE"] = "1"
# Several processes run tests at once, each with one thread; so do the processes that tests start.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
# numba's cache takes no two writers, and beside the sources it would be everybody's.
os.environ["NUMBA_CACHE_DIR"] = os.path.join(_home, "numba")
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it, cuBLAS is not deterministic
# Tests are the same whether or not their user has mirrors of data sets or a warm cache.
for _name in ("GENZOO_DATA", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT", "HF_TOKEN"):
    os.environ.pop(_name, None)

import numpy as np  # noqa: E402 - after the environment
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(
    1
)  # the networks are small, and the order of sums stays the same on every machine
torch.use_deterministic_algorithms(True)
# Deterministic mode fills torch.empty with NaN, so that a weight which nobody set is seen.
torch.utils.deterministic.fill_uninitialized_memory = True  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(autouse=True)
def seed_everything():
    """A test gives the same result alone and among others."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries draw from the global generator, so it is seeded
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no accelerator here"))
