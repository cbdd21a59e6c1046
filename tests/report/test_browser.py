"""The page in a real browser: sizes of phone, tablet and desktop, the table, and paper."""

import html
import json
import re
import shutil
import subprocess

import pytest

from retailtag.report.decision import decide
from retailtag.report.page import render_page
from retailtag.report.prediction_sheet import Sheet, Shown
from retailtag.report.report import Report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Debian's package chromium")

WIDTHS = (390, 768, 1280)
PAPER = 690  # pixels between the margins of A4
LONG_NAME = "timm:resnet50?" + "&".join(f"argument{k}=0.5" for k in range(12))
LISTEN = """<script>
const complaints = [];
addEventListener("error", (event) => complaints.push(event.message));
for (const kind of ["error", "warn"]) console[kind] = (...words) => complaints.push(words.join());
</script>"""
LOOK = """
const page = PAGE;
function shown(element) { return element.getClientRects().length > 0; }
function sizes(root) {
  const found = [];
  for (const element of root.querySelectorAll("body *")) {
    const words = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!words || !shown(element) || element.closest("style, script")) continue;
    let size = parseFloat(root.defaultView.getComputedStyle(element).fontSize);
    const svg = element.closest("svg");
    if (svg) size *= svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    found.push(size);
  }
  return found;
}
function layout(root) {
  return {
    complaints: root.defaultView.eval("complaints"),
    width: root.documentElement.scrollWidth,
    smallest: Math.min(...sizes(root)),
    figures: [...root.querySelectorAll("figure svg")].filter(shown).length,
  };
}
function table(root) {
  const table = root.getElementById("tag-table");
  const column = (k) => [...table.tBodies[0].rows].map((row) => row.cells[k].textContent);
  const head = table.tHead.rows[0].cells[3];
  const states = [];
  for (let click = 0; click < 2; click++) {
    head.querySelector("button").click();
    states.push([head.getAttribute("aria-sort"), column(3)]);
  }
  const box = root.querySelector("input[type=search]");
  const found = {};
  for (const words of ["TAG 00", "tail", ""]) {
    box.value = words;
    box.dispatchEvent(new Event("input"));
    const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden);
    found[words] = rows.map((row) => row.cells[0].textContent);
  }
  return { states, found, said: root.querySelector("output").textContent };
}
function paper(root) {
  for (const rule of root.styleSheets[0].cssRules) {
    if (rule.media) {
      const prints = rule.media.mediaText === "print";
      if (prints || rule.media.mediaText.includes("screen")) {
        rule.media.mediaText = prints ? "all" : "not all";
      }
    }
  }
  root.defaultView.dispatchEvent(new Event("beforeprint"));
  const edges = [...root.querySelectorAll("th, td, svg, pre, dd")].filter(shown);
  return {
    edge: Math.max(...edges.map((element) => element.getBoundingClientRect().right)),
    columns: [...root.querySelectorAll("table")].map((t) => t.rows[1].cells.length),
    folded: root.querySelectorAll("details:not([open])").length,
    cut: [...root.querySelectorAll(".scroll, .tall")].filter(
      (box) => box.scrollHeight > box.clientHeight + 1 || box.scrollWidth > box.clientWidth + 1
    ).length,
    facts: Math.min(...[...root.querySelectorAll(".facts dd")].map((dd) => dd.clientWidth)),
  };
}
async function look() {
  const seen = {};
  for (const width of [...WIDTHS, PAPER]) {
    const frame = document.createElement("iframe");
    frame.style.cssText = `border: 0; height: 900px; width: ${width}px`;
    frame.srcdoc = page;
    document.body.append(frame);
    await new Promise((done) => { frame.onload = done; });
    const root = frame.contentDocument;
    seen[width] = width === PAPER ? paper(root) : layout(root);
    if (width === WIDTHS[0]) seen.table = table(root);
  }
  return seen;
}
look().catch((error) => ({ error: String(error) })).then((seen) => {
  document.body.textContent = `<<${JSON.stringify(seen)}>>`;
});
"""


@pytest.fixture(scope="module")
def seen(bakeoff, tmp_path_factory):
    """What the script above found on the page, which is shown in frames of several widths."""
    folder = tmp_path_factory.mktemp("browser")
    page = render_page(Report(bakeoff, decide(bakeoff))).replace("<head>", f"<head>{LISTEN}", 1)
    facts = '<dl class="facts"><dt>'
    assert facts in page
    page = page.replace(facts, facts + LONG_NAME, 1)
    script = LOOK.replace("WIDTHS", str(list(WIDTHS))).replace("PAPER", str(PAPER))
    script = script.replace("PAGE", json.dumps(page).replace("</", r"<\/"), 1)
    return _found_by(script, folder)


