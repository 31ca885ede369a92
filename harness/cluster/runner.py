"""What runners of all clusters share: the jobs of a plan that are left, and where they were done."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from harness.cluster.order import Told, environment_of
from harness.plan.jobs import Job, jobs_of
from harness.run.runner import Runner


class ClusterRunner(Runner):
    """Has a plan's jobs done on other machines; checks, record and view are here."""

    _told: Sequence[Told] = ()
    """What the jobs that were done said."""

    def environment(self) -> Mapping[str, object]:
        return environment_of(self._told)

    def _walk(self, *, by_seed: bool) -> None:
        if jobs := [job for job in jobs_of(self.plan, self.store) if job.makes]:
            self._hand_out(jobs)
        else:
            super()._walk(by_seed=by_seed)

    @abstractmethod
    def _hand_out(self, jobs: list[Job]) -> None:
        """Have the cluster do jobs, none of which is empty."""
