//! **An authority of X.509-SVIDs**: one trust domain, roots with an intermediate each, and the certificates that a test
//! needs, the deliberately bad ones included ([`Flaw`]).
//!
//! Promise: what it issues without a flaw obeys the identity framework: exactly one URI SAN, P-256 unless asked
//! otherwise, digital signature only, a chain of leaf and intermediate. With a flaw exactly one rule is broken, so that a
//! refusal proves that rule.
//!
//! Rotation: [`Authority::add_root`] makes a new root, which issues from then on; [`Authority::retire_old_roots`] takes
//! the others out of the bundle. Each raises the bundle's sequence.

mod bundle;
pub(crate) mod check;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::MargoSimError;
use super::tools::{locked, now_seconds};

const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// What is wrong with an SVID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flaw {
    /// Nothing.
    #[default]
    None,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// Its SPIFFE ID is of another trust domain, though the chain is ours.
    WrongDomain,
    /// Two URI SANs.
    TwoUris,
    /// No URI SAN, only a DNS name.
    NoUri,
    /// The leaf is an authority itself.
    CaLeaf,
    /// The leaf may sign certificates.
    KeyCertSign,
    /// The leaf may sign revocation lists.
    CrlSign,
    /// It belongs to another WFM of the same trust domain.
    WrongWfm,
    /// A SPIFFE ID without a path.
    RootPath,
    /// The URI's scheme is not `spiffe`.
    NotSpiffe,
    /// The right WFM in other letters: `WFM-1` for `wfm-1`.
    OtherCase,
    /// Issued by an authority that nobody trusts.
    Stranger,
    /// The intermediate is left out.
    NoIntermediate,
}

impl Flaw {
    /// All, `None` excluded.
    pub const ALL: [Self; 14] = [
        Self::Expired,
        Self::NotYetValid,
        Self::WrongDomain,
        Self::TwoUris,
        Self::NoUri,
        Self::CaLeaf,
        Self::KeyCertSign,
        Self::CrlSign,
        Self::WrongWfm,
        Self::RootPath,
        Self::NotSpiffe,
        Self::OtherCase,
        Self::Stranger,
        Self::NoIntermediate,
    ];
}

/// Algorithm of an SVID's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// ECDSA P-256, mandatory for all.
    #[default]
    P256,
    /// ECDSA P-384.
    P384,
    /// Ed25519.
    Ed25519,
}

/// A certificate chain with its key.
#[derive(Debug)]
pub struct Svid {
    /// The SPIFFE ID (or the DNS name of an ordinary certificate).
    pub id: String,
    /// Leaf first, then the intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: PrivateKeyDer<'static>,
    /// The chain as PEM.
    pub chain_pem: String,
    /// The key as PEM (PKCS#8).
    pub key_pem: String,
}

impl Clone for Svid {
    fn clone(&self) -> Self {
        Self {
            id: self.id.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            chain_pem: self.chain_pem.clone(),
            key_pem: self.key_pem.clone(),
        }
    }
}

/// A root and the intermediate that issues for it.
struct Tier {
    root: CertificateDer<'static>,
    root_pem: String,
    public_key: Vec<u8>,
    root_issuer: Issuer<'static, KeyPair>,
    intermediate: CertificateDer<'static>,
    intermediate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// An answer to a request.
struct Signed {
    leaf: rcgen::Certificate,
    intermediate: CertificateDer<'static>,
    intermediate_pem: String,
}

impl Signed {
    fn pem(&self) -> String {
        self.leaf.pem() + &self.intermediate_pem
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.leaf.der().clone(), self.intermediate.clone()]
    }
}

struct Inner {
    tiers: Vec<Tier>,
    made: u32,
    sequence: u64,
    refresh_hint: u64,
}

/// An authority for one trust domain.
pub struct Authority {
    trust_domain: String,
    inner: Mutex<Inner>,
    stranger: Tier,
}

