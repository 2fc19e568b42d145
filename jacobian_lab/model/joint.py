"""Joints of answers and the prompts before them in running text."""

import unicodedata

SPACE = " "
_OPENING_MARKS = "¿¡"
_STRAIGHT_QUOTES = "\"'`"
_CLOSED_BY = {"“": "”", "”": "”", "„": "“”", "‘": "’", "’": "’", "‚": "‘’", "«": "»", "»": "«»", "‹": "›", "›": "‹›"}
"""The quotes that close each quote in one language or another: „…“ in German, »…« in Danish, ”…” in Swedish."""

_UNSPACED = (
    "CJK",
    "IDEOGRAPHIC",
    "HIRAGANA",
    "KATAKANA",
    "HALFWIDTH KATAKANA",
    "FULLWIDTH",
    "BOPOMOFO",
    "YI",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
)
"""Beginnings of the names of characters whose script writes no spaces between words."""


def joint(text: str, join: str | None = None) -> str:
    """Text between a prompt and its answer in running text."""
    if text[-1:].isspace():
        return ""
    if join is not None:
        return join
    return "" if _opens(text) or _unspaced(text) else SPACE


def _opens(text: str) -> bool:
    """Tell a text that ends in a quote or bracket that has just been opened."""
    last = text[-1:]
    if last in _CLOSED_BY:
        return _stands_open(text)
    if last in _STRAIGHT_QUOTES:
        return _can_open(text, len(text) - 1)
    return bool(last) and (last in _OPENING_MARKS or unicodedata.category(last) in {"Ps", "Pi"})


def _can_open(text: str, place: int) -> bool:
    """Tell a straight quote that opens: at the beginning, or behind what sets it off."""
    before = text[:place]
    return not before or before[-1].isspace() or _opens(before)


def _stands_open(text: str) -> bool:
    """Tell a quote at the end of a text that opens: no quote before it that it would close stands open."""
    open_quotes: list[str] = []
    opens = False
    for place, mark in enumerate(text):
        if mark not in _CLOSED_BY:
            continue
        closed = [depth for depth, quote in enumerate(open_quotes) if mark in _CLOSED_BY[quote]]
        opens = not closed and (unicodedata.category(mark) in {"Ps", "Pi"} or _can_open(text, place))
        if closed:
            del open_quotes[closed[-1] :]
        elif opens:
            open_quotes.append(mark)
    return opens


def _unspaced(text: str) -> bool:
    """Tell a text whose last letter is of a script without spaces."""
    for letter in reversed(text):
        name = unicodedata.name(letter, "")
        if name.startswith(_UNSPACED):
            return True
        if letter.isalpha():
            return False
    return False
