//! The table of options. One entry gives the field, its default, its check and its documentation.

use super::kinds::{
    AclDefault, Address, AddressOrOff, Addresses, Count, Directory, Endpoints, FileOrNone, HostPortOrAuto,
    HostPortOrNone, Kind, LogFilter, LogFormat, NodeId, Prefix, SecondsOrOff, SecretOrNone, Size, Span,
    StorageType, Switch, SwitchOrAuto, Text,
};
use super::sources::Reader;

/// One section of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct SectionInfo {
    /// Its path, such as `listeners.tcp`.
    pub path: &'static str,
    /// What it is about, a line each.
    pub doc: &'static [&'static str],
    /// Its options.
    pub options: &'static [OptionInfo],
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct OptionInfo {
    /// Its name within the section.
    pub name: &'static str,
    /// The field of the section's struct.
    pub field: &'static str,
    /// The default, as one would write it.
    pub default: &'static str,
    /// What it does, a line each.
    pub doc: &'static [&'static str],
    /// What is accepted.
    pub expects: fn() -> String,
}

macro_rules! options {
    ($(
        $(#[doc = $section_doc:literal])+
        $section:ident = $path:literal {
            $($(#[doc = $doc:literal])+ $name:literal $field:ident: $kind:ty = $default:literal,)+
        }
    )+) => {
        $(
            $(#[doc = $section_doc])+
            #[derive(Clone, Debug, PartialEq, Eq)]
            pub struct $section {
                $($(#[doc = $doc])+ pub $field: <$kind as Kind>::Value,)+
            }

            impl $section {
                pub(super) fn take(reader: &mut Reader) -> Option<$section> {
                    $(let $field = reader.take::<$kind>(concat!($path, ".", $name), $default);)+
                    Some($section { $($field: $field?,)+ })
                }
            }
        )+

        /// Every option, in the order of the reference.
        pub static SECTIONS: &[SectionInfo] = &[$(
            SectionInfo {
                path: $path,
                doc: &[$($section_doc),+],
                options: &[$(
                    OptionInfo {
                        name: $name,
                        field: stringify!($field),
                        default: $default,
                        doc: &[$($doc),+],
                        expects: <$kind as Kind>::expects,
                    },
                )+],
            },
        )+];
    };
}

/// Every key, such as `limits.max_connections`.
pub fn keys() -> impl Iterator<Item = String> {
    SECTIONS.iter().flat_map(|s| s.options.iter().map(|o| format!("{}.{}", s.path, o.name)))
}

/// This node as part of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The cluster.
    pub node: ClusterNode,
    /// Certificates of the links between nodes.
    pub tls: ClusterTls,
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listeners {
    /// MQTT over TCP.
    pub tcp: Tcp,
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

options! {
    /// This node.
    Node = "node" {
        /// The node's name, in logs and in /cluster/status. auto = the host name.
        "id" id: NodeId = "auto",
    }

    /// MQTT over TCP.
    Tcp = "listeners.tcp" {
        /// Where to listen, one address or a list. Beyond loopback, auth.allow_anonymous must be set.
        "address" address: Addresses = "127.0.0.1:1883",
        /// Connections the kernel keeps waiting until the broker accepts them.
        "backlog" backlog: Count<u32, 1, 65_535> = "1024",
        /// Send small packets at once instead of gathering them (TCP_NODELAY).
        "nodelay" nodelay: Switch = "true",
        /// After how long without traffic the system asks whether the client's machine is still there (TCP keep-alive), so
        /// that a vanished client goes also if it has no MQTT keep alive. It is gone after four questions, 15s apart, without
        /// an answer.
        "keep_alive" keep_alive: SecondsOrOff<1, 32_767> = "5m",
    }

    /// Who may connect.
    Auth = "auth" {
        /// Whether clients may connect without credentials. auto = yes, but the broker then refuses to start on
        /// addresses beyond loopback. With false nobody can connect: there are no accounts yet.
        "allow_anonymous" allow_anonymous: SwitchOrAuto = "auto",
    }

    /// What clients may do: rules from a file (docs/permissions.md). The file is looked at twice a second; a faulty one changes
    /// nothing, and the log says what is wrong with it.
    Acl = "acl" {
        /// File with an ordered list of rules, of which the first that matches decides.
        "file" file: FileOrNone = "",
        /// An ACL file of mosquitto's in place of it; its lines mean what they mean to mosquitto.
        "mosquitto_file" mosquitto_file: FileOrNone = "",
        /// What holds where no rule says anything: allow, deny, or auto = everything is allowed while there are no rules, and nothing
        /// once there is one. However this is set, only rules and acl.admin_group give access to $SYS once there are rules.
        "default" default: AclDefault = "auto",
        /// The group whose members may read $SYS where no rule says otherwise.
        "admin_group" admin_group: Text = "admins",
    }

    /// Clients that may not connect (berth ctl bans). Kept in bans.json in storage.dir.
    Bans = "bans" {
        /// A client ID that connects more often than this within bans.flapping_window is banned for bans.flapping_ban. 0 = never.
        "flapping_connects" flapping_connects: Count<u32, 0, 1_000_000> = "0",
        /// See bans.flapping_connects.
        "flapping_window" flapping_window: Span<1_000, 86_400_000> = "1m",
        /// See bans.flapping_connects.
        "flapping_ban" flapping_ban: Span<1_000, 86_400_000> = "5m",
    }

    /// Admin HTTP: /health, /ready, /cluster/status and /metrics; /api/v1/ (berth ctl) for this machine only. It has no authentication.
    Http = "http" {
        /// Where to listen.
        "address" address: AddressOrOff = "127.0.0.1:8081",
    }

    /// Limits per connection and in total.
    Limits = "limits" {
        /// Connections at a time. More are refused: CONNACK 0x97 (MQTT 3: 0x03). The limit on open files
        /// (ulimit -n) must allow as many; the broker raises it as far as it may and warns if that is too low.
        "max_connections" max_connections: Count<usize, 1, 10_000_000> = "100000",
        /// How long a new connection may take to send CONNECT.
        "connect_timeout" connect_timeout: Span<100, 600_000> = "10s",
        /// How long one packet may take to arrive once it has begun. Then the connection is closed with 0x97. While it arrives,
        /// 1 KiB within a keep alive counts as a sign of life, as a whole packet does.
        "packet_timeout" packet_timeout: Span<100, 86_400_000> = "10m",
        /// How long a client may take no byte of what is written for it. Then the connection is closed.
        "write_timeout" write_timeout: Span<100, 86_400_000> = "60s",
        /// The largest packet a client may send. Announced to MQTT 5 clients; a larger one closes the
        /// connection with 0x95.
        "max_packet_size" max_packet_size: Size<u32, 128, 268_435_460> = "16MiB",
        /// Memory for packets above 64 KiB of which only a part has come, all clients together. When it is used up, further
        /// ones are read on when there is room again. One packet always fits.
        "max_arriving_bytes" max_arriving_bytes: Size<usize, MIB, TIB> = "256MiB",
        /// QoS 1 and 2 messages that a client may send before they are acknowledged. Announced to MQTT 5 clients;
        /// MQTT 3 clients are slowed down instead.
        "receive_maximum" receive_maximum: Count<u16, 1, 65_535> = "1000",
        /// Topic aliases that a client may use. 0 = none.
        "topic_alias_maximum" topic_alias_maximum: Count<u16, 0, 65_535> = "32",
        /// The longest keep alive. An MQTT 5 client that asks for more, or for none, is told this instead (server keep alive).
        /// MQTT 3 clients cannot be told: those that are silent for one and a half times as long are disconnected.
        "max_keep_alive" max_keep_alive: SecondsOrOff<1, 65_535> = "off",
        /// The highest QoS offered. Publishes above it close the connection with 0x9B, subscriptions are granted less.
        "max_qos" max_qos: Count<u8, 0, 2> = "2",
        /// Subscriptions of one session. More are refused with 0x97 (MQTT 3: 0x80).
        "max_subscriptions_per_session" max_subscriptions_per_session: Count<usize, 1, 100_000_000> = "100000",
    }

    /// Limits of sessions and their queues.
    Session = "session" {
        /// Sessions in total, disconnected ones included. At the limit, clients without a session are refused with
        /// 0x97 (MQTT 3: 0x03).
        "max_sessions" max_sessions: Count<usize, 1, 1_000_000_000> = "1000000",
        /// The longest a session outlives its connection. never = as long as the client asks.
        "max_expiry" max_expiry: SecondsOrOff<1, 4_294_967_294> = "never",
        /// Messages on the way to one client that it has not acknowledged: the window for MQTT 3, and the upper bound
        /// of the receive maximum of MQTT 5 clients.
        "max_inflight" max_inflight: Count<u16, 1, 65_535> = "1000",
        /// QoS 1 and 2 messages queued for one session. When full, expired ones make room; else new ones are dropped for
        /// it and counted.
        "max_queued_messages" max_queued_messages: Count<usize, 1, 1_000_000_000> = "100000",
        /// The same in bytes.
        "max_queued_bytes" max_queued_bytes: Size<usize, 1024, TIB> = "256MiB",
        /// Messages in memory for one connected client that reads too slowly. When full, QoS 0 is dropped and QoS 1
        /// and 2 stay on disk.
        "mailbox_messages" mailbox_messages: Count<usize, 1, 10_000_000> = "10000",
        /// The same in bytes.
        "mailbox_bytes" mailbox_bytes: Size<usize, 1024, TIB> = "64MiB",
    }

    /// Limits of retained messages.
    Retained = "retained" {
        /// Retained messages in total. At the limit, new topics are refused with 0x97 (MQTT 3: the connection is closed). At
        /// QoS 0 nobody can be told: the message is delivered and not retained, and what was retained on its topic is cleared.
        "max_messages" max_messages: Count<usize, 0, 1_000_000_000> = "1000000",
        /// The same in bytes.
        "max_bytes" max_bytes: Size<usize, 0, TIB> = "1GiB",
        /// The largest payload that is retained; more is refused in the same way, a will at CONNECT. In a cluster at most 1MiB.
        "max_payload" max_payload: Size<usize, 1, 268_435_455> = "1MiB",
    }

    /// The journal: sessions, their queues and retained messages.
    Storage = "storage" {
        /// redb = in a file that survives crashes; memory = lost when the process ends.
        "type" kind: StorageType = "redb",
        /// Directory of the file. Made if missing; used by one process at a time.
        "dir" dir: Directory = "./data",
        /// Memory for pages of the file.
        "cache" cache: Size<usize, MIB, TIB> = "64MiB",
        /// Changes that may wait for the disk. Beyond that publishers are slowed down.
        "max_pending" max_pending: Size<usize, MIB, GIB> = "64MiB",
        /// A commit that takes longer than this shows that the disk hangs: the node is not ready, and refuses publishes and sessions
        /// that need the journal at once until the disk answers again.
        "stall_timeout" stall_timeout: Span<100, 3_600_000> = "5s",
        /// The most that a journal of type memory holds. When full it refuses messages, as a full disk does.
        "memory_max" memory_max: Size<usize, MIB, TIB> = "1GiB",
    }

    /// Acceptance of messages.
    Publish = "publish" {
        /// How long the acknowledgement of a message may wait for the journal and, in a cluster, for other nodes. After that
        /// the message is refused: 0x80 or above for MQTT 5, a closed connection for MQTT 3. In a cluster it should exceed
        /// cluster.lease and the time that a node takes to come back.
        "timeout" timeout: Span<100, 3_600_000> = "30s",
    }

    /// This node as part of a cluster. Every node needs its own node.id, and all the same cluster.name and etcd.
    ClusterNode = "cluster" {
        /// Whether this node is part of a cluster. It then needs etcd.
        "enabled" enabled: Switch = "false",
        /// The name of the cluster. Several clusters may share one etcd.
        "name" name: NodeId = "berth",
        /// Where to listen for the other nodes.
        "peer_address" peer_address: Address = "127.0.0.1:7948",
        /// Where the other nodes reach this one, host:port. auto = peer_address, with the host name if that listens everywhere.
        "advertise_peer" advertise_peer: HostPortOrAuto = "auto",
        /// Where clients reach this node, host:port: told to MQTT 5 clients that should come here (server reference).
        /// auto = the first address of listeners.tcp, with the host name if that listens everywhere.
        /// none = clients are told nothing, where they cannot reach nodes one by one.
        "advertise_mqtt" advertise_mqtt: HostPortOrNone = "auto",
        /// Where the node stands, such as a rack or a data centre's zone. Shown by berth ctl cluster status.
        "zone" zone: Text = "",
        /// How long etcd keeps this node listed after it last heard from it.
        "lease" lease: Span<2_000, 600_000> = "10s",
        /// How old what this node knows of the others may be before it holds acknowledgements back and, if it may not rely on
        /// its lease either, closes its clients.
        "stale_after" stale_after: Span<500, 600_000> = "5s",
        /// How long a CONNECT may wait for a session that another node has. After that it is refused with 0x88.
        "takeover_timeout" takeover_timeout: Span<100, 600_000> = "10s",
        /// How long a SUBACK may wait until every node routes to the subscription. Above stale_after.
        "suback_wait" suback_wait: Span<500, 600_000> = "8s",
        /// How long the new owner of a session keeps messages back for older ones that are still on their way by its old one.
        "order_wait" order_wait: Span<100, 600_000> = "5s",
        /// QoS 1 and 2 publishes of this node that may wait for other nodes. At the limit publishers are slowed down.
        "max_held_messages" max_held_messages: Count<usize, 1, 100_000_000> = "100000",
        /// The same in bytes.
        "max_held_bytes" max_held_bytes: Size<usize, 1024, TIB> = "256MiB",
        /// Sessions that left this node and are remembered until every node has heard of it.
        "max_departed" max_departed: Count<usize, 1, 100_000_000> = "100000",
        /// A link to another node on which nothing is heard for so long is opened anew.
        "peer_timeout" peer_timeout: Span<500, 600_000> = "5s",
        /// By how much a node's clock may differ from the median of the cluster's before the nodes warn about it. Nothing else
        /// depends on it: expiries are right whatever the clocks show.
        "max_clock_difference" max_clock_difference: Span<100, 86_400_000> = "2s",
        /// How long a node may be gone before its sessions and their messages are given up. never = until an operator says so
        /// (berth ctl cluster forget NODE).
        "forget_after" forget_after: SecondsOrOff<60, 4_294_967_294> = "never",
    }

    /// Certificates of the links between nodes. With all three set, nodes accept each other only with a certificate of
    /// the authority; it must be valid for the host of advertise_peer, a DNS name or an IP address.
    ClusterTls = "cluster.tls" {
        /// PEM file of the authority that signed the nodes' certificates.
        "ca_file" ca_file: FileOrNone = "",
        /// PEM file of this node's certificate.
        "cert_file" cert_file: FileOrNone = "",
        /// PEM file of its private key.
        "key_file" key_file: FileOrNone = "",
    }

    /// The etcd that the nodes of a cluster share: version 3.4 or later, 3.5.13 or later recommended.
    Etcd = "etcd" {
        /// Its members, one or a list, such as http://10.0.0.1:2379; https:// with TLS.
        "endpoints" endpoints: Endpoints = "http://127.0.0.1:2379",
        /// What all keys begin with.
        "prefix" prefix: Prefix = "/berth",
        /// User name, if etcd asks for one.
        "username" username: Text = "",
        /// Password; better in password_file.
        "password" password: SecretOrNone = "",
        /// File that holds the password; read again for every new connection.
        "password_file" password_file: FileOrNone = "",
        /// PEM file of the authority that signed etcd's certificate. Without it the system's authorities count.
        "ca_file" ca_file: FileOrNone = "",
        /// PEM file of the client certificate, if etcd asks for one.
        "cert_file" cert_file: FileOrNone = "",
        /// PEM file of its private key.
        "key_file" key_file: FileOrNone = "",
        /// How long one request may take.
        "timeout" timeout: Span<100, 600_000> = "3s",
    }

    /// The $SYS topics.
    Sys = "sys" {
        /// How often they are published.
        "interval" interval: SecondsOrOff<1, 86_400> = "10s",
    }

    /// Logging, to standard error.
    Log = "log" {
        /// What to log.
        "level" level: LogFilter = "info",
        /// How lines look.
        "format" format: LogFormat = "text",
    }

    /// Stopping (SIGTERM or SIGINT; a second signal stops at once).
    Shutdown = "shutdown" {
        /// How long it may take to tell clients, flush the journal and close.
        "timeout" timeout: Span<0, 3_600_000> = "10s",
    }

    /// Threads.
    Runtime = "runtime" {
        /// Threads that serve connections. 0 = one per core.
        "worker_threads" worker_threads: Count<usize, 0, 1024> = "0",
    }
}
