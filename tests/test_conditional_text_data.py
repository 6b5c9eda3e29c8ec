"""From texts to batches: how they are cut, tokenized, and laid out for each attention pattern."""

import random

import datasets
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from genzoo.conditional_text import ConditionalBertConfig, ConditionalBertLMHeadModel
from genzoo.conditional_text.collation import (
    CausalCollator,
    MaskedCollator,
    PermutedCollator,
    PrefixCollator,
    ReversedCollator,
    class_names_of,
    encode,
)
from genzoo.conditional_text.corpus import (
    CI,
    OTHER_SHI,
    couplets,
    line_lengths,
    plain,
    poem_form,
    poems,
    reviews,
    sentences,
    split_text,
)
from genzoo.conditional_text.tokenization import (
    build_tokenizer,
    tokens_in,
    trim_tokenizer,
    with_ends,
)

# Texts, cut


SEPARATORS = "；;，, \n"


@pytest.mark.parametrize("limit", [1, 2, 7, 20, 126])
def test_no_character_of_a_text_is_lost_but_separators_at_the_cuts(limit):
    source = random.Random(0)
    for _ in range(200):
        alphabet = source.choice(["ab", "ab\n。！？!?；;，, ", "很好\n。，", "\n。！？!?；;，, "])
        text = "".join(source.choices(alphabet, k=source.randrange(60)))
        place = 0
        for piece in split_text(text, limit):
            assert 0 < len(piece) <= limit
            assert piece == piece.strip(SEPARATORS)
            found = text.index(piece, place)
            assert not text[place:found].strip(SEPARATORS)
            place = found + len(piece)
        assert not text[place:].strip(SEPARATORS)


@pytest.mark.parametrize(
    ("text", "limit", "pieces"),
    [
        # As long as the limit lets it be, whatever it holds.
        ("一二三，四。五\n六", 9, ["一二三，四。五\n六"]),
        ("aaaa\nbbbb\ncccc", 10, ["aaaa\nbbbb", "cccc"]),
        # A sentence's end is stronger than a comma, a line's end than both.
        ("一二三。四五六\n七八九。十", 8, ["一二三。四五六", "七八九。十"]),
        ("一二，三四。五，六七八。九", 7, ["一二，三四。", "五，六七八。九"]),
        ("一二，三四；五六，七八", 6, ["一二，三四", "五六，七八"]),
        ("一二 三四，五六 七八", 6, ["一二 三四", "五六 七八"]),
        ("Is it? Yes! It is; so", 11, ["Is it? Yes!", "It is; so"]),
        # Weaker marks cut only what is too long: the first line here, and not the second.
        ("一二，三四，五六\n七，八", 5, ["一二", "三四", "五六", "七，八"]),
        # What has no mark is cut anywhere.
        ("a" * 25, 10, ["a" * 10, "a" * 10, "a" * 5]),
        # Separators neither begin nor end a piece; the end of a sentence stays.
        ("，一二。， ；三", 3, ["一二。", "三"]),
        (" ；;，, \n", 3, []),
        ("", 3, []),
        ("。。。。", 3, ["。。。", "。"]),
    ],
)
def test_texts_are_cut_at_the_strongest_mark(text, limit, pieces):
    assert split_text(text, limit) == pieces


def test_pieces_of_a_review_are_of_its_class():
    row = {"text": "一二三。\n四五六。", "label": "pos", "category": "books"}
    assert [*reviews(row)] == [{"text": "一二三。\n四五六。", "label": "pos"}]
    pieces = [{"text": "一二三。", "label": "pos"}, {"text": "四五六。", "label": "pos"}]
    assert [*reviews(row, max_characters=5)] == pieces
    assert [*sentences(row)] == [{"text": "一二三。\n四五六。", "label": "pos"}]
    assert [*plain(row)] == [{"text": "一二三。四五六。"}]
    assert [*plain(row, max_characters=5)] == [{"text": "一二三。"}, {"text": "四五六。"}]


# Poems

