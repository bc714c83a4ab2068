//! Requests and replies without their envelope (Modbus Application Protocol V1.1b3).
//!
//! Sans-IO. A reply is checked against its request completely: function, length, and the echo of a write. Nothing a
//! device sends can panic here or be taken for more than it is.

use super::Table;

/// Longest PDU (V1.1b3, section 4.1).
pub const MAX_PDU: usize = 253;

/// A request. Register data is in wire order, two octets each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// FC 1 to 4.
    Read {
        /// What to read from.
        table: Table,
        /// First item, 0-based.
        address: u16,
        /// Items: at most 2000 bits or 125 registers.
        count: u16,
    },
    /// FC 5.
    WriteCoil {
        /// Coil, 0-based.
        address: u16,
        /// New state.
        on: bool,
    },
    /// FC 6.
    WriteRegister {
        /// Register, 0-based.
        address: u16,
        /// New content.
        word: u16,
    },
    /// FC 15 with a single coil.
    WriteCoils {
        /// Coil, 0-based.
        address: u16,
        /// New state.
        on: bool,
    },
    /// FC 16.
    WriteRegisters {
        /// First register, 0-based.
        address: u16,
        /// 1 to 123 registers.
        data: &'a [u8],
    },
    /// FC 22: register = (register AND `and`) OR (`or` AND NOT `and`).
    MaskRegister {
        /// Register, 0-based.
        address: u16,
        /// Bits that stay.
        and: u16,
        /// New state of the other bits.
        or: u16,
    },
    /// FC 23: writes, then reads the same registers.
    WriteAndRead {
        /// First register, 0-based.
        address: u16,
        /// 1 to 121 registers.
        data: &'a [u8],
    },
    /// FC 21: the octets behind the function code and their count, as somebody else put them together.
    WriteFile {
        /// One or more records: reference type 6, file, record and length in registers, data. At most 251 octets.
        records: &'a [u8],
    },
    /// FC 43/14.
    DeviceId {
        /// 1 basic, 2 regular, 3 extended.
        code: u8,
        /// First object wanted.
        object: u8,
    },
    /// FC 17.
    ServerId,
    /// FC 8, sub-function 0: the device sends the data back.
    Echo {
        /// The data.
        nonce: u16,
    },
}

/// A valid reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// Registers in wire order, packed bits, an identification or a server id.
    Data(&'a [u8]),
    /// A write was confirmed.
    Done,
    /// The device refused.
    Exception(Exception),
}

/// Code of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception(pub u8);

impl Exception {
    /// The device does not know the function.
    pub const ILLEGAL_FUNCTION: Exception = Exception(1);
    /// An address in the range does not exist.
    pub const ILLEGAL_ADDRESS: Exception = Exception(2);
    /// A value or a count is not allowed.
    pub const ILLEGAL_VALUE: Exception = Exception(3);

    /// The code in words.
    pub fn text(self) -> String {
        let name = match self.0 {
            1 => "illegal function",
            2 => "illegal data address",
            3 => "illegal data value",
            4 => "device failure",
            5 => "acknowledge, still working",
            6 => "device busy",
            7 => "negative acknowledge",
            8 => "memory parity error",
            10 => "gateway path unavailable",
            11 => "gateway target device failed to respond",
            _ => "unknown exception",
        };
        format!("exception {} ({name})", self.0)
    }

    /// The device has no time now, and says nothing about the request.
    pub const fn is_busy(self) -> bool {
        matches!(self.0, 5 | 6)
    }

    /// A gateway on the way says that the device itself did not answer.
    pub const fn is_no_answer(self) -> bool {
        matches!(self.0, 10 | 11)
    }
}

/// A reply that is not one to its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PduError {
    /// No octets.
    #[error("the reply is empty")]
    Empty,
    /// Another function.
    #[error("the reply is to function {found}, the request was function {expected}")]
    Function {
        /// Of the request.
        expected: u8,
        /// Of the reply.
        found: u8,
    },
    /// Too few or too many octets.
    #[error("the reply has {found} octets of data where {expected} were due")]
    Length {
        /// What the request asks for.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// A confirmation of another write, or an echo of other data.
    #[error("the reply confirms something else than the request")]
    Confirmation,
}

