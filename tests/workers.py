"""What happens to the workers of a Dask cluster in tests."""

import os
import signal

from distributed import WorkerPlugin


class KilledOnce(WorkerPlugin):
    """End the first worker that begins its second task as if its machine went down.

    A worker ends itself, so a test has nothing to wait for, and nothing to come too late with:
    of more tasks than workers one is the second of its worker.

    Parameters
    ----------
    marker : Path
        A file to write the number of the process into, not there yet.
    """

    def __init__(self, marker):
        self.marker = marker
        self.begun = 0

    def transition(self, key, start, finish, **kwargs):
        self.begun += finish == "executing"
        if self.begun < 2:
            return
        try:
            with self.marker.open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)
