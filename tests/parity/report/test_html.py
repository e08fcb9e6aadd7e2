"""Reports: every figure is there and is that of an independent computation, nothing from outside is taken for markup."""

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.parity.context import VerificationContext
from mgvq_export.parity.report.gather import PHOTOS, gather
from mgvq_export.parity.report.html import PAGE
from mgvq_export.parity.report.report_data import ReportData
from mgvq_export.parity.report.write import FORMATS, open_reports, render
from mgvq_export.parity.results import CheckResult, ParityReport, format_value
from mgvq_export.runtime.image_files import write_image
from mgvq_export.tests.support.checks import one_line

VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """Elements with their attributes, text outside scripts and styles, and whether every element is closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.raw = "", ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes) -> None:
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            self.raw += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def parsed(page: Path) -> Page:
    return Page(page.read_text(encoding="utf-8"))


# ---- what the page holds


def test_the_page_is_well_formed(parsed: Page) -> None:
    identifiers = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in parsed.elements:
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name, identifiers[0]) in identifiers
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in identifiers
    assert [attributes["lang"] for attributes in parsed.all("html")] == ["en"]
    assert len(parsed.all("h1")) == 1 and len(parsed.all("main")) == 1


def test_the_page_asks_for_nothing(page: Path, parsed: Page) -> None:
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "xlink:href", "srcset", "poster", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value}>"
        assert not [name for name in attributes if name.startswith("on")]
    text = page.read_text(encoding="utf-8")
    assert "://" not in text and "@import" not in text and not re.search(r"url\((?!#)", text)
    (policy,) = (one["content"] for one in parsed.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'; img-src data:;")


def test_every_picture_and_chart_says_what_it_shows(parsed: Page, data: ReportData) -> None:
    pictures = parsed.all("img")
    assert pictures and all(len(one["alt"] or "") > 10 and one["width"] and one["height"] for one in pictures)
    groups = len(data.photos[0].by_groups)
    assert len(pictures) == len(data.photos) * (3 + groups) + len(data.codes) + len(data.tiling)
    charts = parsed.all("svg")
    assert len(charts) == 5 and all(one["role"] == "img" and one["aria-label"] for one in charts)


def test_every_check_and_its_reason_is_in_every_format(parsed: Page, data: ReportData) -> None:
    markdown, facts = render(data, ".md"), json.loads(render(data, ".json"))
    found = {check["name"]: check for check in facts["report"]["checks"]}
    plain = " ".join(re.sub(r"\\(.)", r"\1", markdown).split())
    page = " ".join(parsed.text.split())
    for check in data.report.checks:
        limit = check.tolerance
        wanted = [check.name, check.question, check.status, *([str(limit), limit.reason] if limit else [])]
        wanted += [] if check.value is None else [format_value(check.value)]
        assert all(one in page and one in plain for one in wanted), wanted
        assert found[check.name]["status"] == check.status.lower() and found[check.name]["reason"] == (limit and limit.reason)
    assert "2 skipped" not in page and data.report.summary() in page and data.report.summary() in plain


def test_every_table_is_in_markdown_and_html(parsed: Page, data: ReportData) -> None:
    from mgvq_export.parity.report.tables import sections

    markdown = " ".join(re.sub(r"\\(.)", r"\1", render(data, ".md")).split())
    page = " ".join(parsed.text.split())
    shown = sections(data)
    assert [section.key for section in shown] == ["checks", "photos", "codes", "tiling", "time", "memory", "versions"]
    assert all(section.tables for section in shown)
    for section in shown:
        for table in section.tables:
            for cell in (cell for row in table.rows for cell in row):
                if cell.isprintable() and cell.isascii():
                    assert " ".join(cell.split()) in page and " ".join(cell.split()) in markdown, (section.key, cell)


def test_failed_checks_stand_at_the_top(page: Path, data: ReportData) -> None:
    text = page.read_text(encoding="utf-8")
    assert (
        0
        < text.index('aria-label="Failed checks"')
        < text.index("<code>network/pixels</code> is <strong>0.5</strong>")
        < text.index("<main>")
    )
    assert render(data, ".md").index("## Failed") < render(data, ".md").index("## Checks")


def test_names_are_never_markup(page: Path, parsed: Page, data: ReportData) -> None:
    assert len(parsed.all("script")) == 2 and "onerror=alert(1)>.png" in parsed.text
    assert not parsed.all("b") and "Is <b>it</b> & so?" in parsed.text
    text = page.read_text(encoding="utf-8")  # valid UTF-8 although a name is not
    assert "\x07" not in text
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', text, re.DOTALL)
    assert found and json.loads(found[1])["photos"][0]["name"] == data.photos[0].name
    markdown = render(data, ".md")
    markdown.encode("utf-8")
    (row,) = (line for line in markdown.splitlines() if line.startswith(r"| \_a"))
    assert len(re.findall(r"(?<!\\)\|", row)) == len(data.photos[0].psnr_by_groups) + 5
    assert "<img" not in re.sub(r"\\<", "", markdown)


def test_json_holds_no_pictures_and_no_bare_nan(data: ReportData) -> None:
    text = render(data, ".json")
    facts = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert len(text) < 100_000
    assert facts["report"]["checks"][2]["value"] == "nan" and "original" not in facts["photos"][0]
    assert len(facts["photos"][0]["histogram"]) == 256


# ---- the figures


def test_photo_figures_are_those_of_scikit_image(data: ReportData) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    assert [photo.size for photo in data.photos][:2] == [(203, 301), (65, 90)]
    for photo in data.photos:
        assert photo.original.shape == (*photo.size, 3) == photo.reconstruction.shape
        assert list(photo.psnr_by_groups) == [1, 2, 4]
        for count, image in photo.by_groups.items():
            wanted = metrics.peak_signal_noise_ratio(photo.original, image, data_range=255)
            assert photo.psnr_by_groups[count] == pytest.approx(wanted, abs=1e-9)
        error = np.abs(photo.original.astype(int) - photo.reconstruction.astype(int))
        assert photo.psnr_db == photo.psnr_by_groups[4] and photo.mean_error == pytest.approx(error.mean())
        assert photo.histogram == np.histogram(error, np.arange(257))[0].tolist() and photo.largest_error == error.max()


def test_reconstructions_are_those_of_the_tokenizer(data: ReportData, tiny_bundle: Bundle) -> None:
    from mgvq_export.runtime.tokenizer import Tokenizer

    photo = data.photos[0]
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", tiling="off") as tokenizer:
        tokens = tokenizer.encode(photo.original)
        for count, image in photo.by_groups.items():
            assert np.abs(tokenizer.decode(tokens, groups=count).astype(int) - image).max() <= 1


def test_code_maps_count_what_two_tokenizers_disagree_on(data: ReportData, tiny_bundle: Bundle) -> None:
    from mgvq_export.runtime.tokenizer import Tokenizer

    codes = {}
    for precision in ("fp32", "fp16"):
        with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision=precision, tiling="off") as tokenizer:
            codes[precision] = [tokenizer.encode(photo.original).codes for photo in data.photos]
    for one, full, half in zip(data.codes, codes["fp32"], codes["fp16"], strict=True):
        assert one.comparison == "fp16 against fp32"
        assert (one.counts == (full != half).sum(axis=0)).all() and one.differing == one.counts.sum() == one.margins.size
        assert one.total == full.size and one.near_ties == (one.margins <= one.limit).sum()
    assert sum(one.differing for one in data.codes) > 0  # else the maps show nothing


def test_exact_windows_change_nothing_and_blending_does(data: ReportData) -> None:
    exact, blend = data.tiling
    assert (exact.mode, exact.codes_changed, exact.largest_error) == ("exact", 0, 0) or exact.largest_error <= 1
    assert blend.mode == "blend" and blend.codes_changed > 0 and blend.psnr_db < 60 and blend.error.max() == blend.largest_error
    assert "windows" in exact.encode_plan and "windows" in exact.decode_plan


def test_times_are_taken_in_turn_for_every_precision(data: ReportData) -> None:
    assert [(row.precision, row.direction) for row in data.time] == [
        (p, d) for p in ("fp32", "fp16") for d in ("encode", "decode")
    ]
    assert all(len(row.seconds) == len(data.time[0].seconds) >= 1 and min(row.seconds) > 0 for row in data.time)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_is_that_of_a_process_of_its_own(data: ReportData) -> None:
    assert [(row.direction, row.limit_bytes) for row in data.memory[:2]] == [("encode", None), ("decode", None)]
    for row in data.memory:
        assert 0.7 < row.predicted_bytes / row.measured_bytes < 1.3, row
        assert row.limit_bytes is None or row.predicted_bytes <= row.limit_bytes


def test_versions_and_hashes(data: ReportData, tiny_bundle: Bundle) -> None:
    import hashlib

    files = {entry.file: entry for entry in data.files}
    assert len(files) == len(data.files) == 26
    for name, entry in files.items():
        content = (tiny_bundle.path / name).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    manifest = hashlib.sha256((tiny_bundle.path / "manifest.json").read_bytes()).hexdigest()
    assert data.about["Bundle"]["manifest SHA-256"] == manifest
    assert data.about["Packages"]["numpy"] == np.__version__
    assert data.about["Machine"]["processor"] and "GiB" in data.about["Machine"]["memory"]


# ---- what cannot be shown


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of timing, and no processes to measure memory in: other tests have these."""
    monkeypatch.setattr("mgvq_export.parity.report.gather._ROUNDS", 1)
    monkeypatch.setattr("mgvq_export.parity.report.gather.measure_peaks", lambda *_, **__: [])


