"""Signed distance functions of the ten shapes.

Each takes the coordinates x, y, z of points in the shape's own space (y is its axis; fp32 tensors of equal size) and
gives a distance that never exceeds the true one, so that a ray may safely march by it. Only exactly rounded operations
(+ - * / sqrt abs min max) are used: a vectorised kernel and its scalar tail then agree to the bit, and a pixel can't
depend on where in a batch it was computed. Formulas of star and capsule after Inigo Quilez, "Distance functions".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DistanceFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

_BEVEL = 0.03  # rounds sharp edges, which would alias even when supersampled


def _length(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt()


def sphere(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x * x + y * y + z * z).sqrt() - 0.82


def cube(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    half = 0.56 - _BEVEL
    dx, dy, dz = x.abs() - half, y.abs() - half, z.abs() - half
    outside = (dx.clamp(min=0) ** 2 + dy.clamp(min=0) ** 2 + dz.clamp(min=0) ** 2).sqrt()
    inside = torch.maximum(dx, torch.maximum(dy, dz)).clamp(max=0)
    return outside + inside - _BEVEL


def cylinder(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return torch.maximum(_length(x, z) - 0.5, y.abs() - 0.7)


def cone(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    # apex at y = 0.9, base of radius 0.72 at y = -0.6
    slant = math.hypot(1.5, 0.72)
    side = (1.5 / slant) * _length(x, z) + (0.72 / slant) * (y - 0.9)
    return torch.maximum(side, -0.6 - y)


def torus(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _length(_length(x, z) - 0.64, y) - 0.26


def pyramid(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    # apex at y = 0.85, square base of half edge 0.68 at y = -0.5
    slant = math.hypot(1.35, 0.68)
    side = (1.35 / slant) * torch.maximum(x.abs(), z.abs()) + (0.68 / slant) * (y - 0.85)
    return torch.maximum(side, -0.5 - y)


def capsule(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    beyond = (y.abs() - 0.6).clamp(min=0)
    return (x * x + beyond * beyond + z * z).sqrt() - 0.36


def octahedron(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x.abs() + y.abs() + z.abs() - 0.98) * (1 / math.sqrt(3))


def prism(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    # a regular hexagon is three slabs; 0.6 is its inner radius
    slanted = torch.maximum((0.5 * x + 0.75**0.5 * z).abs(), (0.5 * x - 0.75**0.5 * z).abs())
    return torch.maximum(torch.maximum(x.abs(), slanted) - 0.6, y.abs() - 0.5)


def star(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    cos36, sin36 = math.cos(math.pi / 5), math.sin(math.pi / 5)
    outer, inner = 0.98, 0.5  # inner: share of the outer radius at the notches
    # two reflections fold the five arms onto one
    px, py = x.abs(), y
    over = (cos36 * px - sin36 * py).clamp(min=0)
    px, py = px - 2 * cos36 * over, py + 2 * sin36 * over
    over = (-cos36 * px - sin36 * py).clamp(min=0)
    px, py = px + 2 * cos36 * over, py + 2 * sin36 * over
    px, py = px.abs(), py - outer
    edge_x, edge_y = inner * sin36, inner * cos36 - 1
    along = ((px * edge_x + py * edge_y) / (edge_x**2 + edge_y**2)).clamp(0, outer)
    flat = _length(px - edge_x * along, py - edge_y * along)
    flat = torch.where(py * edge_x - px * edge_y < 0, -flat, flat)
    return torch.maximum(flat, z.abs() - 0.2)


@dataclass(frozen=True)
class Shape:
    """A shape, and the poses in which a viewer can recognise it (angles in radians).

    The axis (y) starts upright. `yaw` turns about it, `tilt` leans its top towards the viewer, `roll` turns the
    picture. Each is a range drawn from uniformly.
    """

    distance: DistanceFunction
    bound: float  # radius of a sphere around the origin that contains the shape
    yaw: tuple[float, float]
    tilt: tuple[float, float]
    roll: tuple[float, float]


_ANY = (0.0, 2 * math.pi)

# In the order of the class labels (SHAPE_NAMES of the presets). The poses exclude views from below (cone, pyramid),
# edge-on (star, torus) and end-on (capsule), and show an end (cylinder, prism) or three faces (cube), because in other
# views several shapes have the same outline.
SHAPES = (
    Shape(sphere, 0.83, _ANY, (0.0, 0.5), (-0.5, 0.5)),
    Shape(cube, 1.0, (math.pi / 4 - 0.35, math.pi / 4 + 0.35), (0.45, 0.75), (-0.25, 0.25)),
    Shape(cylinder, 0.87, _ANY, (0.4, 0.75), (-0.6, 0.6)),
    Shape(cone, 0.95, _ANY, (0.25, 0.6), (-0.4, 0.4)),
    Shape(torus, 0.91, _ANY, (0.7, 1.25), (-0.7, 0.7)),
    Shape(pyramid, 1.09, (math.pi / 4 - 0.5, math.pi / 4 + 0.5), (0.3, 0.65), (-0.3, 0.3)),
    Shape(capsule, 0.97, _ANY, (-0.45, 0.45), _ANY),
    Shape(octahedron, 0.99, (0.2, 0.65), (0.2, 0.45), (-0.25, 0.25)),
    Shape(prism, 0.86, _ANY, (0.55, 0.9), (-0.4, 0.4)),
    Shape(star, 1.01, (-0.42, 0.42), (-0.42, 0.42), _ANY),
)
