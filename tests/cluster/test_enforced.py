"""Clusters that enforce NetworkPolicies, or queue with Kueue (markers `policy` and `kueue`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.real_cluster import READY, ROOT, Submitted, checkpoints, command, kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
Submit = Callable[..., Submitted]
# Room for one run at a time.
QUEUE = """
apiVersion: kueue.x-k8s.io/v1beta1
kind: ResourceFlavor
metadata: {name: any}
---
apiVersion: kueue.x-k8s.io/v1beta1
kind: ClusterQueue
metadata: {name: era}
spec:
  namespaceSelector: {}
  preemption: {withinClusterQueue: LowerPriority}
  resourceGroups:
    - coveredResources: [cpu, memory, ephemeral-storage]
      flavors:
        - name: any
          resources:
            - {name: cpu, nominalQuota: "2"}
            - {name: memory, nominalQuota: 12Gi}
            - {name: ephemeral-storage, nominalQuota: 400Gi}
---
apiVersion: kueue.x-k8s.io/v1beta1
kind: LocalQueue
metadata: {name: era, namespace: era}
spec: {clusterQueue: era}
---
apiVersion: kueue.x-k8s.io/v1beta1
kind: WorkloadPriorityClass
metadata: {name: urgent}
value: 1000
"""


@pytest.mark.policy
def test_the_operator_is_let_in(submit: Submit) -> None:
    """POLICY_ON makes the cluster enforce NetworkPolicies, POLICY_OFF ends it."""
    command("POLICY_ON")
    try:
        one = submit("train.steps=20")
        assert one.process.wait(600) == 0, one.log.read_text()
    finally:
        command("POLICY_OFF")


@pytest.mark.kueue
def test_a_preempted_run_saves_and_goes_on(
    submit: Submit, bucket: dict[str, str], tmp_path: Path
) -> None:
    """A queue of Kueue's that an urgent run has to be let into."""
    kubectl("apply", "-f", "-", given=QUEUE)
    usual = submit("train.steps=6000", "checkpoint.every=100000", overlay=queued(tmp_path / "a"))
    usual.trains()
    urgent = submit("train.steps=20", overlay=queued(tmp_path / "b", "urgent"))
    assert urgent.process.wait(900) == 0, urgent.log.read_text()
    usual.until("Suspended", 1)
    (saved,) = checkpoints(bucket, usual)
    usual.until(f"resumed at step {saved}", 2 * READY)


def queued(folder: Path, priority: str = "") -> str:
    """The local overlay with the queue of the overlay `kueue`."""
    folder.mkdir()
    up = os.path.relpath(ROOT / "k8s/overlays", folder.resolve())
    patch = f"[{{path: {up}/kueue/gang.yaml, target: {{kind: RayCluster}}}}]"
    text = f"resources: [{up}/local]\npatches: {patch}\n"
    (folder / "kustomization.yaml").write_text(text)
    settings = folder / "rayjob.yaml"
    shutil.copy(ROOT / "k8s/jobs/kueue.yaml", settings)
    if priority:
        label = "kueue.x-k8s.io/queue-name: era"
        text = settings.read_text()
        settings.write_text(
            text.replace(label, f"{label}\n    kueue.x-k8s.io/priority-class: {priority}")
        )
    return str(folder)
