//! Device management: the life of a device as states in tables, changed by requests and by what is seen of it.
//!
//! Promise:
//! - Every change of a device, a configuration, a clock or a transfer is a row of a [`table`]; the diagrams in
//!   `docs/device-management.md` are made from the same rows.
//! - A change is durable ([`journal`]) before it is acknowledged, shown on its topic or acted upon; its audit entry is part
//!   of the same atomic batch. After a crash at any point each machine is in one of two neighbouring states, and what that
//!   state asks for is done again: boot, retry and change are one code path.
//! - A request has one final answer per requester and correlation id. Sent twice it is answered twice and done once.
//! - Who may ask what is one table ([`roles`]). Refusals are audited, bounded per requester and minute.
//! - Memory is bounded: devices, queued requests, remembered answers, history and tokens all have limits.
//!
//! Form: the cores are Sans-IO. They take what happened and the time, and return a [`step::Step`]: records to make durable
//! and, once they are, effects. [`service`] is the thin shell with the queue, the commit and the effects.
//!
//! It must not know drivers, brokers or the store: `app` gives it a [`journal::Journal`], a [`service::World`] and a
//! [`service::Outlet`].

pub mod clock;
pub mod core;
pub mod desired;
pub mod journal;
pub mod lifecycle;
pub mod permit;
pub mod request;
pub mod roles;
pub mod service;
pub mod step;
pub mod table;
pub mod transfer;
