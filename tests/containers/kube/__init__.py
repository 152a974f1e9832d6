"""Executes Kubernetes manifests on a Docker engine, as far as those of this project go.

No part of Kubernetes is here: no API server, no scheduler. What is here does what the manifests ask for the way the kubelet,
kube-proxy, the cluster's DNS, a network plug-in and the StatefulSet controller do it, so that a manifest that is wrong fails. From
the bottom: `fields` (nothing in a manifest is ignored silently), `spec` (what a pod is), `engine_calls` (Docker), `network`
(addresses, DNS, services, policies), `pod` (the kubelet), `statefulset` (the controller).

What it cannot show: scheduling, real volumes of a cloud, real network plug-ins, admission.
"""
