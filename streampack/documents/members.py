"""A sample and a field in, the one member that holds the documents out: its extension and its bytes.

Never: a choice between two members that fit the field, also where only one of them could be read.
"""

import dataclasses

from streampack.documents.contents import BadContentError
from streampack.documents.fields import Field
from streampack.errors import DocumentTooLongError, MissingFieldError
from streampack.records import WHOLE_SAMPLE, Sample

_SHOWN = 500
"""Characters of a list of extensions in an error."""


def find_member(sample: Sample, field: Field, *, member_bytes: int, max_document_bytes: int) -> tuple[str, bytes]:
    """Extension and content of the member that the field names.

    Args:
        sample: the members that were read, and the sizes of all.
        field: what is looked for.
        member_bytes: the most that the reader of the tar takes of one member.
        max_document_bytes: the most that a document may have.

    Raises:
        BadContentError: there is no such member, more than one, or it is one that cannot be read.
    """
    members, flaws = sample.members, sample.flaws
    if WHOLE_SAMPLE in flaws:
        raise BadContentError(flaws[WHOLE_SAMPLE])
    there = sorted({*members, *sample.sizes, *flaws})
    found = [extension for extension in there if field.wanted(extension)]
    if not found:
        extensions = ", ".join(there) or "none"
        message = f"no member for field={str(field)!r}; the sample's extensions: {extensions:.{_SHOWN}}"
        message += "; say what a document is with field= (--field): txt, json:KEY, jsonl:KEY or npy"
        raise BadContentError(message, kind=MissingFieldError)
    if len(found) > 1:
        names = ", ".join(found)
        message = f"more than one member for field={str(field)!r}: {names:.{_SHOWN}}; keep one"
        if not field.exact:
            exactly = str(dataclasses.replace(field, exact=found[0]))
            message += f", or name one as a whole: field={exactly!r}"
        raise BadContentError(f"{message}. A sample's key goes up to the first dot of its name")
    (extension,) = found
    if extension in members:
        return extension, members[extension]
    size = sample.sizes.get(extension, 0)
    if size <= member_bytes:
        raise BadContentError(flaws.get(extension, "its bytes were not read"), extension=extension)
    message = f"{size:,} bytes in .{extension}, more than is read of one member ({member_bytes:,})"
    if field.kind == "txt":
        message = f"a document of {size:,} bytes, above limits.document_bytes={max_document_bytes:,}"
    raise BadContentError(message, kind=DocumentTooLongError, extension=extension)
