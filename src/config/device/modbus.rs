//! Reads `[modbus]` of a device.

use std::path::Path;
use std::time::Duration;

use super::link;
use crate::config::checked::{Addressing, Breaker, Link, Modbus, ModbusPoint, Order};
use crate::config::problem::Place;
use crate::config::reader::Reader;
use crate::config::value::{boolean, choice, millis, unsigned};

/// The four 32-bit orders; the 64-bit names are accepted for the same.
pub(super) const ORDERS: &[(&str, Order)] = &[
    ("abcd", Order::Abcd),
    ("cdab", Order::Cdab),
    ("badc", Order::Badc),
    ("dcba", Order::Dcba),
    ("abcdefgh", Order::Abcd),
    ("ghefcdab", Order::Cdab),
    ("badcfehg", Order::Badc),
    ("hgfedcba", Order::Dcba),
];
const ADDRESSINGS: &[(&str, Addressing)] =
    &[("zero-based", Addressing::ZeroBased), ("one-based", Addressing::OneBased), ("modicon", Addressing::Modicon)];

/// What may stand in `[modbus]` of `[defaults]`, too.
pub(super) struct Shared {
    pub addressing: Addressing,
    pub order: Order,
    max_registers: u16,
    max_bits: u16,
    max_gap: Option<u16>,
    timeout: Duration,
    retries: u8,
    single_writes: bool,
    identify: bool,
    breaker: Breaker,
    connect_timeout: Duration,
    pause_after_connect: Duration,
    pause_between_requests: Duration,
    late_reply_guard: Option<Duration>,
}

/// Everything but the points.
pub(super) struct Settings {
    /// `None` when it is missing or wrong, which was reported.
    pub link: Option<Link>,
    pub link_place: Place,
    pub unit: u8,
    pub shared: Shared,
}

impl Settings {
    pub fn max_registers(&self) -> u16 {
        self.shared.max_registers
    }

    pub fn with_points(self, points: Vec<ModbusPoint>) -> Option<Modbus> {
        let Settings { link, unit, shared, .. } = self;
        Some(Modbus {
            link: link?,
            unit,
            max_registers: shared.max_registers,
            max_bits: shared.max_bits,
            max_gap: shared.max_gap,
            timeout: shared.timeout,
            retries: shared.retries,
            single_writes: shared.single_writes,
            identify: shared.identify,
            breaker: shared.breaker,
            points,
        })
    }
}

/// Reads `[modbus]` of a device in `file`.
pub(super) fn read(device: &Reader<'_>, file: &Path) -> Settings {
    let section = device.section("modbus", "device.modbus");
    let transport = link::transport(&section);
    let unit = section.or("unit", 1, unsigned(0..=255));
    let shared = settings(&section);
    if !section.has("link") {
        let own = &section.table.place;
        let place = if *own.file == *file { own.clone() } else { Place::file(file) };
        section.context.error(
            &place,
            "modbus.link",
            "`link` is missing: the device cannot be reached; write [modbus] and link = \"tcp://192.0.2.7:502\"",
        );
    }
    let link = transport.map(|transport| Link {
        transport,
        connect_timeout: shared.connect_timeout,
        pause_after_connect: shared.pause_after_connect,
        pause_between_requests: shared.pause_between_requests,
        late_reply_guard: shared.late_reply_guard,
    });
    Settings { link, link_place: section.place("link").clone(), unit, shared }
}

/// Reads the keys that several devices may share.
pub(super) fn settings(section: &Reader<'_>) -> Shared {
    Shared {
        addressing: section.or("addressing", Addressing::ZeroBased, choice(ADDRESSINGS)),
        order: section.or("order", Order::Abcd, choice(ORDERS)),
        max_registers: section.or("max_registers", 125, unsigned(1..=125)),
        max_bits: section.or("max_bits", 2_000, unsigned(1..=2_000)),
        max_gap: section.optional("max_gap", unsigned(0..=124)),
        timeout: section.or("timeout", Duration::from_secs(1), millis(10, 60_000)),
        retries: section.or("retries", 1, unsigned(0..=10)),
        single_writes: section.or("single_writes", true, boolean),
        identify: section.or("identify", true, boolean),
        breaker: breaker(&section.section("breaker", "device.modbus.breaker")),
        connect_timeout: section.or("connect_timeout", Duration::from_secs(3), millis(100, 60_000)),
        pause_after_connect: section.or("pause_after_connect", Duration::ZERO, millis(0, 60_000)),
        pause_between_requests: section.or("pause_between_requests", Duration::ZERO, millis(0, 10_000)),
        late_reply_guard: section.optional("late_reply_guard", millis(0, 60_000)),
    }
}

fn breaker(section: &Reader<'_>) -> Breaker {
    let pause = section.or("pause", Duration::from_secs(10), millis(100, 3_600_000));
    let max_pause = section.or("max_pause", Duration::from_secs(300).max(pause), millis(100, 86_400_000));
    if max_pause < pause {
        section.error("max_pause", "is shorter than `pause`");
    }
    Breaker { failures: section.or("failures", 3, unsigned(1..=100)), pause, max_pause }
}
