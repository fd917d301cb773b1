{{- define "injector.labels" -}}
app.kubernetes.io/name: injector
{{- end }}

{{/* What the agent is, whole: for probes. */}}
{{- define "injector.check" -}}
exec:
  command: [/usr/bin/injector, list, --health]
timeoutSeconds: 5
{{- end }}

{{/* Folders of the node by which runtimes tell their containers. */}}
{{- define "injector.runtimes" -}}
containerd: {containerd: /run/containerd/io.containerd.runtime.v2.task}
crio: {storage: /run/containers/storage}
docker: {docker: /var/lib/docker/containers}
k0s: {k0s: /run/k0s/containerd/io.containerd.runtime.v2.task}
k3s: {k3s: /run/k3s/containerd/io.containerd.runtime.v2.task}
podman: {podman: /var/lib/containers/storage, storage: /run/containers/storage}
{{- end }}

{{/* Those of the runtimes that are wanted, as names and paths. */}}
{{- define "injector.state" -}}
{{- $known := include "injector.runtimes" . | fromYaml }}
{{- $state := dict }}
{{- range .Values.runtimes }}
{{- if not (hasKey $known .) }}
{{- fail (printf "runtimes: %q is none of %s" . (keys $known | sortAlpha | join ", ")) }}
{{- end }}
{{- $state = merge $state (get $known .) }}
{{- end }}
{{- toYaml $state }}
{{- end }}
