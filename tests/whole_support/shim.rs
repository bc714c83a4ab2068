//! A machine whose time service says that the clock is synchronised, wherever the test runs: a few lines of C in front of
//! the C library's, built with `cc`. Nothing of the machine is touched.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Time services leave this mark; the gateway looks whether it is there.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int statx(int folder, const char *path, int flags, unsigned mask, struct statx *out) {
    if (path && strcmp(path, "/run/chrony/synchronized") == 0) path = "/";
    return (int)syscall(SYS_statx, folder, path, flags, mask, out);
}
"#;

/// Builds the library in `folder`.
pub fn build(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("synchronised.c"), folder.join("synchronised.so"));
    std::fs::write(&source, SOURCE).expect("writable");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).status();
    assert!(built.expect("cc, which the build needs too").success(), "cc refused the shim");
    library
}
