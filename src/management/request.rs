//! Requests of clients: who asks what, and why it is refused. Payloads are parsed here, nowhere else.

use std::borrow::Cow;
use std::fmt;

use super::desired::Target;
use super::lifecycle::sha256_hex;
use crate::contract::{ContractMessage, DecodeError, Encoding, topics, v1};
use crate::model::DeviceId;

/// Longest correlation id, in bytes.
pub const MAX_CORRELATION: usize = 64;

/// Who asks. Built by `app` from what the broker or the admin socket proved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Actor {
    /// Identity, such as `mqtt:local:anna` or `cli:uid=0`; empty for an anonymous client.
    pub name: String,
    /// Address; may be empty.
    pub from: String,
    /// Set when the credentials belong to a device: it may speak of itself only.
    pub device: Option<DeviceId>,
    /// What its client certificate proves: the name that the plant's authority certified, the same after a renewal.
    pub certificate: Option<String>,
}

impl Actor {
    /// An identity without an address.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }
}

/// Something that a client asks.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// On `devices/{d}/onboarding/request` (with the device) or `management/request`.
    Manage {
        /// The device of the topic.
        device: Option<DeviceId>,
        /// What is asked.
        request: v1::ManagementRequest,
    },
    /// On `devices/{d}/onboarding/announce`.
    Announce {
        /// The device of the topic.
        device: DeviceId,
        /// What it says of itself.
        announcement: v1::Announcement,
    },
    /// On `devices/{d}/firmware/desired` or `firmware/desired`.
    Offer {
        /// What shall be updated.
        target: Target,
        /// The offer.
        desired: v1::DesiredFirmware,
    },
    /// On `devices/{d}/firmware/request` or `firmware/request`.
    Firmware {
        /// What is being updated.
        target: Target,
        /// What is asked.
        request: v1::FirmwareRequest,
    },
    /// On `devices/{d}/config/desired` or `config/desired`.
    Desire {
        /// Whose configuration.
        target: Target,
        /// The document.
        document: v1::DesiredConfig,
    },
}

impl Ask {
    /// Topics, relative to the root, that bring requests.
    pub const FILTERS: [&str; 9] = [
        "management/request",
        "config/desired",
        "devices/+/onboarding/request",
        "devices/+/onboarding/announce",
        "devices/+/config/desired",
        "firmware/desired",
        "firmware/request",
        "devices/+/firmware/desired",
        "devices/+/firmware/request",
    ];

    /// Reads a message that came on a topic relative to the root. `None` when the topic is no request of management, or
    /// the payload is empty (a retained message was cleared).
    ///
    /// # Errors
    /// [`Refusal`] `invalid` when the payload is too large or not the message of the topic.
    pub fn parse(topic: &str, encoding: Encoding, payload: &[u8]) -> Option<Result<Self, Refusal>> {
        let levels: Vec<&str> = topic.splitn(5, '/').collect();
        let device = match levels.as_slice() {
            ["devices", id, ..] => Some(DeviceId::new(id).ok()?),
            _ => None,
        };
        let kind = match (levels.as_slice(), &device) {
            (["management", "request"], _) | (["devices", _, "onboarding", "request"], Some(_)) => Kind::Manage,
            (["devices", _, "onboarding", "announce"], Some(_)) => Kind::Announce,
            (["config", "desired"], _) | (["devices", _, "config", "desired"], Some(_)) => Kind::Desire,
            (["firmware", "desired"], _) | (["devices", _, "firmware", "desired"], Some(_)) => Kind::Offer,
            (["firmware", "request"], _) | (["devices", _, "firmware", "request"], Some(_)) => Kind::Firmware,
            _ => return None,
        };
        if payload.is_empty() {
            return None;
        }
        if payload.len() > MAX_PAYLOAD {
            let text = format!("the message has {} bytes; at most {MAX_PAYLOAD} are taken", payload.len());
            return Some(Err(Refusal::new("invalid", text)));
        }
        Some(kind.decode(device, encoding, payload).map_err(|e| Refusal::new("invalid", e.to_string())))
    }

