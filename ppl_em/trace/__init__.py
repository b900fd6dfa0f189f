"""The reader of Pyro programs: a fixed small number of runs turns a callable into a frozen program."""
