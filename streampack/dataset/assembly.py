"""The stages of a dataset from its arguments: tokenizer, chat template, documents and packing, put together.

In:    `DatasetArguments`, and the reader of the storage, for the files of a tokenizer or a template.
Out:   a `Pipeline`; everything about the arguments that the tokenizer or the template decides is checked by then.
"""

import os
from typing import Any

from streampack.chat.encoder import ChatEncoder, make_encoder
from streampack.chat.options import Chat, as_chat
from streampack.dataset.arguments import DatasetArguments
from streampack.documents.fields import parse_field
from streampack.documents.reader import DocumentReader
from streampack.errors import ConfigError, ShardError, ShardNotFoundError, TokenizerError, as_integer
from streampack.lanes.pipeline import Pipeline
from streampack.packing.options import as_packing
from streampack.packing.policies import INT32, BoundaryPolicy, ReplaceBoundary, as_boundary
from streampack.records import Tokenizer
from streampack.storage.access import StorageReader
from streampack.tokenizers.engines import choose_engine
from streampack.tokenizers.files import NO_FILE, obstacle_of_path
from streampack.tokenizers.loading import check_tokenizer, load_tokenizer, special_ids


def make_pipeline(arguments: DatasetArguments, storage: StorageReader) -> Pipeline:
    """What is done with a shard's bytes.

    Raises:
        ConfigError: an argument that cannot work.
        TokenizerError: not a tokenizer, or one without the BOS, EOS or control token that is needed.
    """
    field = parse_field(arguments.field)
    tokenizer = _tokenizer(arguments, storage)
    chat = _chat_encoder(arguments, tokenizer, storage) if field.is_chat else None
    bos_id, eos_id = None, None
    if chat is None:
        if as_chat(arguments.chat) != Chat():
            raise ConfigError(f"chat is for conversations, and field={arguments.field!r} holds none; leave chat out")
        if tokenizer is not None:
            bos_id, eos_id = special_ids(tokenizer, add_bos=arguments.add_bos, add_eos=arguments.add_eos)
    vocab_size = 2**31 if tokenizer is None else min(2**31, tokenizer.vocab_size if chat is None else chat.vocab_size)
    boundary = as_boundary(arguments.boundary)
    if isinstance(boundary, ReplaceBoundary) and not 0 <= boundary.token_id < vocab_size:
        raise ConfigError(
            f"boundary: ReplaceBoundary({boundary.token_id}) would be a label that no model has; with this tokenizer "
            f"token ids are from 0 to {vocab_size - 1}"
        )
    pad_id = arguments.pad_id
    if pad_id is None and tokenizer is not None:
        pad_id = tokenizer.pad_id
    pad_id = as_integer(0 if pad_id is None else pad_id, "pad_id", low=0, high=INT32.max)
    if pad_id >= vocab_size:
        raise ConfigError(
            f"pad_id={pad_id} is not below {vocab_size}, the vocab_size of the tokenizer; leave it out, or use any id "
            "of the vocabulary: padding is known by its place, not by its id"
        )
    pipeline = Pipeline(
        storage=storage,
        documents=DocumentReader(
            field=field,
            transform=arguments.transform,
            transform_version=arguments.transform_version,
            hold_out=None if arguments.held_out_cells else arguments.hold_out,
            seed=arguments.seed,
            max_document_bytes=arguments.limits.document_bytes,
            chat=chat,
            chat_may_draw=chat is not None and chat.may_draw,
            vocab_size=None if tokenizer is None else vocab_size,
        ),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        bos_id=bos_id,
        eos_id=eos_id,
        seq_len=arguments.seq_len,
        boundary=boundary,
        packing=as_packing(arguments.packing, conversations=field.is_chat),
        pad_id=pad_id,
        token_ids=_ids_of_boundaries(arguments, tokenizer, boundary),
        on_error=arguments.on_error,
        max_bad=arguments.max_bad,
    )
    pipeline.packer()  # it checks whether the boundary has the token that it looks for
    return pipeline


