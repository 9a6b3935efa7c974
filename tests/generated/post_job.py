"""Posts a job with a generated client, in the environment that generated it."""

import json
import sys

from adm_api import Client
from adm_api.api.jobs import create_job
from adm_api.models import Job, JobRequest

job = create_job.sync(
    client=Client(base_url=sys.argv[1]), body=JobRequest(class_label="torus", steps=5), prefer="wait=20"
)
assert isinstance(job, Job), job
print(json.dumps({"id": job.id, "status": job.status, "images": len(job.images)}))
