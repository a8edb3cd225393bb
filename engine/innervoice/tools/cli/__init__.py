"""The command line.

bench.py     innervoice bench stream and metrics
codec.py     innervoice codec encode, decode, roundtrip
decode.py    innervoice bench decode
display.py   the reply as it is drawn in a terminal
main.py      innervoice demo, generate, plan, quantize, bench, env
replay.py    innervoice replay
simulate.py  innervoice simulate
"""
