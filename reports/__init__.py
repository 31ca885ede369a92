"""From a tidy table of results to Markdown and CSV in the paper's layout."""
