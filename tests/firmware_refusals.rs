//! What is not let in, with its stable code; how bytes come; approvals and windows; openssl as a second signer.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod firmware_support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use fieldgate::management::firmware::{
    Approval, Delivered, FirmwareError, HttpFetch, Job, Manifest, MemoryJournal, Offer, Policy, Proof, SigningKey,
    Source, Stage, Target, TargetError, TrustedKeys, Updater, UpdaterConfig, Version, Window,
};
use fieldgate::platform::clock::ManualClock;
use fieldgate::platform::durable::Disk;
use firmware_support::{Builder, Web, file_url, web};

/// A target that takes everything at once, and remembers.
#[derive(Debug)]
struct Shelf {
    current: Version,
    installed: Option<Vec<u8>>,
}

impl Target for Shelf {
    fn name(&self) -> &str {
        "shelf"
    }

    async fn current(&mut self) -> Result<Option<Version>, TargetError> {
        Ok(Some(self.current.clone()))
    }

    async fn install(&mut self, _: &Job, artifact: &Path) -> Result<Delivered, TargetError> {
        self.installed = Some(std::fs::read(artifact).unwrap());
        Ok(Delivered::Installed)
    }

    async fn prove(&mut self, _: &Job) -> Result<Proof, TargetError> {
        Ok(Proof::Healthy)
    }
}

type Shop = Updater<Shelf, HttpFetch, MemoryJournal>;

struct Bench {
    directory: tempfile::TempDir,
    builder: Builder,
    clock: Arc<ManualClock>,
    journal: MemoryJournal,
    artifact: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let directory = firmware_support::fast_directory();
        let artifact = directory.path().join("artifact");
        let content: Vec<u8> = (0..700_000u32).flat_map(|n| [((n * 31) >> 3) as u8]).collect();
        std::fs::write(&artifact, content).unwrap();
        let clock = ManualClock::at(1_795_219_200_000);
        Self { directory, builder: Builder::new(), clock, journal: MemoryJournal::default(), artifact }
    }

    fn config(&self) -> UpdaterConfig {
        UpdaterConfig {
            target: "shelf-1".to_owned(),
            directory: self.directory.path().join("firmware"),
            policy: self.builder.policy(),
            window: None,
            rate: None,
            disk: Disk::default(),
        }
    }

    fn updater(&self, config: UpdaterConfig) -> Shop {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let shelf = Shelf { current: Version::parse("1.5.0").unwrap(), installed: None };
        Updater::new(config, shelf, HttpFetch::new(tls).unwrap(), self.journal.clone(), self.clock.clone()).unwrap()
    }

    fn manifest(&self, version: &str) -> Manifest {
        self.builder.manifest("shelf", version, &self.artifact)
    }

    fn offer(&self, manifest: &Manifest) -> Offer {
        self.builder.offer("o-1", manifest, file_url(&self.artifact))
    }
}

/// Steps until nothing is to be done; returns how long was waited.
async fn settle(updater: &mut Shop) -> Duration {
    let mut waited = Duration::ZERO;
    for _ in 0..2_000 {
        match updater.step().await.unwrap() {
            None => return waited,
            Some(pause) => waited += pause,
        }
        if updater.stage().is_final() {
            return waited;
        }
    }
    panic!("it never settles: {:?}", updater.job());
}

fn ann() -> Approval {
    Approval::Operator("ann".to_owned())
}

async fn approved(updater: &mut Shop, offer: Offer) -> (Stage, Option<String>) {
    let id = offer.id.clone();
    updater.offer(offer).await.unwrap();
    updater.approve(&id, ann()).unwrap();
    settle(updater).await;
    (updater.stage(), updater.job().unwrap().code.clone())
}

#[tokio::test]
async fn what_may_not_in_is_refused_before_anything_is_fetched_each_with_its_own_code() {
    let bench = Bench::new();
    let good = bench.manifest("2.0.0");
    let offer = |manifest: &Manifest| bench.offer(manifest);
    let text = |manifest: String| Offer { manifest, ..bench.offer(&good) };
    let stranger = SigningKey::generate().unwrap();
    let cases = [
        ("unsigned", text(good.to_text())),
        ("bad-signature", text(good.sign(&stranger))),
        ("bad-signature", text(good.sign(&bench.builder.key).replace("2.0.0", "2.0.1"))),
        ("malformed", text("hello".to_owned())),
        ("older", offer(&bench.manifest("1.4.9"))),
        ("same", offer(&bench.manifest("1.5"))),
        ("wrong-target", offer(&Manifest { target: "other".to_owned(), ..good.clone() })),
        ("too-large", offer(&Manifest { size: 1 << 40, ..good.clone() })),
        ("needs-intermediate", offer(&Manifest { min_version: Some(Version::parse("1.8").unwrap()), ..good.clone() })),
    ];
    for (code, offer) in cases {
        let mut updater = bench.updater(bench.config());
        let error = updater.offer(offer).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert_eq!(updater.stage(), Stage::Idle);
        assert!(!bench.directory.path().join("firmware").exists(), "{code} left something behind");
    }
    let mut keyless = bench
        .updater(UpdaterConfig { policy: Policy { keys: TrustedKeys::default(), limit: 1 << 30 }, ..bench.config() });
    assert_eq!(keyless.offer(bench.offer(&good)).await.unwrap_err().code(), "no-keys");
    let mut updater = bench.updater(bench.config());
    let downgrade = Offer { allow_downgrade: true, ..bench.offer(&bench.manifest("1.4.9")) };
    assert_eq!(approved(&mut updater, downgrade).await, (Stage::Done, None), "allowed is allowed");
}

