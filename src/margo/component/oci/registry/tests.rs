//! A registry that lies about everything: endless answers, dribbled ones, realms and redirects that lead astray.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::margo::words::Digest;

/// How a scripted registry answers one request.
enum Play {
    /// Status with headers, and a body.
    Whole(&'static str, String, Vec<u8>),
    /// Status, and a body without an end.
    Endless(&'static str),
    /// Status, and a byte now and then.
    Dribble(&'static str),
    /// Nothing at all.
    Silence,
}

type Script = dyn Fn(&str, &str) -> Play + Send + Sync;

/// A registry of a page of script: path and `Authorization` in, an answer out.
struct Liar {
    address: String,
    sent: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Liar {
    async fn start(script: impl Fn(&str, &str) -> Play + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sent, script): (Arc<AtomicUsize>, Arc<Script>) = (Arc::default(), Arc::new(script));
        let counted = sent.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, script.clone(), counted.clone()));
            }
        });
        Self { address, sent, task }
    }

    fn registry(&self, login: Option<(&str, &str)>) -> Registry {
        let config = SourceConfig {
            registries: true,
            plain: vec![self.address.clone()],
            login: login.map(|(user, password)| (user.to_owned(), Secret::new(password.to_owned()))),
            ..SourceConfig::default()
        };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let second = Duration::from_secs(1);
        Registry::new(&config, Pace { silence: second, answer: 2 * second, rate: 1 << 20 }).unwrap()
    }

    fn reference(&self) -> Reference {
        format!("{}/recipes/pump:1.0", self.address).parse().unwrap()
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, script: Arc<Script>, sent: Arc<AtomicUsize>) {
    let mut stream = BufReader::new(stream);
    let (mut path, mut shown, mut line) = (String::new(), String::new(), String::new());
    while stream.read_line(&mut line).await.is_ok_and(|read| read > 2) {
        if path.is_empty() {
            line.split(' ').nth(1).unwrap_or_default().clone_into(&mut path);
        } else if let Some((_, value)) = line.split_once("uthorization: ") {
            value.trim().clone_into(&mut shown);
        }
        line.clear();
    }
    let mut send = async |bytes: &[u8]| {
        sent.fetch_add(bytes.len(), Ordering::Relaxed);
        stream.write_all(bytes).await.is_ok() && stream.flush().await.is_ok()
    };
    let head = |status: &str, more: &str| format!("HTTP/1.1 {status}\r\nconnection: close\r\n{more}\r\n");
    match script(&path, &shown) {
        Play::Whole(status, more, body) => {
            send(head(status, &more).as_bytes()).await;
            send(&body).await;
        }
        Play::Endless(status) => {
            send(head(status, "").as_bytes()).await;
            while send(&[b' '; 16 << 10]).await {}
        }
        Play::Dribble(status) => {
            send(head(status, "").as_bytes()).await;
            while send(b" ").await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Play::Silence => tokio::time::sleep(Duration::from_secs(600)).await,
    }
}

fn layer(size: u64) -> Layer {
    let (kind, digest) = (super::super::super::RECIPE_TYPE.to_owned(), Digest::of(b"layer"));
    Layer { kind, name: None, digest, size }
}

fn words<T>(outcome: Result<T, Miss>) -> (bool, String) {
    match outcome {
        Ok(_) => panic!("it was taken"),
        Err(Miss::Later(why)) => (true, why),
        Err(Miss::Never(why)) => (false, why),
    }
}

/// What a system's buffers may swallow beside what was read.
const SLACK: usize = 16 << 20;

#[tokio::test]
async fn a_manifest_without_an_end_is_read_up_to_its_limit_and_refused() {
    let liar = Liar::start(|_, _| Play::Endless("200 OK")).await;
    let (later, why) = words(liar.registry(None).manifest(&liar.reference()).await);
    assert!(!later && why.contains("its manifest has more than"), "{why}");
    assert!(liar.sent.load(Ordering::Relaxed) < SLACK);
}

#[tokio::test]
async fn a_refusal_without_an_end_is_read_up_to_its_limit() {
    let liar = Liar::start(|_, _| Play::Endless("500 Broken")).await;
    let registry = liar.registry(None);
    let (later, why) = words(registry.manifest(&liar.reference()).await);
    assert!(later && why.contains("500"), "{why}");
    let (later, _) = words(registry.blob(&liar.reference(), &layer(10)).await);
    assert!(later && liar.sent.load(Ordering::Relaxed) < SLACK);
}

#[tokio::test]
async fn a_token_without_an_end_is_read_up_to_its_limit() {
    let address = Arc::new(std::sync::OnceLock::<String>::new());
    let place = address.clone();
    let liar = Liar::start(move |path, _| match path.starts_with("/token") {
        true => Play::Endless("200 OK"),
        false => {
            let realm = format!("www-authenticate: Bearer realm=\"http://{}/token\"\r\n", place.get().unwrap());
            Play::Whole("401 Unauthorized", realm, Vec::new())
        }
    })
    .await;
    address.set(liar.address.clone()).unwrap();
    let (_, why) = words(liar.registry(Some(("gw", "secret"))).manifest(&liar.reference()).await);
    assert!(why.contains("its token has more than"), "{why}");
    assert!(liar.sent.load(Ordering::Relaxed) < SLACK);
}

#[tokio::test]
async fn a_login_is_not_shown_to_a_token_service_without_tls() {
    let realm = "www-authenticate: Bearer realm=\"http://192.0.2.1/token\"\r\n";
    let liar = Liar::start(|_, _| Play::Whole("401 Unauthorized", realm.to_owned(), Vec::new())).await;
    let (later, why) = words(liar.registry(Some(("gw", "secret"))).manifest(&liar.reference()).await);
    assert!(later && why.contains("not protected by TLS"), "{why}");
}

#[tokio::test]
async fn a_registry_that_is_silent_or_dribbles_is_given_up() {
    for (play, what) in [("silence", "silent"), ("dribble", "too long"), ("refusal", "500")] {
        let liar = Liar::start(move |_, _| match play {
            "silence" => Play::Silence,
            "dribble" => Play::Dribble("200 OK"),
            _ => Play::Dribble("500 Broken"),
        })
        .await;
        let began = Instant::now();
        let (later, why) = words(liar.registry(None).manifest(&liar.reference()).await);
        assert!(later && why.contains(what), "{play}: {why}");
        assert!(began.elapsed() < Duration::from_secs(20), "{play} took {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_layer_that_dribbles_is_given_up_in_a_time_that_grows_with_its_size() {
    let liar = Liar::start(|_, _| Play::Dribble("200 OK")).await;
    let registry = liar.registry(None);
    for (size, least) in [(10, 2), (2 << 20, 4)] {
        let began = Instant::now();
        let mut body = registry.blob(&liar.reference(), &layer(size)).await.map_err(|_| ()).unwrap();
        let gone = loop {
            match body.next().await {
                Ok(Some(_)) => {}
                other => break words(other).1,
            }
        };
        assert!(gone.contains("too long"), "{gone}");
        assert!((least..least + 20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_login_is_shown_as_it_is_wanted_and_kept_for_the_next_request() {
    let bearer = Arc::new(std::sync::OnceLock::<String>::new());
    let place = bearer.clone();
    let liar = Liar::start(move |path, shown| match (path, shown) {
        (path, "Basic Z3c6c2VjcmV0") if path.starts_with("/token?") => {
            assert!(path.contains("scope=repository%3Arecipes%2Fpump%3Apull") && path.contains("service=a%2C+b"));
            Play::Whole("200 OK", String::new(), b"{\"access_token\":\"t0\"}".to_vec())
        }
        (_, "Bearer t0") => Play::Whole("200 OK", String::new(), path.as_bytes().to_vec()),
        _ => {
            let address = place.get().unwrap();
            let realm = format!("WWW-Authenticate: bearer realm=\"http://{address}/token\", service=\"a, b\"\r\n");
            Play::Whole("401 Unauthorized", realm, Vec::new())
        }
    })
    .await;
    bearer.set(liar.address.clone()).unwrap();
    let registry = liar.registry(Some(("gw", "secret")));
    let manifest = registry.manifest(&liar.reference()).await.map_err(|_| ()).unwrap();
    assert_eq!(manifest, "/v2/recipes/pump/manifests/1.0");
    let mut blob = registry.blob(&liar.reference(), &layer(100)).await.map_err(|_| ()).unwrap();
    assert_eq!(
        blob.next().await.map_err(|_| ()).unwrap().unwrap(),
        format!("/v2/recipes/pump/blobs/{}", Digest::of(b"layer"))
    );

    let basic = Liar::start(|_, shown| match shown {
        "Basic Z3c6c2VjcmV0" => Play::Whole("200 OK", String::new(), b"m".to_vec()),
        _ => Play::Whole("401 Unauthorized", "www-authenticate: Basic realm=\"r\"\r\n".to_owned(), Vec::new()),
    })
    .await;
    assert!(basic.registry(Some(("gw", "secret"))).manifest(&basic.reference()).await.is_ok());
    let (_, why) = words(basic.registry(None).manifest(&basic.reference()).await);
    assert!(why.contains("wants a login that it was not given"), "{why}");
}

#[tokio::test]
async fn a_login_is_not_carried_on_by_redirects_to_another_host() {
    let other = Liar::start(|_, shown| {
        assert_eq!(shown, "", "the login of one registry is nobody else's");
        Play::Whole("200 OK", String::new(), b"blob".to_vec())
    })
    .await;
    let place = other.address.replace("127.0.0.1", "localhost");
    let first = Liar::start(move |_, shown| match shown {
        "" => Play::Whole("401 Unauthorized", "www-authenticate: Basic\r\n".to_owned(), Vec::new()),
        _ => Play::Whole("307 Elsewhere", format!("location: http://{place}/blob\r\n"), Vec::new()),
    })
    .await;
    let registry = first.registry(Some(("gw", "secret")));
    let mut body = registry.blob(&first.reference(), &layer(4)).await.map_err(|_| ()).unwrap();
    assert_eq!(body.next().await.map_err(|_| ()).unwrap().unwrap(), "blob");
    // Round and round ends, too.
    let ring = Liar::start(|_, _| Play::Whole("302 Here", "location: /v2/again\r\n".to_owned(), Vec::new())).await;
    let (later, why) = words(ring.registry(None).manifest(&ring.reference()).await);
    assert!(later && why.contains("a redirect too many"), "{why}");
}

#[test]
fn challenges_are_read_with_and_without_quotes() {
    let read = |text: &str| parameters(text, "bearer");
    let found = read("Bearer realm=\"https://a/token\",service=\"a, b\", scope=x").unwrap();
    let found: Vec<(&str, &str)> = found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(found, [("realm", "https://a/token"), ("scope", "x"), ("service", "a, b")]);
    assert_eq!(read("Basic realm=\"x\""), None);
    assert!(read("BEARER").unwrap().is_empty());
}

proptest::proptest! {
    #[test]
    fn any_challenge_is_read(text in "(Bearer )?.{0,60}") {
        let _ = parameters(&text, "bearer");
    }
}
