"""Cases of losses, bits per dimension, timestep samplers, EMA and the training loop."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.losses import LossType, discretized_gaussian_log_likelihood, normal_kl, training_losses
from diffusion.process import DiffusionProcess
from diffusion.resample import LossSecondMomentSampler, UniformSampler, importance
from diffusion.schedule import Schedule
from tests.diffusion.bits_per_dim import bits_per_dim
from tests.golden_runner.analytic import check_seen, read_network, read_process
from tests.golden_runner.case import Case, CaseError
from tests.golden_runner.steps import linear_logits
from training.ema import move
from training.objectives import cross_entropy, top_k_hits
from training.optimisation import learning_rate, parts
from training.sections import Optimiser


def losses(case: Case) -> dict[str, Tensor]:
    method = case.config.take("method")
    if method is not None:
        if method not in METHODS:
            raise CaseError(f"unknown method {method!r}")
        return METHODS[method](case)
    for marker, answer in MARKERS.items():
        if marker in case.config or marker in case.inputs or (marker in case.body and marker == "cases"):
            return answer(case)
    raise CaseError("unknown loss case: it has neither a method nor a marking field")


def _training_losses(case: Case) -> dict[str, Tensor]:
    config, inputs = case.config, case.inputs
    process, loss_type = read_process(config), LossType[config.need("loss_type")]
    x0, t, noise = inputs["x_start"], inputs["t"], inputs["noise"]
    x_t = process.q_sample(x0, t, noise)
    if config.take("model_calls", 1) != 1:
        raise CaseError("the loss calls the network once")
    timesteps = process.network_timesteps[t]
    if "model_output" in inputs:
        config.take("grad")
        output = inputs["model_output"].requires_grad_()
    else:
        check_seen(config, "model", timesteps)
        output = read_network(config, process)(x_t, timesteps, inputs.get("y"))
    terms = training_losses(process, loss_type, output, x0, x_t, t, noise)
    got = terms.named()
    if output.requires_grad:
        (got["grad"],) = torch.autograd.grad(terms.loss.sum(), output)
    return got


def _bits_per_dim(case: Case) -> dict[str, Tensor]:
    config, inputs = case.config, case.inputs
    process = read_process(config)
    network = read_network(config, process)
    result = bits_per_dim(
        process,
        lambda x_t, timesteps: network(x_t, timesteps, inputs.get("y")),
        inputs["x_start"],
        lambda k: inputs["noise"][k],
        clip_denoised=config.take("clip_denoised", True),
    )
    return {
        "total_bpd": result.total,
        "prior_bpd": result.prior,
        "vb": result.vb,
        "xstart_mse": result.x0_mse,
        "mse": result.eps_mse,
    }


def _log_likelihood(case: Case) -> dict[str, Tensor]:
    case.config.take("dtype")
    inputs = case.inputs
    return {"log_prob": discretized_gaussian_log_likelihood(inputs["x"], inputs["means"], inputs["log_scales"])}


def _normal_kl(case: Case) -> dict[str, Tensor]:
    mean1, logvar1 = case.inputs["mean1"], case.inputs["logvar1"]
    mean2, logvar2 = case.inputs["mean2"], case.inputs["logvar2"]
    zero = torch.zeros(())
    return {
        "kl": normal_kl(mean1, logvar1, mean2, logvar2),
        "kl_scalar": normal_kl(mean1, logvar1, zero, zero),
        "kl_scalar_first": normal_kl(torch.tensor(0.3), torch.tensor(-1.2), mean2, logvar2),
    }


def _second_moment(case: Case) -> dict[str, Tensor]:
    config, inputs = case.config, case.inputs
    sampler = LossSecondMomentSampler(
        config.need("num_timesteps"), config.need("history_per_term"), config.need("uniform_prob")
    )
    weights, start = [], 0
    for mark in inputs["marks"].tolist():
        sampler.update(inputs["t"][start:mark], inputs["loss"][start:mark])
        weights.append(sampler.weights())
        start = mark
    return {
        "weights": torch.stack(weights),
        "importance": torch.stack([importance(each) for each in weights]),
        "history": sampler.history,
        "counts": sampler.counts,
    }


def _uniform(case: Case) -> dict[str, Tensor]:
    weights = UniformSampler(case.config.need("num_timesteps")).weights()
    return {"weights": weights, "importance": importance(weights)[: len(case.expected["importance"])]}


def _ema(case: Case) -> dict[str, Tensor]:
    got: dict[str, Tensor] = {}
    for rate in case.config.need("rates"):
        average, history = {name: rows[0].clone() for name, rows in case.inputs.items()}, []
        for step in range(1, len(next(iter(case.inputs.values())))):
            move(average, {name: rows[step] for name, rows in case.inputs.items()}, rate)
            history.append({name: value.clone() for name, value in average.items()})
        got |= {f"ema_{rate}/{name}": torch.stack([each[name] for each in history]) for name in case.inputs}
    return got


def _classifier_step(case: Case) -> dict[str, Tensor]:
    config, inputs = case.config, case.inputs
    process = DiffusionProcess(Schedule.named(config.need("schedule"), config.need("steps")))
    weight, bias = nn.Parameter(inputs["W"]), nn.Parameter(inputs["b"])
    x_t = process.q_sample(inputs["x_start"], inputs["t"], inputs["noise"])
    losses, logits = [], []
    for part in parts(len(x_t), config.need("microbatch")):
        predicted = linear_logits(x_t[part], inputs["t"][part], weight, bias)
        computed = cross_entropy(predicted, inputs["labels"][part])
        (computed.total.sum() / len(x_t)).backward()
        losses.append(computed.total.detach())
        logits.append(predicted.detach())
    assert weight.grad is not None
    assert bias.grad is not None
    return {
        "x_t": x_t,
        "loss": torch.cat(losses),
        "logits": torch.cat(logits),
        "grad_W": weight.grad,
        "grad_b": bias.grad,
    }


def _classifier_logits(case: Case) -> dict[str, Tensor]:
    logits, labels = case.inputs["logits"], case.inputs["labels"]
    loss = F.cross_entropy(logits, labels, reduction="none")
    hits = {f"acc{k}": top_k_hits(logits, labels, k) for k in case.config.need("k")}
    return hits | {"loss": loss, "mean_loss": loss.mean()}


def _lr_anneal(case: Case) -> dict[str, Tensor]:
    tolerance = case.body.take("atol")
    rules = {"diffusion_loop": _annealed_diffusion_rate, "classifier": _annealed_classifier_rate}
    for entry in case.body.take("cases"):
        base, total, resume = (entry.pop(key) for key in ("base_lr", "total", "resume_step"))
        for name, rates in entry.items():
            if name not in rules:
                raise CaseError(f"unknown annealing {name!r}")
            got = [rules[name](base, step, resume, total) for step in range(len(rates))]
            if max(abs(a - b) for a, b in zip(got, rates, strict=True)) > tolerance:
                raise CaseError(f"{name}: got {got}, expected {rates}")
    return {}


def _annealed_classifier_rate(base: float, step: int, resumed_at: int, total: int) -> float:
    """Our rate, whose steps count from the run's begin, where the official loop counts from its last start."""
    decay_share = 1.0 if total else 0.0
    settings = Optimiser(steps=total or 1, batch_size=1, learning_rate=base, decay_share=decay_share)
    return learning_rate(settings, step + resumed_at)