#[tokio::test]
async fn wrong_bytes_are_refused_after_the_transfer_and_never_installed() {
    let bench = Bench::new();
    let good = bench.manifest("2.0.0");
    let original = std::fs::read(&bench.artifact).unwrap();
    let mut flipped = original.clone();
    flipped[350_000] ^= 1;
    let longer = [&original[..], b"more"].concat();
    let cases = [("truncated", original[..600_000].to_vec()), ("wrong-digest", flipped), ("too-long", longer)];
    for (code, content) in cases {
        std::fs::write(&bench.artifact, &content).unwrap();
        let mut updater = bench.updater(bench.config());
        let offer = Offer { id: code.to_owned(), ..bench.offer(&good) };
        assert_eq!(approved(&mut updater, offer).await, (Stage::Refused, Some(code.to_owned())));
        assert_eq!(updater.target().installed, None);
    }
}

#[tokio::test]
async fn what_waits_on_the_disk_is_checked_again_before_installation() {
    for (code, spoil) in [("wrong-digest", true), ("bad-signature", false)] {
        let bench = Bench::new();
        let mut updater = bench.updater(bench.config());
        updater.offer(bench.offer(&bench.manifest("2.0.0"))).await.unwrap();
        updater.approve("o-1", ann()).unwrap();
        while updater.stage() != Stage::Verified {
            updater.step().await.unwrap();
        }
        let mut config = bench.config();
        if spoil {
            let job = updater.job().unwrap();
            let path = config.directory.join(format!("incoming/shelf-1/{}.part", job.sha256));
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[9] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        } else {
            // The key is withdrawn while the job waits, and the gateway restarts with the new configuration.
            let others = SigningKey::generate().unwrap().public_pem();
            config.policy.keys = TrustedKeys::from_pem(&others).unwrap();
        }
        let mut updater = bench.updater(config);
        settle(&mut updater).await;
        assert_eq!((updater.stage(), updater.job().unwrap().code.as_deref()), (Stage::Refused, Some(code)));
        assert_eq!(updater.target().installed, None);
    }
}

#[tokio::test]
async fn a_download_that_breaks_goes_on_where_it_was_and_one_without_ranges_begins_again() {
    let bench = Bench::new();
    let body = std::fs::read(&bench.artifact).unwrap();
    let scripts: [(Vec<Web>, bool); 4] = [
        (vec![], true),
        (vec![Web::CutAfter(300_000), Web::Status(503), Web::CutAfter(100_000)], true),
        (vec![Web::CutAfter(300_000), Web::NoRanges], true),
        (vec![Web::Status(404)], false),
    ];
    for (number, (script, arrives)) in scripts.into_iter().enumerate() {
        let (url, asked) = web(body.clone(), script.clone()).await;
        let mut updater = bench.updater(bench.config());
        let offer =
            Offer { id: format!("web-{number}"), source: Source::Url(url), ..bench.offer(&bench.manifest("2.0.0")) };
        let (stage, code) = approved(&mut updater, offer).await;
        let asked = asked.lock().unwrap().clone();
        if arrives {
            assert_eq!((stage, code), (Stage::Done, None), "{script:?}");
            assert!(updater.target().installed.as_ref() == Some(&body));
        } else {
            assert_eq!((stage, code.as_deref()), (Stage::Failed, Some("cannot-fetch")), "{script:?}");
        }
        if number == 1 {
            assert!(asked[1] >= 256 * 1024 && asked[3] > asked[1], "resumed at {asked:?}");
        }
    }
}

#[tokio::test]
async fn a_download_keeps_its_rate() {
    let bench = Bench::new();
    let mut updater = bench.updater(UpdaterConfig { rate: Some(100_000), ..bench.config() });
    updater.offer(bench.offer(&bench.manifest("2.0.0"))).await.unwrap();
    updater.approve("o-1", ann()).unwrap();
    let waited = settle(&mut updater).await;
    assert!((Duration::from_secs(6)..Duration::from_secs(8)).contains(&waited), "700 kB at 100 kB/s in {waited:?}");
}

