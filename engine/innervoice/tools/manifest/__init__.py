"""Whole test sets: a manifest's items answered into a directory.

exports.py    results as lines for VoiceBench's and HumDial's evaluations
items.py      ManifestItem: the items of a manifest, and of VoiceBench's and HumDial's files
pairs.py      PairItem: pairs of question and reply that are rated
rating.py     PairRun: every pair rated once, and agreement with given scores
results.py    ResultLines, RunFolder: results that are kept from run to run
run.py        ManifestRun: every item answered once, several at a time
"""
