"""Pipelines, workers, images and events that tests use."""

import hashlib
import io
import struct
import time
import zlib

from redis import Redis

from jobs.contract.caller import ANONYMOUS
from jobs.contract.kinds import KINDS
from jobs.contract.pipelines import ClassInfo, Defaults, PipelineInfo, StageInfo, UpsampleDefaults
from jobs.contract.samplers import SAMPLER_NOTES
from jobs.contract.sweeps import Sweep, SweepCell, SweepFigure
from jobs.contract.workers import WorkerInfo
from jobs.queue.events import START, Event, StreamPosition, read_events
from jobs.storage.files import FileInfo, FileStore
from jobs.views.fleet import LEAST_SHORT_SIDE_PX
from models.checkpoints.presets import SHAPE_NAMES
from pictures.decoding import MAX_PIXELS
from pictures.reduction import normalise

SHAPES = tuple(ClassInfo(index=index, name=name) for index, name in enumerate(SHAPE_NAMES))
SAMPLERS = ("ddpm", "ddim", "dpmpp_2m", "heun")
BASE = StageInfo(name="base", image_size=32, model_hash="b" * 16, classifier_hash="c" * 16, samplers=SAMPLERS)
UPSAMPLER = StageInfo(name="upsample", image_size=64, model_hash="u" * 16, samplers=SAMPLERS)
DEFAULTS = Defaults(sampler="ddim", guidance_scale=1.5, upsample=UpsampleDefaults(steps=10, sampler="ddim", eta=0.0))
DEMO = PipelineInfo(
    id="demo",
    classes=SHAPES,
    stages=(BASE, UPSAMPLER),
    image_size=64,
    samplers=SAMPLERS,
    sampler_notes=SAMPLER_NOTES,
    time_grids=("official", "even", "uniform", "logsnr", "karras"),
    thresholdings=("clip", "dynamic", "none"),
    kinds=KINDS,
    defaults=DEFAULTS,
    class_required=True,
    no_class_offered=True,
)
DEMO_UNCOND = DEMO.model_copy(update={"id": "demo-uncond", "class_required": False})
PIPELINES = (DEMO.id, DEMO_UNCOND.id)  # of one stack
BASE_ONLY = DEMO.model_copy(
    update={
        "id": "base-only",
        "stages": (BASE,),
        "image_size": 32,
        "defaults": DEFAULTS.model_copy(update={"upsample": None}),
        "no_class_offered": False,
    }
)


SWEEP = Sweep(
    pipeline="demo",
    weights=("b" * 16, "c" * 16),
    images=400,
    reference="shapes?images=2000",
    extractor="judge",
    made_on="2026-11-29",
    cells=tuple(
        SweepCell(
            sampler=sampler,
            steps=steps,
            guidance_scale=scale,
            evaluations=steps,
            fid=SweepFigure(value=figure, low=figure - 1, high=figure + 1),
            precision=SweepFigure(value=0.5 + scale / 20, low=0.45 + scale / 20, high=0.55 + scale / 20),
            recall=SweepFigure(value=0.9 - scale / 10),
        )
        for sampler in ("ddim", "dpmpp_2m")
        for steps in (5, 10, 25)
        for scale in (0.0, 2.0, 8.0)
        for figure in (100 / steps + scale,)
    ),
)


def worker_info(name: str = "cpu-0", **changes: object) -> WorkerInfo:
    info = WorkerInfo(
        name=name,
        device="cpu",
        pipelines=PIPELINES,
        row_shapes=(4, 16),
        step_ms={each: {"base": {4: 40.0, 16: 80.0}, "upsample": {4: 80.0, 16: 160.0}} for each in PIPELINES},
        numerics="fingerprint",
        started_at=time.time(),
        last_heartbeat=time.time(),
        version="0.1.0",
    )
    return info.model_copy(update=changes)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(grey: int = 0, size: int = 2) -> bytes:
    """A real PNG of one grey."""
    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    rows = (b"\0" + bytes([grey] * size)) * size
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def upload(files: FileStore, data: bytes) -> FileInfo:
    """Keep a picture as the service does."""
    picture = normalise(io.BytesIO(data), MAX_PIXELS, LEAST_SHORT_SIDE_PX)
    return files.add(hashlib.sha256(data).hexdigest(), len(data), picture, LEAST_SHORT_SIDE_PX, ANONYMOUS)


def replay(redis: Redis, job_id: str, last_id: str = START) -> list[Event]:
    """All kept events behind one, oldest first."""
    return read_events(redis, [StreamPosition(job_id, last_id)])[0]
