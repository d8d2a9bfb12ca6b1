"""Tests what the readers of each kind of document keep: text, order, headings, pages, rows and tools."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder.data.documents.reader_process import read_sections
from embedder.data.documents.section import UnreadableError
from embedder.data.documents.table_rows import TableColumns
from tests.unit.small_pdf import pdf_of_streams, small_pdf


def sections(tmp_path, name, content, kind, columns=None, encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_sections(path, name, kind, columns or TableColumns(), encoding))


def outlined(found):
    return [(" > ".join(each.headings), each.text) for each in found]


MARKDOWN = """---
title: "Handbook"
---
Before all.

# Install

Take this.

## Linux
```sh
# no heading
apt install it
```
## Empty

Setext
======
After.
"""


def test_markdown_sections_follow_headings_and_leave_code_alone(tmp_path):
    assert outlined(sections(tmp_path, "a.md", MARKDOWN, "markdown")) == [
        ("Handbook", "Before all."),
        ("Install", "Take this."),
        ("Install > Linux", "```sh\n# no heading\napt install it\n```"),
        ("Install > Empty", "Empty"),
        ("Setext", "After."),
    ]


def test_rst_sections_rank_signs_by_their_first_appearance(tmp_path):
    text = "=====\nTitle\n=====\n\nOne.\n\nPart\n----\n\nTwo.\n\nNext\n----\n\nThree.\n"
    assert outlined(sections(tmp_path, "a.rst", text, "rst")) == [
        ("Title", "One."),
        ("Title > Part", "Two."),
        ("Title > Next", "Three."),
    ]


def test_python_sections_are_functions_and_classes_with_their_decorators(tmp_path):
    text = (
        '"""Doc."""\nimport os\n\n@cache\ndef first():\n    return 1\n\nX = 1\n\nclass Box:\n    def inner(self): ...\n'
    )
    found = outlined(sections(tmp_path, "m.py", text, "python"))
    assert found == [
        ("m.py", '"""Doc."""\nimport os'),
        ("m.py > def first", "@cache\ndef first():\n    return 1"),
        ("m.py", "X = 1"),
        ("m.py > class Box", "class Box:\n    def inner(self): ..."),
    ]
    assert outlined(sections(tmp_path, "m.py", "def broken(:\n  x", "python")) == [("m.py", "def broken(:\n  x")]


PAGE = """<html><head><title>T</title><script>bad()</script><style>p {}</style></head><body>
<nav>Menu</nav><div role="navigation">More menu</div><p>Before <b>all</b> of&nbsp;it.</p>
<h1>Guide<a class="headerlink" href="#x">¶</a></h1><p>One<br>two</p><ul><li>first</li><li>second</li></ul>
<h2>Code &amp; more</h2><pre>def f():
    return 1

