"""What a model gets to see of a shop's text. That the digest is PostgreSQL's is tested there."""

from __future__ import annotations

import hashlib
import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion_pipeline.texts import cleaned, text_digest

# A tag that ends in `>`; a `<` that opens none is text.
TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
SHOP_TEXT = st.lists(
    st.sampled_from(
        [
            "<b>", "</b>", "<br/>", "<p class='a > b'>", "<!-- note -->", "<!--", "-->",
            "<![if x]>",
            "<![endif]-->", "<![foo[", "<![CDATA[", "]]>", "<!DOCTYPE html>",
            "<?xml version='1.0'?>",
            "<script>var x = '<b>';</script>", "<style>p { color: red }</style>", "<script>", "<",
            ">", "< 5", "<3", "&", "&amp;", "&lt;b&gt;", "&amp;lt;", "&lt", "&#0;", "&#xD800;",
            "&#60;", "&nbsp;", "&foo;", "\x00", "\ud800", "\n", "\t", "  ", "\N{NO-BREAK SPACE}",
            "\N{ZERO WIDTH SPACE}", "text", "Käse", "سكر", "👩‍🍳", "e\N{COMBINING ACUTE ACCENT}",
        ]
    ),
    max_size=12,
).map("".join)  # fmt: skip


@given(st.text(st.characters(codec=None)) | SHOP_TEXT)
def test_a_cleaned_text_has_no_nul_surrogate_tag_or_double_space(text: str) -> None:
    result = cleaned(text)
    assert not re.search("[\ud800-\udfff\x00]", result)
    assert not TAG.search(result)
    assert result == " ".join(result.split())
    result.encode()


@given(st.text(st.characters(codec=None)) | SHOP_TEXT)
def test_cleaning_a_cleaned_text_changes_nothing(text: str) -> None:
    assert cleaned(cleaned(text)) == cleaned(text)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0<&")))
def test_a_text_without_markup_only_has_its_spaces_evened(text: str) -> None:
    assert cleaned(text) == " ".join(text.split())


@pytest.mark.parametrize("blank", [None, "", " ", "\n\t", "\N{NO-BREAK SPACE}", "\x00", "\ud800"])
def test_a_blank_text_is_empty(blank: str | None) -> None:
    assert cleaned(blank) == ""


@pytest.mark.parametrize(
    "markup", ["<p></p>", "<br>", "&nbsp;", "<p>&nbsp;</p>", "<!-- x -->", "<img src='a.png'>",
               "<script>alert(1)</script>", "&lt;p&gt;&lt;/p&gt;", "<!DOCTYPE html>"]
)  # fmt: skip
def test_a_text_of_nothing_but_markup_is_empty(markup: str) -> None:
    assert cleaned(markup) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b", "a < b"),
        ("suits <5 people, > 2", "suits <5 people, > 2"),
        ("I <3 it, in <-> out", "I <3 it, in <-> out"),
        ("a < b and <b>bold</b>", "a < b and bold"),
        ("R&D and AT&T", "R&D and AT&T"),
        ("R&D &amp; more", "R&D & more"),
        ("<p>One.</p><p>Two.</p>", "One. Two."),
        ("<ul><li>a<li>b</ul>", "a b"),
        ("line<br>break", "line break"),
        ("5&nbsp;cm &times; 3&#160;cm &#x2013; &euro;9", "5 cm × 3 cm – €9"),
        ("<script>var x;</script>kept<style>p{}</style>", "kept"),
        ("before<!-- a > b -->after", "before after"),
        ("&lt;b&gt;escaped&lt;/b&gt; &amp;amp; twice", "escaped & twice"),
        ("<a title='a > b' href=\"x\">link</a>", "link"),
        ("unclosed <b>bold", "unclosed bold"),
        ("<b>kept</b> <!-- kept too", "kept kept too"),
        ("<![if !supportLists]>pasted<![endif]> from <b>Word</b>", "pasted from Word"),
        ("<?xml version='1.0'?><p>feed</p>", "feed"),
        ("a\x00b", "ab"),
        ("a\ud83d b", "a b"),
    ],
)
def test_shops_texts_come_out_as_people_read_them(text: str, expected: str) -> None:
    assert cleaned(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "👩‍🍳 🏳️‍🌈 🇩🇪",
        "e\N{COMBINING ACUTE ACCENT} stays two characters",
        "سكر وشاي",
        "right \N{RIGHT-TO-LEFT MARK}to left",
        "日本語のテキスト",
        "ﬁne ligatures",
    ],
)
def test_writing_of_every_kind_stays_as_it_is(text: str) -> None:
    assert cleaned(text) == text
    assert cleaned(f"<p>{text}</p>") == text


def test_markup_that_the_parser_refuses_costs_no_more_than_the_markup() -> None:
    assert "kept" in cleaned("<![foo[ kept <b>too</b>")
    assert "too" in cleaned("<![foo[ kept <b>too</b>")


def test_markup_of_any_kind_makes_no_noise() -> None:
    with warnings.catch_warnings(record=True) as noise:
        warnings.simplefilter("always")
        cleaned("<?xml version='1.0'?><p>https://example.org/?a=1&amp;b=2</p>")
        cleaned("https://example.org/?a=1&amp;b=2")
    assert noise == []


def test_deeply_nested_markup_is_read() -> None:
    assert cleaned("<b>" * 5_000 + "deep") == "deep"


def test_a_digest_is_of_the_text_exactly_as_given() -> None:
    assert text_digest("a b") == hashlib.sha256(b"a b").digest()
    assert text_digest("a  b") != text_digest("a b")
    assert text_digest("<b>a b</b>") != text_digest("a b")


def test_null_and_the_empty_text_have_one_digest_and_blank_text_another() -> None:
    assert text_digest(None) == text_digest("") == hashlib.sha256(b"").digest()
    assert text_digest(" ") != text_digest("")


@given(st.text(st.characters(codec=None)))
def test_every_text_has_a_digest_of_32_bytes(text: str) -> None:
    assert len(text_digest(text)) == 32
