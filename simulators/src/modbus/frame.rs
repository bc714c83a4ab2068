//! Frames around a PDU: the MBAP header of Modbus TCP, and address plus CRC of RTU. Decoders take bytes as they come,
//! in any slices.

/// Longest PDU (V1.1b3, 4.1).
pub const MAX_PDU: usize = 253;

/// How PDUs are framed on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// MBAP header, 7 bytes.
    Tcp,
    /// Unit address and CRC, on a serial line or through a converter.
    Rtu,
}

/// A request taken from the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Transaction id of Modbus TCP; 0 on RTU.
    pub transaction: u16,
    /// Unit id or slave address.
    pub unit: u8,
    /// Function code and data.
    pub pdu: Vec<u8>,
    /// Bytes it took on the wire.
    pub wire_bytes: usize,
}

/// The stream cannot be Modbus TCP any more; the connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokenStream;

/// Takes a byte stream apart.
#[derive(Debug)]
pub struct Decoder {
    framing: Framing,
    buffer: Vec<u8>,
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new(framing: Framing) -> Self {
        Self { framing, buffer: Vec::new() }
    }

    /// Adds bytes as received. Follow with [`Decoder::next_request`] until it is empty.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Forgets a partial frame: on RTU a silent interval ends whatever was begun.
    pub fn silence(&mut self) {
        if self.framing == Framing::Rtu {
            self.buffer.clear();
        }
    }

    /// The next whole request; `None` when more bytes are needed.
    pub fn next_request(&mut self) -> Result<Option<Request>, BrokenStream> {
        match self.framing {
            Framing::Tcp => self.next_tcp(),
            Framing::Rtu => Ok(self.next_rtu()),
        }
    }

    fn next_tcp(&mut self) -> Result<Option<Request>, BrokenStream> {
        let &[t0, t1, p0, p1, l0, l1, ..] = self.buffer.as_slice() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        if (p0, p1) != (0, 0) || !(2..=MAX_PDU + 1).contains(&length) {
            return Err(BrokenStream);
        }
        if self.buffer.len() < 6 + length {
            return Ok(None);
        }
        let frame: Vec<u8> = self.buffer.drain(..6 + length).collect();
        Ok(Some(Request {
            transaction: u16::from_be_bytes([t0, t1]),
            unit: frame[6],
            pdu: frame[7..].to_vec(),
            wire_bytes: frame.len(),
        }))
    }

    /// Skips a byte at a time until a request with a right CRC begins.
    fn next_rtu(&mut self) -> Option<Request> {
        while let Some(length) = rtu_request_length(&self.buffer) {
            if length > MAX_PDU + 3 {
                self.buffer.remove(0);
                continue;
            }
            if self.buffer.len() < length {
                return None;
            }
            if crc(&self.buffer[..length]) == 0 {
                let frame: Vec<u8> = self.buffer.drain(..length).collect();
                let pdu = frame[1..length - 2].to_vec();
                return Some(Request { transaction: 0, unit: frame[0], pdu, wire_bytes: length });
            }
            self.buffer.remove(0);
        }
        None
    }
}

/// Length of the RTU request that begins `bytes`; `None` while that cannot be told. An unknown function code counts as
/// a frame of four bytes, which its CRC then confirms or not.
fn rtu_request_length(bytes: &[u8]) -> Option<usize> {
    let function = *bytes.get(1)?;
    Some(match function {
        1..=6 | 8 => 8,
        15 | 16 => 9 + usize::from(*bytes.get(6)?),
        22 => 10,
        23 => 13 + usize::from(*bytes.get(10)?),
        43 => 7,
        _ => 4,
    })
}

