//! What of the plant the fleet manager is shown, in each mode.

use std::path::PathBuf;
use std::time::Duration;

use super::super::api::Base;
use super::super::capabilities::tests::hosting;
use super::super::component::SourceConfig;
use super::super::config::Generation;
use super::super::identity::IdentityFiles;
use super::super::polling::Polling;
use super::super::schema;
use super::*;

fn child(name: &str, parent: Option<&str>) -> Child {
    Child {
        id: DeviceId::new(name).unwrap(),
        parent: parent.map(|parent| DeviceId::new(parent).unwrap()),
        identity: Identity { vendor: Some("Acme".to_owned()), ..Identity::default() },
        hardware: String::new(),
        protocol: "modbus-tcp".to_owned(),
        functions: Functions { recipe: true, ..Functions::default() },
        reachable: true,
    }
}

fn config(mode: Mode) -> Config {
    Config {
        url: Base::new("https://wfm.example").unwrap(),
        generation: Generation::Preview { ca: PathBuf::new(), pss: true },
        identity: IdentityFiles { chain: PathBuf::new(), key: PathBuf::new() },
        mode,
        device: DevicePath::new("gw").unwrap(),
        timeout: Duration::from_secs(1),
        polling: Polling::default(),
        wildcard: Wildcard::One,
        source: SourceConfig::default(),
        delegate: Functions { recipe: true, ..Functions::default() },
        gateway: Details::default(),
        devices: BTreeMap::new(),
        directory: PathBuf::new(),
    }
}

fn shown(config: &Config, only: Option<&str>, children: Vec<Child>) -> Vec<DeviceCapabilities> {
    let only = only.map(|only| DeviceId::new(only).unwrap());
    let scope = scope(config, only.as_ref()).unwrap();
    let found = survey(config, &scope, only.as_ref(), &Inventory { children, ..Inventory::default() });
    for device in &found.report {
        assert_eq!(schema::capabilities(&device.to_json()), Vec::<String>::new());
    }
    found.report
}

fn paths(devices: &[DeviceCapabilities]) -> Vec<&str> {
    let mut paths: Vec<&str> = devices.iter().map(|device| device.id.as_str()).collect();
    paths.sort_unstable();
    paths
}

#[test]
fn a_see_thru_gateway_shows_itself_and_each_child_as_a_path_below_it_or_below_its_parent() {
    let children = vec![child("line", None), child("pump", Some("line")), child("valve", None)];
    let devices = shown(&config(Mode::SeeThru), None, children);
    assert_eq!(paths(&devices), ["gw", "gw/line", "gw/line/pump", "gw/valve"]);
    // A parent that is not there, and a ring of parents, leave a child directly below the gateway.
    let odd = vec![child("a", Some("b")), child("b", Some("a")), child("c", Some("gone"))];
    assert_eq!(paths(&shown(&config(Mode::SeeThru), None, odd)), ["gw", "gw/a", "gw/b", "gw/c"]);
}

#[test]
fn an_opaque_gateway_shows_one_device() {
    let mut config = config(Mode::Opaque);
    let details = Details { hosting: Some(hosting(2.0, "1Gi")), ..Details::default() };
    config.devices.insert(DeviceId::new("a").unwrap(), details);
    let devices = shown(&config, None, vec![child("a", None), child("b", None)]);
    assert_eq!(paths(&devices), ["gw"]);
    assert_eq!(devices[0].hosting.as_ref().unwrap().memory, "1Gi");
}

#[test]
fn a_transparent_gateway_is_not_seen_and_each_device_shows_only_itself() {
    let config = config(Mode::Transparent(BTreeMap::new()));
    let devices = shown(&config, Some("b"), vec![child("a", None), child("b", None)]);
    assert_eq!(paths(&devices), ["b"]);
}

#[test]
fn resources_are_shown_only_of_what_the_configuration_says_hosts_and_unknown_names_are_said_to_be() {
    let devices = shown(&config(Mode::SeeThru), None, vec![child("a", None)]);
    assert!(devices.iter().all(|device| device.hosting.is_none()));
    assert_eq!((devices[0].vendor.as_str(), devices[0].serial.as_str()), ("Acme", UNKNOWN));
}

#[test]
fn labels_are_prefixed_with_a_domain_and_keep_the_case_of_their_keys() {
    let mut config = config(Mode::SeeThru);
    let labels = [("acme.example/Line", "1"), ("acme.example/line", "2")];
    let labels = labels.map(|(key, value)| (key.to_owned(), json!(value))).into();
    config.devices.insert(DeviceId::new("a").unwrap(), Details { labels, ..Details::default() });
    let devices = shown(&config, None, vec![child("a", None)]);
    let keys: Vec<&str> = devices[0].labels.keys().map(String::as_str).collect();
    assert_eq!(keys, ["acme.example/Line", "acme.example/line", "fieldgate.dev/protocol", "fieldgate.dev/takes"]);
}
