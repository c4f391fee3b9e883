//! The kinds of values that options of listeners have.

use super::kinds::Kind;
use super::network::Network;
use super::units::{parse_count, parse_size, show_size};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What a listener speaks below MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerType {
    /// TCP.
    Tcp,
    /// TLS over TCP.
    Tls,
    /// WebSocket over TCP.
    Ws,
    /// WebSocket over TLS.
    Wss,
}

impl ListenerType {
    const ALL: [ListenerType; 4] =
        [ListenerType::Tcp, ListenerType::Tls, ListenerType::Ws, ListenerType::Wss];

    /// As one writes it.
    pub fn name(self) -> &'static str {
        match self {
            ListenerType::Tcp => "tcp",
            ListenerType::Tls => "tls",
            ListenerType::Ws => "ws",
            ListenerType::Wss => "wss",
        }
    }

    /// The type that is named so.
    pub(super) fn of(name: &str) -> Option<ListenerType> {
        ListenerType::ALL.into_iter().find(|t| t.name() == name)
    }

    /// Whether certificates are needed.
    pub fn has_tls(self) -> bool {
        matches!(self, ListenerType::Tls | ListenerType::Wss)
    }

    /// Whether clients come with an HTTP upgrade.
    pub fn has_websocket(self) -> bool {
        matches!(self, ListenerType::Ws | ListenerType::Wss)
    }

    /// Where such a listener listens unless it is told: on this machine only.
    pub(super) fn address(self) -> SocketAddr {
        let port = match self {
            ListenerType::Tcp => 1883,
            ListenerType::Tls => 8883,
            ListenerType::Ws => 8083,
            ListenerType::Wss => 8084,
        };
        SocketAddr::from(([127, 0, 0, 1], port))
    }
}

/// A type of listener, or `auto`: `None`.
pub struct ListenerTypeOrAuto;

impl Kind for ListenerTypeOrAuto {
    type Value = Option<ListenerType>;

    fn expects() -> String {
        "auto, tcp, tls, ws or wss".to_owned()
    }

    fn parse(text: &str) -> Option<Option<ListenerType>> {
        if text == "auto" { Some(None) } else { ListenerType::of(text).map(Some) }
    }
}

/// A path on which an HTTP request is answered.
pub struct UrlPath;

impl Kind for UrlPath {
    type Value = String;

    fn expects() -> String {
        "a path such as /mqtt".to_owned()
    }

    fn parse(text: &str) -> Option<String> {
        let valid =
            text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#');
        valid.then(|| text.to_owned())
    }
}

/// Files, one or a list; empty: none.
pub struct Files;

impl Kind for Files {
    type Value = Vec<PathBuf>;

    fn expects() -> String {
        "a path, or a list of them".to_owned()
    }

    fn parse(text: &str) -> Option<Vec<PathBuf>> {
        if text.is_empty() {
            return Some(Vec::new());
        }
        let paths = text.split(',').map(str::trim);
        paths.map(|path| (!path.is_empty()).then(|| PathBuf::from(path))).collect()
    }
}

/// The web pages that may connect: those of browsers say where they come from (RFC 6454).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// All of them.
    Any,
    /// Those of the same host.
    Same,
    /// These, in lower case.
    These(Vec<String>),
}

/// Origins, `same` or `*`.
pub struct OriginList;

impl Kind for OriginList {
    type Value = Origins;

    fn expects() -> String {
        "same, * for any, or an origin such as https://app.example.org, or a list of them".to_owned()
    }

    fn parse(text: &str) -> Option<Origins> {
        match text {
            "same" => return Some(Origins::Same),
            "*" => return Some(Origins::Any),
            _ => {}
        }
        let origins = text.split(',').map(|origin| {
            let origin = origin.trim().to_ascii_lowercase();
            let (scheme, host) = origin.split_once("://")?;
            let valid = !scheme.is_empty() && !host.is_empty() && !host.contains(['/', ' ', '?', '#', '@']);
            valid.then(|| origin.clone())
        });
        origins.collect::<Option<Vec<_>>>().map(Origins::These)
    }
}

/// Networks, one or a list; empty: none.
pub struct Networks;

impl Kind for Networks {
    type Value = Vec<Network>;

    fn expects() -> String {
        "an IP address or a network such as 10.0.0.0/8, or a list of them".to_owned()
    }

    fn parse(text: &str) -> Option<Vec<Network>> {
        if text.is_empty() {
            return Some(Vec::new());
        }
        text.split(',').map(|network| network.trim().parse::<Network>().ok()).collect()
    }
}

