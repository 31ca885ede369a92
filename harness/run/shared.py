"""A plan that several processes of one machine walk together."""

from __future__ import annotations

from harness.plan.jobs import Job, Schedule, jobs_of
from harness.run.leaders import Leaders
from harness.run.runner import Runner
from harness.run.worker import work
from harness.run.workers import Orders, Workers, check_workers, loudness


class SharedRunner(Runner):
    """Has a plan's cells made by the processes that ``launch.workers`` asks for; checks, record and view are here.

    Shared stages come first, and each cell is scored as soon as it is answered; of stages that are asked for by
    themselves (trials of settings) each is a job. A plan of which all is stored is walked in this process.
    """

    def run(self, seconds: float | None = None) -> None:
        check_workers(self.plan.recipe.launch.workers, self.ranks.world)
        super().run(seconds)

    def _make_ends(self) -> None:
        self._walk(by_seed=False)

    def _walk(self, *, by_seed: bool) -> None:
        if all(self.demand.find(end) is not None for end in self.plan.ends):
            if not self.plan.ends_alone:
                super()._walk(by_seed=by_seed)
            return
        leaders = Leaders(self.plan, self.store, self.progress)

        def done(job: Job) -> None:
            if job.place is not None:
                leaders.look(self.plan.evaluated[job.place])

        jobs = jobs_of(self.plan, self.store, by_seed=by_seed)
        orders = Orders(self.plan, self.store.root.parent, self.demand.folder, self.unsafe, loudness())
        workers = Workers(orders, work, self.plan.recipe.launch.workers, self.progress)
        workers.run(Schedule(jobs), self.failures, done)