WUJUE = "床前看月光，疑是地上霜。\n舉頭望山月，低頭思故鄉。"
QIJUE = "朝辭白帝彩雲間，千里江陵一日還。\n兩岸猿聲啼不住，輕舟已過萬重山。"
WULÜ = (
    "國破山河在，城春草木深。\n感時花濺淚，恨別鳥驚心。\n"
    "烽火連三月，家書抵萬金。\n白頭搔更短，渾欲不勝簪。"
)
QILÜ = (
    "風急天高猿嘯哀，渚清沙白鳥飛迴。\n無邊落木蕭蕭下，不盡長江滾滾來。\n"
    "萬里悲秋常作客，百年多病獨登臺。\n艱難苦恨繁霜鬢，潦倒新停濁酒杯。"
)
GUTI = "前不見古人，後不見來者。\n念天地之悠悠，獨愴然而涕下。"
HUANXISHA = (
    "一曲新词酒一杯，去年天气旧亭台。\n夕阳西下几时回？\n"
    "无可奈何花落去，似曾相识燕归来。\n小园香径独徘徊。"
)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (WUJUE, "五絕"),
        (QIJUE, "七絕"),
        (WULÜ, "五律"),
        (QILÜ, "七律"),
        (GUTI, None),
        (WUJUE[:-2] + "。", None),  # a character short
        (WUJUE + WUJUE[:12], None),  # six lines
        (HUANXISHA, None),
        ("", None),
        ("，。\n", None),
    ],
)
def test_the_form_of_a_poem_is_in_its_lines(text, form):
    assert poem_form(text) == form
    assert poem_form(text.replace("\n", "")) == form


def test_line_lengths():
    assert line_lengths(GUTI) == [5, 5, 6, 6]
    assert line_lengths(HUANXISHA) == [7, 7, 7, 7, 7, 7]
    assert line_lengths("a, bc. ") == [1, 2]


def test_poems_of_twenty_forms():
    assert [*poems({"text": WUJUE, "form": "tang_shi"})] == [
        {"text": WUJUE.replace("\n", ""), "label": "五絕"}
    ]
    assert [*poems({"text": HUANXISHA, "form": "浣溪沙"})] == [
        {"text": HUANXISHA.replace("\n", ""), "label": "浣溪沙"}
    ]
    assert len({*CI}) == 16
    for text, form in (
        (GUTI, "tang_shi"),  # of no form
        (HUANXISHA, "如梦令"),  # of a rare one
        (WUJUE.replace("床", "□"), "tang_shi"),  # a character is lost
        (HUANXISHA * 3, "浣溪沙"),  # too long
        (WUJUE, "五絕 "),
    ):
        assert [*poems({"text": text, "form": form})] == []


def test_couplets_of_real_poems():
    assert [*couplets({"text": WUJUE, "form": "tang_shi"})] == [
        {"text": "床前看月光", "target": "疑是地上霜", "label": "五絕"},
        {"text": "舉頭望山月", "target": "低頭思故鄉", "label": "五絕"},
    ]
    found = [*couplets({"text": QILÜ, "form": "tang_shi"})]
    assert len(found) == 4 and {row["label"] for row in found} == {"七律"}
    assert found[1] == {"text": "無邊落木蕭蕭下", "target": "不盡長江滾滾來", "label": "七律"}
    # A poem of another form has couplets where a line is regular.
    assert [*couplets({"text": GUTI, "form": "tang_shi"})] == [
        {"text": "前不見古人", "target": "後不見來者", "label": OTHER_SHI}
    ]
    assert [*couplets({"text": HUANXISHA, "form": "浣溪沙"})] == []
    for line in (
        "床前看月光，疑是地上。",
        "床前□月光，疑是地上霜。",
        "床前看月光。",
        "疑是地上，霜",
    ):
        assert [*couplets({"text": line, "form": "tang_shi"})] == []


# Tokenizers


CHINESE = ["床前明月光，疑是地上霜。", "举头望明月，低头思故乡。"]
ENGLISH = ["the cat sat on the mat.", "be happy, my dear!", "who is it?"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer((CHINESE + ENGLISH) * 2, max_tokens=200)


def test_special_tokens_come_first_and_all_others_in_order(tokenizer):
    ids = [getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask")]
    assert ids == [0, 1, 2, 3, 4]
    others = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])]
    assert others[5:] == sorted(others[5:])
    assert {"床", "，", "cat", "c", "##a", "##t", "!"} <= {*others}
    assert "##床" not in others


