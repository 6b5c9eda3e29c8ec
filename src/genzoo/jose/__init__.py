"""JoSE: words and documents as points of one sphere.

| class | paper | file | what is new in it |
| --- | --- | --- | --- |
| JoseModel | Meng et al., 2019 | modeling_jose.py | words, contexts and documents of length 1 |
| SphericalSGD | Meng et al., 2019 | optimization.py | steps on the sphere, times 1 - cos |

`train_jose` makes a model and a tokenizer of a corpus (training.py; its fast engine is kernels.py,
whose meaning is in naive.py). `JoseVectors` is what one does with them: neighbors, analogies,
vectors of new documents (vectors.py).

Importing the room registers its model: `AutoModel` finds it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel

from .modeling_jose import JoseConfig, JoseModel
from .optimization import SphericalSGD

if TYPE_CHECKING:
    from .tokenization import build_tokenizer, segment_chinese
    from .training import train_jose
    from .vectors import JoseVectors

AutoConfig.register(JoseConfig.model_type, JoseConfig, exist_ok=True)
AutoModel.register(JoseConfig, JoseModel, exist_ok=True)

__all__ = [
    "JoseConfig",
    "JoseModel",
    "JoseVectors",
    "SphericalSGD",
    "build_tokenizer",
    "segment_chinese",
    "train_jose",
]

# What needs more than torch and transformers is imported when it is first asked for.
_LAZY = {
    "JoseVectors": ".vectors",
    "build_tokenizer": ".tokenization",
    "segment_chinese": ".tokenization",
    "train_jose": ".training",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
