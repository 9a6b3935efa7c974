# Two images from one file: `web` runs `adm service` without torch, `worker` runs `adm worker` on a CPU or a GPU.
#
# pip's own variables (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL) pass through as build arguments: a CPU wheel found there
# satisfies the pin torch==2.13.0 and makes the worker's image several times smaller.

FROM python:3.11-slim AS base
ARG PIP_FIND_LINKS
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# A fixed id, so that service and worker own the files of a shared volume as the same user.
RUN useradd --create-home --uid 10001 adm && mkdir /data && chown adm:adm /data
WORKDIR /app
COPY pyproject.toml requirements.lock ./
ENV ADM_DATA=/data ADM_LOG_FORMAT=json PYTHONPATH=/app/client

# The lock is a constraints file here: an image installs its part of it, at the very same versions. An editable install
# is a path entry to /app, so the code can come in a later layer and a change of it installs nothing again.
FROM base AS web
RUN pip install --constraint requirements.lock --editable ".[otel]"
COPY bulk bulk
COPY cli cli
COPY client client
COPY files files
COPY jobs jobs
COPY models models
COPY pictures pictures
COPY runfolder runfolder
COPY service service
COPY tracing tracing
COPY vocabulary vocabulary
USER adm
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["adm", "service"]

# The slim image has no C compiler; this stage has one, and only its output goes into the worker's image.
FROM python:3.11 AS norms
WORKDIR /app
COPY pyproject.toml requirements.lock ./
RUN pip install --constraint requirements.lock setuptools
COPY models models
RUN python -c "import setuptools; setuptools.setup()" build_ext --inplace

FROM base AS worker
RUN pip install --constraint requirements.lock --editable ".[compute,otel]"
COPY bulk bulk
COPY cli cli
COPY client client
COPY files files
COPY jobs jobs
COPY models models
COPY --from=norms /app/models/networks/*.so models/networks/
COPY pictures pictures
COPY datasets datasets
COPY diffusion diffusion
COPY engine engine
COPY tracing tracing
COPY vocabulary vocabulary
COPY worker worker
COPY weights weights
USER adm
HEALTHCHECK --interval=15s --timeout=8s --start-period=120s CMD ["python", "-m", "worker.probe"]
CMD ["adm", "worker"]