x = 2</pre><table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>
<form>field</form><img src="https://example.org/x.png" onerror="bad()"></body></html>"""


def test_page_sections_hold_what_a_reader_sees_in_its_order(tmp_path):
    found = outlined(sections(tmp_path, "a.html", PAGE, "html"))
    assert found == [
        ("T", "Before all of it."),
        ("Guide", "One\ntwo\n\n- first\n- second"),
        ("Guide > Code & more", "def f():\n    return 1\n\nx = 2\n\na | b\n1 | 2"),
    ]


def test_page_sections_take_the_main_part_and_the_encoding_that_the_page_names(tmp_path):
    raw = '<meta charset="iso-8859-1"><body><div>side</div><main><p>café</p></main></body>'.encode("latin-1")
    assert [each.text for each in sections(tmp_path, "a.html", raw, "html")] == ["café"]


def test_pdf_sections_know_pages_and_outline(tmp_path):
    pages = [["Welcome to it.", "1 Install", "Take this."], ["It goes on."], ["2 Use", "Press here."]]
    raw = small_pdf(pages, outline=[("Install", 0), ("2 Use", 2)])
    found = sections(tmp_path, "a.pdf", raw, "pdf")
    assert [" > ".join(each.headings) for each in found] == ["a.pdf", "Install", "2 Use"]
    assert [each.text.split("\n")[0] for each in found] == ["Welcome to it.", "1 Install", "2 Use"]
    assert "Take this." in found[1].text and "It goes on." in found[1].text
    assert [[page for _, page in each.pages] for each in found] == [[1], [1, 2], [3]]
    begins = {page: begin for begin, page in found[1].pages}
    assert found[1].text[begins[2] :].startswith("It goes on.")


UNREADABLE = {
    "encrypted": ("a.pdf", small_pdf([["x"]], locked=True), "pdf", "encrypted: it needs a password"),
    "scan": ("a.pdf", pdf_of_streams([b"0 0 99 99 re f"]), "pdf", "no text: its pages are pictures"),
    "no pdf": ("a.pdf", b"%PDF-1.4 nothing", "pdf", "no readable PDF"),
    "binary": ("a.txt", b"ab\0c", "text", "binary: it holds empty bytes"),
    "encoding": ("a.md", b"caf\xe9", "markdown", "not utf-8: byte 4 is 0xe9"),
    "empty": ("a.txt", b" \n", "text", "empty"),
    "empty page": ("a.html", b"<body><script>x</script></body>", "html", "no text in the page"),
    "heading": ("a.csv", b"a,a\n1,2\n", "csv", "names a column twice"),
    "parquet": ("a.parquet", b"PAR1 not PAR1", "parquet", "no readable Parquet file"),
    "openapi": ("a.yaml", b"openapi: 3.0.0\npaths: {", "yaml", "no YAML"),
}


@pytest.mark.parametrize(("name", "raw", "kind", "reason"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_readers_say_why_a_file_is_unreadable(tmp_path, name, raw, kind, reason):
    with pytest.raises(UnreadableError, match=reason) as told:
        sections(tmp_path, name, raw, kind)
    assert "\n" not in str(told.value)


def test_readers_take_an_encoding_and_a_byte_order_mark(tmp_path):
    assert sections(tmp_path, "a.txt", b"caf\xe9", "text", encoding="latin-1")[0].text == "café"
    assert sections(tmp_path, "a.txt", "café\r\nx".encode("utf-16"), "text")[0].text == "café\nx"


ROWS = [
    {"id": 7, "title": "Red box", "text": "A box that is red.", "price": 3.5, "tags": ["x"]},
    {"id": 8, "title": None, "text": "A lid.", "price": None, "tags": None},
]


def written_rows(tmp_path, kind):
    """The rows as a file of one kind."""
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
        return path.read_bytes()
    if kind == "csv":
        return "id;title;text;price\n7;Red box;A box that is red.;3.5\n8;;A lid.;\n"
    return "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize("kind", ["csv", "json_lines", "parquet"])
def test_table_rows_are_the_same_from_every_kind_of_table(tmp_path, kind):
    found = sections(tmp_path, "t", written_rows(tmp_path, kind), kind)
    assert [(each.row_id, each.headings, each.text) for each in found] == [
        ("7", ("Red box",), "A box that is red."),
        ("8", (), "A lid."),
    ]
    assert [each.metadata for each in found] == [
        {"price": "3.5"} if kind == "csv" else {"price": 3.5, "tags": ["x"]},
        {},
    ]


def test_table_rows_without_a_text_column_are_their_columns(tmp_path):
    found = sections(tmp_path, "t.csv", "name,colour\nbox,red\n", "csv")
    assert [(each.text, each.metadata) for each in found] == [
        ("name: box\ncolour: red", {"name": "box", "colour": "red"})
    ]
    chosen = sections(tmp_path, "t.csv", "name,colour\nbox,red\n", "csv", TableColumns(("colour",), "name", "name"))
    assert [(each.text, each.headings, each.row_id) for each in chosen] == [("red", ("box",), "box")]


def test_table_rows_that_are_wrong_are_set_aside_one_by_one(tmp_path):
    found = sections(tmp_path, "t.csv", "id,text\n1,a\n2\n3,\n4,d\n", "csv")
    assert [(each.line, each.fault) for each in found] == [
        (2, None),
        (3, "1 columns, but the heading has 2"),
        (4, "no text in ['text']"),
        (5, None),
    ]
    lines = sections(tmp_path, "t.jsonl", '{"text": "a"}\n{\n[1]\n{"text": "b", "text": "c"}\n', "json_lines")
    assert [each.fault is None for each in lines] == [True, False, False, False]
    missing = sections(tmp_path, "t.csv", "id,text\n1,a\n", "csv", TableColumns(("body",)))
    assert missing[0].fault == "no column 'body'; there are ['id', 'text']"


def test_table_without_a_heading_is_one_file_that_cannot_be_read(tmp_path):
    named = r"line 3 has 3 columns, but line 1 names 1; CSV begins with the names of its columns"
    with pytest.raises(UnreadableError, match=named):
        sections(tmp_path, "t.csv", "# from the web\n\nday,high,low\n1,2,3\n4,5,6\n", "csv")


def test_table_rows_are_read_from_compressed_files(tmp_path):
    assert sections(tmp_path, "t.csv.gz", gzip.compress(b"text\nhello\n"), "csv")[0].text == "hello"
    assert sections(tmp_path, "t.jsonl.gz", gzip.compress(b'{"text": "hello"}\n'), "json_lines")[0].text == "hello"


API = """
openapi: 3.0.0
paths:
  /pets/{id}:
    parameters: [{$ref: '#/components/parameters/Id'}]
    get: {operationId: getPet, summary: Find a pet, description: By its id., tags: [pets]}
    delete: {summary: Remove a pet}
  /pets:
    post:
      summary: Add a pet
      requestBody: {content: {application/json: {schema: {$ref: '#/components/schemas/Pet'}}}}
