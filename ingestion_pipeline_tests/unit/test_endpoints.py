"""Which addresses an embedding API may be talked to at, over real connections on this machine."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpcore2
import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion_pipeline.embedding.checked_connections import http_client
from ingestion_pipeline.endpoints import (
    Endpoint,
    check_reachable_addresses,
    parsed,
    refusal,
)
from ingestion_pipeline.errors import EmbeddingServiceError, SettingsError

TIMEOUT = httpx2.Timeout(5.0)
SECRET = "hunter2"

# How one metadata service may be written, by address. Names are below.
METADATA_SPELLINGS = [
    "169.254.169.254",
    "169.254.169.254.",
    "2852039166",  # decimal
    "0xa9fea9fe",
    "0xA9FEA9FE",
    "025177524776",  # octal
    "0251.0376.0251.0376",
    "0xa9.0xfe.0xa9.0xfe",
    "0xa9.254.0251.254",
    "169.16689662",  # short
    "169.254.43518",
    "169.254.0xa9fe",
    "0000251.254.169.254",
    "１６９.２５４.１６９.２５４",
    "169。254。169。254",
    "①⑥⑨.②⑤④.①⑥⑨.②⑤④",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[0:0:0:0:0:ffff:a9fe:a9fe]",
    "[::FFFF:A9FE:A9FE]",
    "[::169.254.169.254]",  # IPv4-compatible
    "[::ffff:0:169.254.169.254]",  # IPv4-translated
    "[64:ff9b::169.254.169.254]",  # NAT64
    "[64:ff9b:1::169.254.169.254]",  # NAT64 of one's own
    "[2002:a9fe:a9fe::1]",  # 6to4
    "[2001:0:a9fe:a9fe::1]",  # Teredo
    "[fe80::a9fe:a9fe]",  # OpenStack
    "[fd00:ec2::254]",  # AWS
    "[fd00:0ec2:0:0:0:0:0:254]",
    "[fd20:ce::254]",  # Google Cloud
    "[fd00:42::42]",  # Scaleway
    "169.254.170.2",  # ECS
    "100.100.100.200",  # Alibaba Cloud
    "168.63.129.16",  # Azure
    "192.0.0.192",  # Oracle Cloud
]


@dataclass
class Seen:
    """What a server was asked for."""

    port: int
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    answer: tuple[int, dict[str, str]] = (200, {})

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@contextmanager
def serving() -> Iterator[Seen]:
    """A server on this machine that answers all requests alike."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.requests.append((self.path, self.headers.get("Authorization")))
            status, headers = seen.answer
            self.send_response(status)
            for name, value in {"Content-Length": "2", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"ok")

        do_POST = do_GET  # noqa: N815 - a name of the library

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        seen = Seen(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Seen]:
    with serving() as seen:
        yield seen


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    return Resolver(monkeypatch)


