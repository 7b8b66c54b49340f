"""`era submit`: another verb, run as a Ray job or as a RayJob on Kubernetes.

Whatever can be refused is refused on this side: the configuration is typed and checked before
anything is sent.
"""

from pipeline.submit.command import (
    Command,
    Outcome,
    recorded_result,
    training_command,
    urls_command,
)
from pipeline.submit.jobs import RayOptions, submit_to_ray
from pipeline.submit.kubernetes import submit_to_kubernetes
from pipeline.submit.rayjob import KubernetesOptions, render

__all__ = [
    "Command",
    "KubernetesOptions",
    "Outcome",
    "RayOptions",
    "recorded_result",
    "render",
    "submit_to_kubernetes",
    "submit_to_ray",
    "training_command",
    "urls_command",
]
