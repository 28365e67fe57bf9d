"""Why an image was not downloaded, from what img2dataset and urllib wrote into the columns `status` and
`error_message`."""

import re

_MESSAGES = {
    "X-Robots-Tag|disallowed by": "download_opted_out",
    "private|loopback|link-local|not (a )?(public|global)|reserved address": "download_private_address",
    "timed? ?out": "download_timeout",
    r"(body|response|file|content|download)\W.*(too (large|big|long)|exceeds|more than)": "download_too_large",
    "certificate|ssl": "download_certificate",
    "name or service|resol|getaddrinfo|no address": "download_no_such_host",
    "refused|reset|unreachable|remote end closed|incomplete ?read|broken pipe": "download_connection",
    "redirect": "download_redirect",
    "hash mismatch": "download_changed",
    "image too small": "image_too_small",
    "image area too large": "image_too_many_pixels",
    "aspect ratio too large": "image_aspect_ratio",
}
"""What messages say, and the reason that gives: the first that is found counts."""
_REASONS = tuple((re.compile(pattern, re.IGNORECASE), reason) for pattern, reason in _MESSAGES.items())
_HTTP = re.compile(r"HTTP Error (\d{3})", re.IGNORECASE)


def failure_reason(status: str, message: str | None) -> str:
    """Drop reason of a row whose status is not success: a word, or download_http_404 and its like."""
    message = message or ""
    if http := _HTTP.search(message):
        return f"download_http_{http.group(1)}"
    for pattern, reason in _REASONS:
        if pattern.search(message):
            return reason
    return "download_not_an_image" if status == "failed_to_resize" else "download_failed"
