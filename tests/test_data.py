"""Images in, batches out."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from genzoo.data import ImageBatches, ImageDataset, load_images, load_texts, to_model_range


def numbered(count: int) -> ImageDataset:
    """Images whose every pixel is their row."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    return ImageDataset(
        images.clone(), torch.arange(count), [str(i) for i in range(count)], "n", "train"
    )


def rows(batch) -> list[int]:
    return ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_range_ends_are_exact():
    assert to_model_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_every_epoch_holds_each_image_once():
    batches = ImageBatches(numbered(10), 4, seed=0)
    seen = [row for index in range(5) for row in rows(batches[index])]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert batches[0].labels.tolist() == rows(batches[0])


def test_a_batch_depends_on_its_index_alone():
    one, other = ImageBatches(numbered(10), 4, seed=1), ImageBatches(numbered(10), 4, seed=1)
    expected = [rows(one[index]) for index in range(6)]
    assert [rows(other[index]) for index in reversed(range(6))] == expected[::-1]
    assert [rows(ImageBatches(numbered(10), 4, seed=2)[index]) for index in range(6)] != expected


def test_processes_share_the_batch_of_one():
    whole = ImageBatches(numbered(10), 4, seed=0, random_flip=True)
    parts = [
        ImageBatches(numbered(10), 4, seed=0, random_flip=True, process_index=rank, num_processes=2)
        for rank in range(2)
    ]
    for index in range(5):
        assert torch.equal(whole[index].images[0::2], parts[0][index].images)
        assert torch.equal(whole[index].images[1::2], parts[1][index].images)


def test_flips_mirror_half_of_the_images_left_to_right():
    images = torch.zeros(100, 1, 2, 2, dtype=torch.uint8)
    images[..., 0] = 255
    batch = ImageBatches(
        ImageDataset(images, None, [], "n", "train"), 100, seed=0, random_flip=True
    )[0]
    is_flipped = batch.images[:, 0, 0, 1] == 1
    assert 30 < int(is_flipped.sum()) < 70
    assert torch.equal(batch.images[:, 0, 0, 0] == 1, ~is_flipped)
    assert batch.labels is None


def test_digits_have_disjoint_splits():
    train = load_images("sklearn/digits", image_size=16, num_channels=1)
    test = load_images("sklearn/digits", split="test", image_size=8, num_channels=3, limit=50)
    assert train.images.shape == (1438, 1, 16, 16) and test.images.shape == (50, 3, 8, 8)
    assert train.label_names == [str(digit) for digit in range(10)]
    assert int(train.images.amax()) == 255
    with pytest.raises(FileNotFoundError, match="not 'validation'"):
        load_images("sklearn/digits", split="validation", image_size=16, num_channels=1)


