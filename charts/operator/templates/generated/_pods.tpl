{{- /* Generated from operator/cmd/charts/shared by `npm run generate`. Do not edit. */ -}}

{{- /* Image of all processes. */ -}}
{{- define "gpulease.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* Labels by which the pods of a process are found, for ever the same. Given: root, component. */ -}}
{{- define "gpulease.selector" -}}
app.kubernetes.io/name: gpulease
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "gpulease.labels" -}}
{{ include "gpulease.selector" . }}
app.kubernetes.io/part-of: gpulease
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Text of a value. Numbers come as floats, which Go would print as 3.1536e+07. */ -}}
{{- define "gpulease.text" -}}
{{- if or (kindIs "float64" .) (kindIs "int64" .) (kindIs "int" .) -}}{{ int64 . }}{{- else -}}{{ toString . }}{{- end -}}
{{- end -}}

{{- /* Flags from values: true is a switch, a list repeats the flag. A YAML list of arguments. */ -}}
{{- define "gpulease.flags" -}}
{{- range $name, $value := . }}
{{- $flag := printf "--%s" (regexReplaceAll "([A-Z])" $name "-${1}" | lower) }}
{{- if kindIs "bool" $value }}
{{- if $value }}
- {{ $flag | quote }}
{{- end }}
{{- else if kindIs "slice" $value }}
{{- range $value }}
- {{ printf "%s=%s" $flag (include "gpulease.text" .) | quote }}
{{- end }}
{{- else if not (kindIs "invalid" $value) }}
- {{ printf "%s=%s" $flag (include "gpulease.text" $value) | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* --chain for each chain, unless they come from a Secret. */ -}}
{{- define "gpulease.chainFlags" -}}
{{- if not .Values.chainsSecret.name }}
{{- range .Values.chains }}
- {{ printf "--chain=%s=%s" (include "gpulease.text" .id) (join "," .rpcUrls) | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "gpulease.chainEnv" -}}
{{- with .Values.chainsSecret }}
{{- if .name }}
- name: GPULEASE_CHAIN
  valueFrom: { secretKeyRef: { name: {{ .name }}, key: {{ .key }} } }
{{- end }}
{{- end }}
{{- end -}}

