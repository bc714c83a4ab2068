//! What a site needs to be the client of a simulated fleet manager: artifacts in a directory, the settings, and the way in.

use std::io::Write;
use std::time::Duration;

use fieldgate::margo::words::Digest;
use fieldgate_simulators::margo::{Authority, Records, Wfm};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{Site, errors, text};

/// Longest wait for what a fleet manager is to see.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Life of the SVIDs of tests that do not exchange them.
const LIFE: Duration = Duration::from_secs(86_400);

/// Puts layers with their media types into the site's directory of artifacts, as `oci://registry.example/{name}` with a tag.
pub fn artifact<B: AsRef<[u8]>>(site: &Site, name: &str, tag: &str, layers: &[(&str, B)], annotations: &Value) {
    let described = |kind: &str, bytes: &[u8]| json!({ "mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len() });
    let listed: Vec<_> = layers.iter().map(|(kind, bytes)| described(kind, bytes.as_ref())).collect();
    let empty = described("application/vnd.oci.empty.v1+json", b"{}");
    let manifest =
        json!({ "schemaVersion": 2, "config": empty, "layers": listed, "annotations": annotations }).to_string();
    let layout = format!("artifacts/registry.example/{name}");
    for bytes in layers.iter().map(|(_, bytes)| bytes.as_ref()).chain([manifest.as_bytes()]) {
        site.write_bytes(&format!("{layout}/blobs/sha256/{}", Digest::of(bytes).hex()), bytes);
    }
    let index = format!("{layout}/index.json");
    let known = std::fs::read_to_string(site.path().join(&index)).ok();
    let known: Option<Value> = known.and_then(|text| serde_json::from_str(&text).ok());
    let mut all = known.and_then(|index| index["manifests"].as_array().cloned()).unwrap_or_default();
    let mut entry = described("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    all.push(entry);
    site.write(&index, &json!({ "schemaVersion": 2, "manifests": all }).to_string());
}

/// Where an artifact of the directory is for a deployment.
pub fn repository(name: &str) -> String {
    format!("oci://registry.example/{name}")
}

/// The `[margo]` of a gateway whose fleet manager may deploy `delegate` to its devices; `more` are further keys.
pub fn settings(wfm: &Wfm, delegate: &[&str], more: &str) -> String {
    let delegate: Vec<String> = delegate.iter().map(|name| format!("{name} = true")).collect();
    format!(
        "[margo]\nurl = \"{}\"\ntrust = {{ bundle = \"bundle.json\" }}\npolling = {{ every = \"1 s\" }}\n\
         delegate = {{ {} }}\nartifacts = {{ directory = \"artifacts\", registries = false }}\n{more}\n",
        wfm.url(),
        delegate.join(", ")
    )
}

/// Joining: the key stays, the request goes to the operator, the chain comes back.
pub fn join(site: &Site, wfm: &Wfm, authority: &Authority, client: &str) {
    trust(site, authority);
    let joined = site.run(&["margo", "join", "--trust-domain", authority.trust_domain(), "--wfm", wfm.id()]);
    assert!(joined.status.success(), "{}", errors(&joined));
    assert!(text(&joined).contains(&authority.client_id(wfm.id(), client)), "{}", text(&joined));
    sign(site, wfm, authority, client);
}

/// The operator signs the request that lies there, with the newest authority.
pub fn sign(site: &Site, wfm: &Wfm, authority: &Authority, client: &str) {
    let request = std::fs::read_to_string(site.data().join("margo/svid.csr.pem")).unwrap();
    let chain = authority.sign_request(&request, &authority.client_id(wfm.id(), client), LIFE);
    site.write("data/margo/svid.pem", &chain.unwrap());
}

/// The operator hands out the present trust bundle.
pub fn trust(site: &Site, authority: &Authority) {
    site.write("bundle.json", &authority.bundle().to_string());
}

/// Waits until the fleet manager has seen something, and says what it has seen when it has not.
pub fn wait<T>(runtime: &Runtime, wfm: &Wfm, what: &str, look: impl Fn(&Records) -> Option<T>) -> T {
    runtime.block_on(wfm.wait(what, PATIENCE, look)).unwrap_or_else(|error| {
        let seen = wfm.records();
        let devices: Vec<&String> = seen.devices.keys().collect();
        let last = seen.deployments.keys().map(|id| {
            let each = seen.latest(id).into_iter().map(|s| format!("  {} {:?} {}", s.state, s.device, s.body));
            format!("{id}\n{}", each.collect::<Vec<_>>().join("\n"))
        });
        panic!("{error}\ndevices {devices:?}\n{}", last.collect::<Vec<_>>().join("\n"))
    })
}

/// A gzipped tar of these files.
pub fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar.into_inner().unwrap()).unwrap();
    gzip.finish().unwrap()
}
