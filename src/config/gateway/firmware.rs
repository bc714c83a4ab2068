//! Reads `[firmware]`.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::checked::Firmware;
use crate::config::reader::Reader;
use crate::config::secret::path;
use crate::config::tree::Item;
use crate::config::value::{line, millis, size};
use crate::management::firmware::Window;

pub(super) fn read(section: &Reader<'_>) -> Firmware {
    let keys = section.list("keys", key_file).unwrap_or_default();
    section.context.files.borrow_mut().extend(keys.iter().cloned());
    Firmware {
        keys,
        max_size: section.or("max_size", 256 << 20, size(1 << 10..=1 << 30)),
        window: section.optional("window", |item: &Item| Window::parse(&line(100)(item)?)),
        rate: section.optional("rate", size(1 << 10..=1 << 30)),
        prove_within: section.or("prove_within", Duration::from_secs(300), millis(1_000, 3_600_000)),
        ca: section.file("ca"),
    }
}

fn key_file(item: &Item) -> Result<PathBuf, String> {
    let path = path(item)?;
    if path.is_file() { Ok(path) } else { Err(format!("there is no file {}", path.display())) }
}
