"""Tries a few URLs before a download of hours: checks whether this machine can fetch anything, and if not, why."""

import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pipelines.dataset.raw_shards import failure_reason
from pipelines.download.consent import Consent, consent_handlers
from pipelines.download.safe_http import FetchLimits, make_opener

# img2dataset's own User-Agent, because sites answer differently by it.
_USER_AGENT = "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:72.0) Gecko/20100101 Firefox/72.0"
_OPT_OUT = "these sites ask not to be used for training; --respect-opt-out False overrides them"
_ADVICE = {
    "connection": "check that this machine reaches the internet, or set HTTP_PROXY and HTTPS_PROXY",
    "dns": "check the machine's DNS, or set HTTP_PROXY and HTTPS_PROXY to a proxy that resolves names",
    "http_407": "give the proxy's user and password in HTTP_PROXY and HTTPS_PROXY",
    "invalid_url": "check that the URL column is the right one",
    "noml": _OPT_OUT,
    "opt_out": _OPT_OUT,
    "refused_address": "for an intranet give --allow-private-addresses, for a single host --allow-hosts HOST:PORT",
    "robots_error": "try later, or --respect-robots-txt False fetches regardless",
    "robots_txt": "robots.txt of these sites disallows it; --respect-robots-txt False overrides them",
    "tdm_reservation": _OPT_OUT,
    "timeout": "check firewall and proxy, or give a longer --timeout",
    "tls": "check the machine's certificates and clock; SSL_CERT_FILE names others",
    "too_large": "give a larger --max-bytes",
}


def preflight(
    urls: Sequence[str],
    limits: FetchLimits,
    consent: Consent,
    timeout: float,
    opt_out_directives: Sequence[str],
) -> None:
    """Fetches the URLs. Raises ValueError, in one line with what to do, if all of them fail."""
    from pipelines.download.fetching import is_disallowed  # slow imports that the earlier checks do not need

    opener = make_opener(limits, *consent_handlers(consent, limits))

    def failure(url: str) -> str | None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": _USER_AGENT})
            with opener.open(request, timeout=timeout) as response:
                response.read()
                if is_disallowed(response.headers, consent.user_agent_token, opt_out_directives):
                    return "disallowed by X-Robots-Tag"
        except Exception as error:  # as in the download, any error is a failure of this URL
            return str(error)
        return None

    with ThreadPoolExecutor(len(urls)) as pool:
        messages = list(pool.map(failure, urls))
    failed = [(url, message) for url, message in zip(urls, messages, strict=True) if message is not None]
    print(f"preflight: {len(urls) - len(failed)} of {len(urls)} URLs answered", flush=True)
    if len(failed) < len(urls):
        return
    reasons = Counter(failure_reason(message) for _, message in failed)
    reason = reasons.most_common(1)[0][0]
    url, message = next((url, message) for url, message in failed if failure_reason(message) == reason)
    scheme, _, rest = url.partition("://")
    host = rest.partition("/")[0].rpartition("@")[2]  # not the whole URL, which may contain a signature
    proxy = "" if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme.lower(), "")
    through = f" through the proxy {proxy.rpartition('@')[2].rpartition('//')[2]}" if proxy else ""
    raise ValueError(
        f"preflight: all {len(urls)} URLs tried failed ({', '.join(f'{name} {num}' for name, num in reasons.items())}; "
        f"{host}{through}: {message}): {_ADVICE.get(reason, 'check the list')}; --preflight 0 goes on regardless"
    )
