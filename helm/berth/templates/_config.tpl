{{/* What the brokers are told: the configuration file, the environment, ports, where etcd is. */}}

{{/* The namespace has no dots, so that no two pairs of namespace and release have the same name. */}}
{{- define "berth.clusterName" -}}
{{- if .Values.cluster.name }}
{{- .Values.cluster.name }}
{{- else }}
{{- $name := printf "%s.%s" .Release.Namespace .Release.Name }}
{{- if gt (len $name) 64 }}
{{- printf "%s-%s" (trunc 51 $name) (sha256sum $name | trunc 12) }}
{{- else }}
{{- $name }}
{{- end }}
{{- end }}
{{- end }}

{{/* Host names of etcd's members, separated by blanks. */}}
{{- define "berth.etcd.hosts" -}}
{{- $hosts := list }}
{{- range $i := until (int .Values.etcd.replicas) }}
{{- $hosts = append $hosts (printf "%s-%d.%s.%s.svc.%s" (include "berth.etcd.fullname" $) $i (include "berth.etcd.headless" $) $.Release.Namespace $.Values.clusterDomain) }}
{{- end }}
{{- join " " $hosts }}
{{- end }}

{{- define "berth.etcd.scheme" -}}
{{ ternary "https" "http" (not (empty .Values.etcd.tls.client.existingSecret)) }}
{{- end }}

{{/* URLs of etcd's members, separated by commas. */}}
{{- define "berth.etcd.endpoints" -}}
{{- $urls := .Values.externalEtcd.endpoints }}
{{- if .Values.etcd.enabled }}
{{- $urls = list }}
{{- range splitList " " (include "berth.etcd.hosts" .) }}
{{- $urls = append $urls (printf "%s://%s:2379" (include "berth.etcd.scheme" $) .) }}
{{- end }}
{{- end }}
{{- join "," $urls }}
{{- end }}

{{/* The secret with what the brokers need for TLS to etcd, and its keys, as YAML. Empty without TLS. */}}
{{- define "berth.etcd.tls" -}}
{{- if .Values.etcd.enabled }}
{{- with .Values.etcd.tls.client }}
{{- if .existingSecret }}
secret: {{ default .existingSecret .brokerSecret }}
ca: ca.crt
{{- if .certAuth }}
cert: tls.crt
key: tls.key
{{- end }}
{{- end }}
{{- end }}
{{- else }}
{{- with .Values.externalEtcd.tls }}
{{- if .existingSecret }}
secret: {{ .existingSecret }}
{{- with .caKey }}
ca: {{ . }}
{{- end }}
{{- if .certKey }}
cert: {{ .certKey }}
key: {{ .keyKey }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Names of the listeners beside tcp, separated by blanks. */}}
{{- define "berth.listenerNames" -}}
{{- $names := list }}
{{- if .Values.listeners.tls.enabled }}{{ $names = append $names "tls" }}{{ end }}
{{- if .Values.listeners.ws.enabled }}{{ $names = append $names "ws" }}{{ end }}
{{- if .Values.listeners.wss.enabled }}{{ $names = append $names "wss" }}{{ end }}
{{- join " " $names }}
{{- end }}

{{/* Whether any of them needs a certificate: not empty then. */}}
{{- define "berth.listenersNeedTls" -}}
{{- if or .Values.listeners.tls.enabled .Values.listeners.wss.enabled }}yes{{ end }}
{{- end }}

{{/* Whether clients are asked for certificates: not empty then. */}}
{{- define "berth.listenersAskClients" -}}
{{- if and (include "berth.listenersNeedTls" .) (ne .Values.listeners.certificate.clientCertificates "off") }}yes{{ end }}
{{- end }}

{{/* Options of these listeners, as YAML. */}}
{{- define "berth.listeners" -}}
{{- $certificate := .Values.listeners.certificate }}
{{- $listeners := dict }}
{{- range $name := splitList " " (include "berth.listenerNames" .) }}
{{- if $name }}
{{- $options := dict "address" (printf "0.0.0.0:%d" (int (index $.Values.listeners $name).port)) }}
{{- if ne $name "ws" }}
{{- $dir := "/run/secrets/berth/listeners" }}
{{- $_ := set $options "cert_file" (print $dir "/tls.crt") }}
{{- $_ := set $options "key_file" (print $dir "/tls.key") }}
{{- if include "berth.listenersAskClients" $ }}
{{- $dir := "/run/secrets/berth/listener-clients" }}
{{- $_ := set $options "client_certificates" $certificate.clientCertificates }}
{{- $_ := set $options "client_ca_file" (print $dir "/" $certificate.clientCaKey) }}
{{- if $certificate.crlKey }}{{ $_ := set $options "crl_file" (print $dir "/" $certificate.crlKey) }}{{ end }}
{{- end }}
{{- end }}
{{- $_ := set $listeners $name $options }}
{{- end }}
{{- end }}
{{- toYaml $listeners }}
{{- end }}

