"""bench.decode_cpu: a decode beside plain reads by each number of threads, taken in its own rounds."""

import sys
from dataclasses import replace

import pytest
from benches import bench


def test_plain_reads_by_each_number_of_threads_stand_beside_a_decode(tmp_path):
    decode_cpu = bench("decode_cpu")
    config = replace(decode_cpu.SMOLLM2, num_layers=1, vocab_size=1024)
    records = list(
        decode_cpu.Bench("small", config, None, None, quick=True).records(tmp_path, ["int8"], [1, 2])
    )

    reads = [record for record in records if record.name.startswith("plain read")]
    decodes = [record for record in records if record.name == "decode on a CPU"]
    assert [(record.threads, record.shape) for record in reads] == [
        (2, "small, 1 threads, beside decode"),
        (1, "small, 1 threads, beside decode"),
        (2, "small, 2 threads, beside decode"),
        (1, "small, 2 threads, beside decode"),
    ]
    assert all(record.unit == "GB/s" and record.p10 <= record.ours <= record.p90 for record in reads)
    for decode, mine in zip(decodes, (reads[1], reads[2]), strict=True):
        bandwidths = decode.details["read_bytes_per_s_by_threads"]
        assert list(bandwidths) == ["2", "1"]
        assert decode.details["read_bytes_per_s"] == pytest.approx(mine.ours * 1e9)
        assert bandwidths[str(mine.threads)] == decode.details["read_bytes_per_s"]
        assert decode.invalid == mine.invalid


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formats", "int8,int9"], "'int9' is not one of bfloat16, int8, int4"),
        (["--threads", "0"], "'0': expected numbers from 1 to 256 with commas"),
        (["--threads", "1,,2"], "'1,,2': expected numbers from 1 to 256 with commas"),
        (["--threads", "257"], "'257': expected numbers from 1 to 256 with commas"),
        (["--activations", "int4"], "invalid choice: 'int4'"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench("decode_cpu").main(["--device", "cpu", *arguments])
    assert message in capsys.readouterr().err


def test_a_python_without_the_peer_is_refused_before_anything_is_loaded(tmp_path):
    main = bench("decode_cpu").main
    with pytest.raises(SystemExit, match=r"no/python does not run: .*No such file"):
        main(["--device", "cpu", "--llama-python", str(tmp_path / "no" / "python")])
    bare = tmp_path / "python"
    bare.write_text(
        f'#!/bin/sh\nexec {sys.executable} -S -c "import llama_cpp_of_nobody"\n', encoding="utf-8"
    )
    bare.chmod(0o755)
    with pytest.raises(
        SystemExit, match=r"has no llama-cpp-python \(ModuleNotFoundError: .*leave the option out"
    ):
        main(["--device", "cpu", "--llama-python", str(bare)])
