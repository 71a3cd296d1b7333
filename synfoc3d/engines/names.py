"""The names of the engines: values of ``--on``; light, as every call of the command line reads them."""

ENGINES = ("local", "slurm", "ray")
