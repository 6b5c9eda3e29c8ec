"""Training of energies: it learns, it goes on where it stopped, it survives an explosion."""

import dataclasses
import functools
import json
import logging
import math

import pytest
import torch

from genzoo.data import ImageDataset, to_model_range
from genzoo.ebm import training
from genzoo.ebm.buffer import SampleBuffer, quantize
from genzoo.ebm.composition import class_energies
from genzoo.ebm.losses import contrastive_divergence, igebm, softplus
from genzoo.ebm.modeling_ebm import EBMConfig, EnergyModel
from genzoo.ebm.pipeline_ebm import EBMPipeline
from genzoo.ebm.scheduling_langevin import LangevinScheduler
from genzoo.ebm.training import (
    EBMRecipe,
    alarms,
    clip_by_second_moment,
    ends_of_chains,
    train_ebm,
)


def shades(count: int = 64) -> ImageDataset:
    """Images of 4 pixels a side, dark for class 0 and bright for class 1, a little rough."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = (
        40
        + 170 * labels[:, None, None, None]
        + torch.randint(-15, 16, (count, 1, 4, 4), generator=generator)
    )
    return ImageDataset(images.to(torch.uint8), labels, ["dark", "bright"], "shades", "train")


def recipe(**changes) -> EBMRecipe:
    values = {
        "name": "shades",
        "model": EBMConfig(
            image_size=4,
            num_channels=1,
            num_classes=2,
            channels=[8, 16],
            downsamples=[True],
            activation="swish",
        ),
        "data": "shades",
        "feature_network": "none",
        "scheduler": LangevinScheduler(
            step_size=2.0, noise_std=0.02, gradient_clip=0.1, clamp=[-1, 1]
        ),
        "num_steps": 6,
        "num_chain_steps": 15,
        "batch_size": 16,
        "buffer_size": 64,
        "learning_rate": 3e-3,
        "log_every": 1,
        "save_every": 2,
        "sample_every": 0,
    }
    return EBMRecipe(**values | changes)


def log(folder) -> list[dict]:
    lines = (folder / "run" / "log.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if "second" not in key}
        for line in lines
    ]


@pytest.mark.parametrize("start", ["buffer", "noise", pytest.param("data", marks=pytest.mark.slow)])
def test_it_learns_what_the_classes_look_like(tmp_path, start: str):
    train_ebm(
        recipe(num_steps=120, chain_start=start, save_every=1000, log_every=10),
        shades(),
        output_dir=tmp_path / "run",
    )
    pipe = EBMPipeline.from_pretrained(tmp_path / "run")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.ebm.config.id2label == {0: "dark", 1: "bright"}
    data = shades()
    found = class_energies(pipe.ebm, to_model_range(data.images)).argmin(dim=1)
    assert (found == data.labels).double().mean() > 0.95
    if start != "noise":  # where short chains from noise lead is not what the others learn
        return
    images = pipe(
        class_labels=["dark"] * 8 + ["bright"] * 8,
        num_inference_steps=15,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    assert images[8:].mean() - images[:8].mean() > 0.25  # .67 apart are the data


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    """Dropout draws from torch's own generator, which a step seeds anew."""
    config = recipe().model
    config.dropout = 0.5
    train_ebm(recipe(model=config), shades(), output_dir=tmp_path / "whole")
    torch.manual_seed(1)
    train_ebm(recipe(model=config), shades(), output_dir=tmp_path / "halved")
    folder = tmp_path / "halved" / "run" / "checkpoints"
    (folder / "step-00000006.pt").unlink()
    train_ebm(recipe(model=config), shades(), output_dir=tmp_path / "halved", resume=True)
    assert log(tmp_path / "whole") == log(tmp_path / "halved")
    one, other = (
        torch.load(tmp_path / name / "run/checkpoints/step-00000006.pt", weights_only=True)
        for name in ("whole", "halved")
    )
    assert torch.equal(one["buffers"]["bytes"], other["buffers"]["bytes"])
    assert torch.equal(one["buffers"]["labels"], other["buffers"]["labels"])
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    weights = [
        (tmp_path / name / "ebm" / "model.safetensors").read_bytes() for name in ("whole", "halved")
    ]
    assert weights[0] == weights[1]


