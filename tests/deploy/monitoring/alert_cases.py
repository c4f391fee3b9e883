"""For every alert of deploy/prometheus/alerts.yml: figures with which it fires, and figures with which it does not.

Each case has a target `bad` for which the alert fires at `fires`, and mostly one called `good` that comes close and for which it
does not. At `quiet` the alert fires for nobody: before the trouble began, or before it has lasted long enough. Series are in
promtool's notation, one value every 15 seconds.
"""

from dataclasses import dataclass

# Values that stay, for two hours.
STAYS = "x480"


def series(name: str, values: str, instance: str = "bad", **labels: str) -> dict[str, str]:
    labels = {"job": "berth", "instance": instance, **labels}
    inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return {"series": f"{name}{{{inside}}}", "values": values}


@dataclass
class Case:
    series: list[dict[str, str]]
    fires: str
    quiet: str
    # What is counted at `fires`: instances, unless the alert is about a whole cluster.
    of: str = "instance"
    expected: str | list[str] = '{instance="bad"}'


def both(name: str, bad: str, good: str, **labels: str) -> list[dict[str, str]]:
    return [series(name, bad, "bad", **labels), series(name, good, "good", **labels)]


CASES = {
    "BerthAbsent": Case(
        [series("berth_uptime_seconds", "0+15x40 stale _x200", "bad")], fires="20m", quiet="14m", of="", expected="{}"
    ),
    # `good` is a target that never answered, `fine` one that always did.
    "BerthBrokerDown": Case(
        both("up", "1x19 0x200", "0x200")
        + [series("up", "1x200", "fine")]
        + [series("berth_uptime_seconds", "0+15x19 stale _x200"), series("berth_uptime_seconds", "0+15x200", "fine")],
        fires="7m",
        quiet="5m30s",
    ),
    "BerthBrokerRestarts": Case(
        both("berth_uptime_seconds", "0+15x20 0+15x20 0+15x20 0+15x200", "0+15x20 0+15x20 0+15x200"), fires="18m", quiet="12m"
    ),
    # `good` runs, `fine` and `memory` run with a journal that fails, `new` has just started.
    "BerthStartsForLong": Case(
        both("berth_uptime_seconds", "0+15x300", "0+15x300")
        + both("berth_journal_healthy", "0x300", "0x3 1x300")
        + both("berth_journal_size_bytes", "0x300", "0x3 4096x300")
        + [series("berth_uptime_seconds", "0+15x300", "fine"), series("berth_journal_healthy", "0x300", "fine")]
        + [series("berth_journal_size_bytes", "0x3 4096x300", "fine"), series("berth_uptime_seconds", "45x300", "new")]
        + [series("berth_journal_healthy", "0x300", "new"), series("berth_journal_size_bytes", "0x300", "new")]
        + [series("berth_uptime_seconds", "0+15x300", "memory"), series("berth_journal_healthy", "0x3 1 0x300", "memory")]
        + [series("berth_journal_size_bytes", "0x300", "memory"), series("mqtt_connections_total", "0x3 7x300", "memory")]
        + [series("mqtt_connections_total", "0x300", i) for i in ("bad", "good", "fine", "new")],
        fires="3m",
        quiet="1m15s",
    ),
    "BerthFewerBrokers": Case(
        # Three of one cluster become two; the other cluster stays as it is.
        [series("berth_uptime_seconds", f"0+15{STAYS}", i, namespace="bad") for i in ("a", "b")]
        + [series("berth_uptime_seconds", "0+15x240 stale _x200", "c", namespace="bad")]
        + [series("berth_uptime_seconds", f"0+15{STAYS}", i, namespace="good") for i in ("a", "b")],
        fires="70m",
        quiet="63m",
        of="namespace",
        expected='{namespace="bad"}',
    ),
    "BerthConnectionsNearLimit": Case(
        both("mqtt_connections_active", f"90001{STAYS}", f"90000{STAYS}"), fires="6m", quiet="4m"
    ),
    "BerthSessionsNearLimit": Case(
        both("berth_sessions", f"400000{STAYS}", f"400000{STAYS}", state="active")
        + both("berth_sessions", f"500001{STAYS}", f"500000{STAYS}", state="dormant"),
        fires="6m",
        quiet="4m",
    ),
    "BerthRetainedNearLimit": Case(
        both("berth_retained_messages", f"100{STAYS}", f"900000{STAYS}")
        + both("berth_retained_bytes", f"1e9{STAYS}", f"0.9e9{STAYS}"),
        fires="6m",
        quiet="4m",
    ),
    "BerthClientErrors": Case(
        both("mqtt_errors_total", f"0+10{STAYS}", f"0+10{STAYS}", type="protocol_error")
        + both("mqtt_errors_total", f"0+10{STAYS}", f"0+1{STAYS}", type="malformed_packet")
        # Clients that vanish are no errors of theirs.
        + both("mqtt_errors_total", f"0+0{STAYS}", f"0+1000{STAYS}", type="keep_alive_timeout"),
        fires="16m",
        quiet="9m",
    ),
    "BerthConnectsRefused": Case(
        both("berth_connects_refused_total", f"0+2{STAYS}", f"0+1{STAYS}", reason="unavailable")
        + [series("berth_connects_refused_total", f"0+100{STAYS}", "good", reason="not_authorized")],
        fires="11m",
        quiet="4m",
    ),
    "BerthConnectsOverQuota": Case(
        both("berth_connects_refused_total", f"0+1{STAYS}", f"7{STAYS}", reason="quota"), fires="11m", quiet="4m"
    ),
    "BerthPublishesRefused": Case(
        both("berth_publishes_refused_total", f"0+1{STAYS}", f"7{STAYS}", reason="journal")
        + both("berth_publishes_refused_total", f"0+1{STAYS}", f"7{STAYS}", reason="quota")
        + both("berth_publishes_refused_total", f"0+0{STAYS}", f"0+9{STAYS}", reason="not_authorized"),
        fires="11m",
        quiet="4m",
    ),
    "BerthQueuesFull": Case(
        both("berth_messages_dropped_total", f"0+1{STAYS}", f"7{STAYS}", reason="queue_full")
        + both("berth_messages_dropped_total", f"0+0{STAYS}", f"0+9{STAYS}", reason="expired"),
        fires="11m",
        quiet="4m",
    ),
    "BerthSlowReceivers": Case(
        both("berth_messages_dropped_total", f"0+160{STAYS}", f"0+140{STAYS}", reason="mailbox_full"), fires="16m", quiet="9m"
    ),
    # `good` has memory again now and then.
    "BerthMemoryShort": Case(
        both("berth_memory_level", f"0x19 1{STAYS}", "0x19 1x5 0 1x5 0 1x5 0 1x5 0 1x5 0 1x5 0"), fires="9m", quiet="7m"
    ),
    "BerthQueuesGrow": Case(
        both("berth_queued_messages", "100001+1000x480", f"900000{STAYS}"), fires="80m", quiet="70m"
    ),
    # `good` works, `fine` does not run yet; `memory` has a journal without a file that is full.
    "BerthJournalFailing": Case(
        both("berth_journal_healthy", "1x19 0x200", "1x300") + both("berth_journal_size_bytes", "4096x300", "4096x300")
        + both("mqtt_connections_total", "0x300", "0x300") + [series("berth_journal_healthy", "0x300", "fine")]
        + [series("berth_journal_size_bytes", "0x300", "fine"), series("mqtt_connections_total", "0x300", "fine")]
        + [series("berth_journal_healthy", "1x19 0x200", "memory"), series("berth_journal_size_bytes", "0x300", "memory")]
        + [series("mqtt_connections_total", "1x300", "memory")],
        fires="6m",
        quiet="5m",
        expected=['{instance="bad"}', '{instance="memory"}'],
    ),
    "BerthJournalSlow": Case(
        # Of 100 commits 2 take over 0.1 s, or none.
        both("berth_journal_commit_seconds_bucket", f"0+98{STAYS}", f"0+100{STAYS}", le="0.1")
        + both("berth_journal_commit_seconds_bucket", f"0+100{STAYS}", f"0+100{STAYS}", le="0.3")
        + both("berth_journal_commit_seconds_bucket", f"0+100{STAYS}", f"0+100{STAYS}", le="+Inf"),
        fires="16m",
        quiet="9m",
    ),
    "BerthJournalBacklog": Case(
        # `good` comes down now and then.
        both("berth_journal_pending_bytes", f"40000000{STAYS}", "40000000x5 0 40000000x5 0 40000000x5 0 40000000x5 0 40000000x5 0"),
        fires="5m",
        quiet="1m45s",
    ),
    # `good` is a broker without a cluster.
    "BerthNotServing": Case(
        both("berth_cluster_serving", "1x19 0x200", "0x300") + both("berth_applied_revision", "9x300", "0x300"),
        fires="6m",
        quiet="5m",
    ),
    # Three nodes of one cluster, of which one has lost a link; and three brokers that are no cluster.
    "BerthPeerLinkMissing": Case(
        [series("berth_peer_links_up", "2x19 1x200", "bad")]
        + [series("berth_peer_links_up", "2x300", i) for i in ("good", "fine")]
        + [series("berth_applied_revision", "9x300", i) for i in ("bad", "good", "fine")]
        + [series("berth_peer_links_up", "0x300", i, job="single") for i in ("a", "b", "c")]
        + [series("berth_applied_revision", "0x300", i, job="single") for i in ("a", "b", "c")]
        + [series("berth_peer_links_up", "0x300", "a", namespace="other"), series("berth_applied_revision", "9x300", "a", namespace="other")],
        fires="8m",
        quiet="6m",
    ),
    "BerthPeerUnreached": Case(both("berth_peer_unreached_by", "0x20 2x200", "0x20 1x3 0x200"), fires="9m", quiet="6m"),
    "BerthPeersRefused": Case(
        both("berth_peer_refusals_total", "0x20 0+1x200", "0x20 1x200"), fires="10m", quiet="5m"
    ),
    # Either way; and what is allowed.
    "BerthClockDiffers": Case(
        both("berth_clock_difference_seconds", f"-30{STAYS}", f"-2{STAYS}"), fires="3m", quiet="1m"
    ),
    "BerthPublishesHeld": Case(
        both("berth_publishes_held", f"1001{STAYS}", "5000x3 0 5000x3 0 5000x3 0 5000x3 0 5000x3 0 5000x3 0 5000x3 0 5000x3 0"), fires="6m", quiet="2m"
    ),
    "BerthPublishesHeldNearLimit": Case(
        both("berth_publishes_held", f"80001{STAYS}", f"80000{STAYS}"), fires="2m", quiet="45s"
    ),
    "BerthPublishesGivenUp": Case(
        both("berth_publishes_given_up_total", "0x40 1x200", "7x300"), fires="12m", quiet="9m"
    ),
    "BerthSessionMovesFail": Case(
        both("berth_session_moves_total", f"0+1{STAYS}", f"7{STAYS}", result="failed")
        + both("berth_session_moves_total", f"0+9{STAYS}", f"0+9{STAYS}", result="came"),
        fires="17m",
        quiet="4m",
    ),
    "BerthOrderNotKept": Case(
        both("berth_session_order_timeouts_total", "0x40 1x200", "7x300"), fires="12m", quiet="9m"
    ),
    "BerthDuplicatesPossible": Case(
        both("berth_seen_forgotten_total", "0x40 1x200", "7x300"), fires="12m", quiet="9m"
    ),
    "BerthPeerQos0Dropped": Case(
        both("berth_peer_frames_dropped_total", f"0+160{STAYS}", f"0+140{STAYS}"), fires="16m", quiet="9m"
    ),
    "BerthSubscriptionsUnconfirmed": Case(
        both("berth_cluster_suback_waits_total", f"0+1{STAYS}", f"7{STAYS}", outcome="timed_out")
        + both("berth_cluster_suback_waits_total", f"0+9{STAYS}", f"0+9{STAYS}", outcome="done"),
        fires="17m",
        quiet="4m",
    ),
    # `good` is in step again now and then.
    "BerthEtcdUnreachable": Case(
        both("berth_watch_lag_seconds", "0x20 0+15x200", "0x20 15 16 17 0 1 15 16 17 0 1 15 16 17 0 1 15 16 17 0 1"),
        fires="7m30s",
        quiet="6m",
    ),
    "BerthEtcdErrors": Case(
        both("berth_etcd_errors_total", f"0+2{STAYS}", f"0+1{STAYS}"), fires="16m", quiet="9m"
    ),
    "BerthEtcdWatchRestarts": Case(
        both("berth_etcd_watch_restarts_total", "0x20 0+1x10 10x200", "0x20 0+1x4 4x200"), fires="10m", quiet="5m"
    ),
    "BerthRetainedParked": Case(
        both("berth_cluster_retained_parked_total", "0x20 0+1x200", "7x300"), fires="11m", quiet="6m"
    ),
    "BerthLeaderChanges": Case(
        [series("berth_leader_changes_total", "0x20 0+1x10 10x200", "a", namespace="bad")]
        + [series("berth_leader_changes_total", "0x20 0+1x3 3x200", "b", namespace="good")],
        fires="10m",
        quiet="5m",
        of="namespace",
        expected='{namespace="bad"}',
    ),
    "BerthEtcdDatabaseFull": Case(
        both("etcd_mvcc_db_total_size_in_bytes", f"1.7e9{STAYS}", f"1.7e9{STAYS}", job="etcd")
        + both("etcd_server_quota_backend_bytes", f"2e9{STAYS}", f"8e9{STAYS}", job="etcd"),
        fires="6m",
        quiet="4m",
    ),
    "BerthEtcdSlowDisk": Case(
        both("etcd_disk_wal_fsync_duration_seconds_bucket", f"0+90{STAYS}", f"0+100{STAYS}", job="etcd", le="0.032")
        + both("etcd_disk_wal_fsync_duration_seconds_bucket", f"0+90{STAYS}", f"0+100{STAYS}", job="etcd", le="0.064")
        + both("etcd_disk_wal_fsync_duration_seconds_bucket", f"0+100{STAYS}", f"0+100{STAYS}", job="etcd", le="0.128")
        + both("etcd_disk_wal_fsync_duration_seconds_bucket", f"0+100{STAYS}", f"0+100{STAYS}", job="etcd", le="+Inf"),
        fires="16m",
        quiet="9m",
    ),
}


def promtool_file(rules: str) -> dict:
    """The cases as promtool reads them."""
    tests = []
    for alert, case in CASES.items():
        expected = [case.expected] if isinstance(case.expected, str) else case.expected
        firing = f'count by ({case.of}) (ALERTS{{alertname="{alert}",alertstate="firing"}})'
        tests.append(
            {
                "name": alert,
                "interval": "15s",
                "input_series": case.series,
                "promql_expr_test": [
                    {"expr": firing, "eval_time": case.quiet, "exp_samples": []},
                    {"expr": firing, "eval_time": case.fires, "exp_samples": [{"labels": labels, "value": 1} for labels in expected]},
                ],
            }
        )
    return {"rule_files": [rules], "evaluation_interval": "15s", "tests": tests}
