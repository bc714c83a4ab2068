//! The client of a Margo Workload Fleet Manager (WFM): makes brownfield devices behind this gateway devices of that standard.
//!
//! **Promise.** What the fleet manager wants is accepted whole or not at all, and never older than before. What it wants of a
//! device is done at most once per order, over kills at any point; what became of it is told, each step, in order. Only the
//! fleet manager of our own identity is spoken to. What a device delegates to Margo is configuration and never guessed.
//!
//! **Parts.** [`identity`] knows who we are and who the fleet manager must be; [`api`] makes requests and reads answers in both
//! generations of the interface; [`capabilities`] and [`survey`] say who is there; [`desired`] decides which list of
//! deployments is accepted; [`deployment`] and [`component`] read what is to run; [`reconcile`] brings it to devices and back;
//! [`outbox`] keeps what is to be told; [`polling`] knows when to be quiet; [`client`] is the task that runs all of it over
//! [`http`]. [`plant`] is what is needed of the gateway, and [`storage`] of its disk.
//!
//! **Form.** The cores are Sans-IO; sockets, files and time stand in thin shells round them.
//!
//! **Limits.** 10,000 deployments, one request to the fleet manager at a time, eight jobs on devices at a time. `helm` is
//! refused in words, and so is `compose` where no host has a container engine ([`host`]).
//!
//! **Must not** know device management, drivers or the store: `app` implements [`plant::Plant`] and [`storage::Storage`].

pub mod api;
pub mod capabilities;
pub mod client;
pub mod component;
pub mod config;
pub mod deployment;
pub mod desired;
pub mod host;
pub mod http;
pub mod identity;
pub mod outbox;
pub mod plant;
pub mod polling;
pub mod reconcile;
pub mod schema;
pub mod storage;
pub mod survey;
pub mod words;
pub mod yaml;