def mirror(folder: Path, column: str = "image") -> Path:
    """A parquet mirror of a data set of three pictures, as the Hub lays it out."""
    pictures = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (0, 100, 200)]
    features = datasets.Features(
        {column: datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    table = datasets.Dataset.from_dict({column: pictures, "label": [0, 1, 1]}, features=features)
    (folder / "data").mkdir(parents=True)
    table.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("column", ["image", "img"])
def test_mirror_by_path_and_by_hub_id(column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mirror(tmp_path / "three_pictures", column)
    by_path = load_images(tmp_path / "three_pictures", image_size=4, num_channels=1)
    assert by_path.images[:, 0, 0, 0].tolist() == [0, 100, 200]
    assert by_path.labels.tolist() == [0, 1, 1] and by_path.label_names == ["no", "yes"]
    monkeypatch.setenv("GENZOO_DATA", str(tmp_path))
    by_id = load_images("somebody/three_pictures", image_size=4, num_channels=1)
    assert torch.equal(by_id.images, by_path.images) and by_id.name == "somebody/three_pictures"


def test_folder_of_pictures_is_cut_scaled_and_labelled(tmp_path: Path):
    (tmp_path / "left").mkdir()
    (tmp_path / "right").mkdir()
    wide = Image.new("RGB", (40, 20), "blue")
    wide.paste("red", (10, 0, 30, 20))  # the square in the middle
    wide.save(tmp_path / "left" / "wide.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "right" / "clear.png")
    data = load_images(tmp_path, image_size=8, num_channels=3)
    assert data.label_names == ["left", "right"] and data.labels.tolist() == [0, 1]
    assert data.images[0].permute(1, 2, 0).reshape(-1, 3).unique(dim=0).tolist() == [[255, 0, 0]]
    assert data.images[1].unique().tolist() == [255]  # what is transparent becomes white


def test_folder_without_sub_folders_has_no_labels(tmp_path: Path):
    Image.new("L", (8, 8), 7).save(tmp_path / "one.png")
    data = load_images(tmp_path, image_size=8, num_channels=1)
    assert data.labels is None and data.label_names == [] and data.images.unique().tolist() == [7]


def test_names_the_row_that_cannot_be_decoded(tmp_path: Path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"this is no picture")
    with pytest.raises(ValueError, match=r"row 1 \(.*b.png\).* is no image that can be read"):
        load_images(tmp_path, image_size=8, num_channels=1)


def test_names_the_columns_found_and_wanted(tmp_path: Path):
    (tmp_path / "data").mkdir()
    table = datasets.Dataset.from_dict({"text": ["a"], "stars": [1]})
    table.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="found text, stars; wanted one of type Image"):
        load_images(tmp_path, image_size=8, num_channels=1)


def test_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError, match="no data folder"):
        load_images(tmp_path / "nowhere", image_size=8, num_channels=1)
    with pytest.raises(FileNotFoundError, match="somebody/nothing could not be loaded"):
        load_images("somebody/nothing", image_size=8, num_channels=1)
    with pytest.raises(FileNotFoundError, match="no split 'test'"):
        load_images(mirror(tmp_path / "m"), split="test", image_size=8, num_channels=1)
    monkeypatch.setenv("GENZOO_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="GENZOO_DATA has no mirror of somebody/nothing"):
        load_images("somebody/nothing", image_size=8, num_channels=1)
    with pytest.raises(ValueError, match="num_channels must be 1"):
        load_images("sklearn/digits", image_size=8, num_channels=2)


def test_plain_parquet_needs_no_notes_of_datasets(tmp_path: Path):
    """Bytes and integers, as any program writes them."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 9).save(buffer, format="PNG")
    rows = {"image": [{"bytes": buffer.getvalue(), "path": None}] * 2, "label": [0, 1]}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    data = load_images(tmp_path, image_size=8, num_channels=1)
    assert data.images.unique().tolist() == [9]
    assert data.labels.tolist() == [0, 1] and data.label_names == ["0", "1"]


def test_pictures_stand_as_the_camera_was_held(tmp_path: Path):
    picture = Image.new("L", (8, 8), 0)
    picture.paste(255, (0, 0, 8, 4))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    picture.save(tmp_path / "phone.png", exif=exif)
    image = load_images(tmp_path, image_size=8, num_channels=1).images[0, 0]
    assert image[:, 4:].min() == 255 and image[:, :4].max() == 0  # now the right half is


def test_sixteen_bits_become_eight(tmp_path: Path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    data = load_images(tmp_path, image_size=8, num_channels=1)
    assert data.images.unique().tolist() == [40_000 >> 8]


def test_broken_and_secret_data_die_with_a_sentence(tmp_path: Path):
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "train.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match="cut cannot be read"):
        load_images(tmp_path / "cut", image_size=8, num_channels=1)
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="PNG")
    rows = {"image": [{"bytes": buffer.getvalue(), "path": None}], "label": [-1]}
    (tmp_path / "secret").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "secret" / "train.parquet")
    with pytest.raises(ValueError, match="hides its labels"):
        load_images(tmp_path / "secret", image_size=8, num_channels=1)


# datasets 5.0 leaves its CSV open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\ngood,1\nbad,0\n"),
        ("a.tsv", "text\tlabel\ngood\t1\nbad\t0\n"),
        ("a.jsonl", '{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n'),
        ("a.txt", "good\nbad\n"),
    ],
)
def test_one_file_is_a_data_set(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    table = load_texts(tmp_path / name, split="test")
    assert table["text"][:] == ["good", "bad"]
    assert "label" not in table.column_names or table["label"][:] == [1, 0]


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "a.docx").write_text("good")
    with pytest.raises(ValueError, match=r"one of .csv, .tsv, .* not '.docx'"):
        load_texts(tmp_path / "a.docx")
