//! One client's manifests and artifacts: versions count up with every change, and what was given stays to be fetched.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use hyper::body::Bytes;
use serde_json::{Value, json};

use super::archive::{self, File};
use super::deployment::Document;
use super::faults::Fault;
use crate::margo::tools::{random_hex, sha256, sha512, uuid};

const BUNDLE: &str = "application/vnd.margo.bundle.v1+tar+gzip";
/// Versions whose content is kept, for rollbacks.
const HISTORY: usize = 32;
/// Manifests whose artifacts are kept.
const SERVED: usize = 8;

/// A client's desired state.
pub(super) struct Library {
    pub version: u64,
    current: Vec<Arc<Document>>,
    history: VecDeque<(u64, Vec<Arc<Document>>)>,
    served: VecDeque<Served>,
    /// Keeps ETags from being digests of bodies.
    salt: String,
}

/// A manifest with its artifacts.
pub(super) struct Served {
    version: u64,
    faults: Vec<Fault>,
    base: String,
    /// Version as written.
    pub written: u64,
    pub deployments: Vec<String>,
    pub body: Bytes,
    pub etag: String,
    artifacts: HashMap<String, Artifact>,
    /// Whether this is the first time.
    pub is_new: bool,
}

/// What can be fetched.
#[derive(Clone)]
pub(super) struct Artifact {
    pub media_type: &'static str,
    pub digest: String,
    pub content: Bytes,
}

impl Library {
    pub fn new(version: u64) -> Self {
        Self {
            version,
            current: Vec::new(),
            history: VecDeque::from([(version, Vec::new())]),
            served: VecDeque::new(),
            salt: random_hex(8),
        }
    }

    /// What is wanted now; a change makes a version.
    pub fn want(&mut self, documents: Vec<Arc<Document>>) {
        if self.current == documents {
            return;
        }
        self.version += 1;
        self.current = documents;
        self.history.push_back((self.version, self.current.clone()));
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
    }

    /// The manifest, with `base` before the URLs in it.
    pub fn serve(&mut self, base: &str, faults: &[Fault]) -> &Served {
        let again = |served: &Served| served.version == self.version && served.faults == faults && served.base == base;
        if let Some(index) = self.served.iter().position(again) {
            self.served[index].is_new = false;
            return &self.served[index];
        }
        if self.served.len() >= SERVED {
            self.served.pop_front();
        }
        let made = self.render(base, faults);
        self.served.push_back(made);
        &self.served[self.served.len() - 1]
    }

    /// What was given under that path.
    pub fn artifact(&self, path: &str) -> Option<Artifact> {
        self.served.iter().rev().find_map(|served| served.artifacts.get(path).cloned())
    }

    fn render(&self, base: &str, faults: &[Fault]) -> Served {
        let (written, documents) = self.choose(faults);
        let sha512_all = faults.contains(&Fault::Sha512);
        let mut artifacts = HashMap::new();
        let mut files = Vec::new();
        let mut entries = Vec::new();
        for (index, document) in documents.iter().enumerate() {
            let announced = spoil(&document.yaml, index, faults);
            let mut given = announced.clone();
            if faults.contains(&Fault::AlteredDeployment { index }) {
                given.push_str("# altered on the way\n");
            }
            let hash = if sha512_all || faults.contains(&Fault::Sha512Entry { index }) { sha512 } else { sha256 };
            let right = hash(announced.as_bytes());
            let wrong = faults.contains(&Fault::EntryDigest { index });
            let digest = if wrong { hash(b"something else") } else { right.clone() };
            let url = format!("{base}/deployments/{}/{right}", document.id);
            let content = Bytes::from(given.clone());
            let artifact = Artifact { media_type: "application/yaml", digest: right, content };
            artifacts.insert(format!("/deployments/{}/{digest}", document.id), artifact.clone());
            artifacts.insert(url[base.len()..].to_owned(), artifact);
            let size = size(announced.len(), faults);
            entries.push(json!({ "deploymentId": document.id, "digest": digest, "sizeBytes": size, "url": url }));
            files.push(File { name: format!("{}.yaml", document.id), content: given.into_bytes() });
        }
        let bundle = if documents.is_empty() || faults.contains(&Fault::BundleNull) {
            Value::Null
        } else {
            bundle(archive::bundle(files, faults), base, faults, sha512_all, &mut artifacts)
        };
        let mut manifest = json!({ "manifestVersion": written, "bundle": bundle, "deployments": entries });
        if faults.contains(&Fault::SizesMissing) {
            without_sizes(&mut manifest);
        }
        if faults.contains(&Fault::UnknownFields) {
            strange(&mut manifest);
        }
        let body = if faults.contains(&Fault::ManifestGarbage) {
            Bytes::from_static(b"{\"manifestVersion\": 7, \"deployments\": [")
        } else {
            Bytes::from(manifest.to_string())
        };
        let digest = sha256(&[self.salt.as_bytes(), &body].concat());
        Served {
            version: self.version,
            faults: faults.to_vec(),
            base: base.to_owned(),
            written,
            deployments: documents.iter().map(|document| document.id.clone()).collect(),
            etag: format!("\"v{written}-{}\"", &digest[7..23]),
            body,
            artifacts,
            is_new: true,
        }
    }

