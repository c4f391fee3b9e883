//! What can go wrong with etcd, in words for whoever runs the broker: which endpoint, file or user, and what to do.

use crate::tls::certificate::CertificateError;
use etcd_client::Error;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;

/// A request to etcd failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EtcdError {
    /// No endpoint is configured, or one is not an address.
    #[error("etcd.endpoints: {0}: give the addresses of the etcd members, such as http://etcd-1:2379")]
    Endpoint(String),
    /// Nobody answers there.
    #[error(
        "cannot reach etcd at {endpoint} ({what}): check that etcd runs there, that etcd.endpoints is right, and that no \
         firewall is between"
    )]
    Unreachable {
        /// The endpoint.
        endpoint: Arc<str>,
        /// What the system says.
        what: String,
    },
    /// No answer in time.
    #[error(
        "etcd at {endpoint} did not answer within {after:?}: check that this member runs, that its disk is not too slow, \
         and that a majority of the members is up (etcdctl endpoint status --cluster)"
    )]
    TimedOut {
        /// The endpoint.
        endpoint: Arc<str>,
        /// How long was waited.
        after: Duration,
    },
    /// The etcd cluster has no leader.
    #[error(
        "etcd at {endpoint} has no leader ({what}): check that a majority of the etcd members is up and can reach each \
         other (etcdctl endpoint status --cluster)"
    )]
    NoLeader {
        /// The endpoint.
        endpoint: Arc<str>,
        /// What etcd says.
        what: String,
    },
    /// User or password is wrong.
    #[error(
        "etcd at {endpoint} refuses user {user:?}: wrong user name or password: check etcd.username and etcd.password \
         (etcdctl user get {user})"
    )]
    WrongPassword {
        /// The endpoint.
        endpoint: Arc<str>,
        /// The user.
        user: String,
    },
    /// etcd wants a user and none is configured.
    #[error(
        "etcd at {endpoint} requires a user: set etcd.username and etcd.password (or etcd.password_file)"
    )]
    UserMissing {
        /// The endpoint.
        endpoint: Arc<str>,
    },
    /// A user is configured and etcd does not know users.
    #[error(
        "etcd at {endpoint} has no authentication, but etcd.username is {user:?}: turn it on (etcdctl auth enable), or \
         remove etcd.username"
    )]
    UserUnwanted {
        /// The endpoint.
        endpoint: Arc<str>,
        /// The user.
        user: String,
    },
    /// The user may not read or write the cluster's keys.
    #[error(
        "etcd user {user:?} may not read and write {prefix}: grant it that (etcdctl role grant-permission ROLE readwrite \
         {prefix} --prefix=true)"
    )]
    NotPermitted {
        /// The user.
        user: String,
        /// What all keys begin with.
        prefix: String,
    },
    /// A file of this node cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// etcd's certificate is not accepted.
    #[error("the certificate of etcd at {endpoint} is not accepted: {what}")]
    ServerCertificate {
        /// The endpoint.
        endpoint: Arc<str>,
        /// Why, and what to do.
        what: String,
    },
    /// etcd does not accept this node's certificate.
    #[error(
        "etcd at {endpoint} does not accept the certificate in {file} (etcd.cert_file; {what}): have it signed by the \
         authority that etcd trusts (its --trusted-ca-file), for client authentication"
    )]
    ClientCertificate {
        /// The endpoint.
        endpoint: Arc<str>,
        /// The file.
        file: String,
        /// What the TLS library says.
        what: String,
    },
    /// etcd closed a TLS connection without a word. It may also have refused the certificate: that it says after the handshake,
    /// and the end of the connection may overtake it.
    #[error(
        "etcd at {endpoint} closed the connection ({what}): check that it runs; if it does so at every attempt, it does not \
         accept {shown}: set one that was signed by the authority that etcd trusts (its --trusted-ca-file), for client \
         authentication"
    )]
    Closed {
        /// The endpoint.
        endpoint: Arc<str>,
        /// Which certificate this node showed.
        shown: String,
        /// What the system says.
        what: String,
    },
    /// etcd wants a certificate and none is configured.
    #[error(
        "etcd at {endpoint} requires a certificate of this node, and none is set: set etcd.cert_file and etcd.key_file \
         ({what})"
    )]
    CertificateMissing {
        /// The endpoint.
        endpoint: Arc<str>,
        /// What the TLS library says.
        what: String,
    },
    /// The database is full.
    #[error(
        "etcd's database is full: it takes no writes until its quota is raised (--quota-backend-bytes) or it is compacted \
         and defragmented, and then the alarm is cleared (etcdctl alarm disarm)"
    )]
    NoSpace,
    /// The lease is gone: it ran out, or somebody revoked it.
    #[error("etcd at {endpoint} does not know this node's lease any more: it ran out or was revoked")]
    LeaseGone {
        /// The endpoint.
        endpoint: Arc<str>,
    },
    /// The revision asked for is no longer there.
    #[error("etcd at {endpoint} has compacted the revision asked for")]
    Compacted {
        /// The endpoint.
        endpoint: Arc<str>,
    },
    /// etcd answered, and says no.
    #[error("etcd at {endpoint} refuses a request: {what}")]
    Refused {
        /// The endpoint.
        endpoint: Arc<str>,
        /// What it says.
        what: String,
    },
    /// Anything else that etcd answers.
    #[error("etcd at {endpoint}: {what}")]
    Other {
        /// The endpoint.
        endpoint: Arc<str>,
        /// What it says.
        what: String,
    },
}

