//! Certificates, trust, secrets: everything that decides who is who.

pub mod pki;
