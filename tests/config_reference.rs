//! The reference example uses every key, every key misspelt in turn is refused with its place, and the documentation
//! names every key.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fieldgate::config::{self, KnownKeys, Loaded, Problems};
use fieldgate::northbound::ConsumerKind;

const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/config/reference");
const DOCUMENT: &str = include_str!("../docs/configuration.md");
const FILES: [&str; 6] = [
    "fieldgate.toml",
    "devices/boiler.toml",
    "devices/pump-1.toml",
    "devices/pump-2.toml",
    "profiles/pump.toml",
    "points/boiler.csv",
];
/// Names that the user chooses; a wrong one is refused where it is used.
const CHOSEN: [&str; 5] = ["fast", "slow", "authorization", "heat", "north"];

/// A copy of the reference with the certificates and secrets that it names.
fn reference() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in FILES {
        write(dir.path(), file, &fs::read_to_string(Path::new(REFERENCE).join(file)).unwrap());
    }
    for file in [
        "server.pem",
        "server.key",
        "clients-ca.pem",
        "clients-crl.pem",
        "site-ca.pem",
        "client.pem",
        "client.key",
        "est-root.pem",
        "firmware.pub",
    ] {
        write(dir.path(), &format!("tls/{file}"), "not read by the loader");
    }
    for file in ["scada", "otlp", "est"] {
        write(dir.path(), &format!("secrets/{file}"), "secret\n");
    }
    dir
}

fn write(dir: &Path, file: &str, text: &str) {
    let path = dir.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn load(dir: &Path) -> Result<(Loaded, KnownKeys), Problems> {
    config::load_recording(dir, &|name| (name == "SITE_PASSWORD").then(|| "from the environment".to_owned()))
}

/// A key in a file: where it stands.
struct Key {
    file: &'static str,
    start: usize,
    end: usize,
    line: u32,
}

/// Every key of a TOML file: in headers, in front of `=`, and in inline tables.
fn toml_keys(file: &'static str, text: &str) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let code = line.split('#').next().unwrap();
        let is_header = code.trim_start().starts_with('[');
        let mut quoted = false;
        let mut word: Option<usize> = None;
        for (i, c) in code.char_indices() {
            quoted ^= c == '"';
            if !quoted && (c.is_ascii_alphanumeric() || c == '_') {
                word.get_or_insert(i);
                continue;
            }
            if let Some(start) = word.take()
                && (is_header || code[i..].trim_start().starts_with('='))
            {
                keys.push(Key { file, start: at + start, end: at + i, line: number as u32 + 1 });
            }
        }
        at += line.len();
    }
    keys
}

/// Every column name of a list.
fn csv_keys(file: &'static str, text: &str) -> Vec<Key> {
    let header = text.lines().next().unwrap();
    let mut at = 0;
    let cells = header.split(',').map(|cell| {
        let start = at;
        at += cell.len() + 1;
        Key { file, start, end: start + cell.len(), line: 1 }
    });
    cells.collect()
}

fn all_keys() -> Vec<(Key, String)> {
    let mut all = Vec::new();
    for file in FILES {
        let text = fs::read_to_string(Path::new(REFERENCE).join(file)).unwrap();
        let keys = if file.ends_with(".csv") { csv_keys(file, &text) } else { toml_keys(file, &text) };
        all.extend(keys.into_iter().map(|key| (key, text.clone())));
    }
    all
}

#[test]
fn the_reference_loads() {
    let dir = reference();
    let (loaded, _) = load(dir.path()).unwrap_or_else(|problems| panic!("{problems}"));
    let names: Vec<_> = loaded.devices.iter().map(|d| d.model.id.as_str().to_owned()).collect();
    assert_eq!(names, ["boiler", "pump-1", "pump-2"]);
    assert_eq!(loaded.devices[0].model.points.len(), 15);
    let ConsumerKind::Uplink(uplink) = &loaded.gateway.uplinks[0].consumer.kind else { panic!("an uplink") };
    assert_eq!(uplink.password.as_ref().unwrap().expose(), "from the environment");
    assert!(loaded.files.contains(&dir.path().join("points/boiler.csv")));
    assert!(!format!("{loaded:?}").contains("from the environment"), "a secret was printed");
}

#[test]
fn the_reference_uses_every_key() {
    let dir = reference();
    let (_, known) = load(dir.path()).unwrap();
    let used: BTreeSet<String> = all_keys().iter().map(|(key, text)| text[key.start..key.end].to_owned()).collect();
    let missing: Vec<_> = known
        .iter()
        .flat_map(|(kind, keys)| keys.iter().map(move |k| (kind, k)))
        .filter(|(_, k)| !used.contains(**k))
        .collect();
    assert!(missing.is_empty(), "not in examples/config/reference: {missing:?}");
}