/// What is known about the connection that an error came from.
pub(super) struct Context<'a> {
    pub endpoint: &'a Arc<str>,
    pub user: Option<&'a str>,
    pub prefix: &'a str,
    pub ca_file: Option<&'a str>,
    pub cert_file: Option<&'a str>,
}

impl EtcdError {
    /// Tells apart what the client library reports.
    pub(super) fn of(error: &Error, at: &Context<'_>) -> EtcdError {
        match error {
            Error::GRpcStatus(status) => of_status(status, at),
            Error::TransportError(transport) => of_transport(&chain(transport), at),
            Error::InvalidUri(_) | Error::InvalidArgs(_) => {
                EtcdError::Endpoint(format!("{} ({error})", at.endpoint))
            }
            Error::LeaseKeepAliveError(what) if what == "lease not found" => {
                EtcdError::LeaseGone { endpoint: at.endpoint.clone() }
            }
            other => EtcdError::Other { endpoint: at.endpoint.clone(), what: other.to_string() },
        }
    }

    /// Whether this member does not do, and another one or a new connection may: it does not answer, or does not let this node in.
    pub fn is_endpoint(&self) -> bool {
        use EtcdError::{
            CertificateMissing, ClientCertificate, Closed, NoLeader, NotPermitted, Other, ServerCertificate,
            TimedOut, Unreachable, UserMissing, UserUnwanted, WrongPassword,
        };
        matches!(
            self,
            Unreachable { .. }
                | TimedOut { .. }
                | NoLeader { .. }
                | ServerCertificate { .. }
                | ClientCertificate { .. }
                | CertificateMissing { .. }
                | Closed { .. }
                | WrongPassword { .. }
                | UserMissing { .. }
                | UserUnwanted { .. }
                | NotPermitted { .. }
                | Other { .. }
        )
    }

    /// Whether only a person can help: a retry will fail in the same way.
    pub fn is_permanent(&self) -> bool {
        use EtcdError::{Closed, Compacted, LeaseGone, NoLeader, NoSpace, Other, TimedOut, Unreachable};
        !matches!(
            self,
            Closed { .. }
                | Unreachable { .. }
                | TimedOut { .. }
                | NoLeader { .. }
                | NoSpace
                | LeaseGone { .. }
                | Compacted { .. }
                | Other { .. }
        )
    }
}

/// What caused an error, in one line: of the wrappers that say no more than that there is a cause, and of those that show it as
/// program text, only the causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let (mut text, mut last) = (String::new(), String::new());
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        last = error.to_string();
        let says_more = !WRAPPERS.contains(&&*last) && !error.is::<tonic::Status>();
        if says_more && !text.ends_with(&last) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&last);
        }
        next = error.source();
    }
    if text.is_empty() { last } else { text }
}

/// Errors of the transport that have a cause, which says it better.
const WRAPPERS: [&str; 3] = ["transport error", "client error (Connect)", "error trying to connect"];

fn of_status(status: &tonic::Status, at: &Context<'_>) -> EtcdError {
    let endpoint = at.endpoint.clone();
    let user = at.user.unwrap_or_default().to_owned();
    let message = status.message();
    if status.source().is_some() {
        return of_transport(&chain(status), at);
    }
    if message.contains("authentication failed") {
        return EtcdError::WrongPassword { endpoint, user };
    }
    if message.contains("authentication is not enabled") {
        return EtcdError::UserUnwanted { endpoint, user };
    }
    if message.contains("user name is empty") {
        return EtcdError::UserMissing { endpoint };
    }
    if message.contains("permission denied") {
        return EtcdError::NotPermitted { user, prefix: at.prefix.to_owned() };
    }
    if message.contains("database space exceeded") {
        return EtcdError::NoSpace;
    }
    let what = format!("{message} ({:?})", status.code());
    // Too large for the receiver: another member or a new connection would say the same.
    if message.contains("larger than max") || message.contains("message length too large") {
        return EtcdError::Refused { endpoint, what };
    }
    if message.contains("no leader") || message.contains("leader changed") {
        return EtcdError::NoLeader { endpoint, what: message.to_owned() };
    }
    if message.contains("lease not found") {
        return EtcdError::LeaseGone { endpoint };
    }
    if message.contains("has been compacted") {
        return EtcdError::Compacted { endpoint };
    }
    // A new connection with a new token helps against the last one.
    let refused = [Code::InvalidArgument, Code::NotFound, Code::AlreadyExists, Code::FailedPrecondition];
    if refused.contains(&status.code()) && !message.contains("auth store is old") {
        return EtcdError::Refused { endpoint, what };
    }
    match status.code() {
        Code::Unavailable => EtcdError::Unreachable { endpoint, what },
        _ => EtcdError::Other { endpoint, what },
    }
}

