"""The program that decodes one picture of a stranger's, from standard input to standard output, within limits.

    python -s -m pictures.child MAX_UPLOAD_PIXELS SHORT_SIDE_PX CPU_SECONDS MEMORY_BYTES

It answers with one line of JSON, then the PNG. It may read and write no file and is killed by the system when its
processor time is used up.
"""

import json
import resource
import sys

from pictures.decoding import PictureError
from pictures.reduction import normalise


def main() -> None:
    """Decode what the arguments say. A picture that is refused is an answer; status 0 means that there is one."""
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
