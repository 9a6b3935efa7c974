"""Diffusion processes of grey images, whose channels are equal: predictions are averaged over the channels.

If x_0 is grey, the channels of x_t differ only by noise. So their mean has all information about x_0, and averaging a
prediction over the channels only removes errors: those that differ between channels, which would tint the image.
"""

from torch import Tensor


def channel_mean(x: Tensor) -> Tensor:
    """Replace each channel by the mean over the channels: [N, C, H, W], like x."""
    first, *others = x.unbind(1)
    for each in others:  # summed in the same order for every batch size, so that no image depends on its neighbours
        first = first + each
    return (first / x.shape[1])[:, None].expand_as(x)


def grey_eps(eps: Tensor, x_t: Tensor, noise_deviation: Tensor) -> Tensor:
    """Return the noise prediction that gives the channel mean of the pred_x0 that eps gives.

    Shapes: eps, x_t and the result [N, C, H, W]; noise_deviation, sqrt(1 - alpha_bar), broadcasts over them.
    """
    return channel_mean(eps) + (x_t - channel_mean(x_t)) / noise_deviation
