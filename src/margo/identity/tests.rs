//! Every rule of the identity framework, each in a test named after it. The authority of the tests is here, too.

mod keys;

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;
use time::OffsetDateTime;

use super::*;
use crate::model::{ClockTrust, Stamp};
use crate::platform::durable::Disk;

/// The time of all tests.
pub(crate) const NOW: i64 = 1_790_000_000;
const DAY: i64 = 86_400;
pub(crate) const DOMAIN: &str = "plant.example";

/// A time that stands still.
#[derive(Debug)]
pub(crate) struct Fixed(i64);

impl TimeProvider for Fixed {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(self.0 as u64)))
    }
}

pub(crate) fn at(now: i64) -> Arc<dyn TimeProvider> {
    Arc::new(Fixed(now))
}

fn when(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap()
}

/// An authority.
pub(crate) struct Ca {
    params: CertificateParams,
    key: KeyPair,
    der: CertificateDer<'static>,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (when(NOW - 365 * DAY), when(NOW + 365 * DAY));
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { params, key, der }
    }

    pub fn der(&self) -> CertificateDer<'static> {
        self.der.clone()
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    /// An authority below this one.
    fn intermediate(&self, name: &str) -> Self {
        let mut below = Self::new(name);
        below.der = below.params.signed_by(&below.key, &self.issuer()).unwrap().der().clone();
        below
    }

    /// A leaf; `change` makes it break rules.
    fn leaf(&self, uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (CertificateDer<'static>, String) {
        self.leaf_with(&KeyPair::generate().unwrap(), uris, change)
    }

    fn leaf_with(
        &self,
        key: &KeyPair,
        uris: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> (CertificateDer<'static>, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        (params.not_before, params.not_after) = (when(NOW - DAY), when(NOW + 30 * DAY));
        change(&mut params);
        let der = params.signed_by(key, &self.issuer()).unwrap().der().clone();
        (der, key.serialize_pem())
    }

    pub fn web_server(&self, name: &str) -> CertificateDer<'static> {
        self.leaf(&[], |params| params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())]).0
    }

    /// Chain and key of a client's SVID, PEM.
    pub fn client(&self, client: &str) -> (String, String) {
        let id = format!("spiffe://{DOMAIN}/margo/wfm/north/client/{client}");
        let (der, key) = self.leaf(&[&id], |_| {});
        (pem(&der), key)
    }

    pub fn bundle(&self, sequence: u64) -> TrustBundle {
        TrustBundle::parse(TrustBundle::write(&[self.der()], sequence).as_bytes()).unwrap()
    }
}

