//! JSON and protobuf encodings of contract messages.

use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How a sink encodes messages; every sink chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// The proto3 JSON mapping: readable with any MQTT client.
    #[default]
    Json,
    /// The protobuf wire format: about a third of the size and of the CPU.
    Protobuf,
}

/// A payload that is not the message it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {message} in {encoding:?}: {reason}")]
pub struct DecodeError {
    message: &'static str,
    encoding: Encoding,
    reason: String,
}

/// Any message of the contract.
pub trait ContractMessage: Message + Default + Serialize + DeserializeOwned {
    /// Encodes the message.
    fn encode_as(&self, encoding: Encoding) -> Bytes {
        match encoding {
            Encoding::Protobuf => self.encode_to_vec().into(),
            Encoding::Json => {
                let mut out = Vec::with_capacity(256);
                serde_json::to_writer(&mut out, self)
                    .expect("contract messages have string keys and writers to memory do not fail");
                out.into()
            }
        }
    }

    /// Decodes a payload. Unknown fields are ignored in protobuf and refused in JSON, where they are mostly misspellings.
    fn decode_as(encoding: Encoding, payload: &[u8]) -> Result<Self, DecodeError> {
        let fail = |reason: String| DecodeError {
            message: std::any::type_name::<Self>().rsplit("::").next().unwrap_or("message"),
            encoding,
            reason,
        };
        match encoding {
            Encoding::Protobuf => Self::decode(payload).map_err(|e| fail(e.to_string())),
            Encoding::Json => serde_json::from_slice(payload).map_err(|e| fail(e.to_string())),
        }
    }
}

impl<M: Message + Default + Serialize + DeserializeOwned> ContractMessage for M {}

/// Completes the stored protobuf form of a [`super::v1::Telemetry`] with what is only known at delivery.
///
/// Protobuf fields may come in any order, so the stored octets are forwarded as they are and two fields are appended.
/// That holds for every message of the contract whose `seq` is 5 and `historical` is 6, which is `Telemetry` only.
pub fn with_delivery(stored: &[u8], seq: u64, historical: bool) -> Bytes {
    let mut out = Vec::with_capacity(stored.len() + 14);
    out.extend_from_slice(stored);
    prost::encoding::uint64::encode(5, &seq, &mut out);
    if historical {
        prost::encoding::bool::encode(6, &true, &mut out);
    }
    out.into()
}
