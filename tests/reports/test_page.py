"""The page as a whole, from whole and from partial folders."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from analyses.records import RecordsError
from reports.charts import plotly_source
from reports.claims import TITLES, claims_text, details, print_claims
from reports.page import write_report
from tests.reports.conftest import made_up_claims, made_up_records, write_study

pytestmark = pytest.mark.usefixtures("svg_alone")

FAILURES = [{"cell": "sam-3", "reason": "the loss <diverged>"}]
UNDEFINED = re.compile(r"\b(nan|None|inf|<NA>)\b")


class _Page(HTMLParser):
    """Tags that open and text outside style sheets."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        elif tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data


@pytest.fixture(scope="module")
def whole(records: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study with its report."""
    return write_report(write_study(tmp_path_factory.mktemp("whole"), records, made_up_claims(), FAILURES)).parent


def test_page_is_whole_and_self_contained(whole: Path) -> None:
    source = (whole / "report.html").read_text()
    page = _Page(source)
    assert page.open == []
    assert len(page.images) == 12 and all(
        image.startswith("data:image/svg+xml;charset=utf-8,%3C") for image in page.images
    )
    own = source.replace(str(plotly_source()), "")
    assert not re.search(r'(src|href)="(?!data:|#)', own)
    assert "url(" not in own and len(source) < 8e6
    for expected in (
        "note 1 with 95 % & <b>",
        "Statement number 3",
        "the loss <diverged>",
        "a <comment>",
        "<made up>",
        "Bi-LoRA, seed 0",
    ):
        assert expected in page.text
    assert page.text.index("Verdicts") < page.text.index("Main results")
    assert re.findall(r'class="badge (\w+)">(\w+)<', source)[:2] == [("supported",) * 2, ("contradicted",) * 2]
    assert not UNDEFINED.search(page.text)
    names = {table.stem for table in (whole / "tables").iterdir()}
    expected = {"main", "cost", "agreement", "pyhessian", "claims", "differences", "modules", "measures", "searches"}
    assert names == expected  # nothing was recorded for the others


def test_the_summary_holds_what_the_docs_say(whole: Path, claims: dict[str, Any]) -> None:
    found = json.loads((whole / "summary.json").read_text())
    documented = set(re.findall(r"`(\w+)`", (Path(__file__).parents[2] / "docs" / "report.md").read_text()))
    assert {*found, *found["claims"][0]} <= documented
    assert found["failed"] == 1 and found["diverged"] == 0 and found["runs"] == 45
    assert [one["verdict"] for one in found["claims"]] == [one["verdict"] for one in claims["claims"]]
    assert found["claims"][3]["effect"] is None and found["not_judged"] == ["flatter_than_x"]


def test_page_of_one_run_without_baselines(claims: dict[str, Any], tmp_path: Path) -> None:
    records = made_up_records(("random_aux",), num_seeds=1)
    page = _Page(write_report(write_study(tmp_path, records, claims, [])).read_text())
    assert "1 measured run." in page.text
    assert "± –" in page.text
    assert "Failed cells" not in page.text
    assert not UNDEFINED.search(page.text)


def test_page_without_any_records_or_settings(claims: dict[str, Any], tmp_path: Path) -> None:
    write_study(tmp_path, made_up_records(()), claims, FAILURES)
    for name in ("study.yaml", "environment.json"):
        (tmp_path / name).unlink()
    page = _Page(write_report(tmp_path).read_text())
    assert page.images == []
    assert "sam-3" in page.text


@pytest.mark.parametrize("name", ["failures", "diverged"])
@pytest.mark.parametrize("content", ["{}", "[1]", '[{"cell": "a"}]', '"none"'])
def test_files_of_another_shape_are_refused_before_anything_is_drawn(
    claims: dict[str, Any], tmp_path: Path, name: str, content: str
) -> None:
    folder = write_study(tmp_path, made_up_records(("lora",), num_seeds=1), claims, [])
    (folder / f"{name}.json").write_text(content)
    with pytest.raises(RecordsError, match=f"{name}.json cannot be read .* expected entries with cell, reason, got"):
        write_report(folder)
    assert not (folder / "figures").exists()


def test_a_second_report_has_the_same_bytes(claims: dict[str, Any], tmp_path: Path) -> None:
    folder = write_study(tmp_path, made_up_records(("lora", "bilora"), num_seeds=2), claims, FAILURES)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_a_study_without_anything_to_judge_says_so(claims: dict[str, Any], tmp_path: Path) -> None:
    none = claims | {"claims": [], "sentence": ""}
    records = made_up_records(("bilora_r1", "lora_r1"), num_seeds=2)
    assert "lacks the methods" in _Page(write_report(write_study(tmp_path, records, none, [])).read_text()).text
    assert "lacks the methods" in claims_text(none)


def test_claims_in_a_terminal(claims: dict[str, Any]) -> None:
    text = claims_text(claims)
    assert text.startswith("Bi-LoRA's minima are 5.40")
    heads = [line for line in text.splitlines() if "Statement number" in line]
    assert [line[:3] for line in heads] == ["  1", "  2", "  3", "  4", "  5"]
    verdicts = [claim["verdict"] for claim in claims["claims"]]
    columns = {line.index(f" {verdict}") for line, verdict in zip(heads, verdicts, strict=True)}
    assert len(columns) == 1
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "unbounded" in text and "counted" in text and not UNDEFINED.search(text)
    assert [text.index(title) for title in TITLES.values()] == sorted(text.index(title) for title in TITLES.values())


def test_a_terminal_gets_a_table_of_verdicts(claims: dict[str, Any]) -> None:
    claims["claims"][1]["statement"] = "[bold]no markup[/bold]"
    written = io.StringIO()
    print_claims(claims, Console(file=written, force_terminal=True, color_system=None, width=140))
    text = written.getvalue()
    assert claims["sentence"][:40] in text and "[bold]no markup[/bold]" in text
    assert [text.index(title) for title in TITLES.values()] == sorted(text.index(title) for title in TITLES.values())
    for claim in claims["claims"]:
        assert re.search(rf"\b{claim['number']}\b.*{claim['verdict']}", text)


def test_no_terminal_gets_plain_text(claims: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    print_claims(claims)
    assert capsys.readouterr().out.strip() == claims_text(claims).strip()


def test_what_stands_beside_an_interval(claims: dict[str, Any]) -> None:
    whole, *_, counted = (details(claim) for claim in claims["claims"])
    sizes = "by training-set size 50: -0.1, 100: -0.2"
    for expected in ("n = 5 pairs", "bootstrap [-0.19, -0.04]", "margin 0.1", "80 % power", "search error 0.02", sizes):
        assert expected in whole
    assert "about 44 runs" in details(claims["claims"][2])
    assert counted == ""
