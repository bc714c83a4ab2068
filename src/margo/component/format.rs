//! The manifest of an artifact, and its payload.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{PointValue, Work, compose};
use crate::margo::words::{Digest, WordError};

/// Media type of a device configuration.
pub const CONFIGURATION_TYPE: &str = "application/vnd.fieldgate.device-configuration.v1+json";
/// Media type of a recipe.
pub const RECIPE_TYPE: &str = "application/vnd.fieldgate.recipe.v1+json";
/// Media type of a firmware image.
pub const FIRMWARE_TYPE: &str = "application/vnd.fieldgate.firmware.v1";
/// Media type of the signed manifest of a firmware, the text that `docs/firmware.md` describes.
pub const FIRMWARE_MANIFEST_TYPE: &str = "application/vnd.fieldgate.firmware.manifest.v1";
/// Longest configuration, recipe or firmware manifest.
pub const MAX_DOCUMENT: u64 = 64 << 10;
/// Longest firmware image.
pub const MAX_FIRMWARE: u64 = 512 << 20;
/// Longest manifest.
pub(super) const MAX_MANIFEST: usize = 256 << 10;
/// Most files of a Compose project beside the first.
const MAX_FURTHER: usize = 40;
const FITS: &str = "dev.fieldgate.fits.";

/// Why an artifact cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The manifest.
    #[error("the artifact's manifest cannot be used: {0}")]
    Manifest(String),
    /// A digest.
    #[error("the artifact is refused: {0}")]
    Digest(#[from] WordError),
    /// The payload.
    #[error("the artifact's payload cannot be used: {0}")]
    Payload(String),
    /// Too long.
    #[error("a layer of type {kind} has {size} bytes, at most {most} are taken")]
    TooLong {
        /// Media type.
        kind: String,
        /// Its size.
        size: u64,
        /// The limit.
        most: u64,
    },
}

/// Which devices an artifact fits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fits {
    /// Vendor; `*` stands for anything.
    pub vendor: Option<String>,
    /// Model.
    pub model: Option<String>,
    /// Protocol.
    pub protocol: Option<String>,
}

impl Fits {
    /// Whether a device is one of these. What it does not reveal fits only `*` and what is not asked for.
    pub fn matches(&self, vendor: Option<&str>, model: Option<&str>, protocol: &str) -> bool {
        let fits = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_ref().is_none_or(|wanted| like(wanted, found.unwrap_or_default()))
        };
        fits(&self.vendor, vendor) && fits(&self.model, model) && fits(&self.protocol, Some(protocol))
    }
}

/// Whether `text` is like `pattern`, in which `*` stands for any characters.
fn like(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Media type.
    pub kind: String,
    /// Digest.
    pub digest: Digest,
    /// Bytes, as the manifest says; within the limit of its kind.
    pub size: u64,
    /// What its annotations say of a file of a Compose project.
    pub name: Option<String>,
}

