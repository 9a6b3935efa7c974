"""A program that decodes one untrusted picture, from standard input to standard output, within limits.

    python -s -m pictures.sandbox_program MAX_UPLOAD_PIXELS SHORT_SIDE_PX CPU_SECONDS MEMORY_BYTES

It writes one line of JSON, then the PNG. It cannot read or write files, and the system kills it when its processor
time is used up.
"""

import json
import resource
import sys

from pictures.decoding import PictureError
from pictures.reduction import normalise


def main() -> None:
    """Decode with the limits in the arguments. Status 0 means that there is an answer, which may be a refusal."""
    max_upload_pixels, short_side_px, cpu_seconds, memory_bytes = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
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
