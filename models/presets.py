"""Plain data about the shipped networks; imports no torch, so that the service may read it."""

SHAPE_NAMES = (
    "sphere",
    "cube",
    "cylinder",
    "cone",
    "torus",
    "pyramid",
    "capsule",
    "octahedron",
    "prism",
    "star",
)
"""Classes of the demo stack, in the order of their labels; `prism` is hexagonal."""
