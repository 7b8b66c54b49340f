"""What kubectl prints as JSON, as far as it is used: bounded and typed before anything reads it."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from pipeline.border import Text, parse_json, validated

T = TypeVar("T")


class _Answer(BaseModel):
    """Named as in Kubernetes; whatever else an object has is left out."""

    model_config = ConfigDict(alias_generator=to_camel, frozen=True)


class Metadata(_Answer):
    name: Text = ""
    uid: Text = ""
    creation_timestamp: Text = ""
    deletion_timestamp: Text = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Container(_Answer):
    image: Text = ""


class PodSpec(_Answer):
    node_name: Text = ""
    containers: list[Container] = []


class PodTemplate(_Answer):
    spec: PodSpec = PodSpec()


class Group(_Answer):
    template: PodTemplate = PodTemplate()


class ClusterSpec(_Answer):
    head_group_spec: Group = Group()
    worker_group_specs: list[Group] = []


class JobSpec(_Answer):
    entrypoint: str = ""
    ray_cluster_spec: ClusterSpec = ClusterSpec()


class JobStatus(_Answer):
    """How far KubeRay is with a RayJob."""

    job_deployment_status: Text = ""
    job_status: Text = ""
    job_id: Text = ""
    ray_cluster_name: Text = ""
    reason: Text = ""
    message: str = ""  # with the end of the driver's log


class Found(_Answer):
    """A RayJob as the cluster has it."""

    metadata: Metadata
    spec: JobSpec
    status: JobStatus = JobStatus()


class Said(_Answer):
    """A reason and a message: a condition's, an event's, or a waiting container's."""

    type: Text = ""
    status: Text = ""
    reason: Text = "waiting"
    message: str = ""


class ContainerState(_Answer):
    waiting: Said | None = None


class ContainerStatus(_Answer):
    state: ContainerState = ContainerState()


class PodStatus(_Answer):
    conditions: list[Said] = []
    init_container_statuses: list[ContainerStatus] = []
    container_statuses: list[ContainerStatus] = []


class Pod(_Answer):
    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class Reference(_Answer):
    kind: Text = "object"
    name: Text = ""
    uid: Text = ""


class Event(Said):
    involved_object: Reference = Reference()


class Pods(_Answer):
    items: list[Pod] = Field(max_length=10_000)


class Events(_Answer):
    items: list[Event] = Field(max_length=100_000)


def parsed(kind: type[T], text: str, where: str) -> T:
    """An answer of kubectl's as an object.

    Raises:
        BadInput: if it is not strict JSON, or not an object of that kind.
    """
    return validated(kind, parse_json(text.encode(), where), where)
