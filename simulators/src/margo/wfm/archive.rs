//! Bundles: tar and gzip, the same bytes for the same content.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

use super::faults::Fault;

/// A file of a bundle.
pub(super) struct File {
    pub name: String,
    pub content: Vec<u8>,
}

/// The bundle of these files, spoilt if asked.
pub(super) fn bundle(mut files: Vec<File>, faults: &[Fault]) -> Vec<u8> {
    let mut link = false;
    for fault in faults {
        match fault {
            Fault::ExtraFile => {
                files.push(File { name: "unasked.yaml".to_owned(), content: b"kind: Unasked\n".to_vec() });
            }
            Fault::MissingFile { index } if *index < files.len() => drop(files.remove(*index)),
            Fault::DuplicateFile if !files.is_empty() => {
                files.push(File { name: files[0].name.clone(), content: files[0].content.clone() });
            }
            Fault::NestedFiles => files.iter_mut().for_each(|file| file.name = format!("deployments/{}", file.name)),
            Fault::Names { names } => {
                files.iter_mut().zip(names).for_each(|(file, name)| file.name.clone_from(name));
            }
            Fault::Symlink => link = true,
            Fault::BundleGarbage => return b"this is no archive".to_vec(),
            Fault::Bomb { mebibytes } => return pack(&files, false, mebibytes * 1024 * 1024),
            _ => {}
        }
    }
    pack(&files, link, 0)
}

fn pack(files: &[File], link: bool, zeros: usize) -> Vec<u8> {
    let encoder = GzEncoder::new(Vec::new(), Compression::default());
    let mut tar = Builder::new(encoder);
    let mut write = || -> std::io::Result<()> {
        for file in files {
            entry(&mut tar, &file.name, EntryType::Regular, file.content.len(), &mut file.content.as_slice())?;
        }
        if link {
            let mut header = header("link.yaml", EntryType::Symlink, 0);
            header.set_link_name("/etc/passwd")?;
            header.set_cksum();
            tar.append(&header, std::io::empty())?;
        }
        if zeros > 0 {
            let mut endless = std::io::Read::take(std::io::repeat(0), zeros as u64);
            entry(&mut tar, "zeros.yaml", EntryType::Regular, zeros, &mut endless)?;
        }
        Ok(())
    };
    if let Err(error) = write() {
        tracing::warn!(%error, "the bundle is incomplete");
    }
    tar.into_inner().and_then(|mut encoder| encoder.flush().and_then(|()| encoder.finish())).unwrap_or_default()
}

fn entry(
    tar: &mut Builder<GzEncoder<Vec<u8>>>,
    name: &str,
    kind: EntryType,
    size: usize,
    content: &mut dyn std::io::Read,
) -> std::io::Result<()> {
    let mut header = header(name, kind, size);
    header.set_cksum();
    tar.append(&header, content)
}

/// The name is written as it is: the library's own setter refuses what an attacker would send.
fn header(name: &str, kind: EntryType, size: usize) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(0o644);
    let field = &mut header.as_old_mut().name;
    let length = name.len().min(field.len());
    field[..length].copy_from_slice(&name.as_bytes()[..length]);
    header
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn files() -> Vec<File> {
        ["a.yaml", "b.yaml"].map(|name| File { name: name.to_owned(), content: name.as_bytes().to_vec() }).into()
    }

    fn names(bundle: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bundle));
        let entries = archive.entries().unwrap();
        entries.map(|entry| String::from_utf8_lossy(&entry.unwrap().path_bytes()).into_owned()).collect()
    }

    #[test]
    fn the_same_files_make_the_same_bundle() {
        assert_eq!(bundle(files(), &[]), bundle(files(), &[]));
        assert_eq!(names(&bundle(files(), &[])), ["a.yaml", "b.yaml"]);
    }

    #[test]
    fn faults_show_in_the_archive() {
        let spoilt = |fault| names(&bundle(files(), &[fault]));
        assert_eq!(spoilt(Fault::ExtraFile), ["a.yaml", "b.yaml", "unasked.yaml"]);
        assert_eq!(spoilt(Fault::MissingFile { index: 0 }), ["b.yaml"]);
        assert_eq!(spoilt(Fault::DuplicateFile), ["a.yaml", "b.yaml", "a.yaml"]);
        assert_eq!(spoilt(Fault::NestedFiles), ["deployments/a.yaml", "deployments/b.yaml"]);
        assert_eq!(spoilt(Fault::Names { names: vec!["../../x".to_owned()] }), ["../../x", "b.yaml"]);
        assert_eq!(spoilt(Fault::Symlink), ["a.yaml", "b.yaml", "link.yaml"]);
    }

    #[test]
    fn a_bomb_is_small_until_it_is_unpacked() {
        let bomb = bundle(files(), &[Fault::Bomb { mebibytes: 8 }]);
        assert!(bomb.len() < 32 * 1024, "{}", bomb.len());
        let unpacked =
            std::io::copy(&mut flate2::read::GzDecoder::new(&bomb[..]).by_ref(), &mut std::io::sink()).unwrap();
        assert!(unpacked > 8 * 1024 * 1024);
    }
}
