//! Large messages between nodes.

use super::nodes::BerthCluster;
use crate::heard::pass_firmware;

/// Ten pieces of firmware of 4 MiB, one after the other, go from node to node untouched with the defaults.
#[test]
fn firmware_passes_from_node_to_node() {
    let cluster = BerthCluster::start(3);
    pass_firmware(cluster.mqtt(0), cluster.mqtt(2));
}
