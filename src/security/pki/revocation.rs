//! The revocation list (CRL, RFC 5280 section 5): numbered, signed, always fresh.

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber};
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::ReasonCode;

use super::authority::{Authority, date};
use super::life::DAY;
use super::{Book, PkiError, Reason, Revocation, Serial, pem};

/// How long a list is valid, in seconds.
pub(super) const LIST_LIFE: i64 = 7 * DAY;

/// A signed revocation list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crl {
    /// As verifiers load it.
    pub der: CertificateRevocationListDer<'static>,
    /// Its number; grows with every list.
    pub number: u64,
    /// Unix seconds by which the next list comes.
    pub next_update: i64,
}

impl Crl {
    /// The list as PEM.
    pub fn to_pem(&self) -> String {
        pem::encode("X509 CRL", &self.der)
    }

    /// Reads a list that was written here.
    pub(super) fn from_pem(text: &str) -> Option<Self> {
        let der = CertificateRevocationListDer::from_pem_slice(text.as_bytes()).ok()?;
        let (number, next_update) = {
            let (_, list) = CertificateRevocationList::from_der(&der).ok()?;
            (u64::try_from(list.crl_number()?).ok()?, list.next_update()?.timestamp())
        };
        Some(Self { der, number, next_update })
    }

    /// What the list names.
    pub(super) fn revoked(&self) -> Vec<(Serial, Revocation)> {
        let Ok((_, list)) = CertificateRevocationList::from_der(&self.der) else { return Vec::new() };
        let read = list.iter_revoked_certificates().map(|revoked| {
            let reason = revoked.reason_code().map_or(Reason::Unspecified, |(_, code)| reason_of(code));
            let at = revoked.revocation_date.timestamp();
            (Serial::from_bytes(revoked.raw_serial()), Revocation { at, reason, not_after: None })
        });
        read.collect()
    }
}

/// Signs list number `number` of what `book` says is revoked, valid from `now` (Unix seconds).
pub(super) fn sign(authority: &Authority, book: &Book, number: u64, now: i64) -> Result<Crl, PkiError> {
    let next_update = now + LIST_LIFE;
    let revoked = book.revoked().map(|(serial, revocation)| {
        Ok(RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial.as_bytes()),
            revocation_time: date(revocation.at)?,
            reason_code: Some(code_of(revocation.reason)),
            invalidity_date: None,
        })
    });
    let params = CertificateRevocationListParams {
        this_update: date(now)?,
        next_update: date(next_update)?,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect::<Result<_, PkiError>>()?,
        key_identifier_method: KeyIdMethod::PreSpecified(authority.key_id().to_vec()),
    };
    let list = params.signed_by(authority.issuer()).map_err(PkiError::sign("the revocation list"))?;
    Ok(Crl { der: list.into(), number, next_update })
}

const fn code_of(reason: Reason) -> RevocationReason {
    match reason {
        Reason::Unspecified => RevocationReason::Unspecified,
        Reason::KeyCompromise => RevocationReason::KeyCompromise,
        Reason::Superseded => RevocationReason::Superseded,
        Reason::CessationOfOperation => RevocationReason::CessationOfOperation,
        Reason::PrivilegeWithdrawn => RevocationReason::PrivilegeWithdrawn,
    }
}

fn reason_of(code: ReasonCode) -> Reason {
    match code {
        ReasonCode::KeyCompromise => Reason::KeyCompromise,
        ReasonCode::Superseded => Reason::Superseded,
        ReasonCode::CessationOfOperation => Reason::CessationOfOperation,
        ReasonCode::PrivilegeWithdrawn => Reason::PrivilegeWithdrawn,
        _ => Reason::Unspecified,
    }
}
