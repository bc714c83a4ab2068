//! The certificates of a certs-only CMS message (RFC 5652 section 5, RFC 8951 section 3.1): a bounded walk, nothing more.
//!
//! The message carries no signature, so there is nothing to verify in it: what it brings is verified as certificates are.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;

/// 1.2.840.113549.1.7.2, id-signedData.
const SIGNED_DATA: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
/// Most certificates in one message.
const MAX_CERTIFICATES: usize = 32;
/// Deepest nesting of elements without a length that is followed.
const MAX_DEPTH: usize = 16;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT: u8 = 0x06;
const INTEGER: u8 = 0x02;
const CONTEXT_0: u8 = 0xa0;

/// Why an answer is not a certs-only message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmsError {
    /// Neither base64 nor DER.
    #[error("the answer is neither base64 nor DER")]
    Encoding,
    /// The structure is another one.
    #[error("the answer is no certs-only CMS message: {0}")]
    Structure(&'static str),
    /// Too much of it.
    #[error("the answer holds more than {MAX_CERTIFICATES} certificates")]
    TooMany,
}

struct Element<'a> {
    tag: u8,
    /// With tag and length.
    whole: &'a [u8],
    content: &'a [u8],
}

/// The certificates in an answer's body: base64 with or without line breaks, or plain DER.
///
/// # Errors
/// When it is something else.
pub fn certificates(body: &[u8]) -> Result<Vec<CertificateDer<'static>>, CmsError> {
    if body.first() == Some(&SEQUENCE) {
        return walk(body);
    }
    let text: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    walk(&STANDARD.decode(text).map_err(|_| CmsError::Encoding)?)
}

fn walk(der: &[u8]) -> Result<Vec<CertificateDer<'static>>, CmsError> {
    let (message, _) = expect(der, SEQUENCE, "it does not begin with a sequence")?;
    let (kind, rest) = expect(message.content, OBJECT, "its content type is missing")?;
    if kind.content != SIGNED_DATA {
        return Err(CmsError::Structure("its content type is not signed-data"));
    }
    let (wrapped, _) = expect(rest, CONTEXT_0, "its content is missing")?;
    let (signed, _) = expect(wrapped.content, SEQUENCE, "its signed-data is missing")?;
    let (_, rest) = expect(signed.content, INTEGER, "its version is missing")?;
    let (_, rest) = expect(rest, SET, "its digest algorithms are missing")?;
    let (_, rest) = expect(rest, SEQUENCE, "its inner content is missing")?;
    let (bag, _) = expect(rest, CONTEXT_0, "it holds no certificates")?;
    let mut found = Vec::new();
    let mut rest = bag.content;
    while !rest.is_empty() && !ends(rest) {
        let (certificate, more) = expect(rest, SEQUENCE, "one of its certificates is of another kind")?;
        if found.len() == MAX_CERTIFICATES {
            return Err(CmsError::TooMany);
        }
        found.push(CertificateDer::from(certificate.whole.to_vec()));
        rest = more;
    }
    if found.is_empty() { Err(CmsError::Structure("it holds no certificates")) } else { Ok(found) }
}

fn expect<'a>(input: &'a [u8], tag: u8, otherwise: &'static str) -> Result<(Element<'a>, &'a [u8]), CmsError> {
    match element(input, 0) {
        Some((element, rest)) if element.tag == tag => Ok((element, rest)),
        _ => Err(CmsError::Structure(otherwise)),
    }
}

/// End-of-contents of an element without a length (X.690, 8.1.5).
fn ends(input: &[u8]) -> bool {
    input.starts_with(&[0, 0])
}

