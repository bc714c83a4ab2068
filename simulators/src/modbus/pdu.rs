//! Answers a request PDU (V1.1b3, 6), against whatever holds the registers.

use super::{Exception, Table};

/// What a request reads and writes.
pub trait Registers {
    /// `count` values; bits are 0 or 1.
    fn read(&mut self, table: Table, address: u16, count: u16) -> Result<Vec<u16>, Exception>;
    /// Writes all values or none.
    fn write(&mut self, table: Table, address: u16, values: &[u16]) -> Result<(), Exception>;
    /// Identification objects (43/14) by object id, ascending. Empty: the function is not supported.
    fn identification(&self) -> Vec<(u8, String)>;
    /// Text of function 17; `None`: not supported.
    fn server_id(&self) -> Option<String>;
}

/// The reply PDU to `request`: data, or an exception.
pub fn answer(request: &[u8], registers: &mut impl Registers) -> Vec<u8> {
    let Some((&function, data)) = request.split_first() else { return exception(0, Exception::IllegalFunction) };
    let reply = match function {
        1 => read_bits(data, Table::Coil, registers),
        2 => read_bits(data, Table::Discrete, registers),
        3 => read_words(data, Table::Holding, registers),
        4 => read_words(data, Table::Input, registers),
        5 => write_coil(data, registers),
        6 => write_register(data, registers),
        8 => diagnose(data),
        15 => write_coils(data, registers),
        16 => write_registers(data, registers),
        17 => report_server_id(data, registers),
        22 => mask_write(data, registers),
        23 => read_write(data, registers),
        43 => identify(data, registers),
        _ => Err(Exception::IllegalFunction),
    };
    match reply {
        Ok(mut body) => {
            body.insert(0, function);
            body
        }
        Err(code) => exception(function, code),
    }
}

/// An exception reply.
pub fn exception(function: u8, code: Exception) -> Vec<u8> {
    vec![function | 0x80, code as u8]
}

/// Whether a PDU is a write, which a broadcast may carry.
pub fn is_write(pdu: &[u8]) -> bool {
    matches!(pdu.first(), Some(5 | 6 | 15 | 16 | 22))
}

type Body = Result<Vec<u8>, Exception>;

fn words(data: &[u8]) -> Vec<u16> {
    data.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
}

fn two_words(data: &[u8]) -> Result<(u16, u16), Exception> {
    match words(data).as_slice() {
        [first, second] if data.len() == 4 => Ok((*first, *second)),
        _ => Err(Exception::IllegalValue),
    }
}

fn counted(count: u16, most: u16) -> Result<u16, Exception> {
    if (1..=most).contains(&count) { Ok(count) } else { Err(Exception::IllegalValue) }
}

fn read_bits(data: &[u8], table: Table, registers: &mut impl Registers) -> Body {
    let (address, count) = two_words(data)?;
    let bits = registers.read(table, address, counted(count, 2_000)?)?;
    let mut body = vec![bits.len().div_ceil(8) as u8];
    body.extend(
        bits.chunks(8)
            .map(|byte| byte.iter().enumerate().fold(0, |packed, (bit, value)| packed | u8::from(*value != 0) << bit)),
    );
    Ok(body)
}

fn read_words(data: &[u8], table: Table, registers: &mut impl Registers) -> Body {
    let (address, count) = two_words(data)?;
    Ok(word_body(&registers.read(table, address, counted(count, 125)?)?))
}

fn word_body(values: &[u16]) -> Vec<u8> {
    let mut body = vec![(values.len() * 2) as u8];
    body.extend(values.iter().flat_map(|value| value.to_be_bytes()));
    body
}

fn write_coil(data: &[u8], registers: &mut impl Registers) -> Body {
    let (address, value) = two_words(data)?;
    let bit = match value {
        0xff00 => 1,
        0 => 0,
        _ => return Err(Exception::IllegalValue),
    };
    registers.write(Table::Coil, address, &[bit])?;
    Ok(data.to_vec())
}

fn write_register(data: &[u8], registers: &mut impl Registers) -> Body {
    let (address, value) = two_words(data)?;
    registers.write(Table::Holding, address, &[value])?;
    Ok(data.to_vec())
}

/// Only "return query data" (V1.1b3, 6.8.1, sub-function 0), the echo that masters use to find out who listens.
fn diagnose(data: &[u8]) -> Body {
    match data {
        [0, 0, _, _] => Ok(data.to_vec()),
        _ => Err(Exception::IllegalFunction),
    }
}

