//! The broker's answers as people read them. Answers are taken as they come: a broker of another version may say less.

use super::table::{Names, Table, clean, duration, list, shell_word, word};
use crate::clock;
use crate::names::shown;
use serde_json::Value;

/// `/ready`, of a node that is.
pub(super) fn ready(answer: &Value) -> String {
    format!("{}\n", clean(&word(&answer["status"])))
}

/// `/cluster/status`.
pub(super) fn status(answer: &Value) -> String {
    let node = &answer["node"];
    let ready = match node["ready"].as_bool() {
        Some(true) => "ready".to_owned(),
        _ => format!("not ready: {}", word(&node["not_ready"])),
    };
    let mut text = format!(
        "node {}  {}  version {}  up {}\n",
        word(&node["id"]),
        clean(&ready),
        word(&node["version"]),
        duration(node["uptime_seconds"].as_u64().unwrap_or(0))
    );
    text += &format!(
        "     {} connections, {} sessions ({} dormant), {} subscriptions, {} queued, {} retained\n",
        word(&node["connections"]),
        word(&node["sessions"]),
        word(&node["sessions_dormant"]),
        word(&node["subscriptions"]),
        word(&node["queued_messages"]),
        word(&node["retained_messages"])
    );
    if let Some(error) = node["journal"]["error"].as_str() {
        text += &format!("     journal failing: {}\n", clean(error));
    }
    match &answer["cluster"] {
        Value::Null if answer["mode"] == "standalone" => text += "standalone: this broker is in no cluster\n",
        Value::Null => text += "cluster: not known yet\n",
        cluster => text += &cluster_status(cluster, &word(&node["id"])),
    }
    for record in list(&answer["cluster"]["directory_unreadable"]) {
        text += &format!("cannot be read in etcd: {}\n", clean(&word(record)));
    }
    text
}

fn cluster_status(cluster: &Value, asked: &str) -> String {
    let leader = word(&cluster["leader"]);
    let mut text = format!(
        "cluster {}  leader {}  applied revision {}  current {}  may serve {}  lease {}\n\n",
        word(&cluster["name"]),
        if leader.is_empty() { "none" } else { &leader },
        word(&cluster["applied_revision"]),
        word(&cluster["current"]),
        word(&cluster["may_serve"]),
        duration(cluster["lease_for_ms"].as_u64().unwrap_or(0) / 1000),
    );
    let columns = [
        "member",
        "incarnation",
        "state",
        "link",
        "rtt",
        "unanswered",
        "queued",
        "applied",
        "clock",
        "version",
        "up",
        "mqtt",
        "peer",
    ];
    let mut members = Table::new(&columns);
    for m in list(&cluster["members"]) {
        let link = &m["link"];
        members.row([
            word(&m["node"]),
            word(&m["incarnation"]),
            match (m["registered"].as_bool(), m["draining"].as_bool()) {
                (Some(false), _) => "not registered".to_owned(),
                (_, Some(true)) => "draining".to_owned(),
                _ => "live".to_owned(),
            },
            if m["node"] == asked { "(asked)".to_owned() } else { word(&link["state"]) },
            link["rtt_us"].as_u64().map_or_else(String::new, |us| format!("{:.1}ms", us as f64 / 1000.0)),
            word(&link["unanswered"]),
            word(&link["queued"]),
            word(&m["applied_revision"]),
            m["clock_difference_ms"].as_i64().map_or_else(String::new, signed),
            word(&m["version"]),
            duration(m["uptime_seconds"].as_u64().unwrap_or(0)),
            word(&m["mqtt"]),
            word(&m["peer"]),
        ]);
    }
    text += &members.text(0);
    for m in list(&cluster["members"]) {
        if let Some(error) = m["link"]["error"].as_str() {
            text += &format!("link to {}: {}\n", word(&m["node"]), clean(error));
        }
    }
    text += &clocks(cluster);
    for u in list(&cluster["unreached_by"]) {
        text += &format!(
            "node {} cannot reach this one at {}: {}\n",
            word(&u["node"]),
            word(&u["address"]),
            clean(&word(&u["error"]))
        );
    }
    if cluster["reached_by_none"] == true {
        text += "NO OTHER NODE REACHES THIS ONE: check cluster.advertise_peer here, and the network to it\n";
    }
    text.push('\n');
    let waiting = list(&cluster["waiting"]);
    if !waiting.is_empty() {
        let mut table = Table::new(&["waits for its node", "holder", "copies", "journal", "what to do"]);
        for w in waiting {
            let earlier = list(&w["incarnations"]).len().saturating_sub(1);
            let of = word(&w["incarnation"]);
            table.row([
                if earlier > 0 { format!("{of} (and {earlier} before)") } else { of },
                word(&w["holder"]),
                word(&w["copies"]),
                word(&w["journal"]),
                word(&w["hint"]),
            ]);
        }
        text += &table.text(0);
        text.push('\n');
    }
    let held = &cluster["held"];
    text += &format!(
        "held publishes {} (not matched {}, to match again {}, waiting for answers {}){}\n",
        word(&held["publishes"]),
        word(&held["unmatched"]),
        word(&held["again"]),
        word(&held["asked"]),
        if held["full"] == true { "  FULL: publishers are slowed down" } else { "" },
    );
    text + &etcd(&cluster["etcd"])
}