{{/* Whether clients may connect without an account: true, false or auto. */}}
{{- define "berth.allowAnonymous" -}}
{{- if kindIs "invalid" .Values.auth.allowAnonymous }}
{{- ternary "true" "auto" (and (empty .Values.auth.existingSecret) (not .Values.auth.usersInEtcd)) }}
{{- else }}
{{- .Values.auth.allowAnonymous }}
{{- end }}
{{- end }}

{{/* The ConfigMap with the rules of what clients may do. Empty without rules. */}}
{{- define "berth.aclConfigMap" -}}
{{- if .Values.acl.existingConfigMap }}
{{- .Values.acl.existingConfigMap }}
{{- else if .Values.acl.rules }}
{{- include "berth.fullname" . }}-acl
{{- end }}
{{- end }}

{{/* What the chart itself sets, with the user's config over it, as YAML. */}}
{{- define "berth.config" -}}
{{- $auth := dict "allow_anonymous" (include "berth.allowAnonymous" .) }}
{{- if .Values.auth.existingSecret }}
{{- $dir := "/run/secrets/berth/accounts" }}
{{- with .Values.auth.usersKey }}{{ $_ := set $auth "password" (dict "file" (printf "%s/%s" $dir .)) }}{{ end }}
{{- $jwt := dict }}
{{- with .Values.auth.jwtKey }}{{ $_ := set $jwt "key_file" (printf "%s/%s" $dir .) }}{{ end }}
{{- with .Values.auth.jwksKey }}{{ $_ := set $jwt "jwks_file" (printf "%s/%s" $dir .) }}{{ end }}
{{- if $jwt }}{{ $_ := set $auth "jwt" $jwt }}{{ end }}
{{- end }}
{{- if .Values.auth.usersInEtcd }}{{ $_ := set $auth "password" (dict "store" "etcd") }}{{ end }}
{{- $base := dict
  "listeners" (dict "tcp" (dict "address" "0.0.0.0:1883"))
  "http" (dict "address" "0.0.0.0:8081")
  "storage" (dict "dir" "/var/lib/berth")
  "auth" $auth
  "shutdown" (dict "timeout" (printf "%ds" (int .Values.drain.timeoutSeconds))) }}
{{- if .Values.admin.tls.existingSecret }}
{{- $dir := "/run/secrets/berth/admin-tls" }}
{{- $_ := set $base.http "cert_file" (print $dir "/tls.crt") }}
{{- $_ := set $base.http "key_file" (print $dir "/tls.key") }}
{{- end }}
{{- if .Values.admin.tokens.existingSecret }}
{{- $dir := "/run/secrets/berth/admin-tokens" }}
{{- $_ := set $base.http "admin_token_file" (printf "%s/%s" $dir .Values.admin.tokens.adminKey) }}
{{- with .Values.admin.tokens.readKey }}{{ $_ := set $base.http "read_token_file" (printf "%s/%s" $dir .) }}{{ end }}
{{- end }}
{{- range $name, $listener := include "berth.listeners" . | fromYaml }}
{{- $_ := set $base.listeners $name $listener }}
{{- end }}
{{- if include "berth.aclConfigMap" . }}
{{- $_ := set $base "acl" (dict "file" "/etc/berth-acl/acl.yaml") }}
{{- end }}
{{- if .Values.cluster.enabled }}
{{- $cluster := dict "enabled" true "name" (include "berth.clusterName" .) "peer_address" (printf "0.0.0.0:%d" (int .Values.peers.port)) }}
{{- if .Values.peers.tls.existingSecret }}
{{- $dir := "/run/secrets/berth/peers" }}
{{- $_ := set $cluster "tls" (dict "ca_file" (print $dir "/ca.crt") "cert_file" (print $dir "/tls.crt") "key_file" (print $dir "/tls.key")) }}
{{- end }}
{{- $etcd := dict "endpoints" (splitList "," (include "berth.etcd.endpoints" .)) "prefix" .Values.externalEtcd.prefix }}
{{- with include "berth.etcd.tls" . | fromYaml }}
{{- $dir := "/run/secrets/berth/etcd-tls" }}
{{- range $option, $key := dict "ca_file" .ca "cert_file" .cert "key_file" .key }}
{{- if $key }}{{ $_ := set $etcd $option (printf "%s/%s" $dir $key) }}{{ end }}
{{- end }}
{{- end }}
{{- if and (not .Values.etcd.enabled) .Values.externalEtcd.auth.existingSecret }}
{{- $_ := set $etcd "password_file" (print "/run/secrets/berth/etcd-user/" .Values.externalEtcd.auth.passwordKey) }}
{{- end }}
{{- $_ := set $base "cluster" $cluster }}
{{- $_ := set $base "etcd" $etcd }}
{{- end }}
{{- toYaml (mergeOverwrite $base (deepCopy .Values.config)) }}
{{- end }}

