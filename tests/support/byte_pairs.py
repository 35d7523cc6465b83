"""Byte pairs, slowly and by the book: an independent witness of a tokenizer.

Radford et al. 2019: text is cut by a pattern, each piece is written in 256 printable letters, one a
byte, and the pair that was learnt first is joined until none is left.
"""

from __future__ import annotations

import itertools

import regex

_PIECES = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def _letters() -> dict[int, str]:
    """A printable letter for each byte: itself where it is one, else one from 256 on."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in own}
    others = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + place) for place, byte in enumerate(others)}


LETTERS = _letters()


def tokens_of(
    text: str, vocabulary: dict[str, int], merges: list[str], *, splits_digits: bool
) -> list[int]:
    """The tokens of a text without special ones."""
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    parts = [text]
    if splits_digits:
        parts = [part for part in regex.split(r"(\p{N})", text) if part]
    found = []
    for piece in (piece for part in parts for piece in _PIECES.findall(part)):
        letters = [LETTERS[byte] for byte in piece.encode()]
        while len(letters) > 1:
            pairs = list(itertools.pairwise(letters))
            best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
            if best not in ranks:
                break
            at = pairs.index(best)
            letters[at : at + 2] = ["".join(best)]
        found += [vocabulary[token] for token in letters]
    return found


TEXTS = [
    "a", " a", "a ", "  a", "a  b", "\n", "a\nb", "a\n\n b", "\t", " \t \n ", "hello world",
    "Hello, World!", "don't", "DON'T", "we've we're I'm he'll she'd it's", "'s", "rock 'n' roll",
    "0", "1", "42", "1984", " 1984", "3.14159", "1,000,000", "2nd", "B2B", "x1y2z3", "10%", "-7",
    "12:30", "$9.99", "naïve café", "ÄÖÜ ß", "東京", "日本語 テキスト", "привет мир", "مرحبا",
    "🙂", "👩‍👩‍👧", "e\u0301", "\u00a0", "\u200b", "½ ² ٣", "¿Qué?", "“quoted”", "a—b", "...",
    "!?!?", "user@example.org", "https://example.org/?q=1&r=2", "C:\\path", "{\"k\": [1, 2]}",
    "    indented(code)", "It was a film that I would not see again . It was",
]  # fmt: skip
"""Digits, spaces, contractions, scripts, signs."""
