{{/* What would not work is refused here, in words: values that contradict each other, and changes that Kubernetes or the cluster
     cannot make in place. The latter are compared with what runs, which helm can ask for where it installs or upgrades (not in
     helm template). */}}

{{- define "berth.guards" -}}
{{- include "berth.guards.values" . }}
{{- include "berth.guards.config" . }}
{{- include "berth.guards.brokers" . }}
{{- include "berth.guards.etcd" . }}
{{- end }}

{{- define "berth.guards.values" -}}
{{- $v := .Values }}
{{- if $v.cluster.enabled }}
{{- if and $v.etcd.enabled $v.externalEtcd.endpoints }}
{{- fail "etcd.enabled and externalEtcd.endpoints contradict each other: set etcd.enabled=false to use the external etcd" }}
{{- end }}
{{- if not (or $v.etcd.enabled $v.externalEtcd.endpoints) }}
{{- fail "a cluster needs etcd: set etcd.enabled=true or externalEtcd.endpoints, or cluster.enabled=false for a single broker" }}
{{- end }}
{{- else }}
{{- if gt (int $v.replicaCount) 1 }}
{{- fail "replicaCount must be 0 or 1 with cluster.enabled=false: brokers that do not form a cluster do not know each other's sessions" }}
{{- end }}
{{- if $v.etcd.enabled }}
{{- fail "a single broker (cluster.enabled=false) uses no etcd: set etcd.enabled=false" }}
{{- end }}
{{- end }}
{{- if and (include "berth.listenersNeedTls" .) (not $v.listeners.certificate.existingSecret) }}
{{- fail "listeners.tls and listeners.wss need listeners.certificate.existingSecret" }}
{{- end }}
{{- if and (include "berth.listenersAskClients" .) (not (and $v.listeners.certificate.clientCaSecret $v.listeners.certificate.clientCaKey)) }}
{{- fail "listeners.certificate.clientCertificates needs listeners.certificate.clientCaSecret and clientCaKey: the authority that signs clients' certificates" }}
{{- end }}
{{- if and $v.admin.tokens.existingSecret (not $v.admin.tls.existingSecret) }}
{{- fail "admin.tokens.existingSecret needs admin.tls.existingSecret: tokens could be read on the way" }}
{{- end }}
{{- if and $v.externalEtcd.tls.certKey (not $v.externalEtcd.tls.keyKey) }}
{{- fail "externalEtcd.tls.certKey needs externalEtcd.tls.keyKey" }}
{{- end }}
{{- if and $v.etcd.tls.client.certAuth (not $v.etcd.tls.client.brokerSecret) }}
{{- fail "etcd.tls.client.certAuth needs etcd.tls.client.brokerSecret: the brokers must have a certificate to show" }}
{{- end }}
{{- if and $v.etcd.tls.client.certAuth (not $v.etcd.tls.client.existingSecret) }}
{{- fail "etcd.tls.client.certAuth needs etcd.tls.client.existingSecret" }}
{{- end }}
{{- $least := add (int $v.drain.timeoutSeconds) 15 }}
{{- if lt (int (include "berth.grace" .)) (int $least) }}
{{- fail (printf "terminationGracePeriodSeconds must be at least drain.timeoutSeconds + 15 = %d, or pods are killed while they hand their sessions over" $least) }}
{{- end }}
{{- if not (regexMatch "^[a-zA-Z0-9._-]{1,64}$" (include "berth.clusterName" .)) }}
{{- fail "cluster.name must be 1 to 64 of the characters a-z A-Z 0-9 . _ -" }}
{{- end }}
{{- if and $v.metrics.serviceMonitor.enabled $v.metrics.podMonitor.enabled }}
{{- fail "metrics.serviceMonitor and metrics.podMonitor would scrape everything twice: enable one of them" }}
{{- end }}
{{- if and $v.metrics.serviceMonitor.enabled (not $v.adminService.enabled) }}
{{- fail "metrics.serviceMonitor needs adminService.enabled=true; or enable metrics.podMonitor instead" }}
{{- end }}
{{- if and (or $v.metrics.serviceMonitor.enabled $v.metrics.podMonitor.enabled) $v.networkPolicy.enabled (not $v.networkPolicy.metricsFrom) }}
{{- fail "networkPolicy.metricsFrom must say where Prometheus runs, or it cannot scrape" }}
{{- end }}
{{- if and (eq $v.service.type "ClusterIP") (or $v.service.loadBalancerSourceRanges $v.service.externalTrafficPolicy $v.service.nodePort) }}
{{- fail "service.loadBalancerSourceRanges, externalTrafficPolicy and nodePort mean nothing with service.type=ClusterIP" }}
{{- end }}
{{- if eq $v.service.clusterIP "None" }}
{{- fail "service.clusterIP=None: the headless Service is there already" }}
{{- end }}
{{- end }}

