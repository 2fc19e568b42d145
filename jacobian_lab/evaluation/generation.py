"""Generation: greedy decoding to a stop, and measures of the text."""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jacobian_lab.evaluation.metrics import answers, greedy_tokens, predicting_states
from jacobian_lab.facts.fact import Fact
from jacobian_lab.model.language_model import LanguageModel

TOKENS = 64
"""Tokens of a text at the most."""

NGRAMS = {2: 2 / 3, 3: 4 / 3}
"""Weights of the n-gram entropies by n, as in ROME's and MEMIT's code."""

REPEATED = 4
"""Words of an n-gram that counts as repeated, as in seq-rep-4 of Welleck et al. (arXiv 1908.04319)."""

MEASURES = {
    "exact_match": "first sentence equals the answer, apart from case, punctuation and articles",
    "f1": "words that the first sentence and the answer share, F1",
    "contains_answer": "the answer's words stand in the text, one after the other",
    "greedy_match": "the text's first tokens are the answer's",
    "forced_match": "every token of the answer is the argmax, teacher forced",
    "ngram_entropy": "n-gram entropy in bits, weighted over n = 2 and 3",
    "repetition": "share of 4-grams that stood in the text before",
}
"""Values of `Generated`, by name."""


@dataclass(frozen=True)
class Generated:
    """Text that a model writes after a fact's prompt.

    Attributes:
        text: The text.
        values: Values by the names in `MEASURES`: shares from 0 to 1, and bits; NaN if the text is too short.
    """

    text: str
    values: dict[str, float]


def generate(model: LanguageModel, facts: Sequence[Fact], tokens: int = TOKENS) -> list[Generated]:
    """Write greedily after the rewriting prompt of every fact, and compare the text with the new answer.

    Args:
        model: The model, edited or not.
        facts: The facts.
        tokens: Tokens of a text at the most; it ends before if the model ends it.

    Returns:
        A text with its values for each fact. ``greedy_match`` and ``forced_match`` agree, except for ties to rounding.
    """
    rows = [model.text_prompt(fact.text, fact.target_new, fact.join) for fact in facts]
    written = greedy_tokens(model, rows, max(tokens, *(len(row.answer) for row in rows)), stop_tokens(model))
    forced = (answers(model, rows, predicting_states(model, rows)).share == 1).tolist()
    generated = []
    for fact, row, ids, is_forced in zip(facts, rows, written, forced, strict=True):
        text = model.tokenizer.decode(ids, skip_special_tokens=True)
        matches = {"greedy_match": float(ids[: len(row.answer)] == row.answer), "forced_match": float(is_forced)}
        values = text_values(text, fact.target_new) | matches
        generated.append(Generated(text, {name: values[name] for name in MEASURES}))
    return generated


def stop_tokens(model: LanguageModel) -> frozenset[int]:
    """Tokens with which a model ends a text.

    Args:
        model: The model.

    Returns:
        Ids of its tokenizer's and of its own generation settings.
    """
    own = getattr(model.hf.generation_config, "eos_token_id", None)
    ids = [model.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return frozenset(token for token in ids if token is not None)


def text_values(text: str, answer: str) -> dict[str, float]:
    """Compare a text with an answer, and measure how it repeats itself.

    Args:
        text: The text.
        answer: The answer.

    Returns:
        The values of `MEASURES` that need no model.
    """
    sentence, expected, words = _normalized(first_sentence(text)), _normalized(answer), _normalized(text)
    places = range(len(words) - len(expected) + 1)
    return {
        "exact_match": float(sentence == expected),
        "f1": _f1(sentence, expected),
        "contains_answer": float(any(words[at : at + len(expected)] == expected for at in places)),
        "ngram_entropy": ngram_entropy(_words(text)),
        "repetition": repetition(_words(text)),
    }


def first_sentence(text: str) -> str:
    """Cut a text behind its first sentence or line.

    Args:
        text: The text.

    Returns:
        Its beginning, without blanks around it.
    """
    return re.split(r"(?<=[.!?。！？])(?:\s|$)|\n", text.strip(), maxsplit=1)[0]


def ngram_entropy(words: Sequence[str]) -> float:
    """Mean of weighted n-gram entropies: fluency in ROME's and MEMIT's tables, where NLTK finds the words.

    Args:
        words: The words of a text, punctuation among them.

    Returns:
        Bits; NaN if there are fewer words than the longest n-gram has.
    """
    if len(words) < max(NGRAMS):
        return math.nan
    return sum(weight * _entropy(_ngrams(words, n)) for n, weight in NGRAMS.items()) / len(NGRAMS)


def repetition(words: Sequence[str]) -> float:
    """Share of n-grams that stood before in the same text: 1 less the share of distinct ones.

    Args:
        words: The words of a text, punctuation among them.

    Returns:
        The share for n-grams of `REPEATED` words; NaN if there are fewer words.
    """
    ngrams = _ngrams(words, REPEATED)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else math.nan


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]


def _entropy(ngrams: Sequence[tuple[str, ...]]) -> float:
    """Entropy of a sample's own frequencies, in bits."""
    frequencies = torch.tensor(list(Counter(ngrams).values()), dtype=torch.float64) / len(ngrams)
    return float(-(frequencies * frequencies.log2()).sum())


def _words(text: str) -> list[str]:
    """Split a text into words and marks of punctuation."""
    return re.findall(r"\w+|[^\w\s]", text)


def _normalized(text: str) -> list[str]:
    """Words of a text as SQuAD's evaluation compares them."""
    plain = text.casefold().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected)) if shared else 0.0
