"""What decides which bytes are written, as a record; two of them compared, with what differs in words. Pure."""

import hashlib
import json
from collections.abc import Sequence

import msgspec

from streampack.corpus.parts import PartsJob
from streampack.corpus.writing.inputs import Input
from streampack.errors import ConfigError


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments and the inputs of a folder of shards; its `written` is in the folder."""

    version: int = 1
    """Of how shards are written: another one may give other bytes."""
    field: str
    shard_bytes: int
    shuffle: bool
    seed: int
    on_error: str
    inputs: list[tuple[str, int, str]] | None
    """Name, size and version of each; None: an iterable, which nothing can be compared with."""


def job_inputs(inputs: Sequence[Input]) -> list[tuple[str, int, str]]:
    """What a job keeps of its inputs."""
    return [(each.name, each.size, each.version) for each in inputs]


def parts_job(job: Job, num_parts: int) -> PartsJob:
    """What all parts of a job have in common.

    Of the inputs it has a digest of 16 hex digits. `on_error` may change while a folder is written: see `check_same`.
    """
    about = {name: value for name, value in msgspec.to_builtins(job).items() if name != "on_error"}
    if job.inputs is not None:
        digest = hashlib.blake2b(json.dumps(about["inputs"]).encode(), digest_size=8).hexdigest()
        size = sum(size for _, size, _ in job.inputs)
        about["inputs"] = f"{len(job.inputs):,} inputs of {size:,} bytes, digest {digest}"
    return PartsJob(command="write", num_parts=num_parts, about=about)


def check_same(before: Job, now: Job, *, folder: str, scratch: str | None = None) -> None:
    """Refuse a folder that was begun with another job, which may have left something in a scratch folder.

    Raises:
        ConfigError: what differs, with both values.
    """
    what = _difference(before, now)
    if what:
        removed = "the folder" if scratch is None else f"the folder, and {scratch} with what was sorted for it,"
        raise ConfigError(
            f"{folder} was written from something else: {what}. Remove {removed} to write it again, or name another"
        )


def _difference(before: Job, now: Job) -> str:
    for name in ("version", "field", "shard_bytes", "shuffle", "seed", "on_error"):
        then, value = getattr(before, name), getattr(now, name)
        if (then, value) == ("raise", "skip"):
            continue  # what is written so far had no bad record
        if then != value:
            return f"{name} was {then!r} and is {value!r} now"
    if before.inputs is None or now.inputs is None:
        return "" if before.inputs == now.inputs else "one of the two was an iterable, the other has files"
    files, others = dict(_by_name(before)), dict(_by_name(now))
    if missing := [name for name in files if name not in others]:
        return f"{missing[0]} was an input and is none now" + _more(missing)
    if added := [name for name in others if name not in files]:
        return f"{added[0]} is an input now and was none" + _more(added)
    if changed := [name for name in files if files[name] != others[name]]:
        (size, version), (size_now, version_now) = files[changed[0]], others[changed[0]]
        how = f"{size:,} bytes, then {size_now:,}" if size != size_now else f"version {version}, then {version_now}"
        return f"{changed[0]} has changed ({how})" + _more(changed)
    return "the inputs come in another order" if before.inputs != now.inputs else ""


def _by_name(job: Job) -> list[tuple[str, tuple[int, str]]]:
    return [(name, (size, version)) for name, size, version in job.inputs or ()]


def _more(names: Sequence[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
