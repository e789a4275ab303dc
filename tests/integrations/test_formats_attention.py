"""Isolation: in a pack each document has the logits that it has alone, by FlexAttention, SDPA and varlen's fields."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from support.blocks import LAYOUTS, VOCAB, block_of, documents, packs
from support.thorough import some
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import streampack
from streampack.formats.layout import as_layout, document_mask
from streampack.packing.policies import as_boundary

SEQ_LEN = 16
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Decoder(nn.Module):
    """Two layers with learned positions; how rows attend to one another is an argument."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, width), nn.Embedding(SEQ_LEN, width)
        self.mixes = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.head = nn.Linear(width, VOCAB)

    def forward(self, tokens: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        hidden = self.tokens(tokens) + self.positions(positions)
        for mix in self.mixes:
            query, key, value = (part.unflatten(-1, (2, 16)) for part in mix(hidden).chunk(3, dim=-1))
            hidden = hidden + attention(query, key, value).flatten(-2)
        return self.head(hidden)


def heads_first(attention: Attention) -> Attention:
    def apply(*parts: Tensor) -> Tensor:
        return attention(*(part.transpose(1, 2) for part in parts)).transpose(1, 2)

    return apply


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(0)
    return Decoder().double().eval()


@pytest.fixture
def case(request: pytest.FixtureRequest, model: Decoder) -> tuple[Any, Tensor]:
    """A block of packs, and the logits of each segment run by itself, with the padding as one more of them."""
    policy, packing = request.param
    texts = documents(30, longest=30)
    made = packs(texts, policy, packing)
    logits = torch.zeros(len(made), SEQ_LEN, VOCAB, dtype=torch.float64)
    for row, pack in enumerate(made):
        start = 0
        for number, offset, length in pack.spans:
            alone = torch.tensor(texts[number].tokens[offset : offset + length])  # of the document, not of the pack
            logits[row, start : start + length] = run_alone(model, alone)
            start += length
        if start < SEQ_LEN:
            logits[row, start:] = run_alone(model, torch.zeros(SEQ_LEN - start, dtype=torch.int64))
    return block_of(made), logits


@torch.no_grad()
def run_alone(model: Decoder, tokens: Tensor) -> Tensor:
    causal = heads_first(lambda *parts: scaled_dot_product_attention(*parts, is_causal=True))
    return model(tokens[None], torch.arange(tokens.numel())[None], causal)[0]


def batch_of(block: Any, kind: str, *, mask: bool = False) -> Any:
    return as_layout(kind, positions="document", mask=mask, boundary=as_boundary("mask")).batch(block)


# On a CPU it runs as it is written; compiling it is a matter of speed.
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("case", some(LAYOUTS, 6), indirect=True, ids=str)
@torch.no_grad()
def test_flex_attention_gives_each_document_the_logits_that_it_has_alone(
    model: Decoder, case: tuple[Any, Tensor]
) -> None:
    block, expected = case
    batch = batch_of(block, "streampack")
    mask_mod = document_mask(batch["segment_ids"])
    blocks = create_block_mask(mask_mod, len(expected), None, SEQ_LEN, SEQ_LEN, device="cpu", BLOCK_SIZE=4)
    attention = heads_first(lambda *parts: flex_attention(*parts, block_mask=blocks))
    logits = model(batch["tokens"], batch["position_ids"], attention)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("case", some(LAYOUTS, 6, first=1), indirect=True, ids=str)
@torch.no_grad()
def test_sdpa_with_the_mask_gives_each_document_the_logits_that_it_has_alone(
    model: Decoder, case: tuple[Any, Tensor]
) -> None:
    block, expected = case
    batch = batch_of(block, "streampack", mask=True)
    mask = batch["mask"][:, None]
    attention = heads_first(lambda *parts: scaled_dot_product_attention(*parts, attn_mask=mask))
    torch.testing.assert_close(model(batch["tokens"], batch["position_ids"], attention), expected)


@pytest.mark.parametrize("case", some(LAYOUTS, 6, first=2), indirect=True, ids=str)
@torch.no_grad()
def test_attention_between_the_ends_of_varlen_gives_the_logits_of_each_document_alone(
    model: Decoder, case: tuple[Any, Tensor]
) -> None:
    """The definition of variable-length attention: causal between one end in `cu_seqlens` and the next."""
    block, expected = case
    batch = batch_of(block, "varlen")
    ends = batch["cu_seqlens"].tolist()
    assert max(end - start for start, end in pairwise(ends)) == batch["max_seqlen"]

    def attention(*parts: Tensor) -> Tensor:
        causal = heads_first(lambda *some: scaled_dot_product_attention(*some, is_causal=True))
        return torch.cat([causal(*(part[None, start:end] for part in parts))[0] for start, end in pairwise(ends)])

    logits = model(batch["tokens"], batch["position_ids"], attention)
    torch.testing.assert_close(logits.view_as(expected), expected)


def test_torchs_varlen_attention_takes_the_fields_of_varlen() -> None:
    """Its kernels are for GPUs: there the numbers are compared, elsewhere types and shapes, as torch checks them."""
    varlen_attn = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    block = block_of(packs(documents(30, longest=30), "mask"))
    device = "cuda" if torch.cuda.is_available() else "meta"
    batch = batch_of(block, "varlen")
    ends = batch["cu_seqlens"].to(device)
    torch.manual_seed(0)
    query, key, value = torch.randn(3, batch["tokens"].numel(), 2, 16, dtype=torch.bfloat16).to(device).unbind()
    output = varlen_attn(query, key, value, ends, ends, batch["max_seqlen"], batch["max_seqlen"], window_size=(-1, 0))
    assert output.shape == query.shape
    if device == "cuda":
        mask = batch_of(block, "streampack", mask=True)["mask"][:, None].to(device)
        rows = [part.view(-1, SEQ_LEN, 2, 16).transpose(1, 2) for part in (query, key, value)]
        expected = scaled_dot_product_attention(*rows, attn_mask=mask).transpose(1, 2).reshape_as(output)
        torch.testing.assert_close(output, expected, atol=2e-2, rtol=2e-2)


@torch.no_grad()
def test_a_document_sees_its_neighbours_under_plain_causal_attention(model: Decoder) -> None:
    """That isolation is more than labels: without the mask the second document's logits change."""
    [pack] = streampack.pack([[1, 11, 12, 2], [1, 21, 22, 2]], seq_len=SEQ_LEN)
    batch = batch_of(block_of([pack]), "streampack")
    causal = heads_first(lambda *parts: scaled_dot_product_attention(*parts, is_causal=True))
    logits = model(batch["tokens"], batch["position_ids"], causal)[0, 4:8]
    assert (logits - run_alone(model, torch.tensor([1, 21, 22, 2]))).abs().max() > 1e-3
