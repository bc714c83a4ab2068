//! `fieldgate certs …`: the plant's authority and what it issued. Works beside a running gateway, which takes changes up
//! within a minute.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::CliError;
use super::table::Table;
use crate::app::certificates::{pki_config, pki_directory};
use crate::config;
use crate::model::DeviceId;
use crate::platform::clock::{SharedClock, SystemClock};
use crate::platform::durable::{Access, Disk};
use crate::security::pki::{
    CertificateRequest, ClientSubject, Entry, Issued, Pki, PkiConfig, Reason, Serial, ServerNames, alarm,
};

#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// List the certificates that were issued here, those in use first.
    List {
        /// Also those that have expired, were replaced or were revoked.
        #[arg(long)]
        all: bool,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Issue a certificate to a device, a user, or a listener of the gateway.
    Issue {
        #[command(flatten)]
        subject: Subject,
        /// Sign this request (PKCS#10, PEM) of a device that keeps its own key.
        #[arg(long, value_name = "FILE", conflicts_with = "listener")]
        request: Option<PathBuf>,
        /// Directory for cert.pem, key.pem and ca.pem; must not hold them yet.
        #[arg(long, value_name = "DIRECTORY", required_unless_present = "listener")]
        out: Option<PathBuf>,
        /// More names or addresses of the listener.
        #[arg(long = "name", value_name = "NAME", requires = "listener")]
        names: Vec<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Renew a certificate now: same names, new key.
    Renew {
        /// Serial number, as `certs list` shows it.
        serial: String,
        /// Directory for the new cert.pem, key.pem and ca.pem of a device or user.
        #[arg(long, value_name = "DIRECTORY")]
        out: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take a certificate back. This cannot be undone.
    Revoke {
        /// Serial number, as `certs list` shows it.
        serial: String,
        /// unspecified, key-compromise, superseded, cessation-of-operation or privilege-withdrawn.
        #[arg(long, default_value = "unspecified", value_parser = Reason::parse)]
        reason: Reason,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the plant's authority, or make or import it.
    Ca {
        /// Make a new authority with this name.
        #[arg(long, value_name = "NAME", conflicts_with = "import")]
        create: Option<String>,
        /// Import an authority: PEM chain, the authority's own certificate first.
        #[arg(long, value_name = "CHAIN", requires = "key")]
        import: Option<PathBuf>,
        /// Its private key (PKCS#8 PEM).
        #[arg(long, value_name = "KEY", requires = "import")]
        key: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Subject {
    /// For this device.
    #[arg(long)]
    device: Option<DeviceId>,
    /// For this user.
    #[arg(long)]
    user: Option<String>,
    /// For this listener of the gateway.
    #[arg(long)]
    listener: Option<String>,
}

fn other(error: impl std::fmt::Display) -> CliError {
    CliError::Other(error.to_string())
}

/// Does what was asked, for the gateway with the configuration at `path`; `host` is its own host name. A configuration
/// with mistakes still says where the data is: what was issued can be seen and taken back all the same.
pub fn execute(path: &Path, host: &str, command: CertsCommand) -> Result<(), CliError> {
    let config = match config::load(path) {
        Ok(loaded) => pki_config(&loaded.gateway),
        Err(_) => PkiConfig::new(&pki_directory(&config::find_data_dir(path)?)),
    };
    let text = run(config, host, command, SystemClock::shared(), ask)?;
    print!("{text}");
    Ok(())
}

/// Asks a person; anything but `yes` means no.
fn ask(question: &str) -> bool {
    eprint!("{question} Type \"yes\" to go on: ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && answer.trim() == "yes"
}

/// Does what was asked in the directory of the authority, and returns what to print.
fn run(
    config: PkiConfig,
    host: &str,
    command: CertsCommand,
    clock: SharedClock,
    confirm: impl Fn(&str) -> bool,
) -> Result<String, CliError> {
    let open = || Pki::open(config.clone(), clock.clone()).map_err(other);
    match command {
        CertsCommand::List { all, json } => Ok(list(&open()?, all, json)),
        CertsCommand::Issue { subject: Subject { listener: Some(listener), .. }, names, json, .. } => {
            let names =
                names.iter().try_fold(ServerNames::of_host(host).map_err(other)?, |all, name| all.with_name(name));
            let mut pki = open()?;
            let identity = pki.issue_server(&checked_slot(&listener)?, &names.map_err(other)?).map_err(other)?;
            let entry = pki.book().entry(&identity.serial).cloned();
            Ok(entry.map(|entry| told(&pki, "issued", &entry, json)).unwrap_or_default())
        }
        CertsCommand::Issue { subject, request, out, json, .. } => {
            let out = out.ok_or_else(|| CliError::Other("say with --out where the certificate shall go".to_owned()))?;
            let subject = client(subject)?;
            let request = request.map(|path| read(&path)).transpose()?;
            let request = request.map(|pem| CertificateRequest::from_pem(&pem)).transpose().map_err(other)?;
            let mut pki = open()?;
            vacant(&out)?;
            let issued = match &request {
                Some(request) => pki.sign_request(&subject, request),
                None => pki.issue_client(&subject),
            };
            let issued = issued.map_err(other)?;
            hand_out(&pki, &out, &issued)?;
            Ok(told(&pki, "issued", &issued.entry, json))
        }
        CertsCommand::Renew { serial, out, json } => {
            let mut pki = open()?;
            let serial = Serial::parse(&serial).map_err(CliError::Other)?;
            let is_client = pki.book().entry(&serial).is_some_and(|entry| entry.purpose.as_str() != "server");
            match (&out, is_client) {
                (None, true) => {
                    return Err(CliError::Other("say with --out where certificate and key shall go".to_owned()));
                }
                (Some(out), true) => vacant(out)?,
                _ => {}
            }
            let issued = pki.renew(&serial).map_err(other)?;
            if let (Some(out), true) = (&out, is_client) {
                hand_out(&pki, out, &issued)?;
            }
            Ok(told(&pki, "renewed", &issued.entry, json))
        }
        CertsCommand::Revoke { serial, reason, yes, json } => {
            let mut pki = open()?;
            let serial = Serial::parse(&serial).map_err(CliError::Other)?;
            let entry = pki.book().entry(&serial).cloned();
            let whom =
                entry.as_ref().map_or_else(|| serial.to_string(), |entry| format!("{} ({serial})", entry.subject));
            if !yes && !confirm(&format!("Revoke the certificate of {whom}? This cannot be undone.")) {
                return Err(CliError::Other("nothing was revoked".to_owned()));
            }
            let crl = pki.revoke(&serial, reason).map_err(other)?;
            Ok(if json {
                format!("{}\n", serde_json::json!({ "revoked": serial, "reason": reason, "list": crl.number }))
            } else {
                format!("revoked {whom}; revocation list {} is in force\n", crl.number)
            })
        }
        CertsCommand::Ca { create: Some(name), json, .. } => {
            Ok(authority(&Pki::create(config, &name, clock).map_err(other)?, json))
        }
        CertsCommand::Ca { import: Some(chain), key: Some(key), json, .. } => {
            Ok(authority(&Pki::import(config, &read(&chain)?, &read(&key)?, clock).map_err(other)?, json))
        }
        CertsCommand::Ca { json, .. } => Ok(authority(&open()?, json)),
    }
}

fn client(subject: Subject) -> Result<ClientSubject, CliError> {
    match subject {
        Subject { device: Some(device), .. } => Ok(ClientSubject::Device(device)),
        Subject { user: Some(user), .. } => ClientSubject::user(&user).map_err(other),
        Subject { .. } => Err(CliError::Other("say for whom: --device, --user or --listener".to_owned())),
    }
}

/// A listener's name becomes a directory's.
fn checked_slot(name: &str) -> Result<String, CliError> {
    DeviceId::new(name).map(|id| id.to_string()).map_err(other)
}

fn read(path: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(|error| CliError::Other(format!("cannot read {}: {error}", path.display())))
}

/// Refuses a directory that already holds something of ours, before anything is issued.
fn vacant(out: &Path) -> Result<(), CliError> {
    match ["cert.pem", "key.pem"].iter().map(|name| out.join(name)).find(|path| path.exists()) {
        Some(path) => Err(CliError::Other(format!("{} exists; give an empty directory", path.display()))),
        None => Ok(()),
    }
}

fn hand_out(pki: &Pki, out: &Path, issued: &Issued) -> Result<(), CliError> {
    let disk = Disk::default();
    let failed = |error: std::io::Error| {
        let serial = &issued.entry.serial;
        CliError::Other(format!(
            "certificate {serial} was issued, but {} cannot be written: {error}; revoke it",
            out.display()
        ))
    };
    disk.create_directory(out, Access::Private).map_err(failed)?;
    if let Some(key) = &issued.key_pem {
        disk.replace(&out.join("key.pem"), key.expose().as_bytes(), Access::Private).map_err(failed)?;
    }
    disk.replace(&out.join("cert.pem"), issued.chain_pem.as_bytes(), Access::Public).map_err(failed)?;
    disk.replace(&out.join("ca.pem"), pki.authority().chain_pem().as_bytes(), Access::Public).map_err(failed)
}

fn told(pki: &Pki, act: &str, entry: &Entry, json: bool) -> String {
    if json {
        return format!("{}\n", row(pki, entry));
    }
    format!(
        "{act} {} for {} {}, valid until {}\n",
        entry.serial,
        entry.purpose.as_str(),
        entry.subject,
        day(entry.validity.not_after)
    )
}

fn row(pki: &Pki, entry: &Entry) -> serde_json::Value {
    serde_json::json!({
        "serial": entry.serial,
        "purpose": entry.purpose,
        "subject": entry.subject,
        "names": entry.names,
        "status": pki.status(entry),
        "alarm": alarm(entry.validity, pki.now().seconds),
        "not_before": time(entry.validity.not_before),
        "not_after": time(entry.validity.not_after),
        "key": entry.key,
    })
}

fn list(pki: &Pki, all: bool, json: bool) -> String {
    let mut entries: Vec<&Entry> =
        pki.book().entries().filter(|entry| all || pki.status(entry).as_str() == "valid").collect();
    entries.sort_by_key(|entry| (entry.purpose.as_str(), &entry.subject, std::cmp::Reverse(entry.validity.not_before)));
    if json {
        let rows: Vec<serde_json::Value> = entries.iter().map(|entry| row(pki, entry)).collect();
        return format!("{}\n", serde_json::Value::Array(rows));
    }
    let mut table = Table::new(["purpose", "subject", "status", "until", "life left", "serial"]);
    let now = pki.now().seconds;
    for entry in entries {
        let left = format!("{:.0} %", entry.validity.remaining(now) * 100.0);
        table.row([
            entry.purpose.as_str().to_owned(),
            entry.subject.clone(),
            pki.status(entry).as_str().to_owned(),
            day(entry.validity.not_after),
            left,
            entry.serial.to_string(),
        ]);
    }
    table.to_string()
}

fn authority(pki: &Pki, json: bool) -> String {
    let authority = pki.authority();
    let (subject, validity) = (authority.subject(), authority.validity());
    let list = pki.book().list().map(|(number, ..)| number);
    if json {
        let value = serde_json::json!({
            "subject": subject,
            "fingerprint": authority.fingerprint(),
            "not_before": time(validity.not_before),
            "not_after": time(validity.not_after),
            "issued": pki.book().entries().count(),
            "revoked": pki.book().revoked().count(),
            "list": list,
        });
        return format!("{value}\n");
    }
    format!(
        "{subject}\nSHA-256      {}\nvalid until  {}\nissued       {}\nrevoked      {} (list {})\n",
        authority.fingerprint(),
        day(validity.not_after),
        pki.book().entries().count(),
        pki.book().revoked().count(),
        list.unwrap_or(0),
    )
}

fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

fn day(seconds: i64) -> String {
    time(seconds).split('T').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::platform::clock::ManualClock;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: CertsCommand,
    }

    struct Bench {
        directory: tempfile::TempDir,
    }

    impl Bench {
        fn run(&self, line: &str) -> Result<String, CliError> {
            let out = self.directory.path().join("out");
            let words = line.split(' ').map(|word| word.replace("OUT", &out.display().to_string()));
            let line = Line::try_parse_from(std::iter::once("certs".to_owned()).chain(words)).map_err(other)?;
            let clock = ManualClock::at(1_790_000_000_000);
            run(PkiConfig::new(&self.directory.path().join("pki")), "gw-7", line.command, clock, |_| false)
        }
    }

    #[test]
    fn a_device_gets_its_certificate_and_loses_it() {
        let bench = Bench { directory: tempfile::tempdir().unwrap() };
        assert!(bench.run("ca").unwrap_err().to_string().contains("certs ca --create"), "says what to do");
        assert!(bench.run("ca --create Plant-7").unwrap().starts_with("CN=Plant-7\n"));
        assert!(bench.run("ca --create Plant-7").is_err(), "never overwritten");
        bench.run("issue --listener mqtt --name 10.0.0.7").unwrap();
        bench.run("issue --device pump-1 --out OUT").unwrap();
        assert!(bench.run("issue --device pump-1 --out OUT").unwrap_err().to_string().contains("exists"));
        for file in ["cert.pem", "key.pem", "ca.pem"] {
            assert!(bench.directory.path().join("out").join(file).exists(), "{file}");
        }
        let table = bench.run("list").unwrap();
        assert!(table.contains("device   pump-1") && table.contains("server   gw-7"), "{table}");
        let rows: serde_json::Value = serde_json::from_str(&bench.run("list --json").unwrap()).unwrap();
        let serial = rows[0]["serial"].as_str().unwrap();
        assert_eq!((rows[0]["subject"].as_str(), rows[0]["status"].as_str()), (Some("pump-1"), Some("valid")));
        assert!(bench.run(&format!("revoke {serial}")).unwrap_err().to_string().contains("nothing was revoked"));
        assert!(
            bench
                .run(&format!("revoke {serial} --yes --reason boredom"))
                .unwrap_err()
                .to_string()
                .contains("key-compromise")
        );
        bench.run(&format!("revoke {serial} --yes --reason key-compromise")).unwrap();
        assert!(!bench.run("list").unwrap().contains("pump-1"));
        assert!(bench.run("list --all").unwrap().contains("revoked"));
        let server = rows[1]["serial"].as_str().unwrap();
        assert!(bench.run(&format!("renew {server}")).unwrap().starts_with("renewed"));
        assert!(bench.run("issue --device pump-2 --user ann --out OUT").is_err(), "one subject");
    }
}
