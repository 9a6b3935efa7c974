"""Writes measured settings to a stack's stack.json, its card and measured.json."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evaluation.tuning import Figures, Tuned
from files.atomic import atomic_write
from models.stack_plan import MANIFEST, read_stack
from vocabulary.counts import counted

MEASURED, CARD = "measured.json", "card.md"


def write_tuning(folder: Path, tuned: Mapping[str, Tuned], found: Figures) -> None:
    """Make measured settings the defaults of a stack's pipelines; each file is replaced atomically.

    Raises: WeightsError if the stack cannot be read with them; OSError.
    """
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    for name, each in tuned.items():
        pipeline = manifest["pipelines"][name]
        pipeline |= {"eps_scale": each.eps_scale, "guidance_scale": each.guidance_scale}
        pipeline["sampling"] |= {"sampler": each.sampler, "eta": each.eta}
    _replace(folder / MEASURED, json.dumps(found, indent=1) + "\n")
    before = (folder / CARD).read_text() if (folder / CARD).exists() else ""
    _replace(folder / CARD, before + "\n".join(card_lines(tuned, found)) + "\n")
    _replace(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    read_stack(folder)


def card_lines(tuned: Mapping[str, Tuned], found: Figures) -> Iterator[str]:
    """Markdown lines on what was measured and what was not."""
    yield "## What was measured"
    yield ""
    yield (
        f"{counted(found['images'], 'image')} of {counted(found['steps'], 'step')} for each setting, "
        f"all of seed {found['seeds']['tuned']}; "
        f"the figures of this table are of seed {found['seeds']['reported']}. `{MEASURED}` has all of them."
    )
    yield ""
    yield "| pipeline | eps_scale | guidance scale | sampler | judge agrees (95 % interval) | KID x 1000 | sharpness |"
    yield "|---|---|---|---|---|---|---|"
    for name, each in tuned.items():
        figures = found["reported"][name]
        agrees = "not measured"
        if "agreement" in figures:
            low, high = figures["agreement_95"]
            agrees = f"{100 * figures['agreement']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        distance = figures.get("kid", "not measured")
        settings = f"{each.eps_scale:g}", f"{each.guidance_scale:g}", each.sampler_text
        yield f"| {' | '.join(map(str, (name, *settings, agrees, distance, figures['sharpness'])))} |"
    yield ""
    if (reference := found["reference"]) is not None:
        yield f"Real images to compare with: {reference['images']}; sharpness {reference['sharpness']}."
    check = found["self_check"]
    yield f"Self-check: at pure noise the prediction agrees with the noise by {check['noise_agreement']}."
    yield f"Doubts about the weights: {'; '.join(check['doubts']) or 'none'}."
    yield from (f"Not measured: {each}." for each in found["not_measured"])


def _replace(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
