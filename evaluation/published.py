"""Published scores for comparison in reports; only those whose source was read."""

from dataclasses import dataclass

README = "guided-diffusion, README.md"
EVALUATIONS = "guided-diffusion, evaluations/README.md"
TABLE_5 = "Dhariwal and Nichol 2021, Table 5, as others quote it"
DIT = "Peebles and Xie 2023, Table 2, as others quote it"
LDM = "Rombach et al. 2022, Table 10, as others quote it"


@dataclass(frozen=True)
class Published:
    """Scores of 50,000 images in Inception's features; None if the source has none."""

    dataset: str
    model: str
    fid: float
    sfid: float | None
    inception_score: float | None
    precision: float | None
    recall: float | None
    source: str


PUBLISHED = (
    Published("ImageNet 64", "ADM", 2.07, None, None, 0.74, 0.63, README),
    Published("ImageNet 128", "BigGAN-deep", 6.02, None, None, 0.86, 0.35, TABLE_5),
    Published("ImageNet 128", "ADM-G", 2.97, None, None, 0.78, 0.59, README),
    Published("ImageNet 256", "BigGAN-deep", 6.95, 7.36, 171.4, 0.87, 0.28, DIT),
    Published("ImageNet 256", "SR3", 11.30, None, None, None, None, LDM),
    Published("ImageNet 256", "ADM", 10.94, None, 100.98, 0.69, 0.63, LDM),
    Published("ImageNet 256", "ADM-G", 4.59, None, 186.7, 0.82, 0.52, LDM),
    Published("ImageNet 256", "ADM-G, ADM-U", 3.94, 6.14, 215.84, 0.83, 0.53, EVALUATIONS),
    Published("ImageNet 512", "BigGAN-deep", 8.43, None, None, 0.88, 0.29, TABLE_5),
    Published("ImageNet 512", "ADM-G", 7.72, None, None, 0.87, 0.42, README),
    Published("ImageNet 512", "ADM-G, ADM-U", 3.85, None, 221.72, 0.84, 0.53, README),
    Published("LSUN bedroom", "ADM (dropout)", 1.90, None, None, 0.66, 0.51, README),
    Published("LSUN cat", "ADM (dropout)", 5.57, None, None, 0.63, 0.52, README),
    Published("LSUN horse", "ADM (dropout)", 2.57, None, None, 0.71, 0.55, README),
)