/// A reply as it goes over the wire.
pub fn encode(framing: Framing, transaction: u16, unit: u8, pdu: &[u8]) -> Vec<u8> {
    match framing {
        Framing::Tcp => {
            let mut frame = Vec::with_capacity(7 + pdu.len());
            frame.extend_from_slice(&transaction.to_be_bytes());
            frame.extend_from_slice(&[0, 0]);
            frame.extend_from_slice(&(pdu.len() as u16 + 1).to_be_bytes());
            frame.push(unit);
            frame.extend_from_slice(pdu);
            frame
        }
        Framing::Rtu => {
            let mut frame = Vec::with_capacity(3 + pdu.len());
            frame.push(unit);
            frame.extend_from_slice(pdu);
            let check = crc(&frame);
            frame.extend_from_slice(&check.to_le_bytes());
            frame
        }
    }
}

/// CRC-16/MODBUS (serial line guide, 6.2.2). Over a frame with its CRC the result is 0.
pub fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xffff, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn crc_of_the_check_string() {
        assert_eq!(crc(b"123456789"), 0x4b37);
        assert_eq!(crc(&encode(Framing::Rtu, 0, 1, &[3, 0, 0, 0, 1])), 0);
    }

    #[test]
    fn tcp_refuses_what_cannot_be_a_header() {
        for bad in [[0, 1, 0, 1, 0, 6], [0, 1, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0]] {
            let mut decoder = Decoder::new(Framing::Tcp);
            decoder.push(&bad);
            assert_eq!(decoder.next_request(), Err(BrokenStream));
        }
    }

    #[test]
    fn rtu_finds_a_request_behind_noise() {
        let mut decoder = Decoder::new(Framing::Rtu);
        decoder.push(&[0x55, 0x03, 0xff]);
        decoder.push(&encode(Framing::Rtu, 0, 9, &[3, 0, 1, 0, 2]));
        decoder.push(&encode(Framing::Rtu, 0, 9, &[3, 0, 1, 0, 3]));
        let first = decoder.next_request().expect("rtu never breaks").expect("the first request");
        assert_eq!((first.unit, first.pdu), (9, vec![3, 0, 1, 0, 2]));
        assert!(decoder.next_request().expect("rtu never breaks").is_some());
    }

    #[test]
    fn silence_ends_a_partial_rtu_frame() {
        let mut decoder = Decoder::new(Framing::Rtu);
        decoder.push(&[1, 3, 0]);
        decoder.silence();
        decoder.push(&encode(Framing::Rtu, 0, 1, &[17]));
        assert_eq!(decoder.next_request().expect("rtu never breaks").map(|r| r.pdu), Some(vec![17]));
    }

    fn request_pdu() -> impl Strategy<Value = Vec<u8>> {
        let words = || prop::collection::vec(any::<u8>(), 0..60);
        prop_oneof![
            (1..=6_u8, any::<[u8; 4]>()).prop_map(|(function, rest)| [&[function], &rest[..]].concat()),
            (any::<[u8; 4]>(), words())
                .prop_map(|(head, data)| [&[16], &head[..], &[data.len() as u8], &data[..]].concat()),
            (any::<[u8; 8]>(), words())
                .prop_map(|(head, data)| [&[23], &head[..], &[data.len() as u8], &data[..]].concat()),
            Just(vec![17]),
            Just(vec![43, 14, 1, 0]),
        ]
    }

    proptest! {
        #[test]
        fn any_slicing_gives_the_same_requests(
            pdus in prop::collection::vec(request_pdu(), 1..6),
            slice in 1..40_usize,
            unit in 1..=247_u8,
            framing in prop_oneof![Just(Framing::Tcp), Just(Framing::Rtu)],
        ) {
            let wire: Vec<u8> = pdus.iter().flat_map(|pdu| encode(framing, 7, unit, pdu)).collect();
            let mut decoder = Decoder::new(framing);
            let mut seen = Vec::new();
            for bytes in wire.chunks(slice) {
                decoder.push(bytes);
                while let Some(request) = decoder.next_request().expect("well-formed") {
                    prop_assert_eq!(request.unit, unit);
                    seen.push(request.pdu);
                }
            }
            prop_assert_eq!(seen, pdus);
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            for framing in [Framing::Tcp, Framing::Rtu] {
                let mut decoder = Decoder::new(framing);
                decoder.push(&bytes);
                while let Ok(Some(_)) = decoder.next_request() {}
            }
        }
    }
}