def _annealed_diffusion_rate(base: float, step: int, resumed_at: int, total: int) -> float:
    """The official diffusion loop anneals after a step: our rate of the step before, and twice that of the first."""
    return _annealed_classifier_rate(base, step - 1, resumed_at, total) if step else base


def _accumulate(micro_losses: Callable[[slice], Any], weights: Tensor, microbatch: int) -> dict[str, Tensor]:
    """The official diffusion loop's gradient: the sum of the microbatches' means, which grows with their number.

    AdamW takes the same step for a gradient of any size.
    """
    terms = []
    for part in parts(len(weights), microbatch):
        computed = micro_losses(part)
        (computed.loss * weights[part]).mean().backward()
        terms.append({name: value.detach() for name, value in computed.named().items()})
    return {name: torch.cat([each[name] for each in terms]) for name in terms[0]}


class _LinearNetwork(nn.Module):
    """out = W x + b + u t / 1000 + emb[y], as config.model of the training cases says."""

    def __init__(self, init: dict[str, Tensor]) -> None:
        super().__init__()
        self.W, self.b, self.u, self.emb = (
            nn.Parameter(init[f"init/{name}"].clone()) for name in ("W", "b", "u", "emb")
        )

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor) -> Tensor:
        shift = self.b + self.u * (timesteps.to(x.dtype) / 1000)[:, None] + self.emb[y]
        return torch.einsum("oc,bchw->bohw", self.W, x) + shift[:, :, None, None]


