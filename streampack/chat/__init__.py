"""The messages of a conversation as token ids, and which of them are trained."""

__all__ = ["encoder", "jinja", "options", "templates"]
