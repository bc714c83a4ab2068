//! Rules of the Margo interface that show on the wire, one test each, against the simulated fleet manager.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod wfm_support;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fieldgate::margo::config::Generation;
use fieldgate::margo::http::fetch_bundle;
use fieldgate::margo::identity::{BundleSource, FirstContact, TlsVersions, TrustBundle};
use fieldgate::platform::clock::SystemClock;
use fieldgate::security::pki::BelievedTime;
use fieldgate_simulators::margo::{
    Authority, Discovery, DiscoveryFault, Fault, Op, Rule, Times, TlsVersions as Spoken, WebCertificate,
};
use serde_json::json;
use wfm_support::{Bench, PATIENCE, pump};

/// A manifest, or an artifact of it, is spoilt while ten deployments replace one: nothing changes, and the right one is taken
/// afterwards. `alarm` is the alert that is raised, if there is one.
async fn is_refused_whole(fault: Fault, alarm: Option<(&str, bool)>) {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    bench.start();
    bench.connected().await;
    bench.polls(1).await;
    let first = bench.deploy(pump("gw/a", "1.0")).await;
    bench.reaches(&first, Some("gw/a"), "installed").await;
    bench.stop().await;
    // Some faults are named by a version: the client holds this one.
    assert_eq!(bench.status.borrow().manifest_version, 2);
    bench.wfm.inject(fault.clone());
    for _ in 0..10 {
        bench.deploy(pump("gw/nobody", "1.0")).await;
    }
    assert!(bench.wfm.remove(&first));
    bench.start();
    let refused = bench
        .status
        .wait_for(|status| status.polled_ms == 0 && status.manifest_version > 0 && !status.problem.is_empty());
    assert!(
        tokio::time::timeout(PATIENCE, refused).await.is_ok_and(|seen| seen.is_ok()),
        "{fault:?} was never refused"
    );
    assert_eq!(bench.status.borrow().manifest_version, 2, "{fault:?} was accepted");
    assert_eq!(bench.site.point("a", "speed"), Some(json!(40)), "{fault:?} changed something");
    assert!(bench.wfm.with(|seen| seen.status(&first, Some("gw/a")).unwrap().state == "installed"), "{fault:?}");
    bench.wfm.clear_faults();
    bench.reaches(&first, Some("gw/a"), "removed").await;
    let alerts: Vec<(&str, bool)> = bench.site.alerts.lock().unwrap().iter().map(|a| (a.code, a.security)).collect();
    assert_eq!(alerts, alarm.into_iter().collect::<Vec<_>>(), "{fault:?}");
    bench.stop().await;
}

const SECURITY: Option<(&str, bool)> = Some(("margo-manifest-security", true));
const REFUSED: Option<(&str, bool)> = Some(("margo-manifest-refused", false));

macro_rules! refused {
    ($($name:ident: $fault:expr, $alarm:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            is_refused_whole($fault, $alarm).await;
        }
    )*};
}

refused! {
    a_lower_manifest_version_is_refused: Fault::Version { value: 1 }, SECURITY;
    an_equal_manifest_version_with_other_content_is_refused: Fault::Version { value: 2 }, SECURITY;
    a_manifest_that_is_no_json_is_refused: Fault::ManifestGarbage, REFUSED;
    sha512_everywhere_is_refused: Fault::Sha512, SECURITY;
    one_sha512_among_ten_is_refused: Fault::Sha512Entry { index: 5 }, SECURITY;
    one_wrong_digest_among_ten_is_refused: Fault::EntryDigest { index: 3 }, SECURITY;
    a_wrong_digest_of_the_bundle_is_refused: Fault::BundleDigest, SECURITY;
    one_altered_deployment_among_ten_is_refused: Fault::AlteredDeployment { index: 2 }, SECURITY;
    a_deployment_with_another_id_is_refused: Fault::WrongId { index: 1 }, SECURITY;
    a_deployment_that_is_no_yaml_is_refused: Fault::DeploymentGarbage { index: 4 }, SECURITY;
    an_extra_file_in_the_bundle_is_refused: Fault::ExtraFile, SECURITY;
    a_missing_file_in_the_bundle_is_refused: Fault::MissingFile { index: 0 }, SECURITY;
    a_file_that_is_twice_in_the_bundle_is_refused: Fault::DuplicateFile, SECURITY;
    a_folder_in_the_bundle_is_refused: Fault::NestedFiles, SECURITY;
    path_traversal_in_the_bundle_is_refused: Fault::Names { names: vec!["../../etc/passwd".to_owned()] }, SECURITY;
    a_link_in_the_bundle_is_refused: Fault::Symlink, SECURITY;
    a_decompression_bomb_is_refused: Fault::Bomb { mebibytes: 200 }, SECURITY;
    a_bundle_that_is_no_archive_is_refused: Fault::BundleGarbage, SECURITY;
    an_artifact_404_is_not_available_and_deletes_nothing: Fault::ArtifactMissing, None;
}