#[test]
fn every_key_misspelt_in_turn_is_refused_with_its_place() {
    let keys = all_keys();
    assert!(keys.len() > 200, "only {} keys found", keys.len());
    let dir = reference();
    for (key, text) in &keys {
        let name = &text[key.start..key.end];
        if CHOSEN.contains(&name) {
            continue;
        }
        let misspelt = format!("{name}z");
        write(dir.path(), key.file, &format!("{}{misspelt}{}", &text[..key.start], &text[key.end..]));
        let problems = match load(dir.path()) {
            Ok(_) => panic!("{}:{}: `{misspelt}` was accepted", key.file, key.line),
            Err(problems) => problems,
        };
        let path: PathBuf = dir.path().join(key.file);
        let told = problems.0.iter().find(|p| {
            *p.place.file == *path && p.place.line == key.line && p.text.contains(&format!("unknown key `{misspelt}`"))
        });
        let told = told.unwrap_or_else(|| panic!("{}:{}: `{misspelt}` was not named:\n{problems}", key.file, key.line));
        assert!(told.text.contains("did you mean"), "{told}");
        assert!(told.place.column > 0);
        write(dir.path(), key.file, text);
    }
    load(dir.path()).unwrap_or_else(|problems| panic!("the copy was not restored: {problems}"));
}

/// Every problem is reported, not only the first.
#[test]
fn many_mistakes_are_reported_at_once() {
    let dir = reference();
    let main = fs::read_to_string(dir.path().join("fieldgate.toml")).unwrap();
    write(
        dir.path(),
        "fieldgate.toml",
        &main
            .replace("max_size = \"2 GiB\"", "max_size = 2")
            .replace("telemetry = 0", "telemetry = 3")
            .replace("points = 1", "points = 3")
            .replace("encoding = \"json\"", "encodin = \"json\""),
    );
    write(dir.path(), "devices/pump-1.toml", "profile = \"pmup\"\n[modbus]\nunit = 300\n");
    write(dir.path(), "devices/broken.toml", "a = \n");
    let problems = load(dir.path()).unwrap_err();
    let text = problems.to_string();
    for expected in [
        "max_size: 2 has no unit",
        "local.qos.telemetry: is 3; it must be from 0 to 2",
        "uplink[1].qos.points: is 3",
        "unknown key `encodin`; did you mean `encoding`?",
        "did you mean \"pump\"?",
        "modbus.unit: is 300; it must be from 0 to 255",
        "`link` is missing",
        "broken.toml:1:",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
}

/// `docs/configuration.md` has a heading with the kind of each table in backticks, and under it a row for each key.
#[test]
fn the_documentation_names_every_key_and_no_other() {
    let dir = reference();
    let (_, known) = load(dir.path()).unwrap();
    for (kind, keys) in &known {
        let heading = format!("(`{kind}`)");
        let start = DOCUMENT.lines().position(|l| l.starts_with('#') && l.contains(&heading));
        let start = start.unwrap_or_else(|| panic!("no heading with {heading} in docs/configuration.md"));
        let section = DOCUMENT.lines().skip(start + 1).take_while(|l| !l.starts_with('#'));
        let rows: BTreeSet<_> = section.filter_map(|l| l.strip_prefix("| `")?.split('`').next()).collect();
        let keys: BTreeSet<_> = keys.iter().copied().collect();
        assert_eq!(rows, keys, "rows under {heading} (left: documented, right: in the code)");
    }
}

/// What `broker-config/` offers to copy is taken as it is, in both of its forms.
#[test]
fn the_embedded_broker_s_example_loads() {
    let example = include_str!("../broker-config/embedded.toml");
    let alternative = example.replace("\ntls = {", "\n# tls = {").replacen(
        "# tls = { cert = \"tls/server.pem\", key = \"tls/server.key\", client_ca",
        "tls = { cert = \"tls/server.pem\", key = \"tls/server.key\", client_ca",
        1,
    );
    let plant = example.replace("\ntls = {", "\n# tls = {").replacen("# tls = { plant", "tls = { plant", 1);
    for (form, certificates, users) in [(example, false, 2), (&alternative, true, 2), (&plant, true, 2)] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "fieldgate.toml", form);
        for file in ["tls/server.pem", "tls/server.key", "tls/ca.pem", "tls/ca.crl"] {
            write(dir.path(), file, "not read by the loader");
        }
        for file in ["secrets/scada", "secrets/viewer"] {
            write(dir.path(), file, "secret\n");
            fs::set_permissions(dir.path().join(file), fs::Permissions::from_mode(0o600)).unwrap();
        }
        let (loaded, _) = load(dir.path()).unwrap_or_else(|problems| panic!("{problems}\n{form}"));
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        let broker = loaded.gateway.broker.unwrap();
        assert_eq!((broker.listeners.len(), broker.users.len(), broker.acl.len()), (2, users, 3));
        let tls = broker.listeners[1].tls.as_ref().expect("the network's listener has TLS");
        assert_eq!(tls.takes_client_certificates(), certificates, "{form}");
    }
}