#[tokio::test]
async fn an_upload_takes_each_byte_once_in_order_and_survives_a_restart() {
    let bench = Bench::new();
    let body = std::fs::read(&bench.artifact).unwrap();
    let mut updater = bench.updater(bench.config());
    let offer = Offer { source: Source::Upload, ..bench.offer(&bench.manifest("2.0.0")) };
    updater.offer(offer).await.unwrap();
    assert_eq!(updater.chunk("o-1", 0, b"x").unwrap_err().code(), "out-of-order", "not before it is approved");
    updater.approve("o-1", ann()).unwrap();
    assert_eq!(updater.chunk("o-1", 0, &body[..100_000]).unwrap(), 100_000);
    assert_eq!(updater.chunk("o-1", 0, &body[..100_000]).unwrap(), 100_000, "again is answered again");
    assert!(matches!(updater.chunk("o-1", 200_000, b"x"), Err(FirmwareError::Expected(100_000))));
    assert_eq!(updater.chunk("other", 0, b"x").unwrap_err().code(), "no-job");
    drop(updater);
    let mut updater = bench.updater(bench.config());
    let mut offset = 100_000;
    while offset < body.len() {
        let end = (offset + 150_000).min(body.len());
        offset = updater.chunk("o-1", offset as u64, &body[offset..end]).unwrap() as usize;
    }
    settle(&mut updater).await;
    assert_eq!(updater.stage(), Stage::Done);
    assert!(updater.target().installed.as_ref() == Some(&body));
}

#[tokio::test]
async fn nothing_happens_without_a_word_and_a_window_is_a_word() {
    let bench = Bench::new();
    let mut updater = bench.updater(bench.config());
    updater.offer(bench.offer(&bench.manifest("2.0.0"))).await.unwrap();
    settle(&mut updater).await;
    assert_eq!(updater.stage(), Stage::Offered);
    let busy = Offer { id: "o-2".to_owned(), ..bench.offer(&bench.manifest("2.0.0")) };
    assert_eq!(updater.offer(busy.clone()).await.unwrap_err().code(), "busy");
    updater.reject("o-1", "bob").unwrap();
    assert_eq!(updater.job().unwrap().code.as_deref(), Some("rejected"));
    assert_eq!(updater.approve("o-1", ann()).unwrap_err().code(), "out-of-order");

    let window = Some(Window::parse("sat 02:00-03:00").unwrap());
    let mut updater = bench.updater(UpdaterConfig { window, ..bench.config() });
    updater.offer(Offer { in_window: true, ..busy }).await.unwrap();
    assert_eq!(updater.step().await.unwrap(), Some(Duration::from_secs(30)));
    assert_eq!(updater.stage(), Stage::Offered, "Saturday, but midnight");
    bench.clock.advance(Duration::from_secs(2 * 3_600));
    settle(&mut updater).await;
    assert_eq!((updater.stage(), updater.job().unwrap().approval.clone()), (Stage::Done, Some(Approval::Window)));
}

#[tokio::test]
async fn the_same_offer_twice_is_answered_twice_and_done_once() {
    let bench = Bench::new();
    let mut updater = bench.updater(bench.config());
    let offer = bench.offer(&bench.manifest("2.0.0"));
    assert_eq!(approved(&mut updater, offer.clone()).await.0, Stage::Done);
    updater.target().installed = None;
    assert_eq!(updater.offer(offer).await.unwrap().stage, Stage::Done);
    settle(&mut updater).await;
    assert_eq!(updater.target().installed, None);
}

#[test]
fn openssl_signs_for_us_and_verifies_what_we_sign() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let run = |arguments: &[&str]| {
        let output = Command::new("openssl").current_dir(path).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    std::fs::write(path.join("artifact"), b"bytes").unwrap();
    let ours = Builder::new();
    let manifest = ours.manifest("shelf", "2.0.0", &path.join("artifact"));
    std::fs::write(path.join("manifest"), manifest.to_text()).unwrap();

    run(&["genpkey", "-algorithm", "ed25519", "-out", "theirs.key"]);
    run(&["pkey", "-in", "theirs.key", "-pubout", "-out", "theirs.pub"]);
    run(&["pkeyutl", "-sign", "-rawin", "-inkey", "theirs.key", "-in", "manifest", "-out", "sig"]);
    run(&["base64", "-A", "-in", "sig", "-out", "sig.b64"]);
    let signed = format!("{}signature: {}\n", manifest.to_text(), read("sig.b64").trim());
    let trusted = TrustedKeys::from_pem(&read("theirs.pub")).unwrap();
    let parsed = fieldgate::management::firmware::SignedManifest::parse(&signed).unwrap();
    assert_eq!(parsed.verify(&trusted).unwrap().0, &manifest);
    assert_eq!(SigningKey::from_pem(&read("theirs.key")).unwrap().public_pem(), read("theirs.pub"));

    std::fs::write(path.join("ours.pub"), ours.key.public_pem()).unwrap();
    std::fs::write(path.join("ours.key"), ours.key.expose_pem()).unwrap();
    let signed = manifest.sign(&ours.key);
    let signature = signed.lines().last().unwrap().strip_prefix("signature: ").unwrap();
    std::fs::write(path.join("ours.b64"), signature).unwrap();
    run(&["base64", "-d", "-A", "-in", "ours.b64", "-out", "ours.sig"]);
    run(&["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", "ours.pub", "-in", "manifest", "-sigfile", "ours.sig"]);
    run(&["pkey", "-in", "ours.key", "-check", "-noout"]);
}
