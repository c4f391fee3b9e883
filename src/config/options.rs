//! The table of options. One entry gives the field, its default, its check and its documentation.

use super::amounts::{MemoryLimit, Percent};
use super::kinds::{
    AclDefault, Address, AddressOrOff, AddressesOrAuto, AuthChain, CertificateName, ClientCertificates,
    ClientIdTheft, Count, Directory, Endpoints, FileOrNone, HostPortOrAuto, HostPortOrNone, Kind, LogFilter,
    LogFormat, NodeId, Prefix, ProxyProtocol, QueuePolicy, SecondsOrOff, Size, Span, StorageType, Switch,
    SwitchOrAuto, Text, TokenPlace, UserStore,
};
use super::listener_kinds::{
    CountOrOff, Files, ListenerTypeOrAuto, Networks, OriginList, SizeOrOff, UrlPath, VersionList,
};
use super::mask::{SecretOrNone, UrlOrNone};
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
                #[allow(dead_code)] // of a listener: they are taken by their names
                pub(super) fn take(reader: &mut Reader) -> Option<$section> {
                    $section::take_from(reader, $path)
                }

                /// The section at `path`, which has the options of this one.
                pub(super) fn take_from(reader: &mut Reader, path: &str) -> Option<$section> {
                    $(let $field = reader.take::<$kind>(&format!("{path}.{}", $name), $default);)+
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

/// Ways to find out who a client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accounts {
    /// A file of users and passwords.
    pub password: AuthPassword,
    /// Tokens.
    pub jwt: AuthJwt,
    /// Client certificates.
    pub certificate: AuthCertificate,
    /// A server that is asked.
    pub http: AuthHttp,
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

    /// Where clients connect. There may be any number of listeners by any names, listeners.NAME, all with the options that
    /// are listed here for listeners.tcp, which is there without being named. A name has up to 32 of the characters a-z 0-9 _ -.
    /// Limits that are off are those of the section limits.
    Listener = "listeners.tcp" {
        /// What is spoken below MQTT: tcp, tls, ws (WebSocket) or wss (WebSocket over TLS). auto = the listener's name, if that
        /// is one of them.
        "type" kind: ListenerTypeOrAuto = "auto",
        /// Whether the listener is opened.
        "enabled" enabled: Switch = "true",
        /// Where to listen, one address or a list. Beyond loopback, auth.allow_anonymous must be set. auto = on this machine only,
        /// at port 1883 (tcp), 8883 (tls), 8083 (ws) or 8084 (wss).
        "address" address: AddressesOrAuto = "auto",
        /// Connections the kernel keeps waiting until the broker accepts them.
        "backlog" backlog: Count<u32, 1, 65_535> = "1024",
        /// Send small packets at once instead of gathering them (TCP_NODELAY).
        "nodelay" nodelay: Switch = "true",
        /// After how long without traffic the system asks whether the client's machine is still there (TCP keep-alive), so
        /// that a vanished client goes also if it has no MQTT keep alive. It is gone after four questions, 15s apart, without
        /// an answer.
        "keep_alive" keep_alive: SecondsOrOff<1, 32_767> = "5m",
        /// With tls and wss: PEM file of the certificate and those between it and the authority, in this order. A list is for
        /// several names: clients get the first one that has the server name they ask for, else the first one. This and the
        /// files below are read again on SIGHUP and when they change.
        "cert_file" cert_file: Files = "",
        /// PEM file of the certificate's private key; a list in the order of cert_file. It must not be readable by everybody.
        "key_file" key_file: Files = "",
        /// With tls and wss: off = clients are asked for no certificate, optional = those that show one must show a good one,
        /// required = nobody connects without one.
        "client_certificates" client_certificates: ClientCertificates = "off",
        /// PEM file of the authorities that sign clients' certificates, or a list.
        "client_ca_file" client_ca_file: Files = "",
        /// PEM file of these authorities' revocation lists, or a list. With any, each authority that signs clients' certificates
        /// needs one, for whose revocation cannot be looked up is refused. Who is revoked later is disconnected (0x87).
        "crl_file" crl_file: Files = "",
        /// With ws and wss: the path of the upgrade request.
        "path" path: UrlPath = "/mqtt",
        /// With ws and wss: web pages that may connect. same = those of the same host, named by its IP address, as localhost, or over
        /// TLS; * = all. Clients that are no browsers name no page, and are let in.
        "allowed_origins" allowed_origins: OriginList = "same",
        /// required = every connection begins with a header of the PROXY protocol, version 1 or 2, which tells the client's address.
        "proxy_protocol" proxy_protocol: ProxyProtocol = "off",
        /// Addresses and networks of the proxies. Connections from elsewhere are refused.
        "proxy_from" proxy_from: Networks = "",
        /// Connections at a time. More are refused as by limits.max_connections, which holds besides.
        "max_connections" max_connections: CountOrOff<10_000_000> = "off",
        /// New connections per second. More wait in the kernel until it is their turn.
        "max_connection_rate" max_connection_rate: CountOrOff<1_000_000> = "off",
        /// PUBLISH packets per second and client. A client that sends more is read more slowly.
        "max_message_rate" max_message_rate: CountOrOff<10_000_000> = "off",
        /// Bytes per second and client, in the same way.
        "max_byte_rate" max_byte_rate: SizeOrOff<u64, 1024, TIB> = "off",
        /// As limits.max_packet_size.
        "max_packet_size" max_packet_size: SizeOrOff<u32, 128, 268_435_460> = "off",
        /// The shortest keep alive. An MQTT 5 client that asks for less is told this instead; MQTT 3 clients are given as much time.
        "min_keep_alive" min_keep_alive: SecondsOrOff<1, 65_535> = "off",
        /// As limits.max_keep_alive.
        "max_keep_alive" max_keep_alive: SecondsOrOff<1, 65_535> = "off",
        /// Protocol versions that are spoken. Others are refused: CONNACK 0x84 (MQTT 3: 0x01).
        "versions" versions: VersionList = "all",
        /// How it is found out who a client of this listener is: those of the methods of auth.chain that are asked here, in this
        /// order. auto = auth.chain.
        "auth_chain" auth_chain: AuthChain = "auto",
        /// Whether clients of this listener may connect without an account. auto = as auth.allow_anonymous says.
        "allow_anonymous" allow_anonymous: SwitchOrAuto = "auto",
    }

    /// Who may connect.
    Auth = "auth" {
        /// Whether clients may connect without an account. auto = no if there is a way to have one (auth.password.file and others);
        /// else yes, but the broker then refuses to start on addresses beyond loopback. A client that shows a user name is never let in
        /// anonymously where there are accounts.
        "allow_anonymous" allow_anonymous: SwitchOrAuto = "auto",
        /// How it is found out who a client is: methods in the order in which they are asked. The first that says yes or no decides.
        /// auto = all that are configured.
        "chain" chain: AuthChain = "auto",
        /// What becomes of a client that comes with the client identifier of another user's session. refuse = it is refused with 0x87
        /// (MQTT 3: 0x05); allow = it gets the session.
        "client_id_theft" client_id_theft: ClientIdTheft = "refuse",
    }

    /// Users and their passwords: in a file, which berth passwd writes (files of mosquitto_passwd are accepted), or in a cluster's etcd.
    /// berth ctl users changes both.
    AuthPassword = "auth.password" {
        /// The file: a line for each user, user:hash. Others than its owner and group must not be able to read it. When it changes, it
        /// counts within a second, and clients whose user was removed or changed are disconnected.
        "file" file: FileOrNone = "",
        /// Where the users are. file = in auth.password.file; etcd = in the etcd of the cluster, for all its nodes: then there are accounts,
        /// even while there is no user, and nobody is let in without one unless auth.allow_anonymous says so.
        "store" store: UserStore = "file",
        /// Passwords that are checked at a time, on threads of their own. Each check takes 19 MiB of memory and tens of
        /// milliseconds. 0 = one per core.
        "parallel" parallel: Count<usize, 0, 1024> = "0",
        /// Passwords that may wait to be checked. More clients are refused with 0x89 (MQTT 3: 0x03).
        "queue" queue: Count<usize, 1, 1_000_000> = "10000",
        /// The same of one address (of IPv6: one /64 network). Addresses have their turns one after another. Clients behind one
        /// address that all come at once need more.
        "queue_per_address" queue_per_address: Count<usize, 1, 1_000_000> = "100",
    }

    /// Tokens (JSON Web Tokens) in place of passwords. The kind of a key fixes the algorithm: a shared secret HS256, RSA RS256, P-256
    /// ES256, Ed25519 EdDSA. A token must expire (exp); then the connection ends with 0xA0. Files are read again when they change.
    AuthJwt = "auth.jwt" {
        /// Public keys as a PEM file, or a shared secret of at least 32 bytes, which others must not be able to read.
        "key_file" key_file: FileOrNone = "",
        /// A JSON Web Key Set. Tokens name a key of it by kid.
        "jwks_file" jwks_file: FileOrNone = "",
        /// Where clients put the token: password or username.
        "from" from: TokenPlace = "password",
        /// The claim with the user's name.
        "user_claim" user_claim: Text = "sub",
        /// Whom tokens must be for (aud). Empty = anybody.
        "audience" audience: Text = "",
        /// Who must have issued them (iss). Empty = anybody with the key.
        "issuer" issuer: Text = "",
        /// By how much the clocks of issuer and broker may differ.
        "skew" skew: Span<0, 600_000> = "30s",
    }

    /// Certificates that clients show at the TLS handshake.
    AuthCertificate = "auth.certificate" {
        /// Which name in a client's certificate is its user's: common_name, dns (the first DNS name), uri (the first URI), subject (the
        /// whole, such as CN=sensor-7,O=Example). off = certificates are no accounts.
        "name" name: CertificateName = "off",
    }

    /// A server of yours that says who clients are (docs/accounts.md). It is asked with a POST; whatever goes wrong, nobody is let in by it.
    AuthHttp = "auth.http" {
        /// Where it is. Over http:// passwords are readable on the way.
        "url" url: UrlOrNone = "",
        /// How long it may take to answer. After that the client is refused with 0x88 (MQTT 3: 0x03).
        "timeout" timeout: Span<10, 60_000> = "2s",
        /// Questions at a time; further clients wait, within the same time.
        "parallel" parallel: Count<usize, 1, 1024> = "64",
        /// Answers that are remembered. 0 = none.
        "cache" cache: Count<usize, 0, 10_000_000> = "10000",
        /// For how long.
        "cache_ttl" cache_ttl: Span<0, 86_400_000> = "30s",
        /// File with a bearer token that is sent along. Others must not be able to read it. Read again when it changes.
        "token_file" token_file: FileOrNone = "",
        /// PEM file of the authority that signed the server's certificate. Without it the system's authorities count.
        "ca_file" ca_file: FileOrNone = "",
    }

    /// What clients may do (docs/permissions.md): rules from a file, which is looked at four times a second (a faulty one changes nothing, and
    /// the log says what is wrong with it); in a cluster without a file, rules in etcd, for all its nodes (berth ctl acl).
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

    /// Clients that may not connect (berth ctl bans). Kept in bans.json in storage.dir; in a cluster in etcd, for all its nodes.
    Bans = "bans" {
        /// A client ID that connects more often than this within bans.flapping_window is banned for bans.flapping_ban. 0 = never.
        "flapping_connects" flapping_connects: Count<u32, 0, 1_000_000> = "0",
        /// See bans.flapping_connects.
        "flapping_window" flapping_window: Span<1_000, 86_400_000> = "1m",
        /// See bans.flapping_connects.
        "flapping_ban" flapping_ban: Span<1_000, 86_400_000> = "5m",
    }

    /// Admin HTTP: /health, /ready, /cluster/status, /metrics and /api/v1/ (berth ctl). Without tokens /api/v1/ answers programs on this
    /// machine only.
    Http = "http" {
        /// Where to listen.
        "address" address: AddressOrOff = "127.0.0.1:8081",
        /// File with the tokens of those who may change something: a line for each, TOKEN or NAME TOKEN, at least 16 characters. With
        /// one, /cluster/status and /api/v1/ ask everybody for a token, and answer other machines too. Read again when it changes.
        "admin_token_file" admin_token_file: FileOrNone = "",
        /// The same for those who may ask and change nothing.
        "read_token_file" read_token_file: FileOrNone = "",
        /// Whether /metrics asks for no token, where there are tokens.
        "open_metrics" open_metrics: Switch = "true",
        /// Whether tokens may travel without TLS to an address beyond loopback, where everybody on the way can read and use them. Only for
        /// where a proxy of yours has TLS in front of it.
        "plain_tokens" plain_tokens: Switch = "false",
        /// PEM file of the certificate and those between it and the authority, in this order, or a list, as of listeners.tcp. With one,
        /// admin HTTP speaks TLS only (https://). This and the files below are read again on SIGHUP and when they change.
        "cert_file" cert_file: Files = "",
        /// PEM file of the certificate's private key; a list in the order of cert_file. It must not be readable by everybody.
        "key_file" key_file: Files = "",
        /// off = programs are asked for no certificate, optional = those that show one must show a good one, required = none is answered
        /// without one, probes and Prometheus included. A certificate stands beside tokens, not in place of one.
        "client_certificates" client_certificates: ClientCertificates = "off",
        /// PEM file of the authorities that sign these certificates, or a list.
        "client_ca_file" client_ca_file: Files = "",
        /// PEM file of these authorities' revocation lists, or a list.
        "crl_file" crl_file: Files = "",
    }

    /// The audit log: who changed what through admin HTTP. Each change is a line in the log too.
    Audit = "audit" {
        /// File to which each change is appended as a line of JSON. It may be moved away at any time; it is then begun anew.
        "file" file: FileOrNone = "",
    }

    /// Limits per connection and in total.
    Limits = "limits" {
        /// Connections at a time. More are refused: CONNACK 0x97 (MQTT 3: 0x03). The limit on open files
        /// (ulimit -n) must allow as many; the broker raises it as far as it may and warns if that is too low.
        "max_connections" max_connections: Count<usize, 1, 10_000_000> = "100000",
        /// Connections at a time of one user on one node, whatever client IDs they have. More are refused: CONNACK 0x97 (MQTT 3: 0x03).
        /// Clients without an account are not counted.
        "max_connections_per_user" max_connections_per_user: CountOrOff<10_000_000> = "off",
        /// How long a new connection may take to send CONNECT, TLS handshake, upgrade to WebSocket and header of a proxy included.
        "connect_timeout" connect_timeout: Span<100, 600_000> = "10s",
        /// Connections that have not sent CONNECT yet. At the limit, the oldest one of the address (IPv6: /64) that has most of them
        /// gives way to a new one.
        "max_arriving_connections" max_arriving_connections: Count<usize, 16, 1_000_000> = "1024",
        /// How long one packet may take to arrive once it has begun. Then the connection is closed with 0x97. While it arrives,
        /// 1 KiB within a keep alive counts as a sign of life, as a whole packet does.
        "packet_timeout" packet_timeout: Span<100, 86_400_000> = "10m",
        /// How long a client may take no byte of what is written for it. Then the connection is closed.
        "write_timeout" write_timeout: Span<100, 86_400_000> = "60s",
        /// The largest packet a client may send. Announced to MQTT 5 clients; a larger one closes the
        /// connection with 0x95.
        "max_packet_size" max_packet_size: Size<u32, 128, 268_435_460> = "16MiB",
        /// Memory for packets above 64 KiB of which only a part has come, all clients together, of which one address (IPv6: /64)
        /// has at most half. When it is used up, further ones are read on when there is room again. One packet always fits.
        "max_arriving_bytes" max_arriving_bytes: Size<usize, MIB, TIB> = "256MiB",
        /// Memory that the broker may use. auto = as much as its control group (container) or else the machine has; off = no limit.
        "memory" memory: MemoryLimit = "auto",
        /// The part of limits.memory (resident memory of the process) beyond which clients are not read any more once they publish; their
        /// messages wait in the network. Whoever only receives is heard as ever, and makes room.
        "memory_pause_at" memory_pause_at: Percent = "75%",
        /// The part beyond which new connections are refused as well: CONNACK 0x97 (MQTT 3: 0x03). The node is not ready then.
        "memory_refuse_at" memory_refuse_at: Percent = "90%",
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
        /// What is dropped when one of the limits below is reached: drop_new = the messages that come, drop_oldest = those that have
        /// waited longest, but for those on their way to the client. An MQTT 5 client may choose for its session, with the user property
        /// berth-queue-policy of CONNECT.
        "queue_policy" queue_policy: QueuePolicy = "drop_new",
        /// QoS 1 and 2 messages queued for one session. When full, expired ones make room; else messages are dropped for it
        /// by session.queue_policy, and counted.
        "max_queued_messages" max_queued_messages: Count<usize, 1, 1_000_000_000> = "100000",
        /// The same in bytes.
        "max_queued_bytes" max_queued_bytes: Size<usize, 1024, TIB> = "256MiB",
        /// Messages in memory for one connected client that reads too slowly. When full, QoS 0 is dropped (by session.queue_policy)
        /// and QoS 1 and 2 stay on disk.
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
        /// auto = the first address of listeners.tcp (if there is none: of a listener of type tcp, then tls), with the host
        /// name if that listens everywhere.
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
