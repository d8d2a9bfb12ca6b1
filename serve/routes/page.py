"""The web page at `/`: files of its own, no inline script or style, nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from serve.middleware.incoming import PREFIX

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
async def page(request: Request) -> Response:
    prefix, asked = request.scope.get(PREFIX), request.scope.get("raw_path", b"")
    # The page names its files relative to itself, so below a prefix its address must end in a slash.
    if prefix and not asked.endswith(b"/"):
        return RedirectResponse(f"{prefix}/")
    return _file("index.html")


@router.get("/static/{name}")
async def static(name: Literal["page.css", "page.js"]) -> FileResponse:
    return _file(name)


def _file(name: str) -> FileResponse:
    return FileResponse(FOLDER / name, media_type=KINDS[name], headers=HEADERS)