/// What is wrong with the members' clocks.
fn clocks(cluster: &Value) -> String {
    let mut text = String::new();
    for m in list(&cluster["members"]).iter().filter(|m| m["clock_apart"] == true) {
        let ms = m["clock_difference_ms"].as_i64().unwrap_or(0);
        let (node, way) = (word(&m["node"]), if ms < 0 { "behind" } else { "ahead of" });
        let seconds = ms.unsigned_abs() as f64 / 1000.0;
        text += &format!(
            "THE CLOCK OF {node} IS {seconds:.1}s {way} the cluster's median: set it right, then restart that node\n"
        );
    }
    if cluster["clock"]["cluster_time_known"] == false {
        text += "the cluster's time is not known yet: nothing in etcd expires by this node\n";
    }
    text
}

/// Milliseconds as seconds with a sign.
fn signed(ms: i64) -> String {
    format!("{:+.1}s", ms as f64 / 1000.0)
}

fn etcd(etcd: &Value) -> String {
    let endpoints: Vec<String> = list(&etcd["endpoints"]).iter().map(word).collect();
    let mut text = format!(
        "etcd {}  {}  watch lag {}s  waiting {}\n",
        endpoints.join(","),
        match (etcd["reachable"] == true, etcd["writable"] == false) {
            (true, false) => "answers",
            (true, true) => "TAKES NO WRITES (its database is full, or this node may not write to it)",
            (false, _) => "DOES NOT ANSWER",
        },
        word(&etcd["lag_seconds"]),
        etcd["waiting"].as_u64().unwrap_or(0) + etcd["routes_waiting"].as_u64().unwrap_or(0),
    );
    if etcd["watching"].is_null() {
        text += &format!("     no watch: {}\n", clean(&word(&etcd["last_error"])));
    }
    text
}

/// `POST cluster/forget`.
pub(super) fn forgotten(answer: &Value) -> String {
    let incarnations: Vec<String> = list(&answer["incarnations"]).iter().map(word).collect();
    format!(
        "forgotten: {} sessions of node {} ({}), with their queues, subscriptions and wills: these wills are never published\n",
        word(&answer["sessions"]),
        word(&answer["node"]),
        incarnations.join(", ")
    )
}

/// `POST node/drain`.
pub(super) fn draining(answer: &Value) -> String {
    let again = if answer["already"] == true { "was already leaving" } else { "leaves" };
    format!("node {} {again}: {} sessions to hand over\n", word(&answer["node"]), word(&answer["sessions"]))
}

/// The same once the process has ended.
pub(super) fn drained(answer: &Value) -> String {
    format!("node {} has ended\n", word(&answer["node"]))
}

/// `GET sessions`.
pub(super) fn sessions(answer: &Value) -> String {
    let mut names = Names::default();
    let mut table =
        Table::new(&["client", "node", "state", "persistent", "subscriptions", "queued", "in flight"]);
    for s in list(&answer["sessions"]) {
        table.row([
            names.show(&s["client_id"]),
            word(&s["node"]),
            word(&s["state"]),
            word(&s["persistent"]),
            word(&s["subscriptions"]),
            word(&s["queued"]),
            word(&s["in_flight"]),
        ]);
    }
    let mut text = if table.is_empty() { "no sessions\n".to_owned() } else { table.text(0) };
    for missing in list(&answer["unanswered"]) {
        text += &format!(
            "sessions of node {} are missing: {}\n",
            word(&missing["node"]),
            word(&missing["error"])
        );
    }
    match answer["next"].as_str() {
        Some(next) if shown(next).shortened() => {
            text += "there are more: --after=-, with \"next\" of --json on standard input\n";
        }
        Some(next) => text += &format!("there are more: --after={}\n", shell_word(next)),
        None => {}
    }
    text + names.note()
}