impl Request<'_> {
    /// The function code.
    pub const fn function(&self) -> u8 {
        match self {
            Request::Read { table, .. } => table.read_function(),
            Request::WriteCoil { .. } => 5,
            Request::WriteRegister { .. } => 6,
            Request::Echo { .. } => 8,
            Request::WriteCoils { .. } => 15,
            Request::WriteRegisters { .. } => 16,
            Request::ServerId => 17,
            Request::WriteFile { .. } => 21,
            Request::MaskRegister { .. } => 22,
            Request::WriteAndRead { .. } => 23,
            Request::DeviceId { .. } => 43,
        }
    }

    /// Appends the PDU to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.function());
        let mut word = |word: u16| out.extend_from_slice(&word.to_be_bytes());
        match *self {
            Request::Read { address, count, .. } => {
                word(address);
                word(count);
            }
            Request::WriteCoil { address, on } => {
                word(address);
                word(if on { 0xFF00 } else { 0 });
            }
            Request::WriteRegister { address, word: content } => {
                word(address);
                word(content);
            }
            Request::Echo { nonce } => {
                word(0);
                word(nonce);
            }
            Request::WriteCoils { address, on } => {
                word(address);
                word(1);
                out.extend_from_slice(&[1, u8::from(on)]);
            }
            Request::WriteRegisters { address, data } => {
                word(address);
                word(registers(data));
                out.push(octets(data));
                out.extend_from_slice(data);
            }
            Request::ServerId => {}
            Request::WriteFile { records } => {
                out.push(octets(records));
                out.extend_from_slice(records);
            }
            Request::MaskRegister { address, and, or } => {
                word(address);
                word(and);
                word(or);
            }
            Request::WriteAndRead { address, data } => {
                word(address);
                word(registers(data));
                word(address);
                word(registers(data));
                out.push(octets(data));
                out.extend_from_slice(data);
            }
            Request::DeviceId { code, object } => out.extend_from_slice(&[14, code, object]),
        }
    }

    /// Octets of the PDU, for the time it takes on a serial line.
    pub const fn length(&self) -> usize {
        match self {
            Request::WriteRegisters { data, .. } => 6 + data.len(),
            Request::WriteAndRead { data, .. } => 10 + data.len(),
            Request::WriteFile { records } => 2 + records.len(),
            Request::WriteCoils { .. } | Request::MaskRegister { .. } => 7,
            Request::DeviceId { .. } => 4,
            Request::ServerId => 1,
            Request::Read { .. } | Request::WriteCoil { .. } | Request::WriteRegister { .. } | Request::Echo { .. } => {
                5
            }
        }
    }

    /// Longest PDU of a normal reply, for the time it takes on a serial line.
    pub fn longest_reply(&self) -> usize {
        match *self {
            Request::Read { table, count, .. } => 2 + data_octets(table, count),
            Request::WriteAndRead { data, .. } => 2 + data.len(),
            Request::WriteFile { records } => 2 + records.len(),
            Request::MaskRegister { .. } => 7,
            Request::DeviceId { .. } | Request::ServerId => MAX_PDU,
            _ => 5,
        }
    }

    /// Reads a PDU that somebody else put together: FC 3, 16 or 21, as transfers of firmware use them. `None` for any other
    /// function, and for one that is not well formed.
    pub fn read_pdu(pdu: &[u8]) -> Option<Request<'_>> {
        let word = |at: usize| Some(u16::from_be_bytes([*pdu.get(at)?, *pdu.get(at + 1)?]));
        match *pdu {
            [3, _, _, _, _] => {
                let count = word(3).filter(|count| (1..=125).contains(count))?;
                Some(Request::Read { table: Table::Holding, address: word(1)?, count })
            }
            [16, _, _, _, _, count, ref data @ ..] => {
                let fits = data.len() == usize::from(count) && word(3)? == registers(data) && data.len() % 2 == 0;
                (fits && (2..=246).contains(&data.len())).then_some(Request::WriteRegisters { address: word(1)?, data })
            }
            [21, count, ref records @ ..] => {
                let fits = records.len() == usize::from(count) && (9..=251).contains(&records.len());
                fits.then_some(Request::WriteFile { records })
            }
            _ => None,
        }
    }

    /// The PDU of the reply, from what [`Self::parse`] left of it.
    pub fn write_pdu(&self, reply: Reply<'_>) -> Vec<u8> {
        match reply {
            Reply::Exception(exception) => vec![self.function() | 0x80, exception.0],
            Reply::Data(data) => [&[self.function(), octets(data)], data].concat(),
            Reply::Done => {
                let mut pdu = Vec::with_capacity(self.length());
                self.encode(&mut pdu);
                if let Request::WriteRegisters { .. } = self {
                    pdu.truncate(5);
                }
                pdu
            }
        }
    }

    /// Checks a reply's PDU against this request.
    pub fn parse<'p>(&self, pdu: &'p [u8]) -> Result<Reply<'p>, PduError> {
        let (&function, body) = pdu.split_first().ok_or(PduError::Empty)?;
        if function == self.function() | 0x80 {
            return match body {
                [code] => Ok(Reply::Exception(Exception(*code))),
                _ => Err(PduError::Length { expected: 1, found: body.len() }),
            };
        }
        if function != self.function() {
            return Err(PduError::Function { expected: self.function(), found: function });
        }
        match *self {
            Request::Read { table, count, .. } => counted(body, Some(data_octets(table, count))),
            Request::WriteAndRead { data, .. } => counted(body, Some(data.len())),
            Request::ServerId => counted(body, None),
            Request::DeviceId { .. } => match body {
                [14, rest @ ..] => Ok(Reply::Data(rest)),
                _ => Err(PduError::Confirmation),
            },
            Request::WriteCoils { address, .. } => confirmed(body, &[address, 1]),
            Request::WriteRegisters { address, data } => confirmed(body, &[address, registers(data)]),
            Request::WriteCoil { address, on } => confirmed(body, &[address, if on { 0xFF00 } else { 0 }]),
            Request::WriteRegister { address, word } => confirmed(body, &[address, word]),
            Request::MaskRegister { address, and, or } => confirmed(body, &[address, and, or]),
            // The whole request comes back (V1.1b3, section 6.15).
            Request::WriteFile { records } => match body.split_first() {
                Some((&count, echo)) if usize::from(count) == echo.len() && echo == records => Ok(Reply::Done),
                _ => Err(PduError::Confirmation),
            },
            Request::Echo { nonce } => confirmed(body, &[0, nonce]),
        }
    }
}

