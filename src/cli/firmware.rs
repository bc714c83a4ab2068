//! `fieldgate firmware …`: keys and signatures on the machine that builds, offers and approvals at the gateway.
//!
//! `keygen` and `sign` need no gateway. The others hand a request to the running gateway through [`Requests`]: its local
//! socket.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;

use super::CliError;
use super::table::Table;
use crate::admin::{Answer, Request};
use crate::app::firmware::{Question, Reply};
use crate::management::firmware::{Job, Manifest, Offer, SigningKey, Source, Version, sha256_of_file};
use crate::platform::durable::{Access, Disk};

#[derive(Debug, Subcommand)]
pub enum FirmwareCommand {
    /// Make a key pair that signs firmware. Keep the private half on the machine that builds, never on a gateway.
    Keygen {
        /// Private key to write; the public one goes beside it as NAME.pub.
        #[arg(value_name = "NAME")]
        path: PathBuf,
    },
    /// Write the signed manifest of an artifact to NAME.manifest beside it.
    Sign {
        /// The artifact.
        artifact: PathBuf,
        /// Private key from `keygen`.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// What it is for: gateway-x86_64, gateway-aarch64, or the name of a device profile.
        #[arg(long)]
        target: String,
        /// Its version, such as 1.4.2.
        #[arg(id = "release", long = "release", value_parser = Version::parse, value_name = "VERSION")]
        version: Version,
        /// The oldest version that can be updated directly.
        #[arg(long, value_parser = Version::parse, value_name = "VERSION")]
        min_version: Option<Version>,
    },
    /// Offer an artifact to the gateway itself or to a device.
    #[command(visible_alias = "set")]
    Offer {
        /// Signed manifest.
        manifest: PathBuf,
        /// `gateway` or the id of a device.
        #[arg(long = "for", default_value = "gateway", value_name = "ID")]
        target: String,
        /// Where the gateway fetches it: http://, https:// or file:// as the gateway sees it.
        #[arg(long, conflicts_with = "upload")]
        url: Option<String>,
        /// Send this file instead.
        #[arg(long, value_name = "FILE", required_unless_present = "url")]
        upload: Option<PathBuf>,
        /// Allow a version that is older than the one that runs.
        #[arg(long)]
        allow_downgrade: bool,
        /// Let the maintenance window approve.
        #[arg(long)]
        in_window: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Approve the offer for a target, or reject it.
    Approve {
        /// `gateway` or the id of a device.
        #[arg(default_value = "gateway")]
        target: String,
        /// Reject it instead.
        #[arg(long)]
        reject: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Give a job up, possible until its installation begins.
    Abort {
        /// `gateway` or the id of a device.
        #[arg(default_value = "gateway")]
        target: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show where updates stand.
    Status {
        /// `gateway` or the id of a device; all of them when not given.
        target: Option<String>,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
}

/// The running gateway, as far as firmware is concerned. Errors are for people.
pub trait Requests {
    /// Hands in an offer; returns the job.
    fn offer(&mut self, target: &str, offer: Offer) -> Result<Job, String>;
    /// Hands in a chunk of an upload; returns where the next one begins.
    fn chunk(&mut self, target: &str, id: &str, offset: u64, bytes: &[u8]) -> Result<u64, String>;
    /// Approves (or rejects) the job `id`; returns the job.
    fn decide(&mut self, target: &str, id: &str, approve: bool) -> Result<Job, String>;
    /// All jobs, or the one of a target.
    fn jobs(&mut self, target: Option<&str>) -> Result<Vec<Job>, String>;
}

/// Bytes of one chunk of an upload: in base64 well below the longest request of the socket.
const CHUNK: usize = 32 * 1024;

/// Does what was asked and prints the outcome. The gateway with the configuration at `path` is asked when it is needed.
pub fn execute(path: &Path, command: FirmwareCommand) -> Result<(), CliError> {
    let data = match needs_gateway(&command) {
        true => crate::config::find_data_dir(path)?,
        false => PathBuf::new(),
    };
    print!("{}", run(command, &mut Socket { data })?);
    Ok(())
}

/// Whether a command needs the running gateway.
const fn needs_gateway(command: &FirmwareCommand) -> bool {
    !matches!(command, FirmwareCommand::Keygen { .. } | FirmwareCommand::Sign { .. })
}

/// The gateway that runs with this data directory.
struct Socket {
    data: PathBuf,
}

impl Socket {
    fn ask(&self, question: &Question) -> Result<Reply, String> {
        let question = serde_json::to_value(question).map_err(|e| e.to_string())?;
        let answer = super::block_on(super::live::ask(&self.data, Request::Firmware { question }));
        match answer.map_err(|e| e.to_string())? {
            Answer::Json { value } => serde_json::from_value(value).map_err(|_| CliError::odd_answer().to_string()),
            _ => Err(CliError::odd_answer().to_string()),
        }
    }

    fn job(&self, question: &Question) -> Result<Job, String> {
        match self.ask(question)? {
            Reply::Job(job) => Ok(*job),
            _ => Err(CliError::odd_answer().to_string()),
        }
    }
}

impl Requests for Socket {
    fn offer(&mut self, target: &str, offer: Offer) -> Result<Job, String> {
        self.job(&Question::Offer { target: target.to_owned(), offer })
    }

    fn chunk(&mut self, target: &str, id: &str, offset: u64, bytes: &[u8]) -> Result<u64, String> {
        let (target, id, data) = (target.to_owned(), id.to_owned(), STANDARD.encode(bytes));
        match self.ask(&Question::Chunk { target, id, offset, data })? {
            Reply::Next(next) => Ok(next),
            _ => Err(CliError::odd_answer().to_string()),
        }
    }

    fn decide(&mut self, target: &str, id: &str, approve: bool) -> Result<Job, String> {
        self.job(&Question::Decide { target: target.to_owned(), id: id.to_owned(), approve })
    }

    fn jobs(&mut self, target: Option<&str>) -> Result<Vec<Job>, String> {
        match self.ask(&Question::Jobs { target: target.map(str::to_owned) })? {
            Reply::Jobs(jobs) => Ok(jobs),
            _ => Err(CliError::odd_answer().to_string()),
        }
    }
}

fn run(command: FirmwareCommand, gateway: &mut impl Requests) -> Result<String, CliError> {
    match command {
        FirmwareCommand::Keygen { path } => keygen(&path),
        FirmwareCommand::Sign { artifact, key, target, version, min_version } => {
            sign(&artifact, &key, target, version, min_version)
        }
        FirmwareCommand::Offer { manifest, target, url, upload, allow_downgrade, in_window, json } => {
            let source = url.map_or(Source::Upload, Source::Url);
            let id = format!("cli-{:016x}", rand::random::<u64>());
            let offer = Offer { id, manifest: read(&manifest)?, source, allow_downgrade, in_window };
            let mut job = gateway.offer(&target, offer).map_err(CliError::Other)?;
            if let Some(file) = upload {
                // Chunks are taken from an approved job only; who may offer here may approve here.
                job = gateway.decide(&target, &job.offer.id, true).map_err(CliError::Other)?;
                send(gateway, &target, &job, &file)?;
            }
            Ok(told(&job, json))
        }
        FirmwareCommand::Approve { target, reject, json } => decide(gateway, &target, !reject, json),
        FirmwareCommand::Abort { target, json } => decide(gateway, &target, false, json),
        FirmwareCommand::Status { target, json } => {
            let jobs = gateway.jobs(target.as_deref()).map_err(CliError::Other)?;
            Ok(status(&jobs, json))
        }
    }
}

fn decide(gateway: &mut impl Requests, target: &str, approve: bool, json: bool) -> Result<String, CliError> {
    let jobs = gateway.jobs(Some(target)).map_err(CliError::Other)?;
    let job = jobs.first().ok_or_else(|| CliError::Other(format!("nothing was offered for {target}")))?;
    let job = gateway.decide(target, &job.offer.id, approve).map_err(CliError::Other)?;
    Ok(told(&job, json))
}

fn keygen(path: &Path) -> Result<String, CliError> {
    let public = path.with_added_extension("pub");
    for path in [path, &public] {
        if path.exists() {
            return Err(CliError::Other(format!("{} exists; a key is never overwritten", path.display())));
        }
    }
    let key = SigningKey::generate().map_err(|error| CliError::Other(error.to_string()))?;
    write(path, key.expose_pem().as_bytes(), Access::Private)?;
    write(&public, key.public_pem().as_bytes(), Access::Public)?;
    Ok(format!("key {} in {}; configure gateways with {}\n", key.id(), path.display(), public.display()))
}

fn sign(
    artifact: &Path,
    key: &Path,
    target: String,
    version: Version,
    min_version: Option<Version>,
) -> Result<String, CliError> {
    let key =
        SigningKey::from_pem(&read(key)?).map_err(|error| CliError::Other(format!("{}: {error}", key.display())))?;
    let (size, sha256) = sha256_of_file(artifact).map_err(|error| cannot("read", artifact, &error))?;
    let signed = Manifest { target, version, size, sha256, min_version }.sign(&key);
    // The gateway's own reading of it, before somebody carries it to a plant.
    let parsed = crate::management::firmware::SignedManifest::parse(&signed);
    parsed.map_err(|refusal| CliError::Other(refusal.to_string()))?;
    let path = artifact.with_added_extension("manifest");
    write(&path, signed.as_bytes(), Access::Public)?;
    Ok(format!("signed with key {}: {}\n", key.id(), path.display()))
}

fn send(gateway: &mut impl Requests, target: &str, job: &Job, file: &Path) -> Result<(), CliError> {
    let bytes = std::fs::read(file).map_err(|error| cannot("read", file, &error))?;
    if bytes.len() as u64 != job.size {
        let (found, expected) = (bytes.len(), job.size);
        return Err(CliError::Other(format!("{} has {found} bytes; its manifest names {expected}", file.display())));
    }
    let mut offset = job.received as usize;
    while offset < bytes.len() {
        let chunk = &bytes[offset..(offset + CHUNK).min(bytes.len())];
        let next = gateway.chunk(target, &job.offer.id, offset as u64, chunk).map_err(CliError::Other)?;
        if next as usize <= offset || next > job.size {
            return Err(CliError::Other(
                "the gateway does not take the upload further; see `fieldgate firmware status`".to_owned(),
            ));
        }
        offset = next as usize;
    }
    Ok(())
}

fn told(job: &Job, json: bool) -> String {
    if json {
        return format!("{}\n", value(job));
    }
    format!("{} {} for {}: {}\n", job.offer.id, job.version, job.target, job.stage.as_str())
}

fn value(job: &Job) -> serde_json::Value {
    serde_json::json!({
        "target": job.target,
        "id": job.offer.id,
        "stage": job.stage,
        "version": job.version,
        "from_version": job.from_version,
        "progress": job.progress(),
        "approval": job.approval,
        "code": job.code,
        "reason": job.reason,
        "since_ms": job.since_ms,
    })
}

fn status(jobs: &[Job], json: bool) -> String {
    if json {
        return format!("{}\n", serde_json::Value::Array(jobs.iter().map(value).collect()));
    }
    let mut table = Table::new(["target", "stage", "version", "from", "progress", "reason"]);
    for job in jobs {
        table.row([
            job.target.clone(),
            job.stage.as_str().to_owned(),
            job.version.clone(),
            job.from_version.clone().unwrap_or_default(),
            format!("{:.0} %", job.progress() * 100.0),
            job.reason.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}

fn read(path: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(|error| cannot("read", path, &error))
}

fn write(path: &Path, bytes: &[u8], access: Access) -> Result<(), CliError> {
    Disk::default().replace(path, bytes, access).map_err(|error| cannot("write", path, &error))
}

fn cannot(act: &str, path: &Path, error: &std::io::Error) -> CliError {
    CliError::Other(format!("cannot {act} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::management::firmware::{Event, SignedManifest, Stage, TrustedKeys, next};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: FirmwareCommand,
    }

    /// A gateway that takes everything.
    #[derive(Default)]
    struct Gateway {
        job: Option<Job>,
        bytes: Vec<u8>,
    }

    impl Requests for Gateway {
        fn offer(&mut self, target: &str, offer: Offer) -> Result<Job, String> {
            let signed = SignedManifest::parse(&offer.manifest).map_err(|refusal| refusal.to_string())?;
            let manifest = signed.unverified();
            let job = Job {
                target: target.to_owned(),
                stage: Stage::Offered,
                version: manifest.version.to_string(),
                size: manifest.size,
                sha256: manifest.sha256.clone(),
                signer: String::new(),
                from_version: Some("1.0.0".to_owned()),
                approval: None,
                received: 0,
                delivered: 0,
                attempts: 0,
                code: None,
                reason: None,
                since_ms: 0,
                offer,
            };
            Ok(self.job.insert(job).clone())
        }

        fn chunk(&mut self, _: &str, _: &str, offset: u64, bytes: &[u8]) -> Result<u64, String> {
            assert_eq!(offset as usize, self.bytes.len());
            self.bytes.extend_from_slice(bytes);
            Ok(self.bytes.len() as u64)
        }

        fn decide(&mut self, _: &str, id: &str, approve: bool) -> Result<Job, String> {
            let job = self.job.as_mut().filter(|job| job.offer.id == id).ok_or("no such job")?;
            job.stage =
                next(job.stage, if approve { Event::Approve } else { Event::Reject }).map_err(|e| e.to_string())?;
            Ok(job.clone())
        }

        fn jobs(&mut self, _: Option<&str>) -> Result<Vec<Job>, String> {
            Ok(self.job.iter().cloned().collect())
        }
    }

    #[test]
    fn a_key_signs_an_artifact_that_is_offered_approved_and_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut gateway = Gateway::default();
        let mut run = |line: &str| {
            let words = line.split(' ').map(|word| word.replace("DIR", &directory.path().display().to_string()));
            let line = Line::try_parse_from(std::iter::once("firmware".to_owned()).chain(words))
                .map_err(|e| CliError::Other(e.to_string()))?;
            super::run(line.command, &mut gateway)
        };
        run("keygen DIR/plant.key").unwrap();
        assert!(run("keygen DIR/plant.key").unwrap_err().to_string().contains("never overwritten"));
        let artifact: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        std::fs::write(path("fw.bin"), &artifact).unwrap();
        run("sign DIR/fw.bin --key DIR/plant.key --target gateway-x86_64 --release 2.0.0 --min-version 1.0").unwrap();
        let signed = SignedManifest::parse(&std::fs::read_to_string(path("fw.bin.manifest")).unwrap()).unwrap();
        let trusted = TrustedKeys::from_pem(&std::fs::read_to_string(path("plant.key.pub")).unwrap()).unwrap();
        assert!(signed.verify(&trusted).is_ok());
        assert!(run("sign DIR/fw.bin --key DIR/plant.key --target a/b --release 2.0.0").is_err());
        assert!(run("sign DIR/fw.bin --key DIR/plant.key --target a --release newest").is_err());
        assert!(run("offer DIR/fw.bin.manifest").is_err(), "a URL or a file");
        assert!(run("offer DIR/fw.bin.manifest --url http://h/fw.bin").unwrap().contains("offered"));
        assert!(run("approve").unwrap().contains("approved"));
        assert!(run("status").unwrap().contains("2.0.0"));
        assert!(run("abort").unwrap().contains("refused"));
        assert!(
            run("set DIR/fw.bin.manifest --for pump-1 --upload DIR/fw.bin --json").unwrap().contains("\"approved\"")
        );
        assert!(gateway.bytes == artifact);
    }
}