def test_the_buffer_holds_the_ends_of_chains(tmp_path, monkeypatch):
    """Each goes back to its place with its label, which the network sees beside it."""
    drawn, stored, seen = [], [], []
    draw, store, forward = SampleBuffer.draw, SampleBuffer.store, EnergyModel.forward

    def drawing(self, *args):
        drawn.append((draw(self, *args), self.bytes.clone(), self.labels.clone()))
        return drawn[-1][0]

    def storing(self, samples, labels, places, generator):
        store(self, samples, labels, places, generator)
        state = self.bytes.clone(), self.labels.clone(), self.num_seen
        stored.append((samples, labels, places, *state))

    def seeing(self, pixel_values, class_labels=None):
        if self.training:
            seen.append((pixel_values, class_labels))
        return forward(self, pixel_values, class_labels)

    monkeypatch.setattr(SampleBuffer, "draw", drawing)
    monkeypatch.setattr(SampleBuffer, "store", storing)
    monkeypatch.setattr(EnergyModel, "forward", seeing)
    train_ebm(recipe(num_steps=3, relabel_share=0.5), shades(), output_dir=tmp_path / "run")
    assert len(drawn) == len(stored) == len(seen) == 3
    for number, step in enumerate(zip(drawn, stored, seen, strict=True), start=1):
        (start, labels, places), before, labels_before = step[0]
        ends, own, where, after, labels_after, count = step[1]
        x, c = step[2]
        assert torch.equal(places, where) and torch.equal(labels, own) and count == 16 * number
        assert torch.equal(x[16:], ends) and torch.equal(c[16:], labels)
        assert (ends != start).any(dim=(1, 2, 3)).all()
        assert torch.equal(after[places], quantize(ends))
        others = torch.ones(len(after), dtype=torch.bool)
        others[places] = False
        assert torch.equal(after[others], before[others])
        assert torch.equal(labels_after[others], labels_before[others])
        assert torch.equal(labels_after[places], labels)
        if number > 1:
            assert torch.equal(before, stored[number - 2][3]), "nothing else touches it"
    assert any(not torch.equal(c[16:], c[:16]) for _, c in seen), "some have classes of their own"


def test_alarms_are_sentences():
    calm = {"energy_gap": 0.1, "energy_size": 1.0, "gradient_norm": 1.0, "displacement": 0.1}
    assert alarms(recipe(), calm) == []
    for name, value, words in (
        ("energy_gap", -50.0, "far from each other"),
        ("energy_size", 60.0, "nearly as large as those of an explosion"),
        ("gradient_norm", 1e5, "gradients are large"),
        ("displacement", 0.0, "chains hardly move"),
    ):
        (sentence,) = alarms(recipe(), calm | {name: value})
        assert words in sentence


def test_frozen_chains_are_told(tmp_path, caplog):
    still = LangevinScheduler(step_size=1e-9, noise_std=0.0, clamp=[-1, 1])
    train_ebm(recipe(num_steps=2, scheduler=still), shades(), output_dir=tmp_path)
    assert sum("the chains hardly move" in record.message for record in caplog.records) == 2


def test_an_explosion_before_the_first_checkpoint_leaves_nothing_behind(tmp_path, monkeypatch):
    """The run begins anew, and its log knows nothing of what exploded."""
    calls = []

    def loss(positive, negative):
        calls.append(1)
        return contrastive_divergence(positive, negative) * (math.nan if len(calls) == 2 else 1)

    settings = {"num_steps": 4, "save_every": 4, "log_every": 2, "loss": loss}
    train_ebm(recipe(**settings), shades(), output_dir=tmp_path / "run")
    lines = log(tmp_path / "run")
    assert [line["step"] for line in lines] == [2, 4] and len(calls) == 6
    assert all(math.isfinite(line["loss"]) and line["num_restarts"] == 1 for line in lines)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reinit_probability": 2.0}, r"reinit_probability must be in \[0, 1\], got 2.0"),
        ({"relabel_share": -1.0}, r"relabel_share must be in \[0, 1\], got -1.0"),
        ({"buffer_policy": "lru"}, "buffer_policy must be one of slots, ring, reservoir"),
        ({"num_chain_steps": 0}, "num_chain_steps must be at least 1, got 0"),
    ],
)
def test_a_wrong_recipe_is_refused_before_it_takes_a_folder(changes, words):
    with pytest.raises(ValueError, match=words):
        recipe(**changes)


