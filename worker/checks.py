"""Checks for `adm doctor` that need torch: device, arithmetic, compiler, weights. Nothing is loaded."""

import os

import torch

from engine.compiling import NoCompilerError, find_command, first_line_of_version
from engine.loading import choose, find_plans
from jobs.contract.errors import SettingsError
from jobs.settings import Settings
from models.checkpoints.network_file import WeightsError
from models.networks import native_norm
from models.networks.precision import has_fast_bf16
from models.stack_plan import StackPlan, check_fit
from vocabulary.counts import counted
from vocabulary.doctor_finding import Finding
from worker.assembling import choose_precision
from worker.error_texts import error_text
from worker.loading import choose_device


def check_machine(settings: Settings) -> list[Finding]:
    """Check the device that the settings choose, its precision, the C++ compiler and the compiled norms."""
    try:
        device = choose_device(settings.device)
    except SettingsError as error:
        return [Finding("device", "fault", str(error))]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{counted(os.cpu_count() or 1, 'core')}"
    return [
        Finding("device", "ok", f"{device}, {name}"),
        check_precision(settings, device),
        check_compiler(settings, device),
        check_norms(device),
    ]


def check_precision(settings: Settings, device: torch.device) -> Finding:
    """Check whether the device is fast at the precision that a worker would use."""
    precision = choose_precision(settings.precision, device)
    if precision == "bf16" and device.type == "cpu" and not has_fast_bf16():
        text = "bf16 is emulated by this CPU, tens of times slower than fp32: set ADM_PRECISION to auto or fp32"
        return Finding("precision", "warning", text)
    why = "bf16 in hardware" if device.type == "cuda" or has_fast_bf16() else "no bf16 in hardware"
    return Finding("precision", "ok", f"{precision}, as ADM_PRECISION={settings.precision} chooses here ({why})")


def check_compiler(settings: Settings, device: torch.device) -> Finding:
    """Check whether networks can be compiled where ADM_COMPILE demands it."""
    if device.type != "cpu":
        if settings.compile == "yes":
            text = "ADM_COMPILE: networks are compiled on a CPU only; set it to auto"
            return Finding("compiler", "fault", text)
        return Finding("compiler", "ok", "not needed: networks are compiled on a CPU only")
    try:
        return Finding("compiler", "ok", first_line_of_version(find_command()))
    except NoCompilerError as error:
        if settings.compile == "yes":
            text = f"ADM_COMPILE: {error}; install one (apt-get install g++ python3-dev), or set it to auto"
            return Finding("compiler", "fault", text)
        return Finding("compiler", "ok", f"{error}; networks run without")


def check_norms(device: torch.device) -> Finding:
    """Check whether the installation has compiled the norms of a CPU's networks."""
    if device.type != "cpu":
        return Finding("norms", "ok", "not needed: on a GPU they are Triton's")
    if native_norm.library() is None:
        text = "not compiled, so steps take longer: install a C compiler (apt-get install gcc) and reinstall adm-serve"
        return Finding("norms", "warning", text)
    return Finding("norms", "ok", "compiled when adm-serve was installed")


def check_weights(settings: Settings) -> list[Finding]:
    """Read the manifest and the files' headers of every stack, then check whether the requested pipelines exist.

    A worker skips a stack that cannot be read, unless ADM_PIPELINES or ADM_DEFAULT_MODEL needs it.
    """
    weights = settings.weights.absolute()
    plans, damaged = find_plans(weights)
    unfit = {name: error for plan in plans if (error := misfit(plan)) for name in plan.pipelines}
    broken = damaged | unfit
    asked = settings.pipelines
    if "pipelines" not in settings.model_fields_set and settings.default_model not in broken:
        asked = tuple(name for name in asked if name not in broken) or asked
    findings = [
        Finding("weights", "fault" if name in asked else "warning", f"pipeline {name}: {error}; repair its files")
        for name, error in broken.items()
    ]
    try:
        chosen = choose([name for name in asked if name not in broken], weights)
    except WeightsError as error:
        return [*findings, Finding("weights", "fault", error_text(error))]
    for plan in chosen:
        contents = f"{counted(len(plan.files), 'network')}, pipelines {', '.join(plan.pipelines)}"
        findings.append(Finding("weights", "ok", f"{plan.base.path.parent}: {contents}"))
    if settings.default_model not in asked:
        text = (
            f"ADM_DEFAULT_MODEL: requests that name no pipeline get {settings.default_model!r}, which is not among "
            f"ADM_PIPELINES ({', '.join(asked)}): set it to one of them"
        )
        findings.append(Finding("weights", "warning", text))
    return findings


def misfit(plan: StackPlan) -> WeightsError | None:
    """Return why a stack's networks do not fit each other; None if they do."""
    try:
        check_fit(plan)
    except WeightsError as error:
        return error
    return None