/// `GET sessions/{client}`.
pub(super) fn session(answer: &Value) -> String {
    let mut names = Names::default();
    let mut lines = Table::new(&["client", &names.show(&answer["client_id"])]);
    let holder = word(&answer["holder"]);
    if !holder.is_empty() {
        lines.row(["lives on".to_owned(), format!("{holder}, epoch {}", word(&answer["epoch"]))]);
    }
    if let Some(problem) = answer["problem"].as_str() {
        lines.row(["not reached".to_owned(), problem.to_owned()]);
    }
    let session = &answer["session"];
    if session.is_null() {
        return lines.text(0) + names.note();
    }
    let connection = &session["connection"];
    // By the clock of the node that has it; a broker of an earlier release does not say what that shows.
    let as_of = session["as_of"].as_u64().filter(|ms| *ms > 0).unwrap_or_else(|| clock::now().as_millis());
    let state = match connection {
        Value::Null => format!("{}{}", word(&session["state"]), ago(&session["disconnected_at"], as_of)),
        c => format!(
            "{} from {}, MQTT {}{}",
            word(&session["state"]),
            word(&c["peer"]),
            word(&c["version"]),
            ago(&c["since"], as_of)
        ),
    };
    lines.row(["state".to_owned(), state]);
    let expiry = session["expiry_seconds"].as_u64();
    lines.row([
        "expires".to_owned(),
        match expiry {
            None => "never".to_owned(),
            Some(0) => "with its connection".to_owned(),
            Some(s) => format!("{} after its connection", duration(s)),
        },
    ]);
    lines.row(["queued".to_owned(), word(&session["queued"])]);
    lines.row(["in flight".to_owned(), word(&session["in_flight"])]);
    let will = &session["will"];
    let will = match will {
        Value::Null => "none".to_owned(),
        w => format!(
            "{} (QoS {}, delay {}s)",
            names.show(&w["topic"]),
            word(&w["qos"]),
            word(&w["delay_seconds"])
        ),
    };
    lines.row(["will".to_owned(), will]);
    let mut filters = Table::new(&["filter", "QoS", "identifier"]);
    for f in list(&session["filters"]) {
        filters.row([names.show(&f["filter"]), word(&f["qos"]), word(&f["id"])]);
    }
    let total = session["subscriptions"].as_u64().unwrap_or(0);
    let left = total.saturating_sub(list(&session["filters"]).len() as u64);
    let mut text = lines.text(0);
    if filters.is_empty() {
        text += "no subscriptions\n";
    } else {
        text += &format!("{total} subscriptions\n{}", filters.text(2));
    }
    if left > 0 && !filters.is_empty() {
        text += &format!("and {left} more\n");
    }
    text + names.note()
}

/// `, since 5m 3s` for a moment before `as_of`, both in milliseconds since the epoch; nothing for null.
fn ago(at: &Value, as_of: u64) -> String {
    let seconds = at.as_u64().map(|ms| as_of.saturating_sub(ms) / 1000);
    seconds.map_or_else(String::new, |s| format!(", since {}", duration(s)))
}

/// `DELETE sessions/{client}`.
pub(super) fn kicked(answer: &Value) -> String {
    let node = word(&answer["node"]);
    let place = if node.is_empty() { String::new() } else { format!(" on node {node}") };
    let mut names = Names::default();
    let client = names.show(&answer["client_id"]);
    let text = if answer["closed"] == true {
        format!("the connection of {client}{place} is closed; its session stays\n")
    } else {
        format!("{client} is not connected; its session{place} is dormant\n")
    };
    text + names.note()
}

