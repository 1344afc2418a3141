"""Figures made of generated images: the demo's comparison grid and the report's sample sheet, painted with Pillow only.

Callers pass finished texts; coloured bars show for every word how strongly a guard moved it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, SOFT, LINE, PAPER, TINT = "#1c1f26", "#5d6573", "#d9dde5", "#ffffff", "#f3f5f9"
GOOD, BAD, QUIET = "#1a7f45", "#c0332b", "#2f5fa8"
EMPTY_BAR = "#e6e9ef"
MARGIN, GAP = 28, 20
IMAGE = 160
PROMPT_WIDTH, BARS_WIDTH = 250, 560
WIDTH = 2 * MARGIN + PROMPT_WIDTH + 2 * IMAGE + BARS_WIDTH + 3 * GAP
ROW = IMAGE + 56
COLUMNS = (
    MARGIN,
    MARGIN + PROMPT_WIDTH + GAP,
    MARGIN + PROMPT_WIDTH + IMAGE + 2 * GAP,
    MARGIN + PROMPT_WIDTH + 2 * IMAGE + 3 * GAP,
)
Words = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Example:
    """One row of the grid.

    Attributes:
        label: what kind of prompt it is.
        prompt: its text.
        unguarded, guarded: the two images.
        judged_unguarded, judged_guarded: what the judge says of them.
        verdict: what the guard did and why.
        outcome: how that turned out; went_well colours the outcome.
        words: (word, strength of its redirection), strength 0 for words left alone.
    """

    label: str
    prompt: str
    unguarded: Image.Image
    guarded: Image.Image
    judged_unguarded: str
    judged_guarded: str
    verdict: str
    outcome: str
    went_well: bool
    words: Words


@dataclass(frozen=True)
class Block:
    """The rows of one concept under a heading."""

    title: str
    subtitle: str
    examples: tuple[Example, ...]


def comparison_grid(blocks: Sequence[Block], title: str, notes: Sequence[str]) -> Image.Image:
    """One tall image: a header with the legend, then per block a heading and its examples."""
    head = 66 + 21 * len(notes) + 44
    height = head + sum(64 + ROW * len(block.examples) for block in blocks) + MARGIN
    sheet = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    strongest = max([1.0, *(s for b in blocks for e in b.examples for _, s in e.words)])
    draw.text((MARGIN, 20), title, INK, _font(26))
    for number, note in enumerate(notes):
        draw.text((MARGIN, 60 + 21 * number), note, SOFT, _font(15))
    _legend(draw, MARGIN, 66 + 21 * len(notes) + 6, strongest)
    y = head
    for block in blocks:
        draw.rectangle((0, y, WIDTH, y + 56), TINT)
        draw.text((MARGIN, y + 7), block.title, INK, _font(20))
        draw.text((MARGIN, y + 33), block.subtitle, SOFT, _font(14))
        for x, name in zip(COLUMNS[1:], ("without guard", "with guard", "what the guard did"), strict=True):
            draw.text((x, y + 31), name, INK, _font(15))
        y += 64
        for example in block.examples:
            _row(sheet, draw, example, y, strongest)
            y += ROW
            draw.line((MARGIN, y - 4, WIDTH - MARGIN, y - 4), LINE)
    return sheet


def _row(sheet: Image.Image, draw: ImageDraw.ImageDraw, example: Example, y: int, strongest: float) -> None:
    draw.text((COLUMNS[0], y + 4), example.label, SOFT, _font(13))
    for number, line in enumerate(wrap(example.prompt, _font(17), PROMPT_WIDTH, 7)):
        draw.text((COLUMNS[0], y + 25 + 22 * number), line, INK, _font(17))
    columns = ((example.unguarded, example.judged_unguarded), (example.guarded, example.judged_guarded))
    for x, (image, label) in zip(COLUMNS[1:3], columns, strict=True):
        sheet.paste(enlarge(image), (x, y + 4))
        draw.rectangle((x - 1, y + 3, x + IMAGE, y + 4 + IMAGE), outline=LINE)
        for number, line in enumerate(wrap(label, _font(13), IMAGE, 2)):
            draw.text((x, y + IMAGE + 9 + 16 * number), line, SOFT, _font(13))
    x = COLUMNS[3]
    draw.text((x, y + 4), fit(example.verdict, _font(15), BARS_WIDTH), QUIET, _font(15))
    draw.text((x, y + 24), fit(example.outcome, _font(15), BARS_WIDTH), GOOD if example.went_well else BAD, _font(15))
    _bars(draw, x, y + 52, example.words, strongest, ROW - 64)


def _bars(draw: ImageDraw.ImageDraw, x0: int, y0: int, words: Words, strongest: float, height: int) -> None:
    """Words in reading order, each under a bar as tall and as red as its strength."""
    font, number_font = _font(14), _font(11)
    lines: list[list[tuple[str, float, int]]] = [[]]
    used = 0
    for word, strength in words:
        text = fit(word, font, BARS_WIDTH // 3)
        width = max(round(font.getlength(text)), 20) + 12
        if used + width > BARS_WIDTH and lines[-1]:
            lines.append([])
            used = 0
        lines[-1].append((text, strength, width))
        used += width
    pitch = height // len(lines)
    tall = min(58, pitch - 40)  # the word, the number and the gap take 40
    for row, line in enumerate(lines):
        x, base = x0, y0 + row * pitch + 13 + tall
        for text, strength, width in line:
            share = min(max(strength / strongest, 0.0), 1.0)
            draw.rectangle((x, base - 2, x + width - 9, base), EMPTY_BAR)
            if share >= 0.02:
                top = base - max(2, round(share * tall))
                draw.rectangle((x, top, x + width - 9, base), shade(share))
                draw.text((x, top - 13), f"{strength:.2f}", SOFT, number_font)
            draw.text((x, base + 3), text, INK if share >= 0.02 else SOFT, font)
            x += width


def _legend(draw: ImageDraw.ImageDraw, x: int, y: int, strongest: float) -> None:
    text = "bar over a word: how strongly the guard moved its embedding (1 = by its own length)"
    draw.text((x, y), text, INK, _font(15))
    x += round(_font(15).getlength(text)) + 16
    for step in range(60):
        draw.rectangle((x + 2 * step, y + 2, x + 2 * step + 1, y + 15), shade(step / 59))
    draw.text((x - 2, y + 17), "0", SOFT, _font(12))
    draw.text((x + 100, y + 17), f"{strongest:.1f}", SOFT, _font(12))


def sample_sheet(images: Tensor, captions: Sequence[str], columns: int = 8) -> Image.Image:
    """(N, 3, H, W) images in [0, 1] with their captions below, in rows of `columns`."""
    cell, text_height, font = 150, 62, _font(12)
    rows = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * (cell + 12) + 12, rows * (cell + text_height) + 12), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x = 12 + (number % columns) * (cell + 12)
        y = 12 + (number // columns) * (cell + text_height)
        sheet.paste(enlarge(to_image(image), cell), (x, y))
        for row, line in enumerate(wrap(caption, font, cell + 4, 3)):
            draw.text((x, y + cell + 4 + 15 * row), line, INK, font)
    return sheet


def method_sheet(
    rows: Sequence[tuple[str, Tensor]], captions: Sequence[str], title: str, asks: int, cell: int = 112
) -> Image.Image:
    """One row a method, one column a prompt: `rows` are (name, images (N, 3, H, W) in [0, 1]), `captions` the N prompts.

    The first `asks` prompts ask for the concept; a line parts them from the others.
    """
    left, top, gap, font = 190, 128, 8, _font(13)
    size = (left + len(captions) * (cell + gap) + 3 * gap, top + len(rows) * (cell + gap) + gap)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), title, INK, _font(20))

    def column(number: int) -> int:
        return left + number * (cell + gap) + (2 * gap if number >= asks else 0)

    for number, caption in enumerate(captions):
        for line_number, line in enumerate(wrap(caption, font, cell, 5)):
            draw.text((column(number), 40 + 16 * line_number), line, INK if number < asks else SOFT, font)
    for row, (name, images) in enumerate(rows):
        y = top + row * (cell + gap)
        draw.text((gap, y + cell // 2 - 10), fit(name, _font(15), left - 2 * gap), INK, _font(15))
        for number, image in enumerate(images):
            sheet.paste(enlarge(to_image(image), cell), (column(number), y))
    x = column(asks) - gap - gap // 2
    draw.line((x, 40, x, size[1] - gap), LINE, 2)
    return sheet


def token_words(tokenizer: Any, prompt: str, strengths: Sequence[float] | None) -> Words:
    """The prompt's words with the strength of each (the highest of its pieces), "(end)", and the padding's mean.

    Strengths are per token, as in `Decision.token_strengths`; None gives 0 everywhere.
    """
    ids = tokenizer(prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids
    values = [0.0] * len(ids) if strengths is None else [float(s) for s in strengths]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    last = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
    words: list[tuple[str, float]] = []
    held: list[int] = []
    for index in range(last):
        if ids[index] == tokenizer.bos_token_id:
            continue
        held.append(index)
        follows = pieces[index + 1] if index + 1 < last else None
        if _ends_word(pieces[index], follows, any("</w>" in p for p in pieces)):
            text = tokenizer.decode([ids[i] for i in held]).strip()
            words.append((text or "?", max(values[i] for i in held)))
            held = []
    if last < len(ids):
        words.append(("(end)", values[last]))
    padding = values[last + 1 : len(ids)]
    if padding:
        words.append(("(padding)", sum(padding) / len(padding)))
    return tuple(words)


def _ends_word(piece: str, follows: str | None, marks_ends: bool) -> bool:
    """Whether a word ends here: CLIP marks ends by </w>, byte-level and sentencepiece vocabularies mark beginnings."""
    if follows is None:
        return True
    return piece.endswith("</w>") if marks_ends else follows[:1] in ("▁", "Ġ")


def to_image(image: Tensor) -> Image.Image:
    """A (3, H, W) tensor in [0, 1] as an 8-bit image."""
    array = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def enlarge(image: Image.Image, size: int = IMAGE) -> Image.Image:
    """The image at `size` x `size` pixels."""
    return image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def shade(share: float) -> tuple[int, int, int]:
    """From the empty bar's grey through amber to red."""
    stops = ((215, 220, 229), (240, 170, 60), (192, 40, 40))
    low, high, part = (stops[0], stops[1], share * 2) if share < 0.5 else (stops[1], stops[2], share * 2 - 1)
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return red, green, blue


def wrap(text: str, font: Any, width: float, most: int) -> list[str]:
    """Lines no wider than `width`, at most `most` of them; what is left over ends in an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        together = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(together) <= width:
            lines[-1] = together
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1] + " …"]
    return [fit(line, font, width) for line in lines]


def fit(text: str, font: Any, width: float) -> str:
    """The text, shortened with an ellipsis where it is wider than `width`."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


_FONTS: dict[int, Any] = {}


def _font(size: int) -> Any:
    """Pillow's own font: nothing to install. It lacks most signs beyond Latin, so texts here use none."""
    if size not in _FONTS:
        _FONTS[size] = ImageFont.load_default(size=size)
    return _FONTS[size]
