"""`ingest failures`: the products that could not be embedded, why, and another try."""

from __future__ import annotations

from dataclasses import asdict

from ingestion_pipeline.cli import terminal
from ingestion_pipeline.cli.environment import prepare
from ingestion_pipeline.cli.exit_codes import ExitCode
from ingestion_pipeline.database.embeddings import FailedProduct
from ingestion_pipeline.database.shop import Shop, open_shop

SHOWN = 50


def failures(*, retry: bool, as_json: bool) -> int:
    """List them, or make them stale again and run."""
    settings = prepare(report=terminal.note).settings
    with open_shop(settings) as shop:
        failed = _failed(shop)
        if retry and failed:
            shop.embeddings.retry_failed()
    if retry and failed:
        from ingestion_pipeline.cli import main_job

        return main_job.ingest(limit=None, as_json=as_json)
    if as_json:
        terminal.print_json({"failed": [asdict(failure) for failure in failed]})
        return ExitCode.OK
    if not failed:
        terminal.say("No product has failed.")
        return ExitCode.OK
    terminal.say(f"{len(failed):,} aspects could not be embedded", style="bold")
    terminal.say()
    rows = [
        (
            failure.product_id,
            failure.name or "",
            failure.aspect.value,
            failure.attempts,
            f"{failure.last_failed_at:%Y-%m-%d %H:%M}",
            failure.reason,
        )
        for failure in failed[:SHOWN]
    ]
    header = ("product", "name", "aspect", "tries", "last (UTC)", "reason")
    terminal.table(header, rows, right={0, 3})
    if len(failed) > SHOWN:
        terminal.say(f"  and {len(failed) - SHOWN:,} more; --json gives all")
    terminal.say()
    terminal.next_step("Mend what the reasons name, then `ingest failures --retry`.")
    return ExitCode.OK


def _failed(shop: Shop) -> list[FailedProduct]:
    return shop.embeddings.failed_products() if shop.is_prepared() else []
