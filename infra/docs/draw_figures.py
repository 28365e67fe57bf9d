"""Draws the figures of docs/index.md and docs/concepts.md:  python infra/docs/draw_figures.py  →  docs/pictures/*.svg

Plain SVG on white, so that they look the same on GitHub, in the site and in the dark.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "pictures"
INK, FAINT = "#263238", "#78909c"
GREY, TEAL, AMBER, BLUE, ROSE = "#eceff1", "#b2dfdb", "#ffe0b2", "#bbdefb", "#f8bbd0"


class Drawing:
    """Boxes, arrows and words, in pixels from the upper left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'role="img" font-family="Helvetica, Arial, sans-serif">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, text: str, color: str, size: int = 14) -> None:
        """A box with lines of text in its middle."""
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{color}" stroke="{FAINT}"/>'
        )
        lines = text.split("\n")
        first = y + height / 2 - (len(lines) - 1) * size * 0.6 + size * 0.35
        for index, line in enumerate(lines):
            self.words(x + width / 2, first + index * size * 1.2, line, size=size, anchor="middle")

    def words(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 13,
        anchor: str = "start",
        color: str = INK,
        bold: bool = False,
    ) -> None:
        """One line; x, y: where its base line starts, is centred or ends, as `anchor` says."""
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{color}"{weight}>'
            f"{escape(text)}</text>"
        )

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
        dashes = ' stroke-dasharray="4 3"' if dashed else ""
        self._parts.append(
            f'<path d="{path}" fill="none" stroke="{INK}" stroke-width="1.5"{dashes} marker-end="url(#tip)"/>'
        )

    def frame(self, x: float, y: float, width: float, height: float, text: str) -> None:
        """A dashed frame with its name in the upper left corner."""
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="none" stroke="{FAINT}" '
            'stroke-dasharray="6 4"/>'
        )
        self.words(x + 10, y + 18, text, size=12, color=FAINT)

    def save(self, file: Path) -> None:
        file.write_text("\n".join([*self._parts, "</svg>", ""]))


def draw_system(file: Path) -> None:
    drawing = Drawing(980, 300, "From a list of URLs to masks: what each command reads and writes")
    drawing.frame(592, 14, 376, 150, "sweep (Ray Tune): many trials of these two")
    names = ["URL list\ntsv, parquet, …", "raw shards\nParquet", "data set\n+ manifest", "checkpoints\nsafetensors"]
    for index, name in enumerate(names):
        drawing.box(14 + index * 222, 72, 122, 56, name, (GREY, GREY, BLUE, TEAL)[index])
    for index, (command, by) in enumerate(
        [("download", "img2dataset"), ("curate", "Ray Data"), ("pretrain", "Data → Train")]
    ):
        x = 136 + index * 222
        drawing.arrow((x + 4, 100), (x + 96, 100))
        drawing.words(x + 50, 90, command, bold=True, anchor="middle")
        drawing.words(x + 50, 118, by, size=12, anchor="middle", color=FAINT)
    drawing.arrow((802, 100), (862, 100))
    drawing.words(832, 90, "evaluate", size=13, bold=True, anchor="middle")
    drawing.box(866, 72, 92, 56, "mIoU,\npictures", ROSE)
    drawing.box(680, 218, 122, 60, "segment, app,\nexport, register", AMBER)
    drawing.arrow((741, 128), (741, 214))
    drawing.box(836, 218, 122, 60, "MLflow\nruns and models", GREY)
    drawing.arrow((912, 128), (912, 214))
    drawing.arrow((790, 128), (860, 214), dashed=True)
    drawing.words(14, 236, "Every arrow may be killed and started again with the same command;", size=13)
    drawing.words(14, 256, "every box is a local folder or s3://, complete or not there.", size=13)
    drawing.save(file)


