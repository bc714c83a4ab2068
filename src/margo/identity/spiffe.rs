//! SPIFFE IDs, and the two shapes that the standard gives them.

use std::fmt;

use crate::model::is_unreserved;

/// Longest SPIFFE ID, by the SPIFFE standard.
const MAX_ID: usize = 2_048;
/// Longest trust domain.
const MAX_DOMAIN: usize = 255;

/// Why a URI is no SPIFFE ID, or not one of the standard's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// Another scheme, a port, a query, or no domain.
    #[error("{0:?} is no SPIFFE ID; it is spiffe://<trust domain>/<path>")]
    Form(String),
    /// The root of a trust domain names nobody.
    #[error("{0:?} has no path and names nobody")]
    NoPath(String),
    /// A segment is empty, `.`, `..` or has other characters.
    #[error("{0:?} has a segment that is empty, a dot segment, or has characters beyond A-Z a-z 0-9 . _ ~ -")]
    Segment(String),
    /// Neither of a client.
    #[error("{0:?} is not a client's; that is spiffe://<trust domain>/margo/wfm/<wfm-id>/client/<wfm-client-id>")]
    NoClient(String),
}

/// A SPIFFE ID with a path. Compared exactly, as text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: String,
    domain_end: usize,
}

const SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// Parses a SPIFFE ID.
    ///
    /// # Errors
    /// [`SpiffeError`].
    pub fn new(text: &str) -> Result<Self, SpiffeError> {
        let form = || SpiffeError::Form(text.chars().take(200).collect());
        let rest = text.strip_prefix(SCHEME).filter(|_| text.len() <= MAX_ID).ok_or_else(form)?;
        let (domain, path) = rest.split_once('/').map_or((rest, None), |(domain, path)| (domain, Some(path)));
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        if domain.is_empty() || domain.len() > MAX_DOMAIN || !domain.chars().all(legal) {
            return Err(form());
        }
        let path = path.filter(|path| !path.is_empty()).ok_or_else(|| SpiffeError::NoPath(text.to_owned()))?;
        if !path.split('/').all(is_segment) {
            return Err(SpiffeError::Segment(text.to_owned()));
        }
        Ok(Self { text: text.to_owned(), domain_end: SCHEME.len() + domain.len() })
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.domain_end]
    }

    /// The path without its first slash.
    pub fn path(&self) -> &str {
        &self.text[self.domain_end + 1..]
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn is_segment(segment: &str) -> bool {
    !segment.is_empty() && segment != "." && segment != ".." && segment.chars().all(is_unreserved)
}

/// The name of a client: from it follows the one fleet manager that it talks to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientName {
    id: SpiffeId,
    wfm: SpiffeId,
    wfm_id: String,
    client_id: String,
}

impl ClientName {
    /// Makes the name of a client from its parts.
    ///
    /// # Errors
    /// [`SpiffeError`] when a part is no segment.
    pub fn new(trust_domain: &str, wfm_id: &str, client_id: &str) -> Result<Self, SpiffeError> {
        Self::of(SpiffeId::new(&format!("{SCHEME}{trust_domain}/margo/wfm/{wfm_id}/client/{client_id}"))?)
    }

    /// Takes the parts out of a client's SPIFFE ID.
    ///
    /// # Errors
    /// [`SpiffeError::NoClient`].
    pub fn of(id: SpiffeId) -> Result<Self, SpiffeError> {
        let parts: Vec<&str> = id.path().split('/').collect();
        let ["margo", "wfm", wfm_id, "client", client_id] = parts[..] else {
            return Err(SpiffeError::NoClient(id.as_str().to_owned()));
        };
        let (wfm_id, client_id) = (wfm_id.to_owned(), client_id.to_owned());
        let wfm = SpiffeId::new(&format!("{SCHEME}{}/margo/wfm/{wfm_id}", id.trust_domain()))?;
        Ok(Self { id, wfm, wfm_id, client_id })
    }

    /// The client's own SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The SPIFFE ID that the fleet manager must have.
    pub fn wfm(&self) -> &SpiffeId {
        &self.wfm
    }

    /// `<wfm-id>`.
    pub fn wfm_id(&self) -> &str {
        &self.wfm_id
    }

    /// `<wfm-client-id>`.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_wfm_follows_from_the_clients_own_id() {
        let name =
            ClientName::of(SpiffeId::new("spiffe://plant.example/margo/wfm/north/client/gw-7").unwrap()).unwrap();
        assert_eq!(name.wfm().as_str(), "spiffe://plant.example/margo/wfm/north");
        assert_eq!((name.wfm_id(), name.client_id()), ("north", "gw-7"));
        assert_eq!(name.id().trust_domain(), "plant.example");
        assert_eq!(ClientName::new("plant.example", "north", "gw-7").unwrap(), name);
    }

    #[test]
    fn ids_that_are_not_a_clients_are_refused() {
        for bad in [
            "spiffe://d/margo/wfm/north",
            "spiffe://d/margo/wfm/north/client",
            "spiffe://d/margo/wfm/north/client/a/b",
            "spiffe://d/other/wfm/north/client/a",
            "spiffe://d/Margo/wfm/north/client/a",
        ] {
            assert!(matches!(ClientName::of(SpiffeId::new(bad).unwrap()), Err(SpiffeError::NoClient(_))), "{bad}");
        }
    }

    #[test]
    fn segments_are_non_empty_unreserved_and_no_dots() {
        assert!(matches!(SpiffeId::new("spiffe://d/a//b"), Err(SpiffeError::Segment(_))));
        assert!(matches!(SpiffeId::new("spiffe://d/a/"), Err(SpiffeError::Segment(_))));
        for bad in ["spiffe://d/a/../b", "spiffe://d/./b", "spiffe://d/a%2fb", "spiffe://d/a b", "spiffe://d/a?b"] {
            assert!(matches!(SpiffeId::new(bad), Err(SpiffeError::Segment(_))), "{bad}");
        }
        for bad in ["spiffe://d", "spiffe://d/"] {
            assert!(matches!(SpiffeId::new(bad), Err(SpiffeError::NoPath(_))), "{bad}");
        }
        for bad in
            ["https://d/a", "SPIFFE://d/a", "spiffe:///a", "spiffe://d:1/a", "spiffe://u@d/a", "spiffe://D/a", ""]
        {
            assert!(matches!(SpiffeId::new(bad), Err(SpiffeError::Form(_))), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_back_or_refused(text in "(spiffe://)?.{0,60}") {
            if let Ok(id) = SpiffeId::new(&text) {
                prop_assert_eq!(id.as_str(), &text);
                prop_assert_eq!(format!("spiffe://{}/{}", id.trust_domain(), id.path()), text);
            }
        }
    }
}
