//! Compose deployments through the whole program on a real container engine; [`margo_compose`](margo_compose.rs) has the same on a
//! simulated one. It is not run with the others, since it needs an engine (`… --test margo_compose_engine -- --ignored`):
//!
//! - `FIELDGATE_ENGINE`: where the engine listens, such as `unix:///var/run/docker.sock`, or `tcp://localhost:2376` with the files
//!   `ca.pem`, `cert.pem` and `key.pem` in the directory `FIELDGATE_ENGINE_TLS`;
//! - `FIELDGATE_COMPOSE`: the compose program, `docker compose` by default;
//! - `FIELDGATE_IMAGE`: an image with `/bin/sh` and `sleep`, `busybox` by default.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod margo_support;
mod support;
mod whole_support;

use std::process::Command;

use fieldgate::margo::component::compose::ARCHIVE_TYPES;
use fieldgate_simulators::margo::{Deployment, Records};
use margo_support::{Manager, artifact, error};
use serde_json::json;
use whole_support::{Site, margo, stop};

const TOKEN: &str = "it's \"$HOME\" ${X} \\ # `end\\";

struct Engine {
    address: String,
    compose: Vec<String>,
    image: String,
    tls: Option<String>,
}

impl Engine {
    fn named() -> Self {
        let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let compose = variable("FIELDGATE_COMPOSE", "docker compose").split_whitespace().map(str::to_owned).collect();
        let address =
            std::env::var("FIELDGATE_ENGINE").expect("FIELDGATE_ENGINE names the engine, see the head of this file");
        let tls = std::env::var("FIELDGATE_ENGINE_TLS").ok();
        Self { address, compose, image: variable("FIELDGATE_IMAGE", "busybox"), tls }
    }

    /// What the compose program prints.
    fn ask(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(&self.compose[0]);
        command.args(&self.compose[1..]).args(arguments).env("DOCKER_HOST", &self.address).current_dir("/");
        if let Some(tls) = &self.tls {
            command.env("DOCKER_TLS_VERIFY", "1").env("DOCKER_CERT_PATH", tls);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The one project that is called like the component.
    fn project(&self) -> Option<String> {
        let listed: serde_json::Value = serde_json::from_str(&self.ask(&["ls", "--all", "--format", "json"])).unwrap();
        let names = listed.as_array().unwrap().iter().filter_map(|project| project["Name"].as_str());
        let mut own = names.filter(|name| name.starts_with("margo-real-shop-"));
        let found = own.next().map(str::to_owned);
        assert_eq!(own.next(), None, "one project");
        found
    }

    fn run(&self, script: &str) -> String {
        self.ask(&["--project-name", &self.project().unwrap(), "exec", "-T", "web", "/bin/sh", "-c", script])
    }

    /// A package whose container is healthy after `seconds` if the mounted file says `conf`.
    fn package(&self, site: &Site, name: &str, conf: &str, seconds: u32) {
        // An engine that may be elsewhere does not see files of the package.
        let (mounts, configs) = match self.tls {
            None => (json!(["./app.conf:/app.conf:ro"]), json!([])),
            Some(_) => (json!([]), json!([{ "source": "app", "target": "/app.conf", "mode": 0o444 }])),
        };
        let mut with_data = mounts.clone();
        with_data.as_array_mut().unwrap().push(json!("data:/data"));
        let file = json!({
            "services": {
                "web": {
                    "image": self.image,
                    "command": ["/bin/sh", "-c", format!("sleep {seconds}; echo there >/data/ready; sleep 3600")],
                    "init": true,
                    "environment": { "TOKEN": "${TOKEN:-none}" },
                    "volumes": with_data,
                    "configs": configs.clone(),
                    "healthcheck": {
                        "test": ["CMD", "/bin/sh", "-c", "[ -f /data/ready ] && read said </app.conf && [ \"$$said\" = good ]"],
                        "interval": "1s", "retries": 5 + seconds,
                    },
                },
                "job": {
                    "image": self.image,
                    "user": "1234",
                    "command": ["/bin/sh", "-c", "read said </app.conf"],
                    "volumes": mounts,
                    "configs": configs,
                },
            },
            "volumes": { "data": null },
            "configs": { "app": { "content": format!("{conf}\n") } },
        });
        let archive = margo::archive(&[("compose.yaml", &file.to_string()), ("app.conf", &format!("{conf}\n"))]);
        artifact(site, name, &[(ARCHIVE_TYPES[0], archive)]);
    }
}

fn deployment(name: &str) -> Deployment {
    let plain = Deployment { kind: "compose".to_owned(), ..Deployment::custom("plant", name) };
    let with = plain.component("real-shop", &margo::repository(name), "1.0");
    with.parameter("token", TOKEN, "TOKEN", "real-shop")
}

#[test]
#[ignore = "needs a container engine, which FIELDGATE_ENGINE names"]
fn a_real_engine_runs_updates_sets_back_and_removes_a_project() {
    let engine = Engine::named();
    let manager = Manager::start(|_| {});
    let site = Site::new("");
    let tls = engine
        .tls
        .as_ref()
        .map(|tls| format!("ca = \"{tls}/ca.pem\", cert = \"{tls}/cert.pem\", key = \"{tls}/key.pem\","));
    let tls = tls.unwrap_or_default();
    let more = format!(
        "[margo.gateway]\nhosting = {{ cpu = [{{ cores = 2, architecture = \"amd64\" }}], memory = \"1Gi\", storage = \"8Gi\", \
         runtimes = [\"oci\"], deployment_types = [\"compose\"] }}\n\
         compose = {{ command = {}, host = \"{}\", {tls} otlp_http = \"http://127.0.0.1:4318\", check_every = \"1 s\" }}\n",
        json!(engine.compose),
        engine.address,
    );
    site.main_file(&manager.settings(&[], &more));
    engine.package(&site, "one", "good", 0);
    engine.package(&site, "two", "good", 4);
    engine.package(&site, "sick", "bad", 0);
    manager.join(&site);
    // As the service runs: nobody else may read what it writes, but for what containers are given.
    let start = || {
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            "umask 077; exec \"$@\"",
            "sh",
            env!("CARGO_BIN_EXE_fieldgate"),
            "--config",
            &site.text(),
            "run",
        ]);
        site.start_with(command)
    };
    let mut gateway = start();
    manager.sees("plant");

