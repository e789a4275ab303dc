"""Formats: the keys, shapes and numbers that each consumer documents, from blocks of packs and out of a loader."""

import dataclasses
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.arguments import packed_dataset
from support.blocks import LAYOUTS, block_of, documents, packs

import streampack
from streampack.errors import ConfigError, StateError
from streampack.formats.consumers import Format
from streampack.formats.layout import as_layout, block_causal_mask, context_parallel_slice, document_mask
from streampack.packing.blocks import expand_block
from streampack.packing.packs import PackBlock
from streampack.packing.policies import as_boundary
from streampack.testing import ByteTokenizer, write_shards

SHIFTED = [kind for kind in Format if kind not in (Format.HF, Format.HF_FLASH)]


def formatted(block: PackBlock, kind: str, *, positions: str = "document", mask: bool = False) -> Any:
    return as_layout(kind, positions=positions, mask=mask, boundary=as_boundary("mask")).batch(block)


def tensors(batch: Any) -> Iterator[torch.Tensor]:
    values = batch.values() if isinstance(batch, dict) else batch
    for value in values if isinstance(values, (list, tuple)) else list(values):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)):
            yield from tensors(value)


@pytest.fixture
def block() -> PackBlock:
    """Two packs of 8, `<s> a b </s> <s> c </s> <pad>` and a filler."""
    [pack] = streampack.pack([[1, 11, 12, 2], [1, 21, 2]], seq_len=8)
    return block_of([pack, None], seq_len=8)


@pytest.fixture
def mixed(request: pytest.FixtureRequest) -> PackBlock:
    policy, packing = request.param
    return block_of([*packs(documents(30, longest=30), policy, packing), None])


# --- what each format is


def test_torchtune_takes_lengths_that_add_up_to_the_pack(block: PackBlock) -> None:
    batch = formatted(block, "torchtune")
    assert list(batch) == ["tokens", "labels", "input_pos", "seq_lens", "num_targets"]
    assert batch["tokens"].tolist()[0] == [1, 11, 12, 2, 1, 21, 2, 0]
    assert batch["labels"].tolist()[0] == [11, 12, 2, -100, 21, 2, -100, -100]
    assert batch["input_pos"].tolist()[0] == [0, 1, 2, 3, 0, 1, 2, 0]
    assert [lengths.tolist() for lengths in batch["seq_lens"]] == [[4, 3, 1], [8]]


def test_hf_has_labels_that_the_model_shifts(block: PackBlock) -> None:
    batch = formatted(block, "hf")
    assert {name: tensor.tolist()[0] for name, tensor in batch.items() if tensor.ndim == 2} == {
        "input_ids": [1, 11, 12, 2, 1, 21, 2, 0],
        "labels": [-100, 11, 12, 2, -100, 21, 2, -100],
        "position_ids": [0, 1, 2, 3, 0, 1, 2, 0],
    }
    assert batch["num_targets"].tolist() == [5, 0]


def test_hf_flash_is_hf_in_one_row_with_the_ends_of_its_sequences(block: PackBlock) -> None:
    batch, rows = formatted(block, "hf_flash"), formatted(block, "hf")
    for name in ("input_ids", "labels", "position_ids"):
        assert batch[name].shape == (1, 16)
        assert torch.equal(batch[name].view(2, 8), rows[name])
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert batch[name].dtype == torch.int32
        assert batch[name].tolist() == [0, 4, 7, 8, 16]
    assert (batch["max_length_q"], batch["max_length_k"]) == (8, 8)


def test_torchtitan_is_a_flat_pair(block: PackBlock) -> None:
    inputs, labels = formatted(block, "torchtitan")
    assert list(inputs) == ["input", "positions"]
    assert inputs["input"].tolist() == [1, 11, 12, 2, 1, 21, 2, 0] + [0] * 8
    assert inputs["positions"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, *range(8)]
    assert labels.tolist() == [11, 12, 2, -100, 21, 2, -100, -100] + [-100] * 8


def test_megatron_has_valid_labels_everywhere_and_a_loss_mask(block: PackBlock) -> None:
    batch = formatted(block, "megatron")
    assert batch["labels"].tolist()[0] == [11, 12, 2, 0, 21, 2, 0, 0]
    assert batch["loss_mask"].dtype == torch.float32
    assert batch["loss_mask"].tolist() == [[1, 1, 1, 0, 1, 1, 0, 0], [0] * 8]
    assert batch["cu_seqlens"].dtype == torch.int32
    assert batch["cu_seqlens"].tolist() == [[0, 4, 7, 8], [0, 8, 8, 8]]  # the tail is filled with the pack's length
    assert batch["max_seqlen"].tolist() == [4, 8]


