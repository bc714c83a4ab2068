//! Bytes of a server against the parsers, for the fuzzer; property tests stand in for it in the ordinary build.

use super::bundle::unpack;
use super::manifest::Manifest;
use crate::margo::words::Digest;

/// A manifest and a bundle, cut at the first zero byte. Never panics, whatever they are.
pub fn fuzz_desired(data: &[u8]) {
    let cut = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (head, tail) = data.split_at(cut);
    let tail = tail.get(1..).unwrap_or_default();
    let empty = br#"{"manifestVersion":1,"deployments":[]}"#;
    if let Ok(manifest) = Manifest::parse(head).or_else(|_| Manifest::parse(empty)) {
        let _refused = unpack(tail, &Digest::of(tail), &manifest);
    }
    let _refused = crate::margo::deployment::Deployment::parse(data);
    let _refused = crate::margo::identity::TrustBundle::parse(data);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            fuzz_desired(&data);
        }
    }
}
