"""Why an image was not downloaded, from what img2dataset and urllib wrote into the columns `status` and
`error_message`."""

import re

# In this order: the first that is found in the message counts. A message without a row here gives download_failed, or
# download_not_an_image where img2dataset failed to resize.
_REASONS = tuple(
    (re.compile(pattern, re.IGNORECASE), reason)
    for pattern, reason in (
        (r"X-Robots-Tag|disallowed by", "download_opted_out"),
        (r"private|loopback|link-local|metadata address|not (?:a )?(?:public|global)|reserved", "download_private_address"),
        (r"timed? ?out", "download_timeout"),
        (r"(?:body|response|file|content|download)\W.*(?:too (?:large|big|long)|exceeds|larger than|more than)", "download_too_large"),
        (r"certificate|ssl", "download_certificate"),
        (r"name or service|resolve|getaddrinfo|name resolution|no address", "download_no_such_host"),
        (r"refused|reset|unreachable|remote end closed|incompleteread|incomplete read|broken pipe", "download_connection"),
        (r"redirect", "download_redirect"),
        (r"hash mismatch", "download_changed"),
        (r"image too small", "image_too_small"),
        (r"image area too large", "image_too_many_pixels"),
        (r"aspect ratio too large", "image_aspect_ratio"),
    )
)  # fmt: skip
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
