//! The two envelopes of a PDU: the MBAP header of Modbus TCP, and address and CRC of RTU.
//!
//! Sans-IO. `decode` looks at the octets received so far and says: not yet, a frame, or no frame will come of this.

use super::pdu::MAX_PDU;

/// Longest frame of both kinds: MBAP header (7) and PDU.
pub const MAX_FRAME: usize = 7 + MAX_PDU;

/// Which envelope a link uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Modbus TCP.
    Tcp,
    /// RTU, on a serial line or over TCP.
    Rtu,
}

/// A frame found in the octets received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Transaction id; 0 for RTU, which has none.
    pub transaction: u16,
    /// Unit address.
    pub unit: u8,
    /// Where the PDU begins.
    pub start: usize,
    /// Where the PDU ends.
    pub end: usize,
    /// Octets of the whole frame.
    pub used: usize,
}

/// Octets that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// MBAP protocol id other than 0: not Modbus.
    #[error("the reply is not Modbus TCP (protocol id {0})")]
    Protocol(u16),
    /// MBAP length out of range.
    #[error("the reply's header claims {0} octets, Modbus allows 2 to 254")]
    Length(u16),
    /// RTU function whose length nobody knows, mostly noise.
    #[error("the reply carries function {0}, which was never asked for")]
    Function(u8),
    /// RTU checksum wrong.
    #[error("the reply's checksum is wrong: line noise, or another baud rate or parity")]
    Crc,
    /// More octets than a frame can have.
    #[error("the reply is longer than any frame")]
    TooLong,
}

/// Writes a frame into `out`, which is cleared first; `pdu` appends the PDU.
pub fn encode(framing: Framing, transaction: u16, unit: u8, out: &mut Vec<u8>, pdu: impl FnOnce(&mut Vec<u8>)) {
    out.clear();
    match framing {
        Framing::Tcp => {
            out.extend_from_slice(&transaction.to_be_bytes());
            out.extend_from_slice(&[0, 0, 0, 0, unit]);
            pdu(out);
            let length = (out.len() - 6) as u16;
            out[4..6].copy_from_slice(&length.to_be_bytes());
        }
        Framing::Rtu => {
            out.push(unit);
            pdu(out);
            let sum = crc(out);
            out.extend_from_slice(&sum.to_le_bytes());
        }
    }
}

/// Looks for a reply frame at the beginning of `octets`. `Ok(None)`: more octets are needed.
pub fn decode(framing: Framing, octets: &[u8]) -> Result<Option<Frame>, FrameError> {
    let found = match framing {
        Framing::Tcp => decode_tcp(octets),
        Framing::Rtu => decode_rtu(octets),
    };
    match found {
        Ok(None) if octets.len() >= MAX_FRAME => Err(FrameError::TooLong),
        found => found,
    }
}

fn decode_tcp(octets: &[u8]) -> Result<Option<Frame>, FrameError> {
    let Some((header, _)) = octets.split_first_chunk::<7>() else { return Ok(None) };
    let [transaction_high, transaction_low, protocol_high, protocol_low, length_high, length_low, unit] = *header;
    let protocol = u16::from_be_bytes([protocol_high, protocol_low]);
    if protocol != 0 {
        return Err(FrameError::Protocol(protocol));
    }
    let length = u16::from_be_bytes([length_high, length_low]);
    if !(2..=MAX_PDU as u16 + 1).contains(&length) {
        return Err(FrameError::Length(length));
    }
    let used = 6 + usize::from(length);
    let transaction = u16::from_be_bytes([transaction_high, transaction_low]);
    Ok((octets.len() >= used).then_some(Frame { transaction, unit, start: 7, end: used, used }))
}

fn decode_rtu(octets: &[u8]) -> Result<Option<Frame>, FrameError> {
    let Some(pdu) = rtu_pdu_length(octets)? else { return Ok(None) };
    let used = 1 + pdu + 2;
    if used > MAX_FRAME {
        return Err(FrameError::TooLong);
    }
    let Some(frame) = octets.get(..used) else { return Ok(None) };
    let (body, sum) = frame.split_at(used - 2);
    if crc(body).to_le_bytes() != sum {
        return Err(FrameError::Crc);
    }
    Ok(Some(Frame { transaction: 0, unit: frame[0], start: 1, end: used - 2, used }))
}

