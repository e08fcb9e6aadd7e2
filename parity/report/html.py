"""A report as one self-contained HTML page: pictures as data addresses, charts as SVG, no requests."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgvq_export.parity.report import charts
from mgvq_export.parity.report.report_data import Photo, ReportData
from mgvq_export.parity.report.tables import caveat, check_row, facts, format_psnr, headline, printable, sections
from mgvq_export.parity.results import ParityReport, count_results, format_value

if TYPE_CHECKING:
    from markupsafe import Markup

PAGE = Path(__file__).with_name("page")

_LARGEST = 1280  # longest side of a picture shown whole; larger ones are scaled down
_SMALL = 640  # longest side of pictures shown side by side
_QUALITY = 90  # of WebP: differences of a codec are those of one or two 8-bit steps at this quality

_MARKS = {"passed": "✓", "FAILED": "✗", "reported": "•", "skipped": "○"}


@dataclass(frozen=True)
class Picture:
    """An image of the page: its data address, its size, and its description as text."""

    uri: str
    width: int
    height: int
    alt: str


def html(data: ReportData) -> str:
    """The page. Needs jinja2 and matplotlib; all text that is not from this package is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_cell,
    )
    script = (PAGE / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        data=data,
        facts_json=data.to_dict(),
        headline=headline(data),
        caveat=caveat(data),
        facts=facts(data),
        failed=[(*check_row(check), format_value(check.value or 0)) for check in data.report.failed],
        families=_families(data),
        sections=sorted(sections(data), key=lambda section: section.key != "photos"),  # pictures first
        photos=_photos(data),
        maps=_code_maps(data),
        tiles=_tiles(data),
        charts=_charts(data),
        scale=", ".join(charts.colour_scale()),
        style=_safe((PAGE / "report.css").read_text(encoding="utf-8")),
        script=_safe(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        marks=_MARKS,
    )


def _safe(text: str) -> Markup:
    """Text of this package, put into the page without escaping."""
    from markupsafe import Markup

    return Markup(text)


def _cell(value: object) -> object:
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


@dataclass(frozen=True)
class Family:
    """The checks of one question: its name, ``3 passed, 1 skipped``, whether it is shown unfolded, and the rows."""

    name: str
    counts: str
    unfolded: bool
    rows: list[list[str]]


def _families(data: ReportData) -> list[Family]:
    """The checks, those of one question together; unfolded when one failed, or is required and was not made."""
    found = []
    for name, group in itertools.groupby(data.report.checks, lambda check: check.name.split("/")[0]):
        checks = list(group)
        results = ParityReport(checks, required=(name,) if name in data.report.required else (), strict=data.report.strict)
        found.append(Family(name, count_results(checks), not results.passed, [check_row(check) for check in checks]))
    return found


def _photos(data: ReportData) -> list[dict[str, object]]:
    """Pictures of every photo: the two sides of the slider, the error, and one per number of groups."""
    top = _error_top(data.photos)
    found: list[dict[str, object]] = []
    for photo in data.photos:
        error = np.abs(photo.reconstruction.astype(np.int16) - photo.original).max(axis=2)
        quality = f"{format_psnr(photo.psnr_db)} dB"
        found.append(
            {
                "photo": photo,
                "original": picture(photo.original, f"Original of {photo.name}"),
                "reconstruction": picture(
                    photo.reconstruction, f"Reconstruction of {photo.name} from all groups, PSNR {quality}"
                ),
                "error": picture(
                    charts.heat_map(error, top),
                    f"Heat map of the absolute difference of {photo.name}: mean {photo.mean_error:.2f}, largest {photo.largest_error} 8-bit steps",
                    _SMALL,
                ),
                "top": top,
                "groups": [
                    (
                        count,
                        format_psnr(photo.psnr_by_groups[count]),
                        picture(image, f"{photo.name} decoded from {count} group{'s' * (count > 1)}", _SMALL),
                    )
                    for count, image in photo.by_groups.items()
                ],
            }
        )
    return found


def _error_top(photos: list[Photo]) -> int:
    """The end of the colour scale, the same for all photos: 1 value in 1000 may be larger."""
    if not photos:
        return 8
    total = np.sum([photo.histogram for photo in photos], axis=0)
    top = int(np.searchsorted(np.cumsum(total), 0.999 * total.sum()))
    return max(8, -(-top // 8) * 8)


def _code_maps(data: ReportData) -> list[dict[str, object]]:
    groups = int(data.about.get("Model", {}).get("groups", 1))
    top = max((int(one.counts.max(initial=0)) for one in data.codes), default=0) or groups
    return [
        {
            "map": one,
            "top": top,
            "picture": picture(
                charts.heat_map(one.counts, top),
                f"Map of the codes of {one.photo} that differ, {one.comparison}: {one.differing:,} of {one.total:,}, "
                f"at most {int(one.counts.max(initial=0))} groups at one position",
                exact=True,
            ),
        }
        for one in data.codes
    ]


def _tiles(data: ReportData) -> list[dict[str, object]]:
    top = max((row.largest_error for row in data.tiling), default=0) or 1
    return [
        {
            "row": row,
            "top": top,
            "picture": picture(
                charts.heat_map(row.error, top),
                f"Heat map of {row.mode} windows against one window: largest difference {row.largest_error} 8-bit steps",
                _SMALL,
            ),
        }
        for row in data.tiling
    ]


def _charts(data: ReportData) -> dict[str, Markup]:
    """Name -> SVG; those without data are left out."""
    differing = [one for one in data.codes if one.differing]
    drawn = {
        "histogram": data.photos and charts.error_histogram(data.photos),
        "groups": data.photos and charts.quality_by_groups(data.photos),
        "margins": differing and charts.code_margins(differing),
        "times": data.time and charts.times(data.time),
        "peaks": data.memory and charts.peaks(data.memory),
    }
    return {name: _safe(svg) for name, svg in drawn.items() if isinstance(svg, str)}


def picture(image: np.ndarray, alt: str, largest: int = _LARGEST, *, exact: bool = False) -> Picture:
    """uint8 [H, W, 3] as WebP, scaled down to ``largest`` pixels a side; ``exact``: every pixel as it is."""
    from PIL import Image

    shown = Image.fromarray(np.ascontiguousarray(image))
    height, width = image.shape[:2]
    file = io.BytesIO()
    if exact:
        shown.save(file, "WEBP", lossless=True)
    else:
        shown.thumbnail((largest, largest), Image.Resampling.LANCZOS)
        shown.save(file, "WEBP", quality=_QUALITY)
    return Picture(f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}", width, height, alt)
