"""Process groups and the attention that spans them: one clip on several GPUs, as many as suit it."""
