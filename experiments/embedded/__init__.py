"""How the embedded model `wan-mini` is made: scenes with known truth, training, export, evaluation."""
