"""What a process tells of itself: signs of life, where its time goes, and its numbers for dashboards."""

__all__: list[str] = []
