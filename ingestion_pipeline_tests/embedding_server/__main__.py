"""The server by hand, until Ctrl+C."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ingestion_pipeline_tests.embedding_server import real_models
from ingestion_pipeline_tests.embedding_server.app import EmbeddingServer
from ingestion_pipeline_tests.embedding_server.behaviour import Behaviour, Fault
from ingestion_pipeline_tests.embedding_server.running import ANNOUNCEMENT, Uvicorn, listening

_OPTIONS: dict[str, tuple[type, str]] = {
    "latency": (float, "seconds that a request is at work"),
    "parallelism": (int, "requests at work at once; others wait"),
    "requests_per_minute": (int, "quota"),
    "tokens_per_minute": (int, "quota"),
    "burst_seconds": (float, "seconds of a quota that can be saved up (60)"),
    "fault": (str, "one of those below"),
    "fault_probability": (float, "share of requests that it befalls, from 0 to 1"),
    "fault_times": (int, "so often, then never again"),
    "fault_after": (int, "so many requests are spared first"),
    "fault_text": (str, "only requests with this in one of their texts"),
    "retry_after": (float, "seconds that a 429 or 503 asks for (1)"),
    "redirect_to": (str, "where a redirect leads"),
    "key": (str, "the only key that is let in"),
}


def _parser() -> argparse.ArgumentParser:
    faults = "\n".join(f"  {fault:<20}{fault.explanation}" for fault in Fault)
    models = "\n".join(f"  {model}" for model in Behaviour().dimensions)
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}",
        description="A server that speaks OpenAI's embeddings API, for tests and by hand.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=(
            f"models:\n{models}\n\nfaults:\n{faults}\n\n"
            "While it runs: GET /control and POST /control (any of the fields, as JSON) for its\n"
            "behaviour, GET /counters and POST /counters/reset for what it has served."
        ),
    )
    parser.add_argument("--port", type=int, default=8080, help="0: a free one (8080)")
    parser.add_argument(
        "--model",
        choices=("deterministic", "real"),
        default="deterministic",
        help="vectors from a digest of the text, or from the project's local models",
    )
    for name, (kind, explanation) in _OPTIONS.items():
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            help=explanation,
            choices=[fault.value for fault in Fault] if name == "fault" else None,
            metavar="NAME" if name == "fault" else None,
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until told to stop."""
    parser = _parser()
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in _OPTIONS}
    behaviour = Behaviour()
    behaviour.change({name: value for name, value in given.items() if value is not None})
    engines = real_models.load(_say) if options.model == "real" else {}
    try:
        bound, base_url = listening(options.port)
    except OSError as error:
        parser.error(f"port {options.port} cannot be had ({error.strerror}): name another, or 0")
    with bound:
        bound.listen()
        _say(ANNOUNCEMENT + base_url)
        Uvicorn(EmbeddingServer(behaviour, engines)).run([bound])


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
