"""The pages, written for real cases and looked at in a real browser."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest
from browser import browser

from pipeline.case import Case
from pipeline.report import DemoReport, Gallery, write_demo_report, write_gallery
from pipeline.report.pages import chosen
from pipeline.report.pictures import busiest


def case(key: str, gain: float) -> Case:
    rng = np.random.default_rng(len(key))
    image = rng.random((60, 80, 3)).astype(np.float32)
    maps = rng.random((3, 60, 80)).astype(np.float32)
    return Case(
        key=key,
        blur=image,
        restored=image * 0.9,
        sharp=image,
        kernels=rng.random((3, 5, 5)).astype(np.float32),
        weights=maps / maps.sum(0),
        radius=maps[0],
        error=image - 0.5,
        true_radius=maps[1],
        scores={"psnr": 20 + gain, "psnr_blurred": 20.0, "ssim": 0.8, "ssim_blurred": 0.7},
    )


PREDICTION = [
    {"figure": "radius error", "where": "true radius 0 to 1 px", "mean": 0.52, "unit": "px"}
]
CASES = [case("first", 1.0), case("second", -0.5), case("<third>", 0.2)]


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    rows = [{"name": c.key, "psnr": c.scores["psnr"], "gain": c.gain} for c in CASES]
    path = tmp_path / "gallery.html"
    published = [{"method": "Other", "psnr": 25.0, "ssim": 0.8, "lpips": None}]
    mean = {"psnr": 20.2, "psnr_blurred": 20.0, "ssim": 0.8, "ssim_blurred": 0.7, "gain": 0.2}
    summary = {
        **mean,
        "mae": 0.05,
        "mae_blurred": 0.06,
        "radius_error": None,
        "prediction": PREDICTION,
        "lpips": None,
        "lpips_note": "no weights",
        "psnr_interval": [19.5, 20.9],
        "images": 3,
        "protocol": "standard",
        "checkpoint": "runs/a/checkpoints/step-00000640/of-a-run-with-a-long-name",
        "indoor": {"images": 2, "psnr": 20.5, "ssim": 0.8, "mae": 0.05, "lpips": None},
        "comparison": {
            "checkpoint": "runs/b",
            "psnr_difference": 0.125,
            "psnr_interval": [0.1, 0.15],
            "ssim_difference": 0.01,
            "ssim_interval": None,
            "better": 2,
            "images": 3,
        },
    }
    write_gallery(str(path), Gallery("dpdd test", summary, rows, CASES, published))
    return path


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    summary = {
        "psnr_blurred": 20.0,
        "psnr_restored": 20.5,
        "ssim_blurred": 0.7,
        "ssim_restored": 0.8,
        "images": 3,
        "seconds": 4.0,
    }
    metrics = [{"step": s, "train/loss": 1 / s, "val/psnr": 20.0 + s} for s in range(1, 6)]
    settings = {"train": {"steps": 5}}
    versions, seconds = {"torch": "2"}, {"train": 3.0}
    page = DemoReport(summary, PREDICTION, CASES, metrics, settings, versions, seconds)
    write_demo_report(str(path), page)
    return path


def test_best_worst_and_median_come_first() -> None:
    words = [(word, one.key) for word, one in chosen(CASES)]
    assert words == [
        ("greatest gain", "first"),
        ("least gain", "second"),
        ("median gain", "<third>"),
    ]


@pytest.mark.parametrize("name", ["gallery", "report"])
def test_pages_need_nothing_else_and_escape_names(
    name: str, request: pytest.FixtureRequest
) -> None:
    text = request.getfixturevalue(name).read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert "<third>" not in text
    assert "&lt;third&gt;" in text
    assert "true radius 0 to 1 px</td><td>0.52</td>" in text
    assert text.count("data:image/") >= 3 * 9


def test_gallery_says_what_it_measured(gallery: Path) -> None:
    text = gallery.read_text()
    for wanted in (
        "protocol <code>standard</code>",
        "95 % within 19.50 to 20.90",
        "LPIPS, AlexNet: no weights",
        "+0.125 dB, 95 % within 0.100 to 0.150",
        "better on 2 of 3 images than <code>runs/b</code>",
        "indoor",
        "metric protocol is not stated",
    ):
        assert wanted in text


def test_crop_is_taken_where_most_was_changed() -> None:
    values = np.zeros((200, 300), np.float32)
    values[150, 40] = 1
    rows, columns = busiest(values, 64)
    assert rows.start <= 150 < rows.stop
    assert columns.start <= 40 < columns.stop
    assert (rows.stop - rows.start, columns.stop - columns.start) == (64, 64)
    assert busiest(values[:20, :30], 64) == (slice(0, 20), slice(0, 30))


def test_report_has_curves_settings_versions_and_times(report: Path) -> None:
    text = report.read_text()
    for wanted in ("training loss", "validation PSNR", "steps: 5", "torch 2", "+0.50 dB"):
        assert wanted in text
    assert text.count("<svg") == 2


async def look(url: str, profile: Path) -> None:
    async with browser(profile) as page:
        await page.open(url)
        assert page.complaints() == []
        assert [u for u in page.fetched() if not u.startswith(("file:", "data:"))] == []
        broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
        assert await page.evaluate(broken) == 0
        # The slider follows the arrow keys.
        await page.evaluate("document.querySelector('.slider input').focus()")
        for kind in ("keyDown", "keyUp"):
            await page.send(
                "Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight"
            )
        at = "document.querySelector('.slider').style.getPropertyValue('--at')"
        assert await page.evaluate(at) == "51%"
        # On a phone nothing sticks out, in light and in dark.
        await page.send(
            "Emulation.setDeviceMetricsOverride",
            width=360,
            height=740,
            deviceScaleFactor=2,
            mobile=True,
        )
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        colours = []
        for scheme in ("light", "dark"):
            await page.send(
                "Emulation.setEmulatedMedia",
                features=[{"name": "prefers-color-scheme", "value": scheme}],
            )
            colours.append(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert colours[0] != colours[1]


async def sort(url: str, profile: Path) -> None:
    async with browser(profile) as page:
        await page.open(url)
        first = (
            "[...document.querySelectorAll('table')].at(-1).tBodies[0].rows[0].cells[0].innerText"
        )
        button = "[...document.querySelectorAll('table')].at(-1).querySelectorAll('button')[2]"
        await page.evaluate(f"{button}.click()")
        assert await page.evaluate(first) == "first"
        await page.evaluate(f"{button}.click()")
        assert await page.evaluate(first) == "second"
        # What has no number comes last, and the others are in order all the same.
        body = "[...document.querySelectorAll('table')].at(-1).tBodies[0]"
        cells = f"[...{body}.rows].map(row => row.cells[2].innerText).join(' ')"
        await page.evaluate(
            f"for (const body = {body}; body.rows.length < 6;)"
            " body.append(body.rows[0].cloneNode(true))"
        )
        await page.evaluate(
            "['27.13', '-', '30.2', '25.1', '-', '9'].forEach((text, n) =>"
            f" {{ {body}.rows[n].cells[2].innerText = text }})"
        )
        for order in ("30.2 27.13 25.1 9 - -", "9 25.1 27.13 30.2 - -"):
            await page.evaluate(f"{button}.click()")
            assert await page.evaluate(cells) == order


@pytest.mark.full
@pytest.mark.parametrize("name", ["gallery", "report"])
def test_pages_in_a_browser(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path = request.getfixturevalue(name)
    asyncio.run(look(path.as_uri(), tmp_path / "profile"))


@pytest.mark.full
def test_table_sorts_in_a_browser(gallery: Path, tmp_path: Path) -> None:
    asyncio.run(sort(gallery.as_uri(), tmp_path / "profile"))
