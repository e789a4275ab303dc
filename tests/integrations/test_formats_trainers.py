"""The real consumers: Transformers' models and torchtune's packing, fed with batches as they come."""

import importlib
import os
from typing import Any

import pytest
import torch
from support.blocks import LAYOUTS, POLICIES, VOCAB, block_of, documents, packs
from support.thorough import some
from torch.nn.functional import cross_entropy

from streampack.errors import ConfigError
from streampack.formats.layout import as_layout, block_causal_mask, document_mask
from streampack.packing.blocks import expand_block
from streampack.packing.packs import PackBlock
from streampack.packing.policies import as_boundary

SEQ_LEN = 16
# torchtune and what it stands on warn of what is to come in torch; that is theirs.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def batch_of(block: PackBlock, kind: str, *, policy: Any = "mask", **options: Any) -> Any:
    arguments = {"positions": "document", "mask": False, **options}
    return as_layout(kind, boundary=as_boundary(policy), **arguments).batch(block)


@pytest.fixture(scope="module", params=["llama", "mistral"])
def model(request: pytest.FixtureRequest) -> Any:
    transformers = pytest.importorskip("transformers")
    kinds = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    }
    config, kind = kinds[request.param]
    torch.manual_seed(0)
    made = kind(
        config(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            use_cache=False,  # as its Trainer does; a cache would have it take a pack for one sequence
        )
    )
    return made.double().eval()


@pytest.mark.parametrize("kind", ["hf", "hf_flash"])
@pytest.mark.parametrize("layout", some([layout for layout in LAYOUTS if layout[0] != "trim"], 10), ids=str)
@torch.no_grad()
def test_the_loss_of_a_transformers_model_is_that_of_the_shifted_labels(model: Any, kind: str, layout: Any) -> None:
    policy, packing = layout
    block = block_of(packs(documents(30, longest=30), policy, packing, lookahead=False))
    batch = batch_of(block, kind, policy=policy)
    result = model(**batch)
    rows, labels = expand_block(block), torch.from_numpy(expand_block(block)["labels"])
    if packing == "wrap":
        assert torch.equal(batch["num_targets"], torch.from_numpy(block.num_targets))
    else:  # a document that overflow has cut has its last label behind the end of the pack
        labels[:, -1] = -100
    mask = block_causal_mask(torch.from_numpy(rows["segment_ids"]))[:, None]
    logits = model(
        input_ids=torch.from_numpy(rows["tokens"]),
        position_ids=torch.from_numpy(rows["position_ids"]),
        attention_mask=mask,
    ).logits
    # Its rotary embedding and attention round to float32 here and there, and not alike for masks of other kinds.
    torch.testing.assert_close(result.logits.view_as(logits), logits, rtol=1e-5, atol=1e-5)
    by_hand = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / batch["num_targets"].sum()
    torch.testing.assert_close(result.loss.double(), by_hand, rtol=1e-5, atol=1e-6)  # it has the loss in float32


@torch.no_grad()
def test_a_document_in_a_pack_has_the_logits_that_a_transformers_model_gives_it_alone(model: Any) -> None:
    texts = documents(15, longest=12)
    made = packs(texts, "mask", "next_fit")
    logits = model(**batch_of(block_of(made), "hf")).logits
    for row, pack in enumerate(made):
        start = 0
        for number, _, length in pack.spans:
            alone = model(input_ids=torch.tensor([texts[number].tokens])).logits[0]
            torch.testing.assert_close(logits[row, start : start + length], alone)
            start += length


