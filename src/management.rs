//! Requests of people and programs to devices, and what is told about devices themselves.
//!
//! **Promise.** Every command that can be read gets exactly one final answer per arrival, is done at most once per
//! (device, correlation id), and is stored before it is acknowledged. A command that a crash interrupted is answered
//! `FAILED`, "outcome unknown", and never repeated. Writes are denied unless the point allows them. Everything that was
//! tried stands in the audit log.
//!
//! **Form.** [`command`] and [`onboarding`] are cores without I/O: they take a request and a time and say what is to be
//! stored, done and answered. [`command::CommandService`] is the thin task round the first. [`firmware`] updates devices and
//! the gateway itself. What they need of the outside are traits owned here: [`command::DeviceWriter`],
//! [`command::CommandLedger`], [`command::AnswerSink`].
//!
//! **Limits.** 100 commands waiting and 10 per second for each device by default; 32 writes per command; results of the
//! last 24 h and the last 1,000 of each device are remembered, 4 MiB of them in all; 60 refusals per minute are audited
//! one by one, the rest are counted.
//!
//! **Must not** know drivers, brokers or the store.

pub mod audit;
pub mod command;
pub mod firmware;
pub mod onboarding;
