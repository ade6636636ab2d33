"""The documentation as a site: pictures of the examples come along, files of the repository are named, not linked."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((\.\./[^)#\s]+)(#[^)]*)?\)")
_SHIM = "assets/iframe-worker.js"
"""Lets the search run where a site is opened from files; the theme would fetch it."""


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links that leave the folder of the documentation into pictures of the site, or into names of files."""
    folder = posixpath.dirname(page.file.src_uri)

    def inside(found: re.Match[str]) -> str:
        picture, text, target, _ = found.groups()
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        if path.startswith("docs/"):
            return found[0]
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{page.file.src_uri}: {target} is not in the repository")
        if picture:
            return f"![{text}]({posixpath.relpath(path, folder or '.')})"
        return text if path in text or text.strip("`") in path else f"{text} (`{path}`)"

    return _LINK.sub(inside, markdown)


def on_files(files: Files, config: Any) -> Files:
    """Add the pictures of the examples that pages show."""
    texts = [(ROOT / "docs" / file.src_uri).read_text() for file in files.documentation_pages()]
    shown = {path for text in texts for path in re.findall(r"!\[[^\]]*\]\((?:\.\./)+(examples/[^)]+)\)", text)}
    for path in sorted(shown):
        files.append(File(path, str(ROOT), config["site_dir"], use_directory_urls=False))
    shim = (ROOT / "docs" / "_site" / "iframe-worker.js").read_text()
    files.append(File.generated(config, _SHIM, content=shim))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Take the shim from the site itself."""
    own = posixpath.relpath(_SHIM, posixpath.dirname(page.url) or ".")
    return output.replace("https://unpkg.com/iframe-worker/shim", own)


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """The same for pages that are made of no text, as that of an address that does not exist."""
    return output_content.replace("https://unpkg.com/iframe-worker/shim", _SHIM)
