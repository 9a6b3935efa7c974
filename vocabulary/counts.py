"""Counts with their nouns, for messages to people."""


def counted(count: int, noun: str) -> str:
    """The count and its noun, in the plural unless the count is 1: "1 image", "2 images", "0 classes"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}es" if noun.endswith("s") else f"{count} {noun}s"