def _train_loop(case: Case) -> dict[str, Tensor]:
    config, inputs = case.config, case.inputs
    process, loss_type = read_process(config), LossType[config.need("loss_type")]
    config.take("batch_size"), config.take("model"), config.take("optimizer")
    total, base_lr, microbatch = config.need("lr_anneal_steps"), config.need("lr"), config.need("microbatch")
    network = _LinearNetwork(inputs)
    optimizer = torch.optim.AdamW(network.parameters(), lr=base_lr, weight_decay=config.need("weight_decay"))
    averages = {
        rate: {name: value.clone() for name, value in network.state_dict().items()}
        for rate in config.need("ema_rate").split(",")
    }
    timesteps = process.network_timesteps
    recorded: dict[str, list[Tensor]] = {}
    for step, stated in enumerate(config.need("lr_per_step")):
        rate = _annealed_diffusion_rate(base_lr, step, 0, total)
        if abs(rate - stated) > 1e-12:
            raise CaseError(f"step {step}: learning rate {rate}, expected {stated}")
        optimizer.param_groups[0]["lr"] = rate
        x0, t, y, noise = (inputs[name][step] for name in ("x_start", "t", "y", "noise"))

        def micro_losses(part: slice, x0: Tensor = x0, t: Tensor = t, y: Tensor = y, noise: Tensor = noise) -> Any:
            x_t = process.q_sample(x0[part], t[part], noise[part])
            output = network(x_t, timesteps[t[part]], y[part])
            return training_losses(process, loss_type, output, x0[part], x_t, t[part], noise[part])

        optimizer.zero_grad()
        terms = _accumulate(micro_losses, inputs["weights"][step], microbatch)
        optimizer.step()
        for name, average in averages.items():
            move(average, network.state_dict(), float(name))
        row = {f"param/{name}": value for name, value in network.state_dict().items()}
        row |= {f"ema_{rate}/{name}": value for rate, average in averages.items() for name, value in average.items()}
        for name, value in (row | {f"terms/{name}": value for name, value in terms.items()}).items():
            recorded.setdefault(name, []).append(value.detach().clone())
    return {name: torch.stack(values) for name, values in recorded.items()}


METHODS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "training_losses": _training_losses,
    "calc_bpd_loop": _bits_per_dim,
    "discretized_gaussian_log_likelihood": _log_likelihood,
    "normal_kl": _normal_kl,
}
MARKERS: dict[str, Callable[[Case], dict[str, Tensor]]] = {  # cases without a method, by a field that only they have
    "lr_per_step": _train_loop,
    "rates": _ema,
    "history_per_term": _second_moment,
    "num_timesteps": _uniform,
    "W": _classifier_step,
    "logits": _classifier_logits,
    "cases": _lr_anneal,
}
