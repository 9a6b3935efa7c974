"""A raw TCP connection to the service, for clients that keep to no rule of HTTP."""

import json
import socket
from http.client import HTTPResponse

GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


class RawConnection:
    """One connection; its answers are read as they are."""

    def __init__(self, address: str, source: str = "127.0.0.1") -> None:
        host, port = address.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=300, source_address=(source, 0))

    def send(self, data: bytes) -> None:
        """Send what is taken: the service may have ended the connection meanwhile."""
        try:
            self.socket.sendall(data)
        except OSError:
            return

    def rest(self) -> bytes:
        """All that the service sends until it ends the connection."""
        received = b""
        try:
            while piece := self.socket.recv(1 << 20):
                received += piece
        except ConnectionResetError:
            pass
        return received

    def status(self) -> int:
        """The status of the next answer, which is read to its end."""
        with HTTPResponse(self.socket) as response:
            response.begin()
            response.read()
            return response.status

    def error(self) -> tuple[int, dict[str, object]]:
        """The problem that ends the connection."""
        head, _, body = self.rest().partition(b"\r\n\r\n")
        assert b"application/problem+json" in head
        assert b"x-request-id: " in head
        content = json.loads(body)
        assert content["status"] == int(head.split()[1])
        return content["status"], content
