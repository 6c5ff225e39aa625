"""The anchors of headings, as GitHub and the site make them."""

import html
import re
from collections import Counter


def slug(title: str) -> str:
    """Returns the anchor of a heading: its text in lower case, without punctuation, with hyphens for spaces."""
    shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title.replace("\\", "")).strip()
    return re.sub(r"[^\w\- ]", "", html.unescape(shown).lower()).replace(" ", "-")


def headings(text: str) -> Counter[str]:
    """Returns the anchors of a page's headings, and how often each occurs."""
    titles = re.findall(r"^#{1,6} +(.+?) *#*$", without_code(text), re.M)
    return Counter(slug(title) for title in titles)


def without_code(text: str) -> str:
    """Returns a page without its blocks of code and its comments."""
    text = re.sub(r"^(`{3,}).*?^\1`*$", "", text, flags=re.M | re.S)
    return re.sub(r"^<!--.*?-->$", "", text, flags=re.M | re.S)
