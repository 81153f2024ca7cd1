"""What runs where and when: prompts in, videos out, over a Ray cluster."""