def _found_by(script, folder):
    """What a script leaves as JSON in a page that a browser opens."""
    harness = folder / "harness.html"
    harness.write_text(f'<!doctype html><meta charset="utf-8"><body><script>{script}</script>')
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={folder}", "--window-size=1400,1000", "--virtual-time-budget=20000",
        "--dump-dom", harness.as_uri(),
    ]  # fmt: skip
    printed = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    found = json.loads(html.unescape(re.search("&lt;&lt;(.*)&gt;&gt;", printed.stdout, re.S)[1]))
    assert "error" not in found, found
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_scrolls_sideways_and_all_text_is_legible(seen, width):
    layout = seen[str(width)]
    assert layout["complaints"] == []
    assert layout["width"] == width
    assert layout["smallest"] >= 11
    assert layout["figures"] >= 4


def test_a_heading_sorts_up_then_down(seen):
    (up, rising), (down, falling) = seen["table"]["states"]
    assert (up, down) == ("ascending", "descending")
    numbers = [int(cell.replace(",", "")) for cell in rising]
    assert numbers == sorted(numbers)
    assert [int(cell.replace(",", "")) for cell in falling] == numbers[::-1]
    assert numbers[0] < numbers[-1]


def test_words_filter_the_table_by_tag_and_by_group(seen, bakeoff):
    rows = bakeoff.pairs[0].scorecard.tags
    found = seen["table"]["found"]
    assert sorted(found["TAG 00"]) == [row.tag for row in rows if row.tag.startswith("tag 00")]
    assert sorted(found["tail"]) == [row.tag for row in rows if row.group == "tail"]
    assert len(found[""]) == len(rows)
    assert seen["table"]["said"] == f"{len(rows)} of {len(rows)} shown"


def test_paper_shows_every_column_and_what_is_folded(seen, bakeoff):
    paper = seen[str(PAPER)]
    assert paper["edge"] <= PAPER
    assert paper["columns"][-1] == 5 + len(bakeoff.pairs)
    assert (paper["folded"], paper["cut"]) == (0, 0)
    assert paper["facts"] > PAPER / 2  # beside a long name


# A page on a phone, in light and in dark: its width, its smallest text, its faintest text.
PHONE = r"""
const frame = document.createElement("iframe");
frame.style.cssText = "border: 0; height: 900px; width: 390px";
frame.srcdoc = PAGE;
frame.onload = () => {
  const root = frame.contentDocument;
  const size = (item) => parseFloat(root.defaultView.getComputedStyle(item).fontSize);
  function faintest() {
    const light = (color) => {
      const parts = color.match(/[\d.]+/g).map(Number);
      const linear = parts.slice(0, 3).map((c) => c / 255).map(
        (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
      );
      return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const style = (element) => root.defaultView.getComputedStyle(element);
    const ground = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const color = style(at).backgroundColor;
        if (!/, 0\)$|transparent/.test(color)) return color;
      }
      return "rgb(255, 255, 255)";
    };
    const texts = [...root.querySelectorAll("p, li, td, th, h1, h2, h3, figcaption, summary")];
    return Math.min(...texts.map((element) => {
      const pair = [light(style(element).color), light(ground(element))].sort((a, b) => b - a);
      return (pair[0] + 0.05) / (pair[1] + 0.05);
    }));
  }
  const bright = faintest();
  for (const rule of root.styleSheets[0].cssRules) {
    if (rule.media && rule.media.mediaText.includes("prefers-color-scheme: dark")) {
      rule.media.mediaText = "all";
    }
  }
  const seen = {
    contrast: [bright, faintest()],
    width: root.documentElement.scrollWidth,
    smallest: Math.min(...[...root.querySelectorAll("li, figcaption, p")].map(size)),
    drawn: [...root.images].filter((image) => image.naturalWidth > 0).length,
    requests: root.defaultView.performance.getEntriesByType("resource").length,
  };
  document.body.textContent = `<<${JSON.stringify(seen)}>>`;
};
document.body.append(frame);
"""


def test_a_contact_sheet_of_predictions_fits_a_phone(tmp_path, picture):
    sheet = Sheet(tmp_path / "sheet.html")
    for number in range(3):
        tags = (("colour:a-very-long-name-without-a-space" * 3, 0.5), ("red", 0.4))
        sheet.add(Shown("x" * 80 + ".jpg", lambda n=number: picture(n), tags, tags[:1]))
    sheet.write("Tags")
    page = json.dumps((tmp_path / "sheet.html").read_text()).replace("</", r"<\/")
    seen = _found_by(PHONE.replace("PAGE", page, 1), tmp_path)
    assert seen["width"] == 390
    assert seen["smallest"] >= 11
    assert (seen["drawn"], seen["requests"]) == (3, 0)


def test_a_page_on_drift_fits_a_phone_and_is_legible_in_light_and_dark(drift_html, tmp_path):
    page = json.dumps(drift_html).replace("</", r"<\/")
    seen = _found_by(PHONE.replace("PAGE", page, 1), tmp_path)
    assert seen["width"] == 390
    assert seen["smallest"] >= 11
    assert (seen["drawn"], seen["requests"]) == (2, 0)
    assert min(seen["contrast"]) >= 4.5  # WCAG AA
    assert seen["contrast"][0] != seen["contrast"][1]
