"""From stored stages to what a report is made of."""
