"""The messages of a conversation as token ids, and which of them are trained."""

__all__ = ["besides", "encoder", "jinja", "options", "templates"]
