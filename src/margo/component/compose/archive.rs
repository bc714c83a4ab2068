//! A Margo Compose Archive, unpacked in memory.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Component;

use super::{MAX_ARCHIVE, Package, wrong};
use crate::margo::component::format::FormatError;
use crate::margo::desired::Limited;

/// Most files.
const MAX_FILES: usize = 200;
/// Longest path of a file.
const MAX_PATH: usize = 200;
/// Names of a compose file, the best first.
const NAMES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];

/// Unpacks an archive and gives the name of its compose file.
///
/// # Errors
/// [`FormatError::Payload`]: one fault refuses all of it.
pub(super) fn unpack(bytes: &[u8]) -> Result<(String, Package), FormatError> {
    let broken = |error: std::io::Error| wrong(format!("its archive cannot be unpacked: {error}"));
    let mut package = Package::new();
    let limited = Limited::new(flate2::read::MultiGzDecoder::new(bytes), 2 * MAX_ARCHIVE);
    let mut archive = tar::Archive::new(limited);
    let mut left = MAX_ARCHIVE;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let Some(name) = name(&entry)? else { continue };
        if kind.is_dir() {
            continue;
        }
        if !kind.is_file() {
            return Err(wrong(format!(
                "its archive holds {name:?}, which is a link or a special file; write plain files"
            )));
        }
        let mut content = Vec::new();
        (&mut entry).take(left + 1).read_to_end(&mut content).map_err(broken)?;
        let more = || wrong(format!("its archive holds more than {MAX_ARCHIVE} bytes or {MAX_FILES} files"));
        left = left.checked_sub(content.len() as u64).ok_or_else(more)?;
        if package.len() >= MAX_FILES {
            return Err(more());
        }
        if package.insert(name.clone(), content).is_some() {
            return Err(wrong(format!("its archive holds {name:?} twice")));
        }
    }
    settle(package)
}

/// The package with its compose file in the root.
fn settle(package: Package) -> Result<(String, Package), FormatError> {
    for name in package.keys() {
        let mut folder = name.as_str();
        while let Some((above, _)) = folder.rsplit_once('/') {
            if package.contains_key(above) {
                return Err(wrong(format!("its archive holds {above:?} as a file and as a directory")));
            }
            folder = above;
        }
    }
    if let Some(name) = NAMES.iter().find(|name| package.contains_key(**name)) {
        return Ok(((*name).to_owned(), package));
    }
    let top = package.keys().next().and_then(|name| name.split_once('/')).map(|(top, _)| format!("{top}/"));
    let missing = || wrong("its archive has no compose.yaml in its root or in its one top-level directory");
    let top = top.filter(|top| package.keys().all(|name| name.starts_with(top.as_str()))).ok_or_else(missing)?;
    let inner: BTreeMap<_, _> =
        package.into_iter().filter_map(|(name, bytes)| Some((name.strip_prefix(&top)?.to_owned(), bytes))).collect();
    match NAMES.iter().find(|name| inner.contains_key(**name)) {
        Some(name) => Ok(((*name).to_owned(), inner)),
        None => Err(missing()),
    }
}

/// The path of an entry; `None` for the root itself.
fn name<R: Read>(entry: &tar::Entry<'_, R>) -> Result<Option<String>, FormatError> {
    let raw = entry.path_bytes();
    let shown = String::from_utf8_lossy(&raw).chars().take(MAX_PATH).collect::<String>();
    let refused = || wrong(format!("its archive holds {shown:?}; only relative paths below its root are taken"));
    let path = entry.path().map_err(|_| refused())?;
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_str().ok_or_else(refused)?),
            _ => return Err(refused()),
        }
    }
    let name = parts.join("/");
    match name.as_str() {
        "" => Ok(None),
        name if is_path(name) => Ok(Some(name.to_owned())),
        _ => Err(refused()),
    }
}

/// Whether a text is a plain relative path.
pub(super) fn is_path(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && part != "..";
    text.len() <= MAX_PATH && text.split('/').all(part) && !text.contains(|c: char| c == '\\' || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::super::tests::archive;
    use super::*;

    /// An archive with one entry of any kind and name.
    fn odd(kind: tar::EntryType, name: &[u8], link: &str) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        header.set_size(0);
        header.set_cksum();
        let mut tar = tar::Builder::new(Vec::new());
        tar.append(&header, &[][..]).unwrap();
        let bytes = tar.into_inner().unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, &bytes).unwrap();
        gzip.finish().unwrap()
    }

    #[test]
    fn links_devices_and_paths_that_lead_outside_are_refused() {
        use tar::EntryType as T;
        for (kind, name, link) in [
            (T::Symlink, "a", "/etc/passwd"),
            (T::Link, "a", "b"),
            (T::Char, "a", ""),
            (T::Fifo, "a", ""),
            (T::Regular, "../a", ""),
            (T::Regular, "/etc/a", ""),
            (T::Regular, "a/../../b", ""),
            (T::Regular, "a\\b", ""),
            (T::Regular, "a\nb", ""),
            (T::Regular, "\u{ff}", ""),
        ] {
            assert!(unpack(&odd(kind, name.as_bytes(), link)).is_err(), "{name:?} {link}");
        }
        assert!(unpack(b"no gzip").is_err());
    }

    #[test]
    fn files_are_there_once_and_no_directory_is_a_file() {
        let compose = ("compose.yaml", "services: {}");
        assert_eq!(unpack(&archive(&[compose, ("a/b", "1")])).unwrap().1.len(), 2);
        for more in [[("a", "1"), ("./a", "2")], [("a", "1"), ("a/b", "2")]] {
            assert!(unpack(&archive(&[compose, more[0], more[1]])).is_err(), "{more:?}");
        }
        let names: Vec<String> = (0..MAX_FILES).map(|n| format!("f{n}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).chain([compose]).collect();
        assert!(unpack(&archive(&many)).is_err());
    }
}