def test_the_log_holds_the_alarms(tmp_path):
    train_ebm(recipe(num_steps=2, loss=softplus), shades(), output_dir=tmp_path)
    names = {"loss", "energy_gap", "energy_size", "gradient_norm", "displacement", "num_restarts"}
    assert all(line.keys() == {"step"} | names for line in log(tmp_path))
    assert all(0 < line["displacement"] < 2 for line in log(tmp_path))


def test_an_explosion_goes_back_with_half_the_rate(tmp_path, monkeypatch, caplog):
    """The loss is no number once; the run goes on from the checkpoint before, and ends."""
    calls, rates, ends = [], [], []

    def loss(positive, negative):
        calls.append(1)
        value = contrastive_divergence(positive, negative)
        return value * torch.nan if len(calls) == 4 else value

    def clipping(optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
        return clip_by_second_moment(optimizer)

    def walking(*args):
        ends.append(ends_of_chains(*args))
        return ends[-1]

    monkeypatch.setattr(training, "clip_by_second_moment", clipping)
    monkeypatch.setattr(training, "ends_of_chains", walking)

    with caplog.at_level(logging.WARNING, logger="genzoo"):
        train_ebm(recipe(loss=loss), shades(), output_dir=tmp_path)
    assert "back to step 2, with other noise and the rate 0.0015" in caplog.text
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [line["num_restarts"] for line in log(tmp_path)] == [0, 0, 1, 1, 1, 1]
    assert rates == [0.003] * 4 + [0.0015] * 4  # steps 1 to 4, and 3 to 6 again
    assert not torch.equal(ends[2], ends[4]), "from the same buffer and weights, with other noise"
    state = torch.load(tmp_path / "run/checkpoints/step-00000006.pt", weights_only=True)
    assert state["num_restarts"] == 1
    assert all(weight.isfinite().all() for weight in state["model"].values())


def test_it_gives_up_after_so_many_explosions(tmp_path):
    with pytest.raises(FloatingPointError, match="after 2 restarts"):
        train_ebm(recipe(max_energy=1e-9, max_restarts=2), shades(), output_dir=tmp_path)


def test_gradients_are_bounded_by_what_they_were():
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([weight], 1e-3, betas=(0.0, 0.999))
    for _ in range(2):
        weight.grad = torch.tensor([1.0, 1e-3, 0.0])
        optimizer.step()
    weight.grad = torch.tensor([100.0, -100.0, 0.05])
    norm = clip_by_second_moment(optimizer)
    torch.testing.assert_close(weight.grad, torch.tensor([3.1, -0.103, 0.05]), rtol=1e-3, atol=1e-4)
    assert norm.item() == pytest.approx(20_000**0.5, rel=1e-3)


def test_it_goes_on_from_a_checkpoint_with_other_classes(tmp_path, caplog):
    train_ebm(recipe(num_steps=1), shades(), output_dir=tmp_path / "first")
    data = dataclasses.replace(shades(), labels=torch.arange(64) % 3, label_names=["a", "b", "c"])
    with caplog.at_level(logging.WARNING, logger="genzoo"):
        train_ebm(recipe(num_steps=1), data, tmp_path / "first", output_dir=tmp_path / "more")
    assert "gain1.weight" in caplog.text
    results = json.loads((tmp_path / "more" / "results.json").read_text())
    assert results["name"] == "more" and results["training"]["init"]["num_steps"] == 1


def test_objectives_are_told_apart_by_their_constants():
    weak = functools.partial(igebm, l2_weight=0.1)
    assert recipe(loss=weak).identity()["loss"] == "igebm(l2_weight=0.1)"
    assert recipe(loss=igebm).identity()["loss"] == "igebm"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"max_restarts": -1}, "max_restarts must be at least 0"),
        ({"chain_start": "prior"}, "chain_start must be"),
        ({"buffer_size": 8}, "has no batch of 16"),
    ],
)
def test_bad_recipes_get_a_sentence(changes: dict, words: str):
    with pytest.raises(ValueError, match=words):
        recipe(**changes)