/// What is odd, and no more, is accepted, and raises nothing.
async fn is_accepted(fault: Fault) {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    bench.wfm.inject(fault);
    bench.start();
    let id = bench.deploy(pump("gw/a", "1.0")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    bench.polls(3).await;
    assert!(bench.site.alerts.lock().unwrap().is_empty());
    bench.stop().await;
}

macro_rules! accepted {
    ($($name:ident: $fault:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            is_accepted($fault).await;
        }
    )*};
}

accepted! {
    sizes_that_lie_are_accepted: Fault::SizesLie { by: -7 };
    missing_sizes_are_accepted: Fault::SizesMissing;
    unknown_fields_are_accepted: Fault::UnknownFields;
    a_null_bundle_beside_deployments_is_accepted: Fault::BundleNull;
    an_identical_re_delivery_is_accepted: Fault::EtagIgnored;
    a_missing_etag_is_accepted: Fault::EtagMissing;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_cut_dribbled_or_lost_change_nothing_and_are_asked_for_again() {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    bench.start();
    bench.connected().await;
    for fault in [
        Fault::Truncate { bytes: 20 },
        Fault::HangUp,
        Fault::Reset,
        Fault::LoseAnswer,
        Fault::Dribble { bytes: 40, every_ms: 5 },
        Fault::Html { status: 502 },
        Fault::PlainJson { status: 429, retry_after: Some(1) },
        Fault::Empty { status: 500, retry_after: None },
    ] {
        for op in [Op::Manifest, Op::Deployment, Op::Status] {
            bench.wfm.inject(Rule::from(fault.clone()).on(op).times(1));
        }
        let id = bench.deploy(pump("gw/a", "1.0")).await;
        bench.reaches(&id, Some("gw/a"), "installed").await;
        assert!(bench.wfm.remove(&id));
        bench.reaches(&id, Some("gw/a"), "removed").await;
        bench.wfm.clear_faults();
    }
    assert!(bench.site.alerts.lock().unwrap().is_empty());
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn digests_are_over_the_decoded_body_of_a_compressed_deployment() {
    let mut bench = Bench::new(&["a"], |options| options.compress = true).await;
    bench.start();
    let id = bench.deploy(pump("gw/a", "1.0")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    let fetched = bench.wfm.with(|seen| seen.requests_of(Op::Deployment).last().unwrap().bytes.1);
    let whole = bench.wfm.with(|seen| seen.deployments[&id].document.yaml.len());
    assert!(fetched > 0 && fetched < whole, "{fetched} of {whole} bytes: it came compressed");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_1_3_is_the_default_and_1_2_is_spoken_only_when_it_is_allowed() {
    let mut bench = Bench::new(&["a"], |options| options.tls = Spoken::Tls12).await;
    bench.start();
    bench.problem("no connection that both sides believe").await;
    bench.stop().await;
    bench.tune = |config| {
        if let Generation::Rc3 { tls, .. } = &mut config.generation {
            *tls = TlsVersions::Also12;
        }
    };
    bench.start();
    bench.connected().await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_older_than_allowed_is_not_used_any_more() {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    bench.tune = |config| {
        if let Generation::Rc3 { max_age, .. } = &mut config.generation {
            *max_age = Duration::from_secs(3);
        }
    };
    bench.start();
    bench.polls(30).await;
    let polls: Vec<(u64, u64)> =
        bench.wfm.with(|seen| seen.requests_of(Op::Manifest).map(|one| (one.connection, one.at_ms)).collect());
    let life = |connection: u64| {
        let times = polls.iter().filter(|(number, _)| *number == connection).map(|(_, at)| *at);
        times.clone().max().unwrap() - times.min().unwrap()
    };
    assert!(polls.iter().all(|(connection, _)| life(*connection) <= 4_000), "{polls:?}");
    assert!(polls.last().unwrap().0 > polls[0].0, "{polls:?}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_kept_between_polls_and_left_after_our_own_renewal() {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    bench.start();
    bench.polls(4).await;
    let shown = |seen: &fieldgate_simulators::margo::Records| {
        let client = seen.clients.values().next().unwrap();
        (client.connection, client.certificate.clone())
    };
    let (connection, certificate) = bench.wfm.with(shown);
    bench.polls(2).await;
    assert_eq!(bench.wfm.with(shown).0, connection);
    bench.renew(Duration::from_secs(86_400));
    let renewed = |seen: &fieldgate_simulators::margo::Records| (shown(seen).1 != certificate).then(|| shown(seen).0);
    assert_ne!(bench.wfm.wait("the renewed SVID", PATIENCE, renewed).await.unwrap(), connection);
    bench.stop().await;
}

/// A server for discovery and bundle, and what is fetched from it.
struct Server {
    authority: Arc<Authority>,
    server: Discovery,
    directory: tempfile::TempDir,
}

impl Server {
    async fn new() -> Self {
        let authority = Authority::new("plant.example").unwrap();
        let server = Discovery::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), authority.clone()).await.unwrap();
        Self { authority, server, directory: tempfile::tempdir().unwrap() }
    }

    fn anchored(&self) -> FirstContact {
        let anchors = self.directory.path().join("web.pem");
        std::fs::write(&anchors, self.server.roots_pem()).unwrap();
        FirstContact { anchors: Some(anchors), pins: Vec::new() }
    }

    fn pinned(&self) -> FirstContact {
        let pin = FirstContact::parse_pin(&format!("sha256/{}", self.server.pin())).unwrap();
        FirstContact { anchors: None, pins: vec![pin] }
    }

    async fn fetch(&self, contact: FirstContact, discover: bool) -> Result<TrustBundle, String> {
        let source = match discover {
            true => BundleSource::Discovery { url: self.server.url(), contact },
            false => BundleSource::Uri { url: self.server.bundle_url(), contact },
        };
        let time = BelievedTime::new(SystemClock::shared(), 0);
        let bytes = fetch_bundle(&source, self.authority.trust_domain(), Arc::new(time)).await?;
        TrustBundle::parse(&bytes).map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn first_contact_by_anchors_checks_the_authority_and_the_dns_name() {
    let server = Server::new().await;
    for discover in [false, true] {
        server.server.serve(WebCertificate::Right).unwrap();
        assert_eq!(server.fetch(server.anchored(), discover).await.unwrap().anchors(), server.authority.anchors());
        for wrong in [WebCertificate::OtherName, WebCertificate::Stranger] {
            server.server.serve(wrong).unwrap();
            let asked = server.server.log().len();
            let error = server.fetch(server.anchored(), discover).await.unwrap_err();
            assert!(error.contains("no connection that both sides believe"), "{wrong:?}: {error}");
            assert_eq!(server.server.log().len(), asked, "{wrong:?} learns nothing");
        }
    }
}

#[tokio::test]
async fn first_contact_by_pins_believes_the_pinned_key_and_no_other_and_nobody_is_trusted_on_first_use() {
    let server = Server::new().await;
    let pins = server.pinned();
    assert!(server.fetch(pins.clone(), true).await.is_ok());
    server.server.serve(WebCertificate::Right).unwrap();
    let error = server.fetch(pins, true).await.unwrap_err();
    assert!(error.contains("no public key that the server presented is pinned"), "{error}");
    let asked = server.server.log().len();
    let error = server.fetch(FirstContact::default(), true).await.unwrap_err();
    assert!(error.contains("nobody is trusted on first use"), "{error}");
    assert_eq!(server.server.log().len(), asked);
}

#[tokio::test]
async fn discovery_that_is_spoilt_and_bundles_that_are_spoilt_are_refused() {
    let server = Server::new().await;
    for (fault, words) in [
        (DiscoveryFault::PlainHttp, "is not an https URI"),
        (DiscoveryFault::OtherDomain, "of trust domain elsewhere.example"),
        (DiscoveryFault::DiscoveryGarbage, "the discovery document cannot be used"),
        (DiscoveryFault::Status { status: 404 }, "answered HTTP 404"),
        (DiscoveryFault::Empty, "holds no usable anchor"),
        (DiscoveryFault::OnlyJwt, "holds no usable anchor"),
        (DiscoveryFault::BadKey, "holds no usable anchor"),
        (DiscoveryFault::Garbage, "cannot be read"),
        (DiscoveryFault::Huge { mebibytes: 3 }, "longer than"),
        (DiscoveryFault::Truncate { bytes: 30 }, "cannot be reached"),
    ] {
        server.server.inject(Times::from(fault.clone()));
        let error = server.fetch(server.anchored(), true).await.unwrap_err();
        assert!(error.contains(words), "{fault:?}: {error}");
        server.server.clear_faults();
    }
    server.server.inject(Times::from(DiscoveryFault::Bare));
    assert_eq!(server.fetch(server.anchored(), true).await.unwrap().sequence, 0, "no sequence counts as 0");
}
