//! Reads `[margo]`: the fleet manager that this gateway is a client of.

mod details;
mod engine;
mod hosting;

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::checked::{Est, Identity};
use super::super::reader::Reader;
use super::super::secret::path;
use super::super::tree::Item;
use super::super::value::{boolean, choice, host_port, id, line, millis};
use super::certificates;
use crate::margo::api::Base;
use crate::margo::component::SourceConfig;
use crate::margo::config::{Config, Details, Generation, Mode};
use crate::margo::identity::{BundleSource, ClientName, FirstContact, IdentityFiles, TlsVersions, enrolment_directory};
use crate::margo::plant::Functions;
use crate::margo::polling::{Polling, Window};
use crate::margo::reconcile::Wildcard;
use crate::margo::words::DevicePath;
use crate::model::DeviceId;
use details::{Whose, delegate, details};

/// Longest common name (RFC 5280, ub-common-name).
const MAX_COMMON_NAME: usize = 64;

#[derive(Clone, Copy, PartialEq)]
enum Interfaces {
    Rc3,
    Preview,
}

#[derive(Clone, Copy, PartialEq)]
enum Modes {
    SeeThru,
    Opaque,
    Transparent,
}

/// The client, and where its SVID is enrolled if not from files. `None` when it is switched off or cannot be used, which was
/// reported.
pub(super) fn read(section: &Reader<'_>, gateway: &Identity) -> Option<(Config, Option<Est>)> {
    let directory = gateway.data_dir.join("margo");
    let url = section.required("url", "url = \"https://wfm.example\"", |item| {
        Base::new(&line(1_000)(item)?).map_err(|error| error.to_string())
    });
    let own = DevicePath::new(gateway.id.as_str()).ok();
    let device = section.optional("id", |item| DevicePath::new(&line(259)(item)?).map_err(|e| e.to_string())).or(own);
    const MODES: &[(&str, Modes)] =
        &[("see-thru", Modes::SeeThru), ("opaque", Modes::Opaque), ("transparent", Modes::Transparent)];
    let mode = section.or("mode", Modes::SeeThru, choice(MODES));
    const WILDCARDS: &[(&str, Wildcard)] =
        &[("one", Wildcard::One), ("every", Wildcard::Every), ("refused", Wildcard::Refused)];
    let own_section = section.section("identity", "margo.identity");
    let svid = own_section.table("est", "margo.identity.est").map(|est| enrolment(&own_section, &est, device.as_ref()));
    let identity = match &svid {
        Some(est) => enrolled(&directory, est.as_ref()),
        None => identity(&own_section, &directory),
    };
    let (devices, identities) = devices(section, mode);
    let generation = generation(section);
    // Everything is read before anything is given up, so that every mistake is reported at once.
    let (timeout, wildcard, enabled) = (
        section.or("timeout", Duration::from_secs(30), millis(1_000, 600_000)),
        section.or("wildcard", Wildcard::One, choice(WILDCARDS)),
        section.or("enabled", true, boolean),
    );
    let polling = polling(&section.section("polling", "margo.polling"));
    let source = artifacts(&section.section("artifacts", "margo.artifacts"));
    let delegate = delegate(&section.section("delegate", "margo.delegate"), Functions::default());
    let gateway =
        section.table("gateway", "margo.gateway").map(|table| details(&table, Whose::Gateway)).unwrap_or_default();
    let hosts = |details: &Details| details.hosting.is_some();
    if mode == Modes::Opaque && !hosts(&gateway) && !devices.values().any(hosts) {
        let text = "an opaque gateway without `hosting` ([margo.gateway.hosting] or that of a device) shows nothing that a \
                    fleet manager could deploy to";
        section.warn("mode", text);
    }
    let mode = match mode {
        Modes::SeeThru => Mode::SeeThru,
        Modes::Opaque => Mode::Opaque,
        Modes::Transparent => Mode::Transparent(identities),
    };
    let (url, generation, device) = (url?, generation?, device?);
    let config = Config {
        url,
        generation,
        identity,
        mode,
        device,
        timeout,
        polling,
        wildcard,
        source,
        delegate,
        gateway,
        devices,
        directory,
    };
    // An enrolment that cannot be used leaves nothing to be known by.
    let svid = match svid {
        Some(est) => Some(est?),
        None => None,
    };
    enabled.then_some((config, svid))
}

/// Where the keeper of an enrolled identity puts it.
fn enrolled(directory: &std::path::Path, est: Option<&Est>) -> IdentityFiles {
    let current = enrolment_directory(directory).join("current");
    let enrolled = est.and_then(|est| est.uri.clone());
    IdentityFiles { chain: current.join("cert.pem"), key: current.join("key.pem"), enrolled }
}

