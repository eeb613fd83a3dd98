"""Connections that are made to an endpoint's allowed addresses, and to no others.

The name is looked up once a connection, all its addresses are judged, and the connection is made to
one of these by number: a second look-up could be answered differently (DNS rebinding). Which
addresses are allowed is decided in `endpoints`.

Answers are bounded here too, in time and in size, whatever the other side sends.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore2
import httpx2

from ingestion_pipeline.endpoints import Endpoint, allowed_addresses
from ingestion_pipeline.errors import ServiceUnavailableError, SettingsError

LARGEST_ANSWER_BYTES = 128 * 2**20
"""Unpacked. The longest answer that is worth anything, 2,048 vectors of 3,072 numbers, has less."""

_SENT_AT = "sent_at"

# Both libraries name these alike.
_FAILURES = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.UnsupportedProtocol,
)


class _CheckedBackend(httpcore2.NetworkBackend):
    """Opens TCP connections to the endpoint, whatever host it is asked for."""

    def __init__(self, endpoint: Endpoint, *, private_network: bool) -> None:
        self._endpoint = endpoint
        self._private_network = private_network
        self._plain = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - the transport has seen to it that it is the endpoint's
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        try:
            addresses = allowed_addresses(self._endpoint, private_network=self._private_network)
        except OSError as error:
            raise httpcore2.ConnectError(
                f"{self._endpoint.host} has no address: {error.strerror}"
            ) from error
        for address in addresses[:-1]:
            try:
                return _TimedStream(
                    self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return _TimedStream(
            self._plain.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)
        )


class _TimedStream(httpcore2.NetworkStream):
    """A connection whose time to read is that of a whole answer.

    The library's is that of a single read: an answer that drips in would last for ever.
    """

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream
        self._is_answering = True
        self.sent_at = 0.0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._is_answering = True
        if timeout is not None:
            timeout -= time.monotonic() - self.sent_at
            if timeout <= 0:
                raise httpcore2.ReadTimeout("the answer takes too long")
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._is_answering:
            self._is_answering = False
            self.sent_at = time.monotonic()
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class CheckedTransport(httpx2.BaseTransport):
    """Carries requests to one endpoint over connections to its allowed addresses.

    TLS verifies the endpoint's name, not the address that is connected to. Raises the exceptions of
    `httpx2`, `SettingsError` for a refused address and for any other scheme, host or port, and
    `ServiceUnavailableError` for an answer of more than `LARGEST_ANSWER_BYTES`.
    """

    def __init__(self, endpoint: Endpoint, *, private_network: bool, limits: httpx2.Limits) -> None:
        self._base_url = endpoint.base_url
        self._origin = httpx2.URL(endpoint.base_url).origin
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context() if endpoint.is_https else None,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_CheckedBackend(endpoint, private_network=private_network),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request to the endpoint."""
        if request.url.origin != self._origin:
            raise SettingsError(
                f"base_url is {self._base_url}: nothing is sent to {request.url.host}, or to "
                "another port or scheme."
            )
        if not isinstance(request.stream, httpx2.SyncByteStream):
            raise TypeError("an asynchronous body in a synchronous client")
        raw = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_httpx2():
            answer = self._pool.handle_request(raw)
        # Later, the connection may carry another request.
        sent_at = getattr(answer.extensions.get("network_stream"), "sent_at", time.monotonic())
        return _BoundedResponse(
            status_code=answer.status,
            headers=answer.headers,
            stream=_Body(answer),
            extensions={**answer.extensions, _SENT_AT: sent_at},
        )

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()


class _BoundedResponse(httpx2.Response):
    """An answer of which no more is read, and unpacked, than anybody has asked for."""

    def iter_bytes(self, chunk_size: int | None = None) -> Iterator[bytes]:
        total = 0
        for piece in super().iter_bytes(chunk_size):
            total += len(piece)
            if total > LARGEST_ANSWER_BYTES:
                raise ServiceUnavailableError(
                    f"The embedding API at {self.request.url.host} answered with more than "
                    f"{LARGEST_ANSWER_BYTES // 2**20} MiB."
                )
            yield piece


class _Body(httpx2.SyncByteStream):
    """An answer's body, as it arrives."""

    def __init__(self, answer: httpcore2.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx2():
            yield from self._answer.iter_stream()

    def close(self) -> None:
        with _as_httpx2():
            self._answer.close()


@contextmanager
def _as_httpx2() -> Iterator[None]:
    """Turn the lower library's exceptions into those that clients of the upper one expect."""
    try:
        yield
    except _FAILURES as error:
        for kind in type(error).__mro__:
            twin = getattr(httpx2, kind.__name__, None)
            if isinstance(twin, type) and issubclass(twin, httpx2.TransportError):
                raise twin(str(error)) from error
        raise


def seconds_since_sent(answer: httpx2.Response) -> float:
    """Since the request began to be sent, when all waiting for a connection was over."""
    sent_at: float = answer.extensions[_SENT_AT]
    return time.monotonic() - sent_at


def http_client(
    endpoint: Endpoint,
    *,
    private_network: bool,
    timeout: httpx2.Timeout,
    limits: httpx2.Limits,
) -> httpx2.Client:
    """A client that talks to the endpoint, at addresses that are allowed, and to nobody else.

    No redirect is followed. Proxies and `.netrc` of the environment are not used: a proxy would
    look names up by itself, out of reach of the judgement. `SSL_CERT_FILE` and `SSL_CERT_DIR` are,
    since whoever serves under a certificate of his own needs them.

    The time to read, of `timeout`, is that of a whole answer.

    Its requests raise, beside the library's exceptions: `SettingsError` for an address that is
    refused, and for another host than the endpoint's.
    """
    return httpx2.Client(
        transport=CheckedTransport(endpoint, private_network=private_network, limits=limits),
        timeout=timeout,
        follow_redirects=False,
        trust_env=False,
    )
