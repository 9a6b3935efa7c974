import pytest

from vocabulary.counts import counted


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2, "image", "2 images"),
        (1, "class", "1 class"),
        (3, "class", "3 classes"),
    ],
)
def test_noun_is_singular_for_one_alone(count: int, noun: str, text: str) -> None:
    assert counted(count, noun) == text
