"""kshot's experts in EleutherAI's lm-evaluation-harness: `python -m kshot.lm_eval --model kshot ...`."""
