"""Feature sets as the metrics take them."""

from torch import Tensor


def exact_features(features: Tensor, least: int, metric: str) -> Tensor:
    """Return features [N, ...] flattened to [N, D], float64.

    Raises: ValueError, one line, for fewer samples than the metric needs, and for a sample that is not finite.
    """
    if len(features) < least:
        raise ValueError(f"{metric}: {len(features)} samples are too few; there must be {least} or more")
    exact = features.flatten(1).double()
    if len(wrong := (~exact.isfinite().all(dim=1)).nonzero()):
        raise ValueError(f"{metric}: sample {int(wrong[0])} of {len(exact)} has NaN or infinity in its features")
    return exact