def test_megatron_with_positions_of_the_pack_is_the_plain_causal_gpt(block: PackBlock) -> None:
    batch = formatted(block, "megatron", positions="pack")
    assert list(batch) == ["tokens", "labels", "loss_mask", "position_ids", "num_targets"]
    assert batch["position_ids"].tolist() == [list(range(8))] * 2


def test_varlen_is_flat_with_ends_that_also_cut_between_packs(block: PackBlock) -> None:
    batch = formatted(block, "varlen")
    assert batch["tokens"].shape == batch["labels"].shape == batch["position_ids"].shape == (16,)
    assert batch["cu_seqlens"].tolist() == [0, 4, 7, 8, 16]
    assert batch["max_seqlen"] == 8


def test_maxtext_has_no_segment_where_there_is_no_target(block: PackBlock) -> None:
    batch = formatted(block, "maxtext")
    assert {tensor.dtype for name, tensor in batch.items() if name != "num_targets"} == {torch.int32}
    assert batch["inputs_segmentation"].tolist()[0] == [1, 1, 1, 1, 2, 2, 2, 0]
    assert batch["targets_segmentation"].tolist()[0] == [1, 1, 1, 0, 2, 2, 0, 0]
    assert batch["targets"].tolist()[0] == [11, 12, 2, 0, 21, 2, 0, 0]
    assert batch["inputs_position"].tolist()[0] == batch["targets_position"].tolist()[0] == [0, 1, 2, 3, 0, 1, 2, 0]


def test_the_mask_on_request_is_block_causal_with_the_padding_as_a_block(block: PackBlock) -> None:
    mask = formatted(block, "streampack", mask=True)["mask"]
    expected = torch.block_diag(*[torch.ones(size, size).tril() for size in (4, 3, 1)]).bool()
    assert torch.equal(mask[0], expected)
    assert torch.equal(mask[1], torch.ones(8, 8).tril().bool())
    # torchtune's recipes give all that is left of a batch to the model.
    assert list(formatted(block, "torchtune", mask=True)) == ["tokens", "labels", "input_pos", "mask"]


# --- for all policies and packings


@pytest.mark.parametrize("mixed", LAYOUTS, indirect=True, ids=str)
def test_ends_of_sequences_are_where_positions_begin(mixed: PackBlock) -> None:
    batch = formatted(mixed, "varlen")
    ends = batch["cu_seqlens"]
    assert ends[0] == 0 and ends[-1] == batch["tokens"].numel()
    assert ends.diff().min() > 0
    assert torch.equal(ends[:-1].long(), torch.nonzero(batch["position_ids"] == 0).flatten())
    assert batch["max_seqlen"] == ends.diff().max() == batch["position_ids"].max() + 1
    for lengths in formatted(mixed, "torchtune")["seq_lens"]:
        assert lengths.sum() == mixed.tokens.shape[1]


@pytest.mark.parametrize("mixed", LAYOUTS, indirect=True, ids=str)
def test_a_model_that_shifts_trains_the_same_pairs_but_for_the_last_row_of_a_pack(mixed: PackBlock) -> None:
    labels, hf = torch.from_numpy(expand_block(mixed)["labels"]), formatted(mixed, "hf")
    assert torch.equal(hf["labels"][:, 1:], labels[:, :-1])
    assert bool((hf["labels"][:, 0] == -100).all())
    assert torch.equal(hf["num_targets"], (labels[:, :-1] != -100).sum(dim=1))


@pytest.mark.parametrize("mixed", LAYOUTS, indirect=True, ids=str)
def test_each_format_counts_the_targets_that_it_has(mixed: PackBlock) -> None:
    labels = expand_block(mixed)["labels"]
    counted = (labels != -100).sum(axis=1)
    for kind in SHIFTED:
        batch = formatted(mixed, kind)
        if kind is not Format.TORCHTITAN:
            np.testing.assert_array_equal(batch["num_targets"], counted)
    megatron, maxtext = formatted(mixed, "megatron"), formatted(mixed, "maxtext")
    np.testing.assert_array_equal(megatron["loss_mask"].sum(dim=1), counted)
    np.testing.assert_array_equal((maxtext["targets_segmentation"] != 0).sum(dim=1), counted)
    np.testing.assert_array_equal(megatron["labels"][megatron["loss_mask"] == 1], labels[labels != -100])
    np.testing.assert_array_equal(maxtext["targets"][maxtext["targets_segmentation"] != 0], labels[labels != -100])


