"""Where persistent chains rest between two steps of training."""

from typing import Any

import torch
from torch import Tensor

POLICIES = ("slots", "ring", "reservoir")
"""Where samples go back to, see `SampleBuffer`."""


class SampleBuffer:
    """Samples of the model as bytes, each with its label (Du and Mordatch, 2019, Section 3.2).

    Of a batch, a small part begins anew from uniform noise, with labels of the data; the others go
    on from where they were left, under their own label or one of the data, see `relabel_share`.

    Args:
        capacity: Samples N that it holds, filled from the start with uniform noise.
        shape: (C, H, W) of a sample.
        num_classes: Number of classes of the labels; 0 means none.
        reinit_probability: Share of the samples that begin anew: .05 in the paper, .001 in Du et
            al., 2021.
        relabel_share: Share of the places, those in front, whose samples go on under a label of the
            data each time, which is another one for most, so that the chain has to turn them into
            images of another class. 1 in the authors' code; 0 keeps each sample's label, so that
            chains of one label are long. With "slots" these are always the same chains; with the
            other policies samples change places.
        policy: Where samples go back to: "slots", each to its own place, so that every place is one
            chain; "ring", over the oldest; "reservoir", over random ones, such that the buffer is a
            uniform sample of all that ever came.
        device: Where the bytes are.
        generator: The source of random numbers for the start.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, ...],
        *,
        num_classes: int = 0,
        reinit_probability: float = 0.05,
        relabel_share: float = 0.0,
        policy: str = "slots",
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ):
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        if not 0 <= reinit_probability <= 1:
            raise ValueError(f"reinit_probability must be in [0, 1], got {reinit_probability}")
        if not 0 <= relabel_share <= 1:
            raise ValueError(f"relabel_share must be in [0, 1], got {relabel_share}")
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
        self.num_classes, self.policy = num_classes, policy
        self.reinit_probability = reinit_probability
        self.relabel_share = relabel_share
        size = (capacity, *shape)
        self.bytes = torch.randint(256, size, generator=generator, dtype=torch.uint8).to(device)
        labels = torch.randint(max(num_classes, 1), (capacity,), generator=generator)
        self.labels = labels.to(device) if num_classes else None
        self.num_seen = 0

    def __len__(self) -> int:
        return len(self.bytes)

    def draw(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Takes out where chains begin.

        Args:
            batch_size: How many, no more than the buffer holds.
            generator: The source of random numbers, on the CPU.
            labels: (B,), of a batch of data, for the samples that begin anew or go on under another
                label: so classes are as frequent as in the data. Drawn uniformly unless given.

        Returns:
            Samples (B, C, H, W) in [-1, 1], labels (B,) or None, and their places (B,), all
            different, for `store`.
        """
        if batch_size > len(self):
            raise ValueError(f"the buffer holds {len(self)} samples, fewer than {batch_size}")
        device = self.bytes.device
        places = torch.randperm(len(self), generator=generator)[:batch_size].to(device)
        is_new = torch.rand(batch_size, generator=generator) < self.reinit_probability
        fresh = torch.rand((batch_size, *self.bytes.shape[1:]), generator=generator) * 2 - 1
        offsets = torch.rand(fresh.shape, generator=generator)
        is_new, fresh, offsets = is_new.to(device), fresh.to(device), offsets.to(device)
        old = dequantize(self.bytes[places], offsets)
        samples = torch.where(is_new[:, None, None, None], fresh, old)
        if self.labels is None:
            return samples, None, places
        if labels is None:
            labels = torch.randint(self.num_classes, (batch_size,), generator=generator)
        else:
            self._check_labels(labels, batch_size)
        gets_label = is_new | (places < self.relabel_share * len(self))
        return samples, torch.where(gets_label, labels.to(device), self.labels[places]), places

    def store(
        self,
        samples: Tensor,
        labels: Tensor | None,
        places: Tensor,
        generator: torch.Generator | None = None,
    ) -> None:
        """Puts samples back.

        Args:
            samples: (B, C, H, W) in [-1, 1].
            labels: (B,), or None.
            places: (B,), as `draw` gave them.
            generator: The source of random numbers for a reservoir, on the CPU.

        Raises:
            ValueError: If they do not fit the buffer.
        """
        if samples.shape[1:] != self.bytes.shape[1:]:
            raise ValueError(
                f"the buffer holds samples {tuple(self.bytes.shape[1:])}, "
                f"got {tuple(samples.shape[1:])}"
            )
        if (labels is None) != (self.labels is None):
            raise ValueError("labels belong to the buffer of a conditional energy, and to no other")
        if labels is not None:
            self._check_labels(labels, len(samples))
        if len(places) != len(samples):
            raise ValueError(f"{len(samples)} samples need as many places, got {len(places)}")
        count, device = len(samples), self.bytes.device
        if self.policy == "ring":
            places = (self.num_seen + torch.arange(count, device=device)) % len(self)
        elif self.policy == "reservoir":
            # The n-th that comes gets a random place of n, and is dropped if there is none such.
            numbers = self.num_seen + 1 + torch.arange(count)
            chosen = (torch.rand(count, generator=generator).double() * numbers).long()
            chosen = torch.where(numbers <= len(self), numbers - 1, chosen)
            last = {int(place): row for row, place in enumerate(chosen) if place < len(self)}
            rows = torch.tensor(sorted(last.values()), dtype=torch.int64)
            places, rows = chosen[rows].to(device), rows.to(device)
            samples, labels = samples[rows], labels[rows] if labels is not None else None
        self.num_seen += count
        self.bytes[places] = quantize(samples)
        if labels is not None and self.labels is not None:
            self.labels[places] = labels

    def _check_labels(self, labels: Tensor, count: int) -> None:
        if labels.shape != (count,):
            raise ValueError(f"labels must be ({count},), got {tuple(labels.shape)}")
        # Looked at where it costs no wait, as in the model.
        if labels.device.type == "cpu" and count:
            low, high = int(labels.min()), int(labels.max())
            if not 0 <= low <= high < self.num_classes:
                raise ValueError(f"there are {self.num_classes} classes, got {low} to {high}")

    def state_dict(self) -> dict[str, Any]:
        """All that it holds."""
        return {"bytes": self.bytes, "labels": self.labels, "num_seen": self.num_seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave.

        Raises:
            ValueError: If it is of another shape, or not such a state.
        """
        if missing := {"bytes", "labels", "num_seen"} - state.keys():
            raise ValueError(
                f"this is no state of a buffer: it has no {', '.join(sorted(missing))}"
            )
        if state["bytes"].dtype != torch.uint8:
            raise ValueError(f"a buffer holds samples as bytes, got {state['bytes'].dtype}")
        shapes = tuple(state["bytes"].shape), tuple(self.bytes.shape)
        if shapes[0] != shapes[1] or (state["labels"] is None) != (self.labels is None):
            raise ValueError(
                f"the buffer that was saved holds {shapes[0]}, this one {shapes[1]}"
                if shapes[0] != shapes[1]
                else "one of the buffers has labels and the other has none"
            )
        labels: Any = state["labels"]
        if labels is not None:
            self._check_labels(labels, len(self))
        self.bytes.copy_(state["bytes"])
        if self.labels is not None and labels is not None:
            self.labels.copy_(labels)
        self.num_seen = state["num_seen"]


def quantize(images: Tensor) -> Tensor:
    """[-1, 1] to bytes, cut off: what is in the k-th of 256 equal parts becomes k."""
    return ((images + 1) * 128).floor().clamp(0, 255).to(torch.uint8)


def dequantize(images: Tensor, offsets: Tensor) -> Tensor:
    """Bytes to [-1, 1]: k to a place in the k-th of 256 equal parts.

    Data and samples go through it, so that energies cannot tell them apart by their steps.

    Args:
        images: uint8.
        offsets: In [0, 1), uniform for noise, of the same shape.
    """
    return (images.float() + offsets) / 128 - 1
