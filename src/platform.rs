//! The machine underneath: clocks, systemd, limits.
//!
//! Promise: the only module that reads a clock or talks to the init system, so that everything else can be driven by a
//! test. It imports nothing of ours but the words of [`crate::model`].

pub mod beat;
pub mod clock;
pub mod durable;
pub mod notify;
pub mod process;