/// One element, and what follows it. Lengths may be indefinite (X.690, 8.1.3.6): some authorities send BER.
fn element(input: &[u8], depth: usize) -> Option<(Element<'_>, &[u8])> {
    let (&tag, &first) = (input.first()?, input.get(1)?);
    if tag & 0x1f == 0x1f || depth > MAX_DEPTH {
        return None;
    }
    if first == 0x80 {
        return indefinite(input, tag, depth);
    }
    let (header, length) = match first {
        0..=0x7f => (2, usize::from(first)),
        0x81..=0x84 => {
            let bytes = usize::from(first & 0x7f);
            let digits = input.get(2..2 + bytes)?;
            (2 + bytes, digits.iter().fold(0usize, |length, &digit| length << 8 | usize::from(digit)))
        }
        _ => return None,
    };
    let end = header.checked_add(length)?;
    let whole = input.get(..end)?;
    Some((Element { tag, whole, content: &whole[header..] }, &input[end..]))
}

fn indefinite(input: &[u8], tag: u8, depth: usize) -> Option<(Element<'_>, &[u8])> {
    if tag & 0x20 == 0 {
        return None;
    }
    let mut rest = &input[2..];
    while !ends(rest) {
        rest = element(rest, depth + 1)?.1;
    }
    let inside = input.len() - 2 - rest.len();
    let end = 2 + inside + 2;
    Some((Element { tag, whole: &input[..end], content: &input[2..2 + inside] }, &input[end..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        match content.len() {
            length @ 0..=0x7f => out.push(length as u8),
            length => out.extend([0x82, (length >> 8) as u8, length as u8]),
        }
        out.extend(content);
        out
    }

    fn endless(tag: u8, content: &[u8]) -> Vec<u8> {
        [&[tag, 0x80], content, &[0, 0]].concat()
    }

    fn message(certificates: &[Vec<u8>], wrap: impl Fn(u8, &[u8]) -> Vec<u8>) -> Vec<u8> {
        let signed = [
            super::tests::wrap(INTEGER, &[1]),
            super::tests::wrap(SET, &[]),
            super::tests::wrap(SEQUENCE, &super::tests::wrap(OBJECT, &[0x2a, 3])),
            wrap(CONTEXT_0, &certificates.concat()),
            super::tests::wrap(SET, &[]),
        ];
        let outer = [super::tests::wrap(OBJECT, &SIGNED_DATA), wrap(CONTEXT_0, &wrap(SEQUENCE, &signed.concat()))];
        wrap(SEQUENCE, &outer.concat())
    }

    #[test]
    fn definite_and_indefinite_lengths_are_read_in_base64_and_plain() {
        let inner = [wrap(SEQUENCE, &[7; 300]), wrap(SEQUENCE, &[8; 3])];
        for der in [message(&inner, wrap), message(&inner, endless)] {
            let mut text = STANDARD.encode(&der);
            (1..text.len() / 70).rev().for_each(|line| text.insert_str(line * 70, "\r\n"));
            for body in [der.clone(), text.into_bytes()] {
                let read = certificates(&body).unwrap();
                assert_eq!(read.iter().map(|c| c.to_vec()).collect::<Vec<_>>(), inner);
            }
        }
    }

    #[test]
    fn nothing_too_much_and_something_else_are_refused() {
        assert_eq!(certificates(&message(&[], wrap)), Err(CmsError::Structure("it holds no certificates")));
        let many = vec![wrap(SEQUENCE, &[1]); MAX_CERTIFICATES + 1];
        assert_eq!(certificates(&message(&many, wrap)), Err(CmsError::TooMany));
        assert_eq!(certificates(b"<html>not found</html>"), Err(CmsError::Encoding));
        let deep: Vec<u8> = [SEQUENCE, 0x80].repeat(100_000);
        assert!(certificates(&deep).is_err(), "no stack is used up");
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = certificates(&bytes);
            let mut sequence = vec![SEQUENCE];
            sequence.extend(bytes);
            let _ = certificates(&sequence);
        }

        #[test]
        fn a_cut_message_is_refused(cut in 0usize..300) {
            let der = message(&[wrap(SEQUENCE, &[7; 200])], wrap);
            let cut = cut % der.len();
            prop_assert!(certificates(&der[..cut]).is_err());
        }
    }
}