class Resolver:
    """Answers for names; what is an address already is left to the machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def says(self, name: str, *answers: list[str]) -> None:
        """The addresses of `name` at the first question, the second and so on; then the last."""
        self.answers[name] = list(answers)

    def _getaddrinfo(self, host: str, port: int, *given: int, **named: int) -> list[object]:
        if host not in self.answers:
            try:
                ipaddress.ip_address(host)
            except ValueError:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
            return list(self._real(host, port, *given, **named))
        self.asked.append(host)
        answers = self.answers[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            place for address in addresses for place in self._real(address, port, *given, **named)
        ]


def client(base_url: str, *, private_network: bool = False) -> httpx2.Client:
    return http_client(
        parsed(base_url),
        private_network=private_network,
        timeout=TIMEOUT,
        limits=httpx2.Limits(max_connections=2),
    )


# Reading base_url


@pytest.mark.parametrize(
    ("given", "base_url", "host"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1", "api.openai.com"),
        ("HTTPS://API.OpenAI.com:443/v1//", "https://api.openai.com/v1", "api.openai.com"),
        ("https://api.openai.com./v1", "https://api.openai.com/v1", "api.openai.com"),
        ("http://localhost:11434/v1/", "http://localhost:11434/v1", "localhost"),
        ("http://text_embeddings:80", "http://text_embeddings", "text_embeddings"),
        ("https://bücher.example/V1", "https://xn--bcher-kva.example/V1", "xn--bcher-kva.example"),
        ("https://straße.example", "https://xn--strae-oqa.example", "xn--strae-oqa.example"),
        ("http://[0:0::1]:8080/v1", "http://[::1]:8080/v1", "::1"),
        ("http://0x7f.1:8080", "http://127.0.0.1:8080", "127.0.0.1"),
        ("https://host:/v1", "https://host/v1", "host"),
    ],
)
def test_a_base_url_has_one_spelling(given: str, base_url: str, host: str) -> None:
    endpoint = parsed(given)
    assert endpoint == Endpoint(base_url, host)
    assert parsed(endpoint.base_url) == endpoint
    assert endpoint.is_https == base_url.startswith("https:")


@pytest.mark.parametrize(
    ("base_url", "port"),
    [("https://a", 443), ("http://a", 80), ("https://a:80", 80), ("http://[::1]:8080/v1", 8080)],
)
def test_an_endpoint_knows_its_port(base_url: str, port: int) -> None:
    assert parsed(base_url).port == port


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "api.openai.com/v1",
        "ftp://api.openai.com",
        "file:///etc/passwd",
        "unix:///run/embeddings.sock",
        "https:api.openai.com",
        "https://",
        "https:///v1",
        "https://:443/v1",
        "https://.",
        "https://a..b",
        "https://-a",
        "https://a/v1?api-version=1",
        "https://a/v1#top",
        "https://a/v1?",
        "https://a:0",
        "https://a:65536",
        "https://a:99999999999",
        "https://a:-1",
        "https://a:+80",
        "https://a:８０",
        "https://a:b",
        "https://a:80:80",
        "https://[::1",
        "https://::1",
        "https://[::1]x",
        "https://[127.0.0.1]",
        "https://[fe80::1%25eth0]",
        "https://[v1.x]",
        "https://%31%36%39.254.169.254",
        "https://a b",
        " https://a",
        "https://a\n",
        "https://a\t.b",
        "https://a\\@b",
        "https://169.254.169.254\u200b",
        "http://256.1.1.1",
        "http://1.2.3.4.5",
        "http://0x1ffffffff",
        "http://4294967296",
        "https://" + "a" * 64,
        "https://" + "a." * 127 + "aa",
    ],
)
def test_what_is_no_plain_address_of_an_api_is_refused(base_url: str) -> None:
    with pytest.raises(SettingsError, match=r"^base_url "):
        parsed(base_url)


@pytest.mark.parametrize(
    "base_url",
    [
        f"https://user:{SECRET}@api.openai.com/v1",
        f"https://{SECRET}@api.openai.com/v1",
        f"https://user:pa/{SECRET}@api.openai.com/v1",
        f"https://user:{SECRET}?@api.openai.com/v1",
        f"https://user:{SECRET}＠api.openai.com/v1",
        f"https://user:{SECRET}%40api.openai.com/v1",
        f"https://user:{SECRET}\\@api.openai.com/v1",
        f"https://user:{SECRET}",
        f"ftp://user:{SECRET}@api.openai.com/v1",
        f"user:{SECRET}@api.openai.com",
        f"https://api.openai.com/v1?key={SECRET}",
        f"https://api.openai.com/v1#{SECRET}",
        f"https://[{SECRET}]/v1",
    ],
)
def test_user_info_and_keys_in_a_base_url_are_refused_and_not_repeated(base_url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parsed(base_url)
    error: BaseException | None = caught.value
    while error is not None:
        shown = error.__cause__ is not None or not error.__suppress_context__
        assert SECRET not in str(error)
        error = (error.__cause__ or error.__context__) if shown else None


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    for base_url in (text, f"https://{text}", f"http://[{text}]", f"https://a:{text}"):
        try:
            endpoint = parsed(base_url)
        except SettingsError:
            continue
        assert parsed(endpoint.base_url) == endpoint
        assert httpx2.URL(endpoint.base_url).raw_host.decode() == endpoint.host


# Judging addresses


@pytest.mark.parametrize("private_network", [False, True])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("spelling", METADATA_SPELLINGS)
def test_a_metadata_service_is_refused_however_it_is_written(
    spelling: str, scheme: str, *, private_network: bool
) -> None:
    base_url = f"{scheme}://{spelling}/v1"
    with pytest.raises(SettingsError, match="never talked to"):
        check_reachable_addresses(parsed(base_url), private_network=private_network)
    with (
        client(base_url, private_network=private_network) as http,
        pytest.raises(SettingsError, match="never talked to"),
    ):
        http.get(parsed(base_url).base_url)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("metadata.google.internal", "169.254.169.254"),
        ("metadata.google.internal", "fd20:ce::254"),
        ("instance-data.ec2.internal", "fd00:ec2::254"),
        ("169.254.169.254.nip.io", "169.254.169.254"),
        ("metadata", "fe80::a9fe:a9fe"),
        ("innocent.example", "::ffff:169.254.169.254"),
        ("innocent.example", "0.0.0.0"),  # noqa: S104 - refused
    ],
)
def test_a_name_of_a_metadata_service_is_refused_by_its_address(
    name: str, address: str, resolver: Resolver
) -> None:
    resolver.says(name, [address])
    for written in (name, name.upper(), f"{name}."):
        base_url = f"https://{written}/v1"
        with pytest.raises(SettingsError, match=f"^base_url names {name}, at "):
            check_reachable_addresses(parsed(base_url), private_network=True)
        with client(base_url, private_network=True) as http, pytest.raises(SettingsError):
            http.get(base_url)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104 - refused
        "0.1.2.3",
        "::",
        "224.0.0.1",
        "ff02::1",
        "::ffff:224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "2001:db8::1",
        "3fff::1",
        "fec0::1",
        "100::1",
        "4000::1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::10.0.0.1",
        "fe80::1%eth0",
    ],
)
def test_an_address_of_no_server_is_never_talked_to(address: str) -> None:
    reason = refusal(ipaddress.ip_address(address), private_network=True, encrypted=True)
    assert reason is not None
    assert "never talked to" in reason


PRIVATE = ["10.0.0.5", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "fd12::1"]
PUBLIC = ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1", "64:ff9b::8.8.8.8"]
LOOPBACK = ["127.0.0.1", "127.255.0.1", "::1", "::ffff:127.0.0.1"]


@pytest.mark.parametrize("address", [*PRIVATE, "::ffff:10.0.0.5"])
@pytest.mark.parametrize("encrypted", [False, True])
def test_a_private_address_is_for_the_settings_to_allow(address: str, *, encrypted: bool) -> None:
    number = ipaddress.ip_address(address)
    reason = refusal(number, private_network=False, encrypted=encrypted)
    assert reason is not None
    assert "private_network = true" in reason
    assert refusal(number, private_network=True, encrypted=encrypted) is None


@pytest.mark.parametrize("address", LOOPBACK)
@pytest.mark.parametrize("private_network", [False, True])
def test_loopback_is_always_allowed(address: str, *, private_network: bool) -> None:
    number = ipaddress.ip_address(address)
    assert refusal(number, private_network=private_network, encrypted=False) is None


@pytest.mark.parametrize("address", PUBLIC)
@pytest.mark.parametrize("private_network", [False, True])
def test_a_public_address_is_talked_to_over_https_alone(
    address: str, *, private_network: bool
) -> None:
    number = ipaddress.ip_address(address)
    assert refusal(number, private_network=private_network, encrypted=True) is None
    reason = refusal(number, private_network=private_network, encrypted=False)
    assert reason is not None
    assert "https://" in reason


@given(st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address))
def test_no_address_that_the_registries_keep_back_is_taken_for_a_public_one(
    address: ipaddress.IPv4Address,
) -> None:
    if refusal(address, private_network=False, encrypted=True) is None:
        assert address.is_global or address.is_loopback


def test_one_bad_address_condemns_a_name_with_good_ones(resolver: Resolver) -> None:
    resolver.says("mixed.example", ["8.8.8.8", "169.254.169.254"])
    with pytest.raises(SettingsError, match=r"mixed\.example, at 169\.254\.169\.254"):
        check_reachable_addresses(parsed("https://mixed.example"), private_network=False)


def test_a_name_without_an_address_is_an_outage_ahead(resolver: Resolver) -> None:
    with pytest.raises(EmbeddingServiceError, match=r"nowhere\.example.*Name or service not known"):
        check_reachable_addresses(parsed("https://nowhere.example"), private_network=False)
    assert resolver.asked == []


def test_a_key_over_plain_http_stays_on_this_machine_or_network(resolver: Resolver) -> None:
    resolver.says("api.example", ["8.8.8.8"])
    with pytest.raises(SettingsError, match="https://"):
        check_reachable_addresses(parsed("http://api.example/v1"), private_network=True)
    with (
        client("http://api.example/v1", private_network=True) as http,
        pytest.raises(SettingsError, match="https://"),
    ):
        http.get("http://api.example/v1")


# Connecting


def test_a_server_on_this_machine_is_reached(server: Seen) -> None:
    with client(server.base_url) as http:
        answer = http.post(f"{server.base_url}/embeddings", headers={"Authorization": "Bearer k"})
    assert (answer.status_code, answer.text) == (200, "ok")
    assert server.requests == [("/v1/embeddings", "Bearer k")]


def test_connections_are_kept_for_the_next_request(server: Seen, resolver: Resolver) -> None:
    resolver.says("embeddings.example", ["127.0.0.1"])
    base_url = f"http://embeddings.example:{server.port}"
    with client(base_url) as http:
        for _ in range(5):
            assert http.get(base_url).status_code == 200
    assert resolver.asked == ["embeddings.example"]


def test_the_first_address_that_answers_is_taken(server: Seen, resolver: Resolver) -> None:
    resolver.says("embeddings.example", ["127.0.0.2", "::1", "127.0.0.1"])
    base_url = f"http://embeddings.example:{server.port}"
    with client(base_url) as http:
        assert http.get(base_url).status_code == 200


def test_the_connection_is_made_to_the_address_that_was_judged(
    server: Seen, resolver: Resolver
) -> None:
    """DNS rebinding: whoever asks a second time is sent elsewhere."""
    resolver.says("rebinding.example", ["127.0.0.1"], ["169.254.169.254"])
    base_url = f"http://rebinding.example:{server.port}"
    with client(base_url) as http:
        assert http.get(base_url).status_code == 200
    assert resolver.asked == ["rebinding.example"]


def test_a_name_that_was_good_at_preflight_is_judged_again_at_each_connection(
    server: Seen, resolver: Resolver
) -> None:
    resolver.says("rebinding.example", ["127.0.0.1"], ["127.0.0.1"], ["169.254.169.254"])
    base_url = f"http://rebinding.example:{server.port}"
    check_reachable_addresses(parsed(base_url), private_network=False)
    server.answer = (200, {"Connection": "close"})
    with client(base_url) as http:
        assert http.get(base_url).status_code == 200
        with pytest.raises(SettingsError, match=r"169\.254\.169\.254"):
            http.get(base_url)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status: int, server: Seen) -> None:
    with serving() as other, client(server.base_url) as http:
        server.answer = (status, {"Location": f"{other.base_url}/embeddings"})
        answer = http.post(
            f"{server.base_url}/embeddings", headers={"Authorization": f"Bearer {SECRET}"}
        )
        assert answer.status_code == status
        assert len(server.requests) == 1
        assert other.requests == []


def test_the_key_goes_to_no_other_host_even_if_a_redirect_is_followed_by_hand(
    server: Seen,
) -> None:
    with serving() as other, client(server.base_url) as http:
        server.answer = (307, {"Location": f"{other.base_url}/embeddings"})
        with pytest.raises(SettingsError, match="nothing is sent to"):
            http.post(
                f"{server.base_url}/embeddings",
                headers={"Authorization": f"Bearer {SECRET}"},
                follow_redirects=True,
            )
        assert other.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/v1",  # another port
        "https://127.0.0.1:{port}/v1",
        "http://localhost:{port}/v1",
        "http://[::ffff:127.0.0.1]:{port}/v1",
    ],
)
def test_a_request_to_another_host_port_or_scheme_is_not_sent(url: str, server: Seen) -> None:
    with client(server.base_url) as http, pytest.raises(SettingsError, match="nothing is sent"):
        http.get(url.format(port=server.port))
    assert server.requests == []


def test_proxies_and_passwords_of_the_environment_are_not_used(
    server: Seen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        netrc = tmp_path / "netrc"
        netrc.write_text(f"machine 127.0.0.1 login user password {SECRET}\n", encoding="utf-8")
        monkeypatch.setenv("NETRC", str(netrc))
        with client(server.base_url) as http:
            http.get(server.base_url)
        assert proxy.requests == []
    assert server.requests == [("/v1", None)]


def test_tls_verifies_the_name_and_not_the_address(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts: list[ssl.SSLContext] = []

    class Pool(httpcore2.ConnectionPool):
        def __init__(self, *, ssl_context: ssl.SSLContext, **given: object) -> None:
            contexts.append(ssl_context)
            super().__init__(ssl_context=ssl_context, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(httpcore2, "ConnectionPool", Pool)
    resolver.says("embeddings.example", ["127.0.0.1"])
    greeting = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            connection, _ = listener.accept()
            with connection:
                greeting.extend(connection.recv(65_536))

        thread = threading.Thread(target=listen)
        thread.start()
        base_url = f"https://embeddings.example:{listener.getsockname()[1]}"
        with client(base_url) as http, pytest.raises(httpx2.ConnectError):
            http.get(base_url)
        thread.join()
    assert b"embeddings.example" in greeting
    assert b"127.0.0.1" not in greeting
    [context] = contexts
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_failures_come_as_the_exceptions_of_the_http_library(
    resolver: Resolver,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def cut(times: int) -> None:
            for _ in range(times):
                connection, _ = listener.accept()
                connection.recv(65_536)
                connection.close()

        thread = threading.Thread(target=cut, args=(1,))
        thread.start()
        with client(f"http://127.0.0.1:{port}") as http:
            with pytest.raises(httpx2.RemoteProtocolError):
                http.get(f"http://127.0.0.1:{port}")
            thread.join()
            with pytest.raises(httpx2.ReadTimeout):
                http.get(f"http://127.0.0.1:{port}", timeout=0.05)
    with client(f"http://127.0.0.1:{port}") as http, pytest.raises(httpx2.ConnectError):
        http.get(f"http://127.0.0.1:{port}")
    with (
        client("http://nowhere.example") as http,
        pytest.raises(httpx2.ConnectError, match=r"nowhere\.example has no address"),
    ):
        http.get("http://nowhere.example")
    assert resolver.asked == []


def test_a_body_that_is_cut_comes_as_an_exception_of_the_http_library(server: Seen) -> None:
    server.answer = (200, {"Content-Length": "100", "Connection": "close"})
    with client(server.base_url) as http, pytest.raises(httpx2.RemoteProtocolError):
        http.get(server.base_url)


def test_a_refused_address_passes_through_the_openai_client_as_it_is(
    resolver: Resolver,
) -> None:
    resolver.says("innocent.example", ["169.254.169.254"])
    base_url = "http://innocent.example/v1"
    with client(base_url) as http:
        api = openai.OpenAI(api_key=SECRET, base_url=base_url, http_client=http, max_retries=0)
        with pytest.raises(SettingsError, match=r"169\.254\.169\.254") as caught:
            api.embeddings.create(input=["text"], model="model", encoding_format="float")
    assert SECRET not in str(caught.value)


def test_the_openai_client_follows_no_redirect_either(server: Seen) -> None:
    with serving() as other, client(server.base_url) as http:
        server.answer = (307, {"Location": f"{other.base_url}/embeddings"})
        api = openai.OpenAI(
            api_key=SECRET, base_url=server.base_url, http_client=http, max_retries=0
        )
        with pytest.raises(openai.APIStatusError):
            api.embeddings.create(input=["text"], model="model", encoding_format="float")
        assert server.requests == [("/v1/embeddings", f"Bearer {SECRET}")]
        assert other.requests == []


def test_the_http_library_is_imported_only_by_who_makes_a_client() -> None:
    script = (
        "import sys\n"
        "from ingestion_pipeline import endpoints, prices, providers\n"
        "endpoints.parsed('https://api.openai.com/v1')\n"
        "heavy = {'httpx2', 'httpcore2', 'openai', 'genai_prices', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
