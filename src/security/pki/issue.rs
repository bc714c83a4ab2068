//! The acts of the authority: issue, renew, revoke, list. Every act is durable before its result is handed out.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{ExtendedKeyUsagePurpose, KeyPair, PublicKeyData, SanType, SubjectPublicKeyInfo};
use rustls::pki_types::CertificateDer;

use super::authority::{Authority, Leaf};
use super::book::{Book, Revocation, Status};
use super::inventory::{Entry, Event, FileInventory, Inventory, Purpose, Reason, Serial};
use super::life::{BACKDATED, DAY, Reading, Validity, read_clock};
use super::request::{CertificateRequest, ClientSubject, ServerNames, key_fingerprint};
use super::revocation::{Crl, sign};
use super::swap::{ServerIdentity, Slot};
use super::verify::{Identity, VerifyError, verify_client};
use super::{PkiError, PrivateKeyPem, pem};
use crate::model::Stamp;
use crate::platform::clock::SharedClock;
use crate::platform::durable::{Access, Disk};

/// Reserve in the life of a certificate that was made while the clock was not set.
const PROVISIONAL_RESERVE: i64 = 10 * 365 * DAY;
/// How long another process may hold the directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Where and how long.
#[derive(Debug, Clone)]
pub struct PkiConfig {
    /// `<data>/pki`.
    pub directory: PathBuf,
    /// Life of server certificates, default one year.
    pub server_life: Duration,
    /// Life of certificates of devices and users, default one year.
    pub client_life: Duration,
    /// The disk; tests look over its shoulder.
    pub disk: Disk,
}

impl PkiConfig {
    /// The defaults below `directory`.
    pub fn new(directory: &Path) -> Self {
        let year = Duration::from_secs(365 * DAY.unsigned_abs());
        Self { directory: directory.to_owned(), server_life: year, client_life: year, disk: Disk::default() }
    }

    fn authority(&self) -> PathBuf {
        self.directory.join("ca")
    }
}

/// A certificate that was just issued.
#[derive(Debug, Clone)]
pub struct Issued {
    /// As it stands in the inventory.
    pub entry: Entry,
    /// The certificate first, then the authority and those above it that are no root.
    pub chain_pem: String,
    /// The key, when the gateway made it; given out this once.
    pub key_pem: Option<PrivateKeyPem>,
}

/// The authority with its inventory.
#[derive(Debug)]
pub struct Pki {
    config: PkiConfig,
    authority: Authority,
    inventory: Box<dyn Inventory>,
    book: Book,
    clock: SharedClock,
}

/// What a new leaf certificate is to be.
struct Order {
    purpose: Purpose,
    subject: String,
    names: Vec<String>,
    sans: Vec<SanType>,
    usage: ExtendedKeyUsagePurpose,
    life: Duration,
    made_key: bool,
    replaces: Option<Serial>,
}

impl Pki {
    /// Makes a new authority called `name` in an empty place, and its first, empty revocation list.
    ///
    /// # Errors
    /// When there is one already, or it cannot be written.
    pub fn create(config: PkiConfig, name: &str, clock: SharedClock) -> Result<Self, PkiError> {
        let (chain, key) = Authority::create(name, read_clock(clock.now(), 0))?;
        Self::begin(config, &chain, &key, clock)
    }

    /// Takes an authority that the plant brings along: its chain (itself first) and its PKCS#8 key, both PEM.
    ///
    /// # Errors
    /// When there is one already, or chain and key do not make an authority.
    pub fn import(config: PkiConfig, chain_pem: &str, key_pem: &str, clock: SharedClock) -> Result<Self, PkiError> {
        Authority::load(chain_pem, key_pem, read_clock(clock.now(), 0))?;
        Self::begin(config, chain_pem, &PrivateKeyPem::new(key_pem.to_owned()), clock)
    }

    fn begin(config: PkiConfig, chain: &str, key: &PrivateKeyPem, clock: SharedClock) -> Result<Self, PkiError> {
        let root = &config.directory;
        if Authority::exists(&config.authority()) {
            return Err(PkiError::Exists(config.authority()));
        }
        config.disk.create_directory(root, Access::Private).map_err(PkiError::io("create", root))?;
        Authority::save(&config.authority(), chain, key, &config.disk)?;
        Self::open(config, clock)
    }