/// Where the SVID is enrolled, and as whom.
fn enrolment(section: &Reader<'_>, est: &Reader<'_>, device: Option<&DevicePath>) -> Option<Est> {
    for key in ["cert", "key"].into_iter().filter(|key| section.has(key)) {
        section.warn(key, "is not used: the SVID is enrolled by `est`");
    }
    let text = |key, example| est.required(key, example, line(255));
    let (trust_domain, wfm) =
        (text("trust_domain", "trust_domain = \"plant.example\""), text("wfm", "wfm = \"wfm-1\""));
    let own = device.map(|device| device.as_str().replace('/', ".")).unwrap_or_default();
    let client = est.or("client", own, line(255));
    let name = match ClientName::new(&trust_domain?, &wfm?, &client) {
        Ok(name) => name,
        Err(error) => {
            est.error("trust_domain", error.to_string());
            return None;
        }
    };
    let common_name = name.client_id().chars().take(MAX_COMMON_NAME).collect();
    certificates::enrolment(est, common_name, Some(name.id().to_string()))
}

fn identity(section: &Reader<'_>, directory: &std::path::Path) -> IdentityFiles {
    // They may not be there yet: `fieldgate margo join` makes the key and the request.
    IdentityFiles {
        chain: section.optional("cert", path).unwrap_or_else(|| directory.join("svid.pem")),
        key: section.optional("key", path).unwrap_or_else(|| directory.join("svid.key")),
        enrolled: None,
    }
}

fn generation(section: &Reader<'_>) -> Option<Generation> {
    let interface = section.or(
        "interface",
        Interfaces::Rc3,
        choice(&[("rc.3", Interfaces::Rc3), ("preview", Interfaces::Preview)]),
    );
    let trust = section.section("trust", "margo.trust");
    let ca = trust.file("ca");
    let pss = trust.or("rsa_pss", true, boolean);
    let tls = if trust.or("tls12", false, boolean) { TlsVersions::Also12 } else { TlsVersions::Only13 };
    let max_age = trust.or("max_connection_age", Duration::from_secs(3_600), millis(10_000, 86_400_000));
    let bundle = bundle(&trust, interface == Interfaces::Rc3);
    match interface {
        Interfaces::Rc3 => Some(Generation::Rc3 { bundle: bundle?, tls, max_age }),
        Interfaces::Preview => {
            if ca.is_none() && !trust.has("ca") {
                let text = "`ca` is missing: the preview interface verifies the server by an authority and its name";
                trust.context.error(&trust.table.place, trust.key("ca"), text);
            }
            Some(Generation::Preview { ca: ca?, pss })
        }
    }
}

fn bundle(trust: &Reader<'_>, wanted: bool) -> Option<BundleSource> {
    let contact = FirstContact { anchors: trust.file("anchors"), pins: trust.list("pins", pin).unwrap_or_default() };
    let (has_anchors, discover) = (trust.has("anchors"), trust.or("discover", false, boolean));
    let place = trust.optional("bundle", |item| {
        let text = line(1_000)(item)?;
        Ok(if text.contains("://") { Err(https(&text)?) } else { Ok(path(item)?) })
    });
    if !wanted {
        return None;
    }
    if !trust.has("bundle") {
        let text =
            "`bundle` is missing; write a file or https://…, with `discover = true` the origin that says where it is";
        trust.context.error(&trust.table.place, trust.key("bundle"), text);
    }
    match place? {
        Ok(_) if discover => {
            trust.error("discover", "needs `bundle` to be the https origin of the fleet manager, not a file");
            None
        }
        Ok(file) => Some(BundleSource::File(file)),
        Err(_) if !has_anchors && contact.pins.is_empty() => {
            let text = "first contact needs `anchors` (a PEM file) or `pins`: nobody is trusted on first use";
            trust.error("bundle", text);
            None
        }
        Err(url) if discover => Some(BundleSource::Discovery { url, contact }),
        Err(url) => Some(BundleSource::Uri { url, contact }),
    }
}

fn pin(item: &Item) -> Result<crate::margo::words::Digest, String> {
    FirstContact::parse_pin(&line(100)(item)?).map_err(|error| error.to_string())
}

fn https(text: &str) -> Result<String, String> {
    match Base::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("\"{text}\" is no address; write https://host[:port]/path")),
    }
}

fn polling(section: &Reader<'_>) -> Polling {
    let window = |item: &Item| Window::parse(&line(100)(item)?).map_err(|error| error.to_string());
    Polling {
        every: section.or("every", Duration::from_secs(60), millis(1_000, 86_400_000)),
        hours: section.list("hours", window).unwrap_or_default(),
        downtime: section.list("downtime", window).unwrap_or_default(),
    }
}

fn artifacts(section: &Reader<'_>) -> SourceConfig {
    let host = |item: &Item| host_port(&line(300)(item)?, Some(0)).and(line(300)(item));
    let (user, password) = (section.optional("user", line(1_000)), section.secret("password"));
    if user.is_some() != password.is_some() {
        let there = if user.is_some() { "user" } else { "password" };
        section.error(there, "a registry's login needs both `user` and `password`");
    }
    SourceConfig {
        directory: section.optional("directory", path),
        registries: section.or("registries", true, boolean),
        ca: section.file("ca"),
        plain: section.list("plain", host).unwrap_or_default(),
        login: user.zip(password),
    }
}

type Devices = (BTreeMap<DeviceId, Details>, BTreeMap<DeviceId, IdentityFiles>);

