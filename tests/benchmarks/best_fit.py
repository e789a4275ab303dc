"""What windows of `packing="best_fit"` cost and give: how full packs are, memory of a lane, and tokens of a resume.

    python tests/benchmarks/best_fit.py [--text english.jsonl.zst] [--bytes-per-token 4.4] [--lanes 4]

Only the sizes of documents matter, so none is tokenized: text is taken to have so many bytes a token, chats are made
up, and token ids are random. Documents come in random order. A resume in the middle of a window tokenizes what is out
of it again, on average half a window, besides what it would tokenize anyway.
"""

import random
import time

import numpy as np
import texts

from streampack.packing.making import make_packer
from streampack.packing.options import Packing

WINDOWS = (16, 64, 256)
SEQ_LENS = (4096, 32_768, 131_072)
BULK = 256
"""Documents that a lane feeds together, about."""


def main() -> None:
    """Print a table for the text, and one for chats."""
    parser = texts.parser_of(__doc__, megabytes=100)
    parser.add_argument("--bytes-per-token", type=float, default=4.4)
    parser.add_argument("--lanes", type=int, default=1)
    arguments = parser.parse_args()
    text = texts.chosen(arguments)
    sizes = [max(int(len(each.encode()) / arguments.bytes_per_token), 1) + 2 for part in text.slices for each in part]
    show(text.name, sizes, seq_lens=SEQ_LENS, num_lanes=arguments.lanes)
    choose = random.Random(0)
    chats = [min(max(int(choose.lognormvariate(6.2, 0.7)), 20), 4096) for _ in range(2000)]
    show("2,000 chats", chats, seq_lens=SEQ_LENS[:1], num_lanes=arguments.lanes)


def show(name: str, sizes: list[int], *, seq_lens: tuple[int, ...], num_lanes: int) -> None:
    print(f"\n{name}: {len(sizes):,} documents of {np.mean(sizes):,.0f} tokens, {num_lanes} lanes")
    heads = ("seq_len", "window", "fill", "whole windows", "next_fit", "memory of a lane", "again at a resume", "CPU")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for seq_len in seq_lens:
        next_fit, _, _ = run(sizes, Packing("next_fit"), seq_len, num_lanes)
        for window in WINDOWS:
            packing = Packing("best_fit", window=window)
            fill, whole, seconds = run(sizes, packing, seq_len, num_lanes)
            megabytes = packing.window_bytes(seq_len) / 2**20
            print(
                f"| {seq_len:,} | {window} | {fill:.1%} | {whole} | {next_fit:.1%} | {megabytes:,.1f} MiB | "
                f"{window * seq_len // 2:,} tokens | {seconds * 1e6:.1f} us a document |"
            )


def run(sizes: list[int], packing: Packing, seq_len: int, num_lanes: int) -> tuple[float, str, float]:
    """The share of rows that are no padding: of all packs, and of those of windows that are complete; CPU seconds."""
    order = random.Random(1).sample(sizes, len(sizes))
    rows = whole_rows = packs = whole_packs = 0
    seconds = 0.0
    for lane in range(num_lanes):
        own = order[lane::num_lanes]
        tokens = np.random.default_rng(0).integers(5, 30_000, sum(own), dtype=np.int32)
        begin = time.process_time()
        packer = make_packer(seq_len=seq_len, boundary="mask", packing=packing)
        stop = 0
        for at in range(0, len(own), BULK):
            part = own[at : at + BULK]
            start, stop = stop, stop + sum(part)
            packer.feed_all(tokens[start:stop], part)
            for pack in iter(packer.pop, None):
                whole_rows += pack.tokens.size
                whole_packs += 1
        packer.finish()
        for pack in iter(packer.pop, None):
            rows += pack.tokens.size
            packs += 1
        seconds += time.process_time() - begin
    whole = f"{whole_rows / whole_packs / seq_len:.1%}" if whole_packs else "none"
    return (rows + whole_rows) / (packs + whole_packs) / seq_len, whole, seconds / len(sizes)


if __name__ == "__main__":
    main()
