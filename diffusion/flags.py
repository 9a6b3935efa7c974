"""Converts the official training flags to mean, variance and loss types."""

from diffusion.losses import LossType
from diffusion.process import MeanType, VarianceType


def select_types(
    *,
    learn_sigma: bool = False,
    sigma_small: bool = False,
    use_kl: bool = False,
    predict_xstart: bool = False,
    rescale_learned_sigmas: bool = False,
) -> tuple[MeanType, VarianceType, LossType]:
    """Return the mean, variance and loss type of a set of guided-diffusion flags. learn_sigma takes precedence over
    sigma_small, and use_kl over rescale_learned_sigmas."""
    mean_type = MeanType.START_X if predict_xstart else MeanType.EPSILON
    fixed = VarianceType.FIXED_SMALL if sigma_small else VarianceType.FIXED_LARGE
    variance_type = VarianceType.LEARNED_RANGE if learn_sigma else fixed
    mse = LossType.RESCALED_MSE if rescale_learned_sigmas else LossType.MSE
    return mean_type, variance_type, LossType.RESCALED_KL if use_kl else mse
