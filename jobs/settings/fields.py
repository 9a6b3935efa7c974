"""All settings of all programs, by subject."""

import contextlib
import json
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobs.contract.worker_deaths import DEATHS_ALONE
from jobs.settings.environment import PREFIX
from jobs.settings.setting_types import Hosts, Names, Networks, Origins, RedisUrl, StoreAddress, WebhookSecrets
from vocabulary.precisions import Precision

MAX_WORKER_NAME = 64
SHIPPED_PIPELINES = ("demo", "demo-uncond")
SHIPPED_WEIGHTS = Path(__file__).parents[2] / "weights"  # of the checkout or the installed wheel
STORE_TIMEOUT_SECONDS = 10.0
STEP_TIMEOUT_SECONDS = 600.0


def pipelines_of(weights: Path) -> tuple[str, ...]:
    """The pipelines of every stack in a folder of stacks; those of the shipped stacks if none can be read."""
    names: list[str] = []
    for path in sorted(weights.glob("*/stack.json")):
        with contextlib.suppress(OSError, ValueError, AttributeError, KeyError):  # the loading worker reports it
            names += json.loads(path.read_bytes())["pipelines"].keys()
    return tuple(names) or SHIPPED_PIPELINES


class Fields(BaseSettings):
    """Everything that the programs of this project take from their environment."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, env_ignore_empty=True, extra="forbid", allow_inf_nan=False
    )

    # the service's address, and who reaches it
    host: str = Field(
        default="127.0.0.1",
        description="address the service listens on; beyond loopback callers need keys, unless ADM_ALLOW_ANONYMOUS=yes",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="port the service listens on; 0 takes a free one")
    service_processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="processes of the service that answer at one port; each has limits of its own",
    )
    hosts: Hosts = Field(
        default=(),
        description="names by which callers reach the service, besides localhost, separated by commas; * is any",
    )
    root_path: str = Field(
        default="",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="path under which a proxy publishes the service, such as /adm; the proxy may forward or remove it",
    )
    trusted_proxies: Networks = Field(
        default=(),
        description="addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed",
    )
    # limits of connections and of bodies
    keep_alive_seconds: int = Field(
        default=75, gt=0, description="how long an idle connection stays open for its next request"
    )
    client_seconds: float = Field(
        default=30,
        gt=0,
        description="time a client has to send a request's headers and each 64 KiB of its body, and to read each "
        "64 KiB of an answer",
    )
    max_header_bytes: int = Field(default=32_768, ge=1024, description="longest request line and headers, together")
    max_connections: int = Field(
        default=4096, ge=1, description="connections open at once; fewer where the process may open too few files"
    )
    cors_origins: Origins = Field(
        default=(),
        description="origins, separated by commas, whose pages may call the service, such as https://app.example",
    )
    max_connections_per_address: int = Field(
        default=2048, ge=1, description="connections open at once from one address or IPv6 /64 network"
    )
    max_unread_bytes: int = Field(
        default=256 << 20,
        ge=1 << 16,
        description="unread bytes of all answers together; above it, the connections with the most of them are closed",
    )
    max_incoming_bytes: int = Field(
        default=256 << 20,
        ge=1 << 20,
        description="bytes beyond the first 64 KiB of each body, of all bodies being received; above it, bodies of the "
        "caller that sends the most are refused",
    )
    # folders and addresses
    data: Path = Field(default=Path("data"), description="folder of Redis' log, images, caches and run/*.pid")
    redis_url: RedisUrl | None = Field(
        default=None, description="redis://, rediss:// or unix://; none: $ADM_DATA/run/redis.sock"
    )
    store: StoreAddress | None = Field(
        default=None, description="folder or s3://bucket/prefix of the images; none: $ADM_DATA/images"
    )
    store_threads: int = Field(
        default=8,
        ge=1,
        description="calls of the image store that the service makes at once; more wait, and too many are refused",
    )
    store_timeout_seconds: float = Field(
        default=STORE_TIMEOUT_SECONDS,
        gt=0,
        description="time limit of one request to a bucket, including retries",
    )
    weights: Path = Field(
        default_factory=lambda: Path("weights") if Path("weights").is_dir() else SHIPPED_WEIGHTS,
        description="folder with a subfolder of weights for each stack; none: ./weights, or the installed one",
    )
    # a worker's pipelines, and how it computes
    pipelines: Names = Field(
        default_factory=lambda read: pipelines_of(read["weights"]),
        min_length=1,
        description="pipelines a worker loads, separated by commas; none: those of every stack in ADM_WEIGHTS",
    )
    runs: Path | None = Field(
        default=None, description="folder of training runs that the page /runs shows; none: the page shows none"
    )
    default_model: str = Field(default="demo", min_length=1, description="pipeline of a request that names none")
    worker_name: str | None = Field(
        default=None,
        pattern=rf"^[A-Za-z0-9_.-]{{1,{MAX_WORKER_NAME}}}$",
        description="stable name of the worker; none: its device's: cuda-0, or HOST-cuda-0 with ADM_REDIS_URL",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    precision: Literal["auto", Precision] = Field(
        default="auto", description="arithmetic of the networks; auto: bf16 where the device is fast at it, else fp32"
    )
    compile: Literal["auto", "yes", "no"] = Field(
        default="auto",
        description="compile the networks on a CPU, which takes minutes once; auto: use code compiled earlier",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of the worker; none: a thread for each core, within a container's quota",
    )
    max_rows: int = Field(default=32, ge=1, le=1024, description="largest number of images in a step")
    # how long jobs and pipelines are kept, and leases of workers
    retention_seconds: int = Field(default=86400, ge=1, description="how long an ended job and its images are kept")
    pipeline_retention_seconds: int = Field(
        default=86400,
        ge=1,
        description="how long a pipeline without a live worker stays known, and its jobs are accepted",
    )
    fleet_refresh_seconds: float = Field(
        default=0.5, ge=0, description="age at which the service rereads the announcements of workers; 0: every time"
    )
    lease_seconds: int = Field(
        default=45, ge=2, description="time without heartbeats after which a worker's jobs are requeued"
    )
    heartbeat_seconds: float = Field(
        default=5, gt=0, description="time between two heartbeats of a worker; well below the lease"
    )
    worker_deaths_alone: int = Field(
        default=DEATHS_ALONE,
        ge=1,
        description="a job fails after so many deaths of workers at its furthest step while it ran alone",
    )
    drain_seconds: float = Field(
        default=25, ge=0, description="a stopping worker finishes what it can within this time"
    )
    step_timeout_seconds: float = Field(
        default=STEP_TIMEOUT_SECONDS,
        gt=0,
        description="a worker whose step takes longer ends with status 70, so that it is restarted",
    )
    checkpoint_seconds: float = Field(
        default=60, ge=0, description="device time of a job between two checkpoints of it; 0: none"
    )
    audit_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of its device time that an idle worker spends on audits; 0: none",
    )
    sweep_seconds: float = Field(default=60, gt=0, description="time between two removals of expired data")
    # limits of the queue
    queue_limit_seconds: float = Field(
        default=3600,
        gt=0,
        description="most estimated work queued for the workers of a pipeline, in all pipelines that they serve; above "
        "it, the pipeline's jobs are refused",
    )
    max_queued_jobs: int = Field(
        default=10_000, ge=1, description="number of queued jobs above which further ones are refused"
    )
    max_jobs: int = Field(
        default=100_000,
        ge=1,
        description="number of jobs in any state above which further ones are refused",
    )
    max_grid_cells: int = Field(
        default=64,
        ge=1,
        le=256,
        description="cells of a grid, each a job; they are queued in one transaction of Redis, 64 within some 10 ms",
    )
    max_redis_bytes: int = Field(
        default=1 << 30,
        ge=1,
        description="memory of Redis above which further jobs are refused; 0.9 of its own maxmemory where that is less",
    )
    # uploads
    max_upload_bytes: int = Field(default=16 << 20, ge=1, description="largest picture that may be uploaded, as a file")
    max_upload_pixels: int = Field(
        default=25_000_000, ge=1, le=89_000_000, description="largest picture that may be uploaded, decoded"
    )
    max_files_bytes: int = Field(
        default=4 << 30, ge=1, description="bytes of all uploaded pictures together; more are refused"
    )
    decode_processes: int = Field(default=2, ge=1, description="uploaded pictures that are decoded at once")
    decode_cpu_seconds: int = Field(default=5, ge=1, description="processor time for decoding an uploaded picture")
    decode_memory_bytes: int = Field(
        default=512 << 20, ge=1 << 27, description="address space of the process that decodes an uploaded picture"
    )
    # webhooks
    webhook_secret: WebhookSecrets | None = Field(
        default=None,
        description="signs webhooks: whsec_ and the base64 of 24 to 64 random bytes; several, separated by commas, "
        "while receivers change from one to the next; none: no webhooks",
    )
    webhook_networks: Networks = Field(
        default=(), description="networks allowed for webhooks in addition to public addresses, such as 10.0.0.0/8"
    )
    webhooks_per_caller: int = Field(
        default=8, ge=1, le=32, description="webhooks of one caller's jobs that a service sends at once, of 32 in all"
    )
    # callers
    allow_anonymous: bool = Field(
        default=False, description="serve callers beyond loopback without keys too, as long as no key was ever made"
    )
    quota_posts: int | None = Field(
        default=None,
        ge=1,
        description="jobs and files that a caller of role user may post a minute, also to /v1/requests/from-image; "
        "none: no quota",
    )
    quota_device_seconds: int | None = Field(
        default=None,
        ge=1,
        description="estimated device seconds of the jobs that a caller may post in a minute; none: no quota",
    )
    quota_queued_seconds: int | None = Field(
        default=None,
        ge=1,
        description="estimated device seconds that all queued jobs of a caller may take together; none: no quota",
    )
    quota_files_bytes: int = Field(
        default=1 << 30,
        ge=1,
        description="bytes of all uploaded pictures of a caller of role user together; more are refused",
    )
    api_key: SecretStr | None = Field(default=None, description="key with which adm's own commands call the service")
    # logs
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe line logged"
    )
    log_format: Literal["auto", "json", "pretty"] = Field(
        default="auto", description="auto: pretty on a terminal, else JSON"
    )
