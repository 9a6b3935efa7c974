"""Client of ADM Serve: images from ADM diffusion models, over HTTP."""

from adm_client.asynchronous import AsyncClient, AsyncJob
from adm_client.blocking import Client, Job
from adm_client.errors import ClientError, DamagedError, JobFailedError, RefusedError, SettingError, UnreachableError
from adm_client.events import Event
from adm_client.fields import Axis, JobFields, Picture, UpsampleFields
from adm_client.grids import AsyncGrid, Grid
from adm_client.models import (
    File,
    GridState,
    ImageInfo,
    JobPage,
    JobState,
    Model,
    PipelineChange,
    Progress,
    Status,
    WorkerChange,
)
from adm_client.patience import Patience
from adm_client.pictures import Images

__all__ = [
    "AsyncClient",
    "AsyncGrid",
    "AsyncJob",
    "Axis",
    "Client",
    "ClientError",
    "DamagedError",
    "Event",
    "File",
    "Grid",
    "GridState",
    "ImageInfo",
    "Images",
    "Job",
    "JobFailedError",
    "JobFields",
    "JobPage",
    "JobState",
    "Model",
    "Patience",
    "Picture",
    "PipelineChange",
    "Progress",
    "RefusedError",
    "SettingError",
    "Status",
    "UnreachableError",
    "UpsampleFields",
    "WorkerChange",
]
