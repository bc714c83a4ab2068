//! Why a connection failed, in words that tell a person what to look at.

use std::error::Error;
use std::io;

use rumqttc::{ConnectReturnCode, v5};

/// A failed connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// Words for people.
    pub(super) reason: String,
    /// The broker (or we) refused for a reason that does not go away by itself.
    pub(super) refused: bool,
    /// The broker ended a connection that it had accepted.
    pub(super) closed: bool,
}

impl Failure {
    pub(super) fn passing(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), refused: false, closed: false }
    }

    pub(super) fn refused(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), refused: true, closed: false }
    }
}

impl From<rumqttc::ConnectionError> for Failure {
    fn from(error: rumqttc::ConnectionError) -> Self {
        use rumqttc::{ConnectionError as E, StateError as S};
        match error {
            E::ConnectionRefused(code) => connack_v4(code),
            E::Tls(rumqttc::TlsError::DNSName(_)) => bad_name(),
            E::MqttState(S::ConnectionAborted) => closed(),
            E::MqttState(S::AwaitPingResp) => no_ping(),
            E::MqttState(S::CollisionTimeout) => out_of_order(),
            E::NetworkTimeout => slow_handshake(),
            E::FlushTimeout => Failure::passing("the network takes no data"),
            other => chained(&other),
        }
    }
}

impl From<v5::ConnectionError> for Failure {
    fn from(error: v5::ConnectionError) -> Self {
        use v5::{ConnectionError as E, StateError as S};
        match error {
            E::ConnectionRefused(code) => connack_v5(code),
            E::MqttState(S::ConnFail { reason }) => connack_v5(reason),
            E::MqttState(S::ServerDisconnect { reason_code, reason_string }) => {
                let said = reason_string.map(|s| format!(" ({s})")).unwrap_or_default();
                let reason = format!("the broker disconnected: {}{said}", words(&format!("{reason_code:?}")));
                Failure { closed: true, ..Failure::passing(reason) }
            }
            E::Tls(v5::TlsError::DNSName(_)) => bad_name(),
            E::MqttState(S::ConnectionAborted) => closed(),
            E::MqttState(S::AwaitPingResp) => no_ping(),
            E::MqttState(S::CollisionTimeout) => out_of_order(),
            E::Timeout(_) => slow_handshake(),
            // This one does not name its source.
            E::MqttState(S::Deserialization(inner)) => chained(&inner),
            other => chained(&other),
        }
    }
}

fn closed() -> Failure {
    Failure { closed: true, ..Failure::passing("the broker closed the connection") }
}

fn no_ping() -> Failure {
    Failure::passing("the broker does not answer pings")
}

pub(super) fn out_of_order() -> Failure {
    Failure::passing("the broker confirms messages out of order and leaves one out")
}

fn slow_handshake() -> Failure {
    Failure::passing("the broker did not accept the connection in time")
}

fn bad_name() -> Failure {
    Failure::refused("the server's address is no name that a certificate can carry")
}

fn connack_v4(code: ConnectReturnCode) -> Failure {
    match code {
        ConnectReturnCode::BadUserNamePassword => Failure::refused("bad user name or password"),
        ConnectReturnCode::NotAuthorized => {
            Failure::refused("not authorised: check user, password and the broker's ACL")
        }
        ConnectReturnCode::BadClientId => Failure::refused("the broker refuses the client id"),
        ConnectReturnCode::RefusedProtocolVersion => Failure::refused("the broker does not speak MQTT 3.1.1"),
        ConnectReturnCode::ServiceUnavailable => Failure::passing("the broker is not available at the moment"),
        ConnectReturnCode::Success => Failure::passing("the broker refused the connection without a reason"),
    }
}

fn connack_v5(code: v5::mqttbytes::v5::ConnectReturnCode) -> Failure {
    use v5::mqttbytes::v5::ConnectReturnCode as C;
    match code {
        C::BadUserNamePassword => Failure::refused("bad user name or password"),
        C::NotAuthorized => Failure::refused("not authorised: check user, password and the broker's ACL"),
        C::UnsupportedProtocolVersion | C::RefusedProtocolVersion => {
            Failure::refused("the broker does not speak MQTT 5")
        }
        C::BadClientId | C::ClientIdentifierNotValid => Failure::refused("the broker refuses the client id"),
        C::Banned => Failure::refused("the broker has banned this client"),
        C::ServiceUnavailable | C::ServerUnavailable | C::ServerBusy | C::ConnectionRateExceeded | C::QuotaExceeded => {
            Failure::passing(format!("the broker is not available at the moment: {}", words(&format!("{code:?}"))))
        }
        other => Failure::refused(format!("the broker refused the connection: {}", words(&format!("{other:?}")))),
    }
}

