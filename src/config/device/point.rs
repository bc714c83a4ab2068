//! Reads one point of a device, whether it stands in TOML or in a list.

use std::time::Duration;

use super::modbus::{Addressing, ORDERS, Settings};
use super::{Common, access, address, deadband, heartbeat, management, rate};
use crate::config::reader::Reader;
use crate::config::tree::{Item, Node};
use crate::config::value::{boolean, cell_number, choice, id, line, millis, number, text, unsigned};
use crate::management::desired::Interlock;
use crate::model::{Access, DataType, Limits, Point};
use crate::pipeline::{Deadband, PointRule};
use crate::southbound::modbus::{PointAddress, Table, TextOptions, WordOrder};

pub(super) const TYPES: &[(&str, DataType)] = &[
    ("bool", DataType::Bool),
    ("i8", DataType::I8),
    ("i16", DataType::I16),
    ("i32", DataType::I32),
    ("i64", DataType::I64),
    ("u8", DataType::U8),
    ("u16", DataType::U16),
    ("u32", DataType::U32),
    ("u64", DataType::U64),
    ("f32", DataType::F32),
    ("f64", DataType::F64),
    ("bcd", DataType::Bcd),
    ("string", DataType::Text),
    ("bytes", DataType::Bytes),
];
const TABLES: &[(&str, Table)] =
    &[("coil", Table::Coil), ("discrete", Table::Discrete), ("input", Table::Input), ("holding", Table::Holding)];

/// A point that passed every check.
pub(super) struct CheckedPoint {
    pub model: Point,
    pub rule: PointRule,
    pub driver: PointAddress,
    pub when: When,
    /// Writes need two steps.
    pub critical: bool,
    /// Writes only while another point has a value.
    pub interlock: Option<Interlock>,
}

/// Bits of a register, 0 the least significant, both ends included.
#[derive(Clone, Copy)]
struct BitRange {
    low: u8,
    high: u8,
}

/// When a point is read.
pub(super) enum When {
    Never,
    Every(Duration),
    Group(String),
}

/// Reads every key first, so that none is taken for unknown, and then checks them against each other.
pub(super) fn read(r: &Reader<'_>, common: &Common, modbus: &Settings) -> Option<CheckedPoint> {
    let id = r.required("id", "id = \"level\"", id);
    let description = r.optional("description", line(1000)).unwrap_or_default();
    let unit = r.optional("unit", line(40)).unwrap_or_default();
    let access = r.or("access", Access::Read, access);
    let place = place(r, modbus.shared.addressing);
    let bits = bits(r);
    let data_type = r.optional("type", choice(TYPES)).or_else(|| default_type(r, place.map(|(table, _)| table)));
    let order = r.or("order", default_order(data_type, modbus.shared.order), choice(ORDERS));
    let length = r.optional("length", unsigned::<u16>(1..=250));
    let rule = rule(r, common, data_type);
    let when = when(r, common, access);
    let limits = limits(r, access, data_type, bits, length, &rule);
    let critical = management::critical(r, access);
    let interlock = r.optional("interlock", management::interlock);
    check_write(r, access, place.map(|(table, _)| table));

    let ((table, address), data_type) = (place?, data_type?);
    let (count, length) = extent(r, table, data_type, length, bits)?;
    if u32::from(address) + u32::from(count) > 65_536 {
        r.error("address", format!("takes {count} addresses from {address} (counted from 0); the last one is 65535"));
    }
    if !table.is_bits() && count > modbus.max_registers() {
        r.error(
            "type",
            format!(
                "takes {count} registers, more than `max_registers` ({}) allows in one request",
                modbus.max_registers()
            ),
        );
    }
    if access != Access::Read && !table.is_bits() && count > modbus.max_write_registers() {
        r.error(
            "type",
            format!(
                "takes {count} registers, more than `max_write_registers` ({}) allows in one write",
                modbus.max_write_registers()
            ),
        );
    }
    let rule = PointRule { stale_after: rule.stale_after.or_else(|| default_stale(&when, common)), ..rule };
    Some(CheckedPoint {
        model: Point { id: id?, description, unit, data_type, access, limits },
        rule,
        driver: PointAddress {
            table,
            address,
            data_type,
            length: if data_type == DataType::Bcd { count } else { length },
            order,
            bit: bits.map(|b| (b.low, b.high)),
            text: TextOptions { swap_octets: order.swaps_octets(), ..TextOptions::default() },
        },
        when,
        critical,
        interlock,
    })
}