def test_texts_come_back_chinese_without_blanks_and_english_with_them(tokenizer):
    for text in CHINESE + ENGLISH:
        ids = tokenizer(text).input_ids
        assert ids[0] == 2 and 3 not in ids and 1 not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    both = "我 love 你, 2 times"
    mixed = build_tokenizer([both] * 2, max_tokens=60)
    ids = mixed(both).input_ids
    assert mixed.decode(ids, skip_special_tokens=True) == "我love你, 2 times"
    # What is generated comes token by token and may be anything.
    assert tokenizer.decode([], skip_special_tokens=True) == ""
    with_specials = tokenizer.decode([2, *tokenizer("明月").input_ids[1:], 3])
    assert "明月" in with_specials and with_specials.startswith("[CLS]")


def test_rare_words_are_written_in_their_characters():
    words = ["cat"] * 5 + ["cab", "dub"] + ["bat"] * 2
    tokenizer = build_tokenizer(words, max_tokens=100, min_count=2)
    assert tokenizer.tokenize("cat bat cab tab") == ["cat", "bat", "c", "##a", "##b", "[UNK]"]
    # The commonest stay, and special tokens count.
    small = build_tokenizer(words, max_tokens=7, min_count=1)
    assert len(small) == 7 and {"##a", "##t"} <= small.get_vocab().keys()
    small = build_tokenizer(words, max_tokens=9, min_count=1)
    assert {"##a", "##t", "c", "cat"} <= small.get_vocab().keys()


def test_capitals_and_accents():
    texts = ["Café Ça"] * 2
    assert build_tokenizer(texts, max_tokens=60).tokenize("CAFÉ ca") == ["cafe", "ca"]
    cased = build_tokenizer(texts, max_tokens=60, lowercase=False)
    assert cased.tokenize("Café Ça") == ["Café", "Ça"]
    assert cased.tokenize("cafe") == ["[UNK]"]


def test_a_text_ends_only_if_it_shall(tokenizer):
    ids = tokenizer("明月", add_special_tokens=False).input_ids
    assert tokenizer("明月").input_ids == [2, *ids]
    ended = with_ends(tokenizer, adds_end=True)
    assert ended("明月").input_ids == [2, *ids, 3]
    assert with_ends(ended, adds_end=False)("明月").input_ids == [2, *ids]
    assert build_tokenizer(CHINESE * 2, max_tokens=99, adds_end=True)("明月").input_ids[-1] == 3
    for each in (tokenizer, ended):
        pair = each("明月", "明")
        assert pair.input_ids == [2, *ids, 3, ids[0], 3]
        assert pair.token_type_ids == [0, 0, 0, 0, 1, 1]
        batch = each(["明月", "明"], padding=True)
        assert batch["input_ids"][1][-1] == 0 and batch["attention_mask"][1][-1] == 0


@pytest.mark.parametrize("adds_end", [True, False])
def test_tokenizers_survive_save_and_load(adds_end, tokenizer, tmp_path):
    tokenizer = with_ends(tokenizer, adds_end=adds_end)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    for text in [*CHINESE, *ENGLISH, "unknown 字"]:
        mine, its = tokenizer(text), loaded(text)
        assert dict(mine) == dict(its)
        ids = mine.input_ids
        assert loaded.decode(ids, skip_special_tokens=True) == tokenizer.decode(
            ids, skip_special_tokens=True
        )
    assert dict(loaded("明月", "明")) == dict(tokenizer("明月", "明"))


