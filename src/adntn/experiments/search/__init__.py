"""Sizes without tuning by hand: ``adntn search``, on Optuna."""
