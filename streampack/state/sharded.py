"""What one rank has of a table of all lanes, as torch.distributed.checkpoint saves it and loads it on other ranks.

In:    int64 values of a rank's lanes.
Out:   a tensor of the size of the whole table that holds one chunk of it; the values again.
Never: torch's private names elsewhere. `TRIED` has the releases of torch with which the tests were run.

torch asks such a tensor for what it writes (`__create_write_items__`), for what it wants (`__create_chunk_list__`) and
for the memory of a chunk (`__get_tensor_shard__`), as it asks a DTensor. A DTensor could not say this: its ranks have
neighbouring rows, and a rank's lanes are a part of a box (`box.py`).
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, NoReturn, Self

import numpy as np
import torch
from numpy.typing import NDArray

from streampack.errors import StateError
from streampack.state.box import chunk_of, shape_of

TRIED = ("2.6.0", "2.13.0")


class LaneTable(torch.Tensor):
    """A table [*box, sources, columns] of all lanes, of which this process has the chunk of one rank's lanes.

    The sources come after the box: so torch 2.6 compares chunks fastest.
    """

    local: torch.Tensor
    """int64 [*shape of the chunk, sources, columns]."""
    key: tuple[int, int, int]
    """First lane, step to the next one, and lanes of all ranks."""

    @staticmethod
    def __new__(cls: type[Self], local: torch.Tensor, first: int, step: int, num_lanes: int) -> Self:
        size = (*shape_of(num_lanes), *local.shape[-2:])
        table = torch.Tensor._make_wrapper_subclass(cls, size, dtype=torch.int64)  # noqa: SLF001  # no public way
        table.local, table.key = local, (first, step, num_lanes)
        assert isinstance(table, cls)
        return table

    @property
    def lanes(self) -> range:
        first, step, num_lanes = self.key
        return range(first, num_lanes, step)

    @property
    def num_lanes(self) -> int:
        return self.key[2]

    def copied(self) -> "LaneTable":
        return LaneTable(self.local.clone(), *self.key)

    # -- torch.distributed.checkpoint ----------------------------------------------------------------------------------

    def __create_write_items__(self, name: str, _: object) -> list[Any]:
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        [chunk] = self.__create_chunk_list__()
        data = TensorWriteData(chunk, TensorProperties(dtype=torch.int64), torch.Size(tuple(super().size())))
        return [WriteItem(MetadataIndex(name, chunk.offsets), WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[Any]:
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        start = (*chunk_of(self.lanes, self.num_lanes)[0].start, 0, 0)
        return [ChunkStorageMetadata(torch.Size(start), self.local.size())]

    def __get_tensor_shard__(self, index: object) -> torch.Tensor:
        return self.local

    # -- copies --------------------------------------------------------------------------------------------------------

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return LaneTable, (self.local, *self.key)

    def __deepcopy__(self, memo: Mapping[int, object]) -> "LaneTable":
        return self.copied()

    def __repr__(self) -> str:  # type: ignore[override]  # torch.Tensor takes a keyword there
        return f"LaneTable(lanes={self.lanes}, local={self.local})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # noqa: SLF001  # as above

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch types it as an instance method
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Copies, as savers make them; it is a table, nothing to calculate with."""
        table = next(arg for arg in args if isinstance(arg, LaneTable))
        name = func.overloadpacket.__name__
        if name in ("detach", "alias"):
            return LaneTable(table.local, *table.key)
        if name in ("clone", "_to_copy", "new_empty", "empty_like"):
            return table.copied()
        raise StateError(
            f"{name} of the state of one rank of several: it holds a chunk of a table, which only "
            "torch.distributed.checkpoint and streampack know how to copy. What gathers or moves states needs "
            "PackedDataLoader(whole_state=True), whose tensors are plain"
        )


torch.serialization.add_safe_globals([LaneTable])  # for torch.load(weights_only=True)


def to_table(values: NDArray[np.int64], lanes: range, num_lanes: int) -> torch.Tensor:
    """Values [len(lanes), sources, columns] as a table: plain where these are all lanes, else a `LaneTable`."""
    chunk, index = chunk_of(lanes, num_lanes)
    box = np.empty_like(values)
    box[index] = values
    local = torch.from_numpy(box.reshape(*chunk.shape, *values.shape[1:]))
    return local if len(lanes) == num_lanes else LaneTable(local, lanes.start, lanes.step, num_lanes)


def from_table(table: Any, num_lanes: int, num_sources: int, columns: int, key: str) -> tuple[range, NDArray[np.int64]]:
    """The lanes that a table holds and their values [len(lanes), num_sources, columns], which are a copy.

    Raises:
        StateError: it is no table of so many lanes, sources and columns; the error names its `key`.
    """
    if isinstance(table, LaneTable):
        lanes, local, held = table.lanes, table.local, table.num_lanes
    else:
        lanes, held = range(num_lanes), num_lanes
        try:
            local = torch.as_tensor(table)
        except (TypeError, ValueError, RuntimeError) as error:
            raise StateError(f"{key} is {table!r:.80}, not a table of lanes: the state is damaged") from error
    chunk, index = chunk_of(lanes, held)
    wanted = (*chunk.shape, num_sources, columns)
    if held != num_lanes or tuple(local.shape) != wanted or local.dtype != torch.int64:
        raise StateError(
            f"{key} is {local.dtype} of shape {tuple(local.shape)}, not int64 of {wanted}: the state is damaged"
        )
    return lanes, local.numpy().reshape(len(lanes), num_sources, columns)[index]


@cache
def check_torch() -> None:
    """Raise `StateError` where this torch would not save and load a `LaneTable` as it is meant."""
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
    from torch.distributed.checkpoint.planner import WriteItemType

    saved, loaded = (to_table(np.full((2, 1, 1), value), range(1, 4, 2), 4) for value in (7, 0))
    try:
        plans = []
        for table in (saved, to_table(np.full((2, 1, 1), 5), range(0, 4, 2), 4)):
            save = DefaultSavePlanner()
            save.set_up_planner({"table": table}, None, True)
            plans.append(save.create_local_plan())
        _, metadata = save.create_global_plan(plans)
        load = DefaultLoadPlanner()
        load.set_up_planner({"table": loaded}, metadata, True)
        written, [wanted] = plans[0].items[0], load.create_local_plan().items
        load.resolve_tensor(wanted).copy_(saved.local)  # type: ignore[attr-defined]
        is_known = written.type == WriteItemType.SHARD and bool((loaded.local == 7).all())  # type: ignore[attr-defined]
        assert is_known, "another plan than was meant"
    except Exception as error:  # noqa: BLE001  # whatever a later torch does with it
        _refuse_torch(error)


def _refuse_torch(error: Exception) -> NoReturn:
    raise StateError(
        f"torch {torch.__version__} does not save the state of one rank of several in parts as the releases do with "
        f"which that was tried ({', '.join(TRIED)}): {error}. Make the loader with PackedDataLoader(whole_state=True), "
        "whose state needs nothing of torch"
    ) from error
