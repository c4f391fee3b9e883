//! What differs from listener to listener in how clients are served.

use crate::mqtt::Version;
use crate::session;

/// The terms on which a listener's clients are served, where they are not the node's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Limits of a session.
    pub session: session::Limits,
    /// Whether MQTT 3.1 is spoken.
    pub v31: bool,
    /// Whether MQTT 3.1.1 is spoken.
    pub v311: bool,
    /// Whether MQTT 5.0 is spoken.
    pub v5: bool,
}

impl Terms {
    /// Terms with these limits, under which every version is spoken.
    pub fn new(session: session::Limits) -> Terms {
        Terms { session, v31: true, v311: true, v5: true }
    }

    /// Whether this version of the protocol is spoken.
    pub fn speaks(&self, version: Version) -> bool {
        match version {
            Version::V31 => self.v31,
            Version::V311 => self.v311,
            Version::V5 => self.v5,
        }
    }
}