def draw_model(file: Path) -> None:
    drawing = Drawing(980, 500, "The two towers of GroupViT and the two losses between them")
    drawing.words(14, 30, "image tower", bold=True)
    rows = [
        ("196 image tokens", "64 group tokens", "6 blocks", "64 segment tokens"),
        ("64 segment tokens", "8 group tokens", "3 blocks", "8 segment tokens"),
    ]
    for index, (segments, groups, blocks, merged) in enumerate(rows):
        y = 46 + index * 122
        drawing.box(14, y, 150, 40, segments, BLUE)
        drawing.box(14, y + 48, 150, 36, groups, AMBER)
        drawing.arrow((164, y + 20), (206, y + 34))
        drawing.arrow((164, y + 66), (206, y + 50))
        drawing.box(210, y + 16, 110, 52, f"transformer\n{blocks}", GREY)
        drawing.arrow((320, y + 42), (356, y + 42))
        drawing.box(360, y + 6, 190, 72, "grouping block\neach segment goes to\none group; groups average", TEAL)
        drawing.arrow((550, y + 42), (586, y + 42))
        drawing.box(590, y + 22, 150, 40, merged, BLUE)
    drawing.arrow((665, 108), (665, 152), (89, 152), (89, 164))
    drawing.arrow((665, 230), (665, 262))
    drawing.box(590, 266, 150, 40, "transformer, 3 blocks", GREY)
    drawing.arrow((740, 286), (776, 286))
    drawing.box(780, 266, 180, 40, "mean → projector → 256", GREY)
    drawing.words(750, 214, "assignments multiplied:", size=12, color=FAINT)
    drawing.words(750, 230, "a mask for each of 8 groups", size=12, color=FAINT)

    drawing.words(14, 352, "text tower", bold=True)
    drawing.box(14, 366, 226, 34, "caption: “a dog on the grass”", ROSE)
    drawing.box(14, 408, 226, 34, "prompt: “a photo of a dog.”", ROSE)
    drawing.box(14, 450, 226, 34, "prompt: “art of the grass.”", ROSE)
    for y in (383, 425, 467):
        drawing.arrow((240, y), (296, 400 + (y - 425) / 4 + 25))
    drawing.box(300, 399, 190, 52, "transformer, 12 blocks,\ncausal, width 256", GREY)
    drawing.arrow((490, 425), (536, 425))
    drawing.box(540, 405, 150, 40, "projector → 256", GREY)
    drawing.arrow((690, 416), (756, 392))
    drawing.arrow((690, 434), (756, 458))
    drawing.box(760, 362, 206, 44, "image-text loss\ncaption ↔ image", AMBER, 13)
    drawing.box(760, 442, 206, 44, "multi-label loss\nprompts ↔ image", AMBER, 13)
    drawing.arrow((870, 306), (870, 358))
    drawing.arrow((944, 306), (944, 358), dashed=True)
    drawing.arrow((944, 406), (944, 438), dashed=True)
    drawing.save(file)


def draw_order(file: Path) -> None:
    drawing = Drawing(980, 284, "From two data sets to the slices of each worker at each step")
    left, cell = 150, 25

    def row(y: int, name: str, note: str, groups: Sequence[tuple[int, str, str]]) -> None:
        drawing.words(14, y + 20, name, bold=True)
        drawing.words(14, y + 36, note, size=11, color=FAINT)
        x = left
        for count, text, color in groups:
            drawing.box(x + 1, y, count * cell - 2, 34, text, color, 13)
            x += count * cell

    epochs = [(8, "data set A, epoch 0", BLUE), (8, "data set A, epoch 1", BLUE), (16, "data set B, epoch 0", ROSE)]
    row(20, "epochs", "row groups permuted", epochs)
    row(82, "windows", "mixed, permuted", [(8, f"window {index}", GREY) for index in range(4)])
    slices = [(4, f"slice {index}", (TEAL, AMBER)[index % 2]) for index in range(8)]
    row(144, "slices", "one Ray block each", slices)
    row(206, "steps", "4 slices = 1 batch", [(16, "step 0", GREY), (16, "step 1", GREY)])
    drawing.words(
        left, 270, "2 workers: worker 0 takes slices 0, 2, 4, …, worker 1 slices 1, 3, 5, … 4 workers: one slice each."
    )
    for x in (left + 200, left + 600):
        for y in (56, 118, 180):
            drawing.arrow((x, y), (x, y + 22))
    drawing.save(file)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    draw_system(folder / "system.svg")
    draw_model(folder / "model.svg")
    draw_order(folder / "order.svg")
