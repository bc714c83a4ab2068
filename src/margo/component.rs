//! What a component is here: an OCI artifact. A `custom` one is a device configuration, a recipe or firmware; a `compose` one is
//! a Compose project ([`compose`]).
//!
//! # Form of a `custom` artifact
//! An OCI image manifest with exactly one payload layer, whose media type says what it is:
//!
//! | media type of the layer | content | at most |
//! |---|---|---|
//! | [`CONFIGURATION_TYPE`] | a document of `config/desired` without its `version` | 64 KiB |
//! | [`RECIPE_TYPE`] | `{"values": [{"point": "setpoint", "value": 60}, …]}`, written in this order | 64 KiB |
//! | [`FIRMWARE_TYPE`] | the image; beside it one layer [`FIRMWARE_MANIFEST_TYPE`] with its signed manifest | 512 MiB |
//!
//! Annotations of the manifest say which devices it fits: `dev.fieldgate.fits.vendor`, `….model` and `….protocol`, each a
//! text in which `*` stands for anything. What is not annotated fits everything.
//!
//! # Parameters
//! The pointer of a parameter is a JSON pointer (RFC 6901) into the payload; what it points at must be there, but for a new
//! member of an object. In a recipe `/values/<point>` is the value of that point. Firmware takes none. For a Compose project
//! it is the name of a variable.
//!
//! **Promise.** Everything is fetched by digest: a tag is resolved once per revision of a deployment, and what it meant
//! then counts. What does not fit its digest is refused. [`Work::digest`] names the effect: two revisions of a deployment
//! with the same effect are applied once.
//!
//! **Must not** run anything, or write outside its cache directory.

pub mod compose;
mod format;
mod oci;
mod parameters;

pub use format::{
    CONFIGURATION_TYPE, FIRMWARE_MANIFEST_TYPE, FIRMWARE_TYPE, Fits, FormatError, Layer, MAX_DOCUMENT, MAX_FIRMWARE,
    RECIPE_TYPE, read_manifest,
};
pub use oci::{Source, SourceConfig, SourceError};
pub use parameters::{ParameterError, bind};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::deployment::Profile;
use super::words::Digest;

/// What a component does to a device, with its parameters bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Work {
    /// A configuration.
    Configuration {
        /// A document of `config/desired`, without its version.
        document: Value,
    },
    /// Values to write, in this order.
    Recipe {
        /// Each point once.
        values: Vec<PointValue>,
    },
    /// Firmware.
    Firmware {
        /// Digest of the image; it lies under its hexadecimal digits in the cache directory.
        image: Digest,
        /// Bytes of the image.
        size: u64,
        /// Its signed manifest.
        manifest: String,
    },
    /// A Compose project.
    Compose(Box<compose::Project>),
}

/// One value of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointValue {
    /// Id of the point.
    pub point: String,
    /// In engineering units.
    pub value: Value,
}

impl Work {
    /// Names the effect.
    pub fn digest(&self) -> Digest {
        // Maps of `Value` are sorted, so the text is the same for the same effect.
        Digest::of(serde_json::to_string(self).unwrap_or_default().as_bytes())
    }

    /// In words, for messages.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Configuration { .. } => "a configuration",
            Self::Recipe { .. } => "a recipe",
            Self::Firmware { .. } => "firmware",
            Self::Compose(_) => "a Compose project",
        }
    }

    /// The kind of deployments that it is for.
    pub const fn profile(&self) -> Profile {
        match self {
            Self::Configuration { .. } | Self::Recipe { .. } | Self::Firmware { .. } => Profile::Custom,
            Self::Compose(_) => Profile::Compose,
        }
    }

    /// Whether it is gone when the hardware is exchanged.
    pub const fn lies_in_hardware(&self) -> bool {
        matches!(self, Self::Recipe { .. } | Self::Firmware { .. } | Self::Compose(_))
    }

    /// What two deployments must not both hold of one device: the configuration, the firmware, or a point.
    pub fn claims(&self) -> Vec<String> {
        match self {
            Self::Configuration { .. } => vec!["its configuration".to_owned()],
            Self::Firmware { .. } => vec!["its firmware".to_owned()],
            Self::Recipe { values } => values.iter().map(|value| format!("its point {}", value.point)).collect(),
            // Each is a project of its own; ports are the engine's to give.
            Self::Compose(_) => Vec::new(),
        }
    }
}

/// A component that was fetched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fetched {
    /// What it does.
    pub work: Work,
    /// Which devices it fits.
    pub fits: Fits,
    /// Digest of the artifact's manifest, for people.
    pub artifact: Digest,
}
