"""What generates: a queue and a thread for each model, and the guarded pipeline behind them."""