@pytest.mark.parametrize(
    ("texts", "arguments", "message"),
    [
        ([], {"max_tokens": 50}, "50 tokens that occur 2 times has no token of 0 words"),
        (["once"], {"max_tokens": 50}, "occur 2 times has no token of 1 words"),
        (["a a"], {"max_tokens": 5}, "a vocabulary of 5 tokens .* no token of 2 words"),
        (["  \n"], {"max_tokens": 50, "min_count": 1}, "no token of 0 words"),
    ],
)
def test_a_vocabulary_without_words_is_refused(texts, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_tokenizer(texts, **arguments)


def test_tokens_in_a_corpus(tokenizer):
    used = tokens_in(tokenizer, CHINESE)
    assert used[:5] == [0, 1, 2, 3, 4] and used == sorted({*used})
    tokens = tokenizer.convert_ids_to_tokens(used[5:])
    assert {*tokens} == {*"".join(CHINESE)}
    # 明, 月, 头, the comma and the full stop are there twice or more.
    common = tokenizer.convert_ids_to_tokens(tokens_in(tokenizer, CHINESE, min_count=2)[5:])
    assert {*common} == {*"明月头，。"}
    most = tokens_in(tokenizer, ["明明明 月月 光"], max_tokens=7)
    assert tokenizer.convert_ids_to_tokens(most[5:]) == sorted("明月")
    assert tokens_in(tokenizer, CHINESE, max_tokens=3) == [0, 1, 2, 3, 4]
    assert tokens_in(tokenizer, []) == [0, 1, 2, 3, 4]
    assert tokens_in(tokenizer, ["字"]) == [0, 1, 2, 3, 4]
    # What looks like a special token in somebody's text is text.
    table = datasets.Dataset.from_list([{"text": "明[SEP]月"}])
    assert tokenizer.sep_token_id not in encode(table, tokenizer)["input_ids"][0][1:-1]


def berts_own_tokenizer() -> BertTokenizer:
    words = [
        "[UNK]",
        "my",
        "[SEP]",
        "cat",
        "c",
        "##a",
        "##t",
        "[CLS]",
        "[PAD]",
        "明",
        "月",
        "[MASK]",
    ]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


def test_a_trimmed_tokenizer_has_the_same_tokens_under_new_numbers():
    original = berts_own_tokenizer()
    kept = [8, 7, 2, 11, 0, 10, 9, 4, 6, 5]  # without "my" and "cat"
    trimmed = trim_tokenizer(original, kept)
    assert len(trimmed) == 10
    assert (trimmed.pad_token_id, trimmed.cls_token_id, trimmed.sep_token_id) == (0, 1, 2)
    assert trimmed.convert_ids_to_tokens(range(10)) == original.convert_ids_to_tokens(kept)
    ids = trimmed("明月 cat my", add_special_tokens=False).input_ids
    tokens = trimmed.convert_ids_to_tokens(ids)
    assert tokens == ["明", "月", "c", "##a", "##t", "[UNK]"]
    text = "明月 明"
    ids = [kept[index] for index in trimmed(text, add_special_tokens=False).input_ids]
    assert ids == original(text, add_special_tokens=False).input_ids
    assert trim_tokenizer(original, kept, adds_end=True)(text).input_ids[-1] == 2
    assert trimmed(text).input_ids[-1] != 2
    # Trimmed to what a corpus uses, no text of it changes.
    used = tokens_in(original, ["my cat", "明"])
    again = trim_tokenizer(original, used)
    assert again.tokenize("my cat 明 月") == ["my", "cat", "明", "[UNK]"]
    cased = BertTokenizer(vocab=original.get_vocab() | {"Cat": 12}, do_lower_case=False)
    assert trim_tokenizer(cased, range(13)).tokenize("Cat cat") == ["Cat", "cat"]
    assert trimmed.tokenize("C") == ["c"]


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([8, 7, 2, 11, 0, 9, 9], "must be different numbers of the vocabulary"),
        ([8, 7, 2, 11, 0, 12], "must be different numbers of the vocabulary"),
        ([8, 7, 2, 11, 0, -1], "must be different numbers of the vocabulary"),
        ([7, 2, 11, 0, 9], r"must have \[PAD\], the pad_token"),
        ([8, 7, 11, 0, 9], r"must have \[SEP\], the sep_token"),
    ],
)
def test_numbers_that_are_not_there_and_special_tokens_that_go(kept, message):
    with pytest.raises(ValueError, match=message):
        trim_tokenizer(berts_own_tokenizer(), kept)


def test_only_wordpiece_can_be_trimmed():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ValueError, match="a WordPiece tokenizer is wanted, got WordLevel"):
        trim_tokenizer(other, [0])


# Rows


