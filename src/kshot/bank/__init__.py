"""Banks of adapters: open, add, verify and build."""

from kshot.bank.adapter import Adapter, AdapterEntry
from kshot.bank.bank import Bank
from kshot.bank.build import build_bank

__all__ = ["Adapter", "AdapterEntry", "Bank", "build_bank"]
