"""Guards: one method is one file, or one folder when it trains; none of them ever sees a pipeline."""
