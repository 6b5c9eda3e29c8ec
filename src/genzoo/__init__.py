"""A zoo of generative and embedding models that Hugging Face's loaders know.

Importing genzoo registers its models with the Auto classes of transformers, and no more than that:
what needs diffusers, a data set or a training loop is imported when it is first asked for.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from .conditional_text import (
    ConditionalBertConfig,
    ConditionalBertForSequenceClassification,
    ConditionalBertLMHeadModel,
    ConditionalBertModel,
    ConditionalLayerNorm,
)
from .ebm import EBMConfig, EnergyModel
from .features import FeatureNetConfig, FeatureNetForImageClassification
from .gan import (
    DCGANConfig,
    DCGANDiscriminator,
    DCGANGenerator,
    SelfModGANConfig,
    SelfModGANDiscriminator,
    SelfModGANGenerator,
)
from .jose import JoseConfig, JoseModel, SphericalSGD

if TYPE_CHECKING:
    from .ebm.pipeline_ebm import EBMInpaintPipeline, EBMPipeline
    from .ebm.scheduling_langevin import LangevinScheduler
    from .gan.pipeline_gan import GANPipeline
    from .jose.vectors import JoseVectors
    from .loading import locate, pipeline

    __version__: str

__all__ = [
    "ConditionalBertConfig",
    "ConditionalBertForSequenceClassification",
    "ConditionalBertLMHeadModel",
    "ConditionalBertModel",
    "ConditionalLayerNorm",
    "DCGANConfig",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "EBMConfig",
    "EBMInpaintPipeline",
    "EBMPipeline",
    "EnergyModel",
    "FeatureNetConfig",
    "FeatureNetForImageClassification",
    "GANPipeline",
    "JoseConfig",
    "JoseModel",
    "JoseVectors",
    "LangevinScheduler",
    "SelfModGANConfig",
    "SelfModGANDiscriminator",
    "SelfModGANGenerator",
    "SphericalSGD",
    "__version__",
    "locate",
    "pipeline",
]

_LAZY = {
    "EBMInpaintPipeline": ".ebm.pipeline_ebm",
    "EBMPipeline": ".ebm.pipeline_ebm",
    "GANPipeline": ".gan.pipeline_gan",
    "JoseVectors": ".jose.vectors",
    "LangevinScheduler": ".ebm.scheduling_langevin",
    "locate": ".loading",
    "pipeline": ".loading",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("genzoo")
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
