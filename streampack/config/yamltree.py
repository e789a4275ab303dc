"""A YAML text as its nodes and its plain data, within limits on its size, its depth and its aliases.

In:    any text. Out: the nodes of its one document, and the same as dicts, lists and plain values.
Never: an error other than a YAMLError, which says the line; more data than `MAX_EXPANDED`.

A few lines of aliases can stand for more data than fits any memory (`b: [*a, *a]`, `c: [*b, *b]`, ...), and so can
merge keys. So the text is first read as events, with each alias counted as all that it stands for.
"""

from typing import Any

import yaml

MAX_TEXT = 1 << 20
"""Characters of a file."""
MAX_EXPANDED = 1 << 20
"""Nodes and the characters of their texts, with each alias counted as what it stands for."""
MAX_DEPTH = 32
"""Mappings and lists inside each other."""


class LimitError(yaml.YAMLError):
    """A text that may be YAML, and is above a limit."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line
        """From 1; None: the file as a whole."""


class _Loader(yaml.SafeLoader):
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT002 - as yaml calls it
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Dates that no calendar has, `!!bool 7`, a number of 5000 digits: yaml lets these pass as they are.
            what = f"an invalid {node.tag.rpartition(':')[2]}: {str(node.value)[:60]!r} ({error})"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error


def compose(text: str) -> yaml.Node | None:
    """The nodes of the one document, None if there is none.

    Raises:
        yaml.YAMLError: it is not YAML, or above a limit.
    """
    _check_size(text)
    return yaml.compose(text, Loader=_Loader)


def construct(text: str) -> object:
    """The plain data of a text that `compose` has taken."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def _check_size(text: str) -> None:
    if len(text) > MAX_TEXT:
        what = f"{len(text):,} characters, more than {MAX_TEXT:,}; give long lists of shards as a manifest"
        raise LimitError(what)
    sizes: dict[str, int] = {}  # of what an anchor stands for
    total = 0
    open_: list[tuple[str | None, int]] = []  # anchor, total where it begins
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark is not None else None
        before = total
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in (name for name, _ in open_):
                raise LimitError(f"the alias *{event.anchor} is inside what it stands for", line)
            total += sizes.get(str(event.anchor), 1)
            anchor = None
        elif isinstance(event, yaml.NodeEvent):
            total += 1 + (len(event.value) if isinstance(event, yaml.ScalarEvent) else 0)
            anchor = event.anchor
            if isinstance(event, yaml.CollectionStartEvent):
                open_.append((anchor, before))
                anchor = None
        else:
            continue
        if len(open_) > MAX_DEPTH:
            raise LimitError(f"more than {MAX_DEPTH} mappings and lists inside each other", line)
        if total > MAX_EXPANDED:
            what = f"with its aliases spelled out the file has more than {MAX_EXPANDED:,} values and characters"
            raise LimitError(f"{what}; write less, or repeat less", line)
        if anchor is not None:
            sizes[anchor] = total - before
