"""Secrets in places where credentials can stand, and the search for them in what commands write and print."""

import base64
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path

PASSWORD_OF_VARIABLE = "planted-variable-77d0"
PLANTED = {
    "MLFLOW_TRACKING_PASSWORD": PASSWORD_OF_VARIABLE,
    "HF_TOKEN": "hf_planted9a8b7c6d",
    "HUGGING_FACE_HUB_TOKEN": "hf_planted1a2b3c4d",
    "AWS_SECRET_KEY_OF_ANOTHER": "planted-other-5e5e",
}
"""Secrets in the environment, beside the keys of an object store."""
IN_FILES = {"credentials": "planted-credentials-file-1212", "config": "planted-config-file-3434"}
"""Secrets in ~/.aws."""


def plant_in_home(home: Path) -> None:
    """Writes the files of ~/.aws."""
    (home / ".aws").mkdir(parents=True)
    for name, secret in IN_FILES.items():
        (home / ".aws" / name).write_text(f"[default]\naws_secret_access_key = {secret}\naws_access_key_id = other\n")


def found(secrets: Iterable[str], contents: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """The secrets and the names of the contents that hold them: as they are, percent-encoded, or in base64."""
    return [
        (secret, name)
        for secret in secrets
        for written in _encodings(secret)
        for name, content in contents.items()
        if written in content
    ]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def _encodings(secret: str) -> set[bytes]:
    return {secret.encode(), urllib.parse.quote(secret, safe="").encode(), base64.b64encode(secret.encode())}