def table(**columns: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


def named(values: list[int], names: list[str]) -> datasets.Dataset:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    return datasets.Dataset.from_dict({"text": ["明"] * len(values), "label": values}, features)


def test_classes_of_a_table():
    assert class_names_of(named([1, 0], ["pos", "neg"])) == ["pos", "neg"]
    assert class_names_of(table(label=["b", "a", "b"])) == ["a", "b"]
    assert class_names_of(table(stars=[3, 1]), "stars") == ["1", "3"]
    assert class_names_of(table(label=["b", None, "a"])) == ["a", "b"]
    with pytest.raises(ValueError, match="no column 'label', only text, stars"):
        class_names_of(table(text=["a"], stars=[3]))
    with pytest.raises(ValueError, match="the column 'label' has 1 class, and two are the least"):
        class_names_of(table(label=["a", "a"]))


def test_a_text_is_encoded_between_its_ends(tokenizer):
    texts = ["明月", "床前明月光", "月"]
    rows = encode(table(text=texts, other=[1, 2, 3]), tokenizer)
    assert rows.column_names == ["input_ids", "length"]
    for row, text in zip(rows, texts, strict=True):
        inner = tokenizer(text, add_special_tokens=False).input_ids
        assert row["input_ids"] == [2, *inner, 3] and row["length"] == len(inner) + 2
    # Whether or not the tokenizer itself ends texts.
    ended = encode(table(text=texts), with_ends(tokenizer, adds_end=True))
    assert ended["input_ids"] == rows["input_ids"]
    # What is too long loses its end, and not [SEP].
    inner = tokenizer("床前明月光", add_special_tokens=False).input_ids
    short = encode(table(text=texts), tokenizer, max_length=5)
    assert short["length"] == [4, 5, 3] and short[1]["input_ids"] == [2, *inner[:3], 3]
    assert encode(table(text=texts), tokenizer, max_length=3)[1]["input_ids"] == [2, inner[0], 3]
    with pytest.raises(ValueError, match="max_length 2 has no room for a text"):
        encode(table(text=texts), tokenizer, max_length=2)


def test_a_target_is_segment_one(tokenizer):
    rows = {"text": ["床前明月光", "月"], "target": ["疑是地上霜", "明"]}
    ids = {
        text: tokenizer(text, add_special_tokens=False).input_ids for texts in rows.values()
        for text in texts
    }  # fmt: skip
    first, second = ids["床前明月光"], ids["疑是地上霜"]
    found = encode(table(**rows), tokenizer, target="target")
    assert found.column_names == ["input_ids", "token_type_ids", "length"]
    assert found[0]["input_ids"] == [2, *first, 3, *second, 3]
    assert found[0]["token_type_ids"] == [0] * 7 + [1] * 6
    assert found[1]["input_ids"] == [2, *ids["月"], 3, *ids["明"], 3]
    assert found[1]["token_type_ids"] == [0, 0, 0, 1, 1] and found["length"] == [13, 5]
    # The source gives way first, down to one token.
    for limit, expected in (
        (12, [2, *first[:4], 3, *second, 3]),
        (9, [2, first[0], 3, *second, 3]),
        (7, [2, first[0], 3, *second[:3], 3]),
        (5, [2, first[0], 3, second[0], 3]),
    ):
        row = encode(table(**rows), tokenizer, target="target", max_length=limit)[0]
        assert row["input_ids"] == expected and row["length"] == limit
        place = expected.index(3) + 1
        assert row["token_type_ids"] == [0] * place + [1] * (limit - place)
    with pytest.raises(ValueError, match="max_length 4 has no room for a text"):
        encode(table(**rows), tokenizer, target="target", max_length=4)


def test_classes_by_name_and_by_number(tokenizer):
    def labels(rows: datasets.Dataset, names: list[str]) -> list[int]:
        return [*encode(rows, tokenizer, class_names=names)["class_labels"]]

    texts = ["明"] * 3
    assert labels(table(text=texts, label=["b", "a", "b"]), ["a", "b"]) == [1, 0, 1]
    assert labels(table(text=texts, label=[1, 0, 1]), ["0", "1"]) == [1, 0, 1]
    assert labels(table(text=texts, label=["1", "0", "1"]), ["0", "1"]) == [1, 0, 1]
    # The model decides about numbers, and the table about the names of its own.
    assert labels(named([0, 1, 1], ["neg", "pos"]), ["pos", "neg"]) == [1, 0, 0]
    rows = table(text=texts, stars=["a", "b", "c"])
    found = encode(rows, tokenizer, class_names=["c", "b", "a"], label="stars")
    assert found["class_labels"] == [2, 1, 0]


def test_vectors_stand_in_the_place_of_classes(tokenizer):
    vectors = [[0.5, 1.0], [2.0, -1.0]]
    rows = table(text=["明", "月"], vector=vectors)
    for names in (None, ["a", "b"]):  # a model may have classes and yet be given vectors
        found = encode(rows, tokenizer, condition="vector", class_names=names)
        assert found.column_names == ["input_ids", "length", "condition_embeds"]
        assert found["condition_embeds"] == vectors


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({"text": ["明", ""]}, {}, "row 1 has no text: it is ''"),
        ({"text": ["明", "月", " \n\u3000"]}, {}, "row 2 has no text"),
        ({"text": ["明", "\u200b"]}, {}, "row 1 has no text"),
        ({"text": ["明", None]}, {}, "row 1 has no text: it is None"),
        ({"text": [1, 2]}, {}, "row 0 has no text: it is 1"),
        ({"text": ["明"], "target": [""]}, {"target": "target"}, "row 0 has no target: it is ''"),
        ({"review": ["明"], "label": [0]}, {}, "no column 'text', only review, label"),
        ({"text": ["明"], "stars": [0]}, {"class_names": ["0", "1"]}, "no column 'label', only te"),
        ({"text": ["明"]}, {"target": "answer"}, "no column 'answer', only text"),
        ({"text": ["明"]}, {"condition": "image"}, "no column 'image', only text"),
        (
            {"text": ["明", "月"], "label": ["a", "c"]},
            {"class_names": ["a", "b"]},
            "row 1 is of class 'c'; known are a, b",
        ),
        (
            {"text": ["明"], "label": [None]},
            {"class_names": ["a", "None"]},
            "row 0 is of class 'None'",
        ),
        (
            {"text": ["明"], "label": [0]},
            {"class_names": ["neg", "pos"]},
            "row 0 is of class '0'; known are neg, pos",
        ),
    ],
)
def test_rows_that_cannot_be_encoded_are_named(columns, arguments, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        encode(table(**columns), tokenizer, **arguments)


def test_a_row_far_down_is_named_by_its_number(tokenizer):
    with pytest.raises(ValueError, match="row 1234 has no text"):
        encode(table(text=["明"] * 1234 + [" "]), tokenizer)
    with pytest.raises(ValueError, match="row 0 is of class '-1'; known are neg, pos"):
        encode(named([-1], ["neg", "pos"]), tokenizer, class_names=["neg", "pos"])


# Batches, by hand

ROWS = [
    {"input_ids": [2, 7, 8, 9, 3], "class_labels": 1, "length": 5},
    {"input_ids": [2, 6, 3], "class_labels": 0, "length": 3},
]


def check_batch(batch: dict[str, Tensor], expected: dict[str, list]) -> None:
    assert batch.keys() == expected.keys()
    for name, values in expected.items():
        assert batch[name].tolist() == values, name
        if name != "condition_embeds":
            assert batch[name].dtype == torch.long


def test_a_batch_of_a_left_to_right_model(tokenizer):
    expected = {
        "input_ids": [[2, 7, 8, 9, 3], [2, 6, 3, 0, 0]],
        "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]],
        "labels": [[-100, 7, 8, 9, 3], [-100, 6, 3, -100, -100]],
        "class_labels": [1, 0],
    }
    check_batch(CausalCollator(tokenizer)(ROWS), expected)
    # From a table, whatever its format.
    rows = table(**{name: [row[name] for row in ROWS] for name in ROWS[0]})
    vectors = [[0.5, 1.0], [2.0, -1.0]]
    for kind in (None, "torch", "numpy"):
        check_batch(CausalCollator(tokenizer)([*rows.with_format(kind)]), expected)
        both = rows.remove_columns("class_labels").add_column("condition_embeds", vectors)
        found = CausalCollator(tokenizer)([*both.with_format(kind)])
        assert found["condition_embeds"].dtype == torch.float32
        no_labels = {name: expected[name] for name in expected if name != "class_labels"}
        check_batch(found, no_labels | {"condition_embeds": vectors})
    plain = [{"input_ids": row["input_ids"]} for row in ROWS]
    assert "class_labels" not in CausalCollator(tokenizer)(plain)


def test_a_batch_of_a_right_to_left_model(tokenizer):
    expected = {
        "input_ids": [[3, 9, 8, 7, 2], [3, 6, 2, 0, 0]],
        "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]],
        "labels": [[-100, 9, 8, 7, 2], [-100, 6, 2, -100, -100]],
        "position_ids": [[4, 3, 2, 1, 0], [2, 1, 0, 3, 4]],
        "class_labels": [1, 0],
    }
    check_batch(ReversedCollator(tokenizer)(ROWS), expected)


def test_a_batch_of_a_permuted_model(tokenizer):
    orders = set()
    for _ in range(60):
        batch = PermutedCollator(tokenizer)(ROWS)
        for row, original in enumerate(ROWS):
            tokens, length = original["input_ids"], original["length"]
            order = batch["position_ids"][row, :length].tolist()
            assert order[0] == 0 and sorted(order) == [*range(length)]
            assert batch["input_ids"][row, :length].tolist() == [tokens[i] for i in order]
            targets = [-100, *(tokens[i] for i in order[1:])]  # nothing predicts the first
            assert batch["labels"][row, :length].tolist() == targets
        orders.add(tuple(batch["position_ids"][0].tolist()))
        assert batch["input_ids"][1, 3:].tolist() == [0, 0]
        assert batch["labels"][1, 3:].tolist() == [-100, -100]
        assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert len(orders) > 15  # of 24
    torch.manual_seed(3)
    first = PermutedCollator(tokenizer)(ROWS)["input_ids"]
    torch.manual_seed(3)
    assert torch.equal(PermutedCollator(tokenizer)(ROWS)["input_ids"], first)


def test_a_batch_of_a_prefix_model(tokenizer):
    rows = [
        {"input_ids": [2, 7, 3, 9, 8, 3], "token_type_ids": [0, 0, 0, 1, 1, 1], "class_labels": 1},
        {"input_ids": [2, 7, 3, 3], "token_type_ids": [0, 0, 0, 1], "class_labels": 0},
    ]
    expected = {
        "input_ids": [[2, 7, 3, 9, 8, 3], [2, 7, 3, 3, 0, 0]],
        "attention_mask": [[1] * 6, [1, 1, 1, 1, 0, 0]],
        "labels": [[-100, -100, -100, 9, 8, 3], [-100, -100, -100, 3, -100, -100]],
        "token_type_ids": [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0]],
        "class_labels": [1, 0],
    }
    check_batch(PrefixCollator(tokenizer)(rows), expected)
    with pytest.raises(ValueError, match="the prefix pattern needs targets: give encode their col"):
        PrefixCollator(tokenizer)(ROWS)


