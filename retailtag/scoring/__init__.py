"""Long-tail-aware metrics, numpy only."""
