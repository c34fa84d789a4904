"""From a config to a scored model: the run, the loop, checkpoints, signals, several seeds.

Others use :func:`simcse.training.several.train` and :func:`.train_sweep`; whoever wants to read how
training goes begins with :mod:`.loop`.
"""