/// What a failed connection says: the words are those of the TLS library.
fn of_transport(text: &str, at: &Context<'_>) -> EtcdError {
    let endpoint = at.endpoint.clone();
    let server =
        |what: &str| EtcdError::ServerCertificate { endpoint: endpoint.clone(), what: what.to_owned() };
    if text.contains("invalid peer certificate") {
        let ca = match at.ca_file {
            Some(file) => format!("{file} (etcd.ca_file)"),
            None => "the system's certificates (etcd.ca_file is not set)".to_owned(),
        };
        if text.contains("certificate expired") || text.contains(": Expired") {
            return server("it has expired: replace it on that etcd member (--cert-file)");
        }
        if text.contains("not valid for") || text.contains("NotValidForName") {
            return server(
                "it is for another host name: use a name that it lists in etcd.endpoints, or issue one for this name",
            );
        }
        if text.contains("UnknownIssuer") || text.contains("BadSignature") {
            return server(&format!("it was not signed by an authority in {ca}: set the one that signed it"));
        }
        return server(text);
    }
    if text.contains("received fatal alert") {
        let what = text.to_owned();
        return match at.cert_file {
            Some(file) => EtcdError::ClientCertificate { endpoint, file: file.to_owned(), what },
            None => EtcdError::CertificateMissing { endpoint, what },
        };
    }
    let closed = ["connection closed", "operation was canceled", "broken pipe", "connection reset"];
    let words = text.to_lowercase();
    if endpoint.starts_with("https://") && closed.iter().any(|what| words.contains(what)) {
        let shown = match at.cert_file {
            Some(file) => format!("the certificate in {file} (etcd.cert_file)"),
            None => "a node without a certificate (etcd.cert_file is not set)".to_owned(),
        };
        return EtcdError::Closed { endpoint, shown, what: text.to_owned() };
    }
    EtcdError::Unreachable { endpoint, what: text.to_owned() }
}

/// A change of what the cluster has in etcd was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A request failed.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// A value cannot be read.
    #[error(transparent)]
    Record(#[from] super::records::RecordError),
    /// This node may not write now.
    #[error("this node's lease in etcd has run out: it registers again and writes nothing meanwhile")]
    Fenced,
    /// Others kept changing the same keys.
    #[error("other nodes keep changing {0} in etcd: try again")]
    Contended(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_does_not_answer_is_named_without_program_text() {
        let endpoint: Arc<str> = "http://127.0.0.1:1".into();
        let at =
            Context { endpoint: &endpoint, user: None, prefix: "/berth", ca_file: None, cert_file: None };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(async {
            let channel = tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
            let mut client = tonic::client::Grpc::new(channel);
            client.ready().await.unwrap();
            let path = tonic::codegen::http::uri::PathAndQuery::from_static("/a/b");
            let codec = tonic_prost::ProstCodec::<(), ()>::default();
            let answer: Result<tonic::Response<()>, tonic::Status> =
                client.unary(tonic::Request::new(()), path, codec).await;
            answer.unwrap_err()
        });
        let said = EtcdError::of(&Error::GRpcStatus(error), &at).to_string();
        assert!(said.starts_with("cannot reach etcd at http://127.0.0.1:1 (tcp connect error"), "{said}");
        assert!(said.contains("Connection refused"), "{said}");
        for text in ["tonic", "Error(", "{", "transport error"] {
            assert!(!said.contains(text), "{text:?} is in {said}");
        }
    }

    #[test]
    fn a_start_waits_for_what_may_come_by_itself() {
        let endpoint: Arc<str> = "http://e:2379".into();
        let at =
            Context { endpoint: &endpoint, user: None, prefix: "/berth", ca_file: None, cert_file: None };
        let cases = [
            (Code::NotFound, "etcdserver: requested lease not found", false),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", false),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", false),
            (Code::Unavailable, "etcdserver: leader changed", false),
            (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password", true),
            (Code::PermissionDenied, "etcdserver: permission denied", true),
        ];
        for (code, message, permanent) in cases {
            let error = EtcdError::of(&Error::GRpcStatus(tonic::Status::new(code, message)), &at);
            assert_eq!(error.is_permanent(), permanent, "{error}");
        }
    }
}
