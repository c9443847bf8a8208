"""Banks of adapters: open, add, fill from the Hub, verify and build."""

from kshot.bank.adapter import Adapter, AdapterEntry
from kshot.bank.bank import Bank
from kshot.bank.build import build_bank
from kshot.bank.candidates import Candidate, read_list, search_hub
from kshot.bank.limits import Limits, read_size
from kshot.bank.row_hashes import row_hash, training_row_hashes
from kshot.bank.sync import Outcome, sync_bank

__all__ = [
    "Adapter",
    "AdapterEntry",
    "Bank",
    "Candidate",
    "Limits",
    "Outcome",
    "build_bank",
    "read_list",
    "read_size",
    "row_hash",
    "search_hub",
    "sync_bank",
    "training_row_hashes",
]
