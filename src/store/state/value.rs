//! A value as sled keeps it: `version u8, crc32c u32, value`. The checksum covers tree, key and value, so that a value
//! that turns up in another place is damage too.

use bytes::Bytes;

const VERSION: u8 = 1;
const PREFIX: usize = 5;

fn checksum(tree: &str, key: &[u8], value: &[u8]) -> u32 {
    let sum = crc32c::crc32c_append(crc32c::crc32c(tree.as_bytes()), &(key.len() as u32).to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(sum, key), value)
}

/// Wraps a value.
pub(crate) fn seal(tree: &str, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(PREFIX + value.len());
    out.push(VERSION);
    out.extend(checksum(tree, key, value).to_le_bytes());
    out.extend_from_slice(value);
    out
}

/// Unwraps a value; `None` when it is damaged or of an unknown version.
pub(crate) fn unseal(tree: &str, key: &[u8], sealed: &[u8]) -> Option<Bytes> {
    let (prefix, value) = sealed.split_at_checked(PREFIX)?;
    let intact = prefix[0] == VERSION && prefix[1..] == checksum(tree, key, value).to_le_bytes();
    intact.then(|| Bytes::copy_from_slice(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_and_confusion_are_found() {
        let mut sealed = seal("devices", b"pump", b"active");
        assert_eq!(unseal("devices", b"pump", &sealed).as_deref(), Some(&b"active"[..]));
        assert_eq!(unseal("jobs", b"pump", &sealed), None);
        assert_eq!(unseal("devices", b"pum", &sealed), None);
        for bit in 0..sealed.len() * 8 {
            sealed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal("devices", b"pump", &sealed), None, "bit {bit}");
            sealed[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(unseal("devices", b"pump", b""), None);
    }
}
