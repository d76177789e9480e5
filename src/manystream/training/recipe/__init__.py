"""How a network is trained: optimizer, schedule, loss, precision, which weights are kept."""