/// `NotAuthorized` as `not authorized`.
pub(super) fn words(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_uppercase() && !out.is_empty() {
            out.push(' ');
        }
        out.extend(c.to_lowercase());
    }
    out
}

/// Looks for the cause along the chain of sources: TLS first, then the operating system's word.
fn chained(error: &(dyn Error + 'static)) -> Failure {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(tls) = e.downcast_ref::<rustls::Error>() {
            return tls_failure(tls);
        }
        if let Some(io) = e.downcast_ref::<io::Error>() {
            if let Some(tls) = inner_tls(io) {
                return tls_failure(tls);
            }
            if io.to_string().contains("lookup address") {
                return Failure::passing(format!("the server's name cannot be resolved: {io}"));
            }
            return io_failure(io);
        }
        cause = e.source();
    }
    Failure::passing(error.to_string())
}

/// An I/O error around another error names that one as its inner error, not as its source; and they nest.
fn inner_tls(error: &io::Error) -> Option<&rustls::Error> {
    let inner = error.get_ref()?;
    inner.downcast_ref::<rustls::Error>().or_else(|| inner.downcast_ref::<io::Error>().and_then(inner_tls))
}

fn io_failure(error: &io::Error) -> Failure {
    let closed = matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
    let reason = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused: nobody listens there".to_owned(),
        io::ErrorKind::ConnectionReset => "the connection was reset".to_owned(),
        io::ErrorKind::TimedOut => "no answer from the server's address".to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            "the network does not reach the server".to_owned()
        }
        _ => error.to_string(),
    };
    Failure { closed, ..Failure::passing(reason) }
}

fn tls_failure(error: &rustls::Error) -> Failure {
    use rustls::{AlertDescription as A, CertificateError as C, Error as E};
    match error {
        E::InvalidCertificate(why) => Failure::refused(match why {
            C::Expired | C::ExpiredContext { .. } => {
                "the broker's certificate has expired (or the clock here is wrong)".to_owned()
            }
            C::NotValidYet | C::NotValidYetContext { .. } => {
                "the broker's certificate is not valid yet (or the clock here is wrong)".to_owned()
            }
            // A signature that fails comes from another authority of the same name.
            C::UnknownIssuer | C::BadSignature => {
                "the broker's certificate is signed by nobody that is trusted here; add its CA".to_owned()
            }
            C::NotValidForName | C::NotValidForNameContext { .. } => {
                format!("the broker's certificate is for another name: {why}")
            }
            C::Revoked => "the broker's certificate was revoked".to_owned(),
            other => format!("the broker's certificate is not accepted: {other}"),
        }),
        E::AlertReceived(
            A::CertificateRequired
            | A::BadCertificate
            | A::CertificateUnknown
            | A::UnknownCA
            | A::CertificateExpired
            | A::CertificateRevoked,
        ) => Failure::refused(format!("the broker does not accept our certificate: {error}")),
        other => Failure::refused(format!("TLS failed: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_found_inside_io_errors() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let error =
            rumqttc::ConnectionError::Tls(rumqttc::TlsError::Io(io::Error::new(io::ErrorKind::InvalidData, tls)));
        let failure = Failure::from(error);
        assert!(failure.refused && failure.reason.contains("add its CA"), "{failure:?}");

        let refused = rumqttc::ConnectionError::Io(io::Error::from(io::ErrorKind::ConnectionRefused));
        assert_eq!(Failure::from(refused), Failure::passing("connection refused: nobody listens there"));

        let dns = io::Error::other("failed to lookup address information: Name or service not known");
        assert!(Failure::from(v5::ConnectionError::Io(dns)).reason.contains("cannot be resolved"));

        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        let inner = rumqttc::Error::Io(io::Error::new(io::ErrorKind::InvalidData, alert));
        let failure = Failure::from(rumqttc::ConnectionError::MqttState(rumqttc::StateError::Deserialization(inner)));
        assert!(failure.reason.contains("our certificate"), "{failure:?}");
    }

    #[test]
    fn names_become_words() {
        assert_eq!(words("QuotaExceeded"), "quota exceeded");
    }
}
