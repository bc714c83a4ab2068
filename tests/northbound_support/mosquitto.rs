//! A real mosquitto on a port of its own, and a client that looks at what arrives there.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, Publish, QoS};
use tokio::sync::mpsc;

/// A running broker. Killed when dropped.
pub struct Mosquitto {
    pub port: u16,
    dir: tempfile::TempDir,
    child: Option<Child>,
}

#[allow(dead_code)]
impl Mosquitto {
    /// Starts with these configuration lines; `{dir}` stands for its own directory. Files are (name, content).
    pub fn start(lines: &str, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = dir.path().display();
        let lines = lines.replace("{dir}", &path.to_string());
        let config = format!(
            "user root\nlistener {port} 127.0.0.1\nmax_queued_messages 0\nmax_inflight_messages 0\npersistence_location {path}/\nlog_dest stderr\nlog_type error\nlog_type warning\nlog_type notice\nlog_type information\n{lines}\n"
        );
        std::fs::File::create(dir.path().join("m.conf")).unwrap().write_all(config.as_bytes()).unwrap();
        let mut broker = Self { port, dir, child: None };
        broker.restart();
        broker
    }

    /// Open to everybody, sessions kept on disk at a regular end.
    pub fn open() -> Self {
        Self::start("allow_anonymous true\npersistence true", &[])
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Starts it (again); waits until it says that it runs.
    pub fn restart(&mut self) {
        let mut child = Command::new("mosquitto")
            .arg("-c")
            .arg(self.dir.path().join("m.conf"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("mosquitto must be installed for these tests (apt-get install mosquitto)");
        let stderr = child.stderr.take().unwrap();
        let (up, running) = sync_channel(1);
        std::thread::spawn(move || {
            let mut said = String::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.ends_with(" running") {
                    let _ = up.send(Ok(()));
                }
                if said.len() < 4000 {
                    said.push_str(&line);
                    said.push('\n');
                }
            }
            let _ = up.try_send(Err(said));
        });
        running.recv_timeout(Duration::from_secs(20)).expect("mosquitto starts in time").expect("mosquitto runs");
        self.child = Some(child);
    }

    /// A regular end: mosquitto writes its database.
    pub fn terminate(&mut self) {
        let mut child = self.child.take().unwrap();
        let id = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap();
    }

    /// Pulls the plug.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A client with a persistent session that reports everything under a filter and can publish.
pub struct Observer {
    pub messages: mpsc::Receiver<Publish>,
    pub client: AsyncClient,
    task: tokio::task::JoinHandle<()>,
}

#[allow(dead_code)]
impl Observer {
    /// Subscribes with QoS 1 and returns when the broker has confirmed it.
    pub async fn start(port: u16, filter: &str) -> Self {
        Self::with_credentials(port, filter, None).await
    }

    pub async fn with_credentials(port: u16, filter: &str, login: Option<(&str, &str)>) -> Self {
        let mut options = MqttOptions::new("observer", "127.0.0.1", port);
        options.set_clean_session(false).set_keep_alive(Duration::from_secs(5)).set_max_packet_size(1 << 22, 1 << 22);
        if let Some((user, password)) = login {
            options.set_credentials(user, password);
        }
        let (client, mut events) = AsyncClient::new(options, 100);
        client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        let (out, messages) = mpsc::channel(100_000);
        let (subscribed, ready) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut subscribed = Some(subscribed);
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        if out.send(publish).await.is_err() {
                            return;
                        }
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => {
                        if let Some(subscribed) = subscribed.take() {
                            let _ = subscribed.send(());
                        }
                    }
                    Ok(_) => {}
                    // The broker is being restarted.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        tokio::time::timeout(Duration::from_secs(10), ready).await.expect("subscribed in time").unwrap();
        Self { messages, client, task }
    }

    /// The next message on a topic that ends like this.
    pub async fn next_on(&mut self, end: &str) -> Publish {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(30), self.messages.recv())
                .await
                .unwrap_or_else(|_| panic!("no message on {end} in time"))
                .expect("the observer runs");
            if message.topic.ends_with(end) {
                return message;
            }
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
