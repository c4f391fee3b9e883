//! The table of metrics as it is rendered.

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
    metrics.peer_batch_frames.record(1.0);
    metrics.peer_round_trip_seconds.record(1.0);
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
