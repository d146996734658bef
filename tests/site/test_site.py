"""Each page of the site in a browser, at desktop and phone width; and each link without one."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import pytest

WIDTHS = {"desktop": 1280, "phone": 390}
# What is wrong with a page as it is laid out: a list of lines.
LAYOUT = """() => {
  const found = [], width = document.documentElement.clientWidth;
  const page = document.scrollingElement.scrollWidth;
  if (page > width + 1) found.push(`the page is ${page} wide`);
  const scrolls = node => {
    for (let at = node.parentElement; at; at = at.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(at).overflowX)) return at;
    return null;
  };
  const wide = "table, pre, .katex-display, img";
  for (const node of document.querySelectorAll(`article :is(${wide})`)) {
    const right = Math.round(node.getBoundingClientRect().right);
    if (right <= width + 1) continue;
    const around = scrolls(node);
    if (!around || around.getBoundingClientRect().right > width + 1)
      found.push(`${node.tagName} ends at ${right}: ${node.textContent.trim().slice(0, 40)}`);
  }
  for (const node of document.querySelectorAll("article .arithmatex"))
    if (!node.querySelector(".katex") || node.querySelector(".katex-error"))
      found.push(`formula is not rendered: ${node.textContent}`);
  for (const node of document.querySelectorAll("article img"))
    if (!node.naturalWidth) found.push(`picture is missing: ${node.src}`);
  const first = document.querySelector("article :is(h1, h2, h3, p, table, pre)");
  if (!first || first.tagName !== "H1") found.push("the page does not start with its title");
  else if (first.getBoundingClientRect().top > 400) found.push("the title is far below the top");
  return found;
}"""


class Reader(HTMLParser):
    """The links and anchors of a page, and the texts of links in the article."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.texts: list[str] = []
        self._article = self._link = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.update(value for key in ("id", "name") if (value := given.get(key)))
        for key in ("href", "src"):
            if value := given.get(key):
                self.links.append(value)
        self._article |= tag == "article"
        if tag == "a" and self._article and given.get("href"):
            self._link = True
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._article &= tag != "article"
        self._link &= tag != "a"

    def handle_data(self, data: str) -> None:
        if self._link:
            self.texts[-1] += data


def pages(site: Path) -> list[str]:
    return sorted(str(path.relative_to(site)) for path in site.rglob("*.html"))


def test_no_link_is_dead_and_each_has_words(site: Path) -> None:
    read = {page: Reader((site / page).read_text(encoding="utf-8")) for page in pages(site)}
    wrong = []
    for page, reader in read.items():
        if page == "404.html":  # served anywhere: its links begin at the root
            continue
        for link in reader.links:
            if re.match(r"\w+:", link):
                continue
            path, anchor = urldefrag(urljoin(f"/{page}", link))
            target = unquote(path).lstrip("/")
            if target == "" or target.endswith("/"):
                target += "index.html"
            if not (site / target).is_file():
                wrong.append(f"{page}: {link} leads nowhere")
            elif anchor and target in read and unquote(anchor) not in read[target].ids | {"__top"}:
                wrong.append(f"{page}: {link} has no such anchor")
        wrong += [f"{page}: the link text {text!r} is a file" for text in reader.texts
                  if re.fullmatch(r"[\w./-]+\.md", text.strip())]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_every_page_is_in_the_navigation(site: Path) -> None:
    start = Reader((site / "index.html").read_text(encoding="utf-8"))
    linked = {urldefrag(urljoin("/index.html", link))[0].lstrip("/") for link in start.links}
    for page in pages(site):
        if page not in ("404.html", "index.html"):
            assert page.removesuffix("index.html") in linked, page
    assert len(pages(site)) > 20


@pytest.mark.parametrize("width", list(WIDTHS))
def test_each_page_in_a_browser(width: str, site: Path, address: str, browser: Any) -> None:
    """No error on the console, nothing from elsewhere, nothing wider than the screen."""
    context = browser.new_context(viewport={"width": WIDTHS[width], "height": 900})
    page, errors, wrong = context.new_page(), list[str](), list[str]()
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda asked: errors.append(f"asks for {asked.url}")
            if not asked.url.startswith((address, "data:", "blob:")) else None)  # fmt: skip
    for name in pages(site):
        if name == "404.html":
            continue
        page.goto(address + name.removesuffix("index.html"), wait_until="load")
        page.evaluate("() => document.fonts.ready.then(() => null)")
        wrong += [f"{name}: {line}" for line in (*errors, *page.evaluate(LAYOUT))]
        errors.clear()
    context.close()
    assert not wrong, "\n".join(wrong)
