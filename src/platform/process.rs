//! Facts about this process and machine.

/// Resident memory of this process in bytes; 0 where the system does not tell.
pub fn resident_bytes() -> u64 {
    let Ok(statm) = std::fs::read_to_string("/proc/self/statm") else { return 0 };
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// The machine's name, reduced to the characters of an id; `gateway` when nothing is left.
pub fn host_id() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    let short = name.split('.').next().unwrap_or_default();
    let legal: String = short.chars().filter(|&c| crate::model::is_unreserved(c)).take(64).collect();
    if legal.is_empty() { "gateway".to_owned() } else { legal }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_this_machine_has_a_legal_name() {
        assert!(resident_bytes() > 100_000);
        assert!(crate::model::GatewayId::new(&host_id()).is_ok());
    }
}
