//! The kinds of values an option can have: how each is written, read and described.

use super::mask::shown_urls;
use super::units::{parse_count, parse_duration, parse_size, show_duration, show_size};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tracing_subscriber::filter::Targets;

/// How the text of an option becomes a value.
pub trait Kind {
    /// What the code gets.
    type Value;

    /// What is accepted, for people: completes "expected …".
    fn expects() -> String;

    /// The value.
    ///
    /// # Errors
    ///
    /// `None` if the text is not what [`Kind::expects`] says.
    fn parse(text: &str) -> Option<Self::Value>;

    /// The text as it may be shown: without secrets.
    fn shown(text: &str) -> String {
        text.to_owned()
    }
}

/// A whole number from `MIN` to `MAX`.
pub struct Count<T, const MIN: u64, const MAX: u64>(PhantomData<T>);

impl<T: TryFrom<u64>, const MIN: u64, const MAX: u64> Kind for Count<T, MIN, MAX> {
    type Value = T;

    fn expects() -> String {
        format!("a number from {MIN} to {MAX}")
    }

    fn parse(text: &str) -> Option<T> {
        let count = parse_count(text)?;
        (MIN..=MAX).contains(&count).then(|| T::try_from(count).ok())?
    }
}

/// A size in bytes from `MIN` to `MAX`.
pub struct Size<T, const MIN: u64, const MAX: u64>(PhantomData<T>);

impl<T: TryFrom<u64>, const MIN: u64, const MAX: u64> Kind for Size<T, MIN, MAX> {
    type Value = T;

    fn expects() -> String {
        format!("a size from {} to {}, such as 64KiB, 10MB or plain bytes", show_size(MIN), show_size(MAX))
    }

    fn parse(text: &str) -> Option<T> {
        let size = parse_size(text)?;
        (MIN..=MAX).contains(&size).then(|| T::try_from(size).ok())?
    }
}

/// A duration from `MIN` to `MAX` milliseconds.
pub struct Span<const MIN: u64, const MAX: u64>;

impl<const MIN: u64, const MAX: u64> Kind for Span<MIN, MAX> {
    type Value = Duration;

    fn expects() -> String {
        let (min, max) = (show_duration(MIN), show_duration(MAX));
        format!("a duration from {min} to {max}, such as 500ms, 30s, 1h30m or plain seconds")
    }

    fn parse(text: &str) -> Option<Duration> {
        let span = parse_duration(text)?;
        (Duration::from_millis(MIN)..=Duration::from_millis(MAX)).contains(&span).then_some(span)
    }
}

/// A duration of whole seconds from `MIN` to `MAX` seconds, or `off` (also `never`, `0`): `None`.
pub struct SecondsOrOff<const MIN: u64, const MAX: u64>;

impl<const MIN: u64, const MAX: u64> Kind for SecondsOrOff<MIN, MAX> {
    type Value = Option<Duration>;

    fn expects() -> String {
        let (min, max) = (show_duration(MIN * 1000), show_duration(MAX * 1000));
        format!("off, or a duration of whole seconds from {min} to {max}, such as 30s, 2h or plain seconds")
    }

    fn parse(text: &str) -> Option<Option<Duration>> {
        if matches!(text, "off" | "never" | "0" | "false") {
            return Some(None);
        }
        let span = parse_duration(text)?;
        let whole = span.subsec_nanos() == 0;
        (whole && (MIN..=MAX).contains(&span.as_secs())).then_some(Some(span))
    }
}

/// `true` or `false`.
pub struct Switch;

impl Kind for Switch {
    type Value = bool;

    fn expects() -> String {
        "true or false".to_owned()
    }

    fn parse(text: &str) -> Option<bool> {
        text.parse().ok()
    }
}

/// `true`, `false`, or `auto`: `None`.
pub struct SwitchOrAuto;

impl Kind for SwitchOrAuto {
    type Value = Option<bool>;

    fn expects() -> String {
        "true, false or auto".to_owned()
    }

    fn parse(text: &str) -> Option<Option<bool>> {
        if text == "auto" { Some(None) } else { text.parse().ok().map(Some) }
    }
}

fn parse_address(text: &str) -> Option<SocketAddr> {
    let text = text.trim();
    match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}").parse().ok(),
        None => text.parse().ok(),
    }
}

/// One or more addresses to listen on, or `auto`: none here.
pub struct AddressesOrAuto;

impl Kind for AddressesOrAuto {
    type Value = Vec<SocketAddr>;

    fn expects() -> String {
        "auto, or an IP address and a port, such as 0.0.0.0:1883 or [::]:1883, or a list of them".to_owned()
    }

    fn parse(text: &str) -> Option<Vec<SocketAddr>> {
        if text == "auto" { Some(Vec::new()) } else { text.split(',').map(parse_address).collect() }
    }
}

