"""A program that decodes one untrusted picture, from standard input to standard output, within limits.

    python -s -m pictures.sandbox_program MAX_UPLOAD_PIXELS SHORT_SIDE_PX CPU_SECONDS MEMORY_BYTES

It writes one line of JSON, then the PNG. It cannot open a file, a socket or a process, and the system kills it when
its processor time is used up.
"""

import json
import resource
import sys

from PIL import Image, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin

from pictures.decoding import PictureError
from pictures.reduction import normalise

NEEDED_LATER = MpoImagePlugin, TiffImagePlugin, WebPImagePlugin  # Pillow imports these only when a picture needs them


def confine(cpu_seconds: int, memory_bytes: int) -> None:
    """Limit this process for good: its processor time and its memory, and it opens and starts nothing more."""
    Image.preinit()  # imports the decoders of PNG and JPEG, for which Pillow would open files later
    limits = {
        resource.RLIMIT_CPU: (cpu_seconds, cpu_seconds + 1),
        resource.RLIMIT_AS: (memory_bytes, memory_bytes),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_NOFILE: (3, 3),  # standard input, output and error, which are open
        resource.RLIMIT_NPROC: (0, 0),  # processes and threads; the system does not apply it to root
        # One byte is too short for a core file. With 0, Linux still pipes all memory to a handler (core(5)); at 1 it
        # does not, so a picture that exceeds its processor time costs no dump.
        resource.RLIMIT_CORE: (1, 1),
    }
    for name, limit in limits.items():
        resource.setrlimit(name, limit)


def main() -> None:
    """Decode with the limits in the arguments. Status 0 means that there is an answer, which may be a refusal."""
    max_upload_pixels, short_side_px, cpu_seconds, memory_bytes = map(int, sys.argv[1:])
    confine(cpu_seconds, memory_bytes)
    png = b""
    answer: dict[str, object]
    try:
        png, width, height = normalise(sys.stdin.buffer, max_upload_pixels, short_side_px)
        answer = {"width": width, "height": height}
    except PictureError as error:
        answer = {"refused": str(error), "limit": error.limit}
    except MemoryError:
        answer = {"refused": f"needs more than {memory_bytes} bytes of memory", "limit": "decode_memory_bytes"}
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + png)


if __name__ == "__main__":
    main()
