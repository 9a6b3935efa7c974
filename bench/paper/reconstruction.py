"""Row 12: DDIM encodes images to latents and reconstructs them. Measured by bench.reconstruction, drawn here."""

from bench import reconstruction
from bench.paper.core import Lab
from bench.paper.row import Points, Row, of
from evaluation.plots import Point, Series, chart

IMAGES = 6  # fewer than a cell has, because each takes 550 evaluations


def measure(lab: Lab) -> Points:
    return reconstruction.measure(lab.subject, IMAGES, lab.precision)


def checks(points: Points) -> dict[str, bool]:
    plain = of(points, guidance_scale=0.0)
    errors = [each["mean_absolute"] for each in plain]
    return {
        "the error falls with every doubling of the steps": errors == sorted(errors, reverse=True),
        "at the most steps it is below 3 of 255": errors[-1] < 3,
    }


def charts(points: Points) -> dict[str, str]:
    series = [
        Series(
            f"scale {scale:g}",
            [Point(each["steps"], each["mean_absolute"]) for each in of(points, guidance_scale=scale)],
        )
        for scale in sorted({each["guidance_scale"] for each in points})
    ]
    title = "error of images through their latents"
    return {"error": chart(title, "steps each way", "mean error, of 255", series, log_x=True, log_y=True)}


RECONSTRUCTION = Row(
    12,
    "reconstruction",
    "DDIM reconstructs and interpolates real images.",
    "Appendix F, as pictures.",
    measure,
    checks,
    charts,
)
