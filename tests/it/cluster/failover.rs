//! The leader dies, and another one does its work.

use super::nodes::BerthCluster;
use crate::client::Dial;
use crate::wait;
use serde_json::Value;

/// How long a retained message lasts, seconds: it expires after the leader has died.
const EXPIRY_S: u32 = 2;

#[test]
fn another_node_does_the_work_of_a_leader_that_died() {
    let mut cluster = BerthCluster::with(3, 1, &[("cluster.lease", "2s"), ("cluster.stale_after", "1s")]);
    let first = wait::until("one leads", || cluster.leader());
    let living: Vec<usize> = (0..3).filter(|i| *i != first).collect();
    for i in &living {
        // Those that do not know it wait for the dead node's clock for a while.
        cluster.wait_status(*i, "it knows the cluster's time", |s| {
            s["cluster"]["clock"]["cluster_time_known"] == true
        });
    }
    cluster.kill(first);
    let mut publisher = cluster.connect(living[0], &Dial::v5("pub"));
    publisher.send_expiring("kept", b"x", EXPIRY_S).unwrap();
    publisher.ping();
    let stored = || cluster.etcd.ctl(&["get", "/berth/berth/v1/retained/kept", "--print-value-only"]);
    wait::until_true("it is retained", || !stored().is_empty());
    let second = wait::until("another leads", || cluster.leader().filter(|l| *l != first));
    wait::until_true("what has expired goes", || stored().is_empty());
    let custody = || {
        let prefix = format!("/berth/berth/v1/custody/n{first}/");
        let value = cluster.etcd.ctl(&["get", "--prefix", &prefix, "--print-value-only"]);
        serde_json::from_str::<Value>(value.lines().next()?).ok()
    };
    let gone = || custody().filter(|c| c["gone"].is_u64());
    let record = wait::until("the dead node is known to be gone", gone);
    assert!(record["holder"].as_str().unwrap().starts_with(&format!("n{first}@")), "{record}");
    for i in living {
        let named = |s: &Value| {
            let leader = s["cluster"]["leader"].as_str().unwrap_or_default();
            leader.starts_with(&format!("n{second}@"))
        };
        cluster.wait_status(i, "it names the leader", named);
    }
}
