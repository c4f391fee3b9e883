//! Berth as a cluster, on a real etcd.

mod access;
mod claims;
mod docs_etcd;
mod duties;
mod etcd;
mod failures;
mod formation;
mod knowledge;
mod members;
mod netns;
mod node;
mod nodes;
mod operate;
mod outage;
mod partitions;
mod peers;
mod peers_faults;
mod peers_tls;
mod proto;
mod proxy;
mod retained_store;
mod routes_store;
mod speed;
mod store;
mod takeover;
mod watch;
