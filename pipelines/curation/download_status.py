"""Why an image was not downloaded, from what img2dataset and urllib wrote into the columns `status` and
`error_message`."""

import re

_WORD = re.compile(
    r"(refused_address|dns|tls|connection|timeout|too_large|truncated|invalid_url|not_an_image|opt_out)\b:?"
)
"""What `groupvit download` begins its messages with."""
_HTTP = re.compile(r"HTTP Error (\d{3})", re.IGNORECASE)
_MESSAGES = {
    "disallowed by X-Robots-Tag": "download_opt_out",
    "timed out": "download_timeout",
    "certificate|ssl": "download_tls",
    "not known|name resolution|no address associated|getaddrinfo|idna": "download_dns",
    "IncompleteRead": "download_truncated",
    r"remote end closed|connection|errno 10[0-9]|errno 11[0-3]|tunnel|broken pipe": "download_connection",
    "unknown url type|control characters|no host given|nonnumeric port|invalid (url|ipv6)": "download_invalid_url",
    "image decoding error|cannot identify": "download_not_an_image",
    "hash mismatch": "download_changed",
    "image too small": "image_too_small",  # by options of img2dataset
    "image area too large": "image_too_many_pixels",
    "aspect ratio too large": "image_aspect_ratio",
}
"""What other messages say, and the reason that gives: the first that is found counts."""
_REASONS = tuple((re.compile(pattern, re.IGNORECASE), reason) for pattern, reason in _MESSAGES.items())


def failure_reason(status: str, message: str | None) -> str:
    """Drop reason of a row whose status is not success: download_timeout, download_http_404 and their like."""
    message = message or ""
    if word := _WORD.match(message):
        return f"download_{word.group(1)}"
    if http := _HTTP.search(message):
        return f"download_http_{http.group(1)}"
    for pattern, reason in _REASONS:
        if pattern.search(message):
            return reason
    return "download_not_an_image" if status == "failed_to_resize" else "download_other"
