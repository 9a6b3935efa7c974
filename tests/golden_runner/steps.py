"""Cases of one step: predictions, guidance in both algorithms, and the sampler's step through its table."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.guidance import (
    classifier_log_probabilities,
    guidance_gradient,
    one_hot,
)
from diffusion.process import DiffusionProcess, Prediction
from diffusion.tables import SamplerTable, ddim_table, ddpm_table, reverse_ddim_table, take_step
from tests.diffusion.conversions import eps_from_x0, q_mean_variance
from tests.diffusion.plain_guidance import guide_mean, guide_score
from tests.golden_runner.analytic import check_seen, read_gradient, read_network, read_process, read_thresholding
from tests.golden_runner.case import Case, CaseError
from vocabulary.sampling import Thresholding


def single_step(case: Case) -> dict[str, Tensor]:
    method = case.config.need("method")
    if method not in METHODS:
        raise CaseError(f"unknown method {method!r}")
    return METHODS[method](case)


def _predict(case: Case) -> tuple[DiffusionProcess, Prediction, Tensor | None]:
    config, x, t, y = case.config, case.inputs["x"], case.inputs["t"], case.inputs.get("y")
    process = read_process(config)
    config.take("class_spaced")  # a process without respacing maps every index to itself
    timesteps = process.network_timesteps[t]
    check_seen(config, "model", timesteps)
    denoised_fns: dict[str | None, Callable[[Tensor], Tensor] | None] = {None: None, "0.5*x": lambda x0: 0.5 * x0}
    denoised_fn = config.take("denoised_fn")
    if denoised_fn not in denoised_fns:
        raise CaseError(f"unknown denoised_fn {denoised_fn!r}")
    output = read_network(config, process)(x, timesteps, y)
    predicted = process.predict(
        output, x, t, clip_denoised=config.take("clip_denoised", True), denoised_fn=denoised_fns[denoised_fn]
    )
    gradient = read_gradient(config)
    if gradient is not None:
        check_seen(config, "grad", timesteps)
    return process, predicted, None if gradient is None else gradient(x, timesteps, y)


def _mean_variance(case: Case) -> dict[str, Tensor]:
    _, predicted, _ = _predict(case)
    return _named(predicted)


def _named(predicted: Prediction) -> dict[str, Tensor]:
    return {
        "mean": predicted.mean,
        "variance": predicted.variance,
        "log_variance": predicted.log_variance,
        "pred_xstart": predicted.pred_x0,
    }


def _condition_mean(case: Case) -> dict[str, Tensor]:
    _, predicted, guidance = _predict(case)
    assert guidance is not None
    return {
        "mean": guide_mean(predicted, guidance),
        "unguided_mean": predicted.mean,
        "variance": predicted.variance,
        "gradient": guidance,
    }


def _condition_score(case: Case) -> dict[str, Tensor]:
    process, predicted, guidance = _predict(case)
    assert guidance is not None
    guided = guide_score(process, predicted, case.inputs["x"], case.inputs["t"], guidance)
    return _named(guided) | {"unguided_pred_xstart": predicted.pred_x0}


def _sample(case: Case) -> dict[str, Tensor]:
    config, x, t, y = case.config, case.inputs["x"], case.inputs["t"], case.inputs.get("y")
    process = read_process(config)
    config.take("class_spaced")
    table, row = _table(case, process, read_thresholding(config), t)
    timesteps = table.timesteps[row]
    check_seen(config, "model", timesteps)
    output = read_network(config, process)(x, timesteps, y)
    gradient = read_gradient(config)
    if gradient is not None:
        check_seen(config, "grad", timesteps)
    guidance = None if gradient is None else gradient(x, timesteps, y)
    noise = case.inputs.get("noise", torch.zeros_like(x))
    sample, pred_x0, _ = take_step(table.rows[row], x, output, guidance, noise)
    return {"sample": sample, "pred_xstart": pred_x0}


def _table(case: Case, process: DiffusionProcess, thresholding: Thresholding, t: Tensor) -> tuple[SamplerTable, Tensor]:
    method = case.config.need("method")
    if method == "ddim_reverse_sample":
        assert case.config.take("eta", 0.0) == 0.0
        return reverse_ddim_table(process, thresholding=thresholding), t
    row = process.schedule.num_timesteps - 1 - t
    if method == "ddim_sample":
        eta = case.config.take("eta", 0.0)
        return ddim_table(process, eta, thresholding=thresholding), row
    return ddpm_table(process, thresholding=thresholding), row


def _q_sample(case: Case) -> dict[str, Tensor]:
    process, x0, t = read_process(case.config), case.inputs["x_0"], case.inputs["t"]
    mean, variance, log_variance = q_mean_variance(process, x0, t)
    return {
        "x_t": process.q_sample(x0, t, case.inputs["noise"]),
        "mean": mean,
        "variance": variance.expand_as(x0),
        "log_variance": log_variance.expand_as(x0),
    }


def _q_posterior(case: Case) -> dict[str, Tensor]:
    process, x0 = read_process(case.config), case.inputs["x_0"]
    mean, variance, log_variance = process.q_posterior(x0, case.inputs["x_t"], case.inputs["t"])
    return {"mean": mean, "variance": variance.expand_as(x0), "log_variance": log_variance.expand_as(x0)}


def _conversions(case: Case) -> dict[str, Tensor]:
    process, inputs = read_process(case.config), case.inputs
    x_t, t = inputs["x_t"], inputs["t"]
    return {
        "xstart_from_eps": process.x0_from_eps(x_t, t, inputs["noise"]),
        "eps_from_xstart": eps_from_x0(process, x_t, t, inputs["x_0"]),
        "xstart_from_xprev": process.x0_from_previous(x_t, t, inputs["noise"]),
    }


def _classifier_grad(case: Case) -> dict[str, Tensor]:
    inputs = case.inputs

    def logits(x: Tensor, t: Tensor) -> Tensor:
        return linear_logits(x, t, inputs["W"], inputs["b"])

    scale = case.config.need("classifier_scale")
    log_probabilities = classifier_log_probabilities(logits)
    x, t, at_x = inputs["x"], inputs["t"], logits(inputs["x"], inputs["t"])
    targets = one_hot(inputs["y"], at_x.shape[1])
    return {
        "grad": guidance_gradient(log_probabilities, x, t, targets, scale),
        "logits": at_x,
        "selected": (log_probabilities(x, t) * targets).sum(dim=1),
    }


def linear_logits(x: Tensor, t: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The linear classifier of the cases: flatten(x) @ W + (t / 1000) * b."""
    return x.flatten(1) @ weight + (t.to(x.dtype) / 1000)[:, None] * bias


METHODS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "p_mean_variance": _mean_variance,
    "condition_mean": _condition_mean,
    "condition_score": _condition_score,
    "p_sample": _sample,
    "ddim_sample": _sample,
    "ddim_reverse_sample": _sample,
    "q_sample": _q_sample,
    "q_posterior_mean_variance": _q_posterior,
    "conversions": _conversions,
    "classifier_grad": _classifier_grad,
}