{{/* Options that the chart must know, or that differ from pod to pod. */}}
{{- define "berth.guards.config" -}}
{{- $owned := dict
  "node.id" "nothing: it is the pod's name"
  "cluster.enabled" "cluster.enabled"
  "cluster.name" "cluster.name"
  "cluster.peer_address" "peers.port"
  "cluster.advertise_peer" "nothing: it is the pod's name in the headless Service"
  "cluster.advertise_mqtt" "advertiseMqtt"
  "cluster.zone" "zone.value"
  "cluster.tls" "peers.tls.existingSecret"
  "etcd.endpoints" "externalEtcd.endpoints"
  "etcd.prefix" "externalEtcd.prefix"
  "etcd.username" "externalEtcd.auth.existingSecret"
  "etcd.password" "externalEtcd.auth.existingSecret"
  "etcd.password_file" "externalEtcd.auth.existingSecret"
  "etcd.ca_file" "externalEtcd.tls"
  "etcd.cert_file" "externalEtcd.tls"
  "etcd.key_file" "externalEtcd.tls"
  "auth.allow_anonymous" "auth.allowAnonymous"
  "shutdown.timeout" "drain.timeoutSeconds" }}
{{- range $key, $instead := $owned }}
{{- $parts := splitList "." $key }}
{{- $section := index $.Values.config (first $parts) }}
{{- if kindIs "map" $section }}
{{- if hasKey $section (last $parts) }}
{{- fail (printf "config.%s: the chart sets this option itself; use %s" $key $instead) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.auth.existingSecret (not (or .Values.auth.usersKey .Values.auth.jwtKey .Values.auth.jwksKey)) }}
{{- fail "auth.existingSecret: say what is in it: auth.usersKey, auth.jwtKey or auth.jwksKey" }}
{{- end }}
{{- if and .Values.auth.usersInEtcd .Values.auth.usersKey }}
{{- fail "auth.usersInEtcd and auth.usersKey contradict each other: users are in etcd or in a file" }}
{{- end }}
{{- if and .Values.auth.usersInEtcd (not .Values.cluster.enabled) }}
{{- fail "auth.usersInEtcd needs cluster.enabled=true: a single broker uses no etcd" }}
{{- end }}
{{- if and (not .Values.auth.existingSecret) (or .Values.auth.usersKey .Values.auth.jwtKey .Values.auth.jwksKey) }}
{{- fail "auth.usersKey, auth.jwtKey, auth.jwksKey: keys of auth.existingSecret, which is not set" }}
{{- end }}
{{- $config := include "berth.config" . | fromYaml }}
{{- if hasKey $config "Error" }}
{{- fail (printf "config cannot be merged: %s" $config.Error) }}
{{- end }}
{{- range $section := list "listeners" "http" "storage" }}
{{- if not (kindIs "map" (index $config $section)) }}
{{- fail (printf "config.%s: a section, such as {%s: {...}}" $section $section) }}
{{- end }}
{{- end }}
{{- if not (regexMatch "^(0\\.0\\.0\\.0|\\[::\\]):[1-9][0-9]*$" (toString $config.http.address)) }}
{{- fail "config.http.address: probes need it, on all addresses: 0.0.0.0:PORT or [::]:PORT" }}
{{- end }}
{{- range splitList "," (include "berth.mqttAddresses" .) }}
{{- if not (regexMatch ":[1-9][0-9]*$" .) }}
{{- fail (printf "config.listeners.tcp.address: %q has no port" .) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Called with (dict "of" statefulset "field" text "was" a "is" b "why" text). */}}
{{- define "berth.guards.same" -}}
{{- if ne (toString .was) (toString .is) }}
{{- fail (printf "StatefulSet %s: %s is %v and cannot become %v: %s" .of .field .was .is .why) }}
{{- end }}
{{- end }}

{{/* Bytes of a quantity: Kubernetes writes 1024Mi as 1Gi. */}}
{{- define "berth.bytes" -}}
{{- $factor := get (dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624) (regexFind "[a-zA-Z]*$" .) }}
{{- mulf (regexFind "^[0-9.]+" . | float64) $factor }}
{{- end }}

