//! Keys, chains and names that openssl made: what else than our own library issues is believed or refused by the same rules.

use std::path::Path;
use std::process::Command;

use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

use super::*;

/// A directory in which openssl makes authorities and SVIDs.
struct Openssl(tempfile::TempDir);

impl Openssl {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn run(&self, arguments: &[&str]) {
        let output = Command::new("openssl").current_dir(self.0.path()).args(arguments).output();
        let output = output.expect("openssl is installed");
        assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn key(&self, name: &str, kind: &[&str]) {
        self.run(&[&["genpkey", "-out", &format!("{name}.key")], kind].concat());
    }

    fn der(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.0.path().join(format!("{name}.pem"))).unwrap()
    }

    /// A root with a key of that kind.
    fn root(&self, name: &str, kind: &[&str]) -> CertificateDer<'static> {
        self.key(name, kind);
        let (key, out, subject) = (format!("{name}.key"), format!("{name}.pem"), format!("/CN={name}"));
        let extensions = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"];
        let request = ["req", "-x509", "-new", "-key", &key, "-out", &out, "-subj", &subject, "-days", "30"];
        self.run(&[&request[..], &extensions[..]].concat());
        self.der(name)
    }

    /// The fleet manager's SVID with a key of that kind, signed by `root` as `more` says.
    fn leaf(&self, name: &str, kind: &[&str], root: &str, more: &[&str]) -> CertificateDer<'static> {
        self.key(name, kind);
        let (key, csr, out) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        let (ca, ca_key, extensions) = (format!("{root}.pem"), format!("{root}.key"), format!("{name}.ext"));
        self.run(&["req", "-new", "-key", &key, "-out", &csr, "-subj", "/CN=wfm"]);
        let text = format!("subjectAltName=URI:{WFM}\nkeyUsage=critical,digitalSignature\nbasicConstraints=CA:FALSE\n");
        std::fs::write(self.0.path().join(&extensions), text).unwrap();
        let sign = ["x509", "-req", "-in", &csr, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-days", "7"];
        self.run(&[&sign[..], &["-extfile", &extensions, "-out", &out], more].concat());
        self.der(name)
    }

    fn now(&self) -> i64 {
        let made = std::fs::metadata(Path::new(self.0.path())).unwrap().modified().unwrap();
        made.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64 + 1
    }

    fn verdict(&self, leaf: CertificateDer<'static>, root: CertificateDer<'static>) -> Result<(), SvidError> {
        let bundle = TrustBundle::parse(TrustBundle::write(&[root], 1).as_bytes()).unwrap();
        verify_svid(&[leaf], &bundle, &wfm(), self.now())
    }
}

const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
const P521: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"];
const RSA_2048: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
const RSA_3072: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"];

#[test]
fn keys_of_rsa_from_3072_bits_are_accepted_and_smaller_ones_and_other_curves_refused() {
    let openssl = Openssl::new();
    let root = openssl.root("root", P256);
    let accepted = openssl.leaf("rsa3072", RSA_3072, "root", &[]);
    assert_eq!(openssl.verdict(accepted, root.clone()), Ok(()));
    for (name, kind, words) in [("rsa2048", RSA_2048, "2048 bits"), ("p521", P521, "curve")] {
        let outcome = openssl.verdict(openssl.leaf(name, kind, "root", &[]), root.clone());
        assert!(matches!(&outcome, Err(SvidError::Key(what)) if what.contains(words)), "{name}: {outcome:?}");
    }
}

#[test]
fn a_key_of_our_own_that_cannot_be_used_says_which_can() {
    let openssl = Openssl::new();
    openssl.root("root", P256);
    for (name, kind) in [("p521", P521), ("pss", &["-algorithm", "RSA-PSS"][..])] {
        openssl.leaf(name, kind, "root", &[]);
        let read = |file: String| std::fs::read_to_string(openssl.0.path().join(file)).unwrap();
        let error = OwnSvid::from_pem(&read(format!("{name}.pem")), &read(format!("{name}.key"))).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("our own SVID: private key") && text.contains("take ECDSA P-256"), "{name}: {text}");
    }
}

#[test]
fn certificates_signed_with_rsa_by_pss_and_by_pkcs1_are_accepted() {
    let openssl = Openssl::new();
    let root = openssl.root("root", RSA_3072);
    let pkcs1 = openssl.leaf("pkcs1", P256, "root", &["-sha256"]);
    let pss = ["-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"];
    let pss = openssl.leaf("pss", P256, "root", &pss);
    assert_eq!(openssl.verdict(pkcs1, root.clone()), Ok(()));
    assert_eq!(openssl.verdict(pss, root), Ok(()));
}

#[test]
fn an_anchor_with_a_weak_key_is_none() {
    let openssl = Openssl::new();
    let (weak, good) = (openssl.root("weak", RSA_2048), openssl.root("good", P256));
    let bundle = |anchors: &[CertificateDer<'_>]| TrustBundle::parse(TrustBundle::write(anchors, 1).as_bytes());
    assert_eq!(bundle(std::slice::from_ref(&weak)).unwrap_err(), BundleError::Empty);
    let both = bundle(&[weak, good.clone()]).unwrap();
    assert_eq!((both.anchors(), both.ignored()), (&[good][..], 1));
}

#[test]
fn host_names_play_no_part() {
    let ca = Ca::new("root");
    let (leaf, _) = ca.leaf(&[WFM], |_| {});
    let other = ca.web_server("wfm.plant.example");
    let verifier = WfmVerifier::new(Arc::new(ca.bundle(1)), wfm());
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW as u64));
    for host in ["wfm.plant.example", "anything.example", "192.0.2.7"] {
        let name = ServerName::try_from(host).unwrap();
        assert!(verifier.verify_server_cert(&leaf, &[], &name, &[], now).is_ok(), "{host}");
        assert!(verifier.verify_server_cert(&other, &[], &name, &[], now).is_err(), "{host}: a name is no identity");
    }
}

#[test]
fn revocation_lists_that_a_certificate_names_are_not_asked_for() {
    use rcgen::CrlDistributionPoint;
    let point = CrlDistributionPoint { uris: vec!["https://crl.invalid/list".to_owned()] };
    assert_eq!(verdict(&[WFM], |params| params.crl_distribution_points = vec![point]), Ok(()));
}

#[test]
fn an_intermediate_whose_time_is_over_is_refused_and_named() {
    let root = Ca::new("root");
    let mut below = Ca::new("below");
    below.params.not_after = when(NOW - 1);
    below.der = below.params.signed_by(&below.key, &root.issuer()).unwrap().der().clone();
    let (leaf, _) = below.leaf(&[WFM], |_| {});
    let outcome = verify_svid(&[leaf, below.der()], &root.bundle(1), &wfm(), NOW).unwrap_err();
    assert!(outcome.code() == "expired" && outcome.to_string().contains("below"), "{outcome}");
}
