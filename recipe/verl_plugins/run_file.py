"""Which run a process belongs to, as verl's own variable tells every process of a run."""

RUN_FILE = "VERL_FILE_LOGGER_PATH"  # the path of a file in the run's folder