/// An address to listen on.
pub struct Address;

impl Kind for Address {
    type Value = SocketAddr;

    fn expects() -> String {
        "an IP address and a port, such as 0.0.0.0:7948".to_owned()
    }

    fn parse(text: &str) -> Option<SocketAddr> {
        parse_address(text)
    }
}

/// A host and a port, or `auto`: `None`.
pub struct HostPortOrAuto;

impl Kind for HostPortOrAuto {
    type Value = Option<String>;

    fn expects() -> String {
        "auto, or a host name or IP address and a port, such as berth-0.berth:7948".to_owned()
    }

    fn parse(text: &str) -> Option<Option<String>> {
        if text == "auto" {
            return Some(None);
        }
        let (host, port) = text.rsplit_once(':')?;
        let valid =
            !host.is_empty() && !host.contains(['/', ' ', '@']) && port.parse::<u16>().is_ok_and(|p| p > 0);
        valid.then(|| Some(text.to_owned()))
    }
}

/// Where clients are told that they reach a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advertised {
    /// At the address where it listens.
    Auto,
    /// They are not told.
    Nothing,
    /// Here: a host and a port.
    At(String),
}

/// A host and a port, `auto` or `none`.
pub struct HostPortOrNone;

impl Kind for HostPortOrNone {
    type Value = Advertised;

    fn expects() -> String {
        "auto, none, or a host name or IP address and a port, such as berth-0.berth:1883".to_owned()
    }

    fn parse(text: &str) -> Option<Advertised> {
        if text == "none" {
            return Some(Advertised::Nothing);
        }
        Some(HostPortOrAuto::parse(text)?.map_or(Advertised::Auto, Advertised::At))
    }
}

/// URLs of etcd members.
pub struct Endpoints;

impl Kind for Endpoints {
    type Value = Vec<String>;

    fn expects() -> String {
        "a URL of scheme http or https, such as http://10.0.0.1:2379, or a list of them".to_owned()
    }

    fn shown(text: &str) -> String {
        shown_urls(text)
    }

    fn parse(text: &str) -> Option<Vec<String>> {
        text.split(',')
            .map(|url| {
                let url = url.trim();
                let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"))?;
                HostPortOrAuto::parse(rest)?.map(|_| url.to_owned())
            })
            .collect()
    }
}

/// What keys begin with: `/` and at least one more character, no `/` at the end.
pub struct Prefix;

impl Kind for Prefix {
    type Value = String;

    fn expects() -> String {
        "a path such as /berth, without a / at its end".to_owned()
    }

    fn parse(text: &str) -> Option<String> {
        let valid = text.len() > 1 && text.starts_with('/') && !text.ends_with('/') && !text.contains("//");
        valid.then(|| text.to_owned())
    }
}

/// Any text.
pub struct Text;

impl Kind for Text {
    type Value = String;

    fn expects() -> String {
        "text".to_owned()
    }

    fn parse(text: &str) -> Option<String> {
        Some(text.to_owned())
    }
}

/// A file; empty: `None`.
pub struct FileOrNone;

impl Kind for FileOrNone {
    type Value = Option<PathBuf>;

    fn expects() -> String {
        "a path".to_owned()
    }

    fn parse(text: &str) -> Option<Option<PathBuf>> {
        Some((!text.is_empty()).then(|| PathBuf::from(text)))
    }
}

/// An address to listen on, or `off`: `None`.
pub struct AddressOrOff;

impl Kind for AddressOrOff {
    type Value = Option<SocketAddr>;

    fn expects() -> String {
        "off, or an IP address and a port, such as 127.0.0.1:8081".to_owned()
    }

    fn parse(text: &str) -> Option<Option<SocketAddr>> {
        if matches!(text, "" | "off" | "false") { Some(None) } else { parse_address(text).map(Some) }
    }
}

