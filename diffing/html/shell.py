"""The frame of every page: contents list, sections, style and scripts, in one file that needs no network.

The content policy forbids one. The only scripts that run are those this package brings: the policy names them by hash,
so that even a mistake in escaping could not run what a report holds.
"""

import base64
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from diffing.html.figures import plotly_script

_EARLY = Markup('document.documentElement.classList.add("js")')


@dataclass(frozen=True)
class Section:
    """A part of the page. `entries` are ids and labels that the contents list below it."""

    key: str
    title: str
    body: Markup
    entries: Sequence[tuple[str, str]] = ()
    folded: bool = False

    def html(self) -> Markup:
        if self.folded:
            frame = '<details class="fold" id="{}"><summary><h2>{}</h2></summary>{}</details>'
        else:
            frame = '<section id="{}"><h2>{}</h2>{}</section>'
        return Markup(frame).format(self.key, self.title, self.body)

    def link(self) -> Markup:
        below = joined(Markup('<li><a href="#{}">{}</a></li>').format(*entry) for entry in self.entries)
        nested = Markup("<ul>{}</ul>").format(below) if self.entries else ""
        return Markup('<li><a href="#{}">{}</a>{}</li>').format(self.key, self.title, nested)


def document(title: str, header: Markup, sections: Sequence[Section], figures: bool = False) -> str:
    """One self-contained HTML document. Plotly's script is part of it only if there are `figures`."""
    style, script = (
        Markup(files("diffing.html").joinpath(name).read_text("utf-8")) for name in ("page.css", "page.js")
    )
    scripts = [_EARLY, script, *([plotly_script()] if figures else [])]
    page = Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>{title}</title>'
        "<style>{style}</style><script>{early}</script></head>"
        '<body><a class="skip" href="#content">Skip to the results</a><nav aria-label="Contents"><p>Contents</p>'
        '<ul>{links}</ul></nav><main id="content">{header}{body}</main>{scripts}</body></html>\n'
    ).format(
        policy=_policy(scripts, evaluates=figures),
        title=title,
        style=style,
        early=_EARLY,
        links=joined(section.link() for section in sections),
        header=header,
        body=joined(section.html() for section in sections),
        scripts=joined(Markup("<script>{}</script>").format(text) for text in reversed(scripts[1:])),
    )
    return str(page)


def page_header(title: str, facts: Iterable[tuple[str, object]]) -> Markup:
    """The heading of a page, and what it is about in a few pairs of a name and a value."""
    return Markup("<header><h1>{}</h1><dl>{}</dl></header>").format(
        title, joined(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, text) for name, text in facts)
    )


def write_whole(text: str, path: Path) -> None:
    """Write to `path`; its folder is made if needed. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "xmlcharrefreplace"))
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)


def joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def _policy(scripts: Sequence[str], evaluates: bool) -> str:
    """Nothing is loaded, and only `scripts` run. `evaluates` is what Plotly's WebGL traces need."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join([*(f"'sha256-{digest}'" for digest in digests), *(["'unsafe-eval'"] if evaluates else [])])
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"script-src {allowed}"
    )
