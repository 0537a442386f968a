"""The paragraphs of a page of documentation, without what a browser draws around them."""

from __future__ import annotations

from html.parser import HTMLParser

LEFT_OUT = frozenset({"button", "footer", "head", "nav", "noscript", "script", "select", "style", "svg", "template"})
BLOCKS = frozenset((
    "address", "article", "aside", "blockquote", "body", "br", "caption", "center", "dd", "details", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "legend",
    "li", "main", "ol", "p", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
))  # fmt: skip
CELLS = frozenset({"td", "th"})


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._text: list[str] = []
        self._left_out = self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in LEFT_OUT:
            self._left_out += 1
        elif tag == "body":
            # The end of a head may be missing.
            self._left_out = 0
        if tag == "pre":
            self.flush()
            self._verbatim += 1
        elif self._verbatim:
            self._text.append("\n" if tag == "br" else "")
        elif tag in BLOCKS:
            self.flush()
        elif tag in CELLS:
            self._text.append(" ")

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        # `<script/>` has no content that could be left out.
        if tag not in LEFT_OUT and tag != "pre":
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in LEFT_OUT:
            self._left_out = max(0, self._left_out - 1)
        if tag == "pre" and self._verbatim:
            self.flush()
            self._verbatim -= 1
        elif tag in BLOCKS and not self._verbatim:
            self.flush()

    def handle_data(self, data: str) -> None:
        if not self._left_out:
            self._text.append(data)

    def flush(self) -> None:
        """Ends a paragraph."""
        text = "".join(self._text)
        self._text.clear()
        if self._verbatim:
            text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
        else:
            text = " ".join(text.split())
        if text.strip():
            self.found.append(text)


def paragraphs(page: str) -> list[str]:
    """The paragraphs of an HTML page: running text in one line each, preformatted text as it is.

    Navigation, scripts, forms' buttons and the like are left out, and so is the whole of a page that cannot be parsed.

    Example:
        >>> paragraphs("<nav>Home</nav><p>Two\\n words</p><pre>a\\n  b</pre>")
        ['Two words', 'a\\n  b']
    """
    reader = _Reader()
    try:
        reader.feed(page)
        reader.close()
    except AssertionError:  # what the parser raises for a broken `<![…`
        return []
    reader.flush()
    return reader.found
