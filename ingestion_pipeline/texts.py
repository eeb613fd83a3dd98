"""From the aspect text that SQL gives to the text that a model sees.

The digest is of the text exactly as SQL gives it, so that PostgreSQL can compare a whole catalogue
by itself; cleaning happens afterwards, by rules with a version that is part of the fingerprint.
Cutting to a model's token limit needs that model's tokenizer and is the embedder's work.
"""

from __future__ import annotations

import hashlib
import html
import re
import warnings

TEXT_RULES = 1
"""Version of the rules in `cleaned`. Raise it when they change: every vector then becomes stale."""

_MARKUP = re.compile(
    r"<(?:!--|!\[|[!?/]?[a-zA-Z][^<>]*>)|&(?:#\d+|#[xX][0-9a-fA-F]+|[a-zA-Z][a-zA-Z0-9]*);"
)
_TAG = re.compile(r"<[!?/]?[a-zA-Z\[-][^<>]*>")
_SURROGATES_AND_NUL = re.compile("[\ud800-\udfff\x00]")


def text_digest(text: str | None) -> bytes:
    """SHA-256 of an aspect text as SQL gives it; 32 bytes. NULL and '' have the same digest.

    Equal to `sha256(convert_to(coalesce(text, ''), 'UTF8'))` in PostgreSQL.
    """
    return hashlib.sha256((text or "").encode("utf-8", "surrogatepass")).digest()


def cleaned(text: str | None) -> str:
    """The text without markup, entities, NULs and lone surrogates, in single spaces; '' if blank.

    The contents of `<script>` and `<style>` go too. A `<` that opens no tag stays, since shops
    write "suits < 5 people".
    """
    if not text:
        return ""
    text = _SURROGATES_AND_NUL.sub("", text)
    # Again and again, since feeds escape markup that was escaped before.
    while _MARKUP.search(text) and len(plain := _without_markup(text)) < len(text):
        text = plain
    return " ".join(text.split())


def _without_markup(text: str) -> str:
    if "<" not in text:
        return html.unescape(text)
    from bs4 import BeautifulSoup, ParserRejectedMarkup, XMLParsedAsHTMLWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)
        try:
            return BeautifulSoup(text, "html.parser").get_text(" ")
        except ParserRejectedMarkup:  # such as <![endif that was never closed
            return html.unescape(_TAG.sub(" ", text))
