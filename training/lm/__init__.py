"""The language model: codes of a question to a reply, with GLM-4-Voice's tensor names.

examples.py    training dialogues from what was said
layout.py      the order of tokens under each schedule
model.py       the transformer
score.py       whether a reply fits
speak.py       greedy replies
train.py       the stage `lm`
vocabulary.py  text tokens and ids
"""
