"""Makes innervoice-mini, the small model in GLM-4-Voice's formats; README.md says how.

data.py          what training reads: mel, pitch, samples and codes of the target voice
evaluate.py      word errors after each stage, replies to held-out questions
export.py        the shipped formats
judge.py         Whisper base hears audio
loop.py          steps, checkpoints and logs of every training
package.py       the package's own model, with questions, card and notice
parity.py        the engine's tokenizer against that of training
run.py           the driver
second_judge.py  PocketSphinx hears audio
sources.py       pinned packages
wer.py           word error rate
workdir.py       the work directory: atomic files, logs, one stage at a time
"""