{{/* Addresses of listeners.tcp, separated by commas. */}}
{{- define "berth.mqttAddresses" -}}
{{- $address := (include "berth.config" . | fromYaml).listeners.tcp.address }}
{{- if kindIs "slice" $address }}{{ join "," $address }}{{ else }}{{ $address | replace " " "" }}{{ end }}
{{- end }}

{{/* Ports of listeners.tcp, separated by commas, each once. */}}
{{- define "berth.mqttPorts" -}}
{{- $ports := list }}
{{- range splitList "," (include "berth.mqttAddresses" .) }}
{{- $ports = append $ports (regexFind "[0-9]+$" .) }}
{{- end }}
{{- $ports | uniq | join "," }}
{{- end }}

{{- define "berth.httpPort" -}}
{{ regexFind "[0-9]+$" (include "berth.config" . | fromYaml).http.address }}
{{- end }}

{{/* What admin HTTP is reached by: http or https. */}}
{{- define "berth.httpScheme" -}}
{{ ternary "https" "http" (not (empty (include "berth.config" . | fromYaml).http.cert_file)) }}
{{- end }}

{{/* The name that the certificate of admin HTTP has. */}}
{{- define "berth.adminServerName" -}}
{{- default (printf "%s-admin.%s.svc.%s" (include "berth.fullname" .) .Release.Namespace .Values.clusterDomain) .Values.admin.tls.serverName }}
{{- end }}

{{/* A probe of admin HTTP, as YAML. Called with (list . probe). */}}
{{- define "berth.probe" -}}
{{- $probe := deepCopy (index . 1) }}
{{- if and $probe.httpGet (eq (include "berth.httpScheme" (index . 0)) "https") }}
{{- $_ := set $probe "httpGet" (merge (dict) $probe.httpGet (dict "scheme" "HTTPS")) }}
{{- end }}
{{- toYaml $probe }}
{{- end }}

{{/* Environment of the broker and of the check of its configuration. */}}
{{- define "berth.env" -}}
{{- $config := include "berth.config" . | fromYaml -}}
- name: BERTH_CONFIG
  value: /etc/berth/berth.yaml
- name: BERTH_URL
  value: {{ include "berth.httpScheme" . }}://localhost:{{ include "berth.httpPort" . }}
{{- if .Values.admin.tls.existingSecret }}
- name: BERTH_CA_FILE
  value: /run/secrets/berth/admin-tls/ca.crt
- name: BERTH_SERVER_NAME
  value: {{ include "berth.adminServerName" . }}
{{- end }}
{{- if .Values.admin.tokens.existingSecret }}
- name: BERTH_TOKEN_FILE
  value: {{ $config.http.admin_token_file }}
{{- end }}
- name: BERTH__NODE__ID
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
# The image sets addresses and directory for those who run it by hand; the file must win.
- name: BERTH__LISTENERS__TCP__ADDRESS
  value: {{ include "berth.mqttAddresses" . | quote }}
- name: BERTH__HTTP__ADDRESS
  value: {{ $config.http.address | quote }}
- name: BERTH__STORAGE__DIR
  value: {{ $config.storage.dir | quote }}
{{- if .Values.cluster.enabled }}
- name: BERTH__CLUSTER__PEER_ADDRESS
  value: {{ $config.cluster.peer_address | quote }}
