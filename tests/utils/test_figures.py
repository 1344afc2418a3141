"""The drawn figures: nothing overlaps or overflows by construction, and words carry the right strengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from saferedir.utils import figures
from saferedir.utils.figures import (
    BARS_WIDTH,
    ROW,
    WIDTH,
    Block,
    Example,
    comparison_grid,
    fit,
    sample_sheet,
    shade,
    to_image,
    token_words,
    wrap,
)


class WordTokenizer:
    """A CLIP-like tokenizer that cuts words of more than three letters in two."""

    model_max_length, bos_token_id, eos_token_id = 12, 0, 1

    def __init__(self) -> None:
        self.pieces = ["<s>", "<e>"]

    def __call__(self, text: str, **_: Any) -> Any:
        ids = [0]
        for word in text.split():
            cut = [word] if len(word) <= 3 else [word[:3], word[3:]]
            for piece in [*cut[:-1], cut[-1] + "</w>"]:
                if piece not in self.pieces:
                    self.pieces.append(piece)
                ids.append(self.pieces.index(piece))
        ids = [*ids, *[1] * self.model_max_length][: self.model_max_length]
        return type("Encoding", (), {"input_ids": ids})

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[i] for i in ids]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[i] for i in ids).replace("</w>", " ")


def example(words: tuple[tuple[str, float], ...], prompt: str = "a red star") -> Example:
    picture = Image.new("RGB", (64, 64), "red")
    return Example("label", prompt, picture, picture, "red star", "red circle", "verdict", "gone", True, words)


def test_word_pieces_are_merged_and_padding_is_one_mean() -> None:
    strengths = [9.0, 0.1, 0.2, 0.8, 0.5, 0.25, 0.75, 0.0, 0.0, 0.0, 0.0, 0.0]
    words = token_words(WordTokenizer(), "a stars on", strengths)
    assert words[:4] == (("a", 0.1), ("stars", 0.8), ("on", 0.5), ("(end)", 0.25))
    assert words[4] == ("(padding)", pytest.approx(0.75 / 6))


def test_words_of_an_untouched_prompt_have_no_strength() -> None:
    assert {strength for _, strength in token_words(WordTokenizer(), "a star", None)} == {0.0}


def test_truncated_prompt_has_neither_end_nor_padding() -> None:
    words = token_words(WordTokenizer(), "one two six ten " * 5, [0.5] * 12)
    assert words[-1][0] not in ("(end)", "(padding)")


def test_wrap_keeps_within_width_and_says_when_it_cut() -> None:
    font = figures._font(17)
    lines = wrap("a long prompt about many things " * 9, font, 200, 3)
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert all(font.getlength(line) <= 200 for line in lines)
    assert font.getlength(fit("w" * 500, font, 90)) <= 90


def test_nothing_is_drawn_outside_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[tuple[float, float, float, float]] = []
    plain = ImageDraw.ImageDraw.text

    def spy(self: Any, xy: Any, text: str, fill: Any, font: Any) -> None:
        boxes.append(self.textbbox(xy, text, font=font))
        plain(self, xy, text, fill, font)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    many = tuple((f"word{i}", i / 20) for i in range(30))
    grid = comparison_grid(
        [Block("star", "must not appear: star", (example(many, "long words in a prompt " * 12), example(())))],
        "title",
        ("one note", "another"),
    )
    assert grid.width == WIDTH
    assert all(
        left >= 0 and top >= 0 and right <= grid.width and bottom <= grid.height for left, top, right, bottom in boxes
    )
    for place, one in enumerate(boxes):
        for other in boxes[place + 1 :]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)


def test_height_follows_the_number_of_rows() -> None:
    one = comparison_grid([Block("a", "", (example(()),))], "t", ())
    three = comparison_grid([Block("a", "", (example(()),) * 3)], "t", ())
    assert three.height - one.height == 2 * ROW


def test_stronger_is_taller() -> None:
    def red_area(strength: float) -> int:
        sheet = Image.new("RGB", (BARS_WIDTH, 160), "white")
        figures._bars(ImageDraw.Draw(sheet), 0, 0, (("word", strength),), 1.0, 150)
        colour = shade(strength)
        return int((np.asarray(sheet) == colour).all(axis=2).sum())

    assert 0 < red_area(0.3) < red_area(0.6) < red_area(1.0)


def test_to_image_rounds_and_clips() -> None:
    picture = torch.tensor([0.0, 0.5, 2.0]).view(3, 1, 1).expand(3, 4, 4)
    assert to_image(picture).getpixel((1, 1)) == (0, 128, 255)


def test_sample_sheet_has_one_cell_per_picture() -> None:
    sheet = sample_sheet(torch.rand(10, 3, 64, 64), ["a caption of some length"] * 10)
    assert sheet.width > sheet.height > 2 * 150
