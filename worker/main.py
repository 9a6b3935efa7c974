"""`adm worker`: loads its pipelines, warms up, and serves until it is told to stop."""

import fcntl
import gc
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Literal

import structlog
import torch
from prometheus_client import CollectorRegistry
from redis.exceptions import RedisError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

from engine.audit import Audit
from engine.engine import Engine
from engine.host_memory import keep_freed_memory
from engine.loading import UnknownPipelineError, find_plans, load_stacks
from engine.numerics import fingerprint
from engine.pipeline import build_stages
from engine.threads import usable_threads
from jobs import logs
from jobs.contract.errors import SETTINGS_STATUS, SettingsError, TakenNameError, UnavailableError
from jobs.contract.workers import WorkerInfo
from jobs.queue.availability import is_away
from jobs.queue.server import connect_redis
from jobs.settings import Settings
from jobs.storage.data_folder import keep_private, open_data_folder
from jobs.storage.files import FileStore
from jobs.storage.images import ImageStore
from jobs.storage.store_metrics import StoreMetrics
from models.checkpoints.network_file import WeightsError
from models.networks.precision import Precision, best_precision
from tracing import recording
from tracing.recording import TracingError
from worker.auditing import Numerics
from worker.compiling import choose_compiler
from worker.held import Held
from worker.inbox import Inbox
from worker.job_spans import JobSpans
from worker.loop import Worker
from worker.metrics import StepMetrics
from worker.namesake import Process
from worker.offers import offer, select
from worker.png import encoder_versions
from worker.stopping import InterruptedStartError, Stopping
from worker.warmup import measure_steps

log = structlog.get_logger("worker")

START_PATIENCE_SECONDS = 30.0  # for a Redis that starts beside us, or again


def main() -> None:
    """Run a worker with the environment's settings; leave with one line when it cannot start.

    The status is SETTINGS_STATUS where another start would end in the same way.
    """
    keep_private()
    try:
        settings = Settings.load()
        logs.configure(settings)
        recording.check()
        run(settings)
    except (TakenNameError, UnavailableError) as error:
        sys.exit(f"adm worker: {error}")
    except (SettingsError, UnknownPipelineError, TracingError) as error:
        print(f"adm worker: {error}", file=sys.stderr)
        sys.exit(SETTINGS_STATUS)
    except WeightsError as error:  # files may be put right, and memory become free
        sys.exit(f"adm worker: {error}")


def run(settings: Settings) -> None:
    """Load, warm up, announce, serve, withdraw."""
    stopping = Stopping()
    stopping.listen()
    device = choose_device(settings.device)
    use_host(settings)
    name = settings.name_of_worker(f"{device.type}-{device.index or 0}")
    ImageStore(settings.store_address)  # one that cannot be used must fail before minutes of loading
    open_data_folder(settings)
    with hold_name(settings.run_dir, name) as lock:
        log.info("loading", worker=name, device=str(device), pipelines=list(settings.pipelines))
        try:
            with stopping.interrupting():
                held = load(settings, device, name)
        except InterruptedStartError:
            log.info("stopped", worker=name, before="its networks were loaded")
            return
        gc.collect()
        gc.freeze()  # a full collection would look at all that was loaded, between two steps, for 0.1 s and more
        redis = connect_redis(settings.redis_address)
        infos = [offer(pipeline) for pipeline in held.pipelines.values()]
        tracing = recording.start("worker", **{"service.instance.id": name})
        spans = JobSpans(tracing)
        inbox = Inbox(redis, settings, name, infos, held.registry, Process.current(lock), stopping, spans)
        try:
            open_inbox(inbox, stopping)
        except InterruptedStartError:
            log.info("stopped", worker=name, before="Redis was available")
            return
        log.info(
            "ready", worker=name, device=held.info.device, pipelines=list(held.pipelines), numerics=held.info.numerics
        )
        observe = StoreMetrics(held.registry).note
        store = ImageStore(settings.store_address, settings.store_timeout_seconds, observe)
        Worker(held, inbox, store, FileStore(redis, settings, store.objects), settings).run(stopping)
        inbox.close()
        tracing.close()
        log.info("stopped", worker=name)


