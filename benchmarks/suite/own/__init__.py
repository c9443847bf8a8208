"""Arms of kshot, and those that need nothing but a LoRA."""
