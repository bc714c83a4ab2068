//! What is kept of a project on disk: its journal, and each revision that runs or may run.
//!
//! ```text
//! compose/<project>/journal.json              what was ordered, what runs, what was answered
//!                   lock                      held by the compose program while it runs
//!                   revisions/<digest>/package/…           as the compose program reads it
//!                                     /environment.json    values of the parameters
//! ```
//! A revision is written beside its place and renamed into it: one that is there is whole, and is never written again, so that no
//! container can make us write elsewhere through what it left in a directory that it may mount. Everything lies below directories
//! with mode 0700; the files of a package may be read by whoever is let in, such as a container that mounts them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::command::Call;
use crate::margo::component::compose::{Environment, Project};
use crate::margo::plant::Refusal;
use crate::margo::words::{Digest, hex};
use crate::model::DeviceId;
use crate::platform::durable::{Access, Disk};

const JOURNAL: &str = "journal.json";
const REVISIONS: &str = "revisions";
const PACKAGE: &str = "package";
const ENVIRONMENT: &str = "environment.json";
/// Where the names of the compose files stand.
const COMPOSE: &str = "compose.json";

/// What is durable of a project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Journal {
    /// Deployment and component.
    pub owner: String,
    /// Its host; empty is the gateway itself.
    device: String,
    /// What came up.
    pub installed: Option<Installed>,
    /// What was begun and not answered.
    pub order: Option<Begun>,
    /// The last answer.
    pub answered: Option<Answered>,
}

/// A revision that came up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Installed {
    pub revision: String,
    /// How many containers it had.
    pub containers: usize,
}

/// An order under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    pub key: String,
    pub revision: Option<String>,
    /// It failed, and is being set back.
    pub failed: Option<Refusal>,
}

/// An order that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answered {
    pub key: String,
    pub refusal: Option<Refusal>,
}

impl Journal {
    /// Its host; `None` is the gateway itself.
    pub(super) fn host(&self) -> Option<DeviceId> {
        DeviceId::new(&self.device).ok()
    }

    /// The answer to an order that is over.
    pub(super) fn answer(&self, key: &str) -> Option<Result<(), Refusal>> {
        let answered = self.answered.as_ref().filter(|answered| answered.key == key)?;
        Some(answered.refusal.clone().map_or(Ok(()), Err))
    }
}

/// A revision as it is written.
#[derive(Debug)]
pub(super) struct Revision {
    /// Digest of its content.
    pub name: String,
    compose: Vec<String>,
    package: BTreeMap<String, Vec<u8>>,
    environment: Environment,
}

impl Revision {
    pub(super) fn of(project: &Project, variables: &[(&str, &str)]) -> Self {
        let package = project.package(variables);
        let mut text = project.compose.join("\n").into_bytes();
        for (name, bytes) in &package {
            text.extend(format!("\n{name} {}", Digest::of(bytes)).into_bytes());
        }
        for (name, value) in project.environment.iter() {
            text.extend(format!("\n{name}={}", Digest::of(value.as_bytes())).into_bytes());
        }
        let name = hex(&Digest::of(&text).as_bytes()[..16]);
        Self { name, compose: project.compose.clone(), package, environment: project.environment.clone() }
    }
}

/// Where a project lies.
#[derive(Debug, Clone)]
pub(super) struct Place {
    directory: PathBuf,
    /// Its name at the engine.
    name: String,
    device: Option<DeviceId>,
}

