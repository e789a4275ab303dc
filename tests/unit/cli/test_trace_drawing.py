"""A traced pack's table in a pipe: keys and shards are whole, however narrow the terminal is."""

import io

from rich.console import Console

from streampack.cli.trace.drawing import draw
from streampack.cli.trace.found import TracedPack, TracedSegment


def drawn(*, width: int, is_terminal: bool) -> str:
    segments = [
        TracedSegment(
            source="default", epoch=0, url=f"s3://bucket/corpus/{shard}", shard=shard, etag=None, digest=None,
            key="00000-00000496", byte_offset=10_690_048, ordinal=None, record=7, part=0, first_row=first, num_rows=256,
            document_row=300, targets=256, text=None,
        )
        for first, shard in ((0, "00000-00000.tar"), (256, "00000-00001.tar"))
    ]  # fmt: skip
    pack = TracedPack(
        global_pack=109, step=None, row=None, lane=1, lane_pack=9, stage=0, source="default", lane_ended_after=None,
        seq_len=512, num_tokens=512, num_targets=512, segments=segments,
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=width, force_terminal=is_terminal, color_system=None)
    draw(console, pack)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_keys_and_shards_are_whole_in_a_pipe() -> None:
    shown = drawn(width=60, is_terminal=False)
    for shard in ("00000-00000.tar", "00000-00001.tar"):
        assert [line for line in shown.splitlines() if "00000-00000496" in line and line.rstrip().endswith(shard)]


def test_on_a_terminal_the_table_is_as_wide_as_that() -> None:
    assert max(map(len, drawn(width=80, is_terminal=True).splitlines())) <= 80
