"""From rows of data to batches: byte spans, alignment groups, chunks, teacher rows."""
