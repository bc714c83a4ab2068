//! Enrolment and renewal of the gateway's own identity against a simulated EST server that misbehaves as scripted.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use fieldgate::platform::clock::{Clock, ManualClock, SystemClock};
use fieldgate::platform::durable::{Disk, Observer, Step};
use fieldgate::security::pki::est::{EstConfig, EstEvent, EstKeeper, certificates};
use fieldgate::security::pki::{BelievedTime, ServerIdentity};
use fieldgate_simulators::est::{EstServer, Fault, Options};
use tokio::sync::watch;

const LIFE: Duration = Duration::from_secs(100 * 86_400);
const TOKEN: &str = "MARKED-ENROLMENT-TOKEN";

struct Bench {
    directory: tempfile::TempDir,
    clock: Arc<ManualClock>,
    server: EstServer,
    happened: std::cell::RefCell<std::collections::VecDeque<EstEvent>>,
}

type Identity = watch::Receiver<Option<Arc<ServerIdentity>>>;

impl Bench {
    async fn new() -> Self {
        let credentials = Some(("gw".to_owned(), TOKEN.to_owned()));
        let options = Options { listen: "127.0.0.1:0".parse().unwrap(), credentials, life: LIFE };
        let clock = ManualClock::at(SystemClock::default().wall_ms());
        let server = EstServer::start(options).await.unwrap();
        Self { directory: tempfile::tempdir().unwrap(), clock, server, happened: Default::default() }
    }

    fn config(&self) -> EstConfig {
        EstConfig {
            url: self.server.url(),
            anchors_pem: self.server.root_pem(),
            token: Some(("gw".to_owned(), TOKEN.to_owned())),
            common_name: "gw-7".to_owned(),
            uri: None,
            directory: self.directory.path().join("identity"),
            disk: Disk::default(),
        }
    }

    fn keeper(&self, config: EstConfig) -> (EstKeeper, Identity) {
        EstKeeper::new(config, BelievedTime::new(self.clock.clone(), 0), self.clock.clone()).unwrap()
    }

    /// Steps, with the pauses skipped, until an event arrives.
    async fn next(&self, keeper: &mut EstKeeper) -> EstEvent {
        for _ in 0..20_000 {
            if let Some(event) = self.happened.borrow_mut().pop_front() {
                return event;
            }
            let (events, pause) = keeper.step().await;
            self.clock.advance(pause);
            self.happened.borrow_mut().extend(events);
        }
        panic!("nothing happened");
    }

    /// As [`Bench::next`], without alarms.
    async fn next_answer(&self, keeper: &mut EstKeeper) -> EstEvent {
        loop {
            match self.next(keeper).await {
                EstEvent::Alarm(_) => {}
                event => return event,
            }
        }
    }
}

fn code(event: &EstEvent) -> &str {
    match event {
        EstEvent::Failed { code, .. } => code,
        EstEvent::Pending(_) => "pending",
        EstEvent::Granted { .. } => "granted",
        EstEvent::Alarm(_) => "alarm",
    }
}

fn openssl(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl").current_dir(directory).args(arguments).output().expect("openssl is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {text}");
    text
}

