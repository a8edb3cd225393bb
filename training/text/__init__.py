"""What users and listener say: a grammar of empathic dialogues.

emotions.py    twelve feelings: openings, middles and ends of replies, what reflections note
general.py     general English sentences
grammar.py     dialogues, replies, reflections
situations.py  what users tell about
smalltalk.py   greetings, thanks, goodbyes, second turns, tones, what is not understood
split.py       held-out texts and random order, by hash
"""