def open_inbox(inbox: Inbox, stopping: Stopping) -> None:
    """Open the inbox, and wait for a Redis that is unavailable.

    Raises: UnavailableError when it stays unavailable; InterruptedStartError when the worker is to stop meanwhile.
    """
    patiently = Retrying(
        retry=retry_if_exception(lambda error: is_away(error) and not stopping.is_set()),
        wait=wait_exponential(multiplier=0.1, max=2),
        stop=stop_after_delay(START_PATIENCE_SECONDS),
        sleep=stopping.wait,
        before_sleep=lambda _: log.warning("redis_away"),
        reraise=True,
    )
    try:
        patiently(inbox.open)
    except RedisError as error:
        if is_away(error) and stopping.is_set():
            raise InterruptedStartError from error
        raise UnavailableError(f"ADM_REDIS_URL: Redis cannot be used: {error}") from error


def load(settings: Settings, device: torch.device, name: str) -> Held:
    """Load the stacks that the pipelines need and warm them up."""
    started = time.monotonic()

    def doubt(line: str) -> None:
        log.warning("weights_look_wrong", doubt=line, see="docs/self-check.md")

    names = readable_pipelines(settings)
    stacks = load_stacks(settings.weights, names, settings.max_rows, device, doubt)
    pipelines = select(names, stacks)
    precision = choose_precision(settings.precision, device)
    stages = build_stages(
        stacks,
        settings.max_rows,
        precision=precision,
        threads=settings.threads,
        compiler=choose_compiler(settings, device, stacks, precision),
    )
    registry = CollectorRegistry()
    metrics = StepMetrics(registry)
    engine = Engine(stages, settings.max_rows)
    measure_steps(engine)
    hashes = [each for stack in stacks for each in stack.hashes]
    numerics = Numerics(partial(fingerprint, stages, precision, hashes, **encoder_versions()))
    info = WorkerInfo(
        name=name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        pipelines=tuple(pipelines),
        row_shapes=engine.row_shapes,
        numerics=numerics.now,
        started_at=time.time(),
        last_heartbeat=time.time(),
        version=version("adm-serve"),
    )
    log.info("loaded", seconds=round(time.monotonic() - started, 2), row_shapes=info.row_shapes)
    audit = Audit(stages, settings.audit_share)
    return Held(pipelines, engine, info, metrics, registry, numerics, audit)


def readable_pipelines(settings: Settings) -> tuple[str, ...]:
    """The pipelines to load: those of the setting, else of every stack that can be read, a warning for each other one.

    Where the default pipeline is damaged, all of them, so that the start ends with the reason.
    """
    if "pipelines" in settings.model_fields_set:
        return settings.pipelines
    damaged = find_plans(settings.weights.absolute()).damaged
    kept = tuple(name for name in settings.pipelines if name not in damaged)
    if not kept or settings.default_model in damaged:
        return settings.pipelines
    for name in settings.pipelines:
        if name not in kept:
            log.warning("pipeline_left_out", pipeline=name, reason=str(damaged[name]))
    return kept


def use_host(settings: Settings) -> None:
    """Compute with the host's processors and memory as the settings and the system allow."""
    torch.set_num_threads(settings.threads or usable_threads())
    keep_freed_memory()


def choose_device(wanted: str) -> torch.device:
    """The device of a setting. Raises: SettingsError for one that this machine has not."""
    if wanted == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"ADM_DEVICE: {wanted!r} is not usable here") from error
    return device


def choose_precision(wanted: Precision | Literal["auto"], device: torch.device) -> Precision:
    """The arithmetic of a setting."""
    return best_precision(device) if wanted == "auto" else wanted


def hold_name(run_dir: Path, name: str) -> IO[str]:
    """Lock the worker's name, so that its last holder is dead. Raises: TakenNameError while it is taken."""
    lock = (run_dir / f"worker-{name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        running = f"a worker named {name!r} is running here already; give this one another name"
        raise TakenNameError(f"ADM_WORKER_NAME: {running}") from error
    return lock
