"""Programs over the engine: the command line, replay, load generation, the simulator, quantisation.

cli/             the command line
decode_bench.py  the decode loop alone, timed
environment.py   versions, native module, processor, memory, GPUs; also runs as a bare file
loadgen/         callers in real time
manifest/        whole test sets, answered into a directory
packaged.py      options by which the package's own model is loaded
quantize.py      a checkpoint with its weights quantised, as a directory
raters.py        Rater: a checkpoint's heads or the zero-shot judge
realtime_bench/  callers of any Realtime server
replay/          event logs, and replies made again
simulator/       listeners under a virtual clock
"""