    /// Opens what [`Pki::create`] or [`Pki::import`] made, and brings its revocation list up to date.
    ///
    /// # Errors
    /// When there is none, it has ended, its key can be read by others, or the inventory cannot be read.
    pub fn open(config: PkiConfig, clock: SharedClock) -> Result<Self, PkiError> {
        let inventory = FileInventory::new(&config.directory.join("inventory.jsonl"), config.disk.clone());
        Self::open_with(config, Box::new(inventory), clock)
    }

    /// As [`Pki::open`], with the inventory somewhere else.
    ///
    /// # Errors
    /// As [`Pki::open`].
    pub fn open_with(config: PkiConfig, inventory: Box<dyn Inventory>, clock: SharedClock) -> Result<Self, PkiError> {
        let authority = Authority::open(&config.authority(), read_clock(clock.now(), 0))?;
        let mut pki = Self { config, authority, inventory, book: Book::default(), clock };
        pki.transaction(|pki| {
            for directory in [pki.config.directory.clone(), pki.config.authority()] {
                pki.config.disk.remove_unfinished(&directory).map_err(PkiError::io("tidy", &directory))?;
            }
            pki.merge_list_on_disk()?;
            pki.compact()?;
            pki.refresh_list_locked().map(|_| ())
        })?;
        Ok(pki)
    }

    /// Whether `directory` (`<data>/pki`) has an authority.
    pub fn exists(directory: &Path) -> bool {
        Authority::exists(&directory.join("ca"))
    }

    /// The authority.
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Everything issued and revoked, as of the last act or [`Pki::refresh`].
    pub const fn book(&self) -> &Book {
        &self.book
    }

    /// The clock as the authority believes it.
    pub fn now(&self) -> Reading {
        self.reading(self.clock.now())
    }

    pub(super) fn reading(&self, now: Stamp) -> Reading {
        read_clock(now, self.book.floor())
    }

    /// Standing of a certificate now.
    pub fn status(&self, entry: &Entry) -> Status {
        self.book.status(entry, self.now().seconds)
    }

    /// Takes in what other processes added.
    ///
    /// # Errors
    /// When the inventory cannot be read.
    pub fn refresh(&mut self) -> Result<(), PkiError> {
        let changes = self.inventory.changes()?;
        if changes.damaged > 0 {
            let path = self.config.directory.join("inventory.jsonl");
            tracing::error!(lines = changes.damaged, path = %path.display(),
                "damaged lines in the certificate inventory were skipped: certificates they named cannot be listed or renewed");
        }
        if changes.restarted {
            self.book = Book::default();
        }
        changes.events.into_iter().for_each(|event| self.book.apply(event));
        Ok(())
    }

    /// Issues a listener's certificate and puts it in its place (`server/<slot>/current`).
    ///
    /// # Errors
    /// When it cannot be signed or written.
    pub fn issue_server(&mut self, slot: &str, names: &ServerNames) -> Result<ServerIdentity, PkiError> {
        self.transaction(|pki| {
            let replaces = pki.server(slot).ok().flatten().map(|current| current.serial);
            pki.issue_server_locked(slot, names, replaces)
        })
    }

    fn issue_server_locked(
        &mut self,
        slot: &str,
        names: &ServerNames,
        replaces: Option<Serial>,
    ) -> Result<ServerIdentity, PkiError> {
        let key = KeyPair::generate().map_err(PkiError::sign("a server certificate"))?;
        let order = Order {
            purpose: Purpose::Server,
            subject: names.host().to_owned(),
            names: names.to_texts(),
            sans: names.sans()?,
            usage: ExtendedKeyUsagePurpose::ServerAuth,
            life: self.config.server_life,
            made_key: true,
            replaces,
        };
        let issued = self.sign_and_record(order, &key)?;
        let key = PrivateKeyPem::new(key.serialize_pem());
        self.slot(slot).store(&issued.entry.serial, &issued.chain_pem, &key)?;
        ServerIdentity::from_pem(&issued.chain_pem, key.expose())
    }

    /// The certificate that a listener uses now.
    ///
    /// # Errors
    /// When it is there but cannot be used.
    pub fn server(&self, slot: &str) -> Result<Option<ServerIdentity>, PkiError> {
        self.slot(slot).load()
    }

