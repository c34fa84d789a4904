"""From a config to a scored model: the run, the loop, checkpoints, signals, several seeds.

Others use :func:`simcse.training.run.train` and :mod:`.seeds`; whoever wants to read how training
goes begins with :mod:`.loop`.
"""
