"""Reports as self-contained pages: styles, pictures and charts are inside, and every name is escaped."""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from html import escape
from typing import Any

from PIL import Image
from torch import Tensor

from evaluation.plots import Point, Series, chart
from evaluation.published import PUBLISHED, Published
from evaluation.report import TITLES
from evaluation.sweeps import front, plots, value
from vocabulary.counts import counted

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #1f2328; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #d1d9e0; }
table { border-collapse: collapse; margin: .5rem 0; font-size: 14px; }
td, th { padding: .2rem .7rem; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: #f6f8fa; }
th { border-bottom: 1px solid #d1d9e0; } tr.best { background: #dafbe1; }
img { image-rendering: pixelated; }
figure { display: inline-block; margin: .2rem; text-align: center; font-size: 12px; }
pre { background: #f6f8fa; padding: .7rem; overflow-x: auto; font-size: 13px; } .note { color: #9a6700; }
.wide { overflow-x: auto; }
"""
SHOWN_PX = 64  # width of a picture on the page, twice the demo's


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document; the parts are HTML."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def html_table(head: Sequence[str], rows: Iterable[Sequence[object]], best: Sequence[int] = ()) -> str:
    """A table of escaped cells; the rows at the indices `best` are highlighted."""
    heads = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = []
    for place, row in enumerate(rows):
        cells = "".join(f"<td>{escape(shown(each))}</td>" for each in row)
        body.append(f'<tr class="best">{cells}</tr>' if place in best else f"<tr>{cells}</tr>")
    return f'<div class="wide"><table><tr>{heads}</tr>\n{"".join(body)}</table></div>'


def shown(value: object) -> str:
    """A value as text: floats with four decimals, "" for None."""
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def picture(pixels: Tensor, caption: str = "") -> str:
    """A picture [3, H, W], uint8, as an inline image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    source = base64.b64encode(buffer.getvalue()).decode()
    image = f'<img src="data:image/png;base64,{source}" width="{SHOWN_PX}" height="{SHOWN_PX}" alt="{escape(caption)}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>" if caption else image


def json_block(content: Mapping[str, Any]) -> str:
    """Settings as formatted JSON."""
    return f"<pre>{escape(json.dumps(content, indent=1, sort_keys=True))}</pre>"


def figures_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The metrics with their intervals."""
    rows = [
        (TITLES[name], each["value"], each["low"], each["high"], each.get("bias")) for name, each in metrics.items()
    ]
    return html_table(("", "value", "95 % from", "to", "bias, about"), rows)


def published_table() -> str:
    """Published rows, with their sources."""
    names = [each.name.replace("_", " ") for each in fields(Published)]
    note = "These were measured on other data, in Inception's features: they show only the order of magnitude."
    return f"<p>{note}</p>" + html_table(names, map(astuple, PUBLISHED))


def growth_chart(growth: Sequence[Sequence[float]], extrapolated: float) -> str:
    """FID against 1 / images, and the end of the extrapolated line."""
    measured = Series("measured", [Point(1 / count, fid, label=f"{count} images: {fid:.4g}") for count, fid in growth])
    end = Series("extrapolated", [Point(0.0, extrapolated, label=f"{extrapolated:.4g}")])
    return chart("FID by the number of samples", "1 / images", "FID", [measured, end])


def origin(report: Mapping[str, Any]) -> str:
    """The machine and versions that computed the figures."""
    return json_block({name: report[name] for name in ("extractor", "machine", "versions", "commit")})


def sweep_page(report: Mapping[str, Any]) -> str:
    """The page of a sweep."""
    cells = report["cells"]
    names = [name for name in TITLES if all(name in cell["metrics"] for cell in cells)]
    best = front(cells, value("fid"), lambda cell: float(cell["evaluations"]))
    rows = [
        (
            f"{cell['sampler']}, {counted(cell['steps'], 'step')}, scale {cell['scale']:g}",
            *(cell["evaluations"], cell["seconds_per_image"]),
            *(cell["metrics"][name]["value"] for name in names),
        )
        for cell in cells
    ]
    drawn = (
        f"<p>{counted(report['images'], 'image')} per setting, of the same classes from the same noise "
        f"(seed {report['seed']}), against {escape(str(report['reference']['source']))}. "
        f"Numerics {escape(report['numerics'])}.</p>"
    )
    recommended = [(purpose, json.dumps(each)) for purpose, each in report["recommended"].items()]
    return page(
        f"Sweep of {report['pipeline']}",
        [
            drawn,
            *plots(cells),
            "<h2>Recommended settings</h2>",
            html_table(("for", "fields of the pipeline in stack.json"), recommended),
            "<h2>All settings</h2><p>Green: no other has a lower FID for as few evaluations.</p>",
            html_table(("setting", "evaluations", "s / image", *(TITLES[name] for name in names)), rows, best),
            f"<h2>Published</h2>{published_table()}",
            f"<h2>Computed by</h2>{origin(report)}",
        ],
    )
