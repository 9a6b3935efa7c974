"""Ray-marching renderer of the shapes: batched, fp32, on the CPU, with results that do not depend on the batch."""

import torch
from torch import Tensor

from datasets.scenes import Scenes, draw_scenes
from datasets.sdf import SHAPES, DistanceFunction, Shape

RENDERER_VERSION = 1  # part of every cache key; raise it whenever a pixel may change

_CAMERA_DISTANCE = 5.0
_FRAME = 1.22  # half the height of the picture at the shape's distance
_CHUNK_RAYS = 1 << 17  # rays marched together; they fit in the CPU's caches
_STEPS = 36
_DROP_DEAD = frozenset((3, 7, 12, 18, 26))  # steps after which finished rays are dropped from the arrays
_HIT = 2e-3  # a tenth of a ray's spacing at 64 px
_NEAR_HIT = 1e-2  # distance that counts as a hit after the last step, because grazing rays converge slowly


def render(class_labels: Tensor, indices: Tensor, *, seed: int, image_size: int, supersample: int = 2) -> Tensor:
    """Render image `indices[k]` of the set `seed`, showing shape `class_labels[k]`.

    Shapes: class_labels and indices [N], int64; the result [N, 3, image_size, image_size], uint8, RGB.
    The same (seed, index, label) shows the same scene at every size.
    Raises: ValueError for an unknown label or arguments of unequal length.
    """
    if class_labels.shape != indices.shape or class_labels.ndim != 1:
        raise ValueError(f"labels {tuple(class_labels.shape)} and indices {tuple(indices.shape)} must be equal [N]")
    if not ((class_labels >= 0) & (class_labels < len(SHAPES))).all():
        raise ValueError(f"class labels must be 0..{len(SHAPES) - 1}")
    scenes = draw_scenes(class_labels, indices, seed)
    images = torch.empty(len(indices), 3, image_size, image_size, dtype=torch.uint8)
    side = image_size * supersample
    for label, shape in enumerate(SHAPES):
        for chunk in (class_labels == label).nonzero()[:, 0].split(max(1, _CHUNK_RAYS // (side * side))):
            images[chunk] = _render_chunk(shape, scenes.select(chunk), image_size, supersample)
    return images


def _render_chunk(shape: Shape, scenes: Scenes, image_size: int, supersample: int) -> Tensor:
    side = image_size * supersample
    across = (torch.arange(side, dtype=torch.float32) + 0.5) * (2 / side) - 1
    v, u = (each.flatten() for each in torch.meshgrid(-across, across, indexing="ij"))  # v points up
    pixels = _backdrop(scenes, u, v)  # three [N, rays]
    ray_x, ray_y = u * (_FRAME / _CAMERA_DISTANCE), v * (_FRAME / _CAMERA_DISTANCE)
    norm = (ray_x * ray_x + ray_y * ray_y + 1).sqrt()
    world = (ray_x / norm, ray_y / norm, -1 / norm)

    # to the shape's own space: the rays are transformed, so that the distance function needs no transform
    inverse, scale = scenes.rotation.transpose(1, 2), scenes.scale[:, None]
    start = torch.stack([-scenes.centre[:, 0], -scenes.centre[:, 1], _CAMERA_DISTANCE - scenes.centre[:, 2]], dim=1)
    origin = [_dot(inverse[:, k], start)[:, None] / scale for k in range(3)]
    direction = [_dot3(inverse[:, k, None], world) for k in range(3)]

    middle = -(direction[0] * origin[0] + direction[1] * origin[1] + direction[2] * origin[2])
    square = origin[0] * origin[0] + origin[1] * origin[1] + origin[2] * origin[2]
    inside = middle * middle - square + shape.bound**2
    image, ray = (inside > 0).nonzero(as_tuple=True)
    half = inside[image, ray].sqrt()
    near, far = middle[image, ray] - half, middle[image, ray] + half
    d = [each[image, ray] for each in direction]
    o = [each[image, 0] for each in origin]
    t, hit = _march(shape.distance, o, d, near, far)

    hits = hit.nonzero()[:, 0]
    image, ray = image[hits], ray[hits]
    o, d, t = [each[hits] for each in o], [each[hits] for each in d], t[hits]
    normal = _normal(shape.distance, *(o[k] + d[k] * t for k in range(3)))
    # back to world space, which has the light
    normal = [_dot3_rows(scenes.rotation[:, k], image, normal) for k in range(3)]
    view = [-each[ray] for each in world]
    for channel, shaded in enumerate(_shade(scenes, image, normal, view)):
        pixels[channel][image, ray] = shaded
    return _quantise(torch.stack(pixels, dim=1).view(-1, 3, side, side), supersample)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    # written out: a reduction's order of summation may depend on the batch
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def _dot3(row: Tensor, vector: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return row[..., 0] * vector[0] + row[..., 1] * vector[1] + row[..., 2] * vector[2]


def _dot3_rows(rows: Tensor, image: Tensor, vector: list[Tensor]) -> Tensor:
    return rows[image, 0] * vector[0] + rows[image, 1] * vector[1] + rows[image, 2] * vector[2]


def _march(
    distance: DistanceFunction, origin: list[Tensor], direction: list[Tensor], near: Tensor, far: Tensor
) -> tuple[Tensor, Tensor]:
    """Sphere tracing of rays [R] from near to far; gives t and whether the ray hit, both [R]."""
    end_t, hit = near.clone(), torch.zeros(len(near), dtype=torch.bool)
    alive = torch.arange(len(near))
    (ox, oy, oz), (dx, dy, dz), t = origin, direction, near
    for step in range(_STEPS):
        gap = distance(ox + dx * t, oy + dy * t, oz + dz * t)
        arrived = gap < (_HIT if step < _STEPS - 1 else _NEAR_HIT)
        # a ray that has arrived stays in place, so it does not matter when it is dropped
        t = torch.where(arrived, t, t + gap)
        if step in _DROP_DEAD or step == _STEPS - 1:
            end_t[alive], hit[alive] = t, arrived
            keep = (~arrived & (t < far)).nonzero()[:, 0]
            alive, t, far = alive[keep], t[keep], far[keep]
            ox, oy, oz, dx, dy, dz = (each[keep] for each in (ox, oy, oz, dx, dy, dz))
    return end_t, hit


def _normal(distance: DistanceFunction, x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    # central differences over the corners of a tetrahedron: four evaluations instead of six
    h = 4e-3
    a, b = distance(x + h, y - h, z - h), distance(x - h, y - h, z + h)
    c, d = distance(x - h, y + h, z - h), distance(x + h, y + h, z + h)
    nx, ny, nz = a - b - c + d, c + d - a - b, b + d - a - c
    norm = (nx * nx + ny * ny + nz * nz).sqrt().clamp(min=1e-9)
    return [nx / norm, ny / norm, nz / norm]


def _backdrop(scenes: Scenes, u: Tensor, v: Tensor) -> list[Tensor]:
    along = 0.5 + 0.35 * (scenes.gradient[:, :1] * u + scenes.gradient[:, 1:] * v)
    vignette = 1 - 0.07 * (u * u + v * v)
    first, second = scenes.backdrop[:, 0], scenes.backdrop[:, 1]
    return [(first[:, k, None] + (second[:, k, None] - first[:, k, None]) * along) * vignette for k in range(3)]


def _shade(scenes: Scenes, image: Tensor, normal: list[Tensor], view: list[Tensor]) -> list[Tensor]:
    light = [scenes.light[image, k] for k in range(3)]
    key = (normal[0] * light[0] + normal[1] * light[1] + normal[2] * light[2]).clamp(min=0)
    # a weak light from the other side makes two faces that are turned away from the key light differ
    fill = (-0.8 * normal[0] * light[0].sign() - 0.3 * normal[1] + 0.52 * normal[2]).clamp(min=0)
    diffuse = 0.24 + 0.08 * normal[1] + 0.68 * key + 0.14 * fill
    half = [light[k] + view[k] for k in range(3)]
    norm = (half[0] * half[0] + half[1] * half[1] + half[2] * half[2]).sqrt()
    gloss = (normal[0] * half[0] + normal[1] * half[1] + normal[2] * half[2]).clamp(min=0) / norm
    for _ in range(5):  # gloss ** 32 by squaring: pow is not exactly rounded
        gloss = gloss * gloss
    return [scenes.colour[image, k] * diffuse + 0.3 * gloss for k in range(3)]


def _quantise(pixels: Tensor, supersample: int) -> Tensor:
    total = torch.zeros_like(pixels[:, :, ::supersample, ::supersample])
    for row in range(supersample):
        for column in range(supersample):
            total = total + pixels[:, :, row::supersample, column::supersample].clamp(0, 1)
    return (total * (255 / supersample**2) + 0.5).to(torch.uint8)
