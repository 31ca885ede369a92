"""The prompt of Stanford Alpaca, which instruction tuning and its evaluation share (tatsu-lab/stanford_alpaca)."""

_PREAMBLE = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request.\n\n"


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """The Alpaca prompt, with or without an input."""
    if context:
        opening = f"{_PREAMBLE}, paired with an input that provides further context. {_REQUEST}"
        return f"{opening}### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
    return f"{_PREAMBLE}. {_REQUEST}### Instruction:\n{instruction}\n\n### Response:\n"
