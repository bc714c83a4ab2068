//! What the year of a device needs around it: the hardware, its firmware, and the books that must agree at the end.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod books;
pub mod firmware;
mod front;
mod hardware;

pub use books::Books;
pub use hardware::{FIRST_FIRMWARE, Hardware, Make};
