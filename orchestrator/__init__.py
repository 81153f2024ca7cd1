"""What runs where and when: prompts in, videos out, over a Ray cluster."""

__version__ = "0.1.0"
