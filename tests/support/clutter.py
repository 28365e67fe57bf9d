"""Lays beside files what systems and editors leave there."""

from pathlib import Path

APPLE_DOUBLE = b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + bytes(100)


def add_clutter(folder: Path) -> None:
    """Beside every file and folder below `folder`, and in folders of its own."""
    for path in sorted(folder.rglob("*")):
        path.with_name(f"._{path.name}").write_bytes(APPLE_DOUBLE)
    for inner in [folder, *(path for path in sorted(folder.rglob("*")) if path.is_dir())]:
        for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (inner / name).write_bytes(b"x")
        for name in (".ipynb_checkpoints", "__MACOSX"):
            (inner / name).mkdir()
            for file in [path for path in inner.iterdir() if path.is_file()]:
                (inner / name / f"{file.stem}-checkpoint{file.suffix}").write_bytes(b"copied halfway")
