"""What pages are written with: numbers that read well, and images of formats that browsers show."""

import io

import pytest
from PIL import Image

from davae.report.markup import definitions, document, duration, embedded_image, flat_png, number, plain, rate


@pytest.mark.parametrize(
    ("value", "peers", "shown"),
    [
        (27.412, [27.412, 26.1], "27.41"),
        (0.81234, [0.81234], "0.812"),
        (-3.0, [-3.0, 2.5], "\u22123.000"),
        (12345.6, [12345.6], "12,346"),
        (64, [256, 64], "64"),
        (0.0, [1e-5, 0.0], "0.00e+00"),
    ],
)
def test_numbers_have_the_decimals_of_their_line(value: float, peers: list[float], shown: str) -> None:
    assert number(value, peers) == shown


def test_times_and_rates_are_short() -> None:
    assert [duration(seconds) for seconds in (2.5, 59.4, 125, 7260)] == ["2.5 s", "59 s", "2 min 5 s", "2 h 1 min"]
    assert [rate(value) for value in (0.12345, 80.0, 1234.5)] == ["0.123", "80", "1,234"]
    assert [plain(value) for value in (0.1234567, True, None, "x")] == ["0.123457", "true", "null", "x"]
    assert plain({"path": "my_photos", "gpu": None, "left_out": [1, 2.5]}) == "path my_photos, left out (1, 2.5)"


def test_empty_parts_leave_no_trace() -> None:
    page = document("<t>", ["", "a", "", "b"])
    assert "<body>\n\na\nb\n<script>" in page
    assert page.endswith("</script>\n</body>\n</html>\n")
    assert "<title>&lt;t&gt;</title>" in document("<t>", [])
    assert definitions({}) == ""


def test_small_images_are_enlarged_and_others_scroll() -> None:
    def shown(width: int) -> str:
        return embedded_image(flat_png(Image.new("RGBA", (width, 10))), "a", "b").partition(" src=")[0]

    assert shown(100) == '<img class="tiny" alt="a" width="500" height="50"'
    assert shown(500) == '<img class="" alt="a" width="500" height="10"'
    assert shown(700) == '<img class="wide" alt="a" width="700" height="10"'


def test_formats_that_browsers_do_not_show_are_refused() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "TIFF")
    with pytest.raises(ValueError, match=r"got TIFF in scan\.tif\. Save it as PNG"):
        embedded_image(buffer.getvalue(), "a scan", "scan.tif")
