//! The client of a Margo Workload Fleet Manager (WFM): makes brownfield devices behind this gateway devices of that standard.
//!
//! **Parts.** [`identity`] knows who we are and who the fleet manager must be; [`api`] makes requests and reads answers in both
//! generations of the interface; [`capabilities`] says who is there; [`desired`] decides which list of deployments is accepted;
//! [`deployment`] and [`component`] read what is to run; [`plant`] is what is needed of the gateway, and [`storage`] of its disk.
//!
//! **Form.** The cores are Sans-IO; sockets, files and time stand in thin shells round them.
//!
//! **Must not** know device management, drivers or the store: `app` implements [`plant::Plant`] and [`storage::Storage`].

pub mod api;
pub mod capabilities;
pub mod component;
pub mod deployment;
pub mod desired;
pub mod identity;
pub mod plant;
pub mod schema;
pub mod storage;
pub mod words;