/// Octets of the PDU of the RTU reply at the beginning of `octets`, as far as they tell.
fn rtu_pdu_length(octets: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some(&function) = octets.get(1) else { return Ok(None) };
    Ok(match function {
        1..=4 | 17 | 21 | 23 => octets.get(2).map(|&count| 2 + usize::from(count)),
        5 | 6 | 8 | 15 | 16 => Some(5),
        22 => Some(7),
        43 => device_id_length(octets.get(1..).unwrap_or_default()),
        0x80.. => Some(2),
        _ => return Err(FrameError::Function(function)),
    })
}

/// Length of a FC 43/14 reply: seven octets, then objects that each tell their own length.
fn device_id_length(pdu: &[u8]) -> Option<usize> {
    let objects = *pdu.get(6)?;
    let mut at = 7;
    for _ in 0..objects {
        at += 2 + usize::from(*pdu.get(at + 1)?);
    }
    Some(at)
}

/// CRC-16/MODBUS, octet by octet from a table made at compile time.
pub fn crc(octets: &[u8]) -> u16 {
    octets.iter().fold(0xFFFF, |sum, &octet| (sum >> 8) ^ CRC_TABLE[usize::from((sum as u8) ^ octet)])
}

static CRC_TABLE: [u16; 256] = crc_table();

const fn crc_table() -> [u16; 256] {
    let mut table = [0u16; 256];
    let mut index = 0;
    while index < 256 {
        let mut sum = index as u16;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0xA001 } else { sum >> 1 };
            bit += 1;
        }
        table[index] = sum;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn crc_matches_the_catalogue_check_value() {
        // CRC-16/MODBUS: check value of "123456789".
        assert_eq!(crc(b"123456789"), 0x4B37);
    }

    #[test]
    fn headers_that_lie_are_refused() {
        assert_eq!(decode(Framing::Tcp, &[0, 1, 0, 9, 0, 3, 1]), Err(FrameError::Protocol(9)));
        assert_eq!(decode(Framing::Tcp, &[0, 1, 0, 0, 0, 1, 1]), Err(FrameError::Length(1)));
        assert_eq!(decode(Framing::Tcp, &[0, 1, 0, 0, 255, 255, 1]), Err(FrameError::Length(65535)));
        assert_eq!(decode(Framing::Rtu, &[1, 99]), Err(FrameError::Function(99)));
        assert_eq!(decode(Framing::Rtu, &[1, 3, 2, 0, 1, 0, 0]), Err(FrameError::Crc));
    }

    proptest! {
        #[test]
        fn a_frame_is_found_whole_at_its_last_octet_and_not_before(
            unit: u8, transaction: u16, data in prop::collection::vec(any::<u8>(), 0..=250),
        ) {
            for framing in [Framing::Tcp, Framing::Rtu] {
                let mut octets = Vec::new();
                encode(framing, transaction, unit, &mut octets, |out| {
                    out.extend_from_slice(&[3, data.len() as u8]);
                    out.extend_from_slice(&data);
                });
                for cut in 0..octets.len() {
                    prop_assert_eq!(decode(framing, &octets[..cut]), Ok(None));
                }
                let whole = octets.len();
                octets.push(0xAA);
                let frame = decode(framing, &octets).unwrap().unwrap();
                prop_assert_eq!((frame.unit, frame.used), (unit, whole));
                prop_assert_eq!(&octets[frame.start + 2..frame.end], &data[..]);
            }
        }

        #[test]
        fn any_octets_end_in_a_verdict(octets in prop::collection::vec(any::<u8>(), 0..600)) {
            for framing in [Framing::Tcp, Framing::Rtu] {
                if let Ok(Some(frame)) = decode(framing, &octets) {
                    prop_assert!(frame.end <= frame.used && frame.used <= octets.len().min(MAX_FRAME));
                    prop_assert!(frame.start < frame.end);
                } else {
                    prop_assert!(octets.len() < MAX_FRAME || decode(framing, &octets).is_err());
                }
            }
        }
    }
}
