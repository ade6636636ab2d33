"""The pages in a browser: `make test-browser` brings one."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyses import compare
from reports.page import write_report
from tests.analyses.comparing.nets import examples, minimum_of
from tests.reports.conftest import made_up_claims, made_up_records, write_study

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>alert(1)</script>"
DRAWN = "[...document.querySelectorAll('.plots')].every((group) => group.dataset.drawn === 'true')"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of a made-up study, one method of which has a hostile name."""
    folder = tmp_path_factory.mktemp("study")
    records = made_up_records(
        ("full", "sam", "lora", "bilora", "lora_2r", "dual_lora", "random_aux", HOSTILE), num_seeds=3
    )
    claims = made_up_claims()
    claims["claims"][0]["comparison"] = f"{HOSTILE} / lora"
    return write_report(write_study(folder, records, claims, [])).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; 'make test-browser' installs one")
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser: Any, address: str) -> Any:
    return _opened(browser, address)


def _opened(browser: Any, address: str) -> Any:
    """A page when all is drawn, with what went wrong on the way in ``page.wrong``."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.wrong = []
    page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("dialog", lambda dialog: (page.wrong.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: page.wrong.append(request.url) if _leaves(request.url, address) else None)
    page.goto(address)
    page.wait_for_function(DRAWN, timeout=120_000)
    return page


def _leaves(url: str, address: str) -> bool:
    return url.split("#", maxsplit=1)[0] != address and not url.startswith(("data:", "blob:"))


def test_nothing_fails_and_nothing_is_asked_of_a_network(page: Any) -> None:
    assert page.wrong == []
    assert page.locator(".plot .main-svg").count() > 0


def test_hostile_names_are_shown_as_text(page: Any) -> None:
    assert HOSTILE in page.locator("#table-main").text_content()
    assert page.locator("svg.slopes, .legendtext").get_by_text(HOSTILE).count() > 0
    assert page.evaluate("[...document.scripts].some((one) => one.textContent === 'alert(1)')") is False


def test_a_heading_sorts_and_the_field_filters(page: Any) -> None:
    def column(number: int) -> list[str]:
        return page.locator(f"#table-main tbody tr:not([hidden]) td:nth-child({number})").all_text_contents()

    heading = page.locator("#table-main th").nth(1)
    for direction, ordered in (("ascending", sorted), ("descending", lambda values: sorted(values, reverse=True))):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == direction
        values = [float(text.split(" ")[0]) for text in column(2)]
        assert values == ordered(values) and len(values) == 8
    page.locator("input[data-of=table-main]").fill("bi-lora")
    assert column(1) == ["Bi-LoRA"]
    page.locator("input[data-of=table-main]").fill("")
    assert len(column(1)) == 8


def test_tables_sort_by_keyboard(page: Any) -> None:
    heading = page.locator("#table-main th").nth(2)
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"


def test_a_claim_opens_to_its_evidence_by_keyboard(page: Any) -> None:
    claim = page.locator("#claim-1")
    claim.locator("summary").focus()
    page.keyboard.press("Enter")
    assert claim.get_attribute("open") is not None
    assert "landscape audit --config study.yaml" in claim.locator(".evidence").inner_text()


def test_every_link_leads_somewhere(page: Any) -> None:
    anchors = page.locator("a[href^='#']").evaluate_all("(links) => links.map((link) => link.hash.slice(1))")
    missing = page.evaluate("(names) => names.filter((name) => !document.getElementById(name))", anchors)
    assert len(anchors) > 8 and missing == []


def test_turning_one_surface_turns_all(page: Any) -> None:
    eye = {"x": 0.3, "y": -2.0, "z": 0.5}
    turn = "(eye) => Plotly.relayout(document.querySelector('[data-linked=true] .plot'), {'scene.camera': {eye}})"
    page.evaluate(turn, eye)
    page.wait_for_timeout(500)
    eyes = "[...document.querySelectorAll('[data-linked=true] .plot')].map((plot) => plot._fullLayout.scene.camera.eye)"
    found = page.evaluate(eyes)
    assert len(found) == 4 and all(one == pytest.approx(eye) for one in found)


def test_surfaces_are_drawn(page: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    scene = page.locator("[data-linked=true] .plot").first
    scene.scroll_into_view_if_needed()
    pixels = np.asarray(image.open(io.BytesIO(scene.screenshot())).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 500


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_fault_of_accessibility(browser: Any, address: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page.goto(address)
    page.wait_for_function(DRAWN, timeout=120_000)
    found = axe.run(page).response["violations"]
    serious = {one["id"]: one["nodes"][0]["html"][:200] for one in found if one["impact"] in ("serious", "critical")}
    page.close()
    assert serious == {}


def test_a_phone_shows_all_without_scrolling_sideways(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 375, "height": 800})
    page.goto(address)
    page.wait_for_function(DRAWN, timeout=120_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.close()


def test_a_comparisons_page_is_of_the_same_parts(browser: Any, tmp_path: Path) -> None:
    options = {"radii": [0.1, 0.3], "worst_case": {"steps": 2, "restarts": 1, "screened": 4, "max_passes": 1}}
    compare(
        {"a": minimum_of(0), HOSTILE: minimum_of(1)}, examples(), out=tmp_path, what=["fit", "sharpness"], **options
    )
    page = _opened(browser, (tmp_path / "report.html").as_uri())
    assert page.wrong == []
    assert page.locator(".plot .main-svg").count() > 0 and HOSTILE in page.locator("h1").text_content()
    page.locator("#table-summary th button").first.click()
    assert page.locator("#table-summary th").first.get_attribute("aria-sort") == "ascending"
    page.close()
