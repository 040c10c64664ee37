"""Run folders: their files, and what is written while a run goes on."""
