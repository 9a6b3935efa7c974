"""What the demo asks for: a job per class, no two alike in scale, step count and sampler."""

from collections.abc import Mapping
from typing import Any

FIRST_SEED = 2021  # the year of the paper; fixed, so that two runs on one machine show the same images
SCALES = (1.0, 2.0, 4.0, 0.5, 3.0)
STEPS = (25, 50, 20, 40, 30)


def demo_requests(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One request per class of a model as `/v1/models` describes it.

    Samplers and scales take turns side by side; their numbers, four and five, have no common factor, so that the first
    twenty requests all differ.
    """
    samplers = model["samplers"]
    requests = []
    for i, each in enumerate(model["classes"]):
        sampler, scale, steps = samplers[i % len(samplers)], SCALES[i % len(SCALES)], STEPS[i % len(STEPS)]
        requests.append(
            {
                "model": model["id"],
                "class_label": each["name"],
                "guidance_scale": scale,
                "steps": steps,
                "sampler": sampler,
                "seed": FIRST_SEED + i,
            }
        )
    return requests
