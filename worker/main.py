"""`adm worker`: loads its pipelines, warms up, and serves until a stop signal."""

import gc
import math
import sys
from collections.abc import Callable
from functools import partial

import structlog
from redis.exceptions import RedisError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential

from engine.loading import UnknownPipelineError
from jobs import logs
from jobs.contract.errors import SETTINGS_STATUS, SettingsError, TakenNameError, UnavailableError
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.sweeps import Sweep
from jobs.queue.availability import is_unavailable
from jobs.redis.server import connect_redis
from jobs.settings import Settings
from jobs.storage.data_folder import keep_private, open_data_folder
from jobs.storage.files import FileStore
from jobs.storage.images import ImageStore
from jobs.storage.store_metrics import StoreMetrics
from models.checkpoints.network_file import WeightsError
from tracing import recording
from tracing.recording import TracingError
from worker.error_texts import error_text
from worker.inbox import Inbox
from worker.job_spans import JobSpans
from worker.kept_sweeps import kept_sweeps
from worker.loaded_pipelines import LoadedPipelines
from worker.loading import choose_device, load, use_host
from worker.loop import Worker
from worker.name import locked_name
from worker.offers import offer
from worker.pipeline_changes import PipelineChanger, free_memory
from worker.stopping import InterruptedStartError, Stopping
from worker.watchdog import Watchdog

log = structlog.get_logger("worker")

START_PATIENCE_SECONDS = 30.0  # for a Redis that is starting


def main() -> None:
    """Run a worker with the environment's settings; exit with a one-line error if it cannot start.

    The status is SETTINGS_STATUS if another start would fail in the same way.
    """
    keep_private()
    try:
        settings = Settings.load()
        logs.configure(settings)
        recording.check()
        run(settings)
    except (TakenNameError, UnavailableError) as error:
        sys.exit(f"adm worker: {error}")
    except (SettingsError, TracingError) as error:
        print(f"adm worker: {error}", file=sys.stderr)
        sys.exit(SETTINGS_STATUS)
    except UnknownPipelineError as error:
        print(f"adm worker: {error_text(error)}", file=sys.stderr)
        sys.exit(SETTINGS_STATUS)
    except WeightsError as error:  # not SETTINGS_STATUS: files may be repaired and memory freed
        sys.exit(f"adm worker: {error_text(error)}")


def run(settings: Settings) -> None:
    """Load and announce the pipelines, serve until a stop signal, and withdraw the announcement."""
    stopping = Stopping()
    stopping.listen()
    device = choose_device(settings.device)
    use_host(settings)
    name = settings.name_of_worker(f"{device.type}-{device.index or 0}")
    ImageStore(settings.store_address)  # fails here if the store is unusable, before minutes of loading
    open_data_folder(settings)
    with locked_name(settings.run_dir, name) as owned:
        log.info("loading", worker=name, device=str(device), pipelines=list(settings.pipelines))
        try:
            with stopping.interrupting():
                loaded = load(settings, device, name)
        except InterruptedStartError:
            log.info("stopped", worker=name, before="its networks were loaded")
            return
        gc.collect()
        gc.freeze()  # else a full collection between two steps would inspect all loaded objects, for 0.1 s and more
        redis = connect_redis(settings.redis_address)
        infos, sweeps = offers(loaded, settings)
        tracing = recording.start("worker", **{"service.instance.id": name})
        spans = JobSpans(tracing)
        inbox = Inbox(redis, settings, owned, infos, loaded.registry, stopping, spans, sweeps)
        try:
            open_inbox(inbox, stopping)
        except InterruptedStartError:
            log.info("stopped", worker=name, before="Redis was available")
            return
        log.info(
            "ready",
            worker=name,
            device=loaded.info.device,
            pipelines=list(loaded.pipelines),
            numerics=loaded.info.numerics,
        )
        observe = StoreMetrics(loaded.registry).note
        store = ImageStore(settings.store_address, settings.store_timeout_seconds, observe)
        changer = PipelineChanger(redis, settings, loaded)
        changer.refuse_left_over()
        serve(inbox, store, FileStore(redis, settings, store.objects), settings, changer, stopping)
        inbox.close()
        tracing.close()
        log.info("stopped", worker=name)


def serve(
    inbox: Inbox, store: ImageStore, files: FileStore, settings: Settings, changer: PipelineChanger, stopping: Stopping
) -> None:
    """Serve until stopping is set, and make the changes that operators request."""
    while (change := Worker(changer.loaded, inbox, store, files, settings, changer.look).run(stopping)) is not None:
        try:
            with Watchdog(inbox.extend, settings.lease_seconds, math.inf, lambda _: None), stopping.interrupting():
                made = changer.change(change)
            if made:
                free_memory(changer.loaded.device)
                infos, sweeps = offers(changer.loaded, settings)
                wait_for_redis(partial(inbox.offer, infos, sweeps), stopping)
                changer.done(change)
        except InterruptedStartError:
            log.info("change_given_up", pipeline=change.model)  # the worker stops: it has no job, so nothing is lost


def offers(loaded: LoadedPipelines, settings: Settings) -> tuple[list[PipelineInfo], list[Sweep]]:
    """The announcements of a worker's pipelines, and the sweeps that are stored beside their weights."""
    infos = [offer(pipeline) for pipeline in loaded.pipelines.values()]
    sweeps = kept_sweeps(settings.weights, infos)
    measured = {each.pipeline for each in sweeps}
    return [each.model_copy(update={"has_sweep": each.id in measured}) for each in infos], sweeps


def open_inbox(inbox: Inbox, stopping: Stopping) -> None:
    """Open the inbox; wait while Redis is unavailable. Raises: the errors of wait_for_redis."""
    wait_for_redis(inbox.open, stopping)


def wait_for_redis(call: Callable[[], None], stopping: Stopping) -> None:
    """Make a call; repeat it while Redis is unavailable, for START_PATIENCE_SECONDS.

    Raises: UnavailableError after that; InterruptedStartError if the worker must stop meanwhile.
    """
    patiently = Retrying(
        retry=retry_if_exception(lambda error: is_unavailable(error) and not stopping.is_set()),
        wait=wait_exponential(multiplier=0.1, max=2),
        stop=stop_after_delay(START_PATIENCE_SECONDS),
        sleep=stopping.wait,
        before_sleep=note_unavailable,
        reraise=True,
    )
    try:
        patiently(call)
    except RedisError as error:
        if is_unavailable(error) and stopping.is_set():
            raise InterruptedStartError from error
        raise UnavailableError(f"ADM_REDIS_URL: Redis cannot be used: {error}") from error


def note_unavailable(attempt: RetryCallState) -> None:
    assert attempt.outcome is not None  # the attempt failed
    log.warning("redis_unavailable", error=str(attempt.outcome.exception()))
