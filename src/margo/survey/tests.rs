//! What of the plant the fleet manager is shown, in each mode.

use super::super::capabilities::tests::hosting;
use super::super::schema;
use super::*;

fn child(id: &str) -> Child {
    Child {
        id: DeviceId::new(id).unwrap(),
        identity: Identity { vendor: Some("Acme".to_owned()), ..Identity::default() },
        hardware: String::new(),
        protocol: "modbus-tcp".to_owned(),
        tier: 2,
        firmware: Some("1.4".to_owned()),
        functions: Functions::default(),
        reachable: true,
        connecting: false,
        lost: BTreeSet::new(),
    }
}

/// What a gateway's client, or that of its device `only`, says of these devices, and what its configuration says of them.
fn seen_by(mode: Mode, only: Option<&str>, ids: &[&str], said: &[(&str, Details)]) -> Survey {
    let mut config = Config::for_tests(std::path::Path::new("margo"));
    config.mode = mode;
    config.devices = said.iter().map(|(id, details)| (DeviceId::new(id).unwrap(), details.clone())).collect();
    let children = ids.iter().map(|id| child(id)).collect();
    let only = only.map(|only| DeviceId::new(only).unwrap());
    let scope = scope(&config, only.as_ref()).unwrap();
    let survey = survey(&config, &scope, only.as_ref(), &Inventory { children, ..Inventory::default() });
    for device in &survey.report {
        assert_eq!(schema::capabilities(&device.to_json()), Vec::<String>::new());
    }
    survey
}

fn seen(ids: &[&str], said: &[(&str, Details)]) -> Survey {
    seen_by(Mode::SeeThru, None, ids, said)
}

fn behind(parent: &str) -> Details {
    Details { parent: Some(DeviceId::new(parent).unwrap()), ..Details::default() }
}

fn paths_of(survey: &Survey) -> Vec<&str> {
    survey.places.keys().map(DevicePath::as_str).collect()
}

fn reported(survey: &Survey) -> Vec<&str> {
    let mut paths: Vec<&str> = survey.report.iter().map(|device| device.id.as_str()).collect();
    paths.sort_unstable();
    paths
}

#[test]
fn a_see_thru_gateway_shows_itself_and_each_child_as_a_path_below_it() {
    assert_eq!(reported(&seen(&["a", "b"], &[])), ["gw", "gw/a", "gw/b"]);
}

#[test]
fn a_device_behind_a_device_has_a_deeper_path_if_the_other_one_is_there() {
    let said = [("b", behind("a")), ("c", behind("b")), ("d", behind("gone"))];
    assert_eq!(paths_of(&seen(&["a", "b", "c", "d"], &said)), ["gw", "gw/a", "gw/a/b", "gw/a/b/c", "gw/d"]);
    assert_eq!(paths_of(&seen(&["b", "c"], &said)), ["gw", "gw/b", "gw/b/c"], "its parent was taken out");
    assert_eq!(paths_of(&seen(&["a", "b"], &[("a", behind("b")), ("b", behind("a"))])), ["gw", "gw/a", "gw/b"]);
}

#[test]
fn an_opaque_gateway_shows_one_device_and_places_on_all() {
    let hosts = Details { hosting: Some(hosting(2.0, "1Gi")), ..Details::default() };
    let survey = seen_by(Mode::Opaque, None, &["a", "b"], &[("a", hosts)]);
    assert_eq!((reported(&survey), paths_of(&survey)), (vec!["gw"], vec!["gw", "gw/a", "gw/b"]));
    assert_eq!(survey.report[0].hosting.as_ref().unwrap().memory, "1Gi");
}

#[test]
fn a_transparent_gateway_is_not_seen_and_each_device_shows_only_itself() {
    let survey = seen_by(Mode::Transparent(BTreeMap::new()), Some("b"), &["a", "b"], &[]);
    assert_eq!((reported(&survey), paths_of(&survey)), (vec!["b"], vec!["b"]));
}

#[test]
fn resources_are_shown_only_of_what_the_configuration_says_hosts_and_unknown_names_are_said_to_be() {
    let survey = seen(&["a"], &[]);
    assert!(survey.report.iter().all(|device| device.hosting.is_none()));
    assert_eq!((survey.report[0].vendor.as_str(), survey.report[0].serial.as_str()), ("Acme", UNKNOWN));
}

#[test]
fn what_the_registry_knows_is_reported_and_the_configuration_has_the_last_word() {
    let plain = seen(&["a"], &[]).report.remove(0).to_json();
    assert_eq!(plain["labels"], json!({ "fieldgate.dev/protocol": "modbus-tcp", "fieldgate.dev/tier": 2 }));
    assert_eq!(plain["x-fieldgate-extensions"], json!({ "firmware": "1.4" }));
    let labels = [("fieldgate.dev/tier".to_owned(), json!("")), ("line".to_owned(), json!(2))].into();
    let extensions = [("x-fieldgate-extensions".to_owned(), json!({ "shelf": 7 }))].into();
    let said = Details { labels, extensions, ..Details::default() };
    let own = seen(&["a"], &[("a", said)]).report.remove(0).to_json();
    assert_eq!(own["labels"], json!({ "fieldgate.dev/protocol": "modbus-tcp", "line": 2 }));
    assert_eq!(own["x-fieldgate-extensions"], json!({ "shelf": 7 }));
}

#[test]
fn labels_of_ours_are_prefixed_with_a_domain_and_keys_keep_their_case() {
    let labels = ["acme.example/Line", "acme.example/line"].map(|key| (key.to_owned(), json!(1))).into();
    let survey = seen(&["a"], &[("a", Details { labels, ..Details::default() })]);
    let keys: Vec<&str> = survey.report[0].labels.keys().map(String::as_str).collect();
    assert_eq!(keys, ["acme.example/Line", "acme.example/line", "fieldgate.dev/protocol", "fieldgate.dev/tier"]);
}