#[tokio::test]
async fn the_gateway_enrols_with_a_token_and_renews_over_mutual_tls_between_40_and_60_percent() {
    let bench = Bench::new().await;
    let (mut keeper, identity) = bench.keeper(bench.config());
    let began = bench.clock.wall_ms();
    assert_eq!(code(&bench.next(&mut keeper).await), "granted");
    let first = identity.borrow().clone().unwrap();
    let directory = bench.directory.path().join("identity");
    openssl(
        &directory,
        &["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "cacerts.pem", "current/cert.pem"],
    );
    assert!(!directory.join("pending.key").exists(), "the open request is closed");
    let asked = bench.server.log();
    assert_eq!(asked.iter().map(|asked| asked.act.as_str()).collect::<Vec<_>>(), ["cacerts", "simpleenroll"]);
    assert_eq!(asked[1].credentials, Some(("gw".to_owned(), TOKEN.to_owned())));
    assert_eq!(asked[0].credentials, None, "the token is shown only where it is needed");

    bench.server.set_ahead(LIFE.mul_f64(0.39));
    assert_eq!(code(&bench.next_answer(&mut keeper).await), "granted");
    let elapsed = Duration::from_millis((bench.clock.wall_ms() - began).unsigned_abs());
    assert!((LIFE.mul_f64(0.39)..LIFE.mul_f64(0.61)).contains(&elapsed), "after {elapsed:?}");
    let second = identity.borrow().clone().unwrap();
    assert_ne!((&first.serial, &first.key), (&second.serial, &second.key), "a fresh key each time");
    let renewal = bench.server.log().into_iter().rfind(|asked| asked.act != "cacerts").unwrap();
    assert_eq!((renewal.act.as_str(), renewal.mutual, renewal.credentials), ("simplereenroll", true, None));
    let (_, again) = bench.keeper(bench.config());
    assert_eq!(again.borrow().as_ref().unwrap().serial, second.serial, "a restart finds the newest");
}

#[tokio::test]
async fn every_fault_of_the_server_is_named_waited_out_and_survived() {
    let faults = [
        (Fault::Pending(120), "pending", 120),
        (Fault::Unauthorized, "refused", 900),
        (Fault::Broken, "status", 0),
        (Fault::Busy(300), "status", 300),
        (Fault::WrongAuthority, "unusable", 900),
        (Fault::WrongKey, "unusable", 900),
        (Fault::Truncated, "answer", 900),
        (Fault::Nonsense, "answer", 900),
        (Fault::Endless, "too-long", 900),
        (Fault::HangUp, "unreachable", 0),
        (Fault::LoseAnswer, "unreachable", 0),
    ];
    let bench = Bench::new().await;
    let (mut keeper, identity) = bench.keeper(bench.config());
    // The authorities are fetched by the first step; the faults then meet the enrolment.
    keeper.step().await;
    for (fault, expected, at_least) in faults {
        bench.server.script([fault.clone()]);
        let before = bench.clock.now().mono_ns;
        let event = bench.next(&mut keeper).await;
        assert_eq!(code(&event), expected, "{fault:?}: {event:?}");
        let waited = Duration::from_nanos(bench.clock.now().mono_ns - before);
        assert!(waited >= Duration::from_secs(at_least), "{fault:?} waited {waited:?}");
        assert!(identity.borrow().is_none(), "{fault:?} gave no identity");
        assert!(!format!("{event:?}").contains(TOKEN));
    }
    assert_eq!(code(&bench.next(&mut keeper).await), "granted");
    let requests: std::collections::BTreeSet<String> =
        bench.server.log().into_iter().filter(|asked| asked.act == "simpleenroll").map(|asked| asked.body).collect();
    assert_eq!(requests.len(), 1, "the same request was repeated, so that no certificate was orphaned");
}

#[tokio::test]
async fn a_failing_renewal_keeps_the_certificate_in_use_and_raises_alarms_until_it_enrols_anew() {
    let bench = Bench::new().await;
    let (mut keeper, identity) = bench.keeper(bench.config());
    assert_eq!(code(&bench.next(&mut keeper).await), "granted");
    let first = identity.borrow().clone().unwrap().serial.clone();
    bench.server.script(std::iter::repeat_n(Fault::Broken, 100_000));
    let mut alarms = Vec::new();
    let end = first_end(&identity);
    while bench.clock.wall_ms() / 1_000 <= end {
        match bench.next(&mut keeper).await {
            EstEvent::Alarm(change) => alarms.push(change.to.as_str()),
            event => assert_eq!(code(&event), "status"),
        }
        assert_eq!(identity.borrow().as_ref().unwrap().serial, first);
    }
    assert!(alarms.starts_with(&["half-life", "fifth-of-life", "twentieth-of-life"]), "{alarms:?}");
    let asked = bench.server.log().len();
    assert!(asked < 3_300, "{asked} requests in 60 days of failure, two per hour and one look per day, are a storm");
}

fn first_end(identity: &Identity) -> i64 {
    identity.borrow().as_ref().unwrap().validity.not_after
}

#[tokio::test]
async fn a_server_that_the_anchors_do_not_vouch_for_learns_nothing() {
    let bench = Bench::new().await;
    let stranger = Bench::new().await;
    let config = EstConfig { anchors_pem: stranger.server.root_pem(), ..bench.config() };
    let (mut keeper, identity) = bench.keeper(config.clone());
    assert_eq!(code(&bench.next(&mut keeper).await), "wrong-server");
    assert!(bench.server.log().is_empty() && identity.borrow().is_none());
    assert!(!format!("{config:?} {keeper:?}").contains(TOKEN));
}

#[tokio::test(start_paused = true)]
async fn a_slow_server_is_given_up_after_thirty_seconds() {
    let bench = Bench::new().await;
    let (mut keeper, _identity) = bench.keeper(bench.config());
    bench.server.script([Fault::Slow(Duration::from_secs(3_600))]);
    assert_eq!(code(&bench.next(&mut keeper).await), "unreachable");
}

#[tokio::test]
async fn a_gateway_whose_clock_is_not_set_still_reaches_its_server() {
    let bench = Bench::new().await;
    let now = bench.clock.wall_ms();
    bench.clock.set_trust(fieldgate::model::ClockTrust::Unsynchronised);
    bench.clock.step_wall(-now);
    let time = BelievedTime::new(bench.clock.clone(), now / 1_000);
    let (mut keeper, identity) = EstKeeper::new(bench.config(), time, bench.clock.clone()).unwrap();
    assert_eq!(code(&bench.next(&mut keeper).await), "granted");
    assert!(identity.borrow().is_some());
}

/// Lets `left` more steps pass, then nothing, as a process that was killed.
struct Dies(std::sync::atomic::AtomicUsize);

impl Observer for Dies {
    fn before(&self, _: Step<'_>) -> std::io::Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        let left = self.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        left.map(|_| ()).map_err(|_| std::io::Error::other("killed"))
    }
}

#[tokio::test]
async fn killed_at_every_step_it_comes_back_with_a_matching_pair_or_none() {
    let bench = Bench::new().await;
    for steps in 0.. {
        let directory = bench.directory.path().join(format!("killed-{steps}"));
        let config = EstConfig { directory, ..bench.config() };
        let mut survived = false;
        let disk = Disk::observed(Arc::new(Dies(steps.into())));
        if let Ok((mut keeper, _)) = EstKeeper::new(
            EstConfig { disk, ..config.clone() },
            BelievedTime::new(bench.clock.clone(), 0),
            bench.clock.clone(),
        ) {
            survived = code(&bench.next(&mut keeper).await) == "granted";
        }
        let (mut keeper, identity) = bench.keeper(config);
        if identity.borrow().is_none() {
            assert_eq!(code(&bench.next(&mut keeper).await), "granted", "killed at step {steps}");
        }
        assert!(identity.borrow().as_ref().unwrap().certified_key().is_ok());
        if survived {
            assert!(steps > 20, "only {steps} steps were seen");
            return;
        }
    }
}

#[test]
fn messages_that_openssl_made_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    for name in ["a", "b"] {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
        let subject = format!("/CN={name}");
        openssl(
            path,
            &[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-subj",
                &subject,
                "-keyout",
                &key,
                "-out",
                &certificate,
            ],
        );
    }
    openssl(
        path,
        &["crl2pkcs7", "-nocrl", "-certfile", "a.pem", "-certfile", "b.pem", "-outform", "DER", "-out", "both.p7"],
    );
    openssl(path, &["base64", "-in", "both.p7", "-out", "both.b64"]);
    for file in ["both.p7", "both.b64"] {
        assert_eq!(certificates(&std::fs::read(path.join(file)).unwrap()).unwrap().len(), 2, "{file}");
    }
}
