{{- /* What runs, as JSON: for everything that is made once a process. */ -}}
{{- define "gpulease.processes" -}}
{{- $all := list (dict "component" "operator" "name" "gpulease-operator" "namespace" .Release.Namespace "replicas" .Values.operator.replicas) -}}
{{- if eq .Values.processes "Split" -}}
{{- $all = append $all (dict "component" "wallet" "name" "gpulease-wallet" "namespace" .Values.wallet.namespace "replicas" .Values.wallet.replicas) -}}
{{- $all = append $all (dict "component" "approver" "name" "gpulease-approver" "namespace" .Release.Namespace "replicas" .Values.approver.replicas) -}}
{{- end -}}
{{ dict "items" $all | toJson }}
{{- end -}}

{{- define "gpulease.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:gpulease-operator
{{- end -}}

{{- /* Refuses values that cannot work, in words that say what to do. Whoever reads values asks first: no order is promised. */ -}}
{{- define "gpulease.check" -}}
{{- if and (not .Values.chains) (not .Values.chainsSecret.name) }}
{{- fail "chains is empty: say which chain leases are paid on, e.g. chains: [{id: 42161, rpcUrls: [https://rpc.example.com]}], or name a Secret in chainsSecret.name" }}
{{- end }}
{{- if not .Values.wallet.maxEscrow }}
{{- fail "wallet.maxEscrow is empty: say how much may be locked at most, e.g. wallet: {maxEscrow: {USDC: \"1000\"}}" }}
{{- end }}
{{- if and .Values.reverse.enabled (not .Values.reverse.urls) }}
{{- fail "reverse.urls is empty: say by which URL gateways reach the listener, e.g. reverse: {urls: [wss://gpulease.example.com:9444]}" }}
{{- end }}
{{- if eq .Values.processes "Split" }}
{{- if eq .Values.wallet.namespace .Release.Namespace }}
{{- fail "wallet.namespace is the namespace of the release: the operator lists Secrets there, and would read the wallet's key. Name another, or set processes: Single" }}
{{- end }}
{{- if not .Values.wallet.dailyLimit }}
{{- fail "wallet.dailyLimit is empty: say how much may go into escrows within a day, e.g. wallet: {dailyLimit: {USDC: \"500\"}}" }}
{{- end }}
{{- if not .Values.wallet.rails }}
{{- fail "wallet.rails is empty: say which contracts and tokens the wallet may use, e.g. wallet: {rails: [{chainId: 42161, escrow: 0x…, token: 0x…}]}" }}
{{- end }}
{{- include "gpulease.checkRails" (dict "root" . "rails" .Values.wallet.rails) }}
{{- end }}
{{- end -}}
