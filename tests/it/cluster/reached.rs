//! A node that the others cannot reach learns it from them.

use super::nodes::BerthCluster;
use crate::operate::ctl;

const QUICK: &[(&str, &str)] = &[
    ("cluster.lease", "4s"),
    ("cluster.stale_after", "2s"),
    ("cluster.suback_wait", "3s"),
    ("cluster.peer_timeout", "1s"),
];

#[test]
fn a_node_that_no_other_can_reach_says_so_itself_and_stays_ready() {
    let mut cluster = BerthCluster::with(3, 1, QUICK);
    assert_eq!(cluster.metric(1, "berth_peer_unreached_by"), 0.0);
    let address = cluster.status(1)["cluster"]["members"][1]["peer"].as_str().unwrap().to_owned();
    cluster.cut_links_to(1, true);
    let line = cluster.broker(1).wait_log(|l| l.contains("no other node can reach this one"));
    for words in ["WARN", &address, "n0: ", "n2: ", "cluster.advertise_peer"] {
        assert!(line.contains(words), "{words:?} is not in {line}");
    }
    assert_eq!(cluster.metric(1, "berth_peer_unreached_by"), 2.0);
    let status = cluster.status(1);
    assert_eq!(status["cluster"]["reached_by_none"], true);
    assert_eq!(status["cluster"]["unreached_by"][0]["address"], *address);
    assert!(cluster.ready(1), "the survivor of two must be");
    let text = ctl(cluster.http(1), &["cluster", "status"]).ok();
    assert!(text.contains("NO OTHER NODE REACHES THIS ONE"), "{text}");
    assert!(text.contains(&format!("node n0 cannot reach this one at {address}: ")), "{text}");
    assert_eq!(cluster.metric(0, "berth_peer_unreached_by"), 0.0, "n0 is reached");
    cluster.cut_links_to(1, false);
    cluster.broker(1).wait_log(|l| l.contains("the other nodes reach this one again"));
    assert_eq!(cluster.status(1)["cluster"]["reached_by_none"], false);
}
