"""Evaluations of a real job of 3 ranks: the packs that one process has, which all ranks count together."""

import json
from pathlib import Path

from support.processes import Job

from streampack import HoldOut, PackedDataLoader, PackedDataset
from streampack.testing import ByteTokenizer, write_shards


def test_three_ranks_have_the_packs_of_one_process(tmp_path: Path) -> None:
    texts = [f"document {number} " + "x" * (number * 37 % 200) for number in range(400)]
    write_shards(tmp_path / "shards", texts, documents_per_shard=80)
    shards = str(tmp_path / "shards")
    val = PackedDataset(shards, ByteTokenizer(), 64, hold_out=HoldOut("val", 0.3))
    with PackedDataLoader(val, num_workers=0) as alone:
        wanted = [batch["tokens"][0].tolist() for batch in alone]
    with Job("validating.py", shards, tmp_path, "0", ranks=3, log=tmp_path / "log") as job:
        assert job.wait(60) == 0, job.output()
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(3)]
    for first, second in ranks:
        assert first == second, "each evaluation has the whole set"
    assert len({first["batches"] for first, _ in ranks}) == 1
    sizes = [len(first["packs"]) for first, _ in ranks]
    assert max(sizes) - min(sizes) <= 1
    packs = {int(number): tokens for first, _ in ranks for number, tokens in first["packs"].items()}
    assert [packs[number] for number in range(sum(sizes))] == wanted
    assert 3 * 3 * ranks[0][0]["batches"] - len(wanted) < 9