/// The layers that count of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The one payload.
    pub payload: Layer,
    /// The manifest of a firmware.
    pub firmware: Option<Layer>,
    /// Further files of a Compose project.
    pub further: Vec<Layer>,
    /// From the annotations.
    pub fits: Fits,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    layers: Vec<RawLayer>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawLayer {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Reads the manifest of an artifact.
///
/// # Errors
/// [`FormatError`].
pub fn read_manifest(bytes: &[u8]) -> Result<Parts, FormatError> {
    let wrong = |reason: String| FormatError::Manifest(reason);
    if bytes.len() > MAX_MANIFEST {
        return Err(wrong(format!("it has {} bytes", bytes.len())));
    }
    let raw: Raw = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
    let (mut payload, mut firmware, mut further) = (None, None, Vec::new());
    for layer in raw.layers {
        let (slot, most) = match layer.media_type.as_str() {
            CONFIGURATION_TYPE | RECIPE_TYPE => (&mut payload, MAX_DOCUMENT),
            FIRMWARE_TYPE => (&mut payload, MAX_FIRMWARE),
            FIRMWARE_MANIFEST_TYPE => (&mut firmware, MAX_DOCUMENT),
            kind => match compose::limit(kind) {
                Some(most) => (&mut payload, most),
                None => continue,
            },
        };
        if layer.size > most {
            return Err(FormatError::TooLong { kind: layer.media_type, size: layer.size, most });
        }
        let digest = Digest::new(&layer.digest)?;
        let annotations = layer.annotations.unwrap_or_default();
        let name = match annotations.get(compose::EXTENDS).is_some_and(|extends| extends == "true") {
            true => Some(compose::EXTENDS.to_owned()),
            false => annotations.get(compose::ENV_FILE).cloned(),
        };
        let layer = Layer { kind: layer.media_type, digest, size: layer.size, name };
        let is_file = |layer: &Layer| compose::limit(&layer.kind).is_some();
        match slot {
            None => *slot = Some(layer),
            Some(first) if is_file(first) && is_file(&layer) && further.len() < MAX_FURTHER => further.push(layer),
            Some(_) => return Err(wrong("it has more than one payload".to_owned())),
        }
    }
    let payload = payload.ok_or_else(|| {
        let [archive, _] = compose::ARCHIVE_TYPES;
        let custom = format!("{CONFIGURATION_TYPE}, {RECIPE_TYPE}, {FIRMWARE_TYPE}");
        wrong(format!("it has no layer of type {custom}, {archive} or {}", compose::FILE_TYPE))
    })?;
    if (payload.kind == FIRMWARE_TYPE) != firmware.is_some() {
        return Err(wrong(format!("a firmware and a layer {FIRMWARE_MANIFEST_TYPE} come together or not at all")));
    }
    let annotations = raw.annotations.unwrap_or_default();
    let fit = |name: &str| annotations.get(&format!("{FITS}{name}")).cloned();
    let fits = Fits { vendor: fit("vendor"), model: fit("model"), protocol: fit("protocol") };
    Ok(Parts { payload, firmware, further, fits })
}

/// Makes work of a payload that is a document.
///
/// # Errors
/// [`FormatError::Payload`].
pub(super) fn read_document(kind: &str, bytes: &[u8]) -> Result<Work, FormatError> {
    let wrong = |reason: String| FormatError::Payload(reason);
    let value: Value = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
    let Some(object) = value.as_object() else { return Err(wrong("it is no JSON object".to_owned())) };
    if kind != RECIPE_TYPE {
        if object.contains_key("version") {
            return Err(wrong("a configuration must not carry a `version`; the gateway gives it".to_owned()));
        }
        return Ok(Work::Configuration { document: value });
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Recipe {
        values: Vec<PointValue>,
        #[serde(default)]
        #[allow(dead_code, reason = "for people")]
        description: Option<String>,
    }
    let recipe: Recipe = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
    check_recipe(&recipe.values)?;
    Ok(Work::Recipe { values: recipe.values })
}

pub(super) fn check_recipe(values: &[PointValue]) -> Result<(), FormatError> {
    let wrong = |reason: String| FormatError::Payload(reason);
    if values.is_empty() {
        return Err(wrong("the recipe writes nothing".to_owned()));
    }
    for (i, value) in values.iter().enumerate() {
        if crate::model::PointId::new(&value.point).is_err() {
            return Err(wrong(format!("{:?} is no id of a point", value.point)));
        }
        if values[..i].iter().any(|known| known.point == value.point) {
            return Err(wrong(format!("point {} stands in the recipe twice", value.point)));
        }
        if !matches!(value.value, Value::Bool(_) | Value::Number(_) | Value::String(_)) {
            return Err(wrong(format!("the value of {} is no number, text or boolean", value.point)));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// An artifact: the manifest and its blobs.
    pub(crate) fn artifact(layers: &[(&str, &[u8])], annotations: Value) -> Vec<u8> {
        let layers: Vec<_> = layers
            .iter()
            .map(|(kind, bytes)| json!({ "mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len() }))
            .collect();
        let empty = json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}").to_string(), "size": 2 });
        json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": empty, "layers": layers, "annotations": annotations })
            .to_string()
            .into_bytes()
    }

    #[test]
    fn an_artifact_has_exactly_one_payload_of_a_known_type() {
        let one = read_manifest(&artifact(&[(RECIPE_TYPE, b"x"), ("text/plain", b"readme")], json!({}))).unwrap();
        assert_eq!((one.payload.kind.as_str(), one.fits), (RECIPE_TYPE, Fits::default()));
        for bad in [
            artifact(&[], json!({})),
            artifact(&[("text/plain", b"x")], json!({})),
            artifact(&[(RECIPE_TYPE, b"x"), (CONFIGURATION_TYPE, b"y")], json!({})),
            artifact(&[(FIRMWARE_TYPE, b"x")], json!({})),
            artifact(&[(RECIPE_TYPE, b"x"), (FIRMWARE_MANIFEST_TYPE, b"{}")], json!({})),
            artifact(&[(RECIPE_TYPE, &vec![0; MAX_DOCUMENT as usize + 1])], json!({})),
        ] {
            assert!(read_manifest(&bad).is_err());
        }
        let firmware = artifact(&[(FIRMWARE_TYPE, b"image"), (FIRMWARE_MANIFEST_TYPE, b"{}")], json!({}));
        assert!(read_manifest(&firmware).unwrap().firmware.is_some());
    }

    #[test]
    fn annotations_say_which_devices_it_fits() {
        let annotations = json!({ "dev.fieldgate.fits.vendor": "Acme", "dev.fieldgate.fits.model": "P-*0" });
        let fits = read_manifest(&artifact(&[(RECIPE_TYPE, b"x")], annotations)).unwrap().fits;
        assert!(fits.matches(Some("Acme"), Some("P-100"), "modbus-tcp"));
        assert!(!fits.matches(Some("Acme"), Some("P-101"), "modbus-tcp"));
        assert!(!fits.matches(None, Some("P-100"), "modbus-tcp"), "it does not reveal its vendor");
        assert!(Fits::default().matches(None, None, "modbus-tcp"));
        for (pattern, text, fits) in
            [("*", "", true), ("a*b*c", "aXbYc", true), ("a*b*c", "ac", false), ("a", "ab", false), ("a*a", "a", false)]
        {
            assert_eq!(like(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn recipes_and_configurations_are_checked() {
        let recipe = |value: Value| read_document(RECIPE_TYPE, value.to_string().as_bytes());
        assert!(recipe(json!({ "values": [{ "point": "speed", "value": 1.5 }], "description": "x" })).is_ok());
        for bad in [
            json!({ "values": [] }),
            json!({ "values": [{ "point": "a/b", "value": 1 }] }),
            json!({ "values": [{ "point": "a", "value": 1 }, { "point": "a", "value": 2 }] }),
            json!({ "values": [{ "point": "a", "value": null }] }),
            json!({ "values": [{ "point": "a", "value": 1, "x": 2 }] }),
            json!({ "values": [{ "point": "a", "value": 1 }], "unknown": 1 }),
            json!([]),
        ] {
            assert!(recipe(bad.clone()).is_err(), "{bad}");
        }
        let configuration = |value: Value| read_document(CONFIGURATION_TYPE, value.to_string().as_bytes());
        assert!(configuration(json!({ "points": {} })).is_ok());
        assert!(configuration(json!({ "version": 3 })).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_manifest(&bytes);
            let _ = (read_document(RECIPE_TYPE, &bytes), read_document(CONFIGURATION_TYPE, &bytes));
        }

        #[test]
        fn any_pattern_ends(pattern in "[a*]{0,12}", text in "[ab]{0,30}") {
            let _ = like(&pattern, &text);
        }
    }
}
