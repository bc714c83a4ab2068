//! Reads `[modbus]` of a device.

use std::path::Path;
use std::time::Duration;

use super::link;
use crate::config::problem::Place;
use crate::config::reader::Reader;
use crate::config::tree::Item;
use crate::config::value::{boolean, choice, millis, number, unsigned};
use crate::southbound::breaker;
use crate::southbound::modbus::{
    Config, Limits, Link, LinkOptions, PointAddress, WordOrder, WriteFunction, WriteOptions,
};

/// The four 32-bit orders; the 64-bit names are accepted for the same.
pub(super) const ORDERS: &[(&str, WordOrder)] = &[
    ("abcd", WordOrder::ABCD),
    ("cdab", WordOrder::CDAB),
    ("badc", WordOrder::BADC),
    ("dcba", WordOrder::DCBA),
    ("abcdefgh", WordOrder::ABCD),
    ("ghefcdab", WordOrder::CDAB),
    ("badcfehg", WordOrder::BADC),
    ("hgfedcba", WordOrder::DCBA),
];
/// How addresses are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Addressing {
    /// The first register is 0, as on the wire.
    ZeroBased,
    /// The first register is 1, as in many manuals.
    OneBased,
    /// 40001 or 400001 is the first holding register: the number names the table.
    Modicon,
}

const ADDRESSINGS: &[(&str, Addressing)] =
    &[("zero-based", Addressing::ZeroBased), ("one-based", Addressing::OneBased), ("modicon", Addressing::Modicon)];
const FUNCTIONS: &[(&str, WriteFunction)] =
    &[("auto", WriteFunction::Auto), ("single", WriteFunction::Single), ("multiple", WriteFunction::Multiple)];

/// What may stand in `[modbus]` of `[defaults]`, too.
pub(super) struct Shared {
    pub addressing: Addressing,
    pub order: WordOrder,
    limits: Limits,
    reply_timeout: Option<Duration>,
    retries: u8,
    retry_refused: Duration,
    write: WriteOptions,
    identify: bool,
    serial_object: Option<u8>,
    breaker: breaker::Settings,
    options: LinkOptions,
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
        self.shared.limits.max_registers
    }

    pub fn max_write_registers(&self) -> u16 {
        self.shared.limits.max_write_registers
    }

    pub fn with_points(self, points: Vec<PointAddress>) -> Option<Config> {
        let Settings { link, unit, shared, .. } = self;
        let Shared {
            limits,
            reply_timeout,
            retries,
            retry_refused,
            write,
            identify,
            serial_object,
            breaker,
            options,
            ..
        } = shared;
        Some(Config {
            link: link?,
            options,
            unit,
            points,
            limits,
            reply_timeout,
            retries,
            retry_refused,
            breaker,
            write,
            identify,
            serial_object,
        })
    }
}

/// Reads `[modbus]` of a device in `file`.
pub(super) fn read(device: &Reader<'_>, file: &Path) -> Settings {
    let section = device.section("modbus", "device.modbus");
    let link = link::link(&section);
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
    if unit == 0 && matches!(link, Some(Link::Serial(_))) {
        section.error("unit", "is 0, the broadcast address of a serial line, which never answers; use 1 to 247");
    }
    Settings { link, link_place: section.place("link").clone(), unit, shared }
}

/// Reads the keys that several devices may share.
pub(super) fn settings(section: &Reader<'_>) -> Shared {
    Shared {
        addressing: section.or("addressing", Addressing::ZeroBased, choice(ADDRESSINGS)),
        order: section.or("order", WordOrder::ABCD, choice(ORDERS)),
        limits: Limits {
            max_registers: section.or("max_registers", 125, unsigned(1..=125)),
            max_bits: section.or("max_bits", 2_000, unsigned(1..=2_000)),
            max_write_registers: section.or("max_write_registers", 123, unsigned(1..=123)),
            max_gap: section.optional("max_gap", unsigned(0..=124)),
        },
        reply_timeout: section.optional("timeout", millis(10, 60_000)),
        retries: section.or("retries", 1, unsigned(0..=10)),
        retry_refused: section.or("retry_refused", Duration::from_secs(600), millis(1_000, 86_400_000)),
        identify: section.or("identify", true, boolean),
        serial_object: section.optional("serial_object", unsigned(128..=255)),
        write: write(&section.section("write", "device.modbus.write")),
        breaker: breaker(&section.section("breaker", "device.modbus.breaker")),
        options: link_options(section),
    }
}

fn link_options(section: &Reader<'_>) -> LinkOptions {
    let first = section.or("reconnect_min", Duration::from_millis(500), millis(100, 600_000));
    let longest = section.or("reconnect_max", Duration::from_secs(30).max(first), millis(100, 3_600_000));
    if longest < first {
        section.error("reconnect_max", "is shorter than `reconnect_min`");
    }
    LinkOptions {
        connect_timeout: section.or("connect_timeout", Duration::from_secs(3), millis(100, 60_000)),
        reconnect: (first, longest),
        pause_after_connect: section.or("pause_after_connect", Duration::ZERO, millis(0, 60_000)),
        pause_between_requests: section.or("pause_between_requests", Duration::ZERO, millis(0, 10_000)),
        close_after_cycle: section.or("close_after_cycle", false, boolean),
        late_reply_guard: section.optional("late_reply_guard", millis(0, 60_000)),
        resync_echo: section.or("resync_echo", true, boolean),
        turnaround: section.or("turnaround", Duration::from_millis(300), millis(0, 60_000)),
        check_unit: section.or("check_unit", true, boolean),
    }
}

fn write(section: &Reader<'_>) -> WriteOptions {
    WriteOptions {
        function: section.or("function", WriteFunction::Auto, choice(FUNCTIONS)),
        verify: section.or("verify", true, boolean),
        verify_delay: section.or("verify_delay", Duration::ZERO, millis(0, 60_000)),
        tolerance: section.or("tolerance", 0.0, at_least_zero),
        read_write: section.or("read_write", false, boolean),
        mask_write: section.or("mask_write", true, boolean),
    }
}

fn at_least_zero(item: &Item) -> Result<f64, String> {
    match number(item)? {
        value if value >= 0.0 => Ok(value),
        value => Err(format!("is {value}; it must be at least 0")),
    }
}

fn breaker(section: &Reader<'_>) -> breaker::Settings {
    let pause = section.or("pause", Duration::from_secs(5), millis(100, 3_600_000));
    let max_pause = section.or("max_pause", Duration::from_secs(300).max(pause), millis(100, 86_400_000));
    if max_pause < pause {
        section.error("max_pause", "is shorter than `pause`");
    }
    breaker::Settings {
        failures: section.or("failures", 3, unsigned(1..=100)),
        backoff_min: pause,
        backoff_max: max_pause,
        ..breaker::Settings::default()
    }
}