{{- define "gpulease.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "gpulease.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{- /*
A Deployment. Given: root, component, serviceAccount, namespace, pods (values), args, env, ports, volumes, mounts (lists as
YAML text, may be empty).
*/ -}}
{{- define "gpulease.deployment" -}}
{{- $root := .root -}}
{{- $pods := .pods -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .serviceAccount }}
  namespace: {{ .namespace }}
  labels: {{- include "gpulease.labels" . | nindent 4 }}
spec:
  replicas: {{ $pods.replicas }}
  revisionHistoryLimit: 3
  # One more at first, so that somebody is ready to take over when the leader lets go.
  strategy: { type: RollingUpdate, rollingUpdate: { maxSurge: 1, maxUnavailable: 0 } }
  selector:
    matchLabels: {{- include "gpulease.selector" . | nindent 6 }}
  template:
    metadata:
      # None that changes with the chart's version, or pods would be replaced for nothing.
      labels:
        {{- include "gpulease.selector" . | nindent 8 }}
        {{- with $root.Values.commonLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- with $pods.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- $annotations := merge (dict) $pods.podAnnotations (.annotations | default dict) }}
      {{- with $annotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ .serviceAccount }}
      {{- with $root.Values.imagePullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $pods.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      # Service variables of the namespace are nobody's business here.
      enableServiceLinks: false
      terminationGracePeriodSeconds: 30
      securityContext: {{- include "gpulease.podSecurity" $root | nindent 8 }}
      containers:
        - name: {{ .component }}
          image: {{ include "gpulease.image" $root | quote }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args:
            - {{ .component }}
            {{- include "gpulease.flags" (dict "logLevel" $root.Values.log.level "logFormat" $root.Values.log.format) | trim | nindent 12 }}
            {{- .args | trim | nindent 12 }}
            {{- range $pods.extraArgs }}
            - {{ . | quote }}
            {{- end }}
          {{- $env := trim (printf "%s\n%s" (.env | default "") (empty $pods.extraEnv | ternary "" (toYaml $pods.extraEnv))) }}
          {{- with $env }}
          env: {{- . | nindent 12 }}
          {{- end }}
          ports:
            - { name: operations, containerPort: 8080 }
            {{- with .ports }}
            {{- trim . | nindent 12 }}
            {{- end }}
          startupProbe:
            httpGet: { path: /livez, port: operations }
            periodSeconds: 1
            failureThreshold: 60
          livenessProbe:
            httpGet: { path: /livez, port: operations }
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet: { path: /readyz, port: operations }
            periodSeconds: 5
            timeoutSeconds: 5
          resources: {{- toYaml $pods.resources | nindent 12 }}
          securityContext: {{- include "gpulease.containerSecurity" $root | nindent 12 }}
          volumeMounts:
            - { name: tmp, mountPath: /tmp }
            {{- with .mounts }}
            {{- trim . | nindent 12 }}
            {{- end }}
            {{- with $pods.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - { name: tmp, emptyDir: { sizeLimit: 16Mi } }
        {{- with .volumes }}
        {{- trim . | nindent 8 }}
        {{- end }}
        {{- with $pods.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $pods.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $pods.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      affinity:
        {{- with $pods.affinity }}
        {{- toYaml . | nindent 8 }}
        {{- else }}
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 50
              preference: { matchExpressions: [{ key: gpulease.dev/offered, operator: DoesNotExist }] }
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 100
              podAffinityTerm:
                topologyKey: kubernetes.io/hostname
                labelSelector:
                  matchLabels: {{- include "gpulease.selector" . | nindent 20 }}
        {{- end }}
      {{- with $pods.topologySpreadConstraints }}
      topologySpreadConstraints: {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end -}}

{{- /* A volume with a key and, for keystores, its password. Given: keySecret (values). */ -}}
{{- define "gpulease.keyVolume" -}}
- name: key
  secret:
    secretName: {{ .name }}
    defaultMode: 0440
    items:
      - { key: {{ .key | quote }}, path: key }
      {{- if .passwordKey }}
      - { key: {{ .passwordKey | quote }}, path: password }
      {{- end }}
{{- end -}}

{{- /* Namespace of the data: @release, or a name. Given: root, namespace. */ -}}
{{- define "gpulease.namespaceOf" -}}
{{- if eq .namespace "@release" -}}
{{ .root.Release.Namespace }}
{{- else if hasPrefix "@" .namespace -}}
{{ get (get .root.Values (trimPrefix "@" .namespace)) "namespace" }}
{{- else -}}
{{ .namespace }}
{{- end -}}
{{- end -}}

{{- /*
ServiceAccount, roles and bindings of one process. Given: root, component, account (data), annotations, and `with`: data of
the accounts whose work it does besides.
*/ -}}
{{- define "gpulease.rbac" -}}
{{- $root := .root -}}
{{- $component := .component -}}
{{- $name := .account.serviceAccount -}}
{{- $namespace := include "gpulease.namespaceOf" (dict "root" $root "namespace" .account.namespace) -}}
{{- $labels := include "gpulease.labels" (dict "root" $root "component" $component) -}}
{{- $cluster := .account.cluster -}}
{{- $within := dict -}}
{{- range (concat (list .account) (.with | default list)) -}}
{{- if ne .serviceAccount $name -}}{{- $cluster = concat $cluster .cluster -}}{{- end -}}
{{- range .within -}}
{{- $at := include "gpulease.namespaceOf" (dict "root" $root "namespace" .namespace) -}}
{{- $_ := set $within $at (concat (get $within $at | default list) .rules) -}}
{{- end -}}
{{- end -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  namespace: {{ $namespace }}
  labels: {{- $labels | nindent 4 }}
  {{- with .annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- if $cluster }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ $name }}
  labels: {{- $labels | nindent 4 }}
rules: {{- toYaml $cluster | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $name }}
  labels: {{- $labels | nindent 4 }}
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ $name }} }
subjects:
  - { kind: ServiceAccount, name: {{ $name }}, namespace: {{ $namespace }} }
{{- end }}
{{- range $at, $rules := $within }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ $at }}
  labels: {{- $labels | nindent 4 }}
rules: {{- toYaml $rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ $at }}
  labels: {{- $labels | nindent 4 }}
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ $name }} }
subjects:
  - { kind: ServiceAccount, name: {{ $name }}, namespace: {{ $namespace }} }
{{- end }}
{{- end -}}

{{- /* Ingress of whoever may read metrics. Given: values of networkPolicy. */ -}}
{{- define "gpulease.metricsIngress" -}}
- from:
    {{- if .metricsFrom }}
    {{- toYaml .metricsFrom | nindent 4 }}
    {{- else }}
    - namespaceSelector: {}
    {{- end }}
  ports:
    - { protocol: TCP, port: operations }
{{- end -}}

{{- /* Egress to anywhere but the networks that are denied. The first rule is for names; the resolver may be anywhere. */ -}}
{{- define "gpulease.openEgress" -}}
- ports:
    - { protocol: UDP, port: 53 }
    - { protocol: TCP, port: 53 }
- to:
    {{- $four := list }}
    {{- $six := list }}
    {{- range .deniedEgress }}
    {{- if contains ":" . }}{{- $six = append $six . }}{{- else }}{{- $four = append $four . }}{{- end }}
    {{- end }}
    - ipBlock:
        cidr: 0.0.0.0/0
        {{- with $four }}
        except: {{- toYaml . | nindent 10 }}
        {{- end }}
    - ipBlock:
        cidr: ::/0
        {{- with $six }}
        except: {{- toYaml . | nindent 10 }}
        {{- end }}
{{- end -}}

{{- /* Egress to the API server and the resolver alone. */ -}}
{{- define "gpulease.apiServerEgress" -}}
- ports:
    - { protocol: UDP, port: 53 }
    - { protocol: TCP, port: 53 }
    {{- range .apiServerPorts }}
    - { protocol: TCP, port: {{ int64 . }} }
    {{- end }}
{{- end -}}

{{- /*
A Job, or a Pod, that runs as a hook, with an account that lasts as long as it does. Given: root, name, component, hook, pods
(values), args (YAML text), rules (cluster), within (list of namespace and rules), deadline (seconds), and as needed kind,
retries, volumes, mounts, deletePolicy. Helm shows what it says, since it ends with a reason that people should read.
*/ -}}
{{- define "gpulease.hookJob" -}}
{{- $root := .root -}}
{{- $name := .name -}}
{{- $labels := include "gpulease.labels" (dict "root" $root "component" .component) -}}
{{- $namespace := $root.Release.Namespace -}}
{{- $annotations := dict "helm.sh/hook" .hook "helm.sh/hook-weight" "-5" "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  namespace: {{ $namespace }}
  labels: {{- $labels | nindent 4 }}
  annotations: {{- toYaml $annotations | nindent 4 }}
{{- if .rules }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ $name }}
  labels: {{- $labels | nindent 4 }}
  annotations: {{- toYaml $annotations | nindent 4 }}
rules: {{- toYaml .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $name }}
  labels: {{- $labels | nindent 4 }}
  annotations: {{- toYaml $annotations | nindent 4 }}
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ $name }} }
subjects:
  - { kind: ServiceAccount, name: {{ $name }}, namespace: {{ $namespace }} }
{{- end }}
{{- $within := dict }}
{{- range .within }}
{{- $at := include "gpulease.namespaceOf" (dict "root" $root "namespace" .namespace) }}
{{- $_ := set $within $at (concat (get $within $at | default list) .rules) }}
{{- end }}
{{- range $at, $rules := $within }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ $at }}
  labels: {{- $labels | nindent 4 }}
  annotations: {{- toYaml $annotations | nindent 4 }}
