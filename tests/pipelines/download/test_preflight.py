import pytest

from pipelines.download.consent import Consent
from pipelines.download.preflight import preflight
from pipelines.download.safe_http import FetchLimits

LIMITS = FetchLimits(max_bytes=1000, max_seconds=5.0, allow_private_addresses=True)


def test_a_proxy_that_fails_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:hidden@127.0.0.1:1")
    with pytest.raises(ValueError, match=r"a\.example through the proxy 127\.0\.0\.1:1: .*refused") as caught:
        preflight(["http://a.example/x.jpg?signature=hidden"], LIMITS, Consent(), 5.0, ())
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[::1/x.jpg", "data:image/png;base64,AAAA", "x.jpg", "http:///x.jpg"])
def test_urls_that_are_none_are_said_to_be_so(url):
    with pytest.raises(ValueError, match=r"invalid_url 1; .*check that the URL column is the right one"):
        preflight([url], LIMITS, Consent(), 5.0, ())