@pytest.mark.parametrize("kind", list(Format))
def test_tensors_of_a_batch_share_no_memory(block: PackBlock, kind: str) -> None:
    batch = formatted(block, kind)
    numbers = [(tensor, tensor.clone()) for tensor in tensors(batch)]
    assert all(tensor.is_contiguous() for tensor, _ in numbers)
    for tensor, _ in numbers:
        tensor.add_(1)
    for tensor, before in numbers:
        assert torch.equal(tensor, before + 1)
    assert block.tokens[0].tolist() == [1, 11, 12, 2, 1, 21, 2, 0]


@pytest.mark.parametrize("kind", [kind for kind in Format if kind is not Format.HF_FLASH])
def test_positions_of_the_pack_run_through_it(block: PackBlock, kind: str) -> None:
    batch = formatted(block, kind, positions="pack")
    names = {"torchtune": "input_pos", "torchtitan": "positions", "maxtext": "inputs_position"}
    positions = (batch[0] if kind == "torchtitan" else batch)[names.get(kind, "position_ids")]
    assert positions.reshape(2, 8).tolist() == [list(range(8))] * 2


# --- what cannot be


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "torchtun"}, 'format=\'torchtun\' is not known; did you mean "torchtune"?'),
        ({"positions": "token"}, "positions='token' is not known"),
        ({"format": "hf_flash", "positions": "pack"}, 'format="hf_flash" with positions="pack" contradicts itself'),
        ({"format": "hf", "mask": True}, 'mask=True works with format="streampack" and "torchtune"'),
        ({"format": "torchtitan", "provenance": True}, "provenance=True has no place in the pairs"),
    ],
)
def test_arguments_that_cannot_be_are_named(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    dataset = dataset_of(tmp_path)
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        streampack.PackedDataLoader(dataset, num_workers=0, **arguments)


@pytest.mark.parametrize("kind", ["hf", "hf_flash"])
def test_trim_is_refused_where_the_model_shifts_labels(tmp_path: Path, kind: str) -> None:
    dataset = dataset_of(tmp_path, boundary="trim")
    with pytest.raises(ConfigError, match=f'format="{kind}" with boundary="trim" cannot be right'):
        streampack.PackedDataLoader(dataset, num_workers=0, format=kind)


# --- out of a loader


def dataset_of(folder: Path, **arguments: Any) -> streampack.PackedDataset:
    texts = [f"document {i} " * (1 + i % 7) for i in range(60)]
    shards = write_shards(folder, texts, documents_per_shard=20)
    return packed_dataset(shards, seq_len=32, num_lanes=2, **arguments)


def loader_of(folder: Path, *, format: str = "streampack", **arguments: Any) -> streampack.PackedDataLoader:  # noqa: A002
    return streampack.PackedDataLoader(dataset_of(folder, **arguments), 3, num_workers=0, format=format)


@pytest.mark.parametrize("kind", SHIFTED)
def test_a_format_changes_neither_the_packs_nor_the_state(tmp_path: Path, kind: str) -> None:
    with loader_of(tmp_path) as plain, loader_of(tmp_path, format=kind) as other:
        for rows, batch in zip(islice(plain, 5), islice(other, 5), strict=True):
            inputs = batch[0]["input"] if kind == "torchtitan" else batch.get("tokens", batch.get("inputs"))
            assert torch.equal(inputs.reshape(3, 32).long(), rows["tokens"])
        assert plain.digest() == other.digest()
        other.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("kind", ["hf", "hf_flash"])
def test_a_model_that_shifts_gets_the_packs_of_a_dataset_without_lookahead(tmp_path: Path, kind: str) -> None:
    with loader_of(tmp_path, lookahead=False) as plain, loader_of(tmp_path, format=kind) as other:
        for rows, batch in zip(islice(plain, 5), islice(other, 5), strict=True):
            assert torch.equal(batch["input_ids"].view(3, 32), rows["tokens"])
            assert torch.equal(batch["labels"].view(3, 32)[:, 1:], rows["labels"][:, :-1])
            assert torch.equal(batch["num_targets"], rows["num_targets"])
        assert plain.digest() == other.digest()
        assert other.stats()["targets"] == plain.stats()["targets"]
        other.load_state_dict(plain.state_dict())


def test_a_dataset_with_lookahead_stays_as_it_is_beside_an_hf_loader(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path)
    hf = streampack.PackedDataLoader(dataset, num_workers=0, format="hf")
    plain = streampack.PackedDataLoader(dataset, num_workers=0)
    with hf, plain:
        assert [hf.dataset.fingerprint()["lookahead"], dataset.fingerprint()["lookahead"]] == [False, True]
        state = plain.state_dict()
        with pytest.raises(StateError, match=r'allow=\{"lookahead"\}'):
            hf.load_state_dict(state)
        hf.load_state_dict(state, allow={"lookahead"})


def test_whole_documents_lose_no_target_to_a_model_that_shifts(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"packing": "next_fit", "overflow": "drop", "epochs": 1}
    with loader_of(tmp_path, **arguments) as plain, loader_of(tmp_path, format="hf", **arguments) as hf:
        expected = sum(int(batch["num_targets"].sum()) for batch in plain)
        assert sum(int(batch["num_targets"].sum()) for batch in hf) == expected > 0


def test_workers_and_a_config_file_give_formats_too(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", ["some text"] * 50, documents_per_shard=25)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"dataset: {{data: {shards}, tokenizer: '{model_path()}', seq_len: 16, num_lanes: 2}}\n"
        "loader: {batch_size: 2, num_workers: 1, format: megatron, positions: pack}\n"
    )
    with streampack.PackedDataLoader.from_config(str(config)) as loader:
        batch = next(iter(loader))
    assert batch["position_ids"].tolist() == [list(range(16))] * 2
    assert "cu_seqlens" not in batch


def model_path() -> Path:
    return Path(streampack.__file__).parent / "examples/data/devil.model"


# --- weights


@pytest.mark.parametrize("kind", ["streampack", "torchtune", "megatron", "varlen", "maxtext"])
def test_weights_by_token_are_one_where_there_is_a_target(block: PackBlock, kind: str) -> None:
    layout = as_layout(kind, positions="document", mask=False, boundary=as_boundary("mask"), loss_weights="token")
    batch = layout.batch(block)
    weights = batch["loss_weights"]
    assert weights.dtype == torch.float32
    assert weights.shape == batch["targets" if kind == "maxtext" else "labels"].shape
    assert weights.reshape(2, 8).tolist() == [[1, 1, 1, 0, 1, 1, 0, 0], [0] * 8]


@pytest.mark.parametrize("kind", ["hf", "hf_flash"])
def test_weights_stand_beside_the_labels_that_the_model_shifts(block: PackBlock, kind: str) -> None:
    layout = as_layout(kind, positions="document", mask=False, boundary=as_boundary("mask"), loss_weights="document")
    batch = layout.batch(block, [3, 2])
    third = pytest.approx(1 / 3)
    assert batch["loss_weights"].view(2, 8).tolist() == [[0, third, third, third, 0, 0.5, 0.5, 0], [0] * 8]
    assert torch.equal(batch["loss_weights"] != 0, batch["labels"] != -100)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"boundary": "trim"},
        {"packing": "next_fit"},
        {"packing": "next_fit", "overflow": "truncate"},
        {"packing": "next_fit", "overflow": "drop"},
        {"transform": "masks"},
    ],
    ids=str,
)
def test_weights_by_document_add_up_to_one_over_all_its_pieces(tmp_path: Path, arguments: dict[str, Any]) -> None:
    if "transform" in arguments:
        arguments = {"transform": masks_some}
    dataset = dataset_of(tmp_path, epochs=1, **arguments)
    sums: dict[Any, float] = {}
    pieces: dict[Any, int] = {}
    options: dict[str, Any] = {"num_workers": 0, "provenance": True, "loss_weights": "document"}
    with streampack.PackedDataLoader(dataset, 3, **options) as loader:
        for batch in loader:
            for row, sources in enumerate(batch["provenance"]):
                for segment, source in enumerate(sources, start=1):
                    document = (source.url, source.key, source.record)
                    weights = batch["loss_weights"][row][batch["segment_ids"][row] == segment]
                    sums[document] = sums.get(document, 0) + weights.sum().item()
                    pieces[document] = pieces.get(document, 0) + 1
                assert bool((batch["loss_weights"][row][batch["segment_ids"][row] == 0] == 0).all())
    trained = [total for total in sums.values() if total]
    assert len(trained) > 5
    assert trained == pytest.approx([1] * len(trained), abs=1e-5)
    cut = arguments.get("overflow", "split") == "split"
    assert (max(pieces.values()) > 1) == cut


