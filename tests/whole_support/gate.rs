//! One gateway of a story: killed at any moment, started again, and asked until it answers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Site, body, errors, said, shim, stop, tail};
use crate::support::{Child, SOON, Subscriber, eventually, publish};

/// A request without an answer is sent again after this time, with the same correlation id.
const AGAIN: Duration = Duration::from_secs(4);
/// Longest wait for anything in a story: kills and starts come in between.
const LONG: Duration = Duration::from_secs(90);

/// A gateway with its site and one observer of its answers; a handle for those who kill it.
pub struct Gate {
    inner: Arc<Inner>,
    answers: Option<Subscriber>,
}

struct Inner {
    name: String,
    site: Site,
    library: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Gate {
    /// A gateway that does not run yet.
    pub fn new(name: &str) -> Self {
        let site = Site::new("");
        let library = shim::build(site.path());
        let inner = Inner { name: name.to_owned(), site, library, child: Mutex::new(None) };
        Self { inner: Arc::new(inner), answers: None }
    }

    /// The same gateway without the observer.
    pub fn handle(&self) -> Self {
        Self { inner: self.inner.clone(), answers: None }
    }

    /// Its id on topics.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its files.
    pub fn site(&self) -> &Site {
        &self.inner.site
    }

    /// Starts it, and an observer that stays.
    pub fn start(&mut self) {
        *self.inner.child.lock().unwrap() = Some(self.spawn());
        let device = ["config", "command", "firmware"].map(|kind| format!("devices/+/{kind}/result"));
        let further = [&["management/result".to_owned()], &device[..]].concat();
        let topics: Vec<String> = further.iter().flat_map(|t| ["-t".to_owned(), self.topic(t)]).collect();
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let first = self.topic("devices/+/onboarding/result");
        self.answers = Some(Subscriber::start(self.inner.site.port(), &first, &topics));
    }

    /// As a power cut would, and up again.
    pub fn kill(&self) {
        let mut child = self.inner.child.lock().unwrap();
        if let Some(mut killed) = child.take() {
            killed.signal(Signal::KILL);
            killed.wait(SOON);
        }
        *child = Some(self.spawn());
    }

    /// Stops it in order and starts it once more, so that everything shown comes from what was kept.
    pub fn restart(&self) {
        let mut child = self.inner.child.lock().unwrap();
        stop(child.take().expect("it runs"));
        *child = Some(self.spawn());
    }

    /// Ends it in order.
    pub fn stop(&self) {
        stop(self.inner.child.lock().unwrap().take().expect("it runs"));
    }

    /// While nobody listens, any client on this machine may be given the broker's port for its own end of a connection:
    /// then the start is tried again, as a service manager does.
    fn spawn(&self) -> Child {
        let began = Instant::now();
        loop {
            let mut command = self.inner.site.command(&["run"]);
            command.env("LD_PRELOAD", &self.inner.library);
            let mut child = Child::spawn("fieldgate", command);
            let told = |line: &str| line.contains("gateway started") || line.contains("the gateway ends");
            let line = child.wait_for("whether it started", SOON, told);
            if line.contains("gateway started") {
                return child;
            }
            assert!(line.contains("Address already in use") && began.elapsed() < LONG, "{line}");
            child.wait(SOON);
        }
    }

    /// The last lines of its log.
    fn said(&self) -> String {
        self.inner.child.lock().unwrap().as_ref().map(tail).unwrap_or_default()
    }

    /// A topic below its root.
    pub fn topic(&self, rest: &str) -> String {
        format!("fieldgate/v1/{}/{rest}", self.inner.name)
    }

    /// Publishes until the gateway has it.
    pub fn publish(&self, rest: &str, payload: &str, more: &[&str]) {
        eventually(&format!("{} to take a message on {rest}", self.inner.name), LONG, || {
            publish(self.inner.site.port(), &self.topic(rest), payload, more).ok()
        });
    }

    /// Every answer with this correlation id that the observer saw.
    pub fn answers(&self, id: &str) -> Vec<Value> {
        let all = self.all_answers();
        all.into_iter().filter(|answer| said(answer, "correlationId") == id).collect()
    }

    /// Every answer that the observer saw.
    pub fn all_answers(&self) -> Vec<Value> {
        let observer = self.answers.as_ref().expect("it was started");
        observer.messages().iter().map(|message| body(&message.payload)).collect()
    }

    /// Asks, and asks again with the same correlation id, until an answer comes.
    pub fn ask(&self, rest: &str, request: &Value) -> Value {
        let id = said(request, "correlationId").to_owned();
        let more: &[&str] = if rest.ends_with("/desired") { &["-r"] } else { &[] };
        let began = Instant::now();
        loop {
            self.publish(rest, &request.to_string(), more);
            let sent = Instant::now();
            while sent.elapsed() < AGAIN {
                if let Some(answer) = self.answers(&id).pop() {
                    return answer;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(began.elapsed() < LONG, "{}: no answer to {request}", self.inner.name);
        }
    }

    /// As [`Gate::ask`], for what must be done.
    pub fn done(&self, rest: &str, request: &Value) -> Value {
        let answer = self.ask(rest, request);
        assert_eq!(said(&answer, "outcome"), "DONE", "{}: {request} was answered {answer}", self.inner.name);
        answer
    }

    /// The JSON of a command at the command line; `None` while the gateway does not answer.
    pub fn cli(&self, arguments: &[&str]) -> Option<Value> {
        let output = self.inner.site.run(arguments);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// Waits until the registry shows a device in a state.
    pub fn until_life(&self, device: &str, state: &str) {
        let mut last = String::new();
        let began = Instant::now();
        loop {
            if let Some(all) = self.cli(&["devices", "--json"]) {
                let found = all.as_array().unwrap().iter().find(|line| line["device"] == device).cloned();
                last = found.as_ref().map_or_else(String::new, |line| said(line, "life").to_owned());
                if last == state {
                    return;
                }
            }
            assert!(began.elapsed() < LONG, "{}: waited in vain for {device} {state}; it is {last}", self.inner.name);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Hands a device over to another gateway: export, import, receipt, release.
    pub fn hands_over(&self, device: &str, to: &Self) {
        let named = |step: &str| format!("{step}-{device}");
        let import = |step: &str, from: &Value| json!({"correlationId": named(step), "action": "import", "document": from["document"]});
        let export =
            json!({"correlationId": named("export"), "action": "export", "device": device, "gateway": to.name()});
        let offer = self.done("management/request", &export);
        self.until_life(device, "transferring");
        let receipt = to.done("management/request", &import("import", &offer));
        to.until_life(device, "receiving");
        let release = self.done("management/request", &import("receipt", &receipt));
        self.until_life(device, "transferred");
        to.done("management/request", &import("release", &release));
        to.until_life(device, "active");
    }

    /// Waits until a device's configuration is as `fits` says.
    pub fn until_config(&self, device: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.until(what, &["config", "show", device, "--json"], fits)
    }

    /// Waits until what a command prints is as `fits` says.
    pub fn until(&self, what: &str, arguments: &[&str], fits: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let began = Instant::now();
        loop {
            if let Some(now) = self.cli(arguments) {
                if fits(&now) {
                    return now;
                }
                last = now;
            }
            assert!(began.elapsed() < LONG, "{}: waited in vain for {what}: {last}\n{}", self.inner.name, self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Every retained message below its root, by topic; taken when a message of our own has come through behind them.
    pub fn retained(&self) -> BTreeMap<String, Value> {
        let subscriber = self.inner.site.subscribe_root(&self.inner.name);
        let marker = self.topic("test/marker");
        publish(self.inner.site.port(), &marker, "{}", &[]).expect("it runs");
        subscriber.wait_for("the marker", SOON, |message| message.topic == marker);
        let prefix = self.topic("");
        let kept = subscriber.messages().into_iter().filter(|m| m.retain && !m.payload.is_empty());
        kept.map(|m| (m.topic.strip_prefix(&prefix).unwrap_or_default().to_owned(), body(&m.payload))).collect()
    }

    /// The audit log, oldest first.
    pub fn audit(&self) -> Vec<Value> {
        let output = self.inner.site.run(&["audit", "--json", "--last", "1000000"]);
        assert!(output.status.success(), "{}", errors(&output));
        serde_json::from_slice::<Vec<Value>>(&output.stdout).expect("JSON")
    }
}
