{{/* The name of the release names everything, so that the addresses in values.yaml are right. */}}
{{- define "opik-offline.name" -}}
{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "opik-offline.labels" -}}
app: {{ include "opik-offline.name" . }}
app.kubernetes.io/name: opik-offline
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "opik-offline.secret" -}}
{{ .Values.auth.existingSecret | default (include "opik-offline.name" .) }}
{{- end }}

{{- define "opik-offline.annotations" -}}
prometheus.io/scrape: "true"
prometheus.io/port: "6745"
prometheus.io/path: /metrics
{{- end }}

{{/* Fields of a pod that belong to where it runs. */}}
{{- define "opik-offline.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* The user of the image owns the volume. */}}
{{- define "opik-offline.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/*
The container of an agent. Arguments, as a dict: root (of this chart), args, upstream, maxSize, forwardTimeout, hub (whether the upstream
is a hub), secret and key (of the intake token), volume, startupFailures, readinessPeriod, hostPort, hook (whether the pod waits for
the backlog before it stops), sidecar, resources.
*/}}
{{- define "opik-offline.container" -}}
{{- $values := .root.Values -}}
name: opik-offline
image: {{ printf "%s:%s" $values.image.repository ($values.image.tag | default .root.Chart.AppVersion) }}
{{- with $values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- if .sidecar }}
restartPolicy: Always
{{- end }}
args: {{ toJson .args }}
env:
  - name: OPIK_OFFLINE_UPSTREAM
    value: {{ .upstream | quote }}
  {{- if .hub }}
  - name: OPIK_OFFLINE_HUB_TOKEN_FILE
    value: /run/opik-offline/hub-token
  {{- end }}
  - name: OPIK_OFFLINE_LISTEN
    value: 0.0.0.0:6745
  - name: OPIK_OFFLINE_DB
    value: /data/opik_messages.db
  - name: OPIK_OFFLINE_LOG_FORMAT
    value: json
  - name: OPIK_OFFLINE_MAX_SIZE
    value: {{ .maxSize | quote }}
  {{- with .forwardTimeout }}
  - name: OPIK_OFFLINE_FORWARD_TIMEOUT
    value: {{ . | quote }}
  {{- end }}
  - name: OPIK_OFFLINE_INTAKE_TOKEN
    valueFrom:
      secretKeyRef:
        name: {{ .secret }}
        key: {{ .key }}
  {{- if $values.encryption.existingSecret }}
  - name: OPIK_OFFLINE_ENCRYPTION_KEY_FILE
    value: /run/opik-offline-key/encryption-key
  {{- end }}
  {{- with $values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - name: opik-offline
    containerPort: 6745
    {{- with .hostPort }}
    hostPort: {{ . }}
    {{- end }}
# The probes check the agent itself. An outage of the Opik server fails none of them: bridging it is its purpose.
startupProbe:
  httpGet:
    path: /-/ready
    port: opik-offline
  periodSeconds: 1
  # A large store of an older version is migrated first.
  failureThreshold: {{ .startupFailures }}
readinessProbe:
  httpGet:
    path: /-/ready
    port: opik-offline
  {{- with .readinessPeriod }}
  periodSeconds: {{ . }}
  {{- end }}
livenessProbe:
  httpGet:
    path: /-/healthy
    port: opik-offline
  periodSeconds: 15
  timeoutSeconds: 5
  failureThreshold: 4
{{- if .hook }}
lifecycle:
  preStop:
    exec:
      # Waits until what is stored is delivered, at most 20 s.
      command: ["opik-offline", "replay", "--quiet", "--timeout", "20s"]
{{- end }}
resources: {{- toYaml .resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: ["ALL"]
volumeMounts:
  - name: {{ .volume }}
    mountPath: /data
  {{- if .hub }}
  - name: hub-token
    mountPath: /run/opik-offline
    readOnly: true
  {{- end }}
  {{- if $values.encryption.existingSecret }}
  - name: encryption-key
    mountPath: /run/opik-offline-key
    readOnly: true
  {{- end }}
{{- end }}

{{/* Volumes with secrets. Arguments, as a dict: root, hub, secret. */}}
{{- define "opik-offline.secretVolumes" -}}
{{- if .hub }}
- name: hub-token
  secret:
    secretName: {{ .secret }}
    items:
      - key: hub-token
        path: hub-token
{{- end }}
{{- with .root.Values.encryption.existingSecret }}
- name: encryption-key
  secret:
    secretName: {{ . }}
    # The key may be readable by its user and group only.
    defaultMode: 0440
    items:
      - key: encryption-key
        path: encryption-key
{{- end }}
{{- end }}

{{/* What a chart that depends on this one puts into its own pod; see README.md. Each takes the context of that chart. */}}
{{- define "opik-offline.sidecar" -}}
{{- $root := index .Subcharts "opik-offline" -}}
{{- $sidecar := $root.Values.sidecar -}}
{{- include "opik-offline.container" (dict "root" $root "sidecar" true "args" (list "agent") "upstream" $sidecar.upstream
  "maxSize" $sidecar.maxSize "hub" $sidecar.hub "secret" $sidecar.secret "key" "intake-token" "volume" "opik-offline"
  "startupFailures" 60 "hook" true "resources" $sidecar.resources) }}
{{- end }}

{{- define "opik-offline.sidecar.volumes" -}}
{{- $root := index .Subcharts "opik-offline" -}}
{{- $sidecar := $root.Values.sidecar -}}
- name: opik-offline
  emptyDir:
    sizeLimit: {{ $sidecar.volumeSize }}
{{ include "opik-offline.secretVolumes" (dict "root" $root "hub" $sidecar.hub "secret" $sidecar.secret) | trim }}
{{- end }}

{{/* The variables of the application's own container. */}}
{{- define "opik-offline.sidecar.env" -}}
{{- $sidecar := (index .Subcharts "opik-offline").Values.sidecar -}}
- name: OPIK_OFFLINE_INTAKE_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ $sidecar.secret }}
      key: intake-token
- name: OPIK_URL_OVERRIDE
  value: http://127.0.0.1:6745/-/token/$(OPIK_OFFLINE_INTAKE_TOKEN)/api
{{- end }}