def test_weights_by_document_are_the_same_after_a_resume_inside_it(tmp_path: Path) -> None:
    def loader() -> streampack.PackedDataLoader:
        return streampack.PackedDataLoader(dataset_of(tmp_path), 2, num_workers=0, loss_weights="document")

    with loader() as whole, loader() as second:
        iterator = iter(whole)
        for _ in range(3):
            next(iterator)
        second.load_state_dict(whole.state_dict())
        for expected, batch in zip(islice(iterator, 4), islice(second, 4), strict=True):
            assert "provenance" not in batch
            assert torch.equal(batch["loss_weights"], expected["loss_weights"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss_weights": "documents"}, "loss_weights='documents' is not known; did you mean \"document\""),
        ({"loss_weights": "token", "format": "torchtitan"}, "loss_weights has no place in the pairs"),
    ],
)
def test_weights_that_cannot_be_are_named(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        streampack.PackedDataLoader(dataset_of(tmp_path), num_workers=0, **arguments)


@pytest.mark.parametrize("boundary", ["keep", streampack.ReplaceBoundary(3)])
def test_weights_by_document_need_rows_that_train_their_own_document(tmp_path: Path, boundary: Any) -> None:
    with pytest.raises(ConfigError, match='loss_weights="document" with boundary='):
        streampack.PackedDataLoader(dataset_of(tmp_path, boundary=boundary), num_workers=0, loss_weights="document")


def masks_some(document: streampack.Document, rng: np.random.Generator) -> streampack.Document:
    tokens = ByteTokenizer().encode(document.text or "")
    return dataclasses.replace(document, text=None, tokens=tokens, loss_mask=rng.random(len(tokens)) < 0.4)


# --- context parallel


def test_slices_of_context_parallel_ranks_are_head_and_tail(block: PackBlock) -> None:
    batch = formatted(block, "streampack", mask=True)
    first, second = (context_parallel_slice(batch, rank=rank, size=2) for rank in range(2))
    assert first["tokens"].tolist()[0] == [1, 11, 2, 0]
    assert second["tokens"].tolist()[0] == [12, 2, 1, 21]
    assert first["mask"].shape == (2, 4, 8)
    assert torch.equal(first["mask"][:, 2], batch["mask"][:, 6])
    assert torch.equal(first["num_targets"], batch["num_targets"])


@pytest.mark.parametrize("kind", ["streampack", "torchtune", "megatron", "maxtext"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_slices_of_all_ranks_are_the_batch_in_torchs_head_tail_order(kind: str, size: int) -> None:
    balancer = pytest.importorskip("torch.distributed.tensor.experimental._context_parallel._load_balancer")
    order = balancer._HeadTailLoadBalancer(16, size, "cpu")._generate_indices().flatten()
    batch = formatted(block_of(packs(documents(9, longest=30), "mask")), kind)
    parts = [context_parallel_slice(batch, rank=rank, size=size) for rank in range(size)]
    for name, whole in batch.items():
        if name in {"seq_lens", "num_targets", "cu_seqlens", "max_seqlen"}:
            assert all(part[name] is whole for part in parts)
        else:
            assert torch.equal(torch.cat([part[name] for part in parts], dim=1), whole[:, order])


@pytest.mark.parametrize(
    ("kind", "rank", "size", "message"),
    [
        ("varlen", 0, 2, "a flat batch has no pack to slice"),
        ("torchtitan", 0, 2, "a flat batch has no pack to slice"),
        ("hf", 0, 2, "a model that shifts labels itself"),
        ("streampack", 2, 2, "rank=2 of size=2"),
        ("streampack", 0, 3, "seq_len=8 cannot be cut into 2 \\* 3 pieces of one length; 6 can"),
    ],
)
def test_what_cannot_be_sliced_is_refused(block: PackBlock, kind: str, rank: int, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        context_parallel_slice(formatted(block, kind), rank=rank, size=size)


def test_the_mask_function_and_the_mask_tensor_are_one_mask() -> None:
    segment_ids = torch.from_numpy(expand_block(block_of(packs(documents(9, longest=30), "mask")))["segment_ids"])
    function: Callable[..., torch.Tensor] = document_mask(segment_ids)
    rows = torch.arange(16)
    for pack, mask in enumerate(block_causal_mask(segment_ids)):
        assert torch.equal(function(torch.tensor(pack), 0, rows[:, None], rows[None, :]), mask)
        assert bool(mask.any(dim=1).all())  # the padding too: no row without anything to attend to
