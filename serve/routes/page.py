"""The web page at `/`: files of its own, no inline script or style, nothing from elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Response

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).with_name("static")
KINDS = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/")
async def page() -> Response:
    return _file("index.html")


@router.get("/static/{name}")
async def static(name: Literal["page.css", "page.js"]) -> Response:
    return _file(name)


def _file(name: str) -> Response:
    return Response(_content(name), media_type=KINDS[name], headers=HEADERS)


@cache
def _content(name: str) -> bytes:
    return (FOLDER / name).read_bytes()
