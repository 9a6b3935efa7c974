"""Sources of the command line: a path, or a name with settings such as `shapes?images=2000&seed=7`."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from datasets.pictures import BATCH, Pictures, open_pictures
from datasets.shapes import render_set
from evaluation.extractors import INCEPTION, Extractor
from evaluation.feature_files import KeptFeatures, Work
from evaluation.scores import Reference
from evaluation.statistics_file import Measured, is_statistics, official_statistics, read_statistics
from models.checkpoints.provenance import hash_file

SHAPES = "shapes"
SHAPES_IMAGES, SHAPES_SEED = 2000, 1001  # not a seed of training data, which is 1
MOST_RENDERED_BYTES = 2**33  # of pixels, because all renders of a set are in memory at once
SHAPES_SETTINGS = ("images", "seed", "size")


@dataclass(frozen=True)
class Named:
    """A source's name and its settings."""

    name: str
    settings: Mapping[str, str]


def parse_named(text: str, known: tuple[str, ...]) -> Named:
    """NAME?KEY=VALUE&KEY=VALUE. Raises: ValueError, one line, for a setting that is unknown, empty or repeated."""
    name, _, query = text.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise ValueError(f"{text}: settings are KEY=VALUE, joined by &") from error
    for key, value in pairs:
        if key not in known:
            raise ValueError(f"{text}: there is no setting {key!r}; there are {', '.join(known)}")
        if not value:
            raise ValueError(f"{text}: {key} has no value")
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"{text}: a setting is given twice")
    return Named(name, dict(pairs))


def whole_number(named: Named, key: str, default: int, least: int = 0) -> int:
    """A whole-number setting. Raises: ValueError, one line."""
    given = named.settings.get(key, str(default))
    if not given.isascii() or not given.isdecimal() or int(given) < least:
        raise ValueError(f"{named.name}: {key}={given}: must be a whole number, {least} or more")
    return int(given)


def takes_size_of_samples(source: str) -> bool:
    """Return whether a reference is rendered at the size of the samples. Raises: ValueError, one line."""
    name, _, _ = source.partition("?")
    return name == SHAPES and "size" not in parse_named(source, SHAPES_SETTINGS).settings


def measure(
    source: str,
    extractor: Extractor,
    shapes_size: int | None,
    work: Work,
    part: str,
    *,
    strict: bool,
    on_total: Callable[[int], None],
    on_images: Callable[[int], None],
) -> Measured:
    """The features of a source, or its statistics.

    shapes_size: size of rendered shapes if the source does not state one; None for the extractor's own size.
    work: keeps measurements until all are done. part: "samples" or "reference".
    strict: refuse unreadable picture files instead of counting them.
    Raises: ValueError, which names the source; OSError; WeightsError.
    """
    if not source:  # as a path, it would be the current folder
        raise ValueError(f"the name of the {part} is empty; give a folder, a file, or {SHAPES}")
    path = Path(source)
    if is_statistics(path):
        return read_statistics(path, extractor.identity)
    is_shapes = source.partition("?")[0] == SHAPES
    pictures = (
        _shapes(source, shapes_size or extractor.image_size) if is_shapes else open_pictures(path, extractor.image_size)
    )
    on_total(pictures.count)
    kept = work.kept(part, source if is_shapes else str(path.absolute()), extractor)
    try:
        sha256 = _extract(pictures, kept, on_images)
        features = kept.features()
    except ValueError as error:
        raise ValueError(_naming(source, str(error))) from error
    if strict and pictures.skipped:
        first = pictures.skipped[0]
        raise ValueError(
            f"{source}: --strict refuses unreadable files: {len(pictures.skipped)} of them, "
            f"the first is {first.path}: {first.reason}"
        )
    skipped = [{"file": str(each.path), "reason": each.reason} for each in pictures.skipped]
    content: Reference = features
    if part == "reference" and extractor.identity["name"] == INCEPTION and path.suffix == ".npz":
        # Published scores use the file's own moments, which are of all images of the data set.
        moments = official_statistics(path, extractor.identity, features)
        content, sha256 = (features, sha256) if moments is None else (moments, hash_file(path))
    found = {"images": kept.count, "size": kept.batches[0]["size"], "sha256": sha256, "skipped": skipped}
    return Measured(content, {"source": source, **found, "extractor": extractor.identity}, kept)


def _extract(pictures: Pictures, kept: KeptFeatures, on_images: Callable[[int], None]) -> str:
    """Measure every batch that is not stored; return the hash of all pixels in order. Raises: ValueError."""
    digest = hashlib.sha256()
    start = 0
    for batch in pictures.batches:
        digest.update(batch.contiguous().numpy().data)
        kept.add(str(start), range(start, start + len(batch)), batch)
        start += len(batch)
        on_images(len(batch))
    kept.keep_first(start)
    return digest.hexdigest()


def _naming(source: str, line: str) -> str:
    return line if source in line else f"{source}: {line}"


def _shapes(source: str, default_size: int) -> Pictures:
    named = parse_named(source, SHAPES_SETTINGS)
    count, seed = whole_number(named, "images", SHAPES_IMAGES, 2), whole_number(named, "seed", SHAPES_SEED)
    size = whole_number(named, "size", default_size, 8)
    if count * 3 * size**2 > MOST_RENDERED_BYTES:
        raise ValueError(f"{source}: {count} images of {size}x{size} do not fit in memory; give a smaller set")
    images, _ = render_set(count, seed, size)
    return Pictures(count, iter(images.split(BATCH)))
