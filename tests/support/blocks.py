"""Blocks of packs for the tests of formats, made of `streampack.pack`'s public packs alone."""

import random
from collections.abc import Sequence

import numpy as np

import streampack
from streampack.packing.packs import Pack, PackBlock
from streampack.records import IGNORE_INDEX

BOS, EOS, VOCAB = 1, 2, 40
POLICIES = ("keep", "mask", "trim", "mask_bos_target", "mask_eos_input", streampack.ReplaceBoundary(3))
LAYOUTS = [(policy, packing) for policy in POLICIES for packing in ("wrap", "next_fit")]


def documents(count: int, *, longest: int, seed: int = 0) -> list[streampack.TokenizedDocument]:
    """Documents of very different lengths; in every third one some tokens may not be targets."""
    choose = random.Random(seed)
    result = []
    for number in range(count):
        size = choose.choice((0, 1, 2, longest // 3, longest))
        tokens = [BOS, *choose.choices(range(4, VOCAB), k=size), EOS]
        mask = [choose.random() < 0.6 for _ in tokens] if number % 3 == 0 else None
        result.append(streampack.TokenizedDocument(tokens, mask))
    return result


def packs(
    texts: Sequence[streampack.TokenizedDocument],
    policy: str | streampack.ReplaceBoundary,
    packing: str = "wrap",
    *,
    seq_len: int = 16,
    lookahead: bool = True,
) -> list[Pack]:
    lookahead = lookahead or packing != "wrap"
    made = streampack.pack(
        texts, seq_len=seq_len, boundary=policy, packing=packing, bos_id=BOS, eos_id=EOS, lookahead=lookahead
    )
    return list(made)


def block_of(some: Sequence[Pack | None], *, seq_len: int = 16) -> PackBlock:
    """The packs side by side; None is a filler, all padding."""
    ignored = np.zeros((len(some), seq_len), np.bool_)
    tokens = np.zeros((len(some), seq_len), np.int32)
    seq_lens, edges = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for row, pack in enumerate(some):
        if pack is None:
            continue
        ends = np.cumsum(pack.seq_lens) - 1
        tokens[row] = pack.tokens
        ignored[row] = pack.labels == IGNORE_INDEX
        seq_lens.append(pack.seq_lens)
        edges.append(pack.labels[ends])
    return PackBlock(
        tokens=tokens,
        num_segments=np.array([0 if pack is None else pack.seq_lens.size for pack in some], np.int32),
        seq_lens=np.concatenate(seq_lens).astype(np.int32),
        edge_labels=np.concatenate(edges).astype(np.int32),
        ignored=ignored,
        num_targets=np.array([0 if pack is None else pack.num_targets for pack in some], np.int64),
    )
