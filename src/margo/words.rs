//! The words of the standard that everything else here is made of: paths of devices, targets, deployment ids, digests.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::is_unreserved;

/// Longest path of a device: four of our longest ids.
const MAX_PATH: usize = 259;

/// Why a text is none of the standard's words. The texts name the text and what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// No `deviceId`.
    #[error(
        "{0:?} is no deviceId; it is segments of A-Z a-z 0-9 . _ ~ - joined by single slashes, 1 to {MAX_PATH} characters"
    )]
    Path(String),
    /// No UUID.
    #[error("{0:?} is no deployment id; it is a UUID such as 6ba7b810-9dad-41d1-80b4-00c04fd430c8")]
    Deployment(String),
    /// Not sha256.
    #[error(
        "the digest {0:?} is not of the one algorithm that is accepted; it is `sha256:` and 64 lowercase hexadecimal digits"
    )]
    Digest(String),
}

/// A `deviceId`: the path of a device below its gateway, such as `gateway/pump-1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevicePath(String);

impl DevicePath {
    /// Sorts before every path and is none itself: the lower end of ranges.
    pub(super) const fn least() -> Self {
        Self(String::new())
    }

    /// Parses `^[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*$`. `.` and `..` are refused: URLs do away with them.
    ///
    /// # Errors
    /// [`WordError::Path`].
    pub fn new(text: &str) -> Result<Self, WordError> {
        let legal = |segment: &str| {
            !segment.is_empty() && segment != "." && segment != ".." && segment.chars().all(is_unreserved)
        };
        if text.len() <= MAX_PATH && text.split('/').all(legal) {
            return Ok(Self(text.to_owned()));
        }
        Err(WordError::Path(text.to_owned()))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path one level up; `None` at the top.
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(parent, _)| Self(parent.to_owned()))
    }

    /// How many levels lie above.
    pub fn depth(&self) -> usize {
        self.0.matches('/').count()
    }

    /// Whether this lies below `other`.
    pub fn is_below(&self, other: &Self) -> bool {
        self.0.strip_prefix(other.as_str()).is_some_and(|rest| rest.starts_with('/'))
    }

    /// A child of this one.
    ///
    /// # Errors
    /// [`WordError::Path`] when the path becomes too long or `id` is no segment.
    pub fn child(&self, id: &str) -> Result<Self, WordError> {
        Self::new(&format!("{}/{id}", self.0))
    }
}

/// Where a deployment is to go: a device, or any device below one (`gateway/*`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// This device.
    Device(DevicePath),
    /// What the gateway chooses below this device.
    Below(DevicePath),
}

impl Target {
    /// Parses a target.
    ///
    /// # Errors
    /// [`WordError::Path`].
    pub fn new(text: &str) -> Result<Self, WordError> {
        match text.strip_suffix("/*") {
            Some(above) => DevicePath::new(above).map(Self::Below).map_err(|_| WordError::Path(text.to_owned())),
            None => DevicePath::new(text).map(Self::Device),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(path) => path.fmt(f),
            Self::Below(path) => write!(f, "{path}/*"),
        }
    }
}

/// A deployment's UUID, kept as the server wrote it: it stands in paths that the server compares.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeploymentId(String);

impl DeploymentId {
    /// Parses a UUID in its usual form with hyphens.
    ///
    /// # Errors
    /// [`WordError::Deployment`].
    pub fn new(text: &str) -> Result<Self, WordError> {
        let bytes = text.as_bytes();
        let shaped = bytes.len() == 36
            && bytes.iter().enumerate().all(|(i, byte)| match i {
                8 | 13 | 18 | 23 => *byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            });
        if shaped { Ok(Self(text.to_owned())) } else { Err(WordError::Deployment(text.to_owned())) }
    }

    /// The UUID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
        Self(hash)
    }

    /// Parses `sha256:` and 64 lowercase hexadecimal digits; nothing else is a digest here.
    ///
    /// # Errors
    /// [`WordError::Digest`].
    pub fn new(text: &str) -> Result<Self, WordError> {
        let wrong = || WordError::Digest(text.chars().take(160).collect());
        let hex = text.strip_prefix("sha256:").ok_or_else(wrong)?.as_bytes();
        let mut hash = [0; 32];
        if hex.len() != 64 {
            return Err(wrong());
        }
        for (byte, pair) in hash.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = nibble(pair[0]).zip(nibble(pair[1])).map(|(high, low)| high << 4 | low).ok_or_else(wrong)?;
        }
        Ok(Self(hash))
    }

    /// The 64 digits without the algorithm, for names of files and keys.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Lowercase hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl FromStr for $name {
            type Err = WordError;
            fn from_str(text: &str) -> Result<Self, WordError> {
                Self::new(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Self::new(&String::deserialize(from)?).map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_text!(DevicePath, Target, DeploymentId, Digest);

impl fmt::Display for DevicePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_of_devices_follow_the_grammar() {
        for good in ["gw", "gw/pump-1", "gw/line.2/a_b~c"] {
            assert_eq!(DevicePath::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "/", "gw/", "/gw", "gw//x", "gw/*", "gw/ü", "gw/a b", "gw/%41", "gw/..", "."] {
            assert!(DevicePath::new(bad).is_err(), "{bad:?}");
        }
        let child = DevicePath::new("gw/line/pump").unwrap();
        assert_eq!(child.parent().unwrap().as_str(), "gw/line");
        assert!(child.is_below(&DevicePath::new("gw").unwrap()));
        assert!(!child.is_below(&DevicePath::new("g").unwrap()));
        assert_eq!(child.depth(), 2);
    }

    #[test]
    fn a_target_may_end_in_a_star_and_hold_none_elsewhere() {
        assert_eq!(Target::new("gw/*").unwrap(), Target::Below(DevicePath::new("gw").unwrap()));
        assert_eq!(Target::new("gw/a").unwrap(), Target::Device(DevicePath::new("gw/a").unwrap()));
        for bad in ["*", "/*", "gw*", "gw/*/a", "gw/**"] {
            assert!(Target::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sha512_and_every_other_digest_is_refused() {
        let good = Digest::of(b"x").to_string();
        assert_eq!(Digest::new(&good).unwrap(), Digest::of(b"x"));
        let hex = &good[7..];
        let bad = [
            format!("sha512:{hex}{hex}"),
            format!("sha384:{hex}"),
            hex.to_owned(),
            format!("sha256:{}", hex.to_uppercase()),
            format!("SHA256:{hex}"),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{hex}0"),
            format!("sha256: {}", &hex[1..]),
            String::new(),
        ];
        for bad in bad {
            assert!(Digest::new(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn deployment_ids_are_uuids() {
        assert!(DeploymentId::new("6ba7b810-9dad-41d1-80b4-00c04fd430c8").is_ok());
        for bad in ["", "6ba7b810", "6ba7b810-9dad-41d1-80b4-00c04fd430cg", "6ba7b8109dad41d180b400c04fd430c8aaaa"] {
            assert!(DeploymentId::new(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_back_or_refused(text in ".{0,80}") {
            if let Ok(path) = DevicePath::new(&text) {
                prop_assert_eq!(path.as_str(), &text);
            }
            if let Ok(target) = Target::new(&text) {
                prop_assert_eq!(target.to_string(), text.clone());
            }
            let _ = (Digest::new(&text), DeploymentId::new(&text));
        }

        #[test]
        fn digests_read_back(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let digest = Digest::of(&bytes);
            prop_assert_eq!(Digest::new(&digest.to_string()).unwrap(), digest);
        }
    }
}
