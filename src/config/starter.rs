//! The configuration that `fieldgate init` writes: commented, passes `check`, runs as it is.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::model::GatewayId;

/// The link of the first device when nobody says another: the simulated plant of the demo.
pub const DEFAULT_LINK: &str = "tcp://127.0.0.1:5020";

const FILES: [(&str, &str); 5] = [
    ("fieldgate.toml", include_str!("starter/fieldgate.toml")),
    ("devices/plc-1.toml", include_str!("starter/devices/plc-1.toml")),
    ("devices/meter-1.toml", include_str!("starter/devices/meter-1.toml")),
    ("profiles/energy-meter.toml", include_str!("starter/profiles/energy-meter.toml")),
    ("points/energy-meter.csv", include_str!("starter/points/energy-meter.csv")),
];

/// What is filled in.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Id of the gateway; `None` leaves it to the machine's name.
    pub id: Option<GatewayId>,
    /// Link of the first device, such as `tcp://192.0.2.7:502`; `None` for [`DEFAULT_LINK`].
    pub link: Option<String>,
}

/// Why no configuration was written.
#[derive(Debug, thiserror::Error)]
pub enum StarterError {
    /// Nothing is overwritten.
    #[error("{0} is there already; nothing was written: choose another directory or move it away")]
    Exists(PathBuf),
    /// The link would not pass `check`.
    #[error(
        "the link {0:?} cannot stand in a configuration; write tcp://host:502, rtu-over-tcp://host:port or serial:///dev/ttyUSB0"
    )]
    Link(String),
    /// The file system refused.
    #[error("{path} cannot be written: {source}")]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// Writes the starter configuration into `dir`, which is made if needed, and returns the files.
///
/// # Errors
/// When one of the files is there already (then nothing is written) or cannot be written.
pub fn write(dir: &Path, options: &Options) -> Result<Vec<PathBuf>, StarterError> {
    let link = options.link.as_deref().unwrap_or(DEFAULT_LINK);
    if link.is_empty() || link.chars().any(|c| c == '"' || c == '\\' || c.is_control()) {
        return Err(StarterError::Link(link.to_owned()));
    }
    let id = options.id.as_ref().map_or_else(|| "# id = \"plant-7\"".to_owned(), |id| format!("id = \"{id}\""));
    let paths: Vec<_> = FILES.iter().map(|(name, _)| dir.join(name)).collect();
    if let Some(path) = paths.iter().find(|p| p.symlink_metadata().is_ok()) {
        return Err(StarterError::Exists(path.clone()));
    }
    for ((_, text), path) in FILES.iter().zip(&paths) {
        write_new(path, &text.replace("@ID@", &id).replace("@LINK@", link))?;
    }
    Ok(paths)
}

fn write_new(path: &Path, text: &str) -> Result<(), StarterError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AlreadyExists => StarterError::Exists(path.to_owned()),
        _ => StarterError::Write { path: path.to_owned(), source },
    };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    let mut file = fs::File::create_new(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn the_starter_passes_check_without_a_warning() {
        for options in [
            Options::default(),
            Options { id: Some(GatewayId::new("g-1").unwrap()), link: Some("serial:///dev/ttyUSB0?baud=9600".into()) },
        ] {
            let dir = tempfile::tempdir().unwrap();
            let files = write(&dir.path().join("new"), &options).unwrap();
            assert_eq!(files.len(), FILES.len());
            let loaded = config::load(&dir.path().join("new")).unwrap_or_else(|problems| panic!("{problems}"));
            assert_eq!(loaded.warnings, []);
            assert_eq!((loaded.devices.len(), loaded.disabled.len()), (1, 1));
            if let Some(id) = options.id {
                assert_eq!(loaded.gateway.identity.id, id);
            }
        }
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let mine = dir.path().join("devices/plc-1.toml");
        fs::create_dir_all(mine.parent().unwrap()).unwrap();
        fs::write(&mine, "mine").unwrap();
        let error = write(dir.path(), &Options::default()).unwrap_err();
        assert!(error.to_string().contains("plc-1.toml"), "{error}");
        assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
        assert!(!dir.path().join("fieldgate.toml").exists(), "half a configuration was written");
        let link = Options { link: Some("tcp://h\"\nx = 1".into()), ..Options::default() };
        assert!(matches!(write(&dir.path().join("x"), &link), Err(StarterError::Link(_))));
    }

    /// The commented settings work when the `#` is removed.
    #[test]
    fn commented_settings_are_legal() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &Options::default()).unwrap();
        let main = dir.path().join("fieldgate.toml");
        let setting = |line: &str| line.contains(" = ") && !line.contains(". ") || line.starts_with('[');
        let text = fs::read_to_string(&main).unwrap();
        let uncommented: Vec<_> =
            text.lines().map(|l| l.strip_prefix("# ").filter(|rest| setting(rest)).unwrap_or(l)).collect();
        fs::write(&main, uncommented.join("\n")).unwrap();
        for file in ["tls/server.pem", "tls/server.key", "secrets/scada", "secrets/site"] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let loaded = config::load(dir.path()).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(loaded.gateway.uplinks.len(), 1);
        assert_eq!(loaded.gateway.broker.unwrap().listeners.len(), 2);
        assert!(loaded.gateway.otlp.is_some());
    }
}