fn pem(der: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

const WFM: &str = "spiffe://plant.example/margo/wfm/north";

fn wfm() -> SpiffeId {
    SpiffeId::new(WFM).unwrap()
}

/// What verification says about a leaf of the fleet manager that was changed.
fn verdict(uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Result<(), SvidError> {
    let ca = Ca::new("root");
    let (leaf, _) = ca.leaf(uris, change);
    verify_svid(&[leaf], &ca.bundle(1), &wfm(), NOW)
}

#[test]
fn the_wfm_of_our_own_svid_is_accepted() {
    assert_eq!(verdict(&[WFM], |_| {}), Ok(()));
}

#[test]
fn an_expired_svid_is_refused() {
    let outcome = verdict(&[WFM], |params| params.not_after = when(NOW - 1));
    assert_eq!(outcome.unwrap_err().code(), "expired");
}

#[test]
fn an_svid_that_is_not_yet_valid_is_refused() {
    let outcome = verdict(&[WFM], |params| params.not_before = when(NOW + 60));
    assert_eq!(outcome.unwrap_err().code(), "not-yet-valid");
}

#[test]
fn an_svid_of_the_wrong_trust_domain_is_refused() {
    let outcome = verdict(&["spiffe://other.example/margo/wfm/north"], |_| {});
    assert!(matches!(outcome, Err(SvidError::OtherDomain { .. })), "{outcome:?}");
}

#[test]
fn an_svid_with_two_uris_or_none_is_refused() {
    assert_eq!(verdict(&[WFM, "spiffe://plant.example/other"], |_| {}), Err(SvidError::NotOneUri(2)));
    assert_eq!(verdict(&[WFM, WFM], |_| {}), Err(SvidError::NotOneUri(2)));
    assert_eq!(verdict(&[], |_| {}), Err(SvidError::NotOneUri(0)));
    let dns = verdict(&[WFM], |params| params.subject_alt_names.push(SanType::DnsName("a.b".try_into().unwrap())));
    assert_eq!(dns, Ok(()), "other kinds of names are no URIs");
}

#[test]
fn an_svid_with_another_scheme_or_the_root_path_is_refused() {
    for bad in ["https://plant.example/margo/wfm/north", "spiffe://plant.example", "spiffe://plant.example/"] {
        assert!(matches!(verdict(&[bad], |_| {}), Err(SvidError::Uri(_))), "{bad}");
    }
}

#[test]
fn a_leaf_that_is_a_ca_is_refused() {
    let outcome = verdict(&[WFM], |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    assert_eq!(outcome, Err(SvidError::Authority));
}

#[test]
fn a_leaf_with_key_cert_sign_or_crl_sign_is_refused() {
    let cert = verdict(&[WFM], |params| params.key_usages.push(KeyUsagePurpose::KeyCertSign));
    assert!(matches!(cert, Err(SvidError::MaySign(what)) if what.contains("keyCertSign")), "{cert:?}");
    let crl = verdict(&[WFM], |params| params.key_usages.push(KeyUsagePurpose::CrlSign));
    assert!(matches!(crl, Err(SvidError::MaySign(what)) if what.contains("cRLSign")), "{crl:?}");
}

#[test]
fn the_wrong_wfm_id_is_refused_even_when_it_only_differs_in_case_or_is_a_prefix() {
    for other in ["south", "North", "nort", "north2", "north/client/gw-7"] {
        let outcome = verdict(&[&format!("spiffe://plant.example/margo/wfm/{other}")], |_| {});
        assert!(matches!(outcome, Err(SvidError::OtherPeer { .. })), "{other}: {outcome:?}");
    }
}

#[test]
fn a_retired_anchor_is_refused_and_any_anchor_of_the_bundle_is_accepted() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let (leaf, _) = old.leaf(&[WFM], |_| {});
    let both = TrustBundle::parse(TrustBundle::write(&[new.der(), old.der()], 1).as_bytes()).unwrap();
    assert_eq!(verify_svid(std::slice::from_ref(&leaf), &both, &wfm(), NOW), Ok(()));
    let outcome = verify_svid(&[leaf], &new.bundle(2), &wfm(), NOW);
    assert_eq!(outcome, Err(SvidError::Untrusted { sequence: 2, anchors: 1 }));
}

#[test]
fn a_chain_with_presented_intermediates_is_accepted_and_without_them_refused() {
    let root = Ca::new("root");
    let below = root.intermediate("below");
    let (leaf, _) = below.leaf(&[WFM], |_| {});
    assert_eq!(verify_svid(&[leaf.clone(), below.der()], &root.bundle(1), &wfm(), NOW), Ok(()));
    assert!(matches!(verify_svid(&[leaf], &root.bundle(1), &wfm(), NOW), Err(SvidError::Untrusted { .. })));
}

#[test]
fn keys_of_p384_and_ed25519_are_accepted() {
    let ca = Ca::new("root");
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let (leaf, _) = ca.leaf_with(&key, &[WFM], |_| {});
        assert_eq!(verify_svid(&[leaf], &ca.bundle(1), &wfm(), NOW), Ok(()));
    }
}

#[test]
fn a_chain_that_is_empty_or_too_long_or_garbage_is_refused() {
    let ca = Ca::new("root");
    let bundle = ca.bundle(1);
    let refused =
        |chain: &[CertificateDer<'_>]| matches!(verify_svid(chain, &bundle, &wfm(), NOW), Err(SvidError::Malformed(_)));
    assert!(refused(&[]));
    assert!(refused(&[CertificateDer::from(vec![0x30, 3, 1, 1, 1])]));
    assert!(refused(&vec![ca.leaf(&[WFM], |_| {}).0; 9]));
}

#[test]
fn our_own_svid_names_us_and_the_wfm() {
    let ca = Ca::new("root");
    let (chain, key) = ca.client("gw-7");
    let own = OwnSvid::from_pem(&chain, &key).unwrap();
    assert_eq!(own.name().client_id(), "gw-7");
    assert_eq!(own.name().wfm().as_str(), WFM);
    assert_eq!(own.complaint(&ca.bundle(1), NOW), None);
    let complaint = own.complaint(&ca.bundle(1), NOW + 60 * DAY).unwrap();
    assert_eq!(complaint.code(), "expired");
    assert!(complaint.to_string().starts_with("the certificate itself ended at 20"), "{complaint}");
    assert!(matches!(own.complaint(&Ca::new("x").bundle(1), NOW), Some(SvidError::Untrusted { .. })));
    let (wfm_chain, wfm_key) = ca.leaf(&[WFM], |_| {});
    assert!(matches!(OwnSvid::from_pem(&pem(&wfm_chain), &wfm_key), Err(OwnError::Name(_))), "that is no client");
    let (_, other_key) = ca.client("gw-7");
    assert!(matches!(OwnSvid::from_pem(&chain, &other_key), Err(OwnError::Files(_))), "not its key");
    assert!(!format!("{own:?}").contains("PRIVATE"));
    client_config(&own, Arc::new(ca.bundle(1)), at(NOW), TlsVersions::Only13).unwrap();
}

#[test]
fn a_connection_is_never_older_than_allowed() {
    use std::time::Duration;
    let life = |days: i64| crate::security::pki::Validity { not_before: NOW, not_after: NOW + days * DAY };
    let hour = Duration::from_secs(3_600);
    assert_eq!(connection_cap(life(30), NOW, hour), hour, "the configuration");
    let short = crate::security::pki::Validity { not_before: NOW, not_after: NOW + 3_600 };
    assert_eq!(connection_cap(short, NOW, hour), Duration::from_secs(360), "a tenth of the life");
    assert_eq!(connection_cap(short, NOW + 3_500, hour), Duration::from_secs(100), "what is left");
    assert_eq!(connection_cap(short, NOW + 9_999, hour), Duration::from_secs(1), "it has expired");
}

#[test]
fn the_request_for_an_svid_carries_the_name_and_the_key_does_not_print() {
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::FromDer;
    let name = ClientName::new(DOMAIN, "north", "gw-7").unwrap();
    let made = make_svid_request(&name).unwrap();
    let (_, block) = x509_parser::pem::parse_x509_pem(made.request.as_bytes()).unwrap();
    let (_, request) = X509CertificationRequest::from_der(&block.contents).unwrap();
    request.verify_signature().unwrap();
    assert!(format!("{:?}", request.requested_extensions().unwrap().collect::<Vec<_>>()).contains(name.id().as_str()));
    assert!(made.key.expose().contains("PRIVATE KEY") && !format!("{made:?}").contains("PRIVATE KEY"));
}

fn stamp(seconds: u64) -> Stamp {
    Stamp {
        wall_ms: (NOW + seconds as i64) * 1_000,
        mono_ns: seconds * 1_000_000_000,
        uptime: Default::default(),
        trust: ClockTrust::Synchronised,
    }
}

struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join(name), text).unwrap();
    }

    fn svid(&self, ca: &Ca, client: &str) {
        let (chain, key) = ca.client(client);
        self.write("svid.pem", &chain);
        self.write("svid.key", &key);
    }

    fn keeper(&self, source: BundleSource) -> Keeper {
        let path = |name: &str| self.directory.path().join(name);
        let files = IdentityFiles { chain: path("svid.pem"), key: path("svid.key"), enrolled: None };
        Keeper::new(files, source, BundleCache::new(&path("cache"), Disk::default()))
    }

    fn file(&self) -> BundleSource {
        BundleSource::File(self.directory.path().join("bundle.json"))
    }
}