    /// Version and content, as the faults want it.
    fn choose(&self, faults: &[Fault]) -> (u64, Vec<Arc<Document>>) {
        let mut chosen = (self.version, self.current.clone());
        for fault in faults {
            match fault {
                Fault::Rollback { by } => {
                    let back = self.version.saturating_sub(*by).max(1);
                    let then = self.history.iter().find(|(version, _)| *version == back);
                    chosen = (back, then.map_or_else(|| self.current.clone(), |(_, documents)| documents.clone()));
                }
                Fault::SameVersion => {
                    for document in chosen.1.iter_mut().take(1) {
                        let yaml = format!("{}# other content under the same version\n", document.yaml);
                        *document = Arc::new(Document { yaml, ..document.as_ref().clone() });
                    }
                }
                Fault::Version { value } => chosen.0 = *value,
                _ => {}
            }
        }
        chosen
    }
}

fn spoil(yaml: &str, index: usize, faults: &[Fault]) -> String {
    let mut yaml = yaml.to_owned();
    for fault in faults {
        match fault {
            Fault::WrongId { index: at } if *at == index => {
                let lines = yaml.lines().map(|line| match line.trim_start().strip_prefix("id:") {
                    Some(_) => format!("{}id: \"{}\"\n", &line[..line.len() - line.trim_start().len()], uuid()),
                    None => format!("{line}\n"),
                });
                yaml = lines.collect();
            }
            Fault::DeploymentGarbage { index: at } if *at == index => {
                yaml = "{ this: is: no [yaml\n\t- at all".to_owned()
            }
            _ => {}
        }
    }
    yaml
}

fn size(length: usize, faults: &[Fault]) -> u64 {
    let by = faults.iter().find_map(|fault| match fault {
        Fault::SizesLie { by } => Some(*by),
        _ => None,
    });
    (length as u64).saturating_add_signed(by.unwrap_or(0))
}

fn bundle(
    content: Vec<u8>,
    base: &str,
    faults: &[Fault],
    sha512_all: bool,
    artifacts: &mut HashMap<String, Artifact>,
) -> Value {
    let hash = if sha512_all { sha512 } else { sha256 };
    let right = hash(&content);
    let digest = if faults.contains(&Fault::BundleDigest) { hash(b"something else") } else { right.clone() };
    let size = size(content.len(), faults);
    let artifact = Artifact { media_type: BUNDLE, digest: right.clone(), content: content.into() };
    artifacts.insert(format!("/bundles/{digest}"), artifact.clone());
    artifacts.insert(format!("/bundles/{right}"), artifact);
    json!({ "mediaType": BUNDLE, "digest": digest, "sizeBytes": size, "url": format!("{base}/bundles/{right}") })
}

fn without_sizes(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.remove("sizeBytes");
            object.values_mut().for_each(without_sizes);
        }
        Value::Array(items) => items.iter_mut().for_each(without_sizes),
        _ => {}
    }
}

/// Puts a field that nobody knows into every object.
fn strange(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.values_mut().for_each(strange);
            object.insert("xFuture".to_owned(), json!({ "nested": [1, "two", null] }));
        }
        Value::Array(items) => items.iter_mut().for_each(strange),
        _ => {}
    }
}
