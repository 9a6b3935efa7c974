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


def centred_features(reference: Tensor, sample: Tensor, least: int, metric: str) -> tuple[Tensor, Tensor]:
    """Return both sets as exact_features, less the mean of the reference: where features lie changes no distance.

    Raises: ValueError as exact_features, and where the two have features of other sizes.
    """
    reference, sample = (exact_features(each, least, metric) for each in (reference, sample))
    if reference.shape[1] != sample.shape[1]:
        sizes = f"{reference.shape[1]} and {sample.shape[1]}"
        raise ValueError(f"the sets have features of {sizes} dimensions; they must be alike")
    centre = reference.mean(dim=0)
    return reference - centre, sample - centre
