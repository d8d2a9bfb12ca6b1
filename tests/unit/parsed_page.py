"""A report page as a reader has it."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags and attributes of a page, and the text in front of its reader."""

    VOID = ("meta", "source", "img", "br")

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.open, self.text = [], [], [], ""

    @classmethod
    def of(cls, text):
        parsed = cls()
        parsed.feed(text)
        parsed.close()
        assert parsed.open == []
        return parsed

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        raise AssertionError(f"<{tag} /> is no HTML")

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += "" if self.open[-1:] == ["style"] else data

    def values(self, *names):
        return [value for name, value in self.attributes if name in names]