fn uri() -> BundleSource {
    BundleSource::Uri { url: "https://trust.example/bundle".to_owned(), contact: FirstContact::default() }
}

#[test]
fn identity_and_bundle_are_exchanged_while_running_and_bad_files_change_nothing() {
    let (old, new, files) = (Ca::new("old"), Ca::new("new"), Files::new());
    files.svid(&old, "gw-7");
    files.write("bundle.json", &TrustBundle::write(&[old.der()], 3));
    let mut keeper = files.keeper(files.file());
    assert!(keeper.look().iter().all(Result::is_ok));
    let first = keeper.material().unwrap();
    assert!(keeper.look().is_empty(), "nothing changed");

    files.write("bundle.json", &TrustBundle::write(&[new.der()], 2));
    assert!(matches!(keeper.look()[..], [Err(KeeperError::Bundle(BundleError::Older { .. }))]));
    files.write("bundle.json", &TrustBundle::write(&[], 9));
    assert!(matches!(keeper.look()[..], [Err(KeeperError::Bundle(BundleError::Empty))]));
    assert!(keeper.look().is_empty(), "complained about once");
    assert_eq!(keeper.material().unwrap().bundle.digest, first.bundle.digest);

    files.write("bundle.json", &TrustBundle::write(&[new.der()], 4));
    files.svid(&new, "gw-7");
    assert_eq!(keeper.look().into_iter().map(Result::unwrap).collect::<Vec<_>>(), [Swap::Identity, Swap::Bundle]);
    let second = keeper.material().unwrap();
    assert_eq!(second.bundle.anchors(), [new.der()], "replaced, not merged");
    assert_ne!(second.own.serial(), first.own.serial());

    files.write("svid.pem", "garbage");
    assert!(matches!(keeper.look()[..], [Err(KeeperError::Own(_))]));
    files.svid(&new, "gw-8");
    assert!(matches!(keeper.look()[..], [Err(KeeperError::OtherClient { .. })]));
    assert_eq!(keeper.material().unwrap().own.serial(), second.own.serial());
}

