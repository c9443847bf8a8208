"""All that can be said without a task."""

from kshot.doctor.finding import Finding
from kshot.doctor.machine import check_machine
from kshot.doctor.packages import check_extras, check_packages
from kshot.doctor.places import check_places


def check_environment() -> list[Finding]:
    """Look at machine, packages, disks, caches, the Hub and extras; takes a few seconds at most."""
    return [*check_machine(), *check_packages(), *check_places(), *check_extras()]
