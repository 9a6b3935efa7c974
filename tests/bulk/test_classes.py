from collections import Counter
from pathlib import Path

import pytest

from bulk.classes import parse_classes
from bulk.errors import BulkError
from tests.jobs.samples import SHAPES

NUM = len(SHAPES)


def labels(given: str, count: int, seed: int = 0) -> list[int | None]:
    return [parse_classes(given, SHAPES, seed).label(index) for index in range(count)]


def test_uniform_draws_every_class_about_as_often() -> None:
    seen = Counter(labels("uniform", 5000))
    assert set(seen) == {each.index for each in SHAPES}
    assert all(abs(each - 500) < 5 * 500**0.5 for each in seen.values())


def test_uniform_draws_other_classes_for_another_seed_and_the_same_for_the_same() -> None:
    assert labels("uniform", 100, seed=1) == labels("uniform", 100, seed=1)
    assert labels("uniform", 100, seed=1) != labels("uniform", 100, seed=2)


def test_balanced_and_lists_take_turns() -> None:
    assert labels("balanced", NUM + 2) == [*range(NUM), 0, 1]
    assert labels("0,3,7", 5) == [0, 3, 7, 0, 3]
    assert labels("torus, 0", 3) == [4, 0, 4]


def test_list_may_be_longer_than_the_name_of_a_file() -> None:
    many = [index % NUM for index in range(1000)]
    assert labels(",".join(map(str, many)), 1000) == many


def test_none_is_no_class() -> None:
    assert labels("none", 2) == [None, None]


def test_file_names_the_class_of_each_image_by_number_or_name(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("3\ntorus\n 0 \n")
    classes = parse_classes(str(path), SHAPES, 0)
    assert [classes.label(index) for index in range(3)] == [3, 4, 0]
    assert classes.length == 3


def test_files_of_the_same_classes_are_the_same_run_and_others_are_not(tmp_path: Path) -> None:
    specs = []
    for text in ("3\n4\n", "3\ntorus\n", "4\n3\n"):
        path = tmp_path / "classes.txt"
        path.write_text(text)
        specs.append(parse_classes(str(path), SHAPES, 0).spec)
    assert specs[0] == specs[1] != specs[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\nunicorn\n", "classes.txt, line 2: unknown class 'unicorn'; there are: sphere,"),
        ("0\n1\n10\n", "classes.txt, line 3: unknown class '10'"),
        ("0\n\n1\n", "classes.txt, line 2: a class is missing"),
        ("-1\n", "classes.txt, line 1: unknown class '-1'"),
        ("", "classes.txt is empty; it needs a class on each line"),
        ("\ufffd\x00\n", "classes.txt, line 1: unknown class"),
    ],
)
def test_wrong_file_is_refused_in_one_line_that_says_where(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(BulkError) as caught:
        parse_classes(str(path), SHAPES, 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BulkError, match="cannot be read as text"):
        parse_classes(str(path), SHAPES, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0,unicorn", "--classes: unknown class 'unicorn'; there are"),
        ("clases.txt", "--classes: there is neither a class nor a file 'clases.txt'"),
        ("0,,1", "--classes: a class is missing"),
        ("", "--classes: a class is missing"),
    ],
)
def test_wrong_list_is_refused_in_one_line(given: str, message: str) -> None:
    with pytest.raises(BulkError) as caught:
        parse_classes(given, SHAPES, 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pipeline_without_classes_has_none_to_choose() -> None:
    with pytest.raises(BulkError, match="has no classes; use none"):
        parse_classes("uniform", (), 0)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_list_is_read_with_and_without_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("torus\r\n3\r\n", encoding=encoding, newline="")
    assert labels(str(path), 2) == [4, 3]
