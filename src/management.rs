//! Requests of people and programs to devices, the life of devices as states in tables, and what is told about them.
//!
//! **Promise.**
//! - Every command that can be read gets exactly one final answer per arrival, is done at most once per (device, correlation
//!   id), and is stored before it is acknowledged. A command that a crash interrupted is answered `FAILED`, "outcome
//!   unknown", and never repeated. Writes are denied unless the point allows them.
//! - Every change of a device, a configuration, a clock or a transfer is a row of a [`table`]; the diagrams in
//!   `docs/device-management.md` are made from the same rows.
//! - A change is durable ([`journal`]) before it is acknowledged, shown on its topic or acted upon; its audit entry is part
//!   of the same atomic batch. After a crash at any point each machine is in one of two neighbouring states, and what that
//!   state asks for is done again: boot, retry and change are one code path.
//! - Who may ask what is one table ([`roles`]). Everything that was tried stands in the audit log.
//!
//! **Form.** The cores are Sans-IO. [`command`] takes a request and a time and says what is to be stored,
//! done and answered; [`core`] does so for everything else but [`firmware`], as a [`step::Step`]: records to make durable and, once they are,
//! effects. [`command::CommandService`] and [`service`] are the thin tasks round them. What they need of the outside are
//! traits owned here: [`command::DeviceWriter`], [`command::CommandLedger`], [`command::AnswerSink`],
//! [`journal::Journal`], [`service::World`], [`service::Outlet`].
//!
//! **Limits.** 100 commands waiting and 10 per second for each device by default; 32 writes per command; results of the
//! last 24 h and the last 1,000 of each device are remembered, 4 MiB of them in all; 10,000 devices; 4,096 answers to
//! requests; 20 versions of each configuration. Refusals are audited, bounded per minute.
//!
//! **Must not** know drivers, brokers or the store.

pub mod audit;
pub mod capabilities;
pub mod clock;
pub mod command;
pub mod core;
pub mod desired;
pub mod firmware;
pub mod journal;
pub mod lifecycle;
pub mod permit;
pub mod request;
pub mod roles;
pub mod service;
pub mod socket;
pub mod step;
pub mod table;
pub mod transfer;
