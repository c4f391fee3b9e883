//! Every metric of the broker, in one table. No metric is labelled by client or topic.

pub use super::labels::*;

use super::cells::{Counter, Family, Gauge, Histogram, Label, Offset};
use super::losses::{About, Counted, Loss, Losses, SUMMARY_MS, Whose};
use metrics::{Key, KeyName, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// A metric, as documented.
#[derive(Clone, Copy, Debug)]
pub struct MetricInfo {
    /// The field of [`Metrics`].
    pub field: &'static str,
    /// The name.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The label with its values, if it has one.
    pub label: Option<(&'static str, &'static [&'static str])>,
    /// The unit.
    pub unit: &'static str,
    /// What it counts.
    pub help: &'static str,
}

/// How a field of [`Metrics`] is described to the recorder and brought to it.
trait Cell: Sized {
    const KIND: &'static str;
    const LABEL: Option<(&'static str, &'static [&'static str])> = None;
    fn make(recorder: &PrometheusRecorder, name: &'static str) -> Self;
    fn describe(recorder: &PrometheusRecorder, name: KeyName, unit: Option<Unit>, help: &'static str);
    fn export(&self, recorder: &PrometheusRecorder, name: &'static str);
}

static META: Metadata<'static> = Metadata::new("berth", metrics::Level::INFO, None);

impl Cell for Counter {
    const KIND: &'static str = "counter";

    fn make(_: &PrometheusRecorder, _: &'static str) -> Counter {
        Counter::default()
    }

    fn describe(recorder: &PrometheusRecorder, name: KeyName, unit: Option<Unit>, help: &'static str) {
        recorder.describe_counter(name, unit, help.into());
    }

    fn export(&self, recorder: &PrometheusRecorder, name: &'static str) {
        recorder.register_counter(&Key::from_static_name(name), &META).absolute(self.get());
    }
}

impl Cell for Gauge {
    const KIND: &'static str = "gauge";

    fn make(_: &PrometheusRecorder, _: &'static str) -> Gauge {
        Gauge::default()
    }

    fn describe(recorder: &PrometheusRecorder, name: KeyName, unit: Option<Unit>, help: &'static str) {
        recorder.describe_gauge(name, unit, help.into());
    }

    fn export(&self, recorder: &PrometheusRecorder, name: &'static str) {
        recorder.register_gauge(&Key::from_static_name(name), &META).set(self.get() as f64);
    }
}

impl Cell for Offset {
    const KIND: &'static str = "gauge";

    fn make(_: &PrometheusRecorder, _: &'static str) -> Offset {
        Offset::default()
    }

    fn describe(recorder: &PrometheusRecorder, name: KeyName, unit: Option<Unit>, help: &'static str) {
        recorder.describe_gauge(name, unit, help.into());
    }

    fn export(&self, recorder: &PrometheusRecorder, name: &'static str) {
        recorder.register_gauge(&Key::from_static_name(name), &META).set(self.seconds());
    }
}

impl Cell for Histogram {
    const KIND: &'static str = "histogram";

    fn make(recorder: &PrometheusRecorder, name: &'static str) -> Histogram {
        Histogram::new(recorder.register_histogram(&Key::from_static_name(name), &META), recorder.handle())
    }

    fn describe(recorder: &PrometheusRecorder, name: KeyName, unit: Option<Unit>, help: &'static str) {
        recorder.describe_histogram(name, unit, help.into());
    }

    fn export(&self, _: &PrometheusRecorder, _: &'static str) {}
}

impl<L: Label> Cell for Family<L, Counter> {
    const KIND: &'static str = "counter";
    const LABEL: Option<(&'static str, &'static [&'static str])> = Some((L::NAME, L::VALUES));

    fn make(_: &PrometheusRecorder, _: &'static str) -> Self {
        Family::default()
    }

    fn describe(recorder: &PrometheusRecorder, name: KeyName, unit: Option<Unit>, help: &'static str) {
        recorder.describe_counter(name, unit, help.into());
    }

    fn export(&self, recorder: &PrometheusRecorder, name: &'static str) {
        for (value, cell) in self.iter() {
            let key = Key::from_parts(name, &[(L::NAME, value)]);
            recorder.register_counter(&key, &META).absolute(cell.get());
        }
    }
}

impl<L: Label> Cell for Family<L, Gauge> {
    const KIND: &'static str = "gauge";
    const LABEL: Option<(&'static str, &'static [&'static str])> = Some((L::NAME, L::VALUES));

    fn make(_: &PrometheusRecorder, _: &'static str) -> Self {
        Family::default()
    }

    fn describe(recorder: &PrometheusRecorder, name: KeyName, unit: Option<Unit>, help: &'static str) {
        recorder.describe_gauge(name, unit, help.into());
    }

    fn export(&self, recorder: &PrometheusRecorder, name: &'static str) {
        for (value, cell) in self.iter() {
            let key = Key::from_parts(name, &[(L::NAME, value)]);
            recorder.register_gauge(&key, &META).set(cell.get() as f64);
        }
    }
}

macro_rules! metrics {
    ($($field:ident: $kind:ty = $name:literal, $unit:ident, $help:literal;)+) => {
        /// The metrics of one broker.
        pub struct Metrics {
            recorder: PrometheusRecorder,
            handle: PrometheusHandle,
            /// What the log says of losses.
            pub losses: Losses,
            $(#[doc = $help] pub $field: $kind,)+
        }

        /// Every metric, in the order of the documentation.
        pub static ALL: &[MetricInfo] = &[$(
            MetricInfo {
                field: stringify!($field),
                name: $name,
                kind: <$kind as Cell>::KIND,
                label: <$kind as Cell>::LABEL,
                unit: stringify!($unit),
                help: $help,
            },
        )+];

        impl Metrics {
            fn with_recorder(recorder: PrometheusRecorder, losses: Losses) -> Metrics {
                $(
                    let unit = Unit::from_string(stringify!($unit));
                    <$kind as Cell>::describe(&recorder, KeyName::from_const_str($name), unit, $help);
                )+
                $(let $field = <$kind as Cell>::make(&recorder, $name);)+
                Metrics { handle: recorder.handle(), recorder, losses, $($field,)+ }
            }

            fn export(&self) {
                $(self.$field.export(&self.recorder, $name);)+
            }
        }
    };
}

metrics! {
    connections_total: Counter = "mqtt_connections_total", count,
        "Connections that were accepted by CONNACK.";
    connections_max: Gauge = "mqtt_connections_max", count,
        "The most connections there were at once.";
    connections_active: Gauge = "mqtt_connections_active", count,
        "Network connections now, those that have not sent CONNECT yet included.";
    messages_received: Family<Qos, Counter> = "mqtt_messages_received_total", count,
        "PUBLISH packets received from clients, by QoS.";
    messages_sent: Family<Qos, Counter> = "mqtt_messages_sent_total", count,
        "PUBLISH packets sent to clients, by QoS; repeated ones included.";
    packets_received: Counter = "mqtt_packets_received_total", count,
        "MQTT packets of all types received from clients.";
    packets_sent: Counter = "mqtt_packets_sent_total", count,
        "MQTT packets of all types sent to clients.";
    publish_bytes_received: Counter = "mqtt_publish_bytes_received_total", bytes,
        "Payload bytes of PUBLISH packets received from clients.";
    publish_bytes_sent: Counter = "mqtt_publish_bytes_sent_total", bytes,
        "Payload bytes of PUBLISH packets sent to clients.";
    bytes_received: Counter = "mqtt_bytes_received_total", bytes,
        "Bytes received from clients.";
    bytes_sent: Counter = "mqtt_bytes_sent_total", bytes,
        "Bytes sent to clients.";
    subscriptions_active: Gauge = "mqtt_subscriptions_active", count,
        "Subscriptions of all sessions, those of disconnected ones included.";
    errors: Family<ErrorType, Counter> = "mqtt_errors_total", count,
        "Connections ended by an error, by its type.";

    turned_away: Family<Turned, Counter> = "berth_turned_away_total", count,
        "Clients of a listener that did not come as far as CONNECT, or that were slowed down, by reason.";
    tls_handshakes: Counter = "berth_tls_handshakes_total", count,
        "TLS handshakes of clients that were completed.";
    certificate_reloads: Family<Reload, Counter> = "berth_certificate_reloads_total", count,
        "Times that the certificates of a listener were read again, by outcome.";
    certificates_distrusted: Counter = "berth_certificates_distrusted_total", count,
        "Connections ended because their client's certificate was revoked, or its authority is not trusted any more.";
    connects_refused: Family<RefuseReason, Counter> = "berth_connects_refused_total", count,
        "CONNECT packets refused, by reason.";
    client_id_thefts: Counter = "berth_client_id_thefts_total", count,
        "CONNECT packets refused because the session of their client identifier is another user's.";
    auth_decisions: Family<AuthDecision, Counter> = "berth_auth_decisions_total", count,
        "Decisions about clients that want to connect, by outcome: accepted, or why not.";
    password_checks_waiting: Gauge = "berth_password_checks_waiting", count,
        "Passwords that wait to be checked.";
    password_check_seconds: Histogram = "berth_password_check_seconds", seconds,
        "Time a check of a password takes, without waiting.";
    account_reloads: Family<ReloadResult, Counter> = "berth_account_reloads_total", count,
        "Files of accounts and keys that were read again because they had changed, by result.";
    config_reloads: Family<ReloadResult, Counter> = "berth_config_reloads_total", count,
        "Times that the configuration was read again (SIGHUP or berth ctl reload), by result.";
    accounts_withdrawn: Counter = "berth_accounts_withdrawn_total", count,
        "Connections ended because their account was removed or changed.";
    takeovers: Counter = "berth_takeovers_total", count,
        "Connections closed because their client connected again.";
    sessions: Family<SessionState, Gauge> = "berth_sessions", count,
        "Sessions, by state: active = connected, dormant = not.";
    sessions_expired: Counter = "berth_sessions_expired_total", count,
        "Sessions that ended because nobody connected within their session expiry interval.";
    shared_subscriptions: Gauge = "berth_shared_subscriptions", count,
        "Subscriptions of all sessions that are shared ($share/...).";
    arriving_bytes: Gauge = "berth_arriving_bytes", bytes,
        "Room taken by packets above 64 KiB that are arriving (limits.max_arriving_bytes).";
    memory_limit_bytes: Gauge = "berth_memory_limit_bytes", bytes,
        "Memory that the broker may use (limits.memory); 0 = it is not limited.";
    memory_level: Gauge = "berth_memory_level", count,
        "How far that is used up: 0 = there is enough, 1 = publishers are not read (limits.memory_pause_at), 2 = new connections are refused as well (limits.memory_refuse_at).";
    memory_pauses: Counter = "berth_memory_pauses_total", count,
        "Times that publishers were not read any more because of limits.memory_pause_at.";
    publishers_paused: Gauge = "berth_publishers_paused", count,
        "Connections with a PUBLISH packet that waits because of limits.memory_pause_at.";
    memory_refused: Counter = "berth_memory_refused_total", count,
        "CONNECT packets refused because of limits.memory_refuse_at.";
    queued_messages: Gauge = "berth_queued_messages", count,
        "QoS 1 and 2 messages that wait for a receiver, counted once per receiver.";
    messages_dropped: Family<DropReason, Counter> = "berth_messages_dropped_total", count,
        "Messages not delivered to a receiver, by reason; counted once per receiver.";
    publishes_refused: Family<PublishRefusal, Counter> = "berth_publishes_refused_total", count,
        "QoS 1 and 2 PUBLISH packets that were not accepted, by reason.";
    bans: Gauge = "berth_bans", count,
        "Bans in force, by client ID, user or address.";
    denied: Family<Denied, Counter> = "berth_acl_denied_total", count,
        "What clients wanted to do, or were to be given, and may not, by kind; a message once per receiver.";
    acl_rules: Gauge = "berth_acl_rules", count,
        "Rules of acl.file, or lines of acl.mosquitto_file, in force.";
    acl_reload_failures: Counter = "berth_acl_reload_failures_total", count,
        "Changes of the file of rules that were not taken, because it was faulty or could not be read.";
    shared_redeliveries: Counter = "berth_shared_redeliveries_total", count,
        "Messages given to another member of a shared subscription because the first one's session ended.";
    wills_published: Counter = "berth_wills_published_total", count,
        "Wills published.";
    retained_messages: Gauge = "berth_retained_messages", count,
        "Retained messages.";
    retained_bytes: Gauge = "berth_retained_bytes", bytes,
        "Memory taken by retained messages.";

    journal_commits: Counter = "berth_journal_commits_total", count,
        "Commits of the journal.";
    journal_commit_changes: Histogram = "berth_journal_commit_changes", count,
        "Changes per commit of the journal.";
    journal_commit_seconds: Histogram = "berth_journal_commit_seconds", seconds,
        "Time a commit of the journal takes, the write to disk included.";
    journal_commit_age_seconds: Gauge = "berth_journal_commit_age_seconds", seconds,
        "For how long the oldest commit of the journal has been under way; 0 while there is none.";
    journal_pending_bytes: Gauge = "berth_journal_pending_bytes", bytes,
        "Changes that wait for the journal.";
    journal_size_bytes: Gauge = "berth_journal_size_bytes", bytes,
        "Size of the journal on disk.";
    journal_healthy: Gauge = "berth_journal_healthy", count,
        "1 while the journal makes changes durable, 0 while it cannot.";

    claims: Family<ClaimResult, Counter> = "berth_claims_total", count,
        "Attempts to become the owner of a session in etcd, by outcome.";
    claims_waiting: Gauge = "berth_claims_waiting", count,
        "CONNECT packets whose session is being brought to this node.";
    moves: Family<MoveResult, Counter> = "berth_session_moves_total", count,
        "Sessions that moved, or were to move, between this node and another, by result.";
    move_seconds: Histogram = "berth_session_move_seconds", seconds,
        "Time it takes to bring a session from another node to this one.";
    sessions_frozen: Gauge = "berth_sessions_frozen", count,
        "Sessions that are being handed over to another node.";
    sessions_departed: Gauge = "berth_sessions_departed", count,
        "Sessions that left and are remembered for publishes that still look for them here.";
    evictions: Counter = "berth_sessions_evicted_total", count,
        "Sessions that ended because another node replaced them.";
    order_timeouts: Counter = "berth_session_order_timeouts_total", count,
        "Moved sessions whose messages were let pass before all older ones were certain to be there.";
    handed_over: Family<HandOver, Counter> = "berth_sessions_handed_over_total", count,
        "Sessions that this node handed to others because it was leaving, by result.";
    etcd_proposals: Counter = "berth_etcd_proposals_total", count,
        "Transactions sent to etcd, each with many independent changes.";
    etcd_proposal_changes: Histogram = "berth_etcd_proposal_changes", count,
        "Independent changes per transaction sent to etcd.";
    http_refused: Counter = "berth_http_refused_total", count,
        "Requests to admin HTTP that were refused: no token, a wrong one, or one that may not do this.";
    etcd_errors: Counter = "berth_etcd_errors_total", count,
        "Requests and watches of etcd that failed.";
    etcd_watch_restarts: Counter = "berth_etcd_watch_restarts_total", count,
        "Watches of etcd that were opened again after one failed or fell silent.";
    etcd_snapshots: Counter = "berth_etcd_snapshots_total", count,
        "Times that all of the cluster's keys were read, the first time included.";
    applied_revision: Gauge = "berth_applied_revision", count,
        "The revision of etcd up to which this node knows everything.";
    leader_changes: Counter = "berth_leader_changes_total", count,
        "Times another node was seen to lead the cluster's housekeeping, or none.";
    watch_lag_seconds: Gauge = "berth_watch_lag_seconds", seconds,
        "How long ago everything that was in etcd then was known here.";
    serving: Gauge = "berth_cluster_serving", count,
        "1 while this node may serve clients: its lease is alive, or what it knows is current.";
    serving_lost: Counter = "berth_cluster_serving_lost_total", count,
        "Times this node had to close its clients because it was neither sure of its lease nor current.";
    suback_waits: Family<SubackWait, Counter> = "berth_cluster_suback_waits_total", count,
        "SUBACKs that waited for the other nodes, by outcome.";
    catch_ups: Counter = "berth_cluster_catch_ups_total", count,
        "Times this node got events that it had missed from another node while etcd was away.";
    retained_spooled: Counter = "berth_cluster_retained_parked_total", count,
        "Updates of retained messages that had to wait in the journal because etcd was away.";
    retained_overtaken: Counter = "berth_cluster_retained_overtaken_total", count,
        "Updates of retained messages that came too late: another node's newer one was there.";

    peer_links_up: Gauge = "berth_peer_links_up", count,
        "Links to other nodes that work.";
    peer_link_changes: Family<LinkChange, Counter> = "berth_peer_link_changes_total", count,
        "Links to other nodes that came up, went down or were refused; attempts in between are not counted.";
    peer_unreached_by: Gauge = "berth_peer_unreached_by", count,
        "Other nodes that say that they cannot reach this one.";
    clock_difference: Offset = "berth_clock_difference_seconds", seconds,
        "By how much this node's clock is ahead of the median of the cluster's clocks; negative = behind.";
    peer_frames_sent: Counter = "berth_peer_frames_sent_total", count,
        "Publishes sent to other nodes, repeated ones included; counted once per node.";
    peer_frames_resent: Counter = "berth_peer_frames_resent_total", count,
        "Publishes sent to another node again because the link broke before it had answered.";
    peer_frames_received: Counter = "berth_peer_frames_received_total", count,
        "Publishes received from other nodes.";
    peer_frames_dropped: Counter = "berth_peer_frames_dropped_total", count,
        "QoS 0 publishes for another node dropped because its link was down or its queue full.";
    peer_bytes_sent: Counter = "berth_peer_bytes_sent_total", bytes,
        "Size of the messages of publishes sent to other nodes.";
    peer_bytes_received: Counter = "berth_peer_bytes_received_total", bytes,
        "Size of the messages of publishes received from other nodes.";
    peer_batch_frames: Histogram = "berth_peer_batch_frames", count,
        "Publishes in one batch to another node.";
    peer_answers: Family<PeerAnswer, Counter> = "berth_peer_answers_total", count,
        "Answers of other nodes to publishes, by what they say.";
    peer_round_trip_seconds: Histogram = "berth_peer_round_trip_seconds", seconds,
        "Round trip of a ping to another node, beside its publishes.";
    peer_requests: Family<PeerRequest, Counter> = "berth_peer_requests_total", count,
        "Requests to other nodes, by outcome.";
    peer_refusals: Counter = "berth_peer_refusals_total", count,
        "Connections of other nodes that this one refused: wrong cluster, wrong node, other version, superseded.";
    publishes_held: Gauge = "berth_publishes_held", count,
        "QoS 1 and 2 publishes of this node's clients that not every other node has yet.";
    publishes_rematched: Counter = "berth_publishes_rematched_total", count,
        "Publishes that were matched once more: a session had moved, or this node was not current at first.";
    publishes_resent: Counter = "berth_publishes_resent_total", count,
        "Publishes that were begun before a restart and are sent again.";
    publishes_given_up: Counter = "berth_publishes_given_up_total", count,
        "QoS 1 publishes that another node did not take in time; their clients were told so.";
    frames_sent: Counter = "berth_frames_sent_total", count,
        "Publishes sent to other nodes, each time counted.";
    frames_received: Counter = "berth_frames_received_total", count,
        "Publishes received from other nodes.";
    duplicates_dropped: Counter = "berth_duplicates_dropped_total", count,
        "Publishes that came again and were not given to a session twice; counted once per session.";
    groups_declined: Counter = "berth_shared_declined_total", count,
        "Times a node had no member online for a message of a shared subscription, so that another was tried.";
    seen_forgotten: Counter = "berth_seen_forgotten_total", count,
        "Publishes of other nodes that were forgotten too early (limits): they may come twice.";

    uptime_seconds: Gauge = "berth_uptime_seconds", seconds,
        "Time since the broker started.";
    resident_memory_bytes: Gauge = "process_resident_memory_bytes", bytes,
        "Memory of the process that is in RAM.";
}

const SECONDS_BUCKETS: &[f64] = &[0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
const CHANGES_BUCKETS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0];
const FRAMES_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

impl Metrics {
    /// All at zero. Independent of any other in the process.
    pub fn new() -> Metrics {
        Metrics::with_summaries(SUMMARY_MS)
    }

    /// The same with so many milliseconds between two lines of the log about the same losses.
    pub fn with_summaries(interval_ms: u64) -> Metrics {
        let mut builder = PrometheusBuilder::new();
        let suffixes =
            [("_seconds", SECONDS_BUCKETS), ("_changes", CHANGES_BUCKETS), ("_frames", FRAMES_BUCKETS)];
        for (suffix, buckets) in suffixes {
            // Fails for an empty list of buckets only; the histograms would then be summaries.
            builder = builder
                .set_buckets_for_metric(Matcher::Suffix(suffix.to_owned()), buckets)
                .unwrap_or_else(|_| PrometheusBuilder::new());
        }
        Metrics::with_recorder(builder.build_recorder(), Losses::new(interval_ms))
    }

    /// Counts `n` losses of `whose`; the log says so, at once if they are the first of their kind.
    pub fn lost(&self, whose: Whose<'_>, loss: Loss, n: u64) {
        self.lost_about(whose, loss, n, None);
    }

    /// As [`Metrics::lost`]; the first line says what it is about.
    pub fn lost_about(&self, whose: Whose<'_>, loss: Loss, n: u64, about: Option<About<'_>>) {
        if n == 0 {
            return;
        }
        match loss.counted() {
            Counted::Message(reason) => self.messages_dropped.of(reason).add(n),
            Counted::Publish(reason) => self.publishes_refused.of(reason).add(n),
            Counted::Frame => self.peer_frames_dropped.add(n),
        }
        self.losses.add(whose, loss, n, about);
    }

    /// All metrics in the Prometheus text format.
    pub fn render(&self) -> String {
        self.resident_memory_bytes.set(resident_memory_bytes().unwrap_or(0));
        self.export();
        self.handle.render()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

/// Memory of the process that is in RAM, bytes.
///
/// # Errors
/// The system's file that says so cannot be read, as when there are no file descriptors left, or has no such line.
pub fn resident_memory_bytes() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = || -> Option<u64> {
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let bytes = kib().and_then(|kib| kib.checked_mul(1024));
    bytes.ok_or_else(|| {
        std::io::Error::new(std::io::ErrorKind::InvalidData, "no line VmRSS in /proc/self/status")
    })
}

/// The page `docs/metrics.md`.
pub fn markdown() -> String {
    let mut out = String::from(INTRO);
    for metric in ALL {
        let unit = if metric.unit == "count" { "" } else { metric.unit };
        let label = metric.label.map_or(String::new(), |(name, values)| {
            let values: Vec<_> = values.iter().map(|v| format!("`{v}`")).collect();
            format!("`{name}`: {}", values.join(", "))
        });
        out.push_str(&format!(
            "| `{}` | {} | {unit} | {label} | {} |\n",
            metric.name, metric.kind, metric.help
        ));
    }
    out
}

const INTRO: &str = "\
# Metrics

<!-- Written by `UPDATE_DOCS=1 cargo test docs`; the table in src/telemetry/metrics.rs is the source. -->

`GET /metrics` on the admin HTTP endpoint (`http.address`), in the Prometheus text format. Counters begin at 0 with the
process. No metric has a label for client or topic.

| metric | kind | unit | label | meaning |
|---|---|---|---|---|
";

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod metrics_tests;