def test_masks_are_of_the_rates_of_the_paper_and_never_on_special_tokens():
    letters = [chr(ord("a") + i) for i in range(26)] + [str(i) for i in range(10)]
    tokenizer = build_tokenizer(letters * 2, max_tokens=99)
    vocabulary = len(tokenizer)
    source = torch.Generator().manual_seed(0)
    rows = []
    for index in range(600):
        length = 40 + index % 40
        inner = torch.randint(5, vocabulary, (length,), generator=source)
        inner[3] = 3  # in the middle too, as between two sentences
        rows.append({"input_ids": [2, *inner.tolist(), 3], "class_labels": index % 2})
    batch = MaskedCollator(tokenizer)(rows)
    plain = CausalCollator(tokenizer)(rows)
    original, found, labels = plain["input_ids"], batch["input_ids"], batch["labels"]
    assert torch.equal(batch["attention_mask"], plain["attention_mask"])
    assert torch.equal(batch["class_labels"], plain["class_labels"])

    is_target = labels != -100
    assert torch.equal(labels[is_target], original[is_target])
    assert torch.equal(found[~is_target], original[~is_target])
    is_special = original < 5
    assert not (is_target & is_special).any()
    words = int((~is_special).sum())
    assert abs(int(is_target.sum()) / words - 0.15) < 4 * (0.15 * 0.85 / words) ** 0.5

    total = int(is_target.sum())
    # A random token is the mask or the same again once in V times each.
    shares = {
        "hidden": (found == 4, 0.8 + 0.1 / vocabulary),
        "kept": (found == original, 0.1 + 0.1 / vocabulary),
        "random": ((found != 4) & (found != original), 0.1 * (1 - 2 / vocabulary)),
    }
    for name, (where, share) in shares.items():
        rate = int((where & is_target).sum()) / total
        assert abs(rate - share) < 4 * (share * (1 - share) / total) ** 0.5, (name, rate)
    changed = found[is_target & (found != 4) & (found != original)]
    counts = torch.bincount(changed, minlength=vocabulary).float()
    expected = len(changed) / (vocabulary - 1)
    assert (counts[5:] > 0.4 * expected).all() and (counts < 1.8 * expected).all()
    # Another share, and other places the next time.
    half = MaskedCollator(tokenizer, probability=0.5)(rows)["labels"] != -100
    assert abs(int(half.sum()) / words - 0.5) < 0.02
    assert not torch.equal(MaskedCollator(tokenizer)(rows)["labels"], labels)