def _ids_of_boundaries(
    arguments: DatasetArguments, tokenizer: Tokenizer | None, boundary: BoundaryPolicy | ReplaceBoundary
) -> tuple[int | None, int | None]:
    """The (BOS, EOS) that documents may hold, for the policies that look at values."""
    if tokenizer is None:
        return None, None
    # A text becomes no BOS: without one in front, an EOS of the same id is at ends only.
    only_ends = boundary is BoundaryPolicy.MASK_EOS_INPUT and not arguments.add_bos
    is_text = not parse_field(arguments.field).is_chat and arguments.field != "npy"
    return None if only_ends and is_text else tokenizer.bos_id, tokenizer.eos_id


def _tokenizer(arguments: DatasetArguments, storage: StorageReader) -> Tokenizer | None:
    tokenizer = arguments.tokenizer
    if isinstance(tokenizer, (str, os.PathLike)):
        path = os.fspath(tokenizer)
        tokenizer = load_tokenizer(_model_file(path, storage), name=path)
    return None if tokenizer is None else choose_engine(check_tokenizer(tokenizer), arguments.engine)


def _model_file(path: str, storage: StorageReader) -> bytes:
    """The bytes of the tokenizer's file; an error is about the tokenizer and says which file to give."""
    if obstacle := obstacle_of_path(path):
        raise TokenizerError(obstacle)
    try:
        return storage.read(path)
    except ShardNotFoundError as error:
        raise TokenizerError(f"no such tokenizer: {NO_FILE}", url=path) from error
    except ShardError as error:
        reason = error.message.removeprefix(f"{path}: ")
        raise TokenizerError(f"the tokenizer cannot be read: {reason}", url=path) from error


def _chat_encoder(arguments: DatasetArguments, tokenizer: Tokenizer | None, storage: StorageReader) -> ChatEncoder:
    def read(path: str) -> bytes:
        try:
            return storage.read(path)
        except ShardError as error:
            reason = "there is no such file" if isinstance(error, ShardNotFoundError) else error.message
            raise ConfigError(f"the chat template cannot be read: {reason}", url=path) from error

    return make_encoder(
        as_chat(arguments.chat),
        tokenizer=tokenizer,
        add_bos=arguments.add_bos,
        add_eos=arguments.add_eos,
        read=read,
    )


def fingerprint(arguments: DatasetArguments, pipeline: Pipeline) -> dict[str, Any]:
    """Those arguments that must be equal for two runs to have the same packs, as plain JSON values.

    The keys are those of saved states, so they stay when an argument gets another name.
    """
    documents, boundary, packing = pipeline.documents, pipeline.boundary, pipeline.packing
    hold_out, chat = arguments.hold_out, documents.chat
    return {
        "seed": arguments.seed,
        "field": arguments.field,
        "split": "all" if hold_out is None else hold_out.part,
        "val_fraction": 0.0 if hold_out is None else hold_out.fraction,
        **({"hold_out_by": "block"} if arguments.held_out_cells else {}),
        "max_document_bytes": documents.max_document_bytes,
        "transform": "none" if documents.transform is None else f"version {documents.transform_version!r}",
        "tokenizer": "none" if pipeline.tokenizer is None else pipeline.tokenizer.digest,
        **({"chat_template": chat.digest, "train_on": str(chat.train_on)} if isinstance(chat, ChatEncoder) else {}),
        "add_bos": arguments.add_bos,
        "add_eos": arguments.add_eos,
        "seq_len": pipeline.seq_len,
        "boundary": f"replace:{boundary.token_id}" if isinstance(boundary, ReplaceBoundary) else str(boundary),
        "packing": str(packing.kind),
        "overflow": str(packing.overflow),
        "tail": str(packing.tail),
        **({"packing_window": packing.window} if packing.has_windows else {}),
        "lookahead": packing.lookahead,
        "pad_id": pipeline.pad_id,
    }