rules: {{- toYaml $rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ $at }}
  labels: {{- $labels | nindent 4 }}
  annotations: {{- toYaml $annotations | nindent 4 }}
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ $name }} }
subjects:
  - { kind: ServiceAccount, name: {{ $name }}, namespace: {{ $namespace }} }
{{- end }}
---
{{- $of := dict "helm.sh/hook-weight" "0" "helm.sh/hook-output-log-policy" "hook-succeeded,hook-failed" "helm.sh/hook-delete-policy" (.deletePolicy | default (get $annotations "helm.sh/hook-delete-policy")) }}
{{- if eq (.kind | default "Job") "Pod" }}
apiVersion: v1
kind: Pod
metadata:
  name: {{ $name }}
  namespace: {{ $namespace }}
  labels: {{- $labels | nindent 4 }}
  annotations: {{- toYaml (merge $of $annotations) | nindent 4 }}
spec:
  activeDeadlineSeconds: {{ int64 .deadline }}
  {{- include "gpulease.hookPod" . | nindent 2 }}
{{- else }}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ $name }}
  namespace: {{ $namespace }}
  labels: {{- $labels | nindent 4 }}
  annotations: {{- toYaml (merge $of $annotations) | nindent 4 }}
spec:
  backoffLimit: {{ .retries | default 0 }}
  activeDeadlineSeconds: {{ int64 .deadline }}
  template:
    metadata:
      labels: {{- $labels | nindent 8 }}
    spec: {{- include "gpulease.hookPod" . | nindent 6 }}
{{- end }}
{{- end -}}