def test_what_is_missing_is_said(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """One precision, small images, more of them than are shown, pixels that are not finite."""
    quick(monkeypatch)
    only = {"fp32": tiny_bundle.entry("fp32")}
    bundle = Bundle(tiny_bundle.path, replace(tiny_bundle.manifest, precisions=only))
    images = {f"{index}.png": np.full((32, 32, 3), 10 * index, np.uint8) for index in range(PHOTOS + 2)}
    context = VerificationContext(bundle, images, "ort-cpu")
    found = gather(context, ParityReport(facts={"model": "tiny"}))
    assert len(found.photos) == PHOTOS and found.missing["photos"] == f"the first {PHOTOS} of {PHOTOS + 2} images are shown"
    assert "no image is large enough" in found.missing["tiling"] and "--precision" in found.missing["codes"]
    context._pixels["0.png", "fp32"] = np.full((1, 3, 32, 32), np.nan, np.float32)
    broken = gather(context, ParityReport(facts={"model": "tiny"}))
    context._codes["0.png", "fp32", "ort-cpu"] = np.full((1, 4, 2, 2), 60, np.int32)
    beyond = gather(context, ParityReport(facts={"model": "tiny"}))
    context.close()
    assert "codes out of range for 0.png: 60 to 60" in beyond.missing["photos"]
    assert not broken.photos and "NaN" in broken.missing["photos"] and broken.time
    skipped = ParityReport([CheckResult.skipped("network", "Is it?", "no <b>file")], {"model": "tiny"}, strict=True)
    page, text = (render(replace(broken, report=skipped), suffix) for suffix in (".html", ".md"))
    for found_text in (page, text):  # nothing failed, but it was not checked: no green verdict, and first of all why
        assert found_text.index("NOT compared with the PyTorch network") < found_text.index(
            "NOT passed: 1 skipped", 600 * (found_text is page)
        )
        assert "<b>file" not in found_text.replace(r"\<", "") and "not checked: network" in found_text
    assert 'class="verdict bad"' in page
    for suffix in FORMATS:
        text = render(broken, suffix)
        assert all(reason.replace("'", "&#39;")[:30] in text or reason[:30] in text for reason in broken.missing.values())


# ---- files


def test_the_command_writes_all_formats_also_when_a_check_fails(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mgvq_export.cli import main

    quick(monkeypatch)
    bundle = Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["reach"]["encoder_trunk"]["before"] = manifest["reach"]["encoder_trunk"]["after"] = 0
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    image = tmp_path / "image.png"
    write_image(image, np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8))
    paths = [tmp_path / f"report{suffix}" for suffix in FORMATS]
    options = [text for path in paths for text in ("--report", str(path))]
    result = CliRunner().invoke(main, ["verify", str(bundle), str(image), "--only", "tiling", *options])
    assert result.exit_code == 1 and "tiling/fp32/latent" in result.stderr, result.output
    page, markdown, facts = (path.read_text(encoding="utf-8") for path in paths)
    assert json.loads(facts)["report"]["passed"] is False
    assert "Failed checks" in page and "## Failed" in markdown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "image.png", "report.html", "report.json", "report.md"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("report.pdf", "no known suffix; choose .html, .md, .json"),
        ("no/report.html", "there is no folder"),
        ("folder.html", "it is a folder"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(
    name: str, message: str, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mgvq_export.cli import main

    (tmp_path / "folder.html").mkdir()
    monkeypatch.setattr("mgvq_export.parity.verify._make_context", lambda *_: pytest.fail("the bundle was run"))
    result = CliRunner().invoke(main, ["verify", str(tiny_bundle.path), "--report", str(tmp_path / name)])
    assert result.exit_code == 2 and message in result.stderr and one_line(result.stderr), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_nothing_half_written_is_left_and_an_old_report_stays(tiny_bundle: Bundle, tmp_path: Path) -> None:
    from mgvq_export.parity.verify import verify

    (tmp_path / "old.html").write_text("old")
    with pytest.raises(InputError, match="cannot read missing.png"):
        verify(tiny_bundle, ["missing.png"], reports=[tmp_path / "old.html", tmp_path / "new.md"])
    assert [path.name for path in tmp_path.iterdir()] == ["old.html"] and (tmp_path / "old.html").read_text() == "old"


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="named twice"), open_reports([tmp_path / "a.md", tmp_path / "x" / ".." / "a.md"]):
        pass


def test_a_missing_extra_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else real(name, *rest))
    with (
        pytest.raises(BackendError, match=r"needs matplotlib: pip install 'mgvq-export\[report\]', or write .md") as error,
        open_reports([tmp_path / "a.html"]),
    ):
        pass
    assert one_line(str(error.value)) and not list(tmp_path.iterdir())
    with open_reports([tmp_path / "a.md"]) as write:  # needs neither
        write(ReportData(ParityReport(), "fp32", "now"))
    assert (tmp_path / "a.md").read_text().startswith("# Verification")


def test_what_the_page_is_made_of() -> None:
    # That the wheel holds them is a test of the wheel.
    assert {path.name for path in PAGE.iterdir()} == {"report.html.j2", "report.css", "report.js"}
