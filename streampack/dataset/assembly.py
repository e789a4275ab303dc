"""The stages of a dataset from its arguments: tokenizer, chat template, documents and packing, put together.

In:    `DatasetArguments`, and the readers of the storages, for the files of a tokenizer or a template.
Out:   a `Pipeline` for each source in each stage; everything about the arguments that the tokenizer or the template
       decides is checked by then.
"""

from collections.abc import Mapping
from typing import Any

from streampack.chat.encoder import ChatEncoder, make_encoder
from streampack.chat.options import Chat, as_chat
from streampack.dataset.arguments import DatasetArguments, SourceReading
from streampack.dataset.cutting import Cut, check_boundary, ids_of_boundaries
from streampack.dataset.sources import errors_of, source_seed
from streampack.dataset.tokenizer import make_tokenizer, with_own_template
from streampack.documents.fields import parse_field
from streampack.documents.reader import DocumentReader
from streampack.errors import ConfigError, ShardError, ShardNotFoundError, as_integer
from streampack.lanes.pipeline import Pipeline
from streampack.packing.options import as_packing
from streampack.packing.policies import INT32, as_boundary
from streampack.records import Tokenizer
from streampack.storage.access import StorageReader
from streampack.tokenizers.loading import special_ids


def make_pipelines(
    arguments: DatasetArguments, storages: Mapping[str, StorageReader]
) -> dict[str, tuple[Pipeline, ...]]:
    """For each source what is done with a shard's bytes in each stage; one object for stages that are cut alike.

    Args:
        arguments: of the dataset.
        storages: of each source, by name; that of the dataset is there as "".

    Raises:
        ConfigError: an argument that cannot work.
        TokenizerError: not a tokenizer, or one without the BOS, EOS or control token that is needed.
    """
    tokenizer = make_tokenizer(arguments, storages[""])
    readings = {
        name: with_own_template(arguments.reading(source), arguments, storages[""])
        for name, source in arguments.sources.items()
    }
    holds_chats = False
    for name, reading in readings.items():
        with errors_of(name):
            holds_chats = parse_field(reading.field).is_chat or holds_chats
    if not holds_chats and as_chat(arguments.chat) != Chat():
        fields = " and ".join(sorted({f"field={reading.field!r}" for reading in readings.values()}))
        raise ConfigError(f"chat is for conversations, and {fields} holds none; leave chat out")
    pipelines = {}
    for name, reading in readings.items():
        with errors_of(name):
            pipelines[name] = _pipelines_of(name, arguments, reading, tokenizer, storages[name])
    return pipelines


def _pipelines_of(
    name: str, arguments: DatasetArguments, reading: SourceReading, tokenizer: Tokenizer | None, storage: StorageReader
) -> tuple[Pipeline, ...]:
    """Those of one source, one for each stage."""
    cut = Cut(arguments.seq_len, as_boundary(arguments.boundary), arguments.packing).changed(arguments.stages[0])
    found = [_first_pipeline(name, arguments, reading, tokenizer, storage, cut)]
    for index, stage in enumerate(arguments.stages[1:], 1):
        cut = cut.changed(stage)
        try:
            found.append(cut.pipeline(found[-1]))
        except ConfigError as error:
            raise type(error)(f"stages[{index}]: {error.message}") from error
    return tuple(found)


def _first_pipeline(
    name: str,
    arguments: DatasetArguments,
    reading: SourceReading,
    tokenizer: Tokenizer | None,
    storage: StorageReader,
    cut: Cut,
) -> Pipeline:
    field = parse_field(reading.field)
    chat = _chat_encoder(arguments, reading, tokenizer, storage) if field.is_chat else None
    bos_id, eos_id = None, None
    if chat is None:
        if arguments.sources[name].chat is not None:
            raise ConfigError(f"chat is for conversations, and field={reading.field!r} holds none; leave chat out")
        if tokenizer is not None:
            bos_id, eos_id = special_ids(tokenizer, add_bos=arguments.add_bos, add_eos=arguments.add_eos)
    vocab_size = 2**31 if tokenizer is None else min(2**31, tokenizer.vocab_size if chat is None else chat.vocab_size)
    check_boundary(cut.boundary, vocab_size)
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
            transform=reading.transform,
            transform_version=reading.transform_version,
            hold_out=None if arguments.held_out_cells else arguments.hold_out,
            seed=source_seed(arguments.seed, name),
            max_document_bytes=arguments.limits.document_bytes,
            chat=chat,
            chat_may_draw=chat is not None and chat.may_draw,
            vocab_size=None if tokenizer is None else vocab_size,
        ),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        bos_id=bos_id,
        eos_id=eos_id,
        seq_len=cut.seq_len,
        boundary=cut.boundary,
        packing=as_packing(cut.packing, conversations=field.is_chat),
        pad_id=pad_id,
        token_ids=ids_of_boundaries(field, tokenizer, cut.boundary, adds_bos=arguments.add_bos),
        on_error=arguments.on_error,
        max_bad=arguments.max_bad,
    )
    pipeline.packer()  # it checks whether the boundary has the token that it looks for
    return pipeline


def _chat_encoder(
    arguments: DatasetArguments, reading: SourceReading, tokenizer: Tokenizer | None, storage: StorageReader
) -> ChatEncoder:
    def read(path: str) -> bytes:
        try:
            return storage.read(path)
        except ShardError as error:
            reason = "there is no such file" if isinstance(error, ShardNotFoundError) else error.message
            raise ConfigError(f"the chat template cannot be read: {reason}", url=path) from error

    return make_encoder(
        as_chat(reading.chat),
        tokenizer=tokenizer,
        add_bos=arguments.add_bos,
        add_eos=arguments.add_eos,
        read=read,
    )


def fingerprint(arguments: DatasetArguments, pipeline: Pipeline) -> dict[str, Any]:
    """What the sources of a run have in common and must be equal for two runs to have the same packs; JSON values.

    The keys are those of saved states, so they stay when an argument gets another name.
    """
    hold_out = arguments.hold_out
    return {
        "seed": arguments.seed,
        "split": "all" if hold_out is None else hold_out.part,
        "val_fraction": 0.0 if hold_out is None else hold_out.fraction,
        **({"hold_out_by": "block"} if arguments.held_out_cells else {}),
        "max_document_bytes": arguments.limits.document_bytes,
        "tokenizer": "none" if pipeline.tokenizer is None else pipeline.tokenizer.digest,
        "add_bos": arguments.add_bos,
        "add_eos": arguments.add_eos,
        "pad_id": pipeline.pad_id,
    }


def fingerprint_of_source(arguments: DatasetArguments, name: str, pipeline: Pipeline) -> dict[str, Any]:
    """The same of one source, besides its shards, their order, and how its rows are cut."""
    documents = pipeline.documents
    chat = documents.chat
    return {
        "field": arguments.reading(arguments.sources[name]).field,
        "transform": "none" if documents.transform is None else f"version {documents.transform_version!r}",
        **({"chat_template": chat.digest, "train_on": str(chat.train_on)} if isinstance(chat, ChatEncoder) else {}),
    }