fn devices(section: &Reader<'_>, mode: Modes) -> Devices {
    let (mut all, mut identities) = (BTreeMap::new(), BTreeMap::new());
    for reader in section.tables("device", "margo.device") {
        let found = reader.required("id", "id = \"pump-1\"", id::<DeviceId>);
        let parent = reader.optional("parent", id::<DeviceId>);
        if parent.is_some() && parent == found {
            reader.error("parent", "a device is not behind itself; leave it out for one directly behind the gateway");
        }
        let details = Details { parent, ..details(&reader, Whose::Device) };
        let files = reader.optional("cert", path).zip(reader.optional("key", path));
        if reader.has("cert") != reader.has("key") {
            reader.error(if reader.has("cert") { "cert" } else { "key" }, "an identity needs both `cert` and `key`");
        }
        if files.is_some() && mode != Modes::Transparent {
            reader.warn("cert", "is not used: only with mode = \"transparent\" devices have identities of their own");
        }
        let Some(device) = found else { continue };
        if let Some((chain, key)) = files {
            identities.insert(device.clone(), IdentityFiles { chain, key, enrolled: None });
        }
        if all.insert(device.clone(), details).is_some() {
            reader.error("id", format!("device {device} stands here twice"));
        }
    }
    if mode == Modes::Transparent && identities.is_empty() {
        section.error(
            "mode",
            "a transparent gateway needs [[margo.device]] with `id`, `cert` and `key` for each device to show",
        );
    }
    (all, identities)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::load;

    fn write(dir: &Path, margo: &str) {
        std::fs::write(dir.join("fieldgate.toml"), format!("[gateway]\nid = \"gw-7\"\n{margo}")).unwrap();
        std::fs::write(dir.join("anchors.pem"), "not read by the loader").unwrap();
    }

    fn problems(margo: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), margo);
        load(dir.path()).map_or_else(|problems| problems.to_string(), |_| String::new())
    }

    #[test]
    fn a_short_section_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "[margo]\nurl = \"https://wfm.example/v1alpha2/margo\"\ntrust = { bundle = \"bundle.json\" }\n",
        );
        let margo = load(dir.path()).unwrap().gateway.margo.unwrap();
        assert_eq!(
            (margo.device.as_str(), margo.url.to_string().as_str()),
            ("gw-7", "https://wfm.example/v1alpha2/margo")
        );
        assert!(margo.identity.key.ends_with("data/margo/svid.key"));
    }

    #[test]
    fn mistakes_are_named() {
        for (margo, told) in [
            ("[margo]\nurl = \"http://wfm\"\ntrust = { bundle = \"b\" }\n", "is no address of a fleet manager"),
            ("[margo]\nurl = \"https://wfm\"\n", "`bundle` is missing"),
            (
                "[margo]\nurl = \"https://wfm\"\ntrust = { bundle = \"https://t/b\" }\n",
                "nobody is trusted on first use",
            ),
            ("[margo]\nurl = \"https://wfm\"\ntrust = { bundle = \"https://t/b\", pins = \"x\" }\n", "the pin \"x\""),
            ("[margo]\nurl = \"https://wfm\"\ninterface = \"preview\"\n", "`ca` is missing"),
            (
                "[margo]\nurl = \"https://wfm\"\nmode = \"transparent\"\ntrust = { bundle = \"b\" }\n",
                "a transparent gateway needs",
            ),
            (
                "[margo]\nurl = \"https://wfm\"\ntrust = { bundle = \"b\" }\nidentity = { est = { url = \"https://ca\", trust_domain = \"t\", wfm = \"w\" } }\n",
                "`anchors` is missing",
            ),
            (
                "[margo]\nurl = \"https://wfm\"\ntrust = { bundle = \"b\" }\nidentity = { est = { url = \"https://ca\", anchors = \"anchors.pem\", trust_domain = \"A B\", wfm = \"w\" } }\n",
                "margo.identity.est.trust_domain",
            ),
            (
                "[margo]\nurl = \"https://wfm\"\ntrust = { bundle = \"b\" }\npolling = { hours = \"x\" }\n",
                "is no window",
            ),
            (
                "[margo]\nurl = \"https://wfm\"\ntrust = { bundle = \"b\" }\ngateway = { labels = { a = { b = 1 } } }\n",
                "`a` must be a text",
            ),
            (
                "[margo]\nurl = \"https://wfm\"\ntrust = { bundle = \"b\" }\ngateway = { extensions = { a = { b = 1 } } }\n",
                "x-<name>-extensions",
            ),
            (
                "[margo]\nurl = \"https://wfm\"\ntrust = { bundle = \"b\" }\ngateway = { hosting = { memory = \"2Gi\", storage = \"lots\" } }\n",
                "is no quantity",
            ),
            (
                "[margo]\nurl = \"https://wfm\"\ntrust = { bundle = \"b\" }\nartifacts = { user = \"u\" }\n",
                "needs both `user` and `password`",
            ),
        ] {
            let found = problems(margo);
            assert!(found.contains(told), "{told:?} is not in {found}");
        }
    }
}
