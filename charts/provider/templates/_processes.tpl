{{- /* What runs, as JSON: for everything that is made once a process. */ -}}
{{- define "gpulease.processes" -}}
{{- $all := list (dict "component" "gateway" "name" "gpulease-gateway" "namespace" .Release.Namespace "replicas" .Values.gateway.replicas) -}}
{{- if eq .Values.processes "Split" -}}
{{- $all = append $all (dict "component" "provisioner" "name" "gpulease-provisioner" "namespace" .Values.provisioner.namespace "replicas" .Values.provisioner.replicas) -}}
{{- end -}}
{{ dict "items" $all | toJson }}
{{- end -}}

{{- /* Refuses values that cannot work, in words that say what to do. Whoever reads values asks first: no order is promised. */ -}}
{{- define "gpulease.check" -}}
{{- if and (not .Values.chains) (not .Values.chainsSecret.name) }}
{{- fail "chains is empty: say which chain you are paid on, e.g. chains: [{id: 42161, rpcUrls: [https://rpc.example.com]}], or name a Secret in chainsSecret.name" }}
{{- end }}
{{- if not (or .Values.provider.publicUrls .Values.gateway.flags.dialOut) }}
{{- fail "provider.publicUrls is empty: say how consumers reach the gateway, e.g. provider: {publicUrls: [https://gpu.example.com:8443]}; or, where nobody can, where it dials out to: gateway: {flags: {dialOut: [wss://relay.example.com:9444]}}" }}
{{- end }}
{{- if not .Values.rails }}
{{- fail "rails is empty: say by what you are paid, e.g. rails: [{chainId: 42161, escrow: 0x…, token: 0x…, assetSymbol: USDC}]" }}
{{- end }}
{{- include "gpulease.checkRails" (dict "root" . "rails" .Values.rails) }}
{{- if and (eq .Values.tls.mode "CertManager") (not .Values.tls.issuerRef.name) }}
{{- fail "tls.issuerRef.name is empty: say which issuer of cert-manager signs, or choose another tls.mode" }}
{{- end }}
{{- if eq .Values.processes "Split" }}
{{- if eq .Values.provisioner.namespace .Release.Namespace }}
{{- fail "provisioner.namespace is the namespace of the release: the gateway, which faces the internet, lists Secrets there, and would read stored transactions. Name another, or set processes: Single" }}
{{- end }}
{{- end }}
{{- if and .Values.gatewayApi.enabled (not .Values.gatewayApi.parentRefs) }}
{{- fail "gatewayApi.parentRefs is empty: name the Gateway that the route belongs to, e.g. gatewayApi: {parentRefs: [{name: public, namespace: infra}]}" }}
{{- end }}
{{- end -}}
