"""Speed and memory, measured; never run by tests."""
