"""What the texts of the recipes are: rows of public data sets, cut to the length of a model."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]


def reviews(row: Row, max_characters: int = 126) -> Iterator[dict[str, Any]]:
    """A review in pieces, each of the class of the whole, cut as in Su (2019)."""
    for piece in split_text(row["text"], max_characters):
        yield {"text": piece, "label": row["label"]}


def plain(row: Row, max_characters: int = 126) -> Iterator[dict[str, Any]]:
    """A text in pieces, of no class."""
    for piece in split_text(row["text"].replace("\n", ""), max_characters):
        yield {"text": piece}


def sentences(row: Row) -> Iterator[dict[str, Any]]:
    """A text as it is, with its class."""
    yield {"text": row["text"], "label": row["label"]}


def split_text(text: str, max_characters: int) -> list[str]:
    """Cuts a text into pieces of at most so many characters, at the strongest marks there are.

    Su (2019), https://kexue.fm/archives/7124: at ends of lines where that is enough, else at ends
    of sentences, then at semicolons, at commas, at blanks; a piece is as long as it can be. What
    has no mark is cut anywhere. Semicolons, commas and blanks do not begin or end a piece.
    """
    pieces = _split(text.strip(), max_characters, "\n。！？!?；;，, ")
    return [piece for piece in (piece.strip("；;，, \n") for piece in pieces) if piece]


def _split(text: str, max_characters: int, marks: str) -> list[str]:
    if len(text) <= max_characters:
        return [text]
    if not marks:
        return [text[i : i + max_characters] for i in range(0, len(text), max_characters)]
    parts = re.split(f"(?<=[{re.escape(marks[0])}])", text)
    pieces, piece = [], ""
    for part in parts:
        if piece and len(piece) + len(part) > max_characters:
            pieces.append(piece)
            piece = ""
        piece += part
    pieces.append(piece)
    return [
        small for piece in pieces if piece for small in _split(piece, max_characters, marks[1:])
    ]


SHI = {(5, 4): "五絕", (5, 8): "五律", (7, 4): "七絕", (7, 8): "七律"}
"""The four forms of Tang poems by characters in a line and lines."""

OTHER_SHI = "古體"
"""All other forms of Tang poems."""

CI = (
    *("浣溪沙", "水调歌头", "鹧鸪天", "菩萨蛮", "满江红", "西江月", "临江仙", "念奴娇"),
    *("减字木兰花", "蝶恋花", "点绛唇", "清平乐", "满庭芳", "虞美人", "好事近", "朝中措"),
)
"""Sixteen tunes of Song ci: those with the most texts, where these are no longer than a model."""

_MARKS = re.compile(r"[，。？！；、：,.?!;:\s]+")


def line_lengths(text: str) -> list[int]:
    """Characters of each line of a poem: what stands between two marks."""
    return [len(line) for line in _MARKS.split(text) if line]


def poem_form(text: str) -> str | None:
    """The form of a Tang poem, by its lines; None for none of the four."""
    lengths = line_lengths(text)
    return SHI.get((lengths[0], len(lengths))) if len({*lengths}) == 1 else None


def poems(row: Row) -> Iterator[dict[str, Any]]:
    """A poem of one of the twenty forms, in one line, its form the class."""
    text = row["text"].replace("\n", "")
    form = poem_form(text) if row["form"] == "tang_shi" else row["form"]
    if form in (*SHI.values(), *CI) and len(text) <= 126 and "□" not in text:
        yield {"text": text, "label": form}


_LINE = "[^，。？！；、：□]"
_COUPLET = re.compile(f"({_LINE}{{5}}|{_LINE}{{7}})，({_LINE}+)[。？！]")


def couplets(row: Row) -> Iterator[dict[str, Any]]:
    """The couplets of a Tang poem: the first line, the second as its target, the form as class."""
    if row["form"] != "tang_shi":
        return
    form = poem_form(row["text"]) or OTHER_SHI
    for line in row["text"].split("\n"):
        match = _COUPLET.fullmatch(line)
        if match and len(match[1]) == len(match[2]):
            yield {"text": match[1], "target": match[2], "label": form}
