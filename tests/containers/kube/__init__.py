"""Executes the Kubernetes manifests of this project on a Docker engine.

The package contains no part of Kubernetes, in particular no API server and no scheduler. It implements the requests of
the manifests as the kubelet, kube-proxy, the cluster's DNS, a network plug-in and the StatefulSet controller do, so
that a wrong manifest fails. The modules from the bottom up are `fields` (reports every unused field of a manifest),
`spec` (reads pods), `network` (addresses, DNS, services, policies), `pod` (the kubelet) and `statefulset` (the
controller). Docker commands are in `engine`, outside the package.

Does not cover: scheduling, real cloud volumes, real network plug-ins, admission.
"""