impl Place {
    /// The place of a project; its name is stable, and nobody else's.
    pub(super) fn new(root: &Path, device: Option<&DeviceId>, owner: &str) -> Self {
        let component = owner.split_once('/').map_or(owner, |(_, component)| component);
        let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let short: String = component.chars().map(legal).take(24).collect();
        let whole = format!("{}\n{owner}", device.map_or("", DeviceId::as_str));
        let name = format!("margo-{short}-{}", hex(&Digest::of(whole.as_bytes()).as_bytes()[..8]));
        Self { directory: root.join(&name), name, device: device.cloned() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// All that have a journal. What does not run is for `sweep`, which removes it or lets it be.
    pub(super) async fn all(
        root: &Path,
        sweep: impl Fn(&str, &Path) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Vec<(Self, Journal)>> {
        let root = root.to_owned();
        blocking(move || {
            let mut all = Vec::new();
            if !root.is_dir() {
                return Ok(all);
            }
            for entry in std::fs::read_dir(&root)? {
                let entry = entry?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                if !name.starts_with("margo-") {
                    continue;
                }
                let directory = entry.path();
                let journal = read_journal(&directory)?;
                let is_used =
                    journal.as_ref().is_some_and(|journal| journal.installed.is_some() || journal.order.is_some());
                if !is_used {
                    sweep(&name, &directory)?;
                }
                if let Some(journal) = journal.filter(|_| directory.is_dir()) {
                    all.push((Self { directory, name, device: journal.host() }, journal));
                }
            }
            Ok(all)
        })
        .await
    }

    pub(super) async fn load(&self, owner: &str) -> io::Result<Journal> {
        let (directory, owner) = (self.directory.clone(), owner.to_owned());
        let device = self.device.as_ref().map(ToString::to_string).unwrap_or_default();
        blocking(move || {
            let fresh = Journal { owner, device, installed: None, order: None, answered: None };
            Ok(read_journal(&directory)?.unwrap_or(fresh))
        })
        .await
    }

    pub(super) async fn save(&self, journal: &Journal) -> io::Result<()> {
        let (directory, bytes) = (self.directory.clone(), serde_json::to_vec(journal)?);
        blocking(move || {
            let disk = Disk::default();
            disk.create_directory(&directory, Access::Private)?;
            disk.replace(&directory.join(JOURNAL), &bytes, Access::Private)
        })
        .await
    }

    fn revision(&self, name: &str) -> PathBuf {
        self.directory.join(REVISIONS).join(name)
    }

    /// Writes a revision that is not there yet.
    pub(super) async fn keep(&self, revision: &Revision) -> io::Result<()> {
        let place = self.revision(&revision.name);
        let Revision { compose, package, environment, .. } = revision;
        let (compose, environment) = (serde_json::to_vec(compose)?, serde_json::to_vec(environment)?);
        let package = package.clone();
        blocking(move || {
            if place.is_dir() {
                return Ok(());
            }
            let disk = Disk::default();
            let unfinished = place.with_extension("unfinished");
            if unfinished.exists() {
                std::fs::remove_dir_all(&unfinished)?;
            }
            disk.create_directory(&unfinished, Access::Private)?;
            disk.replace(&unfinished.join(COMPOSE), &compose, Access::Private)?;
            disk.replace(&unfinished.join(ENVIRONMENT), &environment, Access::Private)?;
            let root = unfinished.join(PACKAGE);
            for (name, bytes) in &package {
                let path = root.join(name);
                disk.create_directory(path.parent().unwrap_or(&root), Access::Public)?;
                disk.replace(&path, bytes, Access::Public)?;
                open_up(&root, &path)?;
            }
            disk.rename(&unfinished, &place)
        })
        .await
    }

    /// The revisions that are there.
    pub(super) async fn revisions(&self) -> io::Result<Vec<String>> {
        let directory = self.directory.join(REVISIONS);
        blocking(move || {
            if !directory.is_dir() {
                return Ok(Vec::new());
            }
            let names =
                std::fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
            let names: io::Result<Vec<String>> = names.collect();
            Ok(names?.into_iter().filter(|name| name.chars().all(|c| c.is_ascii_hexdigit())).collect())
        })
        .await
    }

    /// Removes every revision but one.
    pub(super) async fn forget_all_but(&self, kept: Option<&str>) -> io::Result<()> {
        for name in self.revisions().await? {
            if Some(name.as_str()) != kept {
                let place = self.revision(&name);
                blocking(move || std::fs::remove_dir_all(place)).await?;
            }
        }
        Ok(())
    }

    /// Removes everything.
    pub(super) async fn remove(&self) -> io::Result<()> {
        let directory = self.directory.clone();
        blocking(move || match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await
    }

    /// A call of the compose program for a revision.
    pub(super) async fn call(&self, revision: &str, arguments: &[&str]) -> io::Result<Call> {
        let (place, lock, project) = (self.revision(revision), self.directory.join("lock"), self.name.clone());
        let arguments: Vec<OsString> = arguments.iter().map(Into::into).collect();
        blocking(move || {
            let compose: Vec<String> = serde_json::from_slice(&std::fs::read(place.join(COMPOSE))?)?;
            let environment: Environment = serde_json::from_slice(&std::fs::read(place.join(ENVIRONMENT))?)?;
            let directory = place.join(PACKAGE);
            let mut all: Vec<OsString> = vec!["--project-name".into(), project.into()];
            all.extend(["--project-directory".into(), directory.clone().into()]);
            all.extend(compose.iter().flat_map(|name| ["--file".into(), directory.join(name).into()]));
            all.extend(arguments);
            let lock = File::options().read(true).write(true).create(true).truncate(false).open(lock)?;
            Ok(Call { arguments: all, environment, directory, lock: Some(lock) })
        })
        .await
    }
}

/// Lets everybody who is let in read a file and its directories, whatever the process's umask is: containers have users of their own.
fn open_up(root: &Path, file: &Path) -> io::Result<()> {
    std::fs::set_permissions(file, Permissions::from_mode(0o644))?;
    for directory in file.ancestors().skip(1).take_while(|directory| directory.starts_with(root)) {
        std::fs::set_permissions(directory, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn read_journal(directory: &Path) -> io::Result<Option<Journal>> {
    match std::fs::read(directory.join(JOURNAL)) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Disk work off the threads that serve.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_legal_and_of_one_project_each() {
        let device = DeviceId::new("pc-1").unwrap();
        let place = |device, owner: &str| Place::new(Path::new("/x"), device, owner).name;
        let name = place(None, "6ba7b810/Web App_ü");
        assert_eq!(name, place(None, "6ba7b810/Web App_ü"));
        assert!(
            name.starts_with("margo-web-app---") && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'),
            "{name}"
        );
        let others = [
            place(Some(&device), "6ba7b810/Web App_ü"),
            place(None, "6ba7b811/Web App_ü"),
            place(None, "6ba7b810/web"),
        ];
        assert!(others.iter().all(|other| *other != name));
    }

    #[tokio::test]
    async fn a_project_is_private_and_a_whole_revision_is_never_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path(), None, "d/web");
        let revision = Revision {
            name: "ab".to_owned(),
            compose: vec!["compose.yaml".to_owned()],
            package: [("compose.yaml", "{}"), ("a/b.conf", "1")]
                .map(|(n, t)| (n.to_owned(), t.as_bytes().to_vec()))
                .into(),
            environment: Environment::default(),
        };
        let mut journal = place.load("d/web").await.unwrap();
        place.save(&journal).await.unwrap();
        place.keep(&revision).await.unwrap();
        let file = place.revision("ab").join(PACKAGE).join("a/b.conf");
        std::fs::write(&file, "changed by a container").unwrap();
        place.keep(&revision).await.unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "changed by a container");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&place.directory), 0o700);
        assert_eq!(mode(&place.revision("ab").join(ENVIRONMENT)), 0o600);
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o644, 0o755));

        journal.answered = Some(Answered { key: "k".to_owned(), refusal: None });
        place.save(&journal).await.unwrap();
        assert_eq!(place.load("d/web").await.unwrap().answer("k"), Some(Ok(())));
        assert_eq!(place.load("d/web").await.unwrap().answer("other"), None);
        let call = place.call("ab", &["up"]).await.unwrap();
        assert_eq!(call.arguments.len(), 7);
        place.forget_all_but(None).await.unwrap();
        assert_eq!(place.revisions().await.unwrap(), Vec::<String>::new());
        assert_eq!(Place::all(dir.path(), |_, _| Ok(())).await.unwrap().len(), 1);
        assert_eq!(Place::all(dir.path(), |_, left| std::fs::remove_dir_all(left)).await.unwrap().len(), 0);
        assert!(!place.directory.exists(), "what never ran is swept");
    }
}
