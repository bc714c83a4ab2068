//! Artifacts from a directory, and addresses that are none.

use serde_json::json;

use super::registry::OCI_IMAGE_MEDIA_TYPE;

use super::super::format::tests::artifact;
use super::super::{CONFIGURATION_TYPE, FIRMWARE_MANIFEST_TYPE, PointValue, RECIPE_TYPE};
use super::*;

/// Writes an artifact into a directory of OCI image layouts.
pub(crate) fn store(
    root: &Path,
    repository: &str,
    tag: &str,
    layers: &[(&str, &[u8])],
    annotations: serde_json::Value,
) -> Digest {
    let layout = root.join(repository);
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let manifest = artifact(layers, annotations);
    let digest = Digest::of(&manifest);
    for bytes in layers.iter().map(|(_, bytes)| *bytes).chain([manifest.as_slice()]) {
        std::fs::write(layout.join("blobs/sha256").join(Digest::of(bytes).hex()), bytes).unwrap();
    }
    let path = layout.join("index.json");
    let mut index: serde_json::Value = std::fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_else(|| json!({ "schemaVersion": 2, "manifests": [] }));
    let list = index["manifests"].as_array_mut().unwrap();
    list.retain(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] != tag);
    list.push(json!({
        "mediaType": OCI_IMAGE_MEDIA_TYPE, "digest": digest.to_string(), "size": manifest.len(),
        "annotations": { "org.opencontainers.image.ref.name": tag },
    }));
    std::fs::write(path, index.to_string()).unwrap();
    digest
}

fn component(repository: &str, revision: &str) -> ComponentRef {
    ComponentRef {
        name: "a".to_owned(),
        repository: repository.to_owned(),
        revision: revision.to_owned(),
        timeout: None,
    }
}

fn source(directory: &Path) -> Source {
    let config = SourceConfig { directory: Some(directory.join("oci")), ..SourceConfig::default() };
    Source::new(config, directory.join("cache")).unwrap()
}

#[tokio::test]
async fn a_directory_serves_offline_sites_by_tag_and_by_digest() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = br#"{"values":[{"point":"speed","value":1}]}"#;
    let digest = store(
        &dir.path().join("oci"),
        "registry.example/recipes/a",
        "1.0",
        &[(RECIPE_TYPE, recipe)],
        json!({ "dev.fieldgate.fits.model": "P-*" }),
    );
    let source = source(dir.path());
    for revision in ["1.0".to_owned(), digest.to_string(), format!("1.0@{digest}")] {
        let fetched = source.fetch(&component("oci://registry.example/recipes/a", &revision)).await.unwrap();
        let values = vec![PointValue { point: "speed".to_owned(), value: json!(1) }];
        assert_eq!(fetched.work, Work::Recipe { values });
        assert_eq!((fetched.artifact, fetched.fits.model.as_deref()), (digest, Some("P-*")));
    }
    let missing = source.fetch(&component("oci://registry.example/recipes/a", "2.0")).await.unwrap_err();
    assert!(missing.is_transient(), "{missing}");
}

#[tokio::test]
async fn what_does_not_fit_its_digest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("oci");
    let bytes: &[u8] = br#"{"points":{}}"#;
    store(&root, "registry.example/c", "1", &[(CONFIGURATION_TYPE, bytes)], json!({}));
    let blob = root.join("registry.example/c/blobs/sha256").join(Digest::of(bytes).hex());
    std::fs::write(&blob, br#"{"points":[]}"#).unwrap();
    let error = source(dir.path()).fetch(&component("oci://registry.example/c", "1")).await.unwrap_err();
    assert!(matches!(error, SourceError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn images_of_firmware_go_to_the_cache_and_half_ones_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("oci");
    let image: &[u8] = b"image bytes";
    store(
        &root,
        "registry.example/fw",
        "1",
        &[(FIRMWARE_TYPE, image), (FIRMWARE_MANIFEST_TYPE, b"fieldgate-firmware-v1\n")],
        json!({}),
    );
    let source = source(dir.path());
    let fetched = source.fetch(&component("oci://registry.example/fw", "1")).await.unwrap();
    let Work::Firmware { image: digest, size, manifest } = fetched.work else { panic!() };
    assert_eq!((size, manifest.as_str()), (11, "fieldgate-firmware-v1\n"));
    let cached = dir.path().join("cache").join(digest.hex());
    assert_eq!(std::fs::read(&cached).unwrap(), image);
    source.sweep(&[digest].into());
    assert!(cached.exists());
    source.sweep(&BTreeSet::new());
    assert!(!cached.exists(), "nobody names it any more");
    source.fetch(&component("oci://registry.example/fw", "1")).await.unwrap();
    std::fs::remove_file(&cached).unwrap();
    std::fs::write(root.join("registry.example/fw/blobs/sha256").join(digest.hex()), b"other bytes").unwrap();
    assert!(source.fetch(&component("oci://registry.example/fw", "1")).await.is_err());
    assert_eq!(std::fs::read_dir(dir.path().join("cache")).unwrap().count(), 0);
}

#[test]
fn addresses_that_are_none_are_refused() {
    for (repository, revision) in [
        ("https://registry.example/a", "1"),
        ("oci://registry.example", "1"),
        ("oci://registry.example/../../etc", "1"),
        ("oci://registry.example/a", ""),
        ("oci://registry.example/a", "sha512:00"),
        ("oci://registry.example/a@sha256:x", "1"),
        ("oci://registry.example/a", "../x"),
    ] {
        assert!(reference(&component(repository, revision)).is_err(), "{repository} {revision}");
    }
}
