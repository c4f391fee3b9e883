//! `docs/etcd.md` shows one key and value of each kind: they are compared with what a running cluster has written.

use super::directory::ctl_with;
use super::nodes::BerthCluster;
use crate::client::Dial;
use crate::operate::ctl;
use crate::tree;
use crate::wait;
use berth::mqtt::QoS;
use serde_json::Value;
use std::collections::BTreeMap;

/// What all keys begin with.
const ROOT: &str = "/berth/berth/v1/";

/// The kind of a key: the word after the root.
fn kind(key: &str) -> Option<&str> {
    key.strip_prefix(ROOT)?.split('/').next()
}

/// How a key is built, digits and names left out: the lengths of its parts that are numbers.
fn key_shape(key: &str) -> Vec<String> {
    let number = |part: &str| part.bytes().all(|b| b.is_ascii_digit()) && part.len() == 20;
    let kind = kind(key).unwrap().to_owned();
    let parts = key[ROOT.len()..].split('/').skip(1);
    let shape = |part: &str| if number(part) { "number".to_owned() } else { "name".to_owned() };
    match &*kind {
        // A topic has as many levels as it likes.
        "retained" => vec![kind],
        _ => [kind].into_iter().chain(parts.map(shape)).collect(),
    }
}

/// The fields of a value and their types; of a value that is no JSON the form.
fn value_shape(value: &str) -> BTreeMap<String, &'static str> {
    let Ok(Value::Object(fields)) = serde_json::from_str(value) else {
        let (node, incarnation) = value.rsplit_once('@').unwrap();
        assert!(!node.is_empty() && incarnation.parse::<u64>().is_ok(), "{value}");
        return BTreeMap::from([("node@incarnation".to_owned(), "text")]);
    };
    let type_of = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "flag",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    };
    fields.iter().map(|(name, value)| (name.clone(), type_of(value))).collect()
}

/// The examples of the page: key and value.
fn examples() -> Vec<(String, String)> {
    let page = tree::read("docs/etcd.md");
    let blocks = page.split("```etcd\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let line = |block: &str, what: &str| {
        let found = block.lines().find_map(|l| l.strip_prefix(what));
        found.unwrap_or_else(|| panic!("no {what} line in: {block}")).trim().to_owned()
    };
    blocks.map(|block| (line(block, "key"), line(block, "value"))).collect()
}

fn written(cluster: &BerthCluster) -> Vec<(String, String)> {
    let dump = cluster.etcd.ctl(&["get", "--prefix", ROOT]);
    let lines: Vec<&str> = dump.lines().filter(|l| !l.is_empty()).collect();
    lines.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
}

#[test]
fn the_page_shows_what_a_cluster_writes() {
    let mut cluster = BerthCluster::with(
        2,
        1,
        &[
            ("cluster.lease", "2s"),
            ("cluster.stale_after", "1s"),
            ("cluster.takeover_timeout", "2s"),
            ("auth.password.store", "etcd"),
            ("auth.allow_anonymous", "true"),
        ],
    );
    let http = cluster.http(0);
    ctl_with(http, &["users", "add", "alice", "--group", "ops"], "password").ok();
    ctl(http, &["acl", "add", "allow", "all", "#", "--yes"]).ok();
    ctl(http, &["bans", "add", "client", "sensor-7", "--for", "1h", "--reason", "floods the test topic"])
        .ok();
    let mut transient = cluster.connect(0, &Dial::v5("visitor"));
    transient.subscribe(&[("alarms/+", QoS::AtMostOnce)]);
    let mut kept = cluster.connect(0, &Dial::v5("keeper").persistent());
    kept.subscribe(&[("rooms/7/#", QoS::AtLeastOnce), ("$share/workers/jobs/#", QoS::AtLeastOnce)]);
    kept.publish_with("rooms/7/temperature", b"21.5", QoS::AtLeastOnce, true);
    // Taken over the head of a dead node: it could not take note yet.
    drop(cluster.connect(1, &Dial::v5("thermostat-7").persistent()));
    cluster.kill(1);
    cluster.wait_status(0, "n1 is missed", |s| {
        s["cluster"]["waiting"].as_array().is_some_and(|w| !w.is_empty())
    });
    cluster.connect(0, &Dial::v5("thermostat-7").persistent().clean());

    let examples = examples();
    let kinds: Vec<_> = examples.iter().filter_map(|(key, _)| kind(key)).collect();
    assert_eq!(
        kinds,
        [
            "members",
            "leader",
            "custody",
            "journals",
            "sessions",
            "routes",
            "retained",
            "evictions",
            "users",
            "acl",
            "bans"
        ]
    );
    for (key, value) in &examples {
        wait::until(&format!("a key as {key} with a value as {value}"), || {
            written(&cluster).into_iter().find(|(k, v)| {
                kind(k) == kind(key) && key_shape(k) == key_shape(key) && value_shape(v) == value_shape(value)
            })
        });
    }
    // And nothing of a kind that the page does not know.
    let unknown: Vec<_> =
        written(&cluster).into_iter().filter(|(k, _)| !kinds.contains(&kind(k).unwrap())).collect();
    assert_eq!(unknown, []);
}