impl Authority {
    /// An authority with one root. The trust domain is written as in a SPIFFE ID, such as `plant.example`.
    pub fn new(trust_domain: &str) -> Result<Arc<Self>, MargoSimError> {
        let tiers = vec![tier(trust_domain, 1)?];
        Ok(Arc::new(Self {
            trust_domain: trust_domain.to_owned(),
            inner: Mutex::new(Inner { tiers, made: 1, sequence: 1, refresh_hint: 300 }),
            stranger: tier("stranger.example", 1)?,
        }))
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// SPIFFE ID of a WFM.
    pub fn wfm_id(&self, wfm: &str) -> String {
        format!("spiffe://{}/margo/wfm/{wfm}", self.trust_domain)
    }

    /// SPIFFE ID of a WFM client.
    pub fn client_id(&self, wfm: &str, client: &str) -> String {
        format!("{}/client/{client}", self.wfm_id(wfm))
    }

    /// An SVID for the WFM, good for two years.
    pub fn wfm_svid(&self, wfm: &str, flaw: Flaw) -> Result<Svid, MargoSimError> {
        self.issue(&self.wfm_id(wfm), flaw, 2 * YEAR, KeyKind::P256)
    }

    /// An SVID for a client, with `life` to live.
    pub fn client_svid(&self, wfm: &str, client: &str, life: Duration, flaw: Flaw) -> Result<Svid, MargoSimError> {
        self.issue(&self.client_id(wfm, client), flaw, life, KeyKind::P256)
    }

    /// An SVID for any SPIFFE ID.
    pub fn issue(&self, id: &str, flaw: Flaw, life: Duration, key: KeyKind) -> Result<Svid, MargoSimError> {
        let names = self.names(id, flaw);
        let mut params = leaf(names, life)?;
        let now = now_seconds();
        match flaw {
            Flaw::Expired => (params.not_before, params.not_after) = (at(now - 7200), at(now - 3600)),
            Flaw::NotYetValid => (params.not_before, params.not_after) = (at(now + 3600), at(now + 7200)),
            Flaw::CaLeaf => params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            Flaw::KeyCertSign => params.key_usages.push(KeyUsagePurpose::KeyCertSign),
            Flaw::CrlSign => params.key_usages.push(KeyUsagePurpose::CrlSign),
            _ => {}
        }
        let algorithm = match key {
            KeyKind::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyKind::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            KeyKind::Ed25519 => &rcgen::PKCS_ED25519,
        };
        let failed = || MargoSimError::certificate(id);
        let key = KeyPair::generate_for(algorithm).map_err(failed())?;
        let inner = locked(&self.inner);
        let tier = if flaw == Flaw::Stranger { &self.stranger } else { inner.newest() };
        let signed = params.signed_by(&key, &tier.issuer).map_err(failed())?;
        Ok(tier.svid(id, &signed, &key, flaw != Flaw::NoIntermediate))
    }

    /// An ordinary server certificate for DNS names and addresses, good for a year.
    pub fn server_certificate(&self, names: &[&str]) -> Result<Svid, MargoSimError> {
        let what = names.join(", ");
        let failed = || MargoSimError::certificate(what.clone());
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).map_err(failed())?;
        let wanted = leaf(Vec::new(), YEAR)?;
        params.distinguished_name = wanted.distinguished_name;
        params.key_usages = wanted.key_usages;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (wanted.not_before, wanted.not_after);
        let key = KeyPair::generate().map_err(failed())?;
        let inner = locked(&self.inner);
        let signed = params.signed_by(&key, &inner.newest().issuer).map_err(failed())?;
        Ok(inner.newest().svid(&what, &signed, &key, true))
    }

    /// Signs a request (PKCS#10, PEM) for `id`, whatever names it asks for; the chain as PEM.
    pub fn sign_request(&self, request_pem: &str, id: &str, life: Duration) -> Result<String, MargoSimError> {
        let request = CertificateSigningRequestParams::from_pem(request_pem).map_err(MargoSimError::certificate(id))?;
        Ok(self.signed(request, id, life)?.pem())
    }

