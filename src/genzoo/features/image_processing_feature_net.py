"""Pictures of any size to inputs of a FeatureNet, cut and scaled as its training images were."""

from typing import Any, Unpack

import numpy as np
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.processing_utils import ImagesKwargs


class FeatureNetImageProcessorKwargs(ImagesKwargs, total=False):
    """What a FeatureNetImageProcessor takes.

    Args:
        image_size: Height and width of the (square) images, in pixels.
        num_channels: 1 for gray images, 3 for color.
    """

    image_size: int
    num_channels: int


class FeatureNetImageProcessor(PilBackend):
    """Cuts the largest square out of the middle of a picture, scales it, and maps it to [-1, 1].

    `processor(pictures, return_tensors="pt").pixel_values` is (B, C, H, W).

    Args:
        image_size: Height and width of the (square) images, in pixels.
        num_channels: 1 for gray images, 3 for color.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - the name and the type are transformers'
    valid_kwargs = FeatureNetImageProcessorKwargs
    image_size = 28
    num_channels = 1
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = 0.5
    image_std = 0.5

    def __init__(self, **kwargs: Unpack[FeatureNetImageProcessorKwargs]):
        super().__init__(**kwargs)

    def process_image(self, image: Any, *args, **kwargs) -> np.ndarray:
        """One picture, of PIL or an array, to (C, H, W) from 0 to 255."""
        if not isinstance(image, Image.Image):
            array = super().process_image(image, *args, **kwargs).astype(np.uint8)  # (C, H, W)
            image = Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))
        # What follows is what genzoo.data does to pictures; a test compares the two.
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if self.num_channels == 1 else "RGB")
        if image.size != (self.image_size, self.image_size):
            side = min(image.size)
            image = ImageOps.fit(image, (side, side)).resize(
                (self.image_size, self.image_size), Image.Resampling.LANCZOS
            )
        return np.asarray(image).reshape(self.image_size, self.image_size, -1).transpose(2, 0, 1)
