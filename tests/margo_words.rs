//! What `fieldgate margo status` says of every trouble with identity, trust and clocks: which rule, which certificate, which
//! clock, and what to do.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod margo_support;
mod support;
mod whole_support;

use fieldgate_simulators::margo::Flaw;
use margo_support::{DAY, Manager, PATIENCE};
use support::eventually;
use whole_support::{Site, errors, stop, text};

const SVID: &str = "data/margo/svid.pem";
const KEY: &str = "data/margo/svid.key";

/// Everything that `fieldgate margo status` prints.
fn status(site: &Site) -> String {
    let output = site.run(&["margo", "status"]);
    text(&output) + &errors(&output)
}

fn says(site: &Site, words: &[&str]) {
    let status = status(site);
    assert!(words.iter().all(|word| status.contains(word)), "{words:?} is not in\n{status}");
}

#[test]
fn every_trouble_with_our_own_svid_is_named_with_its_rule() {
    let manager = Manager::start(|_| {});
    let site = Site::new(&manager.settings(&[], ""));
    assert!(status(&site).contains("fieldgate margo join"), "{}", status(&site));
    manager.join(&site);
    let right = status(&site);
    assert!(right.contains("spiffe://plant.example/margo/wfm/wfm-1/client/plant"), "{right}");
    assert!(!right.contains("refused"), "{right}");
    let good = std::fs::read_to_string(site.path().join(SVID)).unwrap();
    let key = std::fs::read_to_string(site.path().join(KEY)).unwrap();
    for (flaw, words) in [
        (Flaw::Expired, ["the certificate itself ended at 20", "rule expired"]),
        (Flaw::NotYetValid, ["the certificate itself begins at 20", "and our clock says 20"]),
        (Flaw::TwoUris, ["names 2 URIs", "exactly one"]),
        (Flaw::NoUri, ["names 0 URIs", "exactly one"]),
        (Flaw::CaLeaf, ["authority (CA)", "must not be"]),
        (Flaw::KeyCertSign, ["keyCertSign", "must not"]),
        (Flaw::CrlSign, ["cRLSign", "must not"]),
        (Flaw::RootPath, ["has no path", "spiffe://plant.example"]),
        (Flaw::NotSpiffe, ["is no SPIFFE ID", "https://plant.example"]),
        (Flaw::WrongDomain, ["of trust domain elsewhere.example", "the trust bundle in force is of plant.example"]),
        (Flaw::OtherCase, ["is not a client's", "CLIENT/PLANT"]),
        (Flaw::Stranger, ["no anchor of the trust bundle in force (sequence 1, 1 anchors)", "rule untrusted"]),
        (Flaw::NoIntermediate, ["intermediate certificate behind it is missing", "rule untrusted"]),
    ] {
        let svid = manager.authority.client_svid(manager.wfm.id(), "plant", DAY, flaw).unwrap();
        site.write(SVID, &svid.chain_pem);
        site.write(KEY, &svid.key_pem);
        says(&site, &words);
    }
    let other = manager.authority.client_svid(manager.wfm.id(), "plant", DAY, Flaw::None).unwrap();
    site.write(SVID, &other.chain_pem);
    site.write(KEY, &key);
    says(&site, &["our own SVID", "KeyMismatch"]);
    site.write(SVID, "garbage");
    says(&site, &["our own SVID", "there is no CERTIFICATE block"]);
    std::fs::remove_file(site.path().join(SVID)).unwrap();
    says(&site, &["there is no SVID yet", "svid.csr.pem"]);
    site.write(SVID, &good);
    site.write("bundle.json", "garbage");
    says(&site, &["the trust bundle cannot be read"]);
    site.write("bundle.json", "{\"keys\":[]}");
    says(&site, &["holds no usable anchor"]);
    std::fs::remove_file(site.path().join("bundle.json")).unwrap();
    says(&site, &["cannot read the bundle", "bundle.json"]);
}

#[test]
fn with_an_enrolment_server_nothing_points_to_join_and_an_svid_of_another_name_is_named() {
    let manager = Manager::start(|_| {});
    let est = "[margo.identity.est]\nurl = \"https://127.0.0.1:9\"\nanchors = \"est-root.pem\"\n\
               trust_domain = \"plant.example\"\nwfm = \"wfm-1\"\n";
    let site = Site::new(&manager.settings(&[], est));
    site.write("est-root.pem", &manager.authority.roots_pem());
    site.write("bundle.json", &manager.authority.bundle().to_string());
    let before = status(&site);
    assert!(before.contains("the running gateway enrols it") && !before.contains("margo join"), "{before}");
    let gateway = site.start();
    eventually("what is missing", PATIENCE, || {
        let said = status(&site);
        assert!(!said.contains("margo join"), "{said}");
        said.contains("our own SVID is missing; the running gateway enrols it").then_some(())
    });
    stop(gateway);
    let (chain, key) = ("data/margo/est/current/cert.pem", "data/margo/est/current/key.pem");
    std::fs::create_dir_all(site.path().join("data/margo/est/current")).unwrap();
    for (flaw, name) in [(Flaw::WrongWfm, "wfm/another/client/plant"), (Flaw::WrongDomain, "elsewhere.example")] {
        let svid = manager.authority.client_svid("wfm-1", "plant", DAY, flaw).unwrap();
        site.write(chain, &svid.chain_pem);
        site.write(key, &svid.key_pem);
        says(
            &site,
            &["refused   our own SVID is of", name, "asks for spiffe://plant.example/margo/wfm/wfm-1/client/plant"],
        );
    }
}

#[test]
fn what_is_wrong_with_the_fleet_managers_certificate_is_said_too() {
    let manager = Manager::start(|_| {});
    let site = Site::new(&manager.settings(&[], ""));
    manager.join(&site);
    let gateway = site.start();
    manager.sees("plant");
    for (flaw, words) in [
        (Flaw::Expired, "the certificate itself ended at 20"),
        (Flaw::WrongWfm, "our own SVID says that the fleet manager is spiffe://plant.example/margo/wfm/wfm-1"),
        (Flaw::WrongDomain, "of trust domain elsewhere.example, ours is plant.example"),
        (Flaw::Stranger, "no anchor of the trust bundle in force"),
    ] {
        manager.wfm.serve(flaw).unwrap();
        manager.runtime.block_on(manager.wfm.disconnect()).unwrap();
        eventually(words, PATIENCE, || status(&site).contains(words).then_some(()));
    }
    manager.wfm.serve(Flaw::None).unwrap();
    eventually("the connection", PATIENCE, || status(&site).contains("the last request was answered").then_some(()));
    stop(gateway);
    // The gateway stands still: what it said last gets older.
    eventually("the age of the last poll", PATIENCE, || {
        let age = status(&site).split_once("the last poll was answered ")?.1.split_once(" s ago")?.0.parse::<u64>();
        (age.unwrap() >= 1).then_some(())
    });
}
