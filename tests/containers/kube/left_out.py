"""Fields of the manifests that are not executed, with the reason. A field that is neither used nor listed fails the
test."""

_GROUP = "volumes are given to the group as OnRootMismatch says"
_TOKEN = "there is no API server that a token could be of"
_SIZE = "a volume is as large as the machine's disk"
_ON_DEMAND = "a job is run when the test asks for it, once"

LEFT_OUT = {
    "StatefulSet.spec.template.spec.affinity": (
        "there is one machine; that nothing is required of it is one of the checks in `lint`"
    ),
    "StatefulSet.spec.template.spec.topologySpreadConstraints": "the same",
    "StatefulSet.spec.template.spec.automountServiceAccountToken": _TOKEN,
    "StatefulSet.spec.template.spec.securityContext.fsGroupChangePolicy": _GROUP,
    "StatefulSet.spec.volumeClaimTemplates.spec.resources": _SIZE,
    "PersistentVolumeClaim.spec": "it is made when a pod claims it",
    "Pod.spec.automountServiceAccountToken": _TOKEN,
    "Pod.spec.securityContext.fsGroupChangePolicy": _GROUP,
    "Job.spec.backoffLimit": "a job that fails fails the test",
    "Job.spec.ttlSecondsAfterFinished": "the test removes its pod",
    "CronJob.spec.schedule": _ON_DEMAND,
    "CronJob.spec.concurrencyPolicy": _ON_DEMAND,
    "CronJob.spec.jobTemplate.spec.backoffLimit": "a job that fails fails the test",
    "CronJob.spec.jobTemplate.spec.template.spec.affinity": "there is one machine",
    "CronJob.spec.jobTemplate.spec.template.spec.automountServiceAccountToken": _TOKEN,
    "CronJob.spec.jobTemplate.spec.template.spec.securityContext.fsGroupChangePolicy": _GROUP,
}
