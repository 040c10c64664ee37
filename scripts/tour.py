# %% [markdown]
# # A tour in two minutes: train, compare, evaluate
# Open this file as a notebook (VS Code and Jupyter with jupytext know the `# %%` cells), or run it: `python scripts/tour.py`.
# It trains on 5,000 digits that come with a package, and needs no network.

# %%
from mnist_exp import compose, evaluate, load_model, load_runs, train
from mnist_exp.compare import against_group, group

SMALL = ["data=sample", "model=small_cnn", "schedule.initial_epochs=5", "schedule.extra_epochs=1"]

# %% [markdown]
# ## Train
# The same overrides as on the command line. A run is a folder, which a notebook shows as a table.

# %%
compose(*SMALL).optimizer

# %%
run = train(*SMALL, "seed=1")
run

# %%
run.curves()

# %%
run.confusion()

# %% [markdown]
# ## Compare
# Does mixing help so small a network? Three seeds of each.

# %%
for prob in (0.102, 0.5):
    for seed in (1, 2, 3):
        train(*SMALL, f"augment.mix.prob={prob}", f"seed={seed}", "tags=[tour]")

runs = load_runs("outputs")
runs = runs[runs["tags"] == "tour"].reset_index(drop=True)
runs

# %%
group(runs, ["augment.mix.prob"])

# %% [markdown]
# The difference over seeds, its test and what may be said: better, worse, or that nobody can tell.

# %%
verdict = against_group(runs, runs["name"][0], ["augment.mix.prob"])
print(verdict.T)

# %% [markdown]
# ## Evaluate
# The ensemble of the three without much mixing, on the validation digits: the test set is scored once, by each run itself.

# %%
folders = runs["path"][runs["augment.mix.prob"] == 0.102]
found = evaluate(load_model(*folders), "val", tta_runs=5)
print({key: round(float(value), 3) for key, value in found.scores().items()})
print(f"{found.agreement():.1f} % of the digits are told the same by all three")