/// Address, count and the bytes that follow their own length.
fn counted_block(data: &[u8], most: u16, bytes: impl Fn(u16) -> usize) -> Result<(u16, u16, &[u8]), Exception> {
    let (head, rest) = data.split_at_checked(5).ok_or(Exception::IllegalValue)?;
    let (address, count) = two_words(&head[..4])?;
    let expected = bytes(counted(count, most)?);
    if usize::from(head[4]) != expected || rest.len() != expected {
        return Err(Exception::IllegalValue);
    }
    Ok((address, count, rest))
}

fn write_coils(data: &[u8], registers: &mut impl Registers) -> Body {
    let (address, count, packed) = counted_block(data, 1_968, |count| usize::from(count).div_ceil(8))?;
    let bits: Vec<u16> = (0..usize::from(count)).map(|bit| u16::from(packed[bit / 8] >> (bit % 8) & 1)).collect();
    registers.write(Table::Coil, address, &bits)?;
    Ok(data[..4].to_vec())
}

fn write_registers(data: &[u8], registers: &mut impl Registers) -> Body {
    let (address, _, block) = counted_block(data, 123, |count| usize::from(count) * 2)?;
    registers.write(Table::Holding, address, &words(block))?;
    Ok(data[..4].to_vec())
}

fn mask_write(data: &[u8], registers: &mut impl Registers) -> Body {
    let [address, and, or] = *words(data) else { return Err(Exception::IllegalValue) };
    let present = registers.read(Table::Holding, address, 1)?[0];
    registers.write(Table::Holding, address, &[present & and | or & !and])?;
    Ok(data.to_vec())
}

/// The write happens before the read (V1.1b3, 6.17).
fn read_write(data: &[u8], registers: &mut impl Registers) -> Body {
    let (head, rest) = data.split_at_checked(4).ok_or(Exception::IllegalValue)?;
    let (read_address, read_count) = two_words(head)?;
    let read_count = counted(read_count, 125)?;
    let (write_address, _, block) = counted_block(rest, 121, |count| usize::from(count) * 2)?;
    registers.read(Table::Holding, read_address, read_count)?;
    registers.write(Table::Holding, write_address, &words(block))?;
    Ok(word_body(&registers.read(Table::Holding, read_address, read_count)?))
}

/// The specification leaves the layout to the device; most send one byte of id, the run indicator, then text.
fn report_server_id(data: &[u8], registers: &mut impl Registers) -> Body {
    let text = registers.server_id().filter(|_| data.is_empty()).ok_or(Exception::IllegalFunction)?;
    let text: Vec<u8> = text.into_bytes().into_iter().take(240).collect();
    let mut body = vec![text.len() as u8 + 2, 1, 0xff];
    body.extend(text);
    Ok(body)
}

/// Read device identification (V1.1b3, 6.21): streams of basic, regular and extended objects, and single objects.
fn identify(data: &[u8], registers: &mut impl Registers) -> Body {
    let objects = registers.identification();
    let &[14, code, first] = data else { return Err(Exception::IllegalFunction) };
    if objects.is_empty() {
        return Err(Exception::IllegalFunction);
    }
    let wanted: Vec<&(u8, String)> = match code {
        1 => objects.iter().filter(|(id, _)| (first..=0x02).contains(id)).collect(),
        2 => objects.iter().filter(|(id, _)| (first..=0x7f).contains(id)).collect(),
        3 => objects.iter().filter(|(id, _)| *id >= first).collect(),
        4 => {
            let one: Vec<_> = objects.iter().filter(|(id, _)| *id == first).collect();
            if one.is_empty() {
                return Err(Exception::IllegalAddress);
            }
            one
        }
        _ => return Err(Exception::IllegalValue),
    };
    let highest = objects.last().map_or(0, |(id, _)| *id);
    let conformity = 0x80
        | if highest > 0x7f {
            3
        } else if highest > 2 {
            2
        } else {
            1
        };
    Ok(object_stream(code, conformity, &wanted))
}

/// As many objects as fit into one PDU; a next object id tells the client to ask on.
fn object_stream(code: u8, conformity: u8, wanted: &[&(u8, String)]) -> Vec<u8> {
    let mut list = Vec::new();
    let (mut sent, mut next) = (0_u8, None);
    for (id, text) in wanted {
        let text: Vec<u8> = text.bytes().take(240).collect();
        if list.len() + text.len() + 2 > super::frame::MAX_PDU - 7 {
            next = Some(*id);
            break;
        }
        list.push(*id);
        list.push(text.len() as u8);
        list.extend(text);
        sent += 1;
    }
    let mut body = vec![14, code, conformity, if next.is_some() { 0xff } else { 0 }, next.unwrap_or(0), sent];
    body.extend(list);
    body
}

#[cfg(test)]
mod tests;
