"""Word error rate: texts made comparable, and the edit distance between their words."""

from __future__ import annotations

import re

import numpy as np

EXPANDED = {
    "i'm": "i am",
    "it's": "it is",
    "that's": "that is",
    "you're": "you are",
    "can't": "can not",
    "cannot": "can not",
    "don't": "do not",
    "i've": "i have",
    "you've": "you have",
    "let's": "let us",
    "what's": "what is",
    "i'd": "i would",
    "you'd": "you would",
    "i'll": "i will",
    "you'll": "you will",
    "ok": "okay",
    "isn't": "is not",
    "doesn't": "does not",
    "didn't": "did not",
    "won't": "will not",
    "they're": "they are",
    "we're": "we are",
    "he's": "he is",
    "she's": "she is",
    "there's": "there is",
    "wouldn't": "would not",
    "couldn't": "could not",
    "shouldn't": "should not",
    "wasn't": "was not",
    "aren't": "are not",
    "haven't": "have not",
    "hasn't": "has not",
    "favourite": "favorite",
    "neighbour": "neighbor",
    "neighbours": "neighbors",
    "wanna": "want to",
    "gonna": "going to",
}


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation, contractions written out."""
    found = re.findall(r"[a-z']+", text.lower().replace("\u2019", "'"))
    return " ".join(EXPANDED.get(word, word) for word in found).replace("'", "").split()


def edit_distance(reference: list[str], heard: list[str]) -> int:
    """Return how many words must be put in, taken out or changed to make one list of the other."""
    row = np.arange(len(heard) + 1)
    for index, word in enumerate(reference, 1):
        above = row.copy()
        row[0] = index
        for column, other in enumerate(heard, 1):
            row[column] = min(above[column] + 1, row[column - 1] + 1, above[column - 1] + (word != other))
    return int(row[-1])
