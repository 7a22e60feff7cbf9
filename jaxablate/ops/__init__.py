"""What has to be fast: order statistics for gates, two-stream attention, cross-entropy without logits."""