    let first = manager.wfm.deploy(deployment("one")).unwrap();
    manager.reaches(&first, None, "installed");
    assert_eq!(engine.run("printf %s \"$TOKEN\""), TOKEN, "a value arrives as it is");
    assert_eq!(engine.run("printf %s \"$HTTP_OTEL_EXPORTER_OTLP_ENDPOINT\""), "http://127.0.0.1:4318");

    // Killed while the next revision comes up.
    let again = |name: &str| manager.wfm.deploy(Deployment { id: first.clone(), ..deployment(name) }).unwrap();
    again("two");
    manager.reaches(&first, None, "installing");
    gateway.kill();
    gateway = start();
    manager.reaches(&first, None, "installed");
    let begun = engine.run("cat /proc/1/stat");

    again("sick");
    manager.wait("the failure", |seen| {
        let status = seen.status(&first, None).filter(|status| status.state == "failed")?;
        let (code, _, words) = error(status);
        assert!(code == "compose-failed" && words.contains("runs again"), "{code} {words}");
        eprintln!("told: {words}");
        Some(())
    });
    assert_eq!(engine.run("read said </app.conf; printf %s \"$said\""), "good");
    assert_ne!(engine.run("cat /proc/1/stat"), begun, "it was made anew");

    // Somebody takes it down: it is brought back, and told so.
    again("two");
    manager.reaches(&first, None, "installed");
    let installations = |seen: &Records| {
        seen.statuses.iter().filter(|status| status.deployment == first && status.state == "installed").count()
    };
    let before = manager.wfm.with(|seen| installations(seen));
    engine.ask(&["--project-name", &engine.project().unwrap(), "down"]);
    manager.wait("another installation", |seen| (installations(seen) > before).then_some(()));
    assert_eq!(engine.run("cat /data/ready"), "there\n", "its volume is still there");

    manager.remove(&first, None);
    assert_eq!(engine.project(), None);
    manager.found_nothing_wrong();
    stop(gateway);
}
