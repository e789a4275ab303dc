"""A configuration file as the arguments of the dataset and the loader."""

__all__ = ["file", "lines", "sections", "values", "yamltree"]
