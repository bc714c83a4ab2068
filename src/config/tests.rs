//! A small configuration with one thing changed at a time.

use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::{Access, DataType};
use crate::pipeline::Deadband;
use crate::southbound::DriverConfig;
use crate::southbound::modbus::{Link, WordOrder};

const MAIN: &str = "[gateway]\nid = \"g\"\n";
const LINK: &str = "[modbus]\nlink = \"tcp://192.0.2.7\"\n";

fn dir(main: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let all = std::iter::once((MAIN_FILE, main)).chain(files.iter().copied());
    for (name, text) in all {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn load_at(dir: &Path) -> Result<Loaded, Problems> {
    load_with(dir, &|_| None)
}

fn loaded(main: &str, files: &[(&str, &str)]) -> Loaded {
    let dir = dir(main, files);
    load_at(dir.path()).unwrap_or_else(|problems| panic!("{problems}"))
}

fn refused(main: &str, files: &[(&str, &str)]) -> String {
    let dir = dir(main, files);
    match load_at(dir.path()) {
        Ok(_) => panic!("accepted: {main} {files:?}"),
        Err(problems) => problems.to_string().replace(&format!("{}/", dir.path().display()), ""),
    }
}

/// One device with one point.
fn point(keys: &str) -> (Loaded, usize) {
    let device = format!("{LINK}[[points]]\nid = \"p\"\n{keys}");
    let loaded = loaded(MAIN, &[("devices/d.toml", &device)]);
    let warnings = loaded.warnings.len();
    (loaded, warnings)
}

fn point_refused(keys: &str) -> String {
    refused(MAIN, &[("devices/d.toml", &format!("{LINK}[[points]]\nid = \"p\"\n{keys}"))])
}

#[test]
fn defaults_make_a_small_configuration_complete() {
    let (loaded, _) = point("table = \"holding\"\naddress = 7");
    let gateway = &loaded.gateway;
    assert_eq!(gateway.identity.root, "fieldgate/v1/g");
    assert!(gateway.identity.data_dir.ends_with("data"));
    let listener = &gateway.broker.as_ref().unwrap().listeners[0];
    assert!(listener.address.ip().is_loopback() && listener.allow_anonymous);
    assert_eq!(gateway.otlp, None);
    let device = &loaded.devices[0];
    assert_eq!((device.model.id.as_str(), device.model.protocol), ("d", "modbus-tcp"));
    assert_eq!(device.model.address, "tcp://192.0.2.7:502 unit 1");
    assert_eq!((device.groups.len(), device.groups[0].every), (1, Duration::from_secs(1)));
    let DriverConfig::Modbus(modbus) = &device.driver;
    assert_eq!((modbus.points[0].address, modbus.points[0].width()), (7, 1));
    assert_eq!(device.model.points[0].data_type, DataType::U16);
    assert_eq!(device.model.points[0].access, Access::Read);
    assert_eq!(loaded.warnings, []);
}

#[test]
fn points_that_cannot_be_are_refused() {
    for (keys, expected) in [
        ("table = \"holding\"", "`address` is missing"),
        ("address = 1", "`table` is missing"),
        ("table = \"holdng\"\naddress = 1", "did you mean \"holding\"?"),
        ("table = \"holding\"\naddress = 65536", "must be from 0 to 65535"),
        ("table = \"holding\"\naddress = 65535\ntype = \"u32\"", "takes 2 addresses from 65535"),
        ("table = \"holding\"\naddress = 1\ntype = \"bool\"", "needs `bit`"),
        ("table = \"holding\"\naddress = 1\nbit = 16", "outside the 16 bits"),
        ("table = \"holding\"\naddress = 1\nbit = 1\nbits = \"0-3\"", "stands beside `bit`"),
        ("table = \"holding\"\naddress = 1\nbits = \"4-2\"", "lowest and the highest"),
        ("table = \"holding\"\naddress = 1\ntype = \"f32\"\nbit = 1", "not a f32"),
        ("table = \"coil\"\naddress = 1\ntype = \"u16\"", "holds booleans only"),
        ("table = \"coil\"\naddress = 1\nbit = 1", "single bits"),
        ("table = \"holding\"\naddress = 1\ntype = \"string\"", "`length` is missing"),
        ("table = \"holding\"\naddress = 1\ntype = \"string\"\nlength = 251", "from 1 to 250"),
        ("table = \"holding\"\naddress = 1\nlength = 2", "has its own length"),
        ("table = \"holding\"\naddress = 1\ntype = \"bcd\"\nlength = 5", "1 to 4"),
        ("table = \"holding\"\naddress = 1\nscale = 0", "is 0"),
        ("table = \"holding\"\naddress = 1\ndeadband = -1", "at least 0"),
        ("table = \"holding\"\naddress = 1\ndeadband = \"101 %\"", "at most 100"),
        ("table = \"holding\"\naddress = 1\nclamp = [2, 1]", "lowest and the highest"),
        ("table = \"coil\"\naddress = 1\nscale = 2", "is for numbers"),
        ("table = \"holding\"\naddress = 1\nrate = 1", "1 has no unit; write \"1 s\""),
        ("table = \"holding\"\naddress = 1\nrate = \"49 ms\"", "must be from 50 ms to 1 d"),
        ("table = \"holding\"\naddress = 1\nrate = \"25 h\"", "must be from 50 ms to 1 d"),
        ("table = \"holding\"\naddress = 1\ngroup = \"fast\"", "there is no group \"fast\""),
        ("table = \"input\"\naddress = 1\naccess = \"read-write\"", "cannot be written"),
        ("table = \"holding\"\naddress = 1\nmin = 1", "read only"),
        ("table = \"holding\"\naddress = 1\naccess = \"write\"\nrate = \"1 s\"", "written only"),
        ("table = \"holding\"\naddress = 1\naccess = \"read-write\"\nmin = 5\nmax = 4", "is above"),
        ("table = \"holding\"\naddress = 1\naccess = \"read-write\"\nmax = 70000", "holds 0 to 65535"),
        ("table = \"holding\"\naddress = 1\nrate = \"1 s\"\ngroup = \"x\"", "stands beside `rate`"),
        ("table = \"holding\"\naddress = 1\ndescription = \"\"", "is empty"),
        ("table = \"holding\"\naddress = 1\non_change = \"yes\"", "true or false, without quotes"),
    ] {
        let told = point_refused(keys);
        assert!(told.contains(expected), "{keys}\nexpected {expected:?} in\n{told}");
        assert!(told.starts_with("devices/d.toml:"), "{told}");
    }
}

#[test]
fn places_are_those_of_the_value() {
    let told = point_refused("table = \"holding\"\naddress =   -5\n");
    assert!(told.starts_with("devices/d.toml:6:13: error: points.p.address: is -5"), "{told}");
}

#[test]
fn points_are_read_as_written() {
    let (loaded, _) = point(
        "table = \"holding\"\naddress = 0x10\ntype = \"u32\"\nbits = [3, 20]\ndeadband = \"2 %\"\naccess = \"read-write\"\nmax = 100\norder = \"ghefcdab\"",
    );
    let device = &loaded.devices[0];
    let DriverConfig::Modbus(modbus) = &device.driver;
    assert_eq!(modbus.points[0].bit, Some((3, 20)));
    assert_eq!(modbus.points[0].order, WordOrder::CDAB);
    assert!(modbus.write.verify, "writes are verified unless the file says otherwise");
    assert_eq!(device.rules[0].deadband, Deadband::Percent(2.0));
    let limits = device.model.points[0].limits.unwrap();
    assert_eq!((limits.min, limits.max), (0.0, 100.0), "an end that is not written is that of the type");
}

#[test]
fn rates_make_groups_and_write_only_points_are_in_none() {
    let text = format!(
        "rate = \"2 s\"\n{LINK}[groups.fast]\nrate = \"100 ms\"\n{}",
        [
            ("a", ""),
            ("b", "group = \"fast\""),
            ("c", "rate = \"2 s\""),
            ("d", "access = \"write\""),
            ("e", "group = \"fast\""),
            ("f", "rate = \"1 h\"")
        ]
        .map(|(id, rest)| format!("[[points]]\nid = \"{id}\"\ntable = \"holding\"\naddress = 1\n{rest}\n"))
        .concat()
    );
    let loaded = loaded(MAIN, &[("devices/d.toml", &text)]);
    let groups: Vec<_> =
        loaded.devices[0].groups.iter().map(|g| (g.name.as_deref(), g.every.as_millis(), g.points.clone())).collect();
    assert_eq!(groups, [(None, 2_000, vec![0, 2]), (Some("fast"), 100, vec![1, 4]), (None, 3_600_000, vec![5])]);
}

#[test]
fn links_in_all_their_forms() {
    let link = |text: &str| {
        let device = format!("[modbus]\nlink = {text}\n[[points]]\nid = \"p\"\ntable = \"coil\"\naddress = 1");
        let dir = dir(MAIN, &[("devices/d.toml", &device)]);
        load_at(dir.path()).map(|l| {
            let written = &l.devices[0].model.address;
            written.strip_suffix(" unit 1").unwrap().to_owned()
        })
    };
    for (text, shown) in [
        ("\"tcp://plc:1502\"", "tcp://plc:1502"),
        ("\"tcp://[2001:db8::7]\"", "tcp://[2001:db8::7]:502"),
        ("\"rtu-over-tcp://192.0.2.7:4001\"", "rtu-over-tcp://192.0.2.7:4001"),
        ("\"serial:///dev/ttyS0\"", "serial:///dev/ttyS0 19200 8E1"),
        ("\"serial:///dev/ttyS0?baud=9600&parity=none&stop=2\"", "serial:///dev/ttyS0 9600 8N2"),
        ("{ kind = \"tcp\", host = \"2001:db8::7\" }", "tcp://[2001:db8::7]:502"),
        ("{ kind = \"serial\", path = \"/dev/ttyS0\", parity = \"odd\" }", "serial:///dev/ttyS0 19200 8O1"),
    ] {
        assert_eq!(link(text).as_deref(), Ok(shown), "{text}");
    }
    for (text, expected) in [
        ("\"192.0.2.7\"", "is no link"),
        ("\"tpc://192.0.2.7\"", "did you mean tcp"),
        ("\"tcp://192.0.2.7:0\"", "port 0"),
        ("\"tcp://192.0.2.7:99999\"", "from 0 to 65535"),
        ("\"rtu-over-tcp://192.0.2.7\"", "host:port"),
        ("\"serial://ttyS0\"", "three slashes"),
        ("\"serial:///dev/ttyS0?baut=9600\"", "did you mean `baud`"),
        ("\"serial:///dev/ttyS0?baud=1\"", "from 300"),
        ("\"serial:///dev/ttyS0?parity=maybe\"", "none, even or odd"),
        ("{ kind = \"serial\" }", "`path` is missing"),
        ("{ kind = \"tcp\", host = \"h\", baud = 9600 }", "unknown key `baud`"),
        ("5", "must be a text"),
    ] {
        let told = link(text).unwrap_err().to_string();
        assert!(told.contains(expected), "{text}: {told}");
    }
}

#[test]
fn devices_that_share_a_link_must_agree() {
    let device = |link: &str| format!("[modbus]\n{link}\n[[points]]\nid = \"p\"\ntable = \"coil\"\naddress = 1");
    let pair = |a: &str, b: &str| refused(MAIN, &[("devices/a.toml", &device(a)), ("devices/b.toml", &device(b))]);
    let told = pair("link = \"serial:///dev/ttyS0?baud=9600\"", "link = \"serial:///dev/ttyS0?baud=19200\"");
    assert!(
        told.contains("devices/b.toml:2:8") && told.contains("devices/a.toml:2:8") && told.contains("9600 8E1"),
        "{told}"
    );
    let told = pair("link = \"tcp://h\"", "link = \"tcp://H:502\"\npause_between_requests = \"5 ms\"");
    assert!(told.contains("`pause_between_requests` is 0 s there and 5 ms here"), "{told}");
    assert!(pair("link = \"tcp://h:502\"", "link = \"rtu-over-tcp://h:502\"").contains("one says"));
}

#[test]
fn names_that_stand_twice_are_refused_with_both_places() {
    let device = format!("id = \"d\"\n{LINK}[[points]]\nid = \"p\"\ntable = \"coil\"\naddress = 1\n");
    let told = refused(MAIN, &[("devices/a.toml", &device), ("devices/b.toml", &device)]);
    assert!(told.contains("devices/b.toml: error: id: device `d`") && told.contains("devices/a.toml"), "{told}");
    let told =
        refused(MAIN, &[("devices/a.toml", &format!("{device}[[points]]\nid = \"p\"\ntable = \"coil\"\naddress = 2"))]);
    assert!(
        told.contains("a.toml:9:6: error: points.p.id: point `p` is there already at") && told.contains("a.toml:5:6"),
        "{told}"
    );
    let uplink = "[[uplink]]\nname = \"u\"\nservers = \"mqtt://b\"\n";
    assert!(refused(&format!("{MAIN}{uplink}{uplink}"), &[]).contains("uplink `u` is there already"));
}

#[test]
fn a_profile_plus_an_address_is_a_device_and_the_device_wins() {
    let profile = "rate = \"5 s\"\n[modbus]\nunit = 9\n[[points]]\nid = \"a\"\ntable = \"holding\"\naddress = 1\nscale = 0.1\n[[points]]\nid = \"b\"\ntable = \"holding\"\naddress = 2";
    let device = format!(
        "profile = \"t\"\n{LINK}[[points]]\nid = \"a\"\naddress = 3\n[[points]]\nid = \"c\"\ntable = \"coil\"\naddress = 1"
    );
    let loaded = loaded(
        "[gateway]\nid = \"g\"\n[defaults]\nrate = \"9 s\"\n[defaults.modbus]\ntimeout = \"7 s\"",
        &[("profiles/t.toml", profile), ("devices/d.toml", &device)],
    );
    let device = &loaded.devices[0];
    let DriverConfig::Modbus(modbus) = &device.driver;
    let ids: Vec<_> = device.model.points.iter().map(|p| p.id.as_str().to_owned()).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    assert_eq!((modbus.points[0].address, device.rules[0].scale), (3, 0.1));
    assert_eq!(
        (modbus.unit, modbus.reply_timeout, device.groups[0].every),
        (9, Some(Duration::from_secs(7)), Duration::from_secs(5))
    );
    assert_eq!(modbus.link, Link::Tcp { host: "192.0.2.7".into(), port: 502 });
}

#[test]
fn a_mistake_in_a_shared_layer_is_told_once_at_its_own_place() {
    let profile = "[[points]]\nid = \"a\"\ntable = \"holding\"\nadress = 1";
    let device = |unit: u8| format!("profile = \"t\"\n{LINK}unit = {unit}");
    let (a, b) = (device(1), device(2));
    let told = refused(MAIN, &[("profiles/t.toml", profile), ("devices/a.toml", &a), ("devices/b.toml", &b)]);
    assert_eq!(told.matches("unknown key `adress`; did you mean `address`?").count(), 1, "{told}");
    assert!(told.contains("profiles/t.toml:4:1: error"), "{told}");
    let told = refused("[gateway]\nid = \"g\"\n[defaults]\nlink = 1\n[defaults.modbus]\nunit = 3\n", &[]);
    assert!(told.contains("unknown key `link`") && told.contains("unknown key `unit`"), "{told}");
}

#[test]
fn every_way_of_saving_a_list_gives_the_same_device() {
    let comma = "id,table,address,type,scale,description\na,holding,1,i16,0.1,\"x, y\"\nb,coil,2,,,\n";
    let others = [
        "\u{feff}id;table;address;type;scale;description\r\na;holding;1;i16;0.1;\"x, y\"\r\nb;coil;2;;;\r\n;;;;;\r\n"
            .to_owned(),
        comma.replace("\"x, y\"", "x; y").replace(',', "\t").replace("x; y", "x, y"),
    ];
    let device = format!("points = \"../points/l.csv\"\n{LINK}");
    let read = |list: &str| loaded(MAIN, &[("devices/d.toml", &device), ("points/l.csv", list)]).devices.remove(0);
    let expected = read(comma);
    for list in others {
        let device = read(&list);
        assert_eq!(
            (device.model, device.rules, device.driver),
            (expected.model.clone(), expected.rules.clone(), expected.driver.clone()),
            "{list}"
        );
    }
    let told =
        refused(MAIN, &[("devices/d.toml", &device), ("points/l.csv", "id;table;address;scale\na;holding;1;0,1\n")]);
    assert!(told.contains("points/l.csv:2:4: error: points.a.scale: `0,1` is written with a comma"), "{told}");
}

#[test]
fn listeners_that_would_let_everyone_in_are_refused() {
    let listener = |keys: &str| format!("{MAIN}[[broker.listener]]\naddress = \"0.0.0.0:1883\"\n{keys}");
    assert!(refused(&listener("allow_anonymous = true"), &[]).contains("set it to false"));
    let told = refused(&listener("[[broker.user]]\nname = \"u\"\npassword = { file = \"no\" }\n"), &[]);
    assert!(
        told.contains("there is no file") && !told.contains("nobody could log in"),
        "one mistake is told once: {told}"
    );
    assert!(refused(&listener(""), &[]).contains("nobody could log in"));
    let open = loaded(&listener("[[broker.user]]\nname = \"u\"\npassword = \"secret\"\n"), &[]);
    assert!(open.warnings.iter().any(|w| w.text.contains("without TLS")), "{:?}", open.warnings);
    let shown = summary::Summary(&open).to_string();
    assert!(shown.contains("without TLS") && shown.ends_with("warnings: 2"), "{shown}");
    assert!(open.warnings.iter().any(|w| w.key == "broker.user[1].password" && w.text.contains("everyone may read")));
    assert!(
        refused(&format!("{MAIN}[[broker.user]]\nname = \"u\"\npassword_hash = \"plain\""), &[])
            .contains("no argon2 hash")
    );
    assert!(
        refused(&format!("{MAIN}[broker.listener]\naddress = \"127.0.0.1:1\""), &[]).contains("[[broker.listener]]")
    );
}

#[test]
fn no_user_may_pass_for_a_device_or_for_others() {
    let user = |name: &str| format!("{MAIN}[[broker.user]]\nname = \"{name}\"\npassword = {{ file = \"pw\" }}\n");
    for (name, expected) in [
        ("device:pump-1", "would be taken for a device"),
        ("device:", "would be taken for a device"),
        ("*", "stands for other clients"),
        ("scada-*", "stands for other clients"),
        ("$authenticated", "stands for other clients"),
        ("anonymous", "stands for other clients"),
    ] {
        let told = refused(&user(name), &[("pw", "s3cret")]);
        assert!(told.contains("broker.user[1].name") && told.contains(expected), "{name}: {told}");
    }
    let users = loaded(&user("devices"), &[("pw", "s3cret")]).gateway.broker.unwrap().users;
    assert_eq!(users[0].name, "devices");
}

#[test]
fn secrets_come_from_files_and_the_environment() {
    let user = |password: &str| format!("{MAIN}[[broker.user]]\nname = \"u\"\npassword = {password}\n");
    let from_file = loaded(&user("{ file = \"pw\" }"), &[("pw", "s3cret\r\n")]);
    assert_eq!(from_file.gateway.broker.unwrap().users[0].password.expose(), "s3cret");
    for (password, expected) in [
        ("{ file = \"missing\" }", "there is no file"),
        ("{ env = \"FIELDGATE_TEST_NOT_SET\" }", "is not set"),
        ("{ file = \"pw\", env = \"X\" }", "exactly one"),
        ("{ fil = \"pw\" }", "did you mean `file`?"),
        ("\"\"", "is empty"),
        ("7", "is an integer"),
    ] {
        let told = refused(&user(password), &[("pw", "s3cret")]);
        assert!(told.contains(expected), "{password}: {told}");
        assert!(!told.contains("s3cret"));
    }
}

#[test]
fn what_is_no_configuration_is_refused_with_words() {
    let empty = tempfile::tempdir().unwrap();
    assert!(load_at(empty.path()).unwrap_err().to_string().contains("fieldgate init"));
    assert!(refused("gateway = 1", &[]).contains("must be a table"));
    assert!(refused("a = [", &[]).contains("fieldgate.toml:1:"));
    assert!(refused("[store]\nmax_size = \"1 MiB\"", &[]).contains("from 8 MiB to 16 TiB"));
    assert!(refused("[store]\nmax_size = \"8 MiB\"\nbulk_min = \"8 MiB\"", &[]).contains("together are more"));
    assert!(refused(MAIN, &[("devices/not an id.toml", LINK)]).contains("the name of the file cannot serve"));
}

#[test]
fn disabled_devices_are_checked_and_left_out() {
    let device = format!("enabled = false\n{LINK}[[points]]\nid = \"p\"\ntable = \"coil\"\naddress = 1");
    let loaded = loaded(MAIN, &[("devices/d.toml", &device)]);
    assert_eq!((loaded.devices.len(), loaded.disabled.len()), (0, 1));
    assert!(refused(MAIN, &[("devices/d.toml", &device.replace("address", "adress"))]).contains("adress"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Any octets in any file are read or refused, and never stop the process.
    #[test]
    fn garbage_is_refused(main in ".{0,80}", device in "[a-z\\[\\]=\"{}\n .0-9-]{0,120}", list in proptest::collection::vec(any::<u8>(), 0..80)) {
        let dir = dir(&main, &[("devices/d.toml", &device), ("devices/e.toml", &format!("points = \"l.csv\"\n{LINK}"))]);
        fs::write(dir.path().join("devices/l.csv"), list).unwrap();
        let _ = load_at(dir.path());
    }
}
