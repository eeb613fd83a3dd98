"""What embedding with a model costs, by the list of prices that comes with genai-prices.

The list is the one of the installed release: nothing is fetched. What was spent is counted and kept
elsewhere; here a model becomes a price, and a number of tokens an amount.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

_MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """The price of a model's input.

    Attributes:
        per_million_tokens: in US dollars; None where unknown.
        version: who says so: `genai-prices 0.2.3` (the list and its release), `settings`, or
            `local` for what the list does not know, as on servers of one's own.

    """

    per_million_tokens: Decimal | None
    version: str

    def of(self, tokens: int) -> Decimal | None:
        """What so many tokens cost, in US dollars, unrounded; None where the price is unknown."""
        if self.per_million_tokens is None:
            return None
        return self.per_million_tokens * tokens / _MILLION


def price_of(model: str, *, provider: str | None, base_url: str, override: Decimal | None) -> Price:
    """The price of `model` today.

    `provider` is an id of genai-prices (`Provider.price_provider`); where it is None, the list is
    asked who is at `base_url`. `override` is the price a million tokens from the settings.
    """
    if override is not None:
        return Price(override, "settings")

    import genai_prices

    # Of embedding models only input is billed.
    million = genai_prices.Usage(input_tokens=_MILLION)
    version = f"genai-prices {genai_prices.__version__}"
    try:
        if provider:
            found = genai_prices.calc_price(million, model, provider_id=provider)
        else:
            found = genai_prices.calc_price(million, model, provider_api_url=base_url)
    except LookupError:
        return Price(None, version if provider else "local")
    return Price(found.total_price, version)
