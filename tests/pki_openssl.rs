//! Certificates, revocation lists and requests against the openssl command: a second pair of eyes that nobody here wrote.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fieldgate::model::{ClockTrust, DeviceId};
use fieldgate::platform::clock::{Clock, ManualClock, SharedClock, SystemClock};
use fieldgate::security::pki::{
    Alarm, CertificateRequest, ClientSubject, Keeper, KeeperEvent, Pki, PkiConfig, PkiError, Reason, ServerNames,
    Status, SwappedCertificate, VerifyError, make_request,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn openssl(directory: &Path, arguments: &[&str]) -> Output {
    Command::new("openssl").current_dir(directory).args(arguments).output().expect("openssl is installed")
}

fn succeeds(directory: &Path, arguments: &[&str]) -> String {
    let output = openssl(directory, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {text}");
    text
}

fn refused(directory: &Path, arguments: &[&str]) -> String {
    let output = openssl(directory, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "openssl {arguments:?} should fail: {text}");
    text
}

fn device(name: &str) -> ClientSubject {
    ClientSubject::Device(DeviceId::new(name).unwrap())
}

fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
}

struct Plant {
    directory: tempfile::TempDir,
    clock: Arc<ManualClock>,
    pki: Pki,
}

impl Plant {
    /// A plant whose clock shows the real time, because openssl looks at that one.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = ManualClock::at(SystemClock::default().wall_ms());
        let pki = Pki::create(PkiConfig::new(directory.path()), "Plant 7 CA", clock.clone()).unwrap();
        Self { directory, clock, pki }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn reopen(&self) -> Pki {
        Pki::open(PkiConfig::new(self.path()), self.clock.clone()).unwrap()
    }

    fn keeper(&self) -> (Keeper, fieldgate::security::pki::Watches) {
        let names = ServerNames::of_host("gw-7").unwrap();
        Keeper::new(self.reopen(), BTreeMap::from([("mqtt".to_owned(), names)]), self.clock.clone()).unwrap()
    }
}

#[test]
fn openssl_verifies_server_and_device_certificates_and_sees_the_revocation() {
    let mut plant = Plant::new();
    let names = ServerNames::of_host("gw-7").unwrap().with_name("10.1.2.3").unwrap();
    plant.pki.issue_server("mqtt", &names).unwrap();
    let issued = plant.pki.issue_client(&device("pump-1")).unwrap();
    let path = plant.path().to_owned();
    std::fs::write(path.join("pump.pem"), &issued.chain_pem).unwrap();
    let server = "server/mqtt/current/cert.pem";
    succeeds(
        &path,
        &["verify", "-x509_strict", "-purpose", "sslserver", "-verify_ip", "10.1.2.3", "-CAfile", "ca/ca.pem", server],
    );
    succeeds(
        &path,
        &[
            "verify",
            "-x509_strict",
            "-purpose",
            "sslserver",
            "-verify_hostname",
            "gw-7",
            "-CAfile",
            "ca/ca.pem",
            server,
        ],
    );
    refused(&path, &["verify", "-purpose", "sslclient", "-CAfile", "ca/ca.pem", server]);
    let with_list = [
        "verify",
        "-x509_strict",
        "-purpose",
        "sslclient",
        "-crl_check",
        "-CRLfile",
        "crl.pem",
        "-CAfile",
        "ca/ca.pem",
        "pump.pem",
    ];
    succeeds(&path, &with_list);
    let text = succeeds(&path, &["x509", "-in", "pump.pem", "-noout", "-text"]);
    assert!(text.contains("URI:urn:fieldgate:device:pump-1") && text.contains("CN = pump-1"), "{text}");

    plant.pki.revoke(&issued.entry.serial, Reason::KeyCompromise).unwrap();
    assert!(refused(&path, &with_list).contains("certificate revoked"));
    let list = succeeds(&path, &["crl", "-in", "crl.pem", "-noout", "-text", "-CAfile", "ca/ca.pem"]);
    assert!(list.contains("verify OK") && list.contains("Key Compromise"), "{list}");
    assert!(list.to_lowercase().contains(&issued.entry.serial.to_string()), "{list}");
    assert_eq!(plant.pki.status(&issued.entry), Status::Revoked);
}

#[test]
fn a_device_keeps_its_own_key_whatever_its_request_wishes() {
    let mut plant = Plant::new();
    let path = plant.path().to_owned();
    let subject = "/CN=admin/O=wishes";
    let extension = "subjectAltName=URI:urn:fieldgate:user:admin,DNS:gw-7";
    for (kind, option, accepted) in [
        ("EC", "ec_paramgen_curve:P-256", true),
        ("EC", "ec_paramgen_curve:P-384", true),
        ("RSA", "rsa_keygen_bits:2048", true),
        ("RSA", "rsa_keygen_bits:1024", false),
        ("EC", "ec_paramgen_curve:secp256k1", false),
    ] {
        succeeds(&path, &["genpkey", "-algorithm", kind, "-pkeyopt", option, "-out", "own.key"]);
        succeeds(&path, &["req", "-new", "-key", "own.key", "-subj", subject, "-addext", extension, "-out", "own.csr"]);
        let request = CertificateRequest::from_pem(&std::fs::read_to_string(path.join("own.csr")).unwrap());
        assert_eq!(request.is_ok(), accepted, "{kind} {option}: {request:?}");
        let Ok(request) = request else { continue };
        assert_eq!(request.wished_name.as_deref(), Some("admin"));
        let issued = plant.pki.sign_request(&device("pump-2"), &request).unwrap();
        assert!(issued.key_pem.is_none());
        std::fs::write(path.join("own.pem"), &issued.chain_pem).unwrap();
        succeeds(&path, &["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "ca/ca.pem", "own.pem"]);
        let text = succeeds(&path, &["x509", "-in", "own.pem", "-noout", "-text"]);
        assert!(text.contains("CN = pump-2") && !text.contains("admin") && !text.contains("gw-7"), "{text}");
        let identity = plant.pki.verify(&chain(&issued.chain_pem)).unwrap();
        assert_eq!((identity.subject, identity.key), (device("pump-2"), request.key));
        assert!(matches!(plant.pki.renew(&issued.entry.serial), Err(PkiError::NeedsRequest(_))));
    }
}

#[test]
fn our_own_requests_are_read_by_openssl() {
    let directory = tempfile::tempdir().unwrap();
    let (request, key) = make_request("gw-7", None).unwrap();
    std::fs::write(directory.path().join("r.der"), &request).unwrap();
    std::fs::write(directory.path().join("r.key"), key.expose()).unwrap();
    let text = succeeds(directory.path(), &["req", "-inform", "DER", "-in", "r.der", "-verify", "-noout", "-text"]);
    assert!(text.contains("CN = gw-7") && text.contains("prime256v1"), "{text}");
    succeeds(directory.path(), &["pkey", "-in", "r.key", "-check", "-noout"]);
}

#[test]
fn an_authority_that_the_plant_brings_along_signs_and_a_wrong_one_is_refused_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let root = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-384",
        "-nodes",
        "-subj",
        "/O=Plant GmbH/CN=Root",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
        "-days",
        "900",
        "-keyout",
        "root.key",
        "-out",
        "root.pem",
    ];
    succeeds(path, &root);
    std::fs::write(path.join("ca.ext"), "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n").unwrap();
    succeeds(
        path,
        &[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/C=DE/O=Plant GmbH/CN=Issuing 1",
            "-keyout",
            "issuing.key",
            "-out",
            "issuing.csr",
        ],
    );
    succeeds(
        path,
        &[
            "x509",
            "-req",
            "-in",
            "issuing.csr",
            "-CA",
            "root.pem",
            "-CAkey",
            "root.key",
            "-CAcreateserial",
            "-days",
            "800",
            "-extfile",
            "ca.ext",
            "-out",
            "issuing.pem",
        ],
    );
    let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    let bundle = read("issuing.pem") + &read("root.pem");
    let clock: SharedClock = SystemClock::shared();
    let import =
        |name: &str, chain: &str, key: &str| Pki::import(PkiConfig::new(&path.join(name)), chain, key, clock.clone());

    let mut pki = import("good", &bundle, &read("issuing.key")).unwrap();
    let issued = pki.issue_client(&device("pump-1")).unwrap();
    std::fs::write(path.join("pump.pem"), &issued.chain_pem).unwrap();
    succeeds(
        path,
        &[
            "verify",
            "-x509_strict",
            "-purpose",
            "sslclient",
            "-CAfile",
            "root.pem",
            "-untrusted",
            "pump.pem",
            "pump.pem",
        ],
    );
    assert_eq!(pki.verify(&chain(&issued.chain_pem)).unwrap().subject, device("pump-1"));
    pki.revoke(&issued.entry.serial, Reason::Unspecified).unwrap();
    let checked = [
        "verify",
        "-crl_check",
        "-CRLfile",
        "good/crl.pem",
        "-CAfile",
        "root.pem",
        "-untrusted",
        "pump.pem",
        "pump.pem",
    ];
    assert!(refused(path, &checked).contains("certificate revoked"));
    assert_eq!(pki.verify(&chain(&issued.chain_pem)), Err(VerifyError::Revoked));
    let long = pki.authority().validity().not_after;
    assert!(issued.entry.validity.not_after <= long, "nothing outlives its authority");

    let reason = |result: Result<Pki, PkiError>| result.unwrap_err().to_string();
    assert!(reason(import("x1", &bundle, &read("root.key"))).contains("key does not belong"));
    assert!(
        reason(import("x2", &(read("root.pem") + &read("issuing.pem")), &read("root.key")))
            .contains("not signed by the next one")
    );
    assert!(reason(import("x3", &issued.chain_pem, &read("issuing.key"))).contains("do not say CA"));
    assert!(reason(import("x4", "nothing", &read("root.key"))).contains("CERTIFICATE block"));
    assert!(matches!(import("good", &bundle, &read("issuing.key")), Err(PkiError::Exists(_))));
    assert!(!Pki::exists(&path.join("x1")), "a refused import leaves no authority behind");
}

#[test]
fn openssl_s_client_and_a_rustls_server_meet_with_our_certificates_before_and_after_a_swap() {
    let mut plant = Plant::new();
    let issued = plant.pki.issue_client(&device("pump-1")).unwrap();
    let path = plant.path().to_owned();
    std::fs::write(path.join("pump.pem"), &issued.chain_pem).unwrap();
    std::fs::write(path.join("pump.key"), issued.key_pem.as_ref().unwrap().expose()).unwrap();
    let (mut keeper, watches) = plant.keeper();
    let resolver = Arc::new(SwappedCertificate::new(watches.servers["mqtt"].clone()).unwrap());
    let trust = watches.trust.borrow().clone();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trust.anchor.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .with_crls([trust.list.der.clone()])
        .build()
        .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let accept = |listener: &TcpListener| {
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut session = rustls::ServerConnection::new(config.clone()).unwrap();
        let mut tls = rustls::Stream::new(&mut session, &mut socket);
        let mut hello = [0; 5];
        let done = tls.read_exact(&mut hello).and_then(|()| tls.write_all(b"world"));
        let leaf = session.peer_certificates().map(|chain| chain[0].clone().into_owned());
        done.map(|()| leaf)
    };
    let connect = |with_certificate: bool| {
        let mut command = Command::new("openssl");
        command.current_dir(&path).args([
            "s_client",
            "-quiet",
            "-verify_return_error",
            "-verify_hostname",
            "localhost",
        ]);
        command.args(["-CAfile", "ca/ca.pem", "-connect", &address]);
        if with_certificate {
            command.args(["-cert", "pump.pem", "-key", "pump.key"]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let first = watches.servers["mqtt"].borrow().serial.clone();
    for swapped in [false, true] {
        let mut client = connect(true);
        client.stdin.as_mut().unwrap().write_all(b"hello").unwrap();
        let leaf = accept(&listener).unwrap().expect("the client showed a certificate");
        assert_eq!(plant.pki.verify(&[leaf]).unwrap().subject, device("pump-1"));
        let output = client.wait_with_output().unwrap();
        assert!(output.stdout.ends_with(b"world"), "{}", String::from_utf8_lossy(&output.stderr));
        if !swapped {
            plant.clock.advance(YEAR.mul_f64(0.71));
            let events = keeper.tick();
            assert!(
                events.iter().any(|event| matches!(event, KeeperEvent::Renewed { slot, .. } if slot == "mqtt")),
                "{events:?}"
            );
            assert_ne!(watches.servers["mqtt"].borrow().serial, first);
            // openssl lives in the real present, where the certificate of the future is not valid: step back.
            plant.clock.step_wall(-(YEAR.mul_f64(0.71).as_millis() as i64));
            let events = keeper.tick();
            assert!(events.iter().any(|event| matches!(event, KeeperEvent::Renewed { .. })), "{events:?}");
        }
    }
    let mut stranger = connect(false);
    stranger.stdin.as_mut().unwrap().write_all(b"hello").unwrap();
    assert!(accept(&listener).is_err(), "no certificate, no entry");
    stranger.wait_with_output().unwrap();
}

#[test]
fn the_keeper_renews_between_60_and_70_percent_and_alarms_when_it_cannot() {
    let plant = Plant::new();
    let (mut keeper, watches) = plant.keeper();
    let first = watches.servers["mqtt"].borrow().serial.clone();
    let mut renewed_at = None;
    for day in 1..=365u32 {
        plant.clock.advance(Duration::from_secs(86_400));
        let events = keeper.tick();
        if renewed_at.is_none() && events.iter().any(|event| matches!(event, KeeperEvent::Renewed { .. })) {
            renewed_at = Some(day);
        }
        assert!(!events.iter().any(|event| matches!(event, KeeperEvent::Failed { .. })), "{events:?}");
    }
    let day = renewed_at.expect("renewed within a year");
    assert!((365 * 6 / 10..=365 * 7 / 10 + 1).contains(&day), "day {day}");
    assert_ne!(watches.servers["mqtt"].borrow().serial, first);
    let list = watches.trust.borrow().list.clone();
    assert!(list.number > 80, "twice a week for a year, not {}", list.number);
    assert!(list.next_update * 1_000 > plant.clock.wall_ms());
}

#[test]
fn a_clock_in_1970_or_far_in_the_future_neither_expires_nor_renews() {
    let mut plant = Plant::new();
    let issued = plant.pki.issue_client(&device("pump-1")).unwrap();
    let (mut keeper, watches) = plant.keeper();
    keeper.tick();
    let serial = watches.servers["mqtt"].borrow().serial.clone();
    let now = plant.clock.wall_ms();

    plant.clock.set_trust(ClockTrust::Unsynchronised);
    plant.clock.step_wall(-now);
    assert_eq!(keeper.tick(), [], "1970");
    assert_eq!(plant.pki.verify(&chain(&issued.chain_pem)).unwrap().subject, device("pump-1"), "still believed");
    assert!(matches!(plant.pki.issue_client(&device("pump-9")), Err(PkiError::ClockNotSet)));
    assert!(plant.pki.revoke(&issued.entry.serial, Reason::Superseded).is_ok(), "revoking needs no clock");

    plant.clock.set_trust(ClockTrust::Holdover);
    plant.clock.step_wall(now + 73 * 365 * 86_400_000);
    for _ in 0..10 {
        let events = keeper.tick();
        assert!(
            !events.iter().any(|event| matches!(event, KeeperEvent::Renewed { .. } | KeeperEvent::Alarm { .. })),
            "{events:?}"
        );
        plant.clock.advance(Duration::from_secs(60));
    }
    assert_eq!(watches.servers["mqtt"].borrow().serial, serial);

    plant.clock.set_trust(ClockTrust::Synchronised);
    plant.clock.step_wall(-73 * 365 * 86_400_000);
    keeper.tick();
    assert_eq!(watches.servers["mqtt"].borrow().serial, serial, "all is as it was");
}

#[test]
fn a_gateway_that_starts_in_1970_gets_a_provisional_certificate_and_a_real_one_when_the_clock_is_set() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(5_000);
    clock.set_trust(ClockTrust::Unsynchronised);
    let pki = Pki::create(PkiConfig::new(directory.path()), "Plant", clock.clone()).unwrap();
    let names = ServerNames::of_host("gw-7").unwrap();
    let listeners = BTreeMap::from([("mqtt".to_owned(), names)]);
    let (mut keeper, watches) = Keeper::new(pki, listeners, clock.clone()).unwrap();
    assert!(!keeper.tick().iter().any(|event| matches!(event, KeeperEvent::Renewed { .. })));
    let provisional = watches.servers["mqtt"].borrow().validity;
    let today = SystemClock::default().wall_ms();
    assert!(provisional.contains(today / 1_000), "clients with a right clock accept it");
    clock.set_trust(ClockTrust::Synchronised);
    clock.step_wall(today);
    assert!(keeper.tick().iter().any(|event| matches!(event, KeeperEvent::Renewed { .. })));
    let real = watches.servers["mqtt"].borrow().validity;
    assert!(real.life() < 370 * 86_400 && real.contains(today / 1_000));
    assert!(!keeper.tick().iter().any(|event| matches!(event, KeeperEvent::Renewed { .. })), "once");
}

#[test]
fn a_device_certificate_alarms_at_half_a_fifth_and_a_twentieth_and_a_renewal_clears_it() {
    let mut plant = Plant::new();
    let issued = plant.pki.issue_client(&device("pump-1")).unwrap();
    let (mut keeper, _watches) = plant.keeper();
    let mut seen = Vec::new();
    let pump = |events: Vec<KeeperEvent>| -> Vec<Alarm> {
        let alarms = events.into_iter().filter_map(|event| match event {
            KeeperEvent::Alarm { subject, change, .. } if subject == "pump-1" => Some(change.to),
            _ => None,
        });
        alarms.collect()
    };
    for _ in 0..=366 {
        seen.extend(pump(keeper.tick()));
        plant.clock.advance(Duration::from_secs(86_400));
    }
    assert_eq!(seen, [Alarm::Half, Alarm::Fifth, Alarm::Twentieth, Alarm::Expired]);
    plant.pki.renew(&issued.entry.serial).unwrap();
    assert_eq!(pump(keeper.tick()), [Alarm::None]);
}

#[test]
fn keys_are_private_from_their_first_moment_and_never_printed() {
    use std::os::unix::fs::PermissionsExt;
    let mut plant = Plant::new();
    plant.pki.issue_server("mqtt", &ServerNames::of_host("gw-7").unwrap()).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&plant.path().join("ca")), 0o700);
    assert_eq!(mode(&plant.path().join("server/mqtt/current/")), 0o700);
    assert_eq!(mode(&plant.path().join("ca/ca.key")), 0o600);
    assert_eq!(mode(&plant.path().join("server/mqtt/current/key.pem")), 0o600);
    let issued = plant.pki.issue_client(&device("pump-1")).unwrap();
    let printed = format!("{:?} {:?} {:?}", plant.pki, issued, plant.pki.server("mqtt"));
    let secret = issued.key_pem.unwrap();
    let ca = std::fs::read_to_string(plant.path().join("ca/ca.key")).unwrap();
    let line = |pem: &str| pem.lines().nth(1).unwrap().to_owned();
    assert!(!printed.contains(&line(secret.expose())) && !printed.contains(&line(&ca)));
    assert!(printed.contains("\"…\""));
    std::fs::set_permissions(plant.path().join("ca/ca.key"), PermissionsExt::from_mode(0o640)).unwrap();
    let error = Pki::open(PkiConfig::new(plant.path()), plant.clock.clone()).unwrap_err();
    assert_eq!(error.code(), "key-exposed");
}

#[test]
fn revocations_survive_a_damaged_inventory_and_two_processes_do_not_collide() {
    let mut plant = Plant::new();
    let mut other = plant.reopen();
    let one = plant.pki.issue_client(&device("pump-1")).unwrap();
    let two = other.issue_client(&device("pump-2")).unwrap();
    other.revoke(&one.entry.serial, Reason::KeyCompromise).unwrap();
    plant.pki.revoke(&two.entry.serial, Reason::KeyCompromise).unwrap();
    assert_eq!(plant.pki.book().revoked().count(), 2);
    let path = plant.path().join("inventory.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let damaged: String = text.lines().map(|line| line.replace("\"revoked\"", "\"revokxd\"") + "\n").collect();
    std::fs::write(&path, damaged).unwrap();
    let reopened = plant.reopen();
    assert!(reopened.book().is_revoked(&one.entry.serial) && reopened.book().is_revoked(&two.entry.serial));
    assert_eq!(reopened.verify(&chain(&one.chain_pem)), Err(VerifyError::Revoked));
}
