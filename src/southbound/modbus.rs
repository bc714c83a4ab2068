//! Modbus TCP, RTU and RTU-over-TCP.
//!
//! **Promise.** A value that leaves this module was in the reply to the request that asked for it: transaction id, unit,
//! function, length and checksum are verified, and after any doubt the connection is made anew ([`client`], [`resync`]).
//! A write is sent at most once. Nothing a device sends can stop the process.
//!
//! **Limits.** Function codes 1 to 6, 15, 16, 17, 22, 23, 43/14, and 8 for resynchronisation. One request at a time on a
//! link: many servers answer only the first of two. No ASCII mode, no Modbus Security (TLS), no listening for devices that
//! dial in.
//!
//! **Layout.** [`pdu`] and [`frame`] are the wire format, [`values`] registers to values and back, [`plan`] which requests to
//! send, [`resync`] which unit may be trusted, [`identify`] what a device says of itself: all without I/O. [`transport`],
//! [`client`], [`write`] and [`driver`] put them on a socket or a serial port. The wire format is our own; why is told in
//! `docs/decisions/0002-modbus-link.md`.

mod client;
mod config;
pub mod driver;
pub mod explain;
mod frame;
mod fuzz;
mod identify;
mod pdu;
mod plan;
mod resync;
#[cfg(test)]
mod second_opinion;
mod timing;
mod transport;
mod values;
mod write;

pub use config::{
    Charset, Config, DataBits, Limits, Link, LinkOptions, Parity, PointAddress, SerialLine, StopBits, Table,
    TextOptions, WordOrder, WriteFunction, WriteOptions,
};
#[doc(hidden)]
pub use fuzz::{fuzz_pdu, fuzz_rtu, fuzz_tcp};