/// The device's order says how numbers of 32 and 64 bits lie in their registers. A single register and a text are as
/// Modbus has them, unless the point itself says otherwise.
const fn default_order(data_type: Option<DataType>, of_device: WordOrder) -> WordOrder {
    match data_type {
        Some(DataType::I32 | DataType::U32 | DataType::F32 | DataType::I64 | DataType::U64 | DataType::F64) => {
            of_device
        }
        _ => WordOrder::ABCD,
    }
}

/// A value that missed three scans, and at least 5 s, is stale.
fn default_stale(when: &When, common: &Common) -> Option<Duration> {
    let every = match when {
        When::Never => return None,
        When::Every(every) => *every,
        When::Group(name) => common.groups.get(name).map_or(common.rate, |(every, _)| *every),
    };
    Some((every * 3).max(Duration::from_secs(5)))
}

/// Table and address; a Modicon address names the table itself.
fn place(r: &Reader<'_>, addressing: Addressing) -> Option<(Table, u16)> {
    let table = r.optional("table", choice(TABLES));
    let example = if addressing == Addressing::Modicon { "address = 40001" } else { "address = 100" };
    let (own, address) = r.required("address", example, |item| address::read(item, addressing))?;
    match (own, table) {
        (Some(own), Some(table)) if own != table => {
            r.error(
                "table",
                format!(
                    "is \"{}\", but the address is one of table \"{}\"; remove `table`",
                    table.as_str(),
                    own.as_str()
                ),
            );
            None
        }
        (Some(own), _) => Some((own, address)),
        (None, Some(table)) => Some((table, address)),
        (None, None) => {
            if !r.has("table") {
                let text = "`table` is missing; write table = \"holding\", \"input\", \"coil\" or \"discrete\"";
                r.context.error(&r.table.place, r.key("table"), text);
            }
            None
        }
    }
}

/// Bits are booleans, registers are `u16`, unless `type` says otherwise.
fn default_type(r: &Reader<'_>, table: Option<Table>) -> Option<DataType> {
    if r.has("type") {
        return None;
    }
    let is_bit = table?.is_bits() || r.has("bit");
    Some(if is_bit { DataType::Bool } else { DataType::U16 })
}

/// `bit = 3`, `bits = "0-3"` or `bits = [0, 3]`.
fn bits(r: &Reader<'_>) -> Option<BitRange> {
    let bit = r.optional("bit", unsigned::<u8>(0..=63)).map(|bit| BitRange { low: bit, high: bit });
    let bits = r.optional("bits", bit_range);
    if bit.is_some() && bits.is_some() {
        r.error("bits", "stands beside `bit`; write one of them");
    }
    bit.or(bits)
}

fn bit_range(item: &Item) -> Result<BitRange, String> {
    let help = "write the lowest and the highest bit, such as \"0-3\" or [0, 3]";
    let ends: Vec<u8> = match &item.node {
        Node::List(items) => items.iter().map(unsigned::<u8>(0..=63)).collect::<Result<_, _>>()?,
        _ => {
            let text = text(item)?;
            let parse = |part: &str| part.trim().parse::<u8>().map_err(|_| format!("\"{text}\": {help}"));
            text.split(['-', '.']).filter(|p| !p.is_empty()).map(parse).collect::<Result<_, _>>()?
        }
    };
    match ends[..] {
        [low, high] if low <= high && high <= 63 => Ok(BitRange { low, high }),
        _ => Err(help.to_owned()),
    }
}

