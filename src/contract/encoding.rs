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
                    .expect("decode_as refuses what JSON cannot say, and writers to memory do not fail");
                out.into()
            }
        }
    }

    /// Decodes a payload. Unknown fields are ignored in protobuf and refused in JSON, where they are mostly misspellings.
    /// A protobuf message that JSON cannot say (an unknown number of an enum, a time out of range) is refused: whatever was
    /// decoded can be encoded again in either way, also a record that a newer version wrote.
    fn decode_as(encoding: Encoding, payload: &[u8]) -> Result<Self, DecodeError> {
        let fail = |reason: String| DecodeError {
            message: std::any::type_name::<Self>().rsplit("::").next().unwrap_or("message"),
            encoding,
            reason,
        };
        match encoding {
            Encoding::Protobuf => {
                let message = Self::decode(payload).map_err(|e| fail(e.to_string()))?;
                serde_json::to_writer(std::io::sink(), &message).map_err(|e| fail(e.to_string()))?;
                Ok(message)
            }
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

#[cfg(test)]
mod tests {
    use super::super::v1;
    use super::*;

    #[test]
    fn what_json_cannot_say_is_refused_when_it_is_decoded() {
        let event = v1::Event { severity: 99, kind: "newer".into(), ..v1::Event::default() };
        let error = v1::Event::decode_as(Encoding::Protobuf, &event.encode_to_vec()).unwrap_err();
        assert!(error.to_string().contains("Event"), "{error}");
        let time = Some(pbjson_types::Timestamp { seconds: i64::MAX, nanos: -1 });
        let event = v1::Event { time, ..v1::Event::default() };
        assert!(v1::Event::decode_as(Encoding::Protobuf, &event.encode_to_vec()).is_err());
    }
}
