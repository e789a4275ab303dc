"""A sample and a field in, the one member that holds the documents out: its extension and its bytes.

It is the member with exactly the field's extension, else the only one whose extension ends in it (`page.txt`).
Never: a choice between two of them.
"""

from streampack.documents.contents import BadContentError
from streampack.documents.fields import Field
from streampack.errors import DocumentTooLongError, MissingFieldError
from streampack.records import Sample


def find_member(sample: Sample, field: Field, *, member_bytes: int, max_document_bytes: int) -> tuple[str, bytes]:
    """Extension and content of the member that the field names.

    Args:
        sample: the members that were read, and the sizes of all.
        field: what is looked for.
        member_bytes: the most that the reader of the tar takes of one member.
        max_document_bytes: the most that a document may have.

    Raises:
        BadContentError: there is no such member, more than one, or its bytes were not read.
    """
    names = field.extensions
    if len(names) == 1 and names[0] in sample.members:
        return names[0], sample.members[names[0]]
    there = sample.sizes or sample.members
    found = [name for name in names if name in there] or [name for name in there if field.wanted(name)]
    if not found:
        extensions = ", ".join(sorted(there)) or "none"
        message = f"no member for field={str(field)!r}; the sample's extensions: {extensions}"
        raise BadContentError(message, kind=MissingFieldError)
    if len(found) > 1:
        message = f"more than one member for field={str(field)!r}: {', '.join(sorted(found))}; keep one"
        raise BadContentError(message)
    (extension,) = found
    if extension in sample.members:
        return extension, sample.members[extension]
    size = sample.sizes[extension]
    if size <= member_bytes:
        message = f".{extension} is a sparse file, or the sample has too much in other members that may be the one"
        raise BadContentError(f"{message}; write it again with one, as an ordinary file", extension=extension)
    message = f"{size:,} bytes in .{extension}, more than is read of one member ({member_bytes:,})"
    if field.kind == "txt":
        message = f"a document of {size:,} bytes, above limits.document_bytes={max_document_bytes:,}"
    raise BadContentError(message, kind=DocumentTooLongError, extension=extension)