components:
  parameters: {Id: {name: id, in: path, required: true, description: Its number, schema: {type: integer}}}
  schemas:
    Pet:
      required: [name]
      properties:
        name: {type: string, description: How it is called}
        kind: {type: string, enum: [cat, dog]}
        mother: {$ref: '#/components/schemas/Pet'}
        far: {$ref: 'https://example.org/other.yaml'}
"""


def test_tool_lists_hold_each_operation_of_openapi(tmp_path):
    found = sections(tmp_path, "api.yaml", API, "yaml")
    assert [each.headings for each in found] == [("getPet",), ("DELETE /pets/{id}",), ("POST /pets",)]
    assert found[0].text.split("\n") == [
        "GET /pets/{id}",
        "Find a pet",
        "By its id.",
        "id (integer, required): Its number",
    ]
    assert found[0].metadata == {"method": "GET", "path": "/pets/{id}", "tags": ["pets"], "tool": "getPet"}
    assert found[2].text.split("\n")[2:] == [
        "name (string, required): How it is called",
        "kind (string, one of cat, dog)",
        "mother (value)",
        "far (value)",
    ]


TOOL = {
    "name": "read_file",
    "description": "Reads a file.",
    "inputSchema": {"properties": {"path": {"type": "string", "description": "Which"}}, "required": ["path"]},
}
FUNCTION = {"type": "function", "function": {"name": "read_file", "description": "Reads a file.", "parameters": {}}}


@pytest.mark.parametrize("around", [lambda tools: tools, lambda t: {"tools": t}, lambda t: {"result": {"tools": t}}])
def test_tool_lists_are_read_as_an_mcp_server_answers(tmp_path, around):
    found = sections(tmp_path, "tools.json", json.dumps(around([TOOL])), "json")
    assert [(each.headings, each.text) for each in found] == [
        (("read_file",), "Reads a file.\npath (string, required): Which")
    ]
    assert outlined(sections(tmp_path, "f.json", json.dumps(around([FUNCTION])), "json")) == [
        ("read_file", "Reads a file.")
    ]


def test_json_that_holds_neither_tools_nor_rows_is_read_as_text(tmp_path):
    assert outlined(sections(tmp_path, "package.json", '{"name": "x"}', "json")) == [("package.json", '{"name": "x"}')]
    assert outlined(sections(tmp_path, "ci.yaml", "on: push\n", "yaml")) == [("ci.yaml", "on: push")]
    rows = sections(tmp_path, "rows.json", '[{"text": "a"}, {"text": ""}]', "json")
    assert [(each.text, each.fault is None) for each in rows] == [("a", True), ("{'text': ''}", False)]


def test_markdown_that_begins_with_a_rule_loses_nothing(tmp_path):
    text = "---\nFirst of all: a sentence, and - more\n* of it [\n---\nThe rest.\n"
    assert "First of all" in "".join(text for _, text in outlined(sections(tmp_path, "a.md", text, "markdown")))
    assert outlined(sections(tmp_path, "a.md", "---\ntitle: Guide\n---\nText.\n", "markdown")) == [("Guide", "Text.")]


def test_csv_with_a_byte_order_mark_is_utf8_whatever_the_source_says(tmp_path):
    content = "id,text\n7,café\n".encode("utf-8-sig")
    (found,) = sections(tmp_path, "a.csv", content, "csv", encoding="cp1252")
    assert (found.row_id, found.text) == ("7", "café")


def test_headings_of_a_page_are_what_a_reader_sees(tmp_path):
    page = "<h1>Using C#</h1><p>a</p><h2>Install<br>Linux <a class='headerlink'>¶</a></h2><p>b</p>"
    page += "<h2>Part<script>x()</script> two #</h2><p>c</p>"
    found = outlined(sections(tmp_path, "a.html", page, "html"))
    assert [heading.split(" > ")[-1] for heading, _ in found] == ["Using C#", "Install Linux", "Part two"]


def test_texts_that_parquet_holds_as_bytes_are_read(tmp_path):
    path = tmp_path / "t"
    pq.write_table(pa.table({"text": pa.array([b"caf\xc3\xa9"], pa.binary()), "raw": pa.array([b"\xff"])}), path)
    assert [one.text for one in sections(tmp_path, "t", path.read_bytes(), "parquet")] == ["café"]


def test_tools_of_a_chat_api_may_lack_parameters_and_stand_beside_others(tmp_path):
    named = {"type": "function", "function": {"name": "ping", "description": "Answers."}}
    found = sections(tmp_path, "t.json", json.dumps({"tools": [named, {"type": "web_search"}]}), "json")
    assert [one.headings for one in found if one.fault is None] == [("ping",)]
    assert [one.fault for one in found if one.fault] == ["no tool with a name and parameters"]


def test_openapi_follows_references_of_paths_and_lists_and_unites_schemas(tmp_path):
    parts = [{"$ref": "#/components/schemas/base"}, {"properties": {"size": {"type": "integer"}}}]
    body = {"content": {"application/json": {"schema": {"allOf": parts}}}}
    shared = [{"name": "page", "in": "query", "schema": {"type": "integer"}}]
    get = {"parameters": [{"$ref": "#/paths/~1b/parameters/0"}]}
    api = {
        "openapi": "3.0.0",
        "paths": {"/a": {"$ref": "#/components/pathItems/a"}, "/b": {"parameters": shared}, "/c": {"get": get}},
        "components": {
            "pathItems": {"a": {"post": {"operationId": "make", "requestBody": body}}},
            "schemas": {"base": {"properties": {"colour": {"type": "string"}}}},
        },
    }
    made, read = sections(tmp_path, "t.json", json.dumps(api), "json")
    assert "colour (string)" in made.text and "size (integer)" in made.text and "page (integer)" in read.text
    old = {"name": "body", "in": "body", "schema": {"properties": {"size": {"type": "integer"}}}}
    second = {"swagger": "2.0", "paths": {"/a": {"post": {"parameters": [old]}}}}
    (found,) = sections(tmp_path, "t.json", json.dumps(second), "json")
    assert "size (integer)" in found.text
