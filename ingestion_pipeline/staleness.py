"""Why aspects are stale, in words (pure).

A changed model is told by the part of its fingerprint that changed, under the name that the part
has in `ingestion.toml`. Which aspects are stale is decided by `sql/aspect_states.sql` alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.inspection import CountFacts
from ingestion_pipeline.settings import Settings

_LONGEST_VALUE = 60

_STATES = {
    "new": "new",
    "retry": "to be tried again",
    "vector missing": "its vector is gone",
}


def causes(facts: CountFacts, settings: Settings) -> dict[str, dict[str, int]]:
    """By aspect, how many of it are stale for which reason, the most frequent first."""
    found: dict[str, dict[str, int]] = {aspect.value: {} for aspect in Aspect}

    def add(aspect: Aspect, cause: str, aspects: int) -> None:
        by_cause = found[aspect.value]
        by_cause[cause] = by_cause.get(cause, 0) + aspects

    for changed in facts.changed:
        cause = changed.state
        if changed.state == "model changed":
            today = settings.fingerprint_parts(changed.aspect)
            cause = difference(changed.parts, {**today})
        add(changed.aspect, cause, changed.aspects)
    for counted in facts.aspects:
        if counted.state in _STATES:
            add(counted.aspect, _STATES[counted.state], counted.aspects)
    return {
        aspect: dict(sorted(by_cause.items(), key=lambda item: -item[1]))
        for aspect, by_cause in found.items()
    }


def in_words(facts: CountFacts, settings: Settings) -> list[str]:
    """A line for each aspect with something stale, and one where the mapping has changed.

    Empty where nothing is on record yet: there is nothing to explain before a first run.
    """
    if all(counted.state == "new" for counted in facts.aspects):
        return []
    lines = [
        f"{aspect}: {_listed(by_cause)}"
        for aspect, by_cause in causes(facts, settings).items()
        if by_cause
    ]
    remapped = sum(changed.aspects for changed in facts.changed if changed.remapped)
    if remapped:
        file = settings.catalogue.product_texts or "sql/product_texts.sql"
        lines.append(f"mapping: {file} has changed since {remapped:,} of these were ingested")
    return lines


def difference(before: Mapping[str, object] | None, today: Mapping[str, object]) -> str:
    """What of a fingerprint changed: `its model's prefix changed from '' to 'passage: '`.

    `before` None: that fingerprint is not on record.
    """
    if before is None:
        return "its model changed, from one that is not on record"
    changed = [name for name in today if before.get(name) != today[name]]
    if "model" in changed and "revision" in changed:
        changed.remove("revision")  # that of another model tells nothing
    return ", ".join(
        f"{_name(name)} changed from {_value(before.get(name))} to {_value(today[name])}"
        for name in changed
    )


def _name(part: str) -> str:
    names = {"model": "its model", "text_rules": "the version of the rules that clean texts"}
    return names.get(part, f"its model's {part}")


def _value(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case str() if len(value) > _LONGEST_VALUE:
            return repr(value[: _LONGEST_VALUE - 1] + "…")
        case _:
            return repr(value)


def _listed(by_cause: Mapping[str, int]) -> str:
    total = sum(by_cause.values())
    if len(by_cause) > 1:
        each = "; ".join(f"{cause} ({aspects:,})" for cause, aspects in by_cause.items())
        return f"{total:,} stale: {each}"
    [cause] = by_cause
    return f"{total:,} {cause}" if cause == "new" else f"{total:,} stale: {cause}"
