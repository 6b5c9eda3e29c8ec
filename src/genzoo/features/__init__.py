"""Feature networks: what metrics and perceptual losses look through.

| class | paper | file | what is new in it |
| --- | --- | --- | --- |
| FeatureNetForImageClassification | He et al., 2016 | modeling_feature_net.py | residual blocks |

A published network is frozen: a metric is a number only together with the network (and its
sha256) that it was measured through. A network used in a loss is never the one used in the metric.

Importing the room registers its models: `AutoModelForImageClassification` finds them, and
`AutoImageProcessor` what makes their inputs of pictures (image_processing_feature_net.py).
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from .image_processing_feature_net import FeatureNetImageProcessor
from .modeling_feature_net import FeatureNetConfig, FeatureNetForImageClassification

AutoConfig.register(FeatureNetConfig.model_type, FeatureNetConfig, exist_ok=True)
AutoModelForImageClassification.register(
    FeatureNetConfig, FeatureNetForImageClassification, exist_ok=True
)
AutoImageProcessor.register(
    FeatureNetConfig, image_processor_classes={"pil": FeatureNetImageProcessor}, exist_ok=True
)
