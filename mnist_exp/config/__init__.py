"""What was asked for: the recipe, the job, and what a config may build."""
