"""Measures time and memory of loading a 2 GB checkpoint, compared with reading its file: python -m bench.load.

Random weights in the shape of 256x256_diffusion are written to a temporary folder, as .pt and as .safetensors.
Each load runs in a new process, with the file in the page cache. Writes bench/results/load.json.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from models.checkpoints.network_file import blank_network, load_network
from models.checkpoints.presets import PRESETS
from models.checkpoints.provenance import recorded_hash
from models.checkpoints.verify import convert
from models.networks.unet import UNet

PRESET = PRESETS["256x256_diffusion"]
REPEATS = 3
CHUNK = 1 << 24
RESULT = Path("bench/results/load.json")


def write_random(path: Path) -> None:
    """Write random weights with the preset's keys and shapes by torch.save."""
    shapes = {key: value.shape for key, value in blank_network(PRESET.config).state_dict().items()}
    drawn = 0.02 * torch.randn(
        max(shape.numel() for shape in shapes.values()), generator=torch.Generator().manual_seed(0)
    )
    torch.save({key: drawn[: shape.numel()].reshape(shape).clone() for key, shape in shapes.items()}, path)


def read_seconds(path: Path) -> float:
    """Time to read the file into one reused buffer, the fastest plain way."""
    buffer = bytearray(CHUNK)
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - started


def read_into_memory_seconds(path: Path) -> float:
    """Time to read the file into new memory, as by a loader that does not map it."""
    started = time.perf_counter()
    path.read_bytes()
    return time.perf_counter() - started


def peak_bytes() -> int:
    """Peak resident memory of this process, including mapped files; getrusage's peak may be that of its parent."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure_load(path: Path) -> dict[str, float]:
    """Load strictly in this process, with a check of every value and the recorded hash."""
    before = peak_bytes()
    started = time.perf_counter()
    load_network(path, UNet, "cpu", PRESET.config)
    recorded_hash(path)
    return {"seconds": time.perf_counter() - started, "peak": peak_bytes() - before}


def measure_convert(source: Path, target: Path) -> dict[str, float]:
    before, started = peak_bytes(), time.perf_counter()
    convert(source, target, torch.float16, PRESET)
    return {"seconds": time.perf_counter() - started, "peak": peak_bytes() - before}


def in_process(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.load", *arguments]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def summary(path: Path) -> dict[str, float]:
    size = path.stat().st_size
    started = time.perf_counter()
    recorded_hash(path)  # hashed once, at the first load of a file that was neither fetched nor converted
    hashing = time.perf_counter() - started
    into_memory = median(read_into_memory_seconds(path) for _ in range(REPEATS))
    pairs = [(read_seconds(path), in_process("load", str(path))) for _ in range(REPEATS)]
    reading, loading = median(read for read, _ in pairs), median(load["seconds"] for _, load in pairs)
    return {
        "bytes": size,
        "read_seconds": round(reading, 3),
        "load_seconds": round(loading, 3),
        "read_into_memory_seconds": round(into_memory, 3),
        "load_over_read_into_memory": round(loading / into_memory, 3),
        "load_over_read": round(median(load["seconds"] / read for read, load in pairs), 3),
        "peak_over_size": round(max(load["peak"] for _, load in pairs) / size, 3),
        "first_hash_seconds": round(hashing, 3),
    }


def main() -> None:
    match sys.argv[1:]:
        case ["load", path]:
            print(json.dumps(measure_load(Path(path))))
        case ["convert", source, target]:
            print(json.dumps(measure_convert(Path(source), Path(target))))
        case _:
            run()


def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        official, converted = Path(folder) / PRESET.file, Path(folder) / f"{PRESET.name}.safetensors"
        write_random(official)
        half = in_process("convert", str(official), str(Path(folder) / "half.safetensors"))
        (Path(folder) / "half.safetensors").unlink()
        convert(official, converted, torch.float32, PRESET)
        result = {
            "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            "threads": torch.get_num_threads(),
            "preset": PRESET.name,
            "pt": summary(official),
            "safetensors": summary(converted),
            "convert_to_fp16": {
                "seconds": round(half["seconds"], 2),
                "peak_over_size": round(half["peak"] / official.stat().st_size, 3),
            },
        }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
