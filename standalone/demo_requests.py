"""The requests of the demo: one per class, with different scales, step counts and samplers."""

from collections.abc import Mapping
from typing import Any

FIRST_SEED = 2021  # the year of the paper; fixed, so that two runs on one machine show the same images
OF_DEFAULT_SCALE = (1.0, 0.5, 0.75, 1.25, 1.5)
STEPS = (25, 50, 20, 40, 30)


def demo_requests(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One request per class of a model, given in the form of `/v1/models`.

    Samplers and scales take turns; their numbers, four and five, have no common factor, so that the first twenty
    requests all differ. The default sampler keeps its default eta.
    """
    samplers, defaults = model["samplers"], model["defaults"]
    requests = []
    for i, each in enumerate(model["classes"]):
        sampler, steps = samplers[i % len(samplers)], STEPS[i % len(STEPS)]
        scale = defaults["guidance_scale"] * OF_DEFAULT_SCALE[i % len(OF_DEFAULT_SCALE)]
        requests.append(
            {
                "model": model["id"],
                "class_label": each["name"],
                "guidance_scale": scale,
                "steps": steps,
                "sampler": sampler,
                "eta": defaults["eta"] if sampler == defaults["sampler"] else 0.0,
                "seed": FIRST_SEED + i,
            }
        )
    return requests