def test_hf_flash_is_what_transformers_own_flattening_collator_gives() -> None:
    """Of documents that fill their packs: then there is no padding, which the collator does not know."""
    transformers = pytest.importorskip("transformers")
    texts = [[1, *range(4, 4 + size), 2] for size in (3, 9, 14, 0, 6, 2)]  # 5 + 11, 16, 2 + 8 + 4 + a cut
    texts[-1] += [9, 9]
    made = packs([*texts], "mask", "next_fit")
    collator = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    features = [
        {"input_ids": pack.tokens[start : start + length].tolist()}
        for pack in made
        for start, length in zip([0, *pack.seq_lens.cumsum()], pack.seq_lens, strict=False)
    ]
    expected, batch = collator(features), batch_of(block_of(made), "hf_flash")
    assert set(expected) == set(batch) - {"num_targets"}
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert batch[name].dtype == value.dtype
            assert torch.equal(batch[name], value), name
        else:
            assert batch[name] == value


@pytest.mark.parametrize("kind", ["hf", "hf_flash"])
def test_transformers_models_cannot_have_trimmed_documents(kind: str) -> None:
    with pytest.raises(ConfigError, match='boundary="trim" cannot be right'):
        batch_of(block_of(packs(documents(3, longest=9), "trim")), kind, policy="trim")


@pytest.mark.skipif("CI" not in os.environ, reason="elsewhere a trainer that is not installed is passed over")
@pytest.mark.parametrize(
    "name", ["accelerate", "pytorch_lightning", "torchtune.data", "torchtune.models.phi3", "transformers"]
)
def test_ci_has_the_real_consumers(name: str) -> None:
    importlib.import_module(name)


# --- torchtune


@pytest.fixture(scope="module")
def attention_utils() -> Any:
    return pytest.importorskip("torchtune.modules.attention_utils", exc_type=ImportError)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_torchtune_makes_the_same_mask_of_the_lengths(attention_utils: Any, policy: Any) -> None:
    block = block_of([*packs(documents(30, longest=30), policy), None])
    batch, masked = batch_of(block, "torchtune"), batch_of(block, "torchtune", mask=True)
    assert torch.equal(attention_utils.create_block_causal_mask(batch["seq_lens"]), masked["mask"])
    ids = attention_utils._get_document_ids_from_seq_lens(batch["seq_lens"])
    rows = torch.arange(SEQ_LEN)
    function = document_mask(ids)
    for pack in range(len(ids)):
        assert torch.equal(function(torch.tensor(pack), 0, rows[:, None], rows[None, :]), masked["mask"][pack])  # type: ignore[arg-type]


def test_torchtunes_collate_function_takes_the_packs(attention_utils: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU it makes a BlockMask of the lengths, else a tensor, which is what can be compared here."""
    collate = pytest.importorskip("torchtune.data._collate", exc_type=ImportError)
    monkeypatch.setattr(attention_utils, "_SUPPORTS_FLEX_ATTENTION", False)
    block = block_of([*packs(documents(30, longest=30), "mask"), None])
    batch, masked = batch_of(block, "torchtune"), batch_of(block, "torchtune", mask=True)
    names = ("tokens", "labels", "input_pos", "seq_lens")
    items = [{name: batch[name][row] for name in names} for row in range(len(batch["tokens"]))]
    collated = collate.padded_collate_packed(items)
    assert list(collated) == list(masked)
    for name, value in collated.items():
        assert torch.equal(value, masked[name])


@torch.no_grad()
def test_a_torchtune_model_takes_the_masked_batch_as_it_is(attention_utils: Any) -> None:
    llama2 = pytest.importorskip("torchtune.models.llama2", exc_type=ImportError)
    torch.manual_seed(0)
    model = llama2.llama2(
        vocab_size=VOCAB, num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=32, max_seq_len=SEQ_LEN
    ).eval()
    texts = documents(30, longest=12)
    made = packs(texts, "mask", "next_fit")
    batch = batch_of(block_of(made), "torchtune", mask=True)
    batch.pop("labels")  # as the recipes do
    logits = model(**batch)
    for row, pack in enumerate(made):
        start = 0
        for number, _, length in pack.spans:
            alone = model(tokens=torch.tensor([texts[number].tokens]))[0]
            torch.testing.assert_close(logits[row, start : start + length], alone, rtol=1e-4, atol=1e-4)
            start += length
