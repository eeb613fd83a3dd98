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
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_SECTION_MARK = re.compile(r"<!\[(?:CDATA\[|[^<>]*\]>)?|\]\]>")
_TAG = re.compile(r"<[!?/]?[a-zA-Z][^<>]*>")
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
    # Layer by layer, since feeds escape markup that was escaped before.
    while _MARKUP.search(text) and len(plain := _without_markup(text)) < len(text):
        text = plain
    # What the parser leaves of broken markup.
    return " ".join(_TAG.sub(" ", text).split())


def _without_markup(text: str) -> str:
    if "<" not in text:
        return html.unescape(text)
    from bs4 import BeautifulSoup, XMLParsedAsHTMLWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)
        return BeautifulSoup(_without_comments(text), "html.parser").get_text(" ")


def _without_comments(text: str) -> str:
    """Without `<!-- ... -->`, of which a comment that never closes loses only the opening.

    The marks of `<![CDATA[` and of Word's `<![if ...]>` go too: the parser may refuse them.
    """
    closed, end, rest = text.rpartition("-->")
    text = _COMMENT.sub(" ", closed + end) + rest.replace("<!--", " ")
    return _SECTION_MARK.sub(" ", text)
