"""kshot: from K labelled examples to a task expert."""
