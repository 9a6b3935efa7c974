"""Random scenes from a counter: the scene of image i of a set is a function of (seed, i, label) alone."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets.sdf import SHAPES

Floats = npt.NDArray[np.float64]

_DRAWS = 20  # uniforms a scene may use


@dataclass(frozen=True)
class Scenes:
    """N scenes; every tensor is fp32 and its first dimension is N."""

    rotation: Tensor  # [N, 3, 3], shape to world; world: x right, y up, z towards the viewer
    centre: Tensor  # [N, 3]
    scale: Tensor  # [N]
    light: Tensor  # [N, 3], unit vector towards the key light
    colour: Tensor  # [N, 3] in 0..1
    backdrop: Tensor  # [N, 2, 3]: colours at the two ends of the gradient
    gradient: Tensor  # [N, 2]: direction of the gradient in the picture, unit

    def select(self, which: Tensor) -> "Scenes":
        """The scenes at these positions (int64 [M])."""
        return Scenes(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def uniforms(seed: int, indices: npt.NDArray[np.int64]) -> Floats:
    """Counter-based uniforms in [0, 1): [N, 20], float64, from splitmix64 of (seed, index, draw)."""
    with np.errstate(over="ignore"):  # the arithmetic is meant to wrap around
        stream = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
        per_image = _mix(stream + indices.astype(np.uint64))[:, None]
        words = _mix(per_image + np.arange(1, _DRAWS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(word: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    word = word + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def draw_scenes(class_labels: Tensor, indices: Tensor, seed: int) -> Scenes:
    """Draw the scene of each (index, label); both int64 [N]."""
    u = uniforms(seed, indices.numpy()).T
    ranges = np.array([(shape.yaw, shape.tilt, shape.roll) for shape in SHAPES])[class_labels.numpy()]
    yaw, tilt, roll = (ranges[:, k, 0] + (ranges[:, k, 1] - ranges[:, k, 0]) * u[k] for k in range(3))

    # key light from above, left or right of the camera; with frontal light a cube's faces would look equal
    side = np.where(u[3] < 0.5, -1.0, 1.0) * (0.45 + 0.6 * u[4])
    height = 0.35 + 0.5 * u[5]
    light = np.stack([np.sin(side) * np.cos(height), np.sin(height), np.cos(side) * np.cos(height)], axis=1)

    hue = u[6]
    colour = _rgb(hue, 0.62 + 0.33 * u[7], 0.78 + 0.22 * u[8])
    # the backdrop is muted and has another hue, so that the outline stays visible
    other = hue + 0.25 + 0.5 * u[9]
    value = 0.25 + 0.6 * u[10]
    ends = [
        _rgb(other + 0.15 * (u[11] - 0.5), 0.05 + 0.2 * u[12], value),
        _rgb(other - 0.15 * (u[11] - 0.5), 0.05 + 0.2 * u[13], value - 0.05 - 0.15 * u[14]),
    ]
    turn = 2 * math.pi * u[15]
    centre = np.stack([0.12 * (2 * u[16] - 1), 0.12 * (2 * u[17] - 1), np.zeros_like(hue)], axis=1)
    return Scenes(
        rotation=_float(_rotation(yaw, tilt, roll)),
        centre=_float(centre),
        scale=_float(0.88 + 0.24 * u[18]),
        light=_float(light),
        colour=_float(colour),
        backdrop=_float(np.stack(ends, axis=1)),
        gradient=_float(np.stack([np.cos(turn), np.sin(turn)], axis=1)),
    )


def _float(values: Floats) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _rotation(yaw: Floats, tilt: Floats, roll: Floats) -> Floats:
    zero, one = np.zeros_like(yaw), np.ones_like(yaw)

    def matrix(*rows: tuple[Floats, Floats, Floats]) -> Floats:
        return np.stack([np.stack(row, axis=1) for row in rows], axis=1)

    c, s = np.cos(yaw), np.sin(yaw)
    about_y = matrix((c, zero, s), (zero, one, zero), (-s, zero, c))
    c, s = np.cos(tilt), np.sin(tilt)
    about_x = matrix((one, zero, zero), (zero, c, -s), (zero, s, c))
    c, s = np.cos(roll), np.sin(roll)
    about_z = matrix((c, -s, zero), (s, c, zero), (zero, zero, one))
    return about_z @ about_x @ about_y


def _rgb(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    # HSV to RGB without branches: each channel is a clipped triangle wave of the hue
    sector = hue[:, None] * 6 + np.array([0.0, 4.0, 2.0])
    wave = np.clip(np.abs(sector % 6 - 3) - 1, 0, 1)
    rgb: Floats = value[:, None] * (1 - saturation[:, None] * (1 - wave))
    return rgb
