//! Replies without a device, for the fuzzer and for `tests/fuzz_smoke.rs`.

use crate::model::DataType;

use super::frame::{self, Framing};
use super::identify::{self, Walk};
use super::pdu::{Reply, Request};
use super::{PointAddress, Table, WordOrder, values};

/// Takes `data` for what a device sends on Modbus TCP.
pub fn fuzz_tcp(data: &[u8]) {
    stream(Framing::Tcp, data);
}

/// Takes `data` for what a device sends on an RTU line.
pub fn fuzz_rtu(data: &[u8]) {
    stream(Framing::Rtu, data);
    // The checksum keeps nearly everything out: behind a right one the rest is looked at, too.
    let sum = frame::crc(data);
    stream(Framing::Rtu, &[data, &sum.to_le_bytes()].concat());
}

/// Reads frame after frame, as far as there are any, and each for every request.
fn stream(framing: Framing, mut data: &[u8]) {
    while let Ok(Some(found)) = frame::decode(framing, data) {
        assert!(found.start <= found.end && found.end <= found.used && found.used <= data.len(), "{found:?}");
        assert!(found.used > 0, "a frame without octets would be read for ever");
        fuzz_pdu(&data[found.start..found.end]);
        data = &data[found.used..];
    }
}

/// Takes `data` for the PDU of a reply to each request that the driver sends.
pub fn fuzz_pdu(data: &[u8]) {
    let count = u16::from(data.get(1).copied().unwrap_or(2)).div_ceil(2).clamp(1, 125);
    for table in [Table::Coil, Table::Discrete, Table::Input, Table::Holding] {
        let request = Request::Read { table, address: 0, count };
        if let Ok(Reply::Data(octets)) = request.parse(data) {
            decode(table, count, octets);
        }
    }
    let mut walk = Walk::default();
    if let Ok(Reply::Data(octets)) = walk.first().parse(data) {
        let _ = walk.reply(octets);
        let _ = walk.finish(Some(0x80));
    }
    if let Ok(Reply::Data(octets)) = Request::ServerId.parse(data) {
        let _ = identify::server_id(octets);
    }
    let written = [0x12, 0x34];
    for request in [
        Request::WriteCoil { address: 1, on: true },
        Request::WriteRegister { address: 1, word: 7 },
        Request::Echo { nonce: 7 },
        Request::WriteCoils { address: 1, on: true },
        Request::WriteRegisters { address: 1, data: &written },
        Request::MaskRegister { address: 1, and: 1, or: 2 },
        Request::WriteAndRead { address: 1, data: &written },
        Request::WriteFile { records: &[6, 0, 1, 0, 0, 0, 1, 0x12, 0x34] },
    ] {
        let _ = request.parse(data);
    }
}

/// Decodes the registers as every type that fits.
fn decode(table: Table, count: u16, octets: &[u8]) {
    if table.is_bits() {
        for offset in 0..count {
            let _ = values::bit(octets, offset);
        }
        return;
    }
    let types = [
        DataType::Bool,
        DataType::I8,
        DataType::U16,
        DataType::I32,
        DataType::F32,
        DataType::U64,
        DataType::F64,
        DataType::Bcd,
        DataType::Text,
        DataType::Bytes,
    ];
    for data_type in types {
        for order in WordOrder::ALL {
            let mut point = PointAddress { order, ..PointAddress::new(table, 0, data_type) };
            if matches!(data_type, DataType::Text | DataType::Bytes) {
                point.length = count * 2;
            }
            point.bit = (data_type == DataType::Bool).then_some((3, 3));
            if let Some(registers) = octets.get(..usize::from(point.width()) * 2) {
                let _ = values::decode(&point, registers);
            }
        }
    }
}
