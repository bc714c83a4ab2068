//! The trust bundle as a SPIFFE bundle document: a JWK Set with a sequence and a refresh hint.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{Authority, Tier};
use crate::margo::tools::locked;

impl Authority {
    /// The bundle as it is now. It holds a JWT key too, which a client must ignore.
    pub fn bundle(&self) -> Value {
        let inner = locked(&self.inner);
        let mut keys: Vec<Value> = inner.tiers.iter().map(Tier::jwk).collect();
        keys.push(json!({ "kty": "EC", "use": "jwt-svid", "crv": "P-256", "kid": "1", "x": "AA", "y": "AA" }));
        json!({ "keys": keys, "spiffe_sequence": inner.sequence, "spiffe_refresh_hint": inner.refresh_hint })
    }

    /// The bundle's sequence.
    pub fn sequence(&self) -> u64 {
        locked(&self.inner).sequence
    }
}

impl Tier {
    fn jwk(&self) -> Value {
        // An uncompressed point: 0x04, x, y (SEC 1, 2.3.3). Roots are always P-256.
        let (x, y) = self.public_key[1..].split_at(32);
        json!({
            "kty": "EC",
            "use": "x509-svid",
            "crv": "P-256",
            "x": URL_SAFE_NO_PAD.encode(x),
            "y": URL_SAFE_NO_PAD.encode(y),
            "x5c": [STANDARD.encode(&self.root)],
        })
    }
}
