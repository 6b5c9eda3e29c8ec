"""Energies of igebm-pytorch (https://github.com/rosinality/igebm-pytorch).

A state dict that was saved there becomes a checkpoint, for images in [-1, 1]:

    python conversion/convert_igebm.py model.pt FOLDER

Two things are left behind. The copy of each weight that its spectral norm last computed is computed
again. And that program goes on with power iterations wherever a network is called, in a chain, too;
here they belong to training. So energies are equal as far as the iterations had settled.
"""

import argparse
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from genzoo.ebm import LangevinScheduler
from genzoo.ebm.modeling_ebm import EBMConfig, EnergyModel
from genzoo.ebm.pipeline_ebm import EBMPipeline

logger = logging.getLogger("genzoo.conversion")

NAMES = {
    r"conv1\.": "stem.",
    r"linear\.": "head.",
    r"(blocks\.\d+\.conv[12]\.)": r"\1",
    r"(blocks\.\d+\.)skip\.0\.": r"\1shortcut.",
}
"""The start of a name there, and what it is here."""

PARTS = {"weight_orig": "weight", "weight_u": "u", "weight": "weight", "bias": "bias"}


def from_igebm(state: Mapping[str, Tensor], image_size: int = 32) -> EnergyModel:
    """Makes an energy model of a state dict.

    Args:
        state: Of its class IGEBM, or of one with other channels.
        image_size: Height and width of the images; the weights do not say.

    Raises:
        ValueError: If it is something else.
    """
    config = config_of(state, image_size)
    model = EnergyModel(config).eval()
    wanted, found = model.state_dict(), {}
    for name, value in state.items():
        if name.removesuffix("weight") + "weight_orig" in state and name.endswith(".weight"):
            continue  # the normalized copy
        found |= renamed(name, value)
    wrong = sorted(
        name
        for name in wanted.keys() | found.keys()
        if name not in wanted or name not in found or wanted[name].shape != found[name].shape
    )
    if wrong:
        raise ValueError(f"this is no state dict of igebm-pytorch: {wrong[0]} does not fit")
    model.load_state_dict(found)
    return model


def config_of(state: Mapping[str, Tensor], image_size: int) -> EBMConfig:
    """The architecture that a state dict is of.

    A block has a 1x1 convolution where it halves or widens, and there what widens halves, too.

    Raises:
        ValueError: If it is of none.
    """
    numbers = {int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.conv1\.", name))}
    if not numbers or "conv1.weight_orig" not in state or numbers != {*range(len(numbers))}:
        raise ValueError(
            "this is no state dict of igebm-pytorch: conv1 and blocks are not both there"
        )
    stem = state["conv1.weight_orig"]
    channels = [
        len(stem),
        *(len(state[f"blocks.{number}.conv1.weight_orig"]) for number in sorted(numbers)),
    ]
    downsamples = [f"blocks.{number}.skip.0.weight_orig" in state for number in sorted(numbers)]
    classes = state.get("blocks.0.class_embed.weight")
    return EBMConfig(
        image_size=image_size,
        num_channels=stem.shape[1],
        num_classes=0 if classes is None else len(classes),
        channels=channels,
        downsamples=downsamples,
        shortcut_kernel_size=1,
        sees_unit_range=True,
    )


def renamed(name: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor under its names here."""
    if name.endswith("class_embed.weight"):
        gain1, gain2, bias1, bias2 = value.chunk(4, dim=1)
        block = name.removesuffix("class_embed.weight")
        return {
            f"{block}gain1.weight": torch.cat([gain1, bias1], dim=1),
            f"{block}gain2.weight": torch.cat([gain2, bias2], dim=1),
        }
    for start, here in NAMES.items():
        match = re.fullmatch(f"{start}({'|'.join(PARTS)})", name)
        if match:
            return {match.expand(here) + PARTS[match[match.lastindex or 0]]: value}
    return {name: value}


# Of igebm-pytorch's training, for pixels in [-1, 1].
CHAINS = LangevinScheduler(
    step_size=80.0,
    noise_std=0.01,
    gradient_clip=0.005,
    clamp=[-1.0, 1.0],
    noise_first=True,
)


def main(arguments: list[str] | None = None) -> None:
    """Reads a file, and writes a folder."""
    parser = argparse.ArgumentParser(description="Energies of igebm-pytorch.")
    parser.add_argument("file", type=Path, help="a saved state dict")
    parser.add_argument("folder", type=Path, help="of the checkpoint")
    parser.add_argument("--image-size", type=int, default=32, help="pixels; 32 unless given")
    options = parser.parse_args(arguments)
    if not options.file.is_file():
        parser.error(f"there is no file {options.file}")
    try:
        state = torch.load(options.file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch lets through whatever the bytes lead its readers to
        parser.error(f"{options.file} is no file of weights that torch reads: {error!r}")
    if not isinstance(state, Mapping) or not all(isinstance(w, Tensor) for w in state.values()):
        parser.error(f"{options.file} holds no state dict, which is names with tensors")
    try:
        model = from_igebm(state, options.image_size)
    except ValueError as error:
        parser.error(str(error))
    EBMPipeline(model, CHAINS).save_pretrained(options.folder)
    logger.warning(f"the checkpoint is in {options.folder}")


if __name__ == "__main__":
    main()
