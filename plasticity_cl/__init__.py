"""Does it forget, or can it no longer learn? Plasticity and forgetting, told apart, on Avalanche."""

__version__ = "0.3.0"
