"""Other ways to use the same adapters: merged, weighed by a search, or routed by other libraries."""