def test_a_batch_in_which_nothing_was_drawn_is_learned_as_a_whole(tokenizer):
    batch = MaskedCollator(tokenizer, probability=0.0)(ROWS)
    assert batch["labels"].tolist() == [[-100, 7, 8, 9, -100], [-100, 6, -100, -100, -100]]


# Permuted and reversed models are models of the text in its order under another mask


def naive_scores(
    model: ConditionalBertLMHeadModel, tokens: Tensor, rank: Tensor, label: int
) -> Tensor:
    """Scores of one text in its own order, where i sees j if j is no later in another order."""
    length = len(tokens)
    sees = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(length):
            sees[i, j] = rank[j] <= rank[i]
    mask = torch.where(sees, 0.0, torch.finfo(torch.float32).min)[None, None]
    inputs = {"attention_mask": mask, "attention_pattern": "bidirectional"}
    return model(tokens[None], class_labels=torch.tensor([label]), **inputs).logits[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("collator", [CausalCollator, ReversedCollator, PermutedCollator])
def test_another_order_is_another_mask(collator, attention, tokenizer):
    config = ConditionalBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        condition_size=4,
        num_classes=2,
        initializer_range=0.3,
        condition_initializer_range=0.3,
        attn_implementation=attention,
    )
    model = ConditionalBertLMHeadModel(config).eval()
    source = torch.Generator().manual_seed(1)
    rows = []
    for index, length in enumerate((9, 6, 2)):
        inner = torch.randint(5, len(tokenizer), (length,), generator=source).tolist()
        rows.append({"input_ids": [2, *inner, 3], "class_labels": index % 2})
    batch = collator(tokenizer)(rows)
    with torch.no_grad():
        outputs = model(**batch)
        total, count = 0.0, 0
        for index, row in enumerate(rows):
            tokens = torch.tensor(row["input_ids"])
            length = len(tokens)
            order = torch.arange(length)
            if "position_ids" in batch:
                order = batch["position_ids"][index, :length]
            rank = torch.empty(length, dtype=torch.long)
            rank[order] = torch.arange(length)
            expected = naive_scores(model, tokens, rank, row["class_labels"])
            found = outputs.logits[index, :length]
            torch.testing.assert_close(found, expected[order], rtol=1e-4, atol=1e-4)
            # Each token but the last in the order predicts the next in the order.
            targets = tokens[order[1:]]
            total += F.cross_entropy(expected[order[:-1]], targets, reduction="sum").item()
            count += length - 1
        torch.testing.assert_close(outputs.loss.item(), total / count, rtol=1e-4, atol=1e-4)
        if collator is ReversedCollator:
            assert torch.equal(rank, torch.arange(length).flip(0))  # the upper triangle
        if collator is not CausalCollator:  # the order does matter
            left_to_right = naive_scores(model, tokens, torch.arange(length), row["class_labels"])
            assert not torch.allclose(expected, left_to_right, atol=1e-2)