#[test]
fn a_failed_refresh_keeps_the_bundle_and_the_cache_serves_an_offline_start() {
    let (ca, files) = (Ca::new("a"), Files::new());
    files.svid(&ca, "gw-7");
    let mut keeper = files.keeper(uri());
    keeper.look();
    assert!(keeper.due(stamp(0)) && keeper.material().is_none());
    assert!(keeper.fetched(Err("no route".to_owned()), stamp(0)).is_err());
    assert!(!keeper.due(stamp(4)) && keeper.due(stamp(5)), "retried, with growing pauses");
    let text = TrustBundle::write(&[ca.der()], 5).into_bytes();
    assert_eq!(keeper.fetched(Ok(text.clone()), stamp(5)).unwrap(), Some(Swap::Bundle));
    assert!(!keeper.due(stamp(300)) && keeper.due(stamp(305)), "the refresh hint");
    assert_eq!(keeper.fetched(Ok(text), stamp(305)).unwrap(), None, "the same bundle is no exchange");
    assert!(keeper.fetched(Ok(TrustBundle::write(&[ca.der()], 4).into_bytes()), stamp(700)).is_err());
    assert!(keeper.fetched(Err("down".to_owned()), stamp(800)).is_err());
    assert_eq!(keeper.bundle().unwrap().sequence, 5);

    let mut offline = files.keeper(uri());
    offline.look();
    assert_eq!(offline.material().unwrap().bundle.sequence, 5, "from the cache");
    let rolled_back = offline.fetched(Ok(TrustBundle::write(&[ca.der()], 4).into_bytes()), stamp(0));
    assert!(rolled_back.is_err(), "refused across restarts, too");
}
