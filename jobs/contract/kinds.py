"""The kinds of jobs, and the fields of a request that belong to each kind."""

from typing import Literal, get_args

Kind = Literal["generate", "upsample", "variation", "reconstruct", "interpolate", "score"]
KINDS: tuple[Kind, ...] = get_args(Kind)

COMMON = frozenset({"kind", "model", "priority", "expires_in", "user", "metadata", "webhook_url"})
GUIDANCE = frozenset({"class_label", "class_weights", "guidance_scale", "guidance_interval", "guidance_schedule"})
SAMPLING = frozenset({"steps", "sampler", "eta", "time_grid", "thresholding", "eps_scale"})
DRAWING = frozenset({"seed", "upsample", "previews"})
# An encoding follows DDIM's path with eta 0, so it takes no thresholding, whose bound changes from step to step.
FIELDS: dict[Kind, frozenset[str]] = {
    "generate": GUIDANCE | SAMPLING | DRAWING | {"n", "first_index"},
    "upsample": DRAWING | {"images", "class_label", "first_index"},  # the label for a class-conditional upsampler
    "variation": GUIDANCE | SAMPLING | DRAWING | {"images", "n", "strength", "first_index"},
    "reconstruct": GUIDANCE | SAMPLING - {"thresholding"} | {"images", "previews"},
    "interpolate": GUIDANCE | SAMPLING | DRAWING | {"images", "seeds", "n"},
    "score": frozenset({"images"}),
}
