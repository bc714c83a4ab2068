//! What of the plant the fleet manager is shown, in each mode.

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
    }
}

/// A gateway `gw` with this in its `[margo]`, and what its client, or that of the device `only`, says of these devices.
fn seen_by(margo: &str, only: Option<&str>, ids: &[&str]) -> Survey {
    let folder = tempfile::tempdir().unwrap();
    let head = "[gateway]\nid = \"gw\"\n[margo]\nurl = \"https://wfm\"\ntrust = { bundle = \"b\" }\n";
    std::fs::write(folder.path().join("fieldgate.toml"), format!("{head}{margo}")).unwrap();
    let config = crate::config::load(folder.path()).unwrap().gateway.margo.unwrap();
    let children = ids.iter().map(|id| child(id)).collect();
    let only = only.map(|only| DeviceId::new(only).unwrap());
    let scope = scope(&config, only.as_ref()).unwrap();
    let survey = survey(&config, &scope, only.as_ref(), &Inventory { children, ..Inventory::default() });
    for device in &survey.report {
        assert_eq!(schema::capabilities(&device.to_json()), Vec::<String>::new());
    }
    survey
}

fn seen(margo: &str, ids: &[&str]) -> Survey {
    seen_by(margo, None, ids)
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
    assert_eq!(reported(&seen("", &["a", "b"])), ["gw", "gw/a", "gw/b"]);
}

#[test]
fn a_device_behind_a_device_has_a_deeper_path_if_the_other_one_is_there() {
    let behind = |id: &str, parent: &str| format!("[[margo.device]]\nid = \"{id}\"\nparent = \"{parent}\"\n");
    let text = behind("b", "a") + &behind("c", "b") + &behind("d", "gone");
    assert_eq!(paths_of(&seen(&text, &["a", "b", "c", "d"])), ["gw", "gw/a", "gw/a/b", "gw/a/b/c", "gw/d"]);
    assert_eq!(paths_of(&seen(&text, &["b", "c"])), ["gw", "gw/b", "gw/b/c"], "its parent was taken out");
    let ring = behind("a", "b") + &behind("b", "a");
    assert_eq!(paths_of(&seen(&ring, &["a", "b"])), ["gw", "gw/a", "gw/b"]);
}

#[test]
fn an_opaque_gateway_shows_one_device_and_places_on_all() {
    let hosting = "hosting = { cpu = [{ cores = 2, architecture = \"arm64\" }], memory = \"1Gi\", storage = \"8Gi\", \
                   runtimes = [\"custom\"], deployment_types = [\"custom\"] }\n";
    let survey = seen(&format!("mode = \"opaque\"\n[[margo.device]]\nid = \"a\"\n{hosting}"), &["a", "b"]);
    assert_eq!((reported(&survey), paths_of(&survey)), (vec!["gw"], vec!["gw", "gw/a", "gw/b"]));
    assert_eq!(survey.report[0].hosting.as_ref().unwrap().memory, "1Gi");
}

#[test]
fn a_transparent_gateway_is_not_seen_and_each_device_shows_only_itself() {
    let own = |id: &str| format!("[[margo.device]]\nid = \"{id}\"\ncert = \"{id}.pem\"\nkey = \"{id}.key\"\n");
    let survey = seen_by(&format!("mode = \"transparent\"\n{}{}", own("a"), own("b")), Some("b"), &["a", "b"]);
    assert_eq!((reported(&survey), paths_of(&survey)), (vec!["b"], vec!["b"]));
}

#[test]
fn resources_are_shown_only_of_what_the_configuration_says_hosts_and_unknown_names_are_said_to_be() {
    let survey = seen("", &["a"]);
    assert!(survey.report.iter().all(|device| device.hosting.is_none()));
    assert_eq!((survey.report[0].vendor.as_str(), survey.report[0].serial.as_str()), ("Acme", UNKNOWN));
}

#[test]
fn what_the_registry_knows_is_reported_and_the_configuration_has_the_last_word() {
    let plain = seen("", &["a"]).report.remove(0).to_json();
    assert_eq!(plain["labels"], json!({ "fieldgate.dev/protocol": "modbus-tcp", "fieldgate.dev/tier": 2 }));
    assert_eq!(plain["x-fieldgate-extensions"], json!({ "firmware": "1.4" }));
    let own = "[[margo.device]]\nid = \"a\"\n[margo.device.labels]\n\"fieldgate.dev/tier\" = \"\"\nline = 2\n\
               [margo.device.extensions.x-fieldgate-extensions]\nshelf = 7\n";
    let own = seen(own, &["a"]).report.remove(0).to_json();
    assert_eq!(own["labels"], json!({ "fieldgate.dev/protocol": "modbus-tcp", "line": 2 }));
    assert_eq!(own["x-fieldgate-extensions"], json!({ "shelf": 7 }));
}

#[test]
fn labels_of_ours_are_prefixed_with_a_domain_and_keys_keep_their_case() {
    let own =
        "[[margo.device]]\nid = \"a\"\n[margo.device.labels]\n\"acme.example/Line\" = 1\n\"acme.example/line\" = 2\n";
    let survey = seen(own, &["a"]);
    let keys: Vec<&str> = survey.report[0].labels.keys().map(String::as_str).collect();
    assert_eq!(keys, ["acme.example/Line", "acme.example/line", "fieldgate.dev/protocol", "fieldgate.dev/tier"]);
}
