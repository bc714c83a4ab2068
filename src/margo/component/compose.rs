//! A `compose` component: a Compose project, read and judged before anything of it runs.
//!
//! # Form of the artifact
//! Either of
//! - a Margo Compose Archive: one layer [`ARCHIVE_TYPES`], a gzipped tar with `compose.yaml` in its root or in its one top-level
//!   directory, and the files that it refers to by relative paths;
//! - what `docker compose publish` writes: layers [`FILE_TYPE`], merged in their order, and layers [`ENV_FILE_TYPE`].
//!
//! **Promise.** What was judged is what runs: a compose file is read once, within a budget, and handed on in the form that it was
//! read to, so that no other reader of YAML can find something else in it. [`policy`] names everything by which a project would
//! reach beyond its own containers; it knows each key that it lets pass, so that a key that somebody invents later is not let
//! pass. Values of parameters are never printed.
//!
//! **Limits.** 1 MiB and 200 files, packed and unpacked; larger things belong into images, which the engine pulls. An image
//! without a digest is taken: which image it is, is then the registry's word.
//!
//! **Must not** run anything, or write files.

mod archive;
mod environment;
mod policy;

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

pub use environment::Environment;
pub use policy::{Allowed, Need, PRIVILEGES, Privilege};

use super::format::{FormatError, Layer};
use crate::margo::yaml::{self, Zeros};

/// Media type of a compose file, as `docker compose publish` writes it.
pub const FILE_TYPE: &str = "application/vnd.docker.compose.file+yaml";
/// Media type of an env file beside it.
pub const ENV_FILE_TYPE: &str = "application/vnd.docker.compose.envfile";
/// Media types of a Margo Compose Archive: the accepted text's, and that of the draft before it.
pub const ARCHIVE_TYPES: [&str; 2] =
    ["application/vnd.org.margo.component.compose.tar+gzip", "application/vnd.org.margo.component.compose.v1.tar.gzip"];
/// Longest archive, packed and unpacked.
pub const MAX_ARCHIVE: u64 = 1 << 20;
/// Longest compose file.
pub const MAX_FILE: u64 = 256 << 10;
/// Longest compose file with its aliases resolved.
const MAX_RESOLVED: usize = 1 << 20;
/// Most compose files of one project.
const MAX_FILES: usize = 16;
/// Annotations of layers.
pub(super) const EXTENDS: &str = "com.docker.compose.extends";
pub(super) const ENV_FILE: &str = "com.docker.compose.envfile";

/// A Compose project with its parameters bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Project {
    /// Deployment and component: what it belongs to.
    pub owner: String,
    /// Compose files of `files`, in the order in which they are merged.
    pub compose: Vec<String>,
    /// By their path in the package; the compose files as JSON.
    pub files: BTreeMap<String, File>,
    /// Parameters.
    pub environment: Environment,
    /// What the host must allow.
    pub needs: Vec<Need>,
    /// How long it may take until it runs.
    pub timeout_ms: Option<u64>,
}

