"""A run over hosts within a test: the server here, each host in a thread with a link of its own."""

import contextlib
import threading
import time

from edge_runtime.control.bundle_store import publish
from edge_runtime.control.nats_link import NatsLink
from edge_runtime.guard.policy import load_policy
from edge_runtime.joining.host import join
from edge_runtime.joining.host_settings import HostSettings
from edge_runtime.task_spec import load_task
from server.commands.serve import Begun, hosts_of, roster_of, run_terms
from server.run.data import load_run_data
from server.run.experiment import Experiment
from server.store.run_store import RunStore

RUN = "run-1"


class Federation:
    """One run, its server and its hosts; whoever goes can be started again.

    Args:
        folder: of the run, the hosts' data and their own disks.
        config: of the run.
        url: of the broker.
        policy: file of every owner's policy, if there is one.
        seed: of keys that follow from it, for hosts whose names are numbers; None for real ones.
    """

    def __init__(self, folder, config, url, policy=None, seed=None):
        self.folder, self.config, self.url, self.seed = folder, config, url, seed
        self.run_folder = folder / "run"
        self._policy = policy
        self._hosts, self.links, self.said, self.errors = {}, {}, {}, {}
        spec, task_folder = load_task("snips")
        self.lines = (task_folder / spec.train).read_text("utf-8").splitlines(keepends=True)

    def come(self, name, number=0, **changes):
        """Start a host: again, with the data and the disk that it had."""
        data = self.folder / f"{name}.tsv"
        if not data.exists():
            self.folder.mkdir(exist_ok=True)
            data.write_text("".join(self.lines[number : 1000 : len("abcd")]), "utf-8")
        policies = {} if self._policy is None else {name: load_policy(self._policy)}
        values = {
            "host": name, "data": {name: data},
            "state": self.folder / f"state-{name}", "policies": policies,
            "may_simulate": self.seed is not None, **changes,
        }  # fmt: skip
        is_over, said = threading.Event(), self.said.setdefault(name, [])
        self.errors.pop(name, None)

        def serve():
            try:
                with contextlib.closing(NatsLink(self.url, name)) as link:
                    self.links[name] = link
                    join(link, HostSettings(**values), said.append, is_over)
            except Exception as error:
                self.errors[name] = error

        thread = threading.Thread(target=serve, name=f"host {name}", daemon=True)
        self._hosts[name] = (thread, is_over)
        thread.start()

    def leave(self, name):
        """End a host between two of its orders, as far as anybody can tell: without a word."""
        thread, is_over = self._hosts[name]
        is_over.set()
        thread.join(60.0)
        assert not thread.is_alive()

    def ended(self, name):
        """Whether a host has ended by itself."""
        self._hosts[name][0].join(60.0)
        return not self._hosts[name][0].is_alive()

    @contextlib.contextmanager
    def server(self, *, resumes=False, wait_s=60.0, patience_s=60.0, enough=None):
        """The server's side: yields (experiment, hosts) when all, or enough, are there."""
        begun = self._begun() if resumes else None
        data = load_run_data(self.config, deals=False)
        with contextlib.ExitStack() as opened:
            link = opened.enter_context(contextlib.closing(NatsLink(self.url, "server")))
            terms = run_terms(self.config, data, RUN, seed=self.seed)
            roster = opened.enter_context(
                contextlib.closing(roster_of(link, self.config, terms, begun))
            )
            publish(link, data.bundle)
            roster.wait_for_all(wait_s, enough, self._check)
            hosts = opened.enter_context(
                contextlib.closing(
                    hosts_of(link, roster, self.config, begun, patience_s=patience_s)
                )
            )
            if begun is None:
                run = Experiment.start(self.config, self.run_folder, hosts=hosts, data=data)
            else:
                run = Experiment.resume(self.run_folder, hosts=hosts)
            yield opened.enter_context(contextlib.closing(run)), hosts

    def _check(self):
        for error in self.errors.values():
            raise error

    def _begun(self):
        store = RunStore.open_to_read(self.run_folder)
        try:
            epoch = store.meta("epoch") + 1
            return Begun(store.config(), RUN, store.meta("hosts"), epoch)
        finally:
            store.close()

    def close(self):
        """End every host."""
        for name in self._hosts:
            self.leave(name)


def until(is_so, what="it does not come to that"):
    """Return when it is; what else there is to say may be asked for at the end."""
    for _ in range(1200):
        if is_so():
            return
        time.sleep(0.05)
    raise AssertionError(what() if callable(what) else what)
