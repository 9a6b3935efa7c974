"""A reference case on disk, and the comparison that decides it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

# Fields that describe how a case was made; nothing is computed from them.
NOTES = {
    "what",
    "kind",
    "fp32_vs_fp64_max_abs",
    "out_std",
    "dtype",
    "param_storage",
    "param_count",
    "seed",
    "torch",
}


class CaseError(Exception):
    """A case that the runner cannot read: an unknown kind, field, method or output."""


class Fields:
    """A JSON object that remembers which of its fields were read, so that none is overlooked."""

    def __init__(self, values: dict[str, Any], name: str) -> None:
        self._values, self._name = values, name
        self._unread = set(values)

    def take(self, key: str, default: Any = None) -> Any:
        self._unread.discard(key)
        return self._values.get(key, default)

    def need(self, key: str) -> Any:
        if key not in self._values:
            raise CaseError(f"{self._name} lacks the field {key!r}")
        return self.take(key)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def finish(self) -> None:
        if self._unread:
            raise CaseError(f"unknown field of {self._name}: {', '.join(sorted(self._unread))}")


@dataclass
class Case:
    """Everything of one case. `inputs`, `params` and `expected` are without their in/, param/ and out/ prefixes."""

    path: Path
    kind: str
    body: Fields
    config: Fields
    inputs: dict[str, Tensor] = field(default_factory=dict)
    params: dict[str, Tensor] = field(default_factory=dict)
    expected: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Case":
        body = json.loads(path.read_text())
        if not isinstance(body, dict):
            raise CaseError("the case is not a JSON object")
        tensors_path = path.with_suffix(".safetensors")
        tensors = load_file(tensors_path) if tensors_path.exists() else {}
        groups: dict[str, dict[str, Tensor]] = {"in": {}, "param": {}, "out": {}}
        for name, tensor in tensors.items():
            prefix, _, rest = name.partition("/")
            if prefix not in groups:
                raise CaseError(f"unknown tensor {name!r}")
            groups[prefix][rest] = tensor
        kind = body.get("kind") or path.parent.name
        fields = Fields({key: value for key, value in body.items() if key not in NOTES}, "the case")
        config = Fields(fields.take("config") or {}, "config")
        params = {name: tensor.float() for name, tensor in groups["param"].items()}  # stored as float16, exactly
        return cls(path, kind, fields, config, groups["in"], params, groups["out"])

    def finish(self) -> None:
        """Fail on any field that nobody read."""
        self.config.finish()
        self.body.finish()


def compare(case: Case, got: dict[str, Tensor]) -> list[str]:
    """The differences, one line an output; outputs that are missing or not expected count too.

    Where X_exact stands beside X, meeting either within its own tolerance is enough.
    """
    if not case.expected and not got:
        if "cases" in case.body:
            return []  # a case all in JSON, which its kind has decided already
        raise CaseError("nothing to compare: it has no expected values; is its .safetensors missing?")
    atol, rtol, per_sample = (case.body.take(key, {}) for key in ("atol", "rtol", "atol_per_sample"))
    plain = {name for name in case.expected if not name.endswith("_exact")}
    failures = [f"{name}: not answered" for name in sorted(plain - set(got))]
    failures += [f"{name}: answered but not in the case" for name in sorted(set(got) - plain)]
    unused = {key.removeprefix("out/") for table in (atol, rtol, per_sample) for key in table} - set(case.expected)
    failures += [f"{name}: has a tolerance but no value" for name in sorted(unused)]
    for name in sorted(plain & set(got)):
        candidates = [name] + ([f"{name}_exact"] if f"{name}_exact" in case.expected else [])
        excesses = []
        for candidate in candidates:
            key = f"out/{candidate}"
            if key not in atol:
                raise CaseError(f"no tolerance for {key}")
            excesses.append(
                excess(got[name], case.expected[candidate], atol[key], rtol.get(key, 0.0), per_sample.get(key))
            )
        if all(text is not None for text in excesses):
            failures.append(f"{name}: {excesses[0]}")
    return failures


def excess(got: Tensor, want: Tensor, atol: float, rtol: float, per_sample: list[float] | None) -> str | None:
    """The difference of got from want, None if there is none. NaN equals only NaN."""
    if got.shape != want.shape:
        return f"shape {list(got.shape)}, expected {list(want.shape)}"
    if want.numel() == 0:
        return None
    a, b = got.detach().to(torch.float64), want.to(torch.float64)
    bound = atol + rtol * b.abs()
    if per_sample is not None:
        rows = torch.tensor(per_sample, dtype=torch.float64).reshape(-1, *[1] * (b.dim() - 1))
        bound = torch.minimum(bound, rows + rtol * b.abs())
    met = ((a - b).abs() <= bound) | (a == b) | (a.isnan() & b.isnan())
    if bool(met.all()):
        return None
    worst = (a - b).abs()[~met].max().item()
    return f"{int((~met).sum())} of {met.numel()} values miss, worst by {worst:.3g} (tolerance {atol:.3g})"