/// The protocol versions that are spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MqttVersions {
    /// MQTT 3.1.
    pub v31: bool,
    /// MQTT 3.1.1.
    pub v311: bool,
    /// MQTT 5.0.
    pub v5: bool,
}

/// A list of protocol versions, or `all`.
pub struct VersionList;

impl Kind for VersionList {
    type Value = MqttVersions;

    fn expects() -> String {
        "all, or one or a list of 3.1, 3.1.1 and 5".to_owned()
    }

    fn parse(text: &str) -> Option<MqttVersions> {
        if text == "all" {
            return Some(MqttVersions { v31: true, v311: true, v5: true });
        }
        let mut versions = MqttVersions { v31: false, v311: false, v5: false };
        for version in text.split(',') {
            match version.trim() {
                "3.1" => versions.v31 = true,
                "3.1.1" => versions.v311 = true,
                "5" | "5.0" => versions.v5 = true,
                _ => return None,
            }
        }
        Some(versions)
    }
}

/// A whole number from 1 to `MAX`, or `off`: `None`.
pub struct CountOrOff<const MAX: u64>;

impl<const MAX: u64> Kind for CountOrOff<MAX> {
    type Value = Option<u64>;

    fn expects() -> String {
        format!("off, or a number from 1 to {MAX}")
    }

    fn parse(text: &str) -> Option<Option<u64>> {
        if matches!(text, "off" | "false") {
            return Some(None);
        }
        let count = parse_count(text)?;
        (1..=MAX).contains(&count).then_some(Some(count))
    }
}

/// A size in bytes from `MIN` to `MAX`, or `off`: `None`.
pub struct SizeOrOff<T, const MIN: u64, const MAX: u64>(PhantomData<T>);

impl<T: TryFrom<u64>, const MIN: u64, const MAX: u64> Kind for SizeOrOff<T, MIN, MAX> {
    type Value = Option<T>;

    fn expects() -> String {
        let (min, max) = (show_size(MIN), show_size(MAX));
        format!("off, or a size from {min} to {max}, such as 64KiB, 10MB or plain bytes")
    }

    fn parse(text: &str) -> Option<Option<T>> {
        if matches!(text, "off" | "false") {
            return Some(None);
        }
        let size = parse_size(text)?;
        (MIN..=MAX).contains(&size).then(|| T::try_from(size).ok())?.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_their_addresses() {
        let cases = [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("10.0.0.0/8", "a00::1", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "::1", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "2001:db9::1", true),
            ("::1/128", "::1", true),
        ];
        for (network, address, expected) in cases {
            let network = network.parse::<Network>().unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), expected, "{network:?} {address}");
        }
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0", "10.0.0.0/", "example.org", "10.0.0.0/-1"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_are_read() {
        let versions = |v31, v311, v5| Some(MqttVersions { v31, v311, v5 });
        assert_eq!(VersionList::parse("all"), versions(true, true, true));
        assert_eq!(VersionList::parse("3.1.1, 5"), versions(false, true, true));
        assert_eq!(VersionList::parse("5.0"), versions(false, false, true));
        assert_eq!(VersionList::parse("4"), None);
        assert_eq!(VersionList::parse(""), None);
        assert_eq!(OriginList::parse("same"), Some(Origins::Same));
        assert_eq!(OriginList::parse("*"), Some(Origins::Any));
        let these = |list: &[&str]| Some(Origins::These(list.iter().map(|o| (*o).to_owned()).collect()));
        assert_eq!(
            OriginList::parse("HTTPS://A.example, http://b:8080"),
            these(&["https://a.example", "http://b:8080"])
        );
        for bad in ["", "a.example", "https://a.example/", "https://", "https://a.example,same"] {
            assert_eq!(OriginList::parse(bad), None, "{bad}");
        }
        assert_eq!(Files::parse(""), Some(vec![]));
        assert_eq!(Files::parse("/a, /b"), Some(vec!["/a".into(), "/b".into()]));
        assert_eq!(Files::parse("/a,,/b"), None);
        assert_eq!(CountOrOff::<10>::parse("off"), Some(None));
        assert_eq!(CountOrOff::<10>::parse("10"), Some(Some(10)));
        assert_eq!(CountOrOff::<10>::parse("11"), None);
        assert_eq!(CountOrOff::<10>::parse("0"), None);
    }
}
