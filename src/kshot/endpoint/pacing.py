"""A rate limit that several threads keep together."""

import threading
import time
from collections.abc import Callable

from kshot.errors import ConfigError


class Pacer:
    """Lets requests start at even distances, `requests_per_minute` of them in a minute.

    Args:
        requests_per_minute: None for no limit.
        clock: In seconds.
        sleep: Waits for so many seconds.

    Raises:
        ConfigError: The limit is not above 0.
    """

    def __init__(
        self,
        requests_per_minute: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if requests_per_minute is not None and not requests_per_minute > 0:
            raise ConfigError(
                f"requests_per_minute must be above 0, got {requests_per_minute}: leave it out for no limit"
            )
        self._distance_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._next_start_s = clock()

    def wait(self) -> None:
        """Return when the next request may start."""
        with self._lock:
            now_s = self._clock()
            start_s = max(now_s, self._next_start_s)
            self._next_start_s = start_s + self._distance_s
        if start_s > now_s:
            self._sleep(start_s - now_s)
