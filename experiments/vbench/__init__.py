"""VBench (Huang et al., CVPR 2024) for runs of this project: its prompts, names, totals, and its dimensions over a cluster."""
