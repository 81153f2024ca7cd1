"""Attention between blocks of tokens: what is attended to, exactly on a CPU, by FlexAttention on a GPU."""