    /// Renews a listener's certificate with its old names, or with `names`; also when nothing is there yet.
    ///
    /// # Errors
    /// As [`Pki::issue_server`].
    pub fn renew_server(&mut self, slot: &str, names: &ServerNames) -> Result<ServerIdentity, PkiError> {
        self.issue_server(slot, names)
    }

    fn slot(&self, slot: &str) -> Slot {
        Slot::new(self.config.directory.join("server").join(slot), self.config.disk.clone())
    }

    /// Issues a certificate with a new key for a device or user.
    ///
    /// # Errors
    /// When the clock is not set, or it cannot be signed or recorded.
    pub fn issue_client(&mut self, subject: &ClientSubject) -> Result<Issued, PkiError> {
        self.transaction(|pki| pki.issue_client_locked(subject, None))
    }

    fn issue_client_locked(&mut self, subject: &ClientSubject, replaces: Option<Serial>) -> Result<Issued, PkiError> {
        let key = KeyPair::generate().map_err(PkiError::sign("a client certificate"))?;
        let order = self.client_order(subject, true, replaces)?;
        let issued = self.sign_and_record(order, &key)?;
        Ok(Issued { key_pem: Some(PrivateKeyPem::new(key.serialize_pem())), ..issued })
    }

    /// Signs the request of a device or user that keeps its own key. The names are `subject`'s, whatever the request says.
    ///
    /// # Errors
    /// When the clock is not set, or it cannot be signed or recorded.
    pub fn sign_request(&mut self, subject: &ClientSubject, request: &CertificateRequest) -> Result<Issued, PkiError> {
        let key = SubjectPublicKeyInfo::from_der(&request.public_key)
            .map_err(|error| PkiError::invalid("certificate request", error))?;
        self.transaction(|pki| {
            let newest = pki.newest(subject).map(|entry| entry.serial.clone());
            let order = pki.client_order(subject, false, newest)?;
            pki.sign_and_record(order, &key)
        })
    }

    /// The newest certificate of a device or user that is neither revoked nor replaced.
    pub fn newest(&self, subject: &ClientSubject) -> Option<&Entry> {
        let is_last = |entry: &&Entry| !self.book.is_replaced(&entry.serial);
        self.standing(subject).filter(is_last).max_by_key(|entry| entry.validity.not_before)
    }

    /// All certificates of a device or user that are not revoked; those that were replaced are good until their end.
    pub fn standing(&self, subject: &ClientSubject) -> impl Iterator<Item = &Entry> {
        let is_its = |entry: &&Entry| entry.purpose == subject.purpose() && entry.subject == subject.name();
        self.book.entries().filter(is_its).filter(|entry| !self.book.is_revoked(&entry.serial))
    }

    fn client_order(
        &self,
        subject: &ClientSubject,
        made_key: bool,
        replaces: Option<Serial>,
    ) -> Result<Order, PkiError> {
        if !self.now().firm {
            return Err(PkiError::ClockNotSet);
        }
        let uri = subject.uri();
        let san = uri.as_str().try_into().map_err(|error: rcgen::Error| PkiError::invalid("name", error))?;
        Ok(Order {
            purpose: subject.purpose(),
            subject: subject.name().to_owned(),
            names: vec![uri],
            sans: vec![SanType::URI(san)],
            usage: ExtendedKeyUsagePurpose::ClientAuth,
            life: self.config.client_life,
            made_key,
            replaces,
        })
    }

    /// Renews one certificate: same names, new key. One whose key the device keeps needs a new request.
    ///
    /// # Errors
    /// When it is unknown, revoked, or belongs to a key that the device keeps.
    pub fn renew(&mut self, serial: &Serial) -> Result<Issued, PkiError> {
        self.transaction(|pki| {
            let entry = pki.book.entry(serial).cloned().ok_or_else(|| PkiError::Unknown(serial.to_string()))?;
            if pki.book.is_revoked(serial) {
                return Err(PkiError::Revoked(serial.to_string()));
            }
            let subject = entry.names.iter().find_map(|name| ClientSubject::from_uri(name));
            match subject {
                _ if !entry.made_key => Err(PkiError::NeedsRequest(serial.to_string())),
                Some(subject) => pki.issue_client_locked(&subject, Some(serial.clone())),
                None => {
                    let names = ServerNames::of_entry(&entry.subject, &entry.names)?;
                    let slot = pki.slot_of(serial).unwrap_or_else(|| entry.subject.clone());
                    let identity = pki.issue_server_locked(&slot, &names, Some(serial.clone()))?;
                    let entry = pki.book.entry(&identity.serial).cloned();
                    let entry = entry.ok_or_else(|| PkiError::Unknown(identity.serial.to_string()))?;
                    Ok(Issued { entry, chain_pem: pem::encode_chain(&identity.chain), key_pem: None })
                }
            }
        })
    }