{{/* Volume claims of a StatefulSet that is there. Called with (dict "name" n "found" object "persistence" values "root" .). */}}
{{- define "berth.guards.claims" -}}
{{- $claims := default (list) .found.spec.volumeClaimTemplates }}
{{- $why := "Kubernetes does not change the volume claims of a StatefulSet; docs/kubernetes.md (Volumes) says how to do it" }}
{{- include "berth.guards.same" (dict "of" .name "field" "having volumes (persistence.enabled)" "was" (gt (len $claims) 0) "is" .persistence.enabled "why" $why) }}
{{- if $claims }}
{{- $spec := (first $claims).spec }}
{{- if ne (include "berth.bytes" $spec.resources.requests.storage) (include "berth.bytes" .persistence.size) }}
{{- include "berth.guards.same" (dict "of" .name "field" "persistence.size" "was" $spec.resources.requests.storage "is" .persistence.size "why" $why) }}
{{- end }}
{{- include "berth.guards.same" (dict "of" .name "field" "persistence.accessModes" "was" (join "," $spec.accessModes) "is" (join "," .persistence.accessModes) "why" $why) }}
{{- $class := default .root.Values.global.storageClass .persistence.storageClass }}
{{- $was := ternary (default "-" $spec.storageClassName) "" (hasKey $spec "storageClassName") }}
{{- include "berth.guards.same" (dict "of" .name "field" "persistence.storageClass" "was" (quote $was) "is" (quote $class) "why" $why) }}
{{- $annotations := default (dict) (first $claims).metadata.annotations }}
{{- include "berth.guards.same" (dict "of" .name "field" "persistence.annotations" "was" (toJson $annotations) "is" (toJson .persistence.annotations) "why" $why) }}
{{- end }}
{{- end }}

{{/* What identifies a StatefulSet. Called with (dict "name" n "found" object "component" c "serviceName" s "root" .). */}}
{{- define "berth.guards.identity" -}}
{{- $why := "Kubernetes does not change it; give nameOverride and fullnameOverride the values they had" }}
{{- include "berth.guards.same" (dict "of" .name "field" "its selector" "was" (toJson .found.spec.selector.matchLabels) "is" (toJson (include "berth.selector" (list .root .component) | fromYaml)) "why" $why) }}
{{- include "berth.guards.same" (dict "of" .name "field" "its serviceName" "was" .found.spec.serviceName "is" .serviceName "why" $why) }}
{{- end }}

{{- define "berth.guards.brokers" -}}
{{- $name := include "berth.fullname" . }}
{{- $found := lookup "apps/v1" "StatefulSet" .Release.Namespace $name }}
{{- if $found }}
{{- include "berth.guards.identity" (dict "name" $name "found" $found "component" "broker" "serviceName" (include "berth.headless" .) "root" .) }}
{{- include "berth.guards.claims" (dict "name" $name "found" $found "persistence" .Values.persistence "root" .) }}
{{- /* Brokers that run while half of them use another cluster or another etcd are two clusters. */}}
{{- if gt (int $found.spec.replicas) 0 }}
{{- $why := "brokers of the old and of the new one would be two clusters for the time of the roll-out; stop all brokers first (replicaCount: 0)" }}
{{- $was := default (dict) $found.metadata.annotations }}
{{- range $key, $value := include "berth.identity" . | fromYaml }}
{{- if hasKey $was $key }}
{{- include "berth.guards.same" (dict "of" $name "field" $key "was" (index $was $key) "is" $value "why" $why) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* What all brokers of a cluster must have in common, as annotations of their StatefulSet. */}}
{{- define "berth.identity" -}}
berth/cluster: {{ ternary (printf "%s/%s" .Values.externalEtcd.prefix (include "berth.clusterName" .)) "none" .Values.cluster.enabled | quote }}
berth/etcd: {{ ternary "bundled" (ternary "external" "none" (not (empty .Values.externalEtcd.endpoints))) .Values.etcd.enabled | quote }}
berth/peer-tls: {{ not (empty .Values.peers.tls.existingSecret) | quote }}
{{- end }}

{{- define "berth.guards.etcd" -}}
{{- if .Values.etcd.enabled }}
{{- $name := include "berth.etcd.fullname" . }}
{{- $found := lookup "apps/v1" "StatefulSet" .Release.Namespace $name }}
{{- if $found }}
{{- include "berth.guards.identity" (dict "name" $name "found" $found "component" "etcd" "serviceName" (include "berth.etcd.headless" .) "root" .) }}
{{- include "berth.guards.claims" (dict "name" (print $name " (etcd)") "found" $found "persistence" .Values.etcd.persistence "root" .) }}
{{- $was := default (dict) $found.metadata.annotations }}
{{- if hasKey $was "berth/etcd-members" }}
{{- include "berth.guards.same" (dict "of" $name "field" "etcd.replicas" "was" (index $was "berth/etcd-members") "is" .Values.etcd.replicas "why" "etcd's members must be added and removed by etcdctl; docs/kubernetes.md (etcd) says what to do instead") }}
{{- include "berth.guards.same" (dict "of" $name "field" "etcd.tls.peer" "was" (index $was "berth/etcd-peer-tls") "is" (not (empty .Values.etcd.tls.peer.existingSecret)) "why" "members with and without TLS do not reach each other, and their addresses are in etcd itself; move to a new etcd instead (docs/kubernetes.md)") }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
