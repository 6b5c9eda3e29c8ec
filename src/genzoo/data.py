"""Real data: images to batches, and texts.

The data come from the Hub, a local mirror, a folder of pictures, or scikit-learn's digits.
"""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .runtime import generator_for

DIGITS = "sklearn/digits"


@dataclass(frozen=True)
class ImageDataset:
    """All images of one split, in memory.

    Args:
        images: uint8, (N, C, H, W).
        labels: int64, (N,), or None.
        label_names: One name for each class; empty without labels.
        name: Where the images came from: a Hub id or a path.
        split: "train" or "test", mostly.
    """

    images: Tensor
    labels: Tensor | None
    label_names: list[str]
    name: str
    split: str

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ImageBatch:
    """What a training step sees.

    Args:
        images: float32, (B, C, H, W), in [-1, 1].
        labels: int64, (B,), or None.
    """

    images: Tensor
    labels: Tensor | None


def to_model_range(images: Tensor) -> Tensor:
    """Bytes in 0 .. 255 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


class ImageBatches:
    """Shuffled batches without end, each a pure function of its index.

    That is, `batches[i]` is always the same. Every epoch goes through all images once, in an order
    of its own; a batch may span two epochs. With several processes, each takes every
    `num_processes`-th image of the batch.

    Args:
        dataset: Where from.
        batch_size: Images B in a batch, over all processes together.
        seed: Of the orders and the flips.
        random_flip: Whether each image is mirrored, left to right, half of the time.
        process_index: Which of the processes this is.
        num_processes: How many share a batch.
        device: Where the batches are wanted. Images that take less than 2 GiB move there at once.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        *,
        seed: int,
        random_flip: bool = False,
        process_index: int = 0,
        num_processes: int = 1,
        device: torch.device | str = "cpu",
    ):
        self.batch_size, self.seed, self.random_flip = batch_size, seed, random_flip
        self.mine = slice(process_index, None, num_processes)
        self.device = device
        home = device if dataset.images.numel() < 2**31 else "cpu"
        self.images = dataset.images.to(home)
        self.labels = None if dataset.labels is None else dataset.labels.to(home)

    def __getitem__(self, index: int) -> ImageBatch:
        first = index * self.batch_size
        positions = range(first, first + self.batch_size)[self.mine]
        rows = torch.tensor([self._row(position) for position in positions]).to(self.images.device)
        images = to_model_range(self.images[rows].to(self.device))
        if self.random_flip:
            source = generator_for(self.seed, index, 1)
            flips = torch.rand(self.batch_size, generator=source)[self.mine] < 0.5
            flips = flips.to(self.device)[:, None, None, None]  # (B,) -> (B, 1, 1, 1)
            images = torch.where(flips, images.flip(-1), images)
        labels = None if self.labels is None else self.labels[rows].to(self.device)
        return ImageBatch(images, labels)

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self.images))
        return _order(len(self.images), self.seed, epoch)[place]


@lru_cache(maxsize=4)
def _order(num_images: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(num_images, generator=generator_for(seed, epoch, 0)).tolist()


def load_images(
    name_or_path: str | Path,
    *,
    split: str = "train",
    image_size: int,
    num_channels: int,
    limit: int | None = None,
) -> ImageDataset:
    """Loads all images of a split, cut and scaled to a square.

    Args:
        name_or_path: A Hub id such as "zalando-datasets/fashion_mnist" (looked for in the folder of
            mirrors that the environment variable GENZOO_DATA names, where that is set),
            "sklearn/digits", a folder with a mirror of a Hub data set (parquet), or a folder of
            pictures whose sub-folders, if any, are the classes.
        split: Which part.
        image_size: Pixels of the square's side; the largest square in the middle is scaled to it.
        num_channels: 1 turns the images gray, 3 to color; what is transparent becomes white.
        limit: Take only the first so many.

    Raises:
        FileNotFoundError: If there is no such folder, mirror, data set or split.
        ValueError: If no column holds images, or an image cannot be decoded; the message names
            column or row.
    """
    if num_channels not in (1, 3):
        raise ValueError(f"num_channels must be 1 (grey) or 3 (color), got {num_channels}")
    if str(name_or_path) == DIGITS:
        return _load_digits(split, image_size, num_channels, limit)
    table = _open(name_or_path, split)
    image_column, label_column = _columns(table, name_or_path)
    table = table.select(range(min(limit or len(table), len(table))))

    # Decoding is done here, not by datasets, so that a broken image can be named by its row.
    encoded = table.cast_column(image_column, datasets.Image(decode=False)).select_columns(
        image_column
    )
    pixels = np.empty((len(encoded), image_size, image_size, num_channels), np.uint8)

    def decode(row: int, cell: dict | None) -> None:
        try:
            source = io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]
            pixels[row] = _square(Image.open(source), image_size, num_channels)
        except (OSError, SyntaxError, ValueError, TypeError) as error:
            path = f" ({cell['path']})" if cell and cell.get("path") else ""
            raise ValueError(
                f"row {row}{path} of {name_or_path} is no image that can be read: {error}"
            ) from error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(encoded), 1000):
            cells = encoded[first : first + 1000][image_column]
            list(pool.map(decode, range(first, first + len(cells)), cells))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()  # (N, C, H, W)

    labels, label_names = None, []
    if label_column is not None:
        labels = torch.tensor(table[label_column][:], dtype=torch.int64)
        if int(labels.min()) < 0:  # the mark of a test set whose labels are kept secret
            raise ValueError(f"{name_or_path}, {split}, hides its labels: some are negative")
        feature = table.features[label_column]
        label_names = getattr(feature, "names", None) or [
            str(label) for label in range(int(labels.max()) + 1)
        ]
    return ImageDataset(images, labels, label_names, str(name_or_path), split)