    /// The listener whose `current` certificate has this serial.
    fn slot_of(&self, serial: &Serial) -> Option<String> {
        let slots = std::fs::read_dir(self.config.directory.join("server")).ok()?;
        let names = slots.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.into_iter().find(|slot| self.server(slot).ok().flatten().is_some_and(|current| current.serial == *serial))
    }

    /// Takes a certificate back, and publishes the new revocation list. Doing it twice changes nothing.
    ///
    /// # Errors
    /// When it is unknown here, or that could not be made durable.
    pub fn revoke(&mut self, serial: &Serial, reason: Reason) -> Result<Crl, PkiError> {
        self.transaction(|pki| {
            let entry = pki.book.entry(serial).ok_or_else(|| PkiError::Unknown(serial.to_string()))?;
            let not_after = Some(entry.validity.not_after);
            if !pki.book.is_revoked(serial) {
                let at = pki.now().seconds;
                pki.record(Event::Revoked { serial: serial.clone(), at, reason, not_after })?;
            }
            pki.publish_list()
        })
    }

    /// The revocation list in force.
    ///
    /// # Errors
    /// When it cannot be read and not be made anew.
    pub fn list(&mut self) -> Result<Crl, PkiError> {
        match self.list_on_disk() {
            Some(list) if self.book.list().is_none_or(|(number, ..)| list.number >= number) => Ok(list),
            _ => self.transaction(Self::publish_list),
        }
    }

    /// Publishes a new revocation list if the one in force has passed half of its life. Returns it if so.
    ///
    /// # Errors
    /// When it cannot be signed or written.
    pub fn refresh_list(&mut self) -> Result<Option<Crl>, PkiError> {
        self.transaction(Self::refresh_list_locked)
    }

    fn refresh_list_locked(&mut self) -> Result<Option<Crl>, PkiError> {
        let now = self.now();
        let fresh = self.book.list().is_some_and(|(number, at, next_update)| {
            let half = at + (next_update - at) / 2;
            // `at` in the future: made by a clock that was ahead, and refused by clocks that are right.
            let in_time = !now.firm || (now.seconds < half && at <= now.seconds + DAY);
            in_time && self.list_on_disk().is_some_and(|list| list.number == number)
        });
        if fresh { Ok(None) } else { self.publish_list().map(Some) }
    }

    /// The number is durable before the list is published, so that no two lists share one.
    fn publish_list(&mut self) -> Result<Crl, PkiError> {
        let (now, number) = (self.clock.now(), self.book.list().map_or(1, |(number, ..)| number + 1));
        let list = sign(&self.authority, &self.book, number, self.reading(now).seconds)?;
        let trusted_clock = now.trust == crate::model::ClockTrust::Synchronised;
        let at = self.reading(now).seconds;
        self.record(Event::List { number, at, next_update: list.next_update, trusted_clock })?;
        let path = self.config.directory.join("crl.pem");
        let written = self.config.disk.replace(&path, list.to_pem().as_bytes(), Access::Public);
        written.map_err(PkiError::io("write", &path))?;
        Ok(list)
    }

    fn list_on_disk(&self) -> Option<Crl> {
        Crl::from_pem(&pem::read(&self.config.directory.join("crl.pem")).ok()?)
    }

    /// What the list on disk names and the inventory does not know was lost by damage: it stays revoked.
    fn merge_list_on_disk(&mut self) -> Result<(), PkiError> {
        let Some(list) = self.list_on_disk() else { return Ok(()) };
        for (serial, Revocation { at, reason, .. }) in list.revoked() {
            if !self.book.is_revoked(&serial) {
                tracing::warn!(%serial, "revocation found in the published list but not in the inventory; it stays revoked");
                let not_after = self.book.entry(&serial).map(|entry| entry.validity.not_after);
                self.record(Event::Revoked { serial, at, reason, not_after })?;
            }
        }
        if self.book.list().is_none_or(|(number, ..)| number < list.number) {
            let at = list.next_update - super::revocation::LIST_LIFE;
            let event = Event::List { number: list.number, at, next_update: list.next_update, trusted_clock: false };
            self.record(event)?;
        }
        Ok(())
    }