/// `GET routes`.
pub(super) fn routes(answer: &Value) -> String {
    let mut names = Names::default();
    let node = word(&answer["node"]);
    let mut table = Table::new(&["kind", "name", "node", "QoS", "persistent", "remark"]);
    let here = if node.is_empty() { "this broker".to_owned() } else { node };
    for s in list(&answer["sessions"]) {
        let remark = if s["connected"] == true { "connected" } else { "dormant" };
        let name = names.show(&s["client_id"]);
        table.row([
            "session".to_owned(),
            name,
            here.clone(),
            word(&s["qos"]),
            word(&s["persistent"]),
            remark.to_owned(),
        ]);
    }
    for g in list(&answer["groups"]) {
        for n in list(&g["nodes"]) {
            let node = Some(word(&n["node"])).filter(|n| !n.is_empty()).unwrap_or_else(|| here.clone());
            let remark = format!("{} members{}", word(&n["weight"]), orphaned(n));
            table.row([
                "shared".to_owned(),
                names.show(&g["name"]),
                node,
                String::new(),
                word(&n["persistent"]),
                remark,
            ]);
        }
    }
    for n in list(&answer["nodes"]) {
        let remark = format!("sessions there{}", orphaned(n));
        table.row([
            "node".to_owned(),
            String::new(),
            word(&n["node"]),
            String::new(),
            word(&n["persistent"]),
            remark,
        ]);
    }
    let mut text = format!("topic {}\n", names.show(&answer["topic"]));
    text += &if table.is_empty() { "nobody subscribes to it\n".to_owned() } else { table.text(0) };
    let (shown, total) =
        (list(&answer["sessions"]).len() as u64, answer["sessions_total"].as_u64().unwrap_or(0));
    if total > shown {
        text += &format!("and {} more sessions here\n", total - shown);
    }
    let groups = answer["groups_total"].as_u64().unwrap_or(0);
    let left = groups.saturating_sub(list(&answer["groups"]).len() as u64);
    if left > 0 {
        text += &format!("and {left} more shared subscriptions\n");
    }
    text + names.note()
}

fn orphaned(node: &Value) -> &'static str {
    if node["orphaned"] == true { "; the node is gone, QoS 1 and 2 wait for it" } else { "" }
}

/// `GET retained`.
pub(super) fn retained(answer: &Value) -> String {
    let mut names = Names::default();
    let mut table = Table::new(&["topic", "QoS", "bytes", "revision", "expires in", "payload"]);
    for m in list(&answer["messages"]) {
        let left = m["expires_at"].as_u64().map(|at| at.saturating_sub(clock::now().as_millis()) / 1000);
        let payload = m["payload"].as_str().map_or_else(|| "(binary)".to_owned(), str::to_owned);
        table.row([
            names.show(&m["topic"]),
            word(&m["qos"]),
            word(&m["bytes"]),
            word(&m["revision"]),
            left.map_or_else(String::new, duration),
            payload,
        ]);
    }
    let (shown, total) = (list(&answer["messages"]).len() as u64, answer["total"].as_u64().unwrap_or(0));
    let mut text = if table.is_empty() { "no retained messages\n".to_owned() } else { table.text(0) };
    if total > shown {
        text += &format!("and {} more: --limit, or a narrower filter\n", total - shown);
    }
    text + names.note()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_with_less_than_expected_is_shown() {
        for show in [ready, status, forgotten, draining, drained, sessions, session, kicked, routes, retained]
        {
            assert!(show(&json!({})).ends_with('\n'));
        }
    }

    #[test]
    fn a_kick_says_what_it_did() {
        let kicked_on = kicked(&json!({"client_id": "a", "node": "n2", "closed": true}));
        assert_eq!(kicked_on, "the connection of a on node n2 is closed; its session stays\n");
        assert_eq!(
            kicked(&json!({"client_id": "a", "closed": false})),
            "a is not connected; its session is dormant\n"
        );
    }

    #[test]
    fn members_and_what_waits_are_shown() {
        let answer = json!({
            "mode": "cluster",
            "node": {"id": "n1", "ready": true, "version": "1"},
            "cluster": {
                "name": "c", "leader": "n1@7", "current": true,
                "members": [
                    {"node": "n1", "incarnation": 7, "registered": true},
                    {
                        "node": "n2", "incarnation": 9, "registered": true, "link": {"state": "down", "error": "refused"},
                        "clock_difference_ms": -3_600_040, "clock_apart": true,
                    },
                ],
                "clock": {"cluster_time_known": false},
                "waiting": [{"incarnation": "n3@5", "incarnations": ["n3@2", "n3@5"], "holder": "n3@5", "hint": "start it"}],
                "unreached_by": [{"node": "n2", "address": "x:1", "error": "nobody is there"}],
                "reached_by_none": true,
                "etcd": {"endpoints": ["http://e:1"], "reachable": false, "last_error": "gone"},
            },
        });
        let text = status(&answer);
        for words in [
            "node n1  ready",
            "leader n1@7",
            "(asked)",
            "link to n2: refused",
            "n3@5 (and 1 before)",
            "node n2 cannot reach this one at x:1: nobody is there",
            "NO OTHER NODE REACHES THIS ONE",
            "-3600.0s",
            "THE CLOCK OF n2 IS 3600.0s behind the cluster's median",
            "the cluster's time is not known yet",
            "start it",
            "DOES NOT ANSWER",
            "gone",
        ] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
    }
}