macro_rules! choice {
    ($(#[$doc:meta])+ $name:ident { $($(#[$variant_doc:meta])+ $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])+ $variant,)+ }

        impl Kind for $name {
            type Value = $name;

            fn expects() -> String {
                [$($text),+].join(" or ")
            }

            fn parse(text: &str) -> Option<$name> {
                match text {
                    $($text => Some($name::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

/// A way to find out who a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// A file of users and passwords.
    Password,
    /// Tokens.
    Jwt,
    /// Certificates that clients show.
    Certificate,
    /// A server that is asked.
    Http,
}

impl AuthMethod {
    /// All of them, in the order in which they are asked unless somebody says another.
    pub const ALL: &'static [AuthMethod] =
        &[AuthMethod::Certificate, AuthMethod::Password, AuthMethod::Jwt, AuthMethod::Http];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            AuthMethod::Password => "password",
            AuthMethod::Jwt => "jwt",
            AuthMethod::Certificate => "certificate",
            AuthMethod::Http => "http",
        }
    }
}

/// Methods in the order in which they are asked, or `auto`: `None`.
pub struct AuthChain;

impl Kind for AuthChain {
    type Value = Option<Vec<AuthMethod>>;

    fn expects() -> String {
        let names: Vec<_> = AuthMethod::ALL.iter().map(|m| m.name()).collect();
        format!("auto, or a list of different ones of: {}", names.join(", "))
    }

    fn parse(text: &str) -> Option<Option<Vec<AuthMethod>>> {
        if text == "auto" {
            return Some(None);
        }
        let mut chain = Vec::new();
        for name in text.split(',') {
            let method = *AuthMethod::ALL.iter().find(|m| m.name() == name.trim())?;
            (!chain.contains(&method)).then(|| chain.push(method))?;
        }
        Some(Some(chain))
    }
}

choice! {
    /// Where users with passwords are.
    UserStore {
        /// In a file of this node.
        File = "file",
        /// In etcd, for all nodes.
        Etcd = "etcd",
    }
}

choice! {
    /// Where in a CONNECT a token is.
    TokenPlace {
        /// In the password.
        Password = "password",
        /// In the user name.
        Username = "username",
    }
}

choice! {
    /// Which name in a client's certificate is its user's.
    CertificateName {
        /// None: certificates are no accounts.
        Off = "off",
        /// The subject's common name.
        CommonName = "common_name",
        /// The first DNS name.
        Dns = "dns",
        /// The first URI.
        Uri = "uri",
        /// The whole subject.
        Subject = "subject",
    }
}

choice! {
    /// Which messages are dropped when a session's queue is full.
    QueuePolicy {
        /// Those that come.
        DropNew = "drop_new",
        /// Those that have waited longest.
        DropOldest = "drop_oldest",
    }
}

choice! {
    /// Who gets the session of a client identifier.
    ClientIdTheft {
        /// The user that has it.
        Refuse = "refuse",
        /// Whoever comes with the client identifier.
        Allow = "allow",
    }
}

/// A directory.
pub struct Directory;

impl Kind for Directory {
    type Value = PathBuf;

    fn expects() -> String {
        "a path".to_owned()
    }

    fn parse(text: &str) -> Option<PathBuf> {
        (!text.is_empty()).then(|| PathBuf::from(text))
    }
}

/// A node's name, or `auto`: the host name.
pub struct NodeId;

const NODE_ID_MAX: usize = 64;

impl Kind for NodeId {
    type Value = String;

    fn expects() -> String {
        format!(
            "1 to {NODE_ID_MAX} of the characters a-z A-Z 0-9 . _ - (or auto, if the host name is such a name)"
        )
    }

    fn parse(text: &str) -> Option<String> {
        let id = match text {
            "auto" => std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_owned(),
            _ => text.to_owned(),
        };
        let valid = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        ((1..=NODE_ID_MAX).contains(&id.len()) && id.chars().all(valid)).then_some(id)
    }
}

/// What to log.
pub struct LogFilter;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl Kind for LogFilter {
    type Value = String;

    fn expects() -> String {
        format!("one of {}, or directives such as info,berth::server=debug", LEVELS.join(", "))
    }

    fn parse(text: &str) -> Option<String> {
        // Targets takes any lone word for a module's name, a misspelt level too.
        let known = |d: &str| d.contains(['=', ':']) || LEVELS.contains(&d.trim());
        (text.split(',').all(known) && text.parse::<Targets>().is_ok()).then(|| text.to_owned())
    }
}

choice! {
    /// How log lines look.
    LogFormat {
        /// For people.
        Text = "text",
        /// For machines: one JSON object a line.
        Json = "json",
    }
}

choice! {
    /// Where the journal lives.
    StorageType {
        /// On disk, in a redb file.
        Redb = "redb",
        /// In memory: everything is lost when the process ends.
        Memory = "memory",
    }
}

choice! {
    /// Whether clients of a listener show a certificate.
    ClientCertificates {
        /// None is asked for.
        Off = "off",
        /// Whoever shows one is refused if it is not good.
        Optional = "optional",
        /// Nobody comes without a good one.
        Required = "required",
    }
}

choice! {
    /// Whether a proxy in front of a listener tells the clients' addresses.
    ProxyProtocol {
        /// Clients connect themselves.
        Off = "off",
        /// Every connection begins with a header of the proxy.
        Required = "required",
    }
}

choice! {
    /// What holds where no rule says anything.
    AclDefault {
        /// Everything is allowed while there are no rules, nothing once there are.
        Auto = "auto",
        /// What no rule speaks of is allowed.
        Allow = "allow",
        /// What no rule speaks of is denied.
        Deny = "deny",
    }
}