    /// The requester's id of the request; that of a desired document is its version if it has none.
    pub fn correlation_id(&self) -> Cow<'_, str> {
        match self {
            Ask::Manage { request, .. } => Cow::Borrowed(&request.correlation_id),
            Ask::Announce { announcement, .. } => Cow::Borrowed(&announcement.correlation_id),
            Ask::Offer { desired, .. } => Cow::Borrowed(&desired.correlation_id),
            Ask::Firmware { request, .. } => Cow::Borrowed(&request.correlation_id),
            Ask::Desire { document, .. } if document.correlation_id.is_empty() => {
                Cow::Owned(format!("v{}", document.version))
            }
            Ask::Desire { document, .. } => Cow::Borrowed(&document.correlation_id),
        }
    }

    /// Name of what is asked, for answers and the audit log.
    pub fn action(&self) -> &str {
        match self {
            Ask::Manage { request, .. } => &request.action,
            Ask::Announce { .. } => "announce",
            Ask::Desire { .. } => "configure",
            Ask::Offer { .. } => "firmware-offer",
            Ask::Firmware { request, .. } => match request.action.as_str() {
                "approve" => "firmware-approve",
                "abort" => "firmware-abort",
                "chunk" => "firmware-chunk",
                _ => "firmware-request",
            },
        }
    }

    /// The device that is named, if it is one.
    pub fn device(&self) -> Option<&DeviceId> {
        match self {
            Ask::Manage { device, .. } => device.as_ref(),
            Ask::Announce { device, .. } => Some(device),
            Ask::Desire { target, .. } | Ask::Offer { target, .. } | Ask::Firmware { target, .. } => target.device(),
        }
    }

    /// Topic of the answer, relative to the root.
    pub fn result_topic(&self) -> String {
        match self {
            Ask::Manage { device: Some(d), .. } | Ask::Announce { device: d, .. } => {
                format!("devices/{d}/onboarding/result")
            }
            Ask::Manage { .. } => "management/result".to_owned(),
            Ask::Desire { target: Target::Device(d), .. } => format!("devices/{d}/config/result"),
            Ask::Desire { .. } => "config/result".to_owned(),
            Ask::Offer { target, .. } | Ask::Firmware { target, .. } => {
                topics::management_result(self.action(), target.device().map_or("", |device| device.as_str()))
            }
        }
    }

    /// Tells this request from another one under the same correlation id.
    pub fn digest(&self) -> String {
        // As JSON values: their keys are sorted, while the maps of the messages have no order.
        let value = match self {
            Ask::Manage { request, .. } => serde_json::to_value(request),
            Ask::Announce { announcement, .. } => serde_json::to_value(announcement),
            Ask::Desire { document, .. } => serde_json::to_value(document),
            Ask::Offer { desired, .. } => serde_json::to_value(desired),
            Ask::Firmware { request, .. } => serde_json::to_value(request),
        };
        let text = value.map_or_else(|_| String::new(), |value| value.to_string());
        sha256_hex(format!("{}\n{text}", self.result_topic()).as_bytes())
    }
}

/// Largest request, in bytes: an import holds devices with their history.
pub const MAX_PAYLOAD: usize = 1024 * 1024;

enum Kind {
    Manage,
    Announce,
    Desire,
    Offer,
    Firmware,
}

impl Kind {
    fn decode(self, device: Option<DeviceId>, encoding: Encoding, payload: &[u8]) -> Result<Ask, DecodeError> {
        let target = |device: Option<DeviceId>| device.map_or(Target::Gateway, Target::Device);
        Ok(match (self, device) {
            (Kind::Offer, device) => {
                Ask::Offer { target: target(device), desired: v1::DesiredFirmware::decode_as(encoding, payload)? }
            }
            (Kind::Firmware, device) => {
                Ask::Firmware { target: target(device), request: v1::FirmwareRequest::decode_as(encoding, payload)? }
            }
            (Kind::Announce, Some(device)) => {
                Ask::Announce { device, announcement: v1::Announcement::decode_as(encoding, payload)? }
            }
            (Kind::Desire, device) => {
                Ask::Desire { target: target(device), document: v1::DesiredConfig::decode_as(encoding, payload)? }
            }
            (Kind::Manage | Kind::Announce, device) => {
                Ask::Manage { device, request: v1::ManagementRequest::decode_as(encoding, payload)? }
            }
        })
    }
}

/// One thing that is wrong in a document.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FieldError {
    /// JSON pointer (RFC 6901).
    pub path: String,
    /// Stable code.
    pub code: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl FieldError {
    /// A problem at `path`.
    pub fn new(path: &str, code: &str, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), code: code.to_owned(), message: message.into() }
    }

    /// The contract's message.
    pub fn message(&self) -> v1::FieldError {
        v1::FieldError { path: self.path.clone(), code: self.code.clone(), message: self.message.clone() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", if self.path.is_empty() { "/" } else { &self.path }, self.message)
    }
}

/// Why a request was not done. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Stable code.
    pub code: &'static str,
    /// Words for people.
    pub message: String,
    /// What is wrong in the document, if it is that.
    pub errors: Vec<FieldError>,
}

impl Refusal {
    /// A refusal with a stable code and words that say what to do.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), errors: Vec::new() }
    }

    /// A document with errors.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let message = match errors.as_slice() {
            [one] => one.to_string(),
            [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
            [] => "the document is not valid".to_owned(),
        };
        Self { code: "invalid", message, errors }
    }

    /// The device is not known.
    pub fn unknown_device(device: &DeviceId) -> Self {
        Self::new("unknown-device", format!("no device {device}; declare it in a file, or let it announce itself"))
    }
}

impl From<super::table::Refused> for Refusal {
    fn from(refused: super::table::Refused) -> Self {
        Self::new("not-possible", refused.to_string())
    }
}

/// Whether `text` fits `pattern`, where `*` stands for any characters and `?` for one.
pub fn fits(pattern: &str, text: &str) -> bool {
    let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut i, mut j, mut star) = (0, 0, None);
    while j < t.len() {
        if i < p.len() && p[i] == '*' {
            star = Some((i, j));
            i += 1;
        } else if i < p.len() && (p[i] == '?' || p[i] == t[j]) {
            (i, j) = (i + 1, j + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (i, j) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    p[i..].iter().all(|&c| c == '*')
}

/// Whether a correlation id can be kept: 1 to 64 printable ASCII characters without spaces.
pub fn is_correlation_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_CORRELATION && text.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text) in
            [("*", ""), ("pump-*", "pump-1"), ("p?mp-*-a", "pump-12-a"), ("a*b*c", "a1b2b3c"), ("x", "x")]
        {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("pump-*", "fan-1"), ("?", ""), ("a*b", "ac"), ("", "x"), ("x", "xx")] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }
}
