"""What a server asks of its clients."""

from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
PORT = 8000  # as vLLM and other servers with this API
MAX_BODY_BYTES = 1_000_000  # 8192 tokens are about 40 kB of English; escapes in JSON take up to 12 times that
BODY_TIMEOUT_S = 30.0  # 33 kB/s for the largest body
TIMEOUT_S = 120.0  # 64 answers of 256 tokens at 170 tokens/s (SmolLM2-135M, 2 cores) take 96 s


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server asks of its clients.

    Attributes:
        api_key: None: anyone may ask.
        max_body_bytes: Largest request.
        requests_per_minute: Of one client, by its address; None is no limit.
        body_timeout_s: Longest time for a body to come.
        timeout_s: Longest time from a request to the end of its answer.
    """

    api_key: str | None = None
    max_body_bytes: int = MAX_BODY_BYTES
    requests_per_minute: int | None = None
    body_timeout_s: float = BODY_TIMEOUT_S
    timeout_s: float = TIMEOUT_S
