"""Energy models: the density of an image is exp(-E(x)) / Z.

| class | paper | file | what is new in it |
| --- | --- | --- | --- |
| EnergyModel | Du and Mordatch, 2019 | modeling_ebm.py | a ResNet whose output is an energy |
| LangevinScheduler | Welling and Teh, 2011 | scheduling_langevin.py | samples by noisy descent |
| MALA | Roberts and Tweedie, 1996 | samplers.py | and refuses some steps, so that it is exact |
| HMC | Neal, 2011 | samplers.py | goes far in one step |
| ParallelTempering | Geyer, 1991 | samplers.py | crosses barriers where it is hot |

`sample` runs any of them on any energy, and `compose` makes one energy of several (composition.py);
`log_partition` bounds log Z (likelihood.py, Neal, 2001).
The objectives are in losses.py; the buffer that the chains of training rest in is in buffer.py.

Importing the room registers its model: `AutoModel` finds it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel

from .modeling_ebm import EBMConfig, EnergyModel

if TYPE_CHECKING:
    from .buffer import SampleBuffer
    from .composition import class_energies, compose, of_class
    from .likelihood import log_partition
    from .samplers import HMC, MALA, ParallelTempering, effective_sample_size, r_hat, sample
    from .scheduling_langevin import LangevinScheduler

AutoConfig.register(EBMConfig.model_type, EBMConfig, exist_ok=True)
AutoModel.register(EBMConfig, EnergyModel, exist_ok=True)

__all__ = [
    "HMC",
    "MALA",
    "EBMConfig",
    "EnergyModel",
    "LangevinScheduler",
    "ParallelTempering",
    "SampleBuffer",
    "class_energies",
    "compose",
    "effective_sample_size",
    "log_partition",
    "of_class",
    "r_hat",
    "sample",
]

# What needs diffusers is imported when it is first asked for.
_LAZY = {
    "HMC": ".samplers",
    "LangevinScheduler": ".scheduling_langevin",
    "MALA": ".samplers",
    "ParallelTempering": ".samplers",
    "SampleBuffer": ".buffer",
    "class_energies": ".composition",
    "compose": ".composition",
    "effective_sample_size": ".samplers",
    "log_partition": ".likelihood",
    "of_class": ".composition",
    "r_hat": ".samplers",
    "sample": ".samplers",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
