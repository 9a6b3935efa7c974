"""What a job may do, and which fields of a request belong to each kind."""

from typing import Literal, get_args

Kind = Literal["generate", "upsample", "variation", "reconstruct", "interpolate", "score"]
KINDS: tuple[Kind, ...] = get_args(Kind)

COMMON = frozenset({"kind", "model", "priority", "expires_in", "user", "metadata", "webhook_url"})
GUIDANCE = frozenset({"class_label", "class_weights", "guidance_scale", "guidance_interval", "guidance_schedule"})
SAMPLING = frozenset({"steps", "sampler", "eta", "time_grid", "thresholding", "eps_scale"})
DRAWING = frozenset({"seed", "upsample", "previews"})
# An encoding runs along DDIM's own path, eta 0, and so has no use for a bound that changes from step to step.
FIELDS: dict[Kind, frozenset[str]] = {
    "generate": GUIDANCE | SAMPLING | DRAWING | {"n", "first_index"},
    "upsample": DRAWING
    | {"images", "class_label", "first_index"},  # the label where the upsampler is class conditional
    "variation": GUIDANCE | SAMPLING | DRAWING | {"images", "n", "strength", "first_index"},
    "reconstruct": GUIDANCE | SAMPLING - {"thresholding"} | {"images", "previews"},
    "interpolate": GUIDANCE | SAMPLING | DRAWING | {"images", "seeds", "n"},
    "score": frozenset({"images"}),
}
