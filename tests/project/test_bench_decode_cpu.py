"""bench.decode_cpu: a decode beside plain reads by each number of threads, taken in its own rounds."""

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