def load_texts(
    name_or_path: str | Path, *, split: str = "train", subset: str | None = None
) -> datasets.Dataset:
    """Opens a data set of texts; its rows stay on the disk.

    Args:
        name_or_path: A Hub id such as "stanfordnlp/imdb", or the name of a data set without an
            owner, both looked for in the folder of mirrors that the environment variable
            GENZOO_DATA names, where that is set; or a folder with a mirror; or one file, CSV, TSV,
            JSON, parquet or plain text with one text a line.
        split: Which part, or several, as in "train+test"; a file has only one.
        subset: Which of the data set's configurations, where it has several.

    Returns:
        A data set with a column "text".

    Raises:
        FileNotFoundError: If there is no such folder, mirror, data set or split.
        ValueError: If it has no column "text".
    """
    table = _open(name_or_path, split, subset)
    if "text" not in table.column_names:
        raise ValueError(
            f"{name_or_path} has no column `text`, only {', '.join(table.column_names)}"
        )
    return table


def mirror(name: str) -> Path:
    """The folder of data files that are on no Hub, in the folder of mirrors (GENZOO_DATA).

    Raises:
        FileNotFoundError: If there is none.
    """
    path = Path(os.environ.get("GENZOO_DATA", "")) / name
    if not os.environ.get("GENZOO_DATA") or not path.is_dir():
        raise FileNotFoundError(
            f"{name} is looked for in the folder that the environment variable GENZOO_DATA names, "
            "and is not there"
        )
    return path


def _open(name_or_path: str | Path, split: str, subset: str | None = None) -> datasets.Dataset:
    name_or_path = str(name_or_path).rstrip("/")
    path, mirrors = Path(name_or_path), os.environ.get("GENZOO_DATA")
    if not path.exists() and mirrors:
        path = Path(mirrors) / path.name
        if not path.is_dir():
            raise FileNotFoundError(
                f"GENZOO_DATA has no mirror of {name_or_path}: there is no folder {path}"
            )
    if not path.exists() and (path.is_absolute() or str(name_or_path).count("/") != 1):
        raise FileNotFoundError(
            f"there is no data folder {name_or_path}, and it is no Hub id (owner/name) either"
        )
    source = str(path if path.exists() else name_or_path)
    try:
        if path.is_file():
            return _open_file(path)
        return datasets.load_dataset(source, subset, split=split)
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        if "split" in str(error):
            raise FileNotFoundError(f"{name_or_path} has no split {split!r}: {error}") from error
        raise ValueError(f"{name_or_path} cannot be read: {error.__cause__ or error}") from error
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"{name_or_path} could not be loaded ({error}); "
            "give a local copy by --data or GENZOO_DATA"
        ) from error


_BUILDERS = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {}),
}


def _open_file(path: Path) -> datasets.Dataset:
    if path.suffix.lower() not in _BUILDERS:
        raise ValueError(f"a file of data is one of {', '.join(_BUILDERS)}, not {path.suffix!r}")
    builder, options = _BUILDERS[path.suffix.lower()]
    table: Any = datasets.load_dataset(builder, data_files=str(path), split="train", **options)
    return table


def _columns(table: datasets.Dataset, name: str | Path) -> tuple[str, str | None]:
    def is_image(feature: Any) -> bool:
        # Parquet without datasets' own notes has the same content as a plain struct.
        plain = isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
        return plain or isinstance(feature, datasets.Image)

    def is_label(column: str, feature: Any) -> bool:
        plain = column in ("label", "labels") and "int" in str(getattr(feature, "dtype", ""))
        return plain or isinstance(feature, datasets.ClassLabel)

    images = [column for column, feature in table.features.items() if is_image(feature)]
    if not images:
        found = ", ".join(table.column_names) or "none"
        raise ValueError(
            f"{name} has no column of images: "
            f"found {found}; wanted one of type Image, such as `image`"
        )
    labels = [column for column, feature in table.features.items() if is_label(column, feature)]
    return images[0], next(iter(labels), None)


def _square(image: Image.Image, image_size: int, num_channels: int) -> np.ndarray:
    image = ImageOps.exif_transpose(image)  # cameras store how they were held beside the pixels
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if num_channels == 1 else "RGB")
    if image.size != (image_size, image_size):
        # Cut first: scaling a part of an image takes in pixels from around that part.
        side = min(image.size)
        image = ImageOps.fit(image, (side, side)).resize(
            (image_size, image_size), Image.Resampling.LANCZOS
        )
    return np.asarray(image).reshape(image_size, image_size, num_channels)


def _load_digits(split: str, image_size: int, num_channels: int, limit: int | None) -> ImageDataset:
    """The 1,797 digits of 8x8 pixels that come with scikit-learn; every fifth is for the test."""
    from sklearn.datasets import load_digits

    if split not in ("train", "test"):
        raise FileNotFoundError(f"{DIGITS} has the splits train and test, not {split!r}")
    digits = load_digits()
    rows = np.flatnonzero((np.arange(len(digits.target)) % 5 == 4) == (split == "test"))[:limit]
    pixels = np.round(digits.images[rows] * (255 / 16)).astype(np.uint8)
    images = np.stack(
        [_square(Image.fromarray(image), image_size, num_channels) for image in pixels]
    )
    labels = torch.from_numpy(digits.target[rows]).long()
    names = [str(name) for name in digits.target_names]
    return ImageDataset(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels, names, DIGITS, split
    )
