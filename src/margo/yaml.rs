//! YAML that others wrote, read within a budget (events, depth, aliases, bytes), so that a document cannot cost more than it
//! weighs. What comes out is JSON: aliases and merge keys are resolved, and a key that stands twice is an error.

use serde_json::Value;

/// How YAML writes numbers with a leading zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeros {
    /// Decimal, as YAML 1.2 has it.
    Decimal,
    /// Octal, as Compose reads file modes.
    Octal,
}

/// Reads one document of at most `most` bytes; the error says in words why it cannot be read.
///
/// # Errors
/// Words.
pub fn read(bytes: &[u8], most: usize, zeros: Zeros) -> Result<Value, String> {
    if bytes.len() > most {
        return Err(format!("it has {} bytes, at most {most} are taken", bytes.len()));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 50_000,
            max_nodes: 25_000,
            max_aliases: 200,
            max_anchors: 100,
            max_depth: 32,
            flow_nesting_limit: 32,
            max_documents: 1,
            max_total_scalar_bytes: most,
            max_recorded_anchor_events: 20_000,
            max_merge_keys: 50,
        },
        legacy_octal_numbers: zeros == Zeros::Octal,
        strict_booleans: zeros == Zeros::Octal,
        with_snippet: false,
    };
    serde_saphyr::from_slice_with_options(bytes, options)
        .map_err(|error| error.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect())
}
