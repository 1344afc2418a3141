"""Guards: one method is one file, or one folder when it trains; none of them ever touches a pipeline."""
