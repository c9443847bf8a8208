"""The chat page: one HTML file that fetches nothing from elsewhere, and may not."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import HTMLResponse

_HTML = Path(__file__).with_name("page.html")


def page_response() -> HTMLResponse:
    """Return the page, whose policy allows its own script and style alone, by their hashes."""
    html = _HTML.read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash_of('script', html)}; style-src {_hash_of('style', html)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(
        html,
        headers={
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        },
    )


def _hash_of(element: str, html: str) -> str:
    match = re.search(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
    assert match is not None  # the file is ours
    return f"'sha256-{base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()}'"