/// Addresses that a point takes, and the octets of a text; checks `type`, `length` and bits against the table.
fn extent(
    r: &Reader<'_>,
    table: Table,
    data_type: DataType,
    length: Option<u16>,
    bits: Option<BitRange>,
) -> Option<(u16, u16)> {
    use DataType::{Bcd, Bool, Bytes, F32, F64, I8, I16, I32, I64, Text, U8, U16, U32, U64};
    let sized = matches!(data_type, Text | Bytes | Bcd);
    if length.is_some() && !sized {
        r.error("length", format!("is only for string, bytes and bcd; a {} has its own length", data_type.as_str()));
        return None;
    }
    let registers = match (data_type, length) {
        (Bool | I8 | U8 | I16 | U16, _) => 1,
        (I32 | U32 | F32, _) => 2,
        (I64 | U64 | F64, _) => 4,
        (Bcd, None) => 1,
        (Bcd, Some(registers @ 1..=4)) => registers,
        (Bcd, Some(more)) => {
            r.error("length", format!("is {more} registers; bcd takes 1 to 4 (4 digits each)"));
            return None;
        }
        (Text | Bytes, Some(octets)) => octets.div_ceil(2),
        (Text | Bytes, None) => {
            if !r.has("length") {
                let text =
                    format!("`length` is missing: how many octets the {} has; write length = 16", data_type.as_str());
                r.context.error(&r.table.place, r.key("length"), text);
            }
            return None;
        }
    };
    if table.is_bits() {
        if data_type != Bool {
            r.error("type", format!("is {}; table \"{}\" holds booleans only", data_type.as_str(), table.as_str()));
            return None;
        }
        if bits.is_some() {
            r.error(
                if r.has("bit") { "bit" } else { "bits" },
                format!("table \"{}\" holds single bits; remove it", table.as_str()),
            );
            return None;
        }
        return Some((1, 0));
    }
    check_bits(r, data_type, registers, bits)?;
    Some((registers, if matches!(data_type, Text | Bytes) { length.unwrap_or(0) } else { 0 }))
}

/// Bits of a register make a boolean (one bit) or an integer.
fn check_bits(r: &Reader<'_>, data_type: DataType, registers: u16, bits: Option<BitRange>) -> Option<()> {
    use DataType::{Bool, I8, I16, I32, I64, U8, U16, U32, U64};
    let key = if r.has("bit") { "bit" } else { "bits" };
    match (data_type, bits) {
        (Bool, None) => {
            r.error(
                "type",
                "a bool in a register needs `bit`: which of the 16 bits it is (0 is the least significant)",
            );
            None
        }
        (_, None) => Some(()),
        (Bool, Some(b)) if b.low != b.high => {
            r.error(key, "a bool is one bit; write bit = 3, or an unsigned type");
            None
        }
        (Bool | I8 | U8 | I16 | U16 | I32 | U32 | I64 | U64, Some(b)) if u16::from(b.high) < 16 * registers => Some(()),
        (Bool | I8 | U8 | I16 | U16 | I32 | U32 | I64 | U64, Some(b)) => {
            r.error(
                key,
                format!(
                    "bit {} is outside the {} bits of a {} in the device",
                    b.high,
                    16 * registers,
                    data_type.as_str()
                ),
            );
            None
        }
        (other, Some(_)) => {
            r.error(key, format!("bits make a bool or an integer, not a {}", other.as_str()));
            None
        }
    }
}

const fn is_number(data_type: DataType) -> bool {
    !matches!(data_type, DataType::Bool | DataType::Text | DataType::Bytes)
}

fn rule(r: &Reader<'_>, common: &Common, data_type: Option<DataType>) -> PointRule {
    let own_deadband = r.optional("deadband", deadband);
    let numeric = data_type.is_none_or(is_number);
    let rule = PointRule {
        scale: r.or("scale", 1.0, factor),
        offset: r.or("offset", 0.0, number),
        clamp: r.optional("clamp", range),
        deadband: own_deadband.unwrap_or(if numeric { common.deadband } else { Deadband::None }),
        heartbeat: Some(r.or("heartbeat", common.heartbeat, heartbeat)),
        on_change: r.or("on_change", common.on_change, boolean),
        stale_after: r.optional("stale_after", millis(100, 7 * super::DAY)).or(common.stale_after),
    };
    for key in ["scale", "offset", "clamp", "deadband"] {
        if !numeric && r.has(key) {
            r.error(key, "is for numbers; this point is none");
        }
    }
    if own_deadband.is_some() && !rule.on_change {
        r.warn("deadband", "has no effect with on_change = false: every value is reported");
    }
    rule
}

fn factor(item: &Item) -> Result<f64, String> {
    match number(item)? {
        0.0 => Err(
            "is 0, so every value would be the offset; write the factor from device to engineering units, such as 0.1"
                .to_owned(),
        ),
        factor => Ok(factor),
    }
}

/// `[0, 100]` or `"0..100"`.
fn range(item: &Item) -> Result<(f64, f64), String> {
    let help = "write the lowest and the highest value, such as [0, 100] or \"0..100\"";
    let ends: Vec<f64> = match &item.node {
        Node::List(items) => items.iter().map(number).collect::<Result<_, _>>()?,
        Node::Text(text) | Node::Cell(text) => text.split("..").map(cell_number).collect::<Result<_, _>>()?,
        other => return Err(format!("is {}; {help}", other.what())),
    };
    match ends[..] {
        [low, high] if low.is_finite() && high.is_finite() && low <= high => Ok((low, high)),
        _ => Err(help.to_owned()),
    }
}