{{- define "gpulease.hookPod" -}}
{{- $root := .root -}}
serviceAccountName: {{ .name }}
restartPolicy: Never
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- include "gpulease.podSecurity" $root | nindent 2 }}
containers:
  - name: {{ .component }}
    image: {{ include "gpulease.image" $root | quote }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    args: {{- .args | trim | nindent 6 }}
    # Why it ended, also for who has only the pod's status to read.
    terminationMessagePolicy: FallbackToLogsOnError
    resources: {{- toYaml .pods.resources | nindent 6 }}
    securityContext: {{- include "gpulease.containerSecurity" $root | nindent 6 }}
    volumeMounts:
      - { name: tmp, mountPath: /tmp }
      {{- with .mounts }}
      {{- trim . | nindent 6 }}
      {{- end }}
volumes:
  - { name: tmp, emptyDir: { sizeLimit: 16Mi } }
  {{- with .volumes }}
  {{- trim . | nindent 2 }}
  {{- end }}
{{- with .pods.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pods.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /*
A namespace of a process of its own, unless somebody else has made it. Kept when the chart goes: keys and stored transactions
are in it. Given: root, namespace, component.
*/ -}}
{{- define "gpulease.namespace" -}}
{{- $found := lookup "v1" "Namespace" "" .namespace -}}
{{- $owner := dig "metadata" "annotations" "meta.helm.sh/release-name" "" ($found | default dict) -}}
{{- if or (not $found) (eq $owner .root.Release.Name) }}
apiVersion: v1
kind: Namespace
metadata:
  name: {{ .namespace }}
  labels:
    {{- include "gpulease.labels" . | nindent 4 }}
    pod-security.kubernetes.io/enforce: restricted
  annotations:
    helm.sh/resource-policy: keep
{{- end }}
{{- end -}}

{{- /* rails.json of a ConfigMap. Given: list of rails. */ -}}
{{- define "gpulease.railsJson" -}}
{{- $rails := list -}}
{{- range . -}}
{{- $rails = append $rails (dict "chainId" (int64 .chainId) "escrow" .escrow "token" .token) -}}
{{- end -}}
{{ toJson $rails }}
{{- end -}}

{{- /* Refuses rails on chains that have no endpoints. Given: root, rails. */ -}}
{{- define "gpulease.checkRails" -}}
{{- if not .root.Values.chainsSecret.name }}
{{- $known := list }}
{{- range .root.Values.chains }}{{- $known = append $known (int64 .id) }}{{- end }}
{{- range .rails }}
{{- if not (has (int64 .chainId) $known) }}
{{- fail (printf "rails names chain %d, and chains does not: give it rpcUrls there" (int64 .chainId)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* A Service by which somebody outside comes in. Given: root, component, name, service (its values), target (port of the pods). */ -}}
{{- define "gpulease.service" -}}
{{- $service := .service }}
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "gpulease.labels" . | nindent 4 }}
  {{- with $service.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ $service.type }}
  {{- if ne $service.type "ClusterIP" }}
  externalTrafficPolicy: {{ $service.externalTrafficPolicy }}
  {{- end }}
  {{- if eq $service.type "LoadBalancer" }}
  {{- with $service.loadBalancerClass }}
  loadBalancerClass: {{ . }}
  {{- end }}
  {{- with $service.loadBalancerSourceRanges }}
  loadBalancerSourceRanges: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  selector: {{- include "gpulease.selector" . | nindent 4 }}
  ports:
    - name: {{ .target }}
      port: {{ $service.port }}
      targetPort: {{ .target }}
      {{- if and $service.nodePort (ne $service.type "ClusterIP") }}
      nodePort: {{ $service.nodePort }}
      {{- end }}
{{- end -}}
