"""GANs: architectures, objectives, training, pipeline.

| class | paper | file | what is new in it |
| --- | --- | --- | --- |
| DCGANGenerator | Radford et al., 2016 | modeling_dcgan.py | strides for pooling, batch norm |
| SelfModGANGenerator | Chen et al., 2019 | modeling_selfmod_gan.py | batch norm modulated by z |

Importing the room registers its models with the Auto classes: `AutoModel` finds generators,
`AutoModelForPreTraining` discriminators (the network that only training needs, as for ELECTRA).
"""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from .modeling_dcgan import DCGANConfig, DCGANDiscriminator, DCGANGenerator
from .modeling_selfmod_gan import SelfModGANConfig, SelfModGANDiscriminator, SelfModGANGenerator

for _config, _generator, _discriminator in (
    (DCGANConfig, DCGANGenerator, DCGANDiscriminator),
    (SelfModGANConfig, SelfModGANGenerator, SelfModGANDiscriminator),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _generator, exist_ok=True)
    AutoModelForPreTraining.register(_config, _discriminator, exist_ok=True)
