"""Many task experts over one base model, answered in one batch and spoken to as OpenAI's API is."""