fn when(r: &Reader<'_>, common: &Common, access: Access) -> When {
    let own = r.optional("rate", rate);
    let group = r.optional("group", line(64));
    if access == Access::Write {
        for key in ["rate", "group"] {
            if r.has(key) {
                r.error(key, "is for points that are read; this one is written only");
            }
        }
        return When::Never;
    }
    if own.is_some() && group.is_some() {
        r.error("group", "stands beside `rate`; write one of them");
    }
    match group {
        Some(name) if !common.groups.contains_key(&name) => {
            let names: Vec<_> = common.groups.keys().map(String::as_str).collect();
            let meant = match crate::config::suggest::nearest(&name, names.iter().copied()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("write [groups.{name}] with a rate in the device's file"),
            };
            r.error("group", format!("there is no group \"{name}\"; {meant}"));
            When::Every(common.rate)
        }
        Some(name) => When::Group(name),
        None => When::Every(own.unwrap_or(common.rate)),
    }
}

/// Range of writes. An end that is not written is the end of what the type can hold.
fn limits(
    r: &Reader<'_>,
    access: Access,
    data_type: Option<DataType>,
    bits: Option<BitRange>,
    length: Option<u16>,
    rule: &PointRule,
) -> Option<Limits> {
    let (min, max) = (r.optional("min", number), r.optional("max", number));
    let key = if r.has("min") { "min" } else { "max" };
    if min.is_none() && max.is_none() {
        return None;
    }
    if access == Access::Read {
        r.error(key, "bounds writes, but the point is read only; write access = \"read-write\", or `clamp` to hold values in a range");
        return None;
    }
    let data_type = data_type?;
    if !is_number(data_type) {
        r.error(key, "is for numbers; this point is none");
        return None;
    }
    let (low, high) = holds(data_type, bits, length, rule);
    let limits = Limits { min: min.unwrap_or(low), max: max.unwrap_or(high) };
    if limits.min > limits.max {
        r.error(key, format!("`min` ({}) is above `max` ({})", limits.min, limits.max));
    }
    for (key, value) in [("min", min), ("max", max)] {
        if let Some(value) = value.filter(|v| *v < low || *v > high) {
            r.error(key, format!("is {value}; with its type, scale and offset the point holds {low} to {high}"));
        }
    }
    Some(limits)
}

/// What a point can hold, in engineering units.
fn holds(data_type: DataType, bits: Option<BitRange>, length: Option<u16>, rule: &PointRule) -> (f64, f64) {
    let unsigned = |bits: u32| (0.0, 2f64.powi(bits as i32) - 1.0);
    let signed = |bits: i32| (-(2f64.powi(bits - 1)), 2f64.powi(bits - 1) - 1.0);
    let raw = match (bits, data_type) {
        (Some(b), _) => unsigned(u32::from(b.high - b.low) + 1),
        (None, DataType::I8) => signed(8),
        (None, DataType::I16) => signed(16),
        (None, DataType::I32) => signed(32),
        (None, DataType::I64) => signed(64),
        (None, DataType::U8) => unsigned(8),
        (None, DataType::U16) => unsigned(16),
        (None, DataType::U32) => unsigned(32),
        (None, DataType::U64) => unsigned(64),
        (None, DataType::F32) => (f64::from(f32::MIN), f64::from(f32::MAX)),
        (None, DataType::Bcd) => (0.0, 10f64.powi(4 * i32::from(length.unwrap_or(1))) - 1.0),
        (None, DataType::F64 | DataType::Bool | DataType::Text | DataType::Bytes) => (f64::MIN, f64::MAX),
    };
    let scaled = |v: f64| (v * rule.scale + rule.offset).clamp(f64::MIN, f64::MAX);
    let (a, b) = (scaled(raw.0), scaled(raw.1));
    (a.min(b), a.max(b))
}

fn check_write(r: &Reader<'_>, access: Access, table: Option<Table>) {
    if let Some(table) = table.filter(|t| access != Access::Read && !t.is_writable()) {
        r.error(
            "access",
            format!(
                "table \"{}\" cannot be written; use \"coil\" or \"holding\", or access = \"read\"",
                table.as_str()
            ),
        );
    }
}
