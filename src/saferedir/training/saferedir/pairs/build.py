"""Training pairs from a word: the same sentences with a concept and with its anchor, and benign ones around them.

The command is in cli/pairs.py, the training in train.py. What pairs are for: docs/methods/saferedir.md. Pairs are
of equal length where possible; there are hard negatives and paraphrases, and no prompt that is used for evaluation.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from saferedir.errors import GuardConfigError
from saferedir.training.saferedir.dataset import Pair
from saferedir.training.saferedir.pairs.lengths import Lengths
from saferedir.training.saferedir.pairs.plan import BuiltPairs, PairPlan, PairReport
from saferedir.training.saferedir.pairs.templates import BANKS
from saferedir.training.saferedir.pairs.text import (
    LeakIndex,
    Term,
    fill,
    find_mentions,
    has_negation,
    normalise,
    substitute,
    takes_words,
)

NEAR_SHARE = 0.5  # of the benign lines, when near concepts are given


def build_pairs(
    plan: PairPlan,
    *,
    captions: Sequence[str] = (),
    evaluation: Sequence[str] = (),
    lengths: Lengths | None = None,
    paraphrase: Callable[[Sequence[str]], list[str]] | None = None,
) -> BuiltPairs:
    """`plan.count` different pairs and `plan.lines` benign lines: captions first, then paraphrases, templates for the rest.

    Args:
        captions: those that name the concept become pairs, the others benign lines.
        evaluation: prompts that no row may copy.
        lengths: how to measure a prompt; prompts that its text encoder would cut are left out.
        paraphrase: from N prompts to N paraphrases; kept if they name the concept as their originals do.

    Raises:
        GuardConfigError: fewer different rows exist than asked for; the message says how many.
    """
    return _Builder(plan, LeakIndex(evaluation), lengths or Lengths()).build(captions, paraphrase)


class _Builder:
    def __init__(self, plan: PairPlan, leaks: LeakIndex, lengths: Lengths) -> None:
        self.plan, self.leaks, self.lengths = plan, leaks, lengths
        self.rng = random.Random(f"pairs/{plan.concept}/{plan.kind}/{plan.seed}")
        self.report = PairReport(unit=lengths.unit)
        self.used_keys: set[tuple[str, ...]] = set()
        self.pairs: list[Pair] = []
        self.benign: list[Pair] = []
        self.unsafe_terms = [plan.term(text) for text in (plan.concept, *plan.synonyms)]
        self.anchors = [plan.term(text) for text in plan.anchors]
        bank = BANKS[plan.kind]
        knows_words = bank.restricted(lengths.is_plain).size > bank.size / 2  # a real model's tokenizer, or none
        self.bank = bank if knows_words else bank.with_shapes()
        self.plain_bank = self.bank.restricted(lengths.is_plain)
        others = self.plain_bank.others if len(self.plain_bank.others) > 2 else self.bank.others
        self.others = [text for text in others if not plan.mentions(text)]
        self.contexts = self._contexts()
        self.hard_from_templates = 0
        self.fillers = self._fillers()
        self.owed: tuple[str, str] | None = None  # the filler that one side ("unsafe" or "safe") has had once less
        self.filled: dict[str, Counter[str]] = {side: Counter() for side in ("pairs", "benign")}

    def build(self, captions: Sequence[str], paraphrase: Callable[[Sequence[str]], list[str]] | None) -> BuiltPairs:
        plan, share = self.plan, self.plan.paraphrase_share if paraphrase else 0.0
        if plan.count + plan.lines > self.bank.size + len(captions):
            raise self._too_many("rows", self.bank.size + len(captions), plan.count + plan.lines, "at most ")
        hard = round(NEAR_SHARE * plan.lines) if plan.near else 0
        self._from_captions(captions, plan.count, plan.lines - hard)
        self._from_templates(self.pairs, plan.count - round(share * plan.count))
        self._from_templates(self.benign, plan.lines - round(share * plan.lines))
        if paraphrase:
            self._from_paraphrases(paraphrase)
        self._from_templates(self.pairs, plan.count)
        self._from_templates(self.benign, plan.lines)
        report, rows = self.report, self.pairs
        report.pairs, report.benign = len(rows), len(self.benign)
        report.with_synonym = sum(self._says_synonym(str(p.unsafe)) for p in rows)
        report.hard_negatives = sum(bool(find_mentions(p.safe, self._near_words)) for p in self.benign)
        report.same_length = sum(self.lengths.count(str(p.unsafe)) == self.lengths.count(p.safe) for p in rows)
        sides = {
            "unsafe": [str(p.unsafe) for p in rows],
            "safe": [p.safe for p in rows],
            "benign": [p.safe for p in self.benign],
        }
        report.with_filler.update(
            {side: sum(bool(find_mentions(text, self.fillers)) for text in texts) for side, texts in sides.items()}
        )
        return BuiltPairs((*self.pairs, *self.benign), report)

    def _says_synonym(self, text: str) -> bool:
        """Whether a prompt says a synonym: the longest name counts, so that "crescent moon" is no "moon"."""
        return any(m.which > 0 for m in find_mentions(text, self.plan.unsafe_words, self.plan.near))

    @property
    def _near_words(self) -> list[str]:
        return [self.plan.term(text).text for text in self.plan.near]

    # ------------------------------------------------------------------ taking rows

    def _take(self, unsafe: str | None, safe: str, origin: str) -> bool:
        """Keep a row unless something speaks against it, which the report then counts."""
        refused = self.report.refused
        sides = [text for text in (unsafe, safe) if text is not None]
        keys = [tuple(normalise(text)) for text in sides]
        if self.plan.mentions(safe) or (unsafe is not None and not self.plan.mentions(unsafe)) or not all(keys):
            refused["concept on the wrong side"] += 1
        elif keys[0] in self.used_keys or (unsafe is not None and keys[0] == keys[1]):
            refused["duplicates"] += 1
        elif not all(self.lengths.fits(text) for text in sides):
            refused["too long"] += 1
        elif leak := next(((text, copy) for text in sides if (copy := self.leaks.match(text))), None):
            refused["leaks"] += 1
            if leak not in self.report.leaks:
                self.report.leaks.append(leak)
        else:
            self.used_keys.update(keys)
            (self.benign if unsafe is None else self.pairs).append(Pair(unsafe, safe))
            self.report.origins[origin] += 1
            return True
        return False

    def _from_captions(self, captions: Sequence[str], pairs: int, benign: int) -> None:
        for caption in self.rng.sample(list(captions), len(captions)):
            if not self.plan.mentions(caption):
                if len(self.benign) < benign:
                    self._take(None, caption, "captions")
                else:
                    self.report.refused["captions beyond the number asked for"] += 1
            elif has_negation(caption):
                self.report.refused["negation"] += 1
            elif len(self.pairs) < pairs:
                self._take(caption, self._made_safe(caption), "captions")
            else:
                self.report.refused["captions beyond the number asked for"] += 1

    def _from_paraphrases(self, paraphrase: Callable[[Sequence[str]], list[str]]) -> None:
        for rows, total in ((self.pairs, self.plan.count), (self.benign, self.plan.lines)):
            originals = [pair.safe if pair.unsafe is None else pair.unsafe for pair in rows]
            chosen = self.rng.sample(originals, min(len(originals), total - len(rows)))
            for text in paraphrase(chosen) if chosen else []:
                if has_negation(text):
                    self.report.refused["negation"] += 1
                else:
                    unsafe = rows is self.pairs
                    self._take(text if unsafe else None, self._made_safe(text) if unsafe else text, "paraphrases")

    def _made_safe(self, text: str) -> str:
        """The prompt with the best-fitting anchor in place of every mention of the concept."""
        mentions = find_mentions(text, self.plan.unsafe_words, self.plan.near)
        versions = [substitute(text, mentions, self.unsafe_terms, anchor) for anchor in self._shuffled_anchors()]
        length = self.lengths.count(text)
        return min(versions, key=lambda version: abs(self.lengths.count(version) - length))

    # ------------------------------------------------------------------ templates

    def _contexts(self) -> Iterator[str]:
        """Sentences in words that the text encoder knows well, then all others."""
        used = set()
        for bank in (self.plain_bank, self.bank):
            for context in bank.contexts(self.rng):
                if context not in used:
                    used.add(context)
                    yield context

    def _from_templates(self, rows: list[Pair], wanted: int) -> None:
        while len(rows) < wanted:
            context = next(self.contexts, None)
            if context is None:
                what = "pairs" if rows is self.pairs else "benign lines"
                raise self._too_many(what, len(rows), self.plan.count if rows is self.pairs else self.plan.lines)
            if rows is self.pairs:
                self._pair_from(context)
            else:
                self._benign_from(context)

    def _pair_from(self, context: str) -> None:
        style = self.rng.random(), self.rng.random()
        synonyms = self.unsafe_terms[1:]
        term = self.unsafe_terms[0]
        if synonyms and self.rng.random() < self.plan.synonym_share:
            term = self.rng.choice(synonyms)
        if not all(t.suits(context) for t in (term, *self.anchors)):
            return
        anchor, fillers = self._matched(context, term)
        unsafe, safe = fill(context, term, fillers.get("unsafe", "")), fill(context, anchor, fillers.get("safe", ""))
        if not self._take(_finish(unsafe, *style), _finish(safe, *style), "templates"):
            return
        for side, filler in fillers.items():
            self.filled["pairs"][filler] += 1
            self.owed = ("safe" if side == "unsafe" else "unsafe", filler) if self.owed is None else None
            self.report.padded += self.lengths.count(unsafe) == self.lengths.count(safe)

    def _fillers(self) -> list[str]:
        """Neutral words that may stand before every name of the concept and every anchor; none where one takes none."""
        plan, terms = self.plan, (*self.unsafe_terms, *self.anchors)
        if not (plan.padding and self.lengths.unit == "tokens" and all(map(takes_words, terms))):
            return []
        own_words = {word for text in (*(term.text for term in terms), *plan.near) for word in normalise(text)}
        return [filler for filler in self.bank.padding if own_words.isdisjoint(normalise(filler))]

    def _matched(self, context: str, term: Term) -> tuple[Term, dict[str, str]]:
        """The anchor of closest length and, where a filler goes, {side: filler}.

        A filler that made one side of a pair longer is owed to the other side and paid at the next pair that is unequal anyway:
        each stands as often with the concept as with an anchor, so that it tells nothing. With one anchor, that pair
        ends further apart.
        """

        def closest(side: str = "", filler: str = "") -> tuple[int, Term]:
            length = self.lengths.count(fill(context, term, filler if side == "unsafe" else ""))
            gaps = [
                (abs(self.lengths.count(fill(context, anchor, filler if side == "safe" else "")) - length), anchor)
                for anchor in self._shuffled_anchors()
            ]
            return min(gaps, key=lambda item: item[0])

        gap, anchor = closest()
        if gap == 0 or not self.fillers:
            return anchor, {}
        if self.owed is not None:
            return closest(*self.owed)[1], dict([self.owed])
        for filler in self.rng.sample(self.fillers, len(self.fillers)):
            for side in ("safe", "unsafe"):
                left, partner = closest(side, filler)
                if left == 0:
                    return partner, {side: filler}
        return anchor, {}

    def _benign_from(self, context: str) -> None:
        plan = self.plan
        style = self.rng.random(), self.rng.random()
        lines_left = plan.lines - len(self.benign)
        hard_left = round(NEAR_SHARE * plan.lines) - self.hard_from_templates if plan.near else 0
        is_hard = bool(plan.near) and self.rng.random() < hard_left / max(1, lines_left)
        term = plan.term(self.rng.choice(plan.near if is_hard else self.others))
        filler = self._benign_filler(lines_left) if takes_words(term) else ""
        if term.suits(context) and self._take(None, _finish(fill(context, term, filler), *style), "templates"):
            self.hard_from_templates += is_hard
            self.filled["benign"][filler] += 1

    def _benign_filler(self, lines_left: int) -> str:
        """A filler or none, so that each gets the share of the benign lines that it has of the prompts in pairs."""
        lines_for_a_prompt = self.plan.lines / max(1, 2 * len(self.pairs))
        position = self.rng.random() * lines_left
        for filler, number in self.filled["pairs"].items():
            position -= max(0.0, number * lines_for_a_prompt - self.filled["benign"][filler])
            if position < 0:
                return filler
        return ""

    def _shuffled_anchors(self) -> list[Term]:
        return self.rng.sample(self.anchors, len(self.anchors))

    def _too_many(self, what: str, possible: int, wanted: int, most: str = "") -> GuardConfigError:
        return GuardConfigError(
            f"{most}{possible} different {what} of the kind {self.plan.kind!r} can be made where {wanted} were asked for; "
            "ask for fewer, or give (more) captions."
        )


def _finish(text: str, capital: float, stop: float) -> str:
    """A third of the sentences begin with a capital letter, a quarter end with a full stop."""
    text = text[0].upper() + text[1:] if capital < 1 / 3 else text
    return text + "." if stop < 1 / 4 else text