fn registers(data: &[u8]) -> u16 {
    (data.len() / 2) as u16
}

fn octets(data: &[u8]) -> u8 {
    data.len() as u8
}

/// Octets that carry `count` items of a table.
pub fn data_octets(table: Table, count: u16) -> usize {
    if table.is_bits() { usize::from(count).div_ceil(8) } else { usize::from(count) * 2 }
}

/// Data behind an octet count, which must tell the truth and be what was asked for.
fn counted(body: &[u8], expected: Option<usize>) -> Result<Reply<'_>, PduError> {
    let (&count, data) = body.split_first().ok_or(PduError::Length { expected: expected.unwrap_or(1), found: 0 })?;
    let expected = expected.unwrap_or(usize::from(count));
    if data.len() != expected || usize::from(count) != expected {
        return Err(PduError::Length { expected, found: data.len().min(usize::from(count)) });
    }
    Ok(Reply::Data(data))
}

fn confirmed<'a>(body: &[u8], words: &[u16]) -> Result<Reply<'a>, PduError> {
    if body.len() != words.len() * 2 {
        return Err(PduError::Length { expected: words.len() * 2, found: body.len() });
    }
    let same = body.chunks_exact(2).zip(words).all(|(pair, word)| pair == word.to_be_bytes());
    if same { Ok(Reply::Done) } else { Err(PduError::Confirmation) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const READ: Request<'_> = Request::Read { table: Table::Holding, address: 900, count: 2 };

    #[test]
    fn a_reply_with_fewer_or_more_registers_than_asked_for_is_refused() {
        assert_eq!(READ.parse(&[3, 4, 0, 1, 0, 2]), Ok(Reply::Data(&[0, 1, 0, 2])));
        assert_eq!(READ.parse(&[3, 2, 0, 1]), Err(PduError::Length { expected: 4, found: 2 }));
        assert_eq!(READ.parse(&[3, 6, 0, 1, 0, 2, 0, 3]), Err(PduError::Length { expected: 4, found: 6 }));
        assert_eq!(READ.parse(&[3, 4, 0, 1]), Err(PduError::Length { expected: 4, found: 2 }));
        assert_eq!(READ.parse(&[3]), Err(PduError::Length { expected: 4, found: 0 }));
        assert_eq!(READ.parse(&[4, 4, 0, 1, 0, 2]), Err(PduError::Function { expected: 3, found: 4 }));
        assert_eq!(READ.parse(&[]), Err(PduError::Empty));
    }

    #[test]
    fn a_pdu_of_others_is_read_only_when_it_is_well_formed_and_its_reply_comes_back_as_it_was() {
        let file = [21, 9, 6, 0, 1, 0, 0, 0, 1, 0xAA, 0xBB];
        let write = [16, 0, 8, 0, 2, 4, 1, 2, 3, 4];
        for (pdu, reply) in [
            (&file[..], &file[..]),
            (&write[..], &write[..5]),
            (&[3, 0, 32, 0, 2][..], &[3, 4, 0x31, 0x2E, 0x30, 0][..]),
            (&file[..], &[0x95, 2][..]),
        ] {
            let request = Request::read_pdu(pdu).unwrap();
            let mut encoded = Vec::new();
            request.encode(&mut encoded);
            assert_eq!((encoded.as_slice(), request.length()), (pdu, pdu.len()));
            assert_eq!(request.write_pdu(request.parse(reply).unwrap()), reply);
        }
        let other = [21, 9, 6, 0, 1, 0, 0, 0, 1, 0xAA, 0xBC];
        assert_eq!(Request::read_pdu(&file).unwrap().parse(&other), Err(PduError::Confirmation));
        assert_eq!(Request::read_pdu(&file).unwrap().parse(&file[..10]), Err(PduError::Confirmation));
        for bad in [
            &[][..],
            &[3, 0, 1, 0, 0],
            &[3, 0, 1, 0, 126],
            &[3, 0, 1, 0],
            &[6, 0, 1, 0, 1],
            &[16, 0, 8, 0, 2, 4, 1, 2, 3],
            &[16, 0, 8, 0, 3, 4, 1, 2, 3, 4],
            &[21, 8, 6, 0, 1, 0, 0, 0, 1, 0xAA, 0xBB],
            &[21, 7, 6, 0, 1, 0, 0, 0, 0],
        ] {
            assert_eq!(Request::read_pdu(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn exceptions_are_replies_and_must_be_of_the_same_function() {
        assert_eq!(READ.parse(&[0x83, 2]), Ok(Reply::Exception(Exception::ILLEGAL_ADDRESS)));
        assert_eq!(READ.parse(&[0x84, 2]), Err(PduError::Function { expected: 3, found: 0x84 }));
        assert!(READ.parse(&[0x83]).is_err() && READ.parse(&[0x83, 2, 0]).is_err());
    }

    #[test]
    fn a_confirmation_must_repeat_the_write() {
        let write = Request::WriteRegister { address: 1, word: 0x0203 };
        assert_eq!(write.parse(&[6, 0, 1, 2, 3]), Ok(Reply::Done));
        assert_eq!(write.parse(&[6, 0, 1, 2, 4]), Err(PduError::Confirmation));
        assert!(write.parse(&[6, 0, 1, 2]).is_err());
        let echo = Request::Echo { nonce: 7 };
        assert_eq!(echo.parse(&[8, 0, 0, 0, 7]), Ok(Reply::Done));
        assert_eq!(echo.parse(&[8, 0, 0, 0, 8]), Err(PduError::Confirmation));
    }

    proptest! {
        #[test]
        fn no_octets_panic_and_data_always_has_the_length_asked_for(
            pdu in prop::collection::vec(any::<u8>(), 0..260), count in 1u16..=125, bits in 1u16..=2000,
        ) {
            let asked = [
                Request::Read { table: Table::Input, address: 0, count },
                Request::Read { table: Table::Coil, address: 0, count: bits },
                Request::DeviceId { code: 1, object: 0 },
                Request::ServerId,
                Request::Echo { nonce: 1 },
                Request::WriteRegisters { address: 0, data: &[0, 1] },
            ];
            for request in asked {
                for function in [pdu.first().copied().unwrap_or(0), request.function(), request.function() | 0x80] {
                    let mut pdu = pdu.clone();
                    if let Some(first) = pdu.first_mut() {
                        *first = function;
                    }
                    if let (Ok(Reply::Data(data)), Request::Read { table, count, .. }) = (request.parse(&pdu), request) {
                        prop_assert_eq!(data.len(), data_octets(table, count));
                    }
                }
            }
        }
    }
}
