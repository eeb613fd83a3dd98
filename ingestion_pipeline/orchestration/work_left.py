"""What is left to embed, with all that is known of how long it takes and what it costs."""

from __future__ import annotations

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.orchestration.models import endpoint_name, price
from ingestion_pipeline.preflight_services import Work


def work_left(shop: Shop) -> dict[str, Work]:
    """By fingerprint, what is left for its model."""
    settings = shop.settings
    texts = shop.catalogue.texts_to_embed(settings.fingerprints)
    rates = shop.embeddings.model_rates()
    heard = shop.embeddings.rate_limits()
    work = {}
    for aspect in Aspect:
        model, fingerprint = settings.aspects[aspect], settings.fingerprint(aspect)
        rate = rates.get(fingerprint)
        quota = heard.get(endpoint_name(model)) if model.is_remote else None
        requests, tokens = quota or (None, None)
        work[fingerprint] = Work(
            texts=texts.get(fingerprint, 0),
            tokens_per_text=rate.tokens_per_text if rate else 0.0,
            texts_per_request=float(model.texts_per_request or 1),
            texts_per_second=rate.texts_per_second if rate else None,
            requests_per_minute=model.requests_per_minute or requests,
            tokens_per_minute=model.tokens_per_minute or tokens,
            price=price(model),
        )
    return work