- name: BERTH__CLUSTER__ADVERTISE_PEER
  value: $(BERTH__NODE__ID).{{ include "berth.headless" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:{{ .Values.peers.port }}
- name: BERTH__CLUSTER__ADVERTISE_MQTT
{{- if .Values.advertiseMqtt }}
  value: {{ tpl .Values.advertiseMqtt (merge (dict "pod" "$(BERTH__NODE__ID)") .) | quote }}
{{- else }}
  value: "none"
{{- end }}
- name: BERTH__CLUSTER__ZONE
{{- if or .Values.zone.value (not .Values.zone.fromPodLabel) }}
  value: {{ .Values.zone.value | quote }}
{{- else }}
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['{{ .Values.zone.fromPodLabel }}']
{{- end }}
{{- if and (not .Values.etcd.enabled) .Values.externalEtcd.auth.existingSecret }}
- name: BERTH__ETCD__USERNAME
  valueFrom:
    secretKeyRef:
      name: {{ .Values.externalEtcd.auth.existingSecret }}
      key: {{ .Values.externalEtcd.auth.usernameKey }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Seconds from SIGTERM to SIGKILL. */}}
{{- define "berth.grace" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds }}
{{- add (int .Values.drain.timeoutSeconds) 30 }}
{{- else }}
{{- int .Values.terminationGracePeriodSeconds }}
{{- end }}
{{- end }}

{{/* Names of secrets that are read at the start only, separated by blanks. */}}
{{- define "berth.secretsReadAtStart" -}}
{{- $names := list }}
{{- if .Values.cluster.enabled }}
{{- with .Values.peers.tls.existingSecret }}{{ $names = append $names . }}{{ end }}
{{- with include "berth.etcd.tls" . | fromYaml }}{{ $names = append $names .secret }}{{ end }}
{{- end }}
{{- join " " $names }}
{{- end }}

{{/* A checksum of these secrets as they are in the Kubernetes cluster; of nothing where helm cannot ask it (helm template).
     Called with (list . "names separated by blanks"). */}}
{{- define "berth.secretsChecksum" -}}
{{- $root := index . 0 }}
{{- $data := dict }}
{{- range splitList " " (index . 1) }}
{{- if . }}
{{- $_ := set $data . (default (dict) (lookup "v1" "Secret" $root.Release.Namespace .).data) }}
{{- end }}
{{- end }}
{{- toJson $data | sha256sum }}
{{- end }}

{{/* Secrets of the brokers: (name of the volume, secret). */}}
{{- define "berth.secretVolumes" -}}
{{- if include "berth.listenersNeedTls" . }}
- name: listeners-tls
  secret:
    secretName: {{ .Values.listeners.certificate.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- if include "berth.listenersAskClients" . }}
- name: listeners-clients
  secret:
    secretName: {{ .Values.listeners.certificate.clientCaSecret }}
    defaultMode: 0440
{{- end }}
{{- with .Values.auth.existingSecret }}
- name: accounts
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.admin.tls.existingSecret }}
- name: admin-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.admin.tokens.existingSecret }}
- name: admin-tokens
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- if .Values.cluster.enabled }}
{{- with .Values.peers.tls.existingSecret }}
- name: peer-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with include "berth.etcd.tls" . | fromYaml }}
- name: etcd-tls
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
{{- end }}
{{- if and (not .Values.etcd.enabled) .Values.externalEtcd.auth.existingSecret }}
- name: etcd-user
  secret:
    secretName: {{ .Values.externalEtcd.auth.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- end }}

{{- define "berth.secretMounts" -}}
{{- if include "berth.listenersNeedTls" . }}
- name: listeners-tls
  mountPath: /run/secrets/berth/listeners
  readOnly: true
{{- end }}
{{- if include "berth.listenersAskClients" . }}
- name: listeners-clients
  mountPath: /run/secrets/berth/listener-clients
  readOnly: true
{{- end }}
{{- if .Values.auth.existingSecret }}
- name: accounts
  mountPath: /run/secrets/berth/accounts
  readOnly: true
{{- end }}
{{- if .Values.admin.tls.existingSecret }}
- name: admin-tls
  mountPath: /run/secrets/berth/admin-tls
  readOnly: true
{{- end }}
{{- if .Values.admin.tokens.existingSecret }}
- name: admin-tokens
  mountPath: /run/secrets/berth/admin-tokens
  readOnly: true
{{- end }}
{{- if .Values.cluster.enabled }}
{{- if .Values.peers.tls.existingSecret }}
- name: peer-tls
  mountPath: /run/secrets/berth/peers
  readOnly: true
{{- end }}
{{- if include "berth.etcd.tls" . | fromYaml }}
- name: etcd-tls
  mountPath: /run/secrets/berth/etcd-tls
  readOnly: true
{{- end }}
{{- if and (not .Values.etcd.enabled) .Values.externalEtcd.auth.existingSecret }}
- name: etcd-user
  mountPath: /run/secrets/berth/etcd-user
  readOnly: true
{{- end }}
{{- end }}
{{- end }}
