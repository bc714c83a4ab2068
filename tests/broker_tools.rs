//! The embedded broker with mosquitto's command line tools.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fieldgate::broker::{Config, EmbeddedBroker, LocalBroker, MemoryRetained, Publication, Qos, Retain};
use fieldgate::platform::clock::SystemClock;

async fn broker() -> (EmbeddedBroker, String) {
    let broker =
        EmbeddedBroker::start(Config::loopback(0), MemoryRetained::default(), SystemClock::shared()).await.unwrap();
    let port = broker.addresses()[0].port().to_string();
    (broker, port)
}

async fn tool(name: &'static str, args: Vec<String>) -> String {
    tokio::task::spawn_blocking(move || {
        let out = Command::new(name)
            .args(args)
            .stderr(Stdio::inherit())
            .output()
            .unwrap_or_else(|e| panic!("{name} cannot be run ({e}); install Debian's mosquitto-clients"));
        assert!(out.status.success(), "{name}: {:?}", out.status);
        String::from_utf8(out.stdout).unwrap()
    })
    .await
    .unwrap()
}

fn args(port: &str, text: &str) -> Vec<String> {
    ["-h", "127.0.0.1", "-p", port].into_iter().chain(text.split(' ')).map(str::to_owned).collect()
}

fn own(topic: &str, payload: &str, retain: Retain) -> Publication {
    let payload = Bytes::copy_from_slice(payload.as_bytes());
    Publication { topic: topic.into(), payload, qos: Qos::AtLeastOnce, retain }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retained_messages_reach_the_tools_in_both_versions() {
    let (broker, port) = broker().await;
    let all = (0..1000).map(|i| own(&format!("plant/{i}"), "1", Retain::Persisted)).collect();
    broker.publish(all).await.unwrap();
    for version in ["311", "5"] {
        let out =
            tool("mosquitto_sub", args(&port, &format!("-V {version} -t plant/# -C 1000 -W 10 -q 1 -F %r%p"))).await;
        assert_eq!(out.lines().filter(|line| *line == "11").count(), 1000);
    }
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tools_message_reaches_a_local_receiver_and_ours_reach_a_tool() {
    let (broker, port) = broker().await;
    let mut inbound = broker.subscribe(vec!["cmd/+".into()]).unwrap();
    for (version, qos) in [("311", 0), ("311", 1), ("311", 2), ("5", 0), ("5", 1), ("5", 2)] {
        tool("mosquitto_pub", args(&port, &format!("-V {version} -q {qos} -t cmd/x -m {version}-{qos} -i a/b"))).await;
        let got = tokio::time::timeout(Duration::from_secs(5), inbound.recv()).await.unwrap().unwrap();
        assert_eq!(got.payload, format!("{version}-{qos}").as_bytes());
        assert_eq!(got.client.client_id, Arc::from("a/b"));
    }
    broker.shutdown().await;
}
