"""Models: from a URI to weights, tokenizer and head."""
