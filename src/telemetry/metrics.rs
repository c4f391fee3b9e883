//! Every metric of the broker, in one table. No metric is labelled by client or topic.

use super::cells::{Counter, Family, Gauge, Histogram, Label};
use metrics::{Key, KeyName, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

macro_rules! label {
    ($(#[$doc:meta])+ $name:ident = $label:literal { $($(#[$variant_doc:meta])+ $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])+ $variant,)+ }

        impl Label for $name {
            const NAME: &'static str = $label;
            const VALUES: &'static [&'static str] = &[$($text),+];

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// Quality of service of a PUBLISH packet.
    Qos = "qos" {
        /// At most once.
        Zero = "0",
        /// At least once.
        One = "1",
        /// Exactly once.
        Two = "2",
    }
}

impl From<u8> for Qos {
    fn from(qos: u8) -> Qos {
        match qos {
            0 => Qos::Zero,
            1 => Qos::One,
            _ => Qos::Two,
        }
    }
}

label! {
    /// Why a connection was ended by an error.
    ErrorType = "type" {
        /// Bytes that are no MQTT (reason 0x81).
        Malformed = "malformed_packet",
        /// A packet that the specification forbids there (0x82 and its special cases).
        Protocol = "protocol_error",
        /// A packet larger than `limits.max_packet_size` (0x95).
        PacketTooLarge = "packet_too_large",
        /// More unacknowledged messages than `limits.receive_maximum` (0x93).
        ReceiveMaximum = "receive_maximum_exceeded",
        /// No CONNECT within `limits.connect_timeout`.
        ConnectTimeout = "connect_timeout",
        /// Nothing heard for one and a half keep alive intervals (0x8D).
        KeepAlive = "keep_alive_timeout",
        /// The network failed.
        Io = "io",
        /// The journal did not accept what it had to.
        Journal = "journal",
    }
}

impl ErrorType {
    /// The type of an error by which the broker ends a connection with reason code `code` (MQTT 5.0 section 3.14.2.1).
    pub fn from_code(code: u8) -> ErrorType {
        match code {
            0x81 => ErrorType::Malformed,
            0x8D => ErrorType::KeepAlive,
            0x93 => ErrorType::ReceiveMaximum,
            0x95 => ErrorType::PacketTooLarge,
            _ => ErrorType::Protocol,
        }
    }
}

label! {
    /// Why a CONNECT was refused.
    RefuseReason = "reason" {
        /// `limits.max_connections` or `session.max_sessions` is reached (0x97, 0x9F).
        Quota = "quota",
        /// A protocol version that the broker does not speak (0x84).
        Version = "unsupported_version",
        /// A client identifier that cannot be used (0x85).
        ClientId = "client_id",
        /// The client may not connect, or not by this authentication method (0x86, 0x87, 0x8A, 0x8C).
        NotAuthorized = "not_authorized",
        /// The broker is starting, stopping, or cannot write its journal (0x88, 0x89, 0x8B).
        Unavailable = "unavailable",
        /// Anything else that the specification forbids in a CONNECT.
        Other = "other",
    }
}

impl RefuseReason {
    /// The reason for a CONNACK with reason code `code` (MQTT 5.0 section 3.2.2.2).
    pub fn from_code(code: u8) -> RefuseReason {
        match code {
            0x84 => RefuseReason::Version,
            0x85 => RefuseReason::ClientId,
            0x86 | 0x87 | 0x8A | 0x8C => RefuseReason::NotAuthorized,
            0x88 | 0x89 | 0x8B => RefuseReason::Unavailable,
            0x97 | 0x9F => RefuseReason::Quota,
            _ => RefuseReason::Other,
        }
    }
}

label! {
    /// Why a message was not delivered to one of its receivers.
    DropReason = "reason" {
        /// QoS 0 for a client that reads too slowly.
        MailboxFull = "mailbox_full",
        /// QoS 1 or 2 for a session whose queue is full.
        QueueFull = "queue_full",
        /// Its message expiry interval passed while it was queued.
        Expired = "expired",
        /// Larger than what the client accepts.
        TooLarge = "too_large",
        /// QoS 0 for a session that nobody is connected to.
        Offline = "offline",
        /// The client answered with an error.
        Refused = "refused",
        /// Its session ended while it was queued.
        SessionEnded = "session_ended",
    }
}

label! {
    /// Why a PUBLISH was not accepted.
    PublishRefusal = "reason" {
        /// The journal could not make it safe within `publish.timeout`.
        Journal = "journal",
        /// A limit of retained messages (0x97).
        Quota = "quota",
        /// The client may not publish there (0x87).
        NotAuthorized = "not_authorized",
    }
}

label! {
    /// Whether somebody is connected to a session.
    SessionState = "state" {
        /// Yes.
        Active = "active",
        /// No.
        Dormant = "dormant",
    }
}

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
            fn with_recorder(recorder: PrometheusRecorder) -> Metrics {
                $(
                    let unit = Unit::from_string(stringify!($unit));
                    <$kind as Cell>::describe(&recorder, KeyName::from_const_str($name), unit, $help);
                )+
                $(let $field = <$kind as Cell>::make(&recorder, $name);)+
                Metrics { handle: recorder.handle(), recorder, $($field,)+ }
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

    connects_refused: Family<RefuseReason, Counter> = "berth_connects_refused_total", count,
        "CONNECT packets refused, by reason.";
    takeovers: Counter = "berth_takeovers_total", count,
        "Connections closed because their client connected again.";
    sessions: Family<SessionState, Gauge> = "berth_sessions", count,
        "Sessions, by state: active = connected, dormant = not.";
    sessions_expired: Counter = "berth_sessions_expired_total", count,
        "Sessions that ended because nobody connected within their session expiry interval.";
    shared_subscriptions: Gauge = "berth_shared_subscriptions", count,
        "Subscriptions of all sessions that are shared ($share/...).";
    queued_messages: Gauge = "berth_queued_messages", count,
        "QoS 1 and 2 messages that wait for a receiver, counted once per receiver.";
    messages_dropped: Family<DropReason, Counter> = "berth_messages_dropped_total", count,
        "Messages not delivered to a receiver, by reason; counted once per receiver.";
    publishes_refused: Family<PublishRefusal, Counter> = "berth_publishes_refused_total", count,
        "QoS 1 and 2 PUBLISH packets that were not accepted, by reason.";
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
    journal_pending_bytes: Gauge = "berth_journal_pending_bytes", bytes,
        "Changes that wait for the journal.";
    journal_size_bytes: Gauge = "berth_journal_size_bytes", bytes,
        "Size of the journal on disk.";
    journal_healthy: Gauge = "berth_journal_healthy", count,
        "1 while the journal makes changes durable, 0 while it cannot.";

    uptime_seconds: Gauge = "berth_uptime_seconds", seconds,
        "Time since the broker started.";
    resident_memory_bytes: Gauge = "process_resident_memory_bytes", bytes,
        "Memory of the process that is in RAM.";
}

const SECONDS_BUCKETS: &[f64] = &[0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
const CHANGES_BUCKETS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0];

impl Metrics {
    /// All at zero. Independent of any other in the process.
    pub fn new() -> Metrics {
        let mut builder = PrometheusBuilder::new();
        for (suffix, buckets) in [("_seconds", SECONDS_BUCKETS), ("_changes", CHANGES_BUCKETS)] {
            // Fails for an empty list of buckets only; the histograms would then be summaries.
            builder = builder
                .set_buckets_for_metric(Matcher::Suffix(suffix.to_owned()), buckets)
                .unwrap_or_else(|_| PrometheusBuilder::new());
        }
        Metrics::with_recorder(builder.build_recorder())
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

fn resident_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
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
mod tests {
    use super::*;

    #[test]
    fn rendered_as_prometheus_text() {
        let metrics = Metrics::new();
        metrics.connections_total.add(3);
        metrics.messages_dropped.of(DropReason::Expired).inc();
        metrics.sessions.of(SessionState::Dormant).set(9);
        metrics.journal_commit_seconds.record(0.0002);
        let text = metrics.render();
        for line in [
            "# TYPE mqtt_connections_total counter",
            "mqtt_connections_total 3",
            "berth_messages_dropped_total{reason=\"expired\"} 1",
            "berth_messages_dropped_total{reason=\"queue_full\"} 0",
            "berth_sessions{state=\"dormant\"} 9",
            "berth_journal_commit_seconds_bucket{le=\"0.0001\"} 0",
            "berth_journal_commit_seconds_bucket{le=\"0.0003\"} 1",
            "berth_journal_commit_seconds_count 1",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
        }
        assert!(metrics.resident_memory_bytes.get() > 1 << 20);
        metrics.connections_total.inc();
        assert!(metrics.render().contains("mqtt_connections_total 4\n"));
    }

    #[test]
    fn every_metric_is_rendered_with_its_help_and_well_named() {
        let metrics = Metrics::new();
        metrics.journal_commit_changes.record(1.0);
        metrics.journal_commit_seconds.record(1.0);
        let text = metrics.render();
        for metric in ALL {
            assert!(
                text.contains(&format!("# HELP {} {}", metric.name, metric.help)),
                "{} in\n{text}",
                metric.name
            );
            assert!(text.contains(&format!("# TYPE {} {}", metric.name, metric.kind)), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == "counter", "{}", metric.name);
            assert!(matches!(metric.unit, "count" | "bytes" | "seconds"));
            let label = metric.label.map(|(name, _)| name);
            assert!(!matches!(label, Some("client" | "client_id" | "topic")));
        }
    }

    #[test]
    fn samples_do_not_pile_up_when_nobody_scrapes() {
        let metrics = Metrics::new();
        for _ in 0..20_000 {
            metrics.journal_commit_changes.record(5.0);
        }
        assert!(metrics.render().contains("berth_journal_commit_changes_count 20000\n"));
    }

    #[test]
    fn two_brokers_in_one_process_count_apart() {
        let (a, b) = (Metrics::new(), Metrics::new());
        a.takeovers.inc();
        assert!(a.render().contains("berth_takeovers_total 1\n"));
        assert!(b.render().contains("berth_takeovers_total 0\n"));
    }
}
