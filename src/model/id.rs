//! Identifiers that are legal at once as an MQTT topic level, a Sparkplug id and a Margo `deviceId` segment.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Longest identifier in bytes. Sparkplug and MQTT allow more; topic trees with longer ones are unusable by people.
const MAX_LEN: usize = 64;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text has no characters.
    #[error("an id cannot be empty")]
    Empty,
    /// The text is longer than 64 bytes.
    #[error("id {0:?} is longer than 64 characters")]
    TooLong(String),
    /// A character outside `A-Z a-z 0-9 . _ ~ -`.
    #[error("id {id:?} contains {found:?}; use only A-Z a-z 0-9 . _ ~ -")]
    Character {
        /// The whole text.
        id: String,
        /// The first character that is not allowed.
        found: char,
    },
    /// `.` and `..` are path segments with a meaning of their own.
    #[error("id {0:?} is reserved")]
    Reserved(String),
}

/// Whether `c` is an RFC 3986 unreserved character (`A-Z a-z 0-9 - . _ ~`), the alphabet of all ids.
pub const fn is_unreserved(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~')
}

fn check(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > MAX_LEN {
        return Err(IdError::TooLong(text.to_owned()));
    }
    if let Some(found) = text.chars().find(|&c| !is_unreserved(c)) {
        return Err(IdError::Character { id: text.to_owned(), found });
    }
    if text == "." || text == ".." {
        return Err(IdError::Reserved(text.to_owned()));
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses an identifier: 1 to 64 characters of `A-Z a-z 0-9 . _ ~ -`, not `.` or `..`.
            pub fn new(text: &str) -> Result<Self, IdError> {
                check(text)?;
                Ok(Self(text.into()))
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }
    };
}

id!(
    /// Names one device behind this gateway; unique per gateway.
    DeviceId
);
id!(
    /// Names one point (tag) of a device; unique per device.
    PointId
);
id!(
    /// Names this gateway; unique on its broker.
    GatewayId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_unreserved_alphabet_and_nothing_else() {
        assert_eq!(DeviceId::new("Pump-1.a_b~c").unwrap().as_str(), "Pump-1.a_b~c");
        assert_eq!(DeviceId::new(""), Err(IdError::Empty));
        for bad in ["a/b", "a+b", "a#", "a b", "ü", "a\0"] {
            assert!(matches!(DeviceId::new(bad), Err(IdError::Character { .. })), "{bad:?}");
        }
        assert!(matches!(DeviceId::new(".."), Err(IdError::Reserved(_))));
        assert!(DeviceId::new(&"x".repeat(64)).is_ok());
        assert!(matches!(DeviceId::new(&"x".repeat(65)), Err(IdError::TooLong(_))));
    }
}
