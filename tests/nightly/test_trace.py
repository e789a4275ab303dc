"""`streampack trace` over many rows, and on a bucket of 10,000 shards."""

import io
import json
import random
import resource
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sentencepiece
import torch
import yaml
from support import servers
from support.reference import prose
from support.traces import MODEL, check_pack, write_run
from typer.testing import CliRunner

from streampack import PackedDataLoader
from streampack.cli import app
from streampack.testing import write_shards

BATCH, EVERY = 23, 4


@pytest.mark.timeout(900)
def test_the_documents_of_a_thousand_random_rows_are_found_where_the_trace_says(tmp_path: Path) -> None:
    config = write_run(tmp_path, packs=3000)
    batches = []
    with PackedDataLoader.from_config(str(config)) as loader:
        loader.num_workers, loader.batch_size = 0, BATCH
        torch.save(loader.state_dict(), tmp_path / "0.pt")
        for batch in loader:
            batches.append(batch["tokens"].tolist())
            if len(batches) % EVERY == 0:
                torch.save(loader.state_dict(), tmp_path / f"{len(batches) // EVERY}.pt")
    steps = random.Random(1).sample(range(len(batches)), 48)
    rows = 0
    for step in steps:
        asked = ["trace", str(config), "--step", str(step), "--global-batch", str(BATCH), "--json"]
        asked += ["--state", str(tmp_path / f"{step // EVERY}.pt")]
        packs = json.loads(CliRunner().invoke(app, asked).stdout)["packs"]
        for pack in packs:
            check_pack(batches[step][pack["row"]], pack)
        rows += len(packs)
    assert rows >= 1000


@pytest.mark.timeout(900)
def test_a_pack_a_thousand_packs_after_a_state_takes_seconds_with_10_000_shards(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    server = servers.s3()
    client = servers.s3_client(server)
    model = sentencepiece.SentencePieceProcessor(model_file=MODEL)
    shards = [Path(path).read_bytes() for path in write_shards(tmp_path, prose(5, 4000), documents_per_shard=40)]

    def put(number: int) -> None:
        client.put_object(Bucket=servers.BUCKET, Key=f"trace/{number:05d}.tar", Body=shards[number % len(shards)])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(put, range(10_000)))
    manifest = tmp_path / "shards.jsonl"
    sizes = [len(shards[number % len(shards)]) for number in range(10_000)]
    lines = ({"url": f"s3://{servers.BUCKET}/trace/{n:05d}.tar", "size": size} for n, size in enumerate(sizes))
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def write_config(name: str, data: str) -> Path:
        dataset = {"data": data, "tokenizer": MODEL, "seq_len": 4096, "storage": {"options": server.options}}
        (tmp_path / name).write_text(yaml.safe_dump({"dataset": dataset}))
        return tmp_path / name

    configs = [write_config("manifest.yaml", f"@{manifest}")]
    configs += [write_config("folder.yaml", f"s3://{servers.BUCKET}/trace/")]
    with PackedDataLoader.from_config(str(configs[0])) as loader:
        loader.num_workers, loader.batch_size = 0, 8
        loader.skip(125)
        torch.save(loader.state_dict(), tmp_path / "state.pt")
        loader.skip(125)
        wanted = next(iter(loader))["tokens"][3].tolist()
    for config in configs:
        command = [sys.executable, "-m", "streampack.cli", "trace", str(config), "--pack", "2003", "--json"]
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        ran = subprocess.run([*command, "--state", tmp_path / "state.pt"], capture_output=True, text=True, check=False)
        seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        record_property(f"{config.stem}: seconds, and of the processor", (seconds, cpu))
        assert ran.returncode == 0, ran.stderr
        [pack] = json.loads(ran.stdout)["packs"]
        rows = []
        for segment in pack["segments"]:
            shard = shards[int(segment["shard"].removesuffix(".tar")) % len(shards)]
            with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
                file = tar.extractfile(f"{segment['key']}.txt")
                assert file is not None
                ids = [1, *model.encode(file.read().decode()), 2]
            rows += ids[segment["document_row"] : segment["document_row"] + segment["num_rows"]]
        assert rows == wanted
        assert cpu < 10  # of the processor: how long that takes depends on what else the machine does