    /// Who a presented chain is.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<Identity, VerifyError> {
        let list = self.list_on_disk().map(|list| list.der);
        let identity = verify_client(chain, self.authority.certificate(), list.as_ref(), self.now().seconds)?;
        match self.book.is_revoked(&identity.serial) {
            true => Err(VerifyError::Revoked),
            false => Ok(identity),
        }
    }

    fn sign_and_record(&mut self, order: Order, key: &impl PublicKeyData) -> Result<Issued, PkiError> {
        let (stamp, now) = (self.clock.now(), self.now());
        let validity = self.validity_from(now, order.life)?;
        let serial = Serial::random();
        let leaf =
            Leaf { serial: &serial, common_name: &order.subject, sans: order.sans, usage: order.usage, validity };
        let certificate = self.authority.sign(leaf, key)?;
        let entry = Entry {
            serial,
            purpose: order.purpose,
            subject: order.subject,
            names: order.names,
            validity,
            key: key_fingerprint(&key.subject_public_key_info()),
            made_key: order.made_key,
            issued: now.seconds,
            trusted_clock: stamp.trust == crate::model::ClockTrust::Synchronised,
            provisional: !now.firm,
            replaces: order.replaces,
        };
        self.record(Event::Issued(entry.clone()))?;
        self.keep(&entry.serial, &certificate)?;
        let mut chain = vec![certificate];
        chain.extend(self.authority.chain().iter().cloned());
        Ok(Issued { entry, chain_pem: pem::encode_chain(&chain), key_pem: None })
    }

    fn validity_from(&self, now: Reading, life: Duration) -> Result<Validity, PkiError> {
        let reserve = if now.firm { 0 } else { PROVISIONAL_RESERVE };
        let authority = self.authority.validity();
        let not_before = (now.seconds - BACKDATED).max(authority.not_before);
        let end = now.seconds.saturating_add_unsigned(life.as_secs()) + reserve;
        let not_after = end.min(authority.not_after);
        if not_after <= now.seconds { Err(PkiError::AuthorityExpired) } else { Ok(Validity { not_before, not_after }) }
    }

    /// Keeps a copy, so that what is out there can be looked at later.
    fn keep(&self, serial: &Serial, certificate: &CertificateDer<'_>) -> Result<(), PkiError> {
        let directory = self.config.directory.join("issued");
        self.config.disk.create_directory(&directory, Access::Private).map_err(PkiError::io("create", &directory))?;
        let path = directory.join(format!("{serial}.pem"));
        let text = pem::encode("CERTIFICATE", certificate);
        self.config.disk.replace(&path, text.as_bytes(), Access::Public).map_err(PkiError::io("write", &path))
    }

    fn record(&mut self, event: Event) -> Result<(), PkiError> {
        self.inventory.append(&event)?;
        self.book.apply(event);
        Ok(())
    }

    fn compact(&mut self) -> Result<(), PkiError> {
        let now = self.now();
        let (kept, worth_it) = self.book.compacted(now.seconds);
        if now.firm && worth_it {
            let before: Vec<Serial> = self.book.entries().map(|entry| entry.serial.clone()).collect();
            self.inventory.rewrite(&kept)?;
            self.refresh()?;
            for forgotten in before.iter().filter(|serial| self.book.entry(serial).is_none()) {
                let path = self.config.directory.join("issued").join(format!("{forgotten}.pem"));
                self.config.disk.remove(&path).map_err(PkiError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Runs `act` alone: the lock keeps the CLI and the running gateway apart, and what the other one did is taken in.
    fn transaction<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, PkiError>) -> Result<T, PkiError> {
        let _lock = lock(&self.config.directory.join("lock"))?;
        self.refresh()?;
        act(self)
    }
}

/// Takes the lock file; it is given back when the returned file is closed.
fn lock(path: &Path) -> Result<File, PkiError> {
    let disk = Disk::default();
    let file = disk.open_append(path, Access::Private).map_err(PkiError::io("open", path))?;
    let patience = std::time::Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if std::time::Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(PkiError::Busy(path.to_owned())),
            Err(error) => return Err(PkiError::io("lock", path)(error.into())),
        }
    }
}
