{{- define "vmdk-csi.labels" -}}
app.kubernetes.io/name: vmdk-csi
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What a component's pods are found by; immutable in a workload. (dict "root" . "component" "node") */}}
{{- define "vmdk-csi.selector" -}}
app.kubernetes.io/name: vmdk-csi
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* A pod's labels. (dict "root" . "component" "node" "extra" .Values.node.podLabels) */}}
{{- define "vmdk-csi.podLabels" -}}
{{ include "vmdk-csi.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- with .extra }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* (dict "root" . "name" "vmdk-hostd") */}}
{{- define "vmdk-csi.image" -}}
{{ .root.Values.image.registry }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* Where a pod may run. (.Values.node) */}}
{{- define "vmdk-csi.placement" -}}
priorityClassName: {{ .priorityClassName }}
nodeSelector:
  kubernetes.io/os: linux
  {{- with .nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A sidecar of the controller. (dict "root" . "name" "csi-resizer" "tag" "v1" "args" (list ...)) */}}
{{- define "vmdk-csi.sidecar" -}}
- name: {{ .name }}
  image: {{ .root.Values.sidecars.registry }}/{{ .name }}:{{ .tag }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    - --csi-address=/csi/csi.sock
    - --leader-election
    - --leader-election-namespace=$(NAMESPACE)
    - --v={{ .root.Values.controller.logLevel }}
    {{- range .args }}
    - {{ . }}
    {{- end }}
  env:
    - name: NAMESPACE
      valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
    - name: POD_NAME
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
  securityContext:
    {{- include "vmdk-csi.harmless" . | nindent 4 }}
  resources:
    {{- toYaml .root.Values.sidecars.resources | nindent 4 }}
  volumeMounts:
    - {name: socket, mountPath: /csi}
{{- end }}

{{/* A container that needs nothing of the node. */}}
{{- define "vmdk-csi.harmless" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Not empty when there is a datastore of kind lun. */}}
{{- define "vmdk-csi.hasLUN" -}}
{{- range .Values.datastores }}{{ if eq (.kind | default "directory") "lun" }}yes{{ end }}{{ end -}}
{{- end }}

{{/* Not empty when the vmdk-hostds talk to each other. */}}
{{- define "vmdk-csi.hasPeers" -}}
{{- include "vmdk-csi.hasLUN" . }}{{ if .Values.hostd.lend }}yes{{ end -}}
{{- end }}

{{/* Not empty when a LUN is a block device of the nodes. */}}
{{- define "vmdk-csi.hasDevice" -}}
{{- range .Values.datastores }}{{ if and (eq (.kind | default "directory") "lun") (hasPrefix "/dev/" .path) }}yes{{ end }}{{ end -}}
{{- end }}

{{/* Directories of the nodes that hold files that are LUNs, as a JSON list: a file itself could not be mounted where it is missing. */}}
{{- define "vmdk-csi.lunDirs" -}}
{{- $dirs := list }}
{{- range .Values.datastores }}
{{- if and (eq (.kind | default "directory") "lun") (hasPrefix "/" .path) (not (hasPrefix "/dev/" .path)) }}
{{- $dirs = append $dirs (dir .path) }}
{{- end }}
{{- end }}
{{- $dirs | uniq | toJson }}
{{- end }}

{{/* The Secret with the certificate authority. */}}
{{- define "vmdk-csi.caSecret" -}}
{{ .Values.hostd.caSecret | default "vmdk-hostd-ca" }}
{{- end }}
