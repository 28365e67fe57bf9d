import pytest

from pipelines.provenance import code_version, redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:pa55@host:80/x", "https://***@host:80/x"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("https://h/x?X-Amz-Signature=abc&part=1", "https://h/x?X-Amz-Signature=***&part=1"),
        ('{"aws_secret_access_key": "abc", "num_steps": 3}', '{"aws_secret_access_key": "***", "num_steps": 3}'),
        ("num_group_tokens=(64, 8, 0)", "num_group_tokens=(64, 8, 0)"),
        ('{"model.image.num_group_tokens": [64, 8]}', '{"model.image.num_group_tokens": [64, 8]}'),
    ],
)
def test_redact(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_code_version_names_a_version() -> None:
    assert code_version()


def test_packed_code_is_of_the_version_it_was_packed_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUPVIT_CODE_VERSION", "0123abcd")
    assert code_version() == "0123abcd"