/// The content of a file of a package.
#[derive(Clone, PartialEq, Eq)]
pub struct File(pub Vec<u8>);

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for File {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for File {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Whether a layer of this type belongs to a Compose project, and how long it may be.
pub(super) fn limit(kind: &str) -> Option<u64> {
    match kind {
        FILE_TYPE | ENV_FILE_TYPE => Some(MAX_FILE),
        kind if ARCHIVE_TYPES.contains(&kind) => Some(MAX_ARCHIVE),
        _ => None,
    }
}

fn wrong(reason: impl Into<String>) -> FormatError {
    FormatError::Payload(reason.into())
}

/// Reads the layers of a Compose project.
///
/// # Errors
/// [`FormatError::Payload`].
pub(super) fn read(layers: &[(Layer, bytes::Bytes)]) -> Result<Project, FormatError> {
    let (archives, files): (Vec<_>, Vec<_>) =
        layers.iter().partition(|(layer, _)| ARCHIVE_TYPES.contains(&layer.kind.as_str()));
    let (compose, package) = match archives[..] {
        [] => published(&files)?,
        [(_, bytes)] if files.is_empty() => {
            let (name, package) = archive::unpack(bytes)?;
            (vec![name], package)
        }
        _ => return Err(wrong("a Compose project is one archive, or compose files; not both")),
    };
    project(compose, package)
}

type Package = BTreeMap<String, Vec<u8>>;

/// Compose files and env files that are layers of their own.
fn published(layers: &[&(Layer, bytes::Bytes)]) -> Result<(Vec<String>, Package), FormatError> {
    let (mut compose, mut package) = (Vec::new(), Package::new());
    for (layer, bytes) in layers {
        let name = match (layer.kind.as_str(), layer.name.as_deref()) {
            (FILE_TYPE, Some(EXTENDS)) => {
                return Err(wrong(
                    "it has a layer that another one extends; write one file, `docker compose config` does",
                ));
            }
            (FILE_TYPE, _) => {
                let name = if compose.is_empty() {
                    "compose.yaml".to_owned()
                } else {
                    format!("compose-{}.yaml", compose.len())
                };
                compose.push(name.clone());
                name
            }
            (_, Some(name)) if archive::is_path(name) && !name.starts_with("compose") => name.to_owned(),
            (_, name) => return Err(wrong(format!("an env file cannot be called {:?}", name.unwrap_or_default()))),
        };
        if package.insert(name.clone(), bytes.to_vec()).is_some() {
            return Err(wrong(format!("it has two files {name:?}")));
        }
    }
    if compose.is_empty() || compose.len() > MAX_FILES {
        return Err(wrong(format!("it has {} compose files, there must be 1 to {MAX_FILES}", compose.len())));
    }
    Ok((compose, package))
}

fn project(compose: Vec<String>, package: Package) -> Result<Project, FormatError> {
    let mut files: BTreeMap<String, File> = package.into_iter().map(|(name, bytes)| (name, File(bytes))).collect();
    let mut needs = Vec::new();
    let mut services = 0;
    for name in &compose {
        let Some(file) = files.get_mut(name) else { return Err(wrong(format!("{name} is missing"))) };
        let most = usize::try_from(MAX_FILE).unwrap_or(usize::MAX);
        let value = yaml::read(&file.0, most, Zeros::Octal).map_err(|why| wrong(format!("{name}: {why}")))?;
        services += value["services"].as_object().map_or(0, serde_json::Map::len);
        needs.extend(policy::needs(&value));
        let resolved = value.to_string().into_bytes();
        if resolved.len() > MAX_RESOLVED {
            return Err(wrong(format!("{name} has {} bytes with its aliases resolved", resolved.len())));
        }
        *file = File(resolved);
    }
    if services == 0 {
        return Err(wrong("its compose file has no `services`"));
    }
    if let Some(File(dotenv)) = files.get(".env") {
        environment::check_file(dotenv).map_err(wrong)?;
    }
    Ok(Project {
        owner: String::new(),
        compose,
        files,
        environment: Environment::default(),
        needs: policy::few(needs),
        timeout_ms: None,
    })
}

impl Project {
    /// Sets a parameter; the error says what a pointer may be.
    ///
    /// # Errors
    /// Words.
    pub(super) fn set(&mut self, name: &str, value: &Value) -> Result<(), &'static str> {
        environment::check_name(name)?;
        let value = environment::text(value)?;
        let named = |File(bytes): &File| environment::mentions(bytes, name);
        if !self.files.values().any(named) {
            return Err("write the name of a variable that stands in the compose file, as ${NAME}");
        }
        self.environment.set(name, value);
        Ok(())
    }

    /// The package as it is handed to the engine: every service is told `variables`, unless it says something else itself.
    pub fn package(&self, variables: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        let file = |(name, File(bytes)): (&String, &File)| {
            let told = self.compose.contains(name).then(|| tell(bytes, variables)).flatten();
            (name.clone(), told.unwrap_or_else(|| bytes.clone()))
        };
        self.files.iter().map(file).collect()
    }
}

fn tell(bytes: &[u8], variables: &[(&str, &str)]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(bytes).ok()?;
    for service in value.get_mut("services")?.as_object_mut()?.values_mut().filter_map(Value::as_object_mut) {
        let said = service.entry("environment").or_insert(Value::Null);
        if said.is_null() {
            *said = Value::Object(serde_json::Map::new());
        }
        for (name, text) in variables {
            // Compose would read a dollar sign as the begin of a variable.
            let text = text.replace('$', "$$");
            match said {
                Value::Object(map) => {
                    map.entry(*name).or_insert_with(|| text.into());
                }
                Value::Array(list) => {
                    let says = |item: &Value| item.as_str().is_some_and(|item| item.split('=').next() == Some(name));
                    if !list.iter().any(says) {
                        list.push(format!("{name}={text}").into());
                    }
                }
                _ => {}
            }
        }
    }
    Some(value.to_string().into_bytes())
}

/// A layer and a compose file of it, for the fuzzer. Never panics, whatever they are.
pub fn fuzz_compose(data: &[u8]) {
    for kind in [FILE_TYPE, ARCHIVE_TYPES[0], ENV_FILE_TYPE] {
        let layer = Layer {
            kind: kind.to_owned(),
            digest: crate::margo::words::Digest::of(data),
            size: data.len() as u64,
            name: None,
        };
        if let Ok(mut project) = read(&[(layer, bytes::Bytes::copy_from_slice(data))]) {
            let _refused = project.set("NAME", &Value::from("value"));
            let _package = project.package(&[("OTEL", "http://a")]);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::margo::words::Digest;

    pub(crate) fn layer(kind: &str, bytes: &[u8]) -> (Layer, bytes::Bytes) {
        let digest = Digest::of(bytes);
        let layer = Layer { kind: kind.to_owned(), digest, size: bytes.len() as u64, name: None };
        (layer, bytes::Bytes::copy_from_slice(bytes))
    }

    /// A gzipped tar.
    pub(crate) fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            // As it stands, whatever it is.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(text.len() as u64);
            header.set_mode(0o4755);
            header.set_cksum();
            tar.append(&header, text.as_bytes()).unwrap();
        }
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar.into_inner().unwrap()).unwrap();
        gzip.finish().unwrap()
    }

    pub(crate) fn file(text: &str) -> Result<Project, FormatError> {
        read(&[layer(FILE_TYPE, text.as_bytes())])
    }

    /// A project of one service.
    pub(crate) fn project(owner: &str, image: &str) -> Project {
        let read = file(&format!("services: {{web: {{image: {image}}}}}")).unwrap();
        Project { owner: owner.to_owned(), ..read }
    }

    const WEB: &str = "services:\n  web:\n    image: web:1\n    environment:\n      SPEED: ${SPEED:-1}\n";

    #[test]
    fn an_archive_has_its_compose_file_in_the_root_or_in_its_one_directory() {
        for (kind, top) in [(ARCHIVE_TYPES[0], ""), (ARCHIVE_TYPES[1], "web/"), (ARCHIVE_TYPES[0], "./")] {
            let files = [(format!("{top}compose.yaml"), WEB), (format!("{top}config/app.conf"), "a=1")];
            let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), *text)).collect();
            let project = read(&[layer(kind, &archive(&files))]).unwrap();
            assert_eq!(project.compose, ["compose.yaml"], "{top}");
            assert_eq!(project.files["config/app.conf"].0, b"a=1");
            assert_eq!(project.needs, []);
        }
        let none = archive(&[("web/readme", "x"), ("other/compose.yaml", WEB)]);
        assert!(read(&[layer(ARCHIVE_TYPES[0], &none)]).is_err());
        let both = [layer(ARCHIVE_TYPES[0], &archive(&[("compose.yaml", WEB)])), layer(FILE_TYPE, WEB.as_bytes())];
        assert!(read(&both).is_err());
    }

    #[test]
    fn published_files_are_merged_in_their_order() {
        let env = (Layer { name: Some("app.env".to_owned()), ..layer(ENV_FILE_TYPE, b"A=1").0 }, "A=1".into());
        let two = "services: {web: {image: 'web:2'}}";
        let project = read(&[layer(FILE_TYPE, WEB.as_bytes()), layer(FILE_TYPE, two.as_bytes()), env]).unwrap();
        assert_eq!(project.compose, ["compose.yaml", "compose-1.yaml"]);
        assert_eq!(project.files.len(), 3);
        let outside = (Layer { name: Some("../app.env".to_owned()), ..layer(ENV_FILE_TYPE, b"A=1").0 }, "A=1".into());
        assert!(read(&[layer(FILE_TYPE, WEB.as_bytes()), outside]).is_err());
        let extended = (Layer { name: Some(EXTENDS.to_owned()), ..layer(FILE_TYPE, WEB.as_bytes()).0 }, WEB.into());
        assert!(read(&[layer(FILE_TYPE, WEB.as_bytes()), extended]).unwrap_err().to_string().contains("extends"));
    }

    #[test]
    fn what_was_read_is_what_is_handed_on() {
        let text = "x-base: &base {restart: always}\nservices:\n  web:\n    <<: *base\n    image: web:1\n    environment: {A: yes, B: 010, C: '010', D: 1.50}\nconfigs:\n  c: {content: x, mode: 0440}\n";
        let project = file(text).unwrap();
        let read: Value = serde_json::from_slice(&project.files["compose.yaml"].0).unwrap();
        assert_eq!(read["services"]["web"]["restart"], "always", "merged");
        assert_eq!(read["services"]["web"]["environment"], json!({ "A": "yes", "B": 8, "C": "010", "D": 1.5 }));
        for twice in
            ["services:\n  web: {image: a, privileged: false, privileged: true}\n", "services: {}\n", "- a\n", ": :"]
        {
            assert!(file(twice).is_err(), "{twice}");
        }
    }

    #[test]
    fn a_parameter_is_a_variable_that_the_compose_file_names() {
        let mut project = file(WEB).unwrap();
        project.set("SPEED", &json!(42)).unwrap();
        assert_eq!(project.environment.get("SPEED"), Some("42"));
        for (name, value) in [
            ("SPEEDY", json!(1)),
            ("1SPEED", json!(1)),
            ("/values/speed", json!(1)),
            ("DOCKER_HOST", json!("tcp://evil")),
            ("compose_file", json!("x")),
            ("PATH", json!("/tmp")),
            ("SPEED", json!({ "a": 1 })),
            ("SPEED", json!(null)),
            ("SPEED", json!("a\u{0}b")),
        ] {
            assert!(project.set(name, &value).is_err(), "{name} {value}");
        }
        let shown = format!("{project:?}");
        assert!(shown.contains("SPEED") && !shown.contains("42"), "values are not printed: {shown}");
    }

    #[test]
    fn services_are_told_where_the_collector_is_unless_they_say_it_themselves() {
        let text = "services:\n  a: {image: a}\n  b: {image: b, environment: [OTEL=mine, X]}\n  c: {image: c, environment: {OTEL: null}}\n";
        let package = file(text).unwrap().package(&[("OTEL", "http://c/$a")]);
        let told: Value = serde_json::from_slice(&package["compose.yaml"]).unwrap();
        assert_eq!(told["services"]["a"]["environment"], json!({ "OTEL": "http://c/$$a" }));
        assert_eq!(told["services"]["b"]["environment"], json!(["OTEL=mine", "X"]));
        assert_eq!(told["services"]["c"]["environment"], json!({ "OTEL": null }));
    }

    #[test]
    fn a_compose_file_cannot_cost_more_than_it_weighs() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..12 {
            bomb.push_str(&format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(",")));
        }
        bomb.push_str(WEB);
        assert!(file(&bomb).is_err());
        // Few aliases of something long.
        let long = format!("x-a: &a {}\nx-b: [{}]\n{WEB}", "b".repeat(100_000), vec!["*a"; 150].join(","));
        assert!(file(&long).is_err());
        let package = archive(&[("compose.yaml", WEB), ("big", &"0".repeat(2 << 20))]);
        assert!(package.len() < 100_000, "a bomb: {}", package.len());
        assert!(read(&[layer(ARCHIVE_TYPES[0], &package)]).unwrap_err().to_string().contains("more"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            fuzz_compose(&data);
        }

        #[test]
        fn any_text_anywhere_is_read_or_refused(key in "[a-z_$<&*!{]{1,12}", value in "\\PC{0,20}", name in "[./a-z~]{1,12}") {
            fuzz_compose(format!("services:\n  web:\n    image: a\n    {key}: {value}\n").as_bytes());
            fuzz_compose(&archive(&[("compose.yaml", WEB), (&name, &value)]));
        }
    }
}
