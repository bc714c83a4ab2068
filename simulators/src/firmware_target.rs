//! Firmware target.