    fn signed(
        &self,
        mut request: CertificateSigningRequestParams,
        id: &str,
        life: Duration,
    ) -> Result<Signed, MargoSimError> {
        request.params = leaf(self.names(id, Flaw::None), life)?;
        let inner = locked(&self.inner);
        let leaf = request.signed_by(&inner.newest().issuer).map_err(MargoSimError::certificate(id))?;
        let newest = inner.newest();
        Ok(Signed {
            leaf,
            intermediate: newest.intermediate.clone(),
            intermediate_pem: newest.intermediate_pem.clone(),
        })
    }

    /// Makes another root, which issues from now on; the older stay in the bundle.
    pub fn add_root(&self) -> Result<(), MargoSimError> {
        let mut inner = locked(&self.inner);
        inner.made += 1;
        let made = tier(&self.trust_domain, inner.made)?;
        inner.tiers.push(made);
        inner.sequence += 1;
        Ok(())
    }

    /// Takes all roots but the newest out of the bundle.
    pub fn retire_old_roots(&self) {
        let mut inner = locked(&self.inner);
        let newest = inner.tiers.len() - 1;
        inner.tiers.drain(..newest);
        inner.sequence += 1;
    }

    /// Issues another intermediate below the newest root; SVIDs issued before keep theirs.
    pub fn renew_intermediate(&self) -> Result<(), MargoSimError> {
        let mut inner = locked(&self.inner);
        let name = format!("{} issuing", self.trust_domain);
        let newest = inner.tiers.len() - 1;
        let tier = &mut inner.tiers[newest];
        (tier.intermediate, tier.intermediate_pem, tier.issuer) = intermediate(&name, &tier.root_issuer)?;
        Ok(())
    }

    /// The anchors of the current bundle.
    pub fn anchors(&self) -> Vec<CertificateDer<'static>> {
        locked(&self.inner).tiers.iter().map(|tier| tier.root.clone()).collect()
    }

    /// The anchors as PEM.
    pub fn roots_pem(&self) -> String {
        locked(&self.inner).tiers.iter().map(|tier| tier.root_pem.as_str()).collect()
    }

    /// Sets the bundle's refresh hint.
    pub fn set_refresh_hint(&self, seconds: u64) {
        locked(&self.inner).refresh_hint = seconds;
    }

    fn names(&self, id: &str, flaw: Flaw) -> Vec<String> {
        let path = id.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).map_or("", |(_, path)| path);
        let one = match flaw {
            Flaw::WrongDomain => format!("spiffe://elsewhere.example/{path}"),
            Flaw::TwoUris => return vec![id.to_owned(), format!("{id}-too")],
            Flaw::NoUri => return Vec::new(),
            Flaw::WrongWfm => match path.strip_prefix("margo/wfm/").and_then(|rest| rest.split_once('/')) {
                Some((_, rest)) => format!("spiffe://{}/margo/wfm/another/{rest}", self.trust_domain),
                None => format!("spiffe://{}/margo/wfm/another", self.trust_domain),
            },
            Flaw::RootPath => format!("spiffe://{}", self.trust_domain),
            Flaw::NotSpiffe => format!("https://{}/{path}", self.trust_domain),
            Flaw::OtherCase => match path.strip_prefix("margo/wfm/") {
                Some(rest) => format!("spiffe://{}/margo/wfm/{}", self.trust_domain, rest.to_uppercase()),
                None => format!("spiffe://{}/{}", self.trust_domain, path.to_uppercase()),
            },
            _ => id.to_owned(),
        };
        vec![one]
    }
}

