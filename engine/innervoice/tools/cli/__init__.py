"""The command line.

__main__.py  the process's command, its imports included
answers.py   replies, drawn as they come and written to files
best_of.py   innervoice generate --best-of
bench.py     innervoice bench stream and metrics
codec.py     innervoice codec encode, decode, roundtrip
decode.py    innervoice bench decode
demo.py      innervoice demo
display.py   the reply as it is drawn in a terminal
evaluate.py  innervoice evaluate
inputs.py    question, schedule and sampling from words of the command line
main.py      innervoice generate, plan, quantize, env, and the commands of the other files
manifest.py  innervoice generate --manifest
options.py   options that commands share, and those of an engine
outputs.py   files that appear together or not at all
progress.py  a bar over the items of a file, which names those that fail
realtime.py  innervoice bench realtime
replay.py    innervoice replay
serve.py     innervoice serve
shell.py     the process around a command: streams and signals
simulate.py  innervoice simulate
"""
