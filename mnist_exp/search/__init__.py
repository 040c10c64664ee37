"""Searches that finish, whatever happens to them: an Optuna study behind Hydra's Optuna sweeper."""