/// Signs the SPIFFE ID that a request asks for, as an enrolment server for SVIDs.
impl crate::est::Issuer for Authority {
    fn authorities(&self) -> Vec<CertificateDer<'static>> {
        let inner = locked(&self.inner);
        inner.tiers.iter().flat_map(|tier| [tier.root.clone(), tier.intermediate.clone()]).collect()
    }

    fn sign(&self, request: &[u8], life: Duration) -> Result<Vec<CertificateDer<'static>>, String> {
        let read = CertificateSigningRequestParams::from_der(&request.into()).map_err(|error| error.to_string())?;
        let uri = read.params.subject_alt_names.iter().find_map(|name| match name {
            SanType::URI(uri) => Some(uri.to_string()),
            _ => None,
        });
        let id = uri.ok_or("the request asks for no SPIFFE ID")?;
        let signed = self.signed(read, &id, life).map_err(|error| error.to_string())?;
        Ok(signed.chain())
    }
}

impl Inner {
    fn newest(&self) -> &Tier {
        // `new` makes one and `retire_old_roots` leaves one.
        &self.tiers[self.tiers.len() - 1]
    }
}

impl Tier {
    fn svid(&self, id: &str, leaf: &rcgen::Certificate, key: &KeyPair, with_intermediate: bool) -> Svid {
        let mut chain = vec![leaf.der().clone()];
        let mut chain_pem = leaf.pem();
        if with_intermediate {
            chain.push(self.intermediate.clone());
            chain_pem += &self.intermediate_pem;
        }
        let der = PrivatePkcs8KeyDer::from(key.serialize_der());
        Svid { id: id.to_owned(), chain, key: der.into(), chain_pem, key_pem: key.serialize_pem() }
    }
}

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn leaf(names: Vec<String>, life: Duration) -> Result<CertificateParams, MargoSimError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if names.is_empty() {
        params.distinguished_name.push(DnType::CommonName, "nameless");
    }
    for name in names {
        let text = name.as_str().try_into().map_err(MargoSimError::certificate(&name))?;
        params.subject_alt_names.push(SanType::URI(text));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    // A minute back, for clocks that are not quite right. Seconds matter: some tests live for seconds.
    let now = now_seconds();
    (params.not_before, params.not_after) = (at(now - 60), at(now + life.as_secs() as i64));
    Ok(params)
}

fn authority(name: &str, constraints: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = now_seconds();
    (params.not_before, params.not_after) = (at(now - 86_400), at(now + 20 * YEAR.as_secs() as i64));
    params
}

fn tier(domain: &str, number: u32) -> Result<Tier, MargoSimError> {
    let name = format!("{domain} root {number}");
    let key = KeyPair::generate().map_err(MargoSimError::certificate(&name))?;
    let mut params = authority(&name, BasicConstraints::Unconstrained);
    let id = format!("spiffe://{domain}");
    let id = id.as_str().try_into().map_err(MargoSimError::certificate(&name))?;
    params.subject_alt_names = vec![SanType::URI(id)];
    let root = params.self_signed(&key).map_err(MargoSimError::certificate(&name))?;
    let public_key = key.public_key_raw().to_vec();
    let root_issuer = Issuer::new(params, key);
    let (intermediate, intermediate_pem, issuer) = intermediate(&format!("{domain} issuing {number}"), &root_issuer)?;
    Ok(Tier {
        root_pem: root.pem(),
        root: root.into(),
        public_key,
        root_issuer,
        intermediate,
        intermediate_pem,
        issuer,
    })
}

type Intermediate = (CertificateDer<'static>, String, Issuer<'static, KeyPair>);

fn intermediate(name: &str, root: &Issuer<'static, KeyPair>) -> Result<Intermediate, MargoSimError> {
    let mut params = authority(name, BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(MargoSimError::certificate(name))?;
    let signed = params.signed_by(&key, root).map_err(MargoSimError::certificate(name))?;
    let pem = signed.pem();
    Ok((signed.into(), pem, Issuer::new(params, key)))
}
